"""Our classifiers in the hands of other libraries' attacks.

Foolbox calls JAX functions as they are; everything in PyTorch gets a module whose
forward and backward passes run in JAX, tensors handed over without a copy (DLPack).
Neither library is imported before it is asked for.
"""

import importlib
from typing import Any

import jax
from jax.tree_util import Partial

from robustjax._checks import InputError
from robustjax.types import Array, LogitsFn, as_pytree


def as_foolbox(logits_fn: LogitsFn, *, bounds: tuple[float, float] = (0.0, 1.0)) -> Any:
    """The classifier as a Foolbox model, for Foolbox's attacks on raw arrays.

    Foolbox writes its attacks for images of any layout, so [B, H, W, C] is what its
    attacks return too. Labels are int arrays [B].

    Args:
      logits_fn: The classifier; it is compiled, once per shape.
      bounds: (low, high) of a pixel.

    Returns:
      A `foolbox.models.JAXModel`.

    Raises:
      InputError: Foolbox is not installed, or `bounds` are not (low, high).

    Example:
      >>> model = as_foolbox(lambda x: x.mean(axis=(1, 2)))  # doctest: +SKIP
      >>> attack = foolbox.attacks.LinfFastGradientAttack()  # doctest: +SKIP
      >>> _, (x_adv,), _ = attack(model, x, y, epsilons=[0.1])  # doctest: +SKIP
    """
    foolbox = _imported("foolbox")
    compiled = Partial(_run, as_pytree(logits_fn))
    return foolbox.models.JAXModel(
        compiled, bounds=_checked(bounds), data_format="channels_last"
    )


def as_torch_module(logits_fn: LogitsFn) -> Any:
    """The classifier as a `torch.nn.Module` with gradients, images [B, C, H, W].

    Its backward pass is that of JAX, with a second forward pass; gradients of
    gradients raise. It has no parameters: PyTorch sees a function of the images. Works
    where PyTorch and JAX share a device.

    Args:
      logits_fn: The classifier on [B, H, W, C]; it is compiled, once per shape.

    Returns:
      A module from float32 [B, C, H, W] to logits [B, K].

    Raises:
      InputError: PyTorch is not installed.

    Example:
      >>> network = as_torch_module(logits_fn)  # doctest: +SKIP
      >>> x_adv = torchattacks.PGD(network, eps=0.1)(x, y)  # doctest: +SKIP
    """
    torch = _imported("torch")
    classify = as_pytree(logits_fn)
    pullback = Partial(_pullback, classify)

    class Classifier(torch.autograd.Function):
        @staticmethod
        def forward(context, images):
            context.save_for_backward(images)
            return _to_torch(torch, _run(classify, _to_jax(images)))

        @staticmethod
        @torch.autograd.function.once_differentiable
        def backward(context, cotangent):
            (images,) = context.saved_tensors
            grad = _run(pullback, _to_jax(images), _to_jax(cotangent))
            return _to_torch(torch, grad)

    class JaxModule(torch.nn.Module):
        def forward(self, images):
            return Classifier.apply(images.permute(0, 2, 3, 1))

    return JaxModule()


@jax.jit
def _run(fn: Partial, *arrays: Array) -> Array:
    # Weights inside `fn` are arguments, as models.logits_fn made them.
    return fn(*arrays)


def _pullback(logits_fn: LogitsFn, x: Array, cotangent: Array) -> Array:
    return jax.vjp(logits_fn, x)[1](cotangent)[0]


def _to_jax(tensor: Any) -> Array:
    return jax.dlpack.from_dlpack(tensor.detach().contiguous())


def _to_torch(torch: Any, array: Array) -> Any:
    # PyTorch may write over its input right after: be done with it.
    return torch.from_dlpack(jax.block_until_ready(array))


def _checked(bounds: tuple[float, float]) -> tuple[float, float]:
    low, high = bounds
    if not low < high:
        raise InputError(
            f"`bounds` must be (low, high) with low < high, got {bounds!r}."
        )
    return low, high


def _imported(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise InputError(
            f"{name} is not installed: pip install 'robustjax[parity]' ({error})."
        ) from error
