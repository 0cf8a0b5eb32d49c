"""What `eval.py` looks at beside attacks: steps, surfaces, where a network looks."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from robustjax import attacks, data, evaluation
from robustjax._checks import InputError, positive_int
from robustjax.config.attack_blocks import build_threat
from robustjax.config.blocks import Block
from robustjax.config.classifiers import Classifier
from robustjax.evaluation.limits import has_constant_solution
from robustjax.types import ModelFn

_SHARES = (4, 8, 16, 32, 64)  # of eps, the step sizes of a grid
_MOST_SHOWN = 2  # attacks whose images are looked at


def step_curves(
    classifier: Classifier,
    test: data.Dataset,
    block: Block,
    steps: Sequence[int],
    **options: Any,
) -> dict[str, Any]:
    """PGD of `config.evaluation` at steps of eps / 4 to eps / 64.

    Args:
      classifier: That of the run.
      test: What it is judged on.
      block: `config.evaluation`.
      steps: Where to look, ascending.
      **options: `key`, `batch_size`, `num_examples`, `mesh`.
    """
    threat, eps = build_threat(block["threat"]), float(block["threat"]["eps"])
    if not 0 < eps < float("inf"):
        raise InputError(f"`--steps` needs a finite `eps` above 0, got {eps}.")
    return evaluation.step_curves(
        classifier.source or classifier.logits_fn,
        test,
        lambda size: attacks.pgd(threat, step_size=size, num_steps=max(steps)),
        [eps / share for share in _SHARES],
        steps,
        **options,
    )


def surfaces(
    classifier: Classifier, test: data.Dataset, block: Block, count: int
) -> dict[str, Any]:
    """The loss within eps of the first images, and the health of their gradients."""
    positive_int(surfaces=count)
    shown = test.take(slice(count))
    x, y = data.as_float(jnp.asarray(shown.images)), jnp.asarray(shown.labels)
    predict = classifier.source or classifier.logits_fn
    radius = float(block["threat"]["eps"])
    found = evaluation.loss_surface(predict, x, y, key=jax.random.key(0), radius=radius)
    health = jax.device_get(evaluation.gradient_health(predict, x, y))
    shares = dict(
        count=len(y),
        vanished=float(health.vanished.mean()),
        not_finite=float(1 - health.finite.mean()),
        zero_share=float(health.zero_share.mean()),
    )
    return dict(health=shares, **jax.device_get(found)._asdict())


def attention(
    classifier: Classifier,
    result: evaluation.Robustness,
    test: data.Dataset,
    block: Block,
    reference: ModelFn | None,
) -> dict[str, Any]:
    """Key areas of the run's network on clean images and those of the first attacks.

    Args:
      classifier: That of the run.
      result: Of `evaluate`, with x_adv kept.
      test: What it was evaluated on.
      block: `config.evaluation`: `layer`, and `masks`, an .npz file with `masks`
        [N, H, W] or `boxes` [N, 4] for the images of the split, or else `reference`.
      reference: The model of `reference`, whose largest quarter of cells of the clean
        image is the mask; its layer is `reference_layer`, or the same.

    Raises:
      InputError: there are no masks, or they do not fit.
    """
    total = len(result.index)
    x = np.asarray(data.as_float(jnp.asarray(test.images[:total])))
    if block.get("masks"):
        masks, words = _from_file(Path(block["masks"]), x.shape), str(block["masks"])
    elif reference is None:
        raise InputError(
            "`evaluation.layer` needs `evaluation.masks`, an .npz file, or "
            "`evaluation.reference`, the directory of an undefended run."
        )
    else:
        layer = block.get("reference_layer") or block["layer"]
        maps = np.concatenate(
            [
                np.asarray(
                    evaluation.attention_of(reference, jnp.asarray(part), layer=layer)
                )
                for part in np.array_split(x, -(-total // 256))
            ]
        )
        masks = evaluation.reference_masks(maps, x.shape[1:3])
        words = (
            f"the largest quarter of the cells of {layer} of {block['reference']} on "
            "clean images"
        )
    images = {"clean": x}
    kept = [attack for attack in result.attacks if attack.x_adv is not None]
    images |= {attack.name: np.asarray(attack.x_adv) for attack in kept[:_MOST_SHOWN]}
    subject = evaluation.Subject(classifier.model_fn, block["layer"], images)
    found = evaluation.attention_of_models({"this": subject}, result.labels, masks)
    return dict(masks=words, layer=block["layer"], **found)


def limits(block: Block, radii: Sequence[float], labels: np.ndarray) -> list[Any]:
    """What no classifier exceeds at each radius of a curve, None where that is 1."""
    threat = dict(block["threat"])
    prior = evaluation.class_prior(labels)
    at = lambda eps: has_constant_solution({"threat": threat | dict(eps=eps)})
    return [prior if at(eps) else None for eps in radii]


def _from_file(path: Path, shape: tuple[int, ...]) -> np.ndarray:
    try:
        with np.load(path) as archive:
            arrays = {name: archive[name] for name in archive.files}
    except (OSError, ValueError) as error:
        raise InputError(
            f"`evaluation.masks` {path} cannot be read: {error}."
        ) from error
    count, size = shape[0], (shape[1], shape[2])
    if "boxes" in arrays:
        masks = evaluation.box_masks(arrays["boxes"][:count], size)
    elif "masks" in arrays:
        masks = arrays["masks"][:count]
    else:
        raise InputError(
            f"`evaluation.masks` {path} must hold `masks` or `boxes`, got "
            f"{list(arrays)}."
        )
    if masks.shape != (count, *size):
        raise InputError(
            f"`evaluation.masks` {path} must be {(count, *size)} for these images, got "
            f"{masks.shape}."
        )
    return masks
