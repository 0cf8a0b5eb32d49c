"""What attacks do to the neurons that a class rests on.

Two claims of "Fight Perturbations with Perturbations" (Chen et al., 2021), as
measurements: that attacks suppress neurons of large influence and raise those of small
influence, and that this says which images fall. For attacks by gradients of the model
the first is nearly a tautology: to first order the fall of a logit *is* the sum of
gradients times shifts. Noises, and attacks that climb nothing of this model, tell more.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from robustjax import _checks, objectives
from robustjax._checks import InputError
from robustjax.data import Dataset, as_float
from robustjax.evaluation._batching import block_size, rows_of
from robustjax.evaluation.results import Robustness, check_kept
from robustjax.training import sharding
from robustjax.types import Array, ModelFn, as_pytree

_BINS = 20


def neuron_shifts(
    result: Robustness,
    dataset: Dataset,
    model_fn: ModelFn,
    *,
    layer: str,
    masks: Any,
    class_influence: Any,
    deviation: Any,
    seed: int = 0,
    batch_size: int = 512,
    mesh: Mesh | None = None,
) -> dict[str, Any]:
    """Shifts of neurons under each attack of an evaluation, JSON-able.

    With a the outputs of a layer, the shift of neuron j is

        dz_j = (a_j(x_adv) - a_j(x)) / deviation_j

    and the sets are those of the image's label. Only images that the bare model
    classifies correctly count.

    Args:
      result: Of `evaluate` with `keep_adversarial=True`; whether the model is defended
        or not does not matter, only its images are used.
      dataset: What it was evaluated on.
      model_fn: The bare model.
      layer: The layer's path.
      masks: +1 in front, -1 in the tail, 0 between, [K, *layer]: from training images.
      class_influence: Mean influence of each class, [K, *layer].
      deviation: Of the outputs over benign images, above 0, [*layer].
      seed: Of the random sets.
      batch_size: Images at a time.
      mesh: Devices, by default all of them.

    Returns:
      `layer`, `neurons`, `at_zero` (the shares of front and tail neurons that are 0 on
      clean images: no gradient raises or lowers these), and for each of `attacks`
      its name, `groups` (all, and those whose prediction succeeded or failed to change)
      with `count`, mean shift of `front`, `middle` and `tail`, the shares
      `front_falls` and `tail_rises`, and Spearman's correlation of influence and shift,
      a mean over images; `auroc` of tail minus front shift (`shift`), of the same of
      random sets (`random_sets`) and of minus the clean margin (`margin`) for success;
      and `by_rank`, the mean shift in 20 bins of neurons from the largest influence to
      the smallest. None stands for what no image tells.

    Raises:
      InputError: x_adv was not kept, the data set is another one, or an array does not
        fit the layer.
    """
    _checks.positive_int(batch_size=batch_size)
    check_kept(result, dataset)
    read, total = as_pytree(model_fn), len(result.index)
    size = block_size((read,), batch_size, total, mesh)

    def seen(images: Any) -> tuple[np.ndarray, ...]:
        blocks = rows_of((images, dataset.labels[:total]), size, mesh)
        rows = [sharding.to_host(_seen(layer, read, *block)) for block in blocks]
        return tuple(np.concatenate(part)[:total] for part in zip(*rows, strict=True))

    a, margin = seen(dataset.images[:total])
    labels = dataset.labels[:total]
    sets = _flat(masks, a, "masks")[labels]
    worth = _flat(class_influence, a, "class_influence")[labels]
    scale = np.asarray(deviation, np.float64).reshape(1, -1)
    if scale.shape[1] != a.shape[1] or not (scale > 0).all():
        raise InputError(
            f"`deviation` must be {a.shape[1]} numbers above 0, one for each neuron."
        )
    drawn = np.random.default_rng(seed).permuted(sets, axis=1)
    right = margin < 0
    attacks = []
    for attack in result.attacks:
        moved, after = seen(attack.x_adv)
        shift = (moved - a) / scale
        fell = after >= 0
        groups = {
            group: _figures(shift[rows], sets[rows], worth[rows])
            for group, rows in (
                ("all", right),
                ("succeeded", right & fell),
                ("failed", right & ~fell),
            )
        }
        auroc = dict(
            shift=_auroc(fell[right], _contrast(shift, sets)[right]),
            random_sets=_auroc(fell[right], _contrast(shift, drawn)[right]),
            margin=_auroc(fell[right], margin[right]),
        )
        by_rank = _by_rank(shift[right], worth[right])
        attacks.append(
            dict(name=attack.name, groups=groups, auroc=auroc, by_rank=by_rank)
        )
    zero = a[right] == 0
    return dict(
        layer=layer,
        neurons=a.shape[1],
        at_zero=dict(
            front=_share(zero, sets[right] > 0), tail=_share(zero, sets[right] < 0)
        ),
        attacks=attacks,
    )


@functools.partial(jax.jit, static_argnums=0)
def _seen(layer: str, model_fn: ModelFn, x: Array, y: Array) -> tuple[Array, Array]:
    """Outputs [B, J], and the margin of the best wrong class, [B]."""
    found = model_fn(as_float(x), capture=(layer,))
    a = found.features[layer].astype(jnp.float32)
    return a.reshape(a.shape[0], -1), objectives.margin(found.logits, y)


def _flat(given: Any, a: np.ndarray, name: str) -> np.ndarray:
    array = np.asarray(given, np.float64)
    array = array.reshape(len(array), -1)
    if array.shape[1] != a.shape[1]:
        raise InputError(
            f"`{name}` must be [K, *layer] of {a.shape[1]} neurons, got "
            f"{array.shape[1]}: the state of another model."
        )
    return array


def _figures(
    shift: np.ndarray, sets: np.ndarray, worth: np.ndarray
) -> dict[str, float | int | None]:
    front, tail = sets > 0, sets < 0
    return dict(
        count=len(shift),
        front=_share(shift, front),
        middle=_share(shift, sets == 0),
        tail=_share(shift, tail),
        front_falls=_share(shift < 0, front),
        tail_rises=_share(shift > 0, tail),
        spearman=_spearman(worth, shift),
    )


def _share(values: np.ndarray, where: np.ndarray) -> float | None:
    return float(values[where].mean()) if where.any() else None


def _spearman(one: np.ndarray, other: np.ndarray) -> float | None:
    from scipy import stats  # slow to import, as scikit-learn below

    if not len(one):
        return None
    ranks = [stats.rankdata(values, axis=1) for values in (one, other)]
    a, b = (r - r.mean(axis=1, keepdims=True) for r in ranks)
    sizes = np.sqrt((a**2).sum(axis=1) * (b**2).sum(axis=1))
    found = (a * b).sum(axis=1)[sizes > 0] / sizes[sizes > 0]
    return float(found.mean()) if found.size else None


def _contrast(shift: np.ndarray, sets: np.ndarray) -> np.ndarray:
    return -(shift * sets).sum(axis=1)


def _auroc(fell: np.ndarray, score: np.ndarray) -> float | None:
    from sklearn.metrics import roc_auc_score

    if fell.all() or not fell.any():
        return None
    return float(roc_auc_score(fell, score))


def _by_rank(shift: np.ndarray, worth: np.ndarray) -> list[float] | None:
    if not len(shift):
        return None
    order = np.argsort(-worth, axis=1)
    ranked = np.take_along_axis(shift, order, axis=1).mean(axis=0)
    bins = np.array_split(ranked, min(_BINS, len(ranked)))
    return [float(part.mean()) for part in bins]
