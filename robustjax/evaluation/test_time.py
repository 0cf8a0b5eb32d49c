"""The protocol for defenses that work at test time: are they better than nothing?

A defense that moves or averages what it is shown stands before a static model, so the
question is what it adds to that model, at what price. See "Evaluating the Adversarial
Robustness of Adaptive Test-time Defenses" (Croce et al., 2022): attack the static model
first and hand the points on; attack through the defense, by BPDA and EOT where it hides
or draws; and state the cost of an answer. None of the defenses examined there was
significantly better than its static model, and some were worse.
"""

import dataclasses
import time
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from robustjax import _checks
from robustjax._checks import InputError
from robustjax.data import Dataset, as_float
from robustjax.evaluation._judging import num_draws
from robustjax.evaluation._programs import multiply_adds
from robustjax.evaluation.defended import right_on_points
from robustjax.evaluation.results import NamedAttack, Robustness, wilson_interval
from robustjax.evaluation.robustness import evaluate
from robustjax.evaluation.statistics import compare_paired
from robustjax.types import Array, Key, LogitsFn, as_pytree

_TIMED = 64  # images


def judge_test_time(
    defended_logits_fn: LogitsFn,
    base_logits_fn: LogitsFn,
    dataset: Dataset,
    base_attacks: Sequence[NamedAttack],
    adaptive_attacks: Sequence[NamedAttack],
    *,
    key: Key,
    **options: Any,
) -> dict[str, Any]:
    """The whole protocol: attacks on the static model, then through the defense.

    Args:
      defended_logits_fn: The defended classifier; draws [S, B, K] of a random one.
      base_logits_fn: The static model that the defense stands before.
      dataset: What to judge on.
      base_attacks: They attack the static model, by a `source` of their own where its
        gradient is of no use; their points go to both.
      adaptive_attacks: They attack the defense, by a `source` of their own where its
        gradient is of no use (BPDA: `attacks.with_surrogate`) or it is random (EOT:
        `attacks.expectation` with another key).
      key: A typed key.
      **options: `batch_size`, `mesh` and `num_examples` of `evaluate`.

    Returns:
      As `summarise_test_time`.

    Raises:
      InputError: there is no attack of one kind, or two have one name.

    Example:
      >>> from robustjax import attacks, threats
      >>> x = np.array([[[[0.3]]], [[[0.6]]]], np.float32)
      >>> dataset = Dataset(x, np.int32([0, 1]), np.arange(2), ("low", "high"))
      >>> def base(z):
      ...     return 9 * jnp.concatenate([0.5 - z, z - 0.5], -1).reshape(-1, 2)
      >>> fifths = lambda z: jnp.round(5 * z) / 5
      >>> rounding = lambda z: base(fifths(z))
      >>> bpda = lambda z: base(attacks.with_surrogate(fifths)(z))
      >>> fgsm = attacks.fgsm(threats.linf(0.15))
      >>> found = judge_test_time(rounding, base, dataset, [NamedAttack("FGSM", fgsm)],
      ...     [NamedAttack("BPDA", fgsm, source=bpda)], key=jax.random.key(0))
      >>> found["base"]["worst_case"], found["defended"]["worst_case"], found["flagged"]
      (0.5, 0.5, True)
    """
    for name, given in (
        ("base_attacks", base_attacks),
        ("adaptive_attacks", adaptive_attacks),
    ):
        if not given:
            raise InputError(f"`{name}` must hold at least one attack, got none.")
    on_base = [
        dataclasses.replace(
            a,
            name=f"static model, {a.name}",
            source=base_logits_fn if a.source is None else a.source,
        )
        for a in base_attacks
    ]
    attacks = [*on_base, *adaptive_attacks]
    names = [attack.name for attack in attacks]
    if len(set(names)) < len(names):
        raise InputError(f"Attacks must have different names, got {names}.")
    result = evaluate(
        defended_logits_fn, dataset, attacks, key=key, keep_adversarial=True, **options
    )
    sizes = {k: v for k, v in options.items() if k in ("batch_size", "mesh")}
    return summarise_test_time(
        result,
        dataset,
        defended_logits_fn,
        base_logits_fn,
        on_base=[attack.name for attack in on_base],
        **sizes,
    )


