"""Failure indicators: whether the attacks of an evaluation can be believed.

An attack that fails says nothing about the classifier. Each indicator measures one way
in which attacks fail, on a subset of the images, and is raised above a documented
threshold; docs/indicators.md lists them with their sources. A flag is no proof, and no
flag is none either: an attack that knows the defense is still needed.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
from jax.sharding import Mesh

from robustjax import _checks
from robustjax.data import Dataset
from robustjax.evaluation import _measures, _probes
from robustjax.evaluation._seen import Found, Seen
from robustjax.evaluation._thresholds import RULES, Rule
from robustjax.evaluation.results import Robustness, check_same_images
from robustjax.types import Key, LogitsFn, Threat, as_pytree

OWN = 0x0DD5  # folded into the key: the evaluation folds in positions of images


class Indicator(NamedTuple):
    """One judged measurement; `_asdict()` is JSON-able.

    Attributes:
      name: In snake_case.
      value: What was measured; None if it could not be, and `detail` says why.
      threshold: The indicator is raised above it.
      flagged: Whether it is raised.
      detail: One line with the numbers.
      meaning: What a flag means and what to do.
      source: Paper, or "ours".
    """

    name: str
    value: float | None
    threshold: float
    flagged: bool
    detail: str
    meaning: str
    source: str


def indicators(
    result: Robustness,
    logits_fn: LogitsFn,
    dataset: Dataset,
    threat: Threat,
    *,
    key: Key,
    step_size: float,
    num_steps: int,
    batch_size: int = 512,
    mesh: Mesh | None = None,
    source: LogitsFn | None = None,
    surrogates: Sequence[LogitsFn] = (),
    subset: int = 128,
    noise_subset: int = 16,
    num_draws: int = 10_000,
    num_queries: int = 500,
    num_directions: int = 100,
    only: Sequence[str] | None = None,
) -> tuple[Indicator, ...]:
    """All failure indicators, in the order of docs/indicators.md.

    What the evaluation recorded is used where there is something; the rest is measured
    by plain PGD of `num_steps` steps and a few other programs, each compiled once. In
    passes forwards and backwards, an image of the subset costs 16 T + 200 or so with
    the defaults (T = `num_steps`), and an image of the noise a third of `num_draws`.

    Args:
      result: Of `evaluate`, on these images.
      logits_fn: The classifier that was judged. Random ones return draws, [S, B, K].
      dataset: What it was evaluated on.
      threat: What attacks were held to. With an infinite radius, or 0, what needs a
        radius is not measured.
      key: A typed key; its draws are not those that `evaluate` makes with it.
      step_size: Of PGD, as in the evaluation.
      num_steps: Of PGD, as in the evaluation.
      batch_size: Images at a time over all devices.
      mesh: Devices, by default all of them.
      source: What attacks climb if it is not `logits_fn`, as of a `NamedAttack`.
      surrogates: Other models of the same classes, for transfer.
      subset: Images that are looked at, spread over the set.
      noise_subset: Images under noise, of those that are left standing.
      num_draws: Points of noise for each.
      num_queries: Of a short Square, where AutoAttack's did not run.
      num_directions: Of the stability under noise.
      only: Names of indicators, which cost what they need; None is all.

    Raises:
      InputError: an argument is out of range, or `result` is of other images.

    Example:
      >>> import jax.numpy as jnp
      >>> import numpy as np
      >>> from robustjax import evaluation, threats
      >>> x = np.linspace(0.3, 0.7, 40, dtype=np.float32).reshape(-1, 1, 1, 1)
      >>> y = (x > 0.5).astype(np.int32).ravel()
      >>> dataset = Dataset(x, y, np.arange(40), ("low", "high"))
      >>> blind = lambda z: jnp.sign(jnp.concatenate([0.5 - z, z - 0.5], -1))[:, 0, 0]
      >>> result = evaluation.evaluate(blind, dataset, [], key=jax.random.key(0))
      >>> found = indicators(result, blind, dataset, threats.linf(0.1),
      ...     key=jax.random.key(1), step_size=0.02, num_steps=4,
      ...     only=("gradient", "random"))
      >>> [(one.name, one.value, one.flagged) for one in found]
      [('gradient', 1.0, True), ('random', 0.0, False)]
    """
    _checks.positive_int(
        num_steps=num_steps, batch_size=batch_size, subset=subset, num_draws=num_draws
    )
    _checks.positive_int(noise_subset=noise_subset, num_queries=num_queries)
    _checks.positive_int(num_directions=num_directions)
    _checks.non_negative(step_size=step_size)
    _checks.keys(key)
    for name in only or ():
        _checks.one_of([rule.name for rule in RULES], only=name)
    check_same_images(result, dataset)
    judge = as_pytree(logits_fn)
    rows = _probes.subset_rows(len(result.index), subset)
    of = _probes.subject(
        judge,
        judge if source is None else as_pytree(source),
        threat,
        dataset,
        rows,
        batch_size=batch_size,
        mesh=mesh,
        key=jax.random.fold_in(key, OWN),
        step_size=float(step_size),
        num_steps=num_steps,
    )
    seen = Seen(result, of, rows)
    m, models = _measures, tuple(map(as_pytree, surrogates))
    measures: dict[str, Callable[[], Found]] = dict(
        gradient=lambda: m.gradient(seen),
        noise_stability=lambda: m.noise_stability(seen, num_directions),
        silent_success=lambda: m.silent_success(seen),
        incomplete_optimisation=lambda: m.incomplete(seen),
        more_steps=lambda: m.more_steps(seen),
        more_restarts=lambda: m.more_restarts(seen),
        transfer=lambda: m.transfer(seen, models),
        unbounded=lambda: m.unbounded(seen),
        monotone=lambda: m.monotone(seen),
        chance=lambda: m.chance(seen),
        one_step=lambda: m.one_step(seen),
        noise=lambda: m.noise(seen, num_draws, noise_subset),
        queries=lambda: m.queries(seen, num_queries),
        random=lambda: m.random(seen),
        transductive=lambda: m.transductive(seen),
        probabilities=lambda: m.probabilities(seen),
        logit_scale=lambda: m.logit_scale(seen),
        precision=lambda: m.precision(seen),
        not_a_number=lambda: m.not_a_number(seen),
    )
    chosen = [rule for rule in RULES if only is None or rule.name in only]
    return tuple(_judged(rule, measures[rule.name]()) for rule in chosen)


def _judged(rule: Rule, found: Found) -> Indicator:
    enough = found.images is None or found.images > 1
    value = None if found.value is None else float(found.value)
    flagged = value is not None and enough and value - found.doubt > rule.threshold
    return Indicator(
        name=rule.name,
        value=value,
        threshold=rule.threshold,
        flagged=bool(flagged),
        detail=found.detail,
        meaning=rule.meaning,
        source=rule.source,
    )
