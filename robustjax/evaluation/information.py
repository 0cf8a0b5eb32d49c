"""What a classifier's logits say about images and noises, before and after attacks.

The quantities that NAMID is trained on (Zhou et al., 2022), with critics that are
trained and frozen. An estimate is what its critic and bound make of it: compare clean
with adversarial of one critic, not critics with one another.
"""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from robustjax import _checks
from robustjax._checks import InputError
from robustjax.data import Dataset, as_float
from robustjax.evaluation._batching import block_size, rows_of
from robustjax.evaluation.report import mean_and_deviation
from robustjax.evaluation.results import AttackResult, Robustness, check_kept
from robustjax.training import sharding
from robustjax.types import Array, LogitsFn, as_pytree

Probe = Callable[[Array, Array], Array]
"""`(samples [B, ...], logits [B, K]) -> estimates [B]`: see `information.probe`."""


def information_of(
    result: Robustness,
    dataset: Dataset,
    logits_fn: LogitsFn,
    *,
    natural: Probe | None = None,
    adversarial: Probe | None = None,
    standard: Probe | None = None,
    batch_size: int = 512,
    mesh: Mesh | None = None,
) -> dict[str, Any]:
    """Estimates of mutual information under each attack of an evaluation, JSON-able.

    With h the classifier and I an estimate for each image:

    | quantity | of the probe | what of it |
    |---|---|---|
    | natural_clean | natural | I(x; h(x)) |
    | natural_adv | natural | I(x; h(x_adv)) |
    | adversarial_clean | adversarial | I(x_adv - x; h(x)) |
    | adversarial_adv | adversarial | I(x_adv - x; h(x_adv)) |
    | standard_clean | standard | I(x; h(x)) |
    | standard_adv | standard | I(x_adv; h(x_adv)) |

    See "Improving Adversarial Robustness via Mutual Information Estimation" (Zhou et
    al., 2022), figs. 2 and 4.

    Args:
      result: Of `evaluate` with `keep_adversarial=True`. It says which images are
        fooled.
      dataset: What it was evaluated on.
      logits_fn: The classifier that was judged; not a random one.
      natural: Of images: `information.probe` with NAMID's natural critic.
      adversarial: Of noises x_adv - x: with its adversarial critic.
      standard: Of images, each in its own logits: with WMIM's critic.
      batch_size: Images at a time over all devices; changes nothing but time and
        memory, if the probes look at each sample alone.
      mesh: Devices, by default all of them.

    Returns:
      `num_examples`; `quantities`, those of the table whose probe is given; `attacks`,
      each with its name and `groups`: all images, those right on x, of them the fooled
      (wrong on x_adv) and the survived (right on it). A group has its `count`, and of
      each quantity mean, sample deviation and the smallest over its images: None if it
      has no images, or if an estimate is not finite.

    Raises:
      InputError: no probe is given, x_adv was not kept, the data set is another one,
        or the classifier draws.

    Example:
      >>> from robustjax import attacks, threats
      >>> from robustjax.evaluation import NamedAttack, evaluate
      >>> x = np.array([[[[0.3]]], [[[0.6]]]], np.float32)
      >>> dataset = Dataset(x, np.int32([0, 1]), np.arange(2), ("low", "high"))
      >>> def logits_fn(z):
      ...     return jax.numpy.concatenate([0.5 - z, z - 0.5], -1).reshape(-1, 2)
      >>> fgsm = NamedAttack("fgsm", attacks.fgsm(threats.linf(0.15)))
      >>> result = evaluate(
      ...     logits_fn, dataset, [fgsm], key=jax.random.key(0), keep_adversarial=True)
      >>> found = information_of(
      ...     result, dataset, logits_fn, natural=lambda x, z: z.max(axis=1))
      >>> groups = found["attacks"][0]["groups"]
      >>> groups["fooled"]["count"], round(groups["all"]["natural_adv"]["mean"], 4)
      (1, 0.05)
    """
    _checks.positive_int(batch_size=batch_size)
    given = dict(natural=natural, adversarial=adversarial, standard=standard)
    probes = {name: as_pytree(p) for name, p in given.items() if p is not None}
    if not probes:
        raise InputError("Give at least one of `natural`, `adversarial`, `standard`.")
    check_kept(result, dataset)
    _check_draws(result)
    predict, total = as_pytree(logits_fn), len(result.index)
    size = block_size((predict,), batch_size, total, mesh)

    def gather(run: Callable[..., Any], *arrays: Any) -> Any:
        blocks: Iterator = rows_of(arrays, size, mesh)
        rows = [sharding.to_host(run(predict, probes, *block)) for block in blocks]
        return jax.tree.map(lambda *parts: np.concatenate(parts)[:total], *rows)

    x = dataset.images[:total]
    logits, clean = gather(_clean, x)
    attacks = []
    for attack in result.attacks:
        values = clean | gather(_adversarial, x, attack.x_adv, logits)
        attacks.append({"name": attack.name, "groups": _groups(result, attack, values)})
    order = [f"{name}_{side}" for name in probes for side in ("clean", "adv")]
    return dict(num_examples=total, quantities=order, attacks=attacks)


@jax.jit
def _clean(
    predict: LogitsFn, probes: Mapping[str, Probe], x: Array
) -> tuple[Array, dict[str, Array]]:
    """Logits of x, and the quantities that no attack changes."""
    x = as_float(x)
    logits = predict(x)
    if logits.ndim != 2:
        raise InputError(
            f"`logits_fn` must return [B, K], got {logits.shape}: of a random "
            "classifier there is no estimate."
        )
    images = [name for name in probes if name != "adversarial"]
    return logits, {f"{name}_clean": probes[name](x, logits) for name in images}


@jax.jit
def _adversarial(
    predict: LogitsFn,
    probes: Mapping[str, Probe],
    x: Array,
    x_adv: Array,
    clean: Array,
) -> dict[str, Array]:
    logits, noise = predict(x_adv), x_adv - as_float(x)
    found = {}
    if "natural" in probes:
        found["natural_adv"] = probes["natural"](as_float(x), logits)
    if "adversarial" in probes:
        found["adversarial_clean"] = probes["adversarial"](noise, clean)
        found["adversarial_adv"] = probes["adversarial"](noise, logits)
    if "standard" in probes:
        found["standard_adv"] = probes["standard"](x_adv, logits)
    return found


def _groups(
    result: Robustness, attack: AttackResult, values: Mapping[str, np.ndarray]
) -> dict[str, Any]:
    right = result.clean_correct
    masks = dict(
        all=np.ones_like(right),
        right=right,
        fooled=right & ~attack.correct,
        survived=right & attack.correct,
    )
    return {
        group: {
            "count": int(mask.sum()),
            **{name: _figures(values[name][mask]) for name in sorted(values)},
        }
        for group, mask in masks.items()
    }


def _figures(values: np.ndarray) -> dict[str, float | None]:
    if not values.size or not np.isfinite(values).all():
        return dict(mean=None, deviation=None, smallest=None)  # JSON has no NaN
    wide = values.astype(np.float64).tolist()
    mean, deviation = mean_and_deviation(wide)
    return dict(mean=mean, deviation=deviation, smallest=min(wide))


def _check_draws(result: Robustness) -> None:
    if result.draws > 1:
        raise InputError(
            f"`result` is of a random classifier ({result.draws} draws), whose images "
            "are not simply right or wrong: evaluate one without draws."
        )
