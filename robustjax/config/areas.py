"""Where networks look, beside key areas of the images: what `eval.py` asks for."""

import zipfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial

from robustjax import attacks, data, evaluation
from robustjax._checks import InputError
from robustjax.config.attack_blocks import build_threat
from robustjax.config.blocks import Block
from robustjax.config.classifiers import Classifier
from robustjax.evaluation._batching import image_keys
from robustjax.evaluation.maps import check_places
from robustjax.types import Array, Attack, LogitsFn, ModelFn, as_pytree


class KeyAreas(NamedTuple):
    """Masks of images, where they come from, and who is compared with them.

    Attributes:
      masks: [N, H, W].
      words: What they are.
      layer: Whose maps are compared with them.
      block: `config.evaluation`, of the attacks on the images.
      beside: Other models by name.
      gray: By name those of surrogates, from which each of them is attacked.
    """

    masks: np.ndarray
    words: str
    layer: str
    block: Block
    beside: Mapping[str, ModelFn]
    gray: Mapping[str, Sequence[ModelFn]]


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
        [N, H, W], all 0 where an image has none, or `boxes` [N, 4], NaN where it has
        none, for the images of the split, in its order or with their `index` in it; or
        else `reference`, the directory of a run, the largest quarter of whose map of
        the clean image is the mask; of the layer `reference_layer`, or the same.
        `beside` names other runs that are looked at on the same images, `gray` those
        from which all are attacked.
      test: The images.
      total: How many are judged.
      classifier: That of the run, which has to have the layer.
      model_of: A run, written as for suites, to its model: `OtherRuns.model_fn`.

    Raises:
      InputError: the masks do not fit, or there is no such run or layer, or a run has
        other classes or images.
    """
    if not block.get("masks") and not block.get("reference"):
        return None
    layer = block.get("layer")
    if not layer:
        raise InputError(
            "`evaluation.layer` must name the layer whose maps are compared with masks."
        )
    x = np.asarray(data.as_float(jnp.asarray(test.images[:total])))
    check_places(classifier.model_fn, jnp.asarray(x[:1]), layer)
    if block.get("masks"):
        masks, words = _from_file(Path(block["masks"]), x.shape, test.index[:total])
    else:
        masks, words = _from_reference(block, x, model_of)
    runs = _named(block, "beside")
    beside = {name: model_of(run) for name, run in runs.items()}
    surrogates = _named(block, "gray")
    gray = {name: model_of(run) for name, run in surrogates.items()}
    for argument, models in (("beside", beside), ("gray", gray)):
        for name, model_fn in models.items():
            place = f"evaluation.{argument}", name
            _check_fits(*place, model_fn, jnp.asarray(x[:1]), test.num_classes)
    for model_fn in beside.values():
        check_places(model_fn, jnp.asarray(x[:1]), layer)
    # A model that attacks itself is no gray-box attacker.
    of = {
        name: [gray[one] for one, run in surrogates.items() if run != runs.get(name)]
        for name in ("this", *beside)
    }
    return KeyAreas(masks, words, layer, block, beside, of)


def attention(
    classifier: Classifier,
    result: evaluation.Robustness,
    test: data.Dataset,
    areas: KeyAreas,
) -> dict[str, Any]:
    """Key areas of the run's network, and of those beside it, on the same images.

    Clean ones, those of PGD on the network itself, and with `evaluation.gray` those of
    PGD on these runs but itself, the worst of them for each network and image.

    Args:
      classifier: That of the run.
      result: Of `evaluate`.
      test: What it was evaluated on.
      areas: From `key_areas`.
    """
    total, block = len(result.index), areas.block
    x = np.asarray(data.as_float(jnp.asarray(test.images[:total])))
    pgd = attacks.pgd(
        build_threat(block["threat"]),
        step_size=block["step_size"],
        num_steps=block["num_steps"],
    )

    def attacks_on(name: str) -> dict[str, Attack]:
        run: dict[str, Attack] = {f"white-box PGD-{block['num_steps']}": pgd}
        surrogates = [_logits_fn(model_fn) for model_fn in areas.gray[name]]
        if not surrogates:
            return run
        gray = attacks.transfer(pgd, surrogates)
        return {f"gray-box PGD-{block['num_steps']}": gray, **run}

    climbed = {"this": classifier.source or classifier.logits_fn}
    climbed |= {name: _logits_fn(model_fn) for name, model_fn in areas.beside.items()}
    models = {"this": classifier.model_fn, **areas.beside}
    size = block["batch_size"]
    subjects = {
        name: evaluation.Subject(
            models[name],
            areas.layer,
            {"clean": x}
            | {
                label: _crafted(attack, predict, x, result, size)
                for label, attack in attacks_on(name).items()
            },
        )
        for name, predict in climbed.items()
    }
    found = evaluation.attention_of_models(subjects, result.labels, areas.masks)
    return dict(masks=areas.words, layer=areas.layer, **found)


def _crafted(
    attack: Attack,
    predict: LogitsFn,
    x: np.ndarray,
    result: evaluation.Robustness,
    size: int,
) -> np.ndarray:
    """[N, H, W, C]; keys are by the images' places in their split."""
    held = as_pytree(attack), as_pytree(predict)
    size = min(size, len(x))
    padding = -len(x) % size
    arrays = (x, result.labels, result.index.astype(np.uint32))
    filled = [np.concatenate([a, a[:1].repeat(padding, 0)]) for a in arrays]
    rows = [
        np.asarray(_attacked(*held, *(a[i : i + size] for a in filled)))
        for i in range(0, len(x), size)
    ]
    return np.concatenate(rows)[: len(x)]


