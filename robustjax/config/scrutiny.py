"""What `eval.py` looks at beside attacks: steps, surfaces, where a network looks."""

import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from robustjax import attacks, data, evaluation
from robustjax._checks import InputError, positive_int
from robustjax.config.attack_blocks import build_threat
from robustjax.config.blocks import Block
from robustjax.config.classifiers import Classifier
from robustjax.evaluation.limits import has_constant_solution
from robustjax.evaluation.maps import check_places
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


class KeyAreas(NamedTuple):
    """Masks of images, and where they come from.

    Attributes:
      masks: [N, H, W].
      words: What they are.
      layer: Whose maps are compared with them.
    """

    masks: np.ndarray
    words: str
    layer: str


def key_areas(
    block: Block,
    test: data.Dataset,
    total: int,
    classifier: Classifier,
    model_of: Callable[[str], ModelFn],
) -> KeyAreas | None:
    """Where the images' key areas are, if the config says so.

    Args:
      block: `config.evaluation`: `layer`, and `masks`, an .npz file with `masks`
        [N, H, W] or `boxes` [N, 4] for the images of the split, or else `reference`,
        the directory of a run, the largest quarter of whose map of the clean image is
        the mask; of the layer `reference_layer`, or the same.
      test: The images.
      total: How many are judged.
      classifier: That of the run, which has to have the layer.
      model_of: A directory to the run's model.

    Raises:
      InputError: the masks do not fit, or there is no such run or layer.
    """
    if not block.get("masks") and not block.get("reference"):
        return None
    if not block.get("layer"):
        raise InputError(
            "`evaluation.layer` must name the layer whose maps are compared with masks."
        )
    x = np.asarray(data.as_float(jnp.asarray(test.images[:total])))
    check_places(classifier.model_fn, jnp.asarray(x[:1]), block["layer"])
    if block.get("masks"):
        path = Path(block["masks"])
        return KeyAreas(_from_file(path, x.shape), str(path), block["layer"])
    layer = block.get("reference_layer") or block["layer"]
    reference = model_of(block["reference"])
    parts = map(jnp.asarray, np.array_split(x, -(-total // 256)))
    maps = [evaluation.attention_of(reference, part, layer=layer) for part in parts]
    masks = evaluation.reference_masks(np.concatenate(maps), x.shape[1:3])
    words = (
        f"the largest quarter of the cells of {layer} of {block['reference']} on "
        "clean images"
    )
    return KeyAreas(masks, words, block["layer"])


def attention(
    classifier: Classifier,
    result: evaluation.Robustness,
    test: data.Dataset,
    areas: KeyAreas,
) -> dict[str, Any]:
    """Key areas of the run's network on clean images and those of the first attacks.

    Args:
      classifier: That of the run.
      result: Of `evaluate`, with x_adv kept.
      test: What it was evaluated on.
      areas: From `key_areas`.
    """
    x = jnp.asarray(test.images[: len(result.index)])
    images = {"clean": np.asarray(data.as_float(x))}
    kept = [attack for attack in result.attacks if attack.x_adv is not None]
    images |= {attack.name: np.asarray(attack.x_adv) for attack in kept[:_MOST_SHOWN]}
    subject = evaluation.Subject(classifier.model_fn, areas.layer, images)
    labels = result.labels
    found = evaluation.attention_of_models({"this": subject}, labels, areas.masks)
    return dict(masks=areas.words, layer=areas.layer, **found)


def as_curve(
    block: Block, radii: Sequence[float], correct: np.ndarray, labels: np.ndarray
) -> dict[str, Any]:
    """A robustness curve as reports take it, with what no classifier exceeds.

    Args:
      block: `config.evaluation`.
      radii: Of the curve.
      correct: From `evaluation.robustness_curve`.
      labels: Of the images.
    """
    curve: dict[str, Any] = dict(eps=radii, accuracy=correct.mean(axis=1).tolist())
    threat, prior = dict(block["threat"]), evaluation.class_prior(labels)
    at = lambda eps: has_constant_solution({"threat": threat | dict(eps=eps)})
    limits = [prior if at(eps) else None for eps in radii]
    return curve | (dict(limit=limits) if any(map(at, radii)) else {})


def as_radii(given: Sequence[str]) -> list[float]:
    """The flag `--curve`.

    Raises:
      InputError: it does not hold ascending radii.
    """
    try:
        radii = [float(eps) for eps in given]
    except ValueError:
        radii = []
    if not radii or radii[0] < 0 or sorted(set(radii)) != radii:
        raise InputError(
            f"`--curve` must be ascending radii as in 0,0.05, got {given}."
        )
    return radii


def as_steps(given: Sequence[str]) -> list[int]:
    """The flag `--steps`.

    Raises:
      InputError: it does not hold ascending numbers.
    """
    steps = [int(text) for text in given if text.isdigit()]
    if not steps or len(steps) != len(given) or sorted({0, *steps}) != [0, *steps]:
        raise InputError(
            f"`--steps` must be ascending numbers as in 10,20,50,100, got {given}."
        )
    return steps


def _from_file(path: Path, shape: tuple[int, ...]) -> np.ndarray:
    try:
        with np.load(path) as archive:
            arrays = {name: archive[name] for name in archive.files}
    except (OSError, ValueError, TypeError, zipfile.BadZipFile) as error:
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
