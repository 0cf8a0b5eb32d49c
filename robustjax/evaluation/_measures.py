"""The failure indicators one by one: from what was seen to a number and a line."""

import dataclasses
import functools
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from robustjax import _checks
from robustjax.evaluation import _probes
from robustjax.evaluation._climbs import Path, rise_at_the_end
from robustjax.evaluation._parameters import climbs_another
from robustjax.evaluation._probes import SCALES, STARTS, Subject
from robustjax.evaluation.limits import by_access, class_prior
from robustjax.evaluation.results import AttackResult, Robustness
from robustjax.types import LogitsFn

_BOX = 4 / 255
_RISE = 0.05


class Found(NamedTuple):
    """A measurement before it is judged.

    Attributes:
      value: None if it could not be made.
      detail: One line.
      images: How many it rests on, where one is too few; None where one is enough.
      doubt: What the value must exceed the threshold by, as draws are few.
    """

    value: float | None
    detail: str
    images: int | None = None
    doubt: float = 0.0


@dataclasses.dataclass(frozen=True)
class Seen:
    """What several indicators need, each looked at when the first one asks.

    Attributes:
      result: The evaluation.
      of: The classifier and the subset.
      rows: The subset's places in the result, [n].
    """

    result: Robustness
    of: Subject
    rows: np.ndarray

    @functools.cached_property
    def draws(self) -> tuple[int, int]:
        """That judge, and that are climbed; 1 without any."""
        return _probes.has_draws(self.of)

    @functools.cached_property
    def logits(self) -> np.ndarray:
        """Of the clean images, [n, K] or [n, S, K]."""
        return _probes.logits(self.of)

    @functools.cached_property
    def changing(self) -> np.ndarray:
        """Whether two calls differ, [n]."""
        return _probes.differs(self.logits, _probes.logits(self.of))

    @property
    def exact(self) -> bool:
        """Whether the same image always gets the same answer."""
        return self.draws[0] == 1 and not self.changing.any()

    @functools.cached_property
    def gradients(self) -> dict[str, np.ndarray] | None:
        """As `_probes.useless_gradients`."""
        return _probes.useless_gradients(self.of)

    @property
    def recorded(self) -> list[AttackResult]:
        """Attacks that count and climbed what judges: what they met on the way is its.

        On the way of others it is the source that was broken, which says nothing.
        """
        return [
            attack
            for attack in self.result.attacks
            if attack.counts and attack.own and not climbs_another(attack.parameters)
        ]

    @property
    def no_radius(self) -> str:
        """Why there is no ball to look in; empty where there is one."""
        radius = float(self.of.threat.eps)
        if 0 < radius < math.inf:
            return ""
        return f"There is no radius to walk in: eps is {radius:g}."

    @property
    def obstacle(self) -> str:
        """Why nothing can walk; empty where something can."""
        if self.gradients is None:
            return "The classifier has no gradient."
        return self.no_radius

    @functools.cached_property
    def walks(self) -> list[Path]:
        """PGD from several starts; none where there is an obstacle."""
        if self.obstacle:
            return []
        return [_probes.path(self.of, number) for number in range(STARTS)]

    @functools.cached_property
    def standing(self) -> np.ndarray:
        """What the worst case leaves of the subset, shares, [n]."""
        left = np.asarray(self.result.worst_case_correct, float)[self.rows]
        if self.walks and not any(attack.counts for attack in self.result.attacks):
            # Nothing was attacked yet: the first walk stands for the evaluation.
            left = _probes.worst([left, self.right(self.walks[0])], self.exact)
        return left

    @functools.cached_property
    def left(self) -> np.ndarray:
        """What the worst case and all walks leave, shares, [n]."""
        rows = [self.standing, *map(self.right, self.walks)]
        return _probes.worst(rows, self.exact)

    @functools.cached_property
    def curve(self) -> list[tuple[float, float]]:
        """Radius and accuracy under one walk each, ascending."""
        found = []
        for eps in _probes.radii(self.of):
            same = eps == self.of.radius
            walk = self.walks[0] if same else _probes.path(self.of, eps=eps)
            found.append((eps, float(np.mean(walk.correct))))
        return found

    def right(self, path: Path) -> np.ndarray:
        """Right after a run, anywhere on its way where that can be said, [n]."""
        if not self.exact or self.of.climbed is not self.of.judge:
            return path.correct
        return path.correct & ~path.broken.any(axis=1)


def gradient(seen: Seen) -> Found:
    if seen.gradients is None:
        return Found(1.0, "The classifier cannot be differentiated.")
    kinds = seen.gradients
    useless = functools.reduce(np.logical_or, kinds.values())
    counts = {name: int(rows.sum()) for name, rows in kinds.items()}
    detail = (
        f"{useless.sum()} of {len(useless)} images: {counts['infinite']} not finite, "
        f"{counts['zero']} all zero, {counts['mostly']} zero in most pixels."
    )
    return Found(useless.mean(), detail, int(useless.sum()))