@jax.jit
def _attacked(
    attack: Attack, predict: LogitsFn, x: Array, y: Array, index: Array
) -> Array:
    return attack(image_keys(jax.random.key(0), index), predict, x, y)


def _logits_fn(model_fn: ModelFn) -> LogitsFn:
    return Partial(_logits, as_pytree(model_fn))


def _logits(model_fn: ModelFn, x: Array) -> Array:
    return model_fn(x).logits


def _named(block: Block, argument: str) -> dict[str, str]:
    """Directories with commas between them, by their last parts where these differ."""
    given = block.get(argument) or ()
    runs = given.split(",") if isinstance(given, str) else list(map(str, given))
    short = [Path(run).name for run in runs]
    apart = len(set(short)) == len(short) and "this" not in short
    return dict(zip(short if apart else runs, runs, strict=True))


def _check_fits(
    argument: str,
    name: str,
    model_fn: ModelFn,
    x: Array,
    num_classes: int | None = None,
) -> None:
    try:
        shape = jax.eval_shape(lambda x: model_fn(x).logits, x).shape
    except Exception as error:  # whatever a network raises of its inputs
        raise InputError(
            f"`{argument}` {name} does not take images {x.shape[1:]}: name a run on "
            "images of this size."
        ) from error
    if num_classes is not None and shape[-1] != num_classes:
        raise InputError(
            f"`{argument}` {name} has {shape[-1]} classes, the run that is judged "
            f"{num_classes}: name a run on the same data."
        )


def _from_reference(
    block: Block, x: np.ndarray, model_of: Callable[[str], ModelFn]
) -> tuple[np.ndarray, str]:
    layer = block.get("reference_layer") or block["layer"]
    reference = model_of(block["reference"])
    named = "evaluation.reference", block["reference"]
    _check_fits(*named, reference, jnp.asarray(x[:1]))
    parts = map(jnp.asarray, np.array_split(x, -(-len(x) // 256)))
    maps = [evaluation.attention_of(reference, part, layer=layer) for part in parts]
    masks = evaluation.reference_masks(np.concatenate(maps), x.shape[1:3])
    words = (
        f"the largest quarter of the cells of {layer} of {block['reference']} on "
        "clean images"
    )
    return masks, words


def _rows_of(path: Path, given: np.ndarray | None, index: np.ndarray) -> Any:
    """Rows of a file for images at these places in their split."""
    if given is None and np.all(np.diff(index) > 0):
        return slice(len(index))
    if given is None:
        raise InputError(
            f"`evaluation.masks` {path} must hold `index`, the place of each row in "
            "the split: the split is sorted by class, and its images are judged in "
            "another order (Dataset.index)."
        )
    rows = {int(place): row for row, place in enumerate(given)}
    missing = [int(place) for place in index if int(place) not in rows]
    if missing:
        raise InputError(
            f"`evaluation.masks` {path} must have every image that is judged in "
            f"`index`, got none of {missing[:5]}."
        )
    return [rows[int(place)] for place in index]


def _from_file(
    path: Path, shape: tuple[int, ...], index: np.ndarray
) -> tuple[np.ndarray, str]:
    """Masks of the images at these places in their split."""
    try:
        with np.load(path) as archive:
            arrays = {name: archive[name] for name in archive.files}
    except (OSError, ValueError, TypeError, zipfile.BadZipFile) as error:
        raise InputError(
            f"`evaluation.masks` {path} cannot be read: {error}."
        ) from error
    count, size = shape[0], (shape[1], shape[2])
    name = next((name for name in ("boxes", "masks") if name in arrays), None)
    if name is None:
        raise InputError(
            f"`evaluation.masks` {path} must hold `masks` or `boxes`, got "
            f"{list(arrays)}."
        )
    masks = arrays[name][_rows_of(path, arrays.get("index"), index)]
    if name == "boxes":
        masks = evaluation.box_masks(masks, size)
    if masks.shape != (count, *size):
        raise InputError(
            f"`evaluation.masks` {path} must be {(count, *size)} for these images, got "
            f"{masks.shape}."
        )
    without = int((~(masks > 0).any(axis=(1, 2))).sum())
    words = str(path)
    if without:
        words += f", in which {without} of {count} images have no area and are left out"
    return masks, words