def summarise_test_time(
    result: Robustness,
    dataset: Dataset,
    defended_logits_fn: LogitsFn,
    base_logits_fn: LogitsFn,
    *,
    on_base: Sequence[str],
    batch_size: int = 512,
    mesh: Mesh | None = None,
) -> dict[str, Any]:
    """What a test-time defense adds to its static model, and at what cost, JSON-able.

    Both are judged on all points, whichever of the two they were made on: a point that
    breaks a model breaks it. The gain is the difference of the worst cases, with an
    interval of the differences per image (`compare_paired`).

    Args:
      result: Of `evaluate` with `keep_adversarial=True`, of the defended model.
      dataset: What it was evaluated on.
      defended_logits_fn: The defended model.
      base_logits_fn: The static model.
      on_base: Names of the attacks in `result` that ran on the static model.
      batch_size: Images at a time.
      mesh: Devices, by default all of them.

    Returns:
      `base`: `clean`, `worst_case` with its `interval`, `own`, under its own attacks,
      and `from_defended`, on points made through the defense; `transferred`, the
      defended model's accuracy on the static model's points; `defended`: `clean`,
      `worst_case`, `interval`, and `adaptive`, under attacks through the defense;
      `rows`: both accuracies under each attack, and where it ran; `gain` and
      `gain_interval`; `majority` of a random defense: accuracies of the class that most
      of its `forwards` answers give; `cost` from `inference_cost`; `flagged` if
      the gain is not above 0; `warning`, a line or None.

    Raises:
      InputError: x_adv was not kept, the data set is another one, or `on_base` does
        not name some, but not all, of the attacks that count.
    """
    known = {attack.name for attack in result.attacks}
    if missing := set(on_base) - known:
        raise InputError(
            f"`on_base` must name attacks of `result`, got {sorted(missing)}."
        )
    sizes: dict[str, Any] = dict(batch_size=batch_size, mesh=mesh)
    own = np.array([attack.name in set(on_base) for attack in result.attacks], bool)
    counts = np.array([attack.counts for attack in result.attacks], bool)
    if not (own & counts).any() or not (~own & counts).any():
        raise InputError(
            "`on_base` must leave attacks on either side: on the static model, and "
            f"through the defense; got {list(on_base)} of {sorted(known)}."
        )
    clean, *attacked = right_on_points(result, dataset, base_logits_fn, **sizes)
    base_right = np.stack(attacked)

    def base_worst(rows: np.ndarray) -> np.ndarray:
        return clean & base_right[rows & counts].all(axis=0)

    def defended_worst(rows: np.ndarray) -> float:
        kept = tuple(a for a, keep in zip(result.attacks, rows, strict=True) if keep)
        part = dataclasses.replace(result, attacks=kept)
        return float(part.worst_case_correct.mean())

    base, defended = base_worst(counts), result.worst_case_correct
    gained = compare_paired(defended, base)
    gain, (low, high) = gained.difference, gained.interval
    first = as_float(jnp.asarray(dataset.images[:_TIMED]))
    return dict(
        num_examples=len(clean),
        base=dict(
            clean=float(clean.mean()),
            **_judged(base),
            own=float(base_worst(own).mean()),
            from_defended=float(base_worst(~own).mean()),
        ),
        transferred=defended_worst(own),
        defended=dict(
            clean=float(result.clean_correct.mean()),
            **_judged(defended),
            adaptive=defended_worst(~own),
        ),
        rows=[
            dict(
                name=attack.name,
                on="static model" if mine else "defense",
                base=float(right.mean()),
                defended=float(attack.correct.mean()),
                counts=attack.counts,
            )
            for attack, mine, right in zip(result.attacks, own, base_right, strict=True)
        ],
        gain=gain,
        gain_interval=[low, high],
        majority=_majority(result, dataset, defended_logits_fn, sizes),
        cost=inference_cost(defended_logits_fn, base_logits_fn, first),
        flagged=gain <= 0,
        warning=_warning(gain, low),
    )