def noise_stability(seen: Seen, num_directions: int) -> Found:
    change = _probes.instability(seen.of, num_directions, _BOX)
    detail = (
        f"The margin moves by {100 * change.mean():.1f}% on average over "
        f"{len(change)} images, {num_directions} directions each."
    )
    return Found(change.mean(), detail)


def silent_success(seen: Seen) -> Found:
    if not seen.exact:
        return Found(None, "A random classifier: draws break a point now and then.")
    recorded = [
        attack.broken_along[:, -1]
        for attack in seen.recorded
        if attack.broken_along is not None
    ]
    if recorded:
        broken = np.any(recorded, axis=0)
        silent = broken & (seen.result.worst_case_correct >= 0.5)
        return _share(silent, f"on the way of {len(recorded)} recorded attacks")
    if not seen.walks or seen.of.climbed is not seen.of.judge:
        return Found(
            None, seen.obstacle or "Attacks climb another function than judges."
        )
    walk = seen.walks[0]
    silent = walk.broken.any(axis=1) & walk.correct & (seen.standing > 0.5)
    return _share(silent, "on the way of one run of PGD of our own")


def _share(rows: Any, what: str) -> Found:
    return Found(
        rows.mean(), f"{int(rows.sum())} of {len(rows)} images {what}.", int(rows.sum())
    )


