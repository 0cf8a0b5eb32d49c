"""The named attacks of the transfer family, as presets of `transferable`."""

from robustjax.attacks.input_diversity import gaussian_kernel, resize_and_pad
from robustjax.attacks.transferable import transferable
from robustjax.objectives import cross_entropy
from robustjax.types import Array, IteratedAttack, Objective, Threat


def ni_fgsm(
    threat: Threat,
    *,
    num_steps: int = 10,
    step_size: float | Array | None = None,
    momentum: float = 1.0,
    objective: Objective = cross_entropy,
) -> IteratedAttack:
    """Nesterov momentum: the gradient is taken where the momentum leads.

    See "Nesterov Accelerated Gradient and Scale Invariance for Adversarial Attacks"
    (Lin et al., 2020). Arguments and errors as in `transferable`.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from robustjax import threats
      >>> x, y = jnp.full((1, 2), 0.5), jnp.array([0])
      >>> attack = ni_fgsm(threats.linf(0.25), num_steps=2)
      >>> attack(jax.random.key(0), lambda z: z, x, y).tolist()
      [[0.25, 0.75]]
    """
    return transferable(
        threat,
        num_steps=num_steps,
        step_size=step_size,
        momentum=momentum,
        nesterov=True,
        objective=objective,
    )


def si_ni_fgsm(
    threat: Threat,
    *,
    num_steps: int = 10,
    step_size: float | Array | None = None,
    momentum: float = 1.0,
    num_scales: int = 5,
    objective: Objective = cross_entropy,
) -> IteratedAttack:
    """Nesterov momentum on the mean gradient over the images x, x/2, x/4, ...

    See "Nesterov Accelerated Gradient and Scale Invariance for Adversarial Attacks"
    (Lin et al., 2020). The copies are scaled in [0, 1]; the authors' code scales images
    in [-1, 1]. `num_scales` passes a step. Arguments and errors as in `transferable`.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from robustjax import threats
      >>> x, y = jnp.full((1, 2), 0.5), jnp.array([0])
      >>> attack = si_ni_fgsm(threats.linf(0.25), num_steps=2)
      >>> attack(jax.random.key(0), lambda z: z, x, y).tolist()
      [[0.25, 0.75]]
    """
    return transferable(
        threat,
        num_steps=num_steps,
        step_size=step_size,
        momentum=momentum,
        nesterov=True,
        num_scales=num_scales,
        objective=objective,
    )


def vmi_fgsm(
    threat: Threat,
    *,
    num_steps: int = 10,
    step_size: float | Array | None = None,
    momentum: float = 1.0,
    num_neighbors: int = 20,
    neighborhood: float = 1.5,
    objective: Objective = cross_entropy,
) -> IteratedAttack:
    """Momentum on the gradient corrected by the mean one around the last iterate.

    See "Enhancing the Transferability of Adversarial Attacks through Variance Tuning"
    (Wang and He, 2021), algorithm 1. `1 + num_neighbors` passes a step. Arguments and
    errors as in `transferable`.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from robustjax import threats
      >>> x, y = jnp.full((1, 2), 0.5), jnp.array([0])
      >>> attack = vmi_fgsm(threats.linf(0.25), num_steps=2, num_neighbors=2)
      >>> attack(jax.random.key(0), lambda z: z, x, y).tolist()
      [[0.25, 0.75]]
    """
    return transferable(
        threat,
        num_steps=num_steps,
        step_size=step_size,
        momentum=momentum,
        num_neighbors=num_neighbors,
        neighborhood=neighborhood,
        objective=objective,
    )


def di_fgsm(
    threat: Threat,
    *,
    num_steps: int = 10,
    step_size: float | Array | None = None,
    momentum: float = 1.0,
    low: float = 0.9,
    high: float = 1.0,
    probability: float = 0.5,
    objective: Objective = cross_entropy,
) -> IteratedAttack:
    """Momentum through random resizing and padding; without momentum the paper's DI2.

    See "Improving Transferability of Adversarial Examples with Input Diversity" (Xie
    et al., 2019). Each image draws its own resizing. Arguments and errors as in
    `transferable` and `resize_and_pad`.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from robustjax import threats
      >>> x, y = jnp.full((1, 4, 4, 1), 0.5), jnp.array([0])
      >>> attack = di_fgsm(threats.linf(0.25), num_steps=2)
      >>> attack(jax.random.key(0), lambda z: z[:, 0, :2, 0], x, y).shape
      (1, 4, 4, 1)
    """
    return transferable(
        threat,
        num_steps=num_steps,
        step_size=step_size,
        momentum=momentum,
        diversity=resize_and_pad(low, high, probability=probability),
        objective=objective,
    )


def ti_dim(
    threat: Threat,
    *,
    num_steps: int = 10,
    step_size: float | Array | None = None,
    momentum: float = 1.0,
    kernel_size: int = 15,
    kernel_span: float = 3.0,
    low: float = 0.9,
    high: float = 1.0,
    probability: float = 0.5,
    objective: Objective = cross_entropy,
) -> IteratedAttack:
    """Momentum on smoothed gradients taken through random resizing and padding.

    See "Evading Defenses to Transferable Adversarial Examples by Translation-Invariant
    Attacks" (Dong et al., 2019), whose kernel, steps and momentum are the defaults; it
    resizes images of 299 pixels up to 330, `low=1.0, high=330 / 299` here. By default
    they shrink, as in other libraries. The released evaluation of NAMID (Zhou et al.,
    2022) is `ti_dim(threats.linf(8 / 255), num_steps=40, step_size=0.007, momentum=0.1,
    low=1.0, high=1.0)`: at these sides the resizing changes nothing. Arguments and
    errors as in `transferable`, `gaussian_kernel` and `resize_and_pad`.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from robustjax import threats
      >>> x, y = jnp.full((1, 4, 4, 1), 0.5), jnp.array([0])
      >>> attack = ti_dim(threats.linf(0.25), num_steps=2, kernel_size=3)
      >>> attack(jax.random.key(0), lambda z: z[:, 0, :2, 0], x, y).shape
      (1, 4, 4, 1)
    """
    return transferable(
        threat,
        num_steps=num_steps,
        step_size=step_size,
        momentum=momentum,
        smoothing_kernel=gaussian_kernel(kernel_size, kernel_span),
        diversity=resize_and_pad(low, high, probability=probability),
        objective=objective,
    )