def inference_cost(
    defended_logits_fn: LogitsFn,
    base_logits_fn: LogitsFn,
    x: Array,
    *,
    repeats: int = 5,
) -> dict[str, Any]:
    """What an answer of the defended model costs beside one of the static model.

    Times are medians of alternating runs, compiled, after a first that is not counted.
    Multiply-adds are those of the program (`multiply_adds`), with those of gradients
    that the defense takes. A loop counts as often as it runs, one of no fixed length
    once (XLA's own count has the body of every loop once). Of a random defense it is
    one draw.

    Args:
      defended_logits_fn: The defended model.
      base_logits_fn: The static model.
      x: Images [B, H, W, C].
      repeats: Timed runs of each.

    Returns:
      `seconds` and `multiply_adds` of `base` and `defended` per image and answer,
      `time_ratio` and `work_ratio` (None where the static model multiplies nothing).

    Example:
      >>> base = lambda z: z @ jnp.ones((8, 2))
      >>> twice = lambda z: jax.lax.map(lambda _: base(z), jnp.arange(2)).mean(0)
      >>> inference_cost(twice, base, jnp.ones((4, 8)))["work_ratio"]
      2.0
    """
    _checks.positive_int(repeats=repeats)
    pair = [as_pytree(base_logits_fn), as_pytree(defended_logits_fn)]
    answers = [len(x) * num_draws(fun, x[:1]) for fun in pair]
    taken: list[list[float]] = [[], []]
    for _ in range(repeats + 1):
        for fun, times in zip(pair, taken, strict=True):
            start = time.perf_counter()
            jax.block_until_ready(_forward(fun, x))
            times.append(time.perf_counter() - start)
    base, defended = (
        float(np.median(times[1:])) / count
        for times, count in zip(taken, answers, strict=True)
    )
    work = [
        multiply_adds(fun, x) / count for fun, count in zip(pair, answers, strict=True)
    ]
    return dict(
        seconds=dict(base=base, defended=defended),
        time_ratio=defended / base,
        multiply_adds=dict(base=work[0], defended=work[1]),
        work_ratio=work[1] / work[0] if work[0] else None,
    )


@jax.jit
def _forward(fun: LogitsFn, x: Array) -> Array:
    return fun(x)


def _judged(correct: np.ndarray) -> dict[str, Any]:
    count = float(correct.sum())
    share = count / len(correct)
    return dict(worst_case=share, interval=list(wilson_interval(count, len(correct))))


def _warning(gain: float, low: float) -> str | None:
    if gain <= 0:
        return (
            "The defended model is no better than its static model in the worst case: "
            "what it adds are cost and, under weaker attacks, the looks of robustness."
        )
    if low <= 0:
        return "The gain over the static model is within the noise of these images."
    return None


def _majority(
    result: Robustness, dataset: Dataset, defended: LogitsFn, sizes: dict[str, Any]
) -> dict[str, Any] | None:
    """What most draws of a random defense say, on every attack's points."""
    if result.draws == 1:
        return None
    clean, *attacked = right_on_points(
        result, dataset, defended, judge=_most_are_right, **sizes
    )
    worst = clean.copy()
    for attack, correct in zip(result.attacks, attacked, strict=True):
        worst &= correct if attack.counts else True
    return dict(
        forwards=result.draws,
        clean=float(clean.mean()),
        **_judged(worst),
        rows=[
            dict(name=attack.name, accuracy=float(correct.mean()))
            for attack, correct in zip(result.attacks, attacked, strict=True)
        ],
    )


def _most_are_right(logits: Array, y: Array) -> Array:
    """Whether most of the draws [S, B, K] vote for the label; NaN has no vote."""
    votes = jax.nn.one_hot(logits.argmax(axis=-1), logits.shape[-1])
    says = ~jnp.isnan(logits).any(axis=-1, keepdims=True)
    counts = (votes * says).sum(axis=0)
    return (counts.argmax(axis=-1) == y) & (counts.max(axis=-1) > 0)