def incomplete(seen: Seen) -> Found:
    if not seen.exact:
        return Found(None, "A random classifier: its losses are noisy.")
    recorded = [
        (len(attack.losses[0]), attack.name, attack.losses, attack.broken_along)
        for attack in seen.recorded
        if attack.losses is not None
    ]
    if recorded:
        _, what, losses, broken = max(recorded, key=lambda one: one[0])
        standing = seen.result.worst_case_correct >= 0.5
    elif seen.walks:
        losses, broken = seen.walks[0].losses, seen.walks[0].broken
        standing, what = seen.standing > 0.5, "PGD of our own"
    else:
        return Found(None, seen.obstacle)
    if broken is not None:
        standing = standing & ~broken.any(axis=1)
    count = len(losses[0])
    if count < 4:
        return Found(None, f"{what} made fewer than 4 steps.")
    if not standing.any():
        return Found(0.0, "No image is left standing.", 0)
    last = min(10, count // 2)
    late = rise_at_the_end(np.asarray(losses)[standing], last) > _RISE
    return _share(late, f"left standing gain in the last {last} steps of {what}")


def random(seen: Seen) -> Found:
    judged, climbed = seen.draws
    if judged > 1 and climbed == 1:
        return Found(1.0, f"{judged} draws judge, and attacks climb one.")
    return _share(seen.changing, "change between two calls")._replace(images=None)


def transductive(seen: Seen) -> Found:
    if seen.changing.any():
        return Found(None, "The classifier is random: nothing can be compared.")
    changed = _probes.company_share(seen.of)
    return _share(changed, "change with the others of the batch")._replace(images=None)


def probabilities(seen: Seen) -> Found:
    found = len(seen.of.x) > 1 and bool(
        _checks.are_probabilities(jnp.asarray(seen.logits))
    )
    return Found(float(found), f"Logits are {'' if found else 'no '}probabilities.")


def precision(seen: Seen) -> Found:
    if not seen.exact:
        return Found(None, "A random classifier: its verdicts change anyway.")
    x_adv = seen.walks[0].x_adv if seen.walks else seen.of.x
    found = _probes.verdicts(seen.of, x_adv)
    wide = found.pop("float32")
    differ = {name: np.abs(rows - wide) > 0.5 for name, rows in found.items()}
    words = ", ".join(f"{rows.sum()} at {name}" for name, rows in differ.items())
    most = max(differ.values(), key=np.sum)
    return _share(most, f"are judged differently ({words})")


def not_a_number(seen: Seen) -> Found:
    flat = seen.logits.reshape(len(seen.logits), -1)
    rows = np.isnan(flat).any(axis=1)
    for walk in seen.walks:
        rows = rows | walk.not_a_number
    result = seen.result
    most = max(result.num_nan, *(a.num_nan for a in result.attacks), 0)
    found = _share(rows, "have NaN among their logits")._replace(images=None)
    if most <= rows.sum():
        return found
    total = len(result.index)
    return Found(most / total, f"{most} of {total} images have NaN in the evaluation.")


def transfer(seen: Seen, surrogates: Sequence[LogitsFn]) -> Found:
    gaps = []
    reached = list(by_access(seen.result).values())  # from white to black
    total = len(seen.result.index)
    for i, more in enumerate(reached):
        gaps += [(more - less, total, 0.0) for less in reached[i + 1 :]]
    if not seen.no_radius:
        for other in surrogates:
            moved = _probes.path(seen.of, climbed=other).correct
            found = _net(seen, seen.left, moved)
            gaps.append((found.value, len(moved), found.doubt))
    if not gaps:
        return Found(None, "No row of another access, and no surrogate.")
    gap, count, doubt = max(gaps)
    detail = f"Examples of others leave {-100 * gap:+.1f} points of {count} images."
    return Found(gap, detail, round(gap * count), doubt)


def unbounded(seen: Seen) -> Found:
    if seen.gradients is None:
        return Found(None, seen.obstacle)
    left = _probes.unbounded(seen.of).correct
    count = round(float(np.sum(left)))
    detail = f"{count} of {len(left)} images are right anywhere in the box."
    return Found(left.mean(), detail, count)


def queries(seen: Seen, num_queries: int) -> Found:
    for attack in seen.result.attacks:
        names = [stage.name for stage in attack.stages]
        if attack.counts and "Square" in names[1:]:
            broken = attack.stages[names.index("Square")].broken
            total = len(seen.result.index)
            detail = f"Square broke {broken} of {total} images after {attack.name}'s "
            return Found(broken / total, detail + "gradient attacks.", broken)
    if seen.no_radius:
        return Found(None, seen.no_radius)
    after = _probes.under_square(seen.of, num_queries)
    found = _net(seen, seen.left, after)
    what = f"Square of {num_queries} queries leaves {100 * np.mean(after):.1f}%"
    return found._replace(detail=f"{what}, the rest {100 * seen.left.mean():.1f}%.")


def _net(seen: Seen, before: np.ndarray, after: np.ndarray) -> Found:
    """By how much accuracy is lower after than before."""
    lost = np.asarray(before, float) - after
    doubt = 0.0 if seen.exact else 3 * float(lost.std()) / math.sqrt(len(lost))
    detail = f"{100 * np.mean(before):.1f}% before, {100 * np.mean(after):.1f}% after."
    return Found(lost.mean(), detail, round(float(lost.sum())), doubt)


def _gain(seen: Seen, before: np.ndarray, rows: list[np.ndarray], what: str) -> Found:
    """What more runs take of what is left."""
    after = _probes.worst([before, *rows] if seen.exact else rows, seen.exact)
    found = _net(seen, before, after)
    words = f"{found.images} of {len(before)} images break {what}."
    return found._replace(detail=words)


def more_steps(seen: Seen) -> Found:
    if not seen.walks:
        return Found(None, seen.obstacle)
    on = seen.right(_probes.path(seen.of, start=seen.walks[0].x_adv))
    return _gain(seen, seen.left, [on], f"within {2 * seen.of.num_steps} steps")


def more_restarts(seen: Seen) -> Found:
    if not seen.walks:
        return Found(None, seen.obstacle)
    rows = [seen.right(walk) for walk in seen.walks]
    return _gain(seen, seen.standing, rows, f"from {STARTS} new starts")


def logit_scale(seen: Seen) -> Found:
    if not seen.walks:
        return Found(None, seen.obstacle)
    scales = (*SCALES, _probes.own_scale(seen.logits, seen.of.y))
    rows = [seen.right(_probes.path(seen.of, scale=scale)) for scale in scales]
    return _gain(seen, seen.left, rows, "at another scale of the logits")


def one_step(seen: Seen) -> Found:
    if not seen.walks:
        return Found(None, seen.obstacle)
    return _net(seen, seen.left, _probes.one_step(seen.of).correct)


def monotone(seen: Seen) -> Found:
    if not seen.walks:
        return Found(None, seen.obstacle)
    if len(seen.curve) < 2:
        return Found(None, "One radius only.")
    rises = [
        (later - sooner, sooner, small, later, large)
        for i, (small, sooner) in enumerate(seen.curve)
        for large, later in seen.curve[i + 1 :]
    ]
    rise, sooner, small, later, large = max(rises)
    words = f"{sooner:.1%} at eps {small:g}, {later:.1%} at {large:g}."
    return Found(rise, words, round(rise * len(seen.of.x)), _doubt(seen))


def chance(seen: Seen) -> Found:
    if not seen.walks or seen.of.threat.name != "linf":
        return Found(None, seen.obstacle or "L-inf only.")
    (eps, reached), prior = seen.curve[-1], class_prior(seen.of.y)
    over = reached - prior
    words = f"{reached:.1%} at eps {eps:g}, where chance is {prior:.1%}."
    return Found(over, words, round(over * len(seen.of.x)), _doubt(seen))


def _doubt(seen: Seen) -> float:
    return 0.0 if seen.exact else 3 / math.sqrt(len(seen.of.x))


def noise(seen: Seen, num_draws: int, num_images: int) -> Found:
    if not seen.walks or not seen.exact:
        random = "A random classifier: many draws break anything."
        return Found(None, seen.obstacle or random)
    if not _probes.can_be_queried(seen.of):
        return Found(None, "A transductive classifier: noise would be its company.")
    rows = np.flatnonzero(seen.left > 0.5)[:num_images]
    if not len(rows):
        return Found(0.0, "No image is left standing.", 0)
    fell = ~_probes.stands_noise(seen.of.take(rows), num_draws)
    return _share(fell, f"fall under {num_draws} random points")
