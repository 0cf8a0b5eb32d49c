"""The failure indicators one by one: from what was seen to a number and a line."""

import functools
import math
from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from robustjax import _checks
from robustjax.evaluation import _probes
from robustjax.evaluation._climbs import rise_at_the_end
from robustjax.evaluation._probes import SCALES, STARTS
from robustjax.evaluation._seen import Found, Seen
from robustjax.evaluation.limits import by_access, class_prior
from robustjax.types import LogitsFn

_BOX = 4 / 255
_RISE = 0.05


def gradient(seen: Seen) -> Found:
    """Shares of images where the gradient is of no use."""
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
    """The relative change of the margin under small noise."""
    change = _probes.instability(seen.of, num_directions, _BOX)
    detail = (
        f"The margin moves by {100 * change.mean():.1f}% on average over "
        f"{len(change)} images, {num_directions} directions each."
    )
    return Found(change.mean(), detail)


def silent_success(seen: Seen) -> Found:
    """Images that an iterate broke and the worst case leaves standing."""
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
    """Images whose loss still rises at the end of the longest recorded run."""
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
    """Images whose answer changes from call to call."""
    judged, climbed = seen.draws
    if judged > 1 and climbed == 1:
        return Found(1.0, f"{judged} draws judge, and attacks climb one.")
    return _share(seen.changing, "change between two calls")._replace(images=None)


def transductive(seen: Seen) -> Found:
    """Images whose answer changes with the others of the batch."""
    if seen.changing.any():
        return Found(None, "The classifier is random: nothing can be compared.")
    changed = _probes.company_share(seen.of)
    words = "change with the others of the batch, or their place in it"
    return _share(changed, words)._replace(images=None)


def probabilities(seen: Seen) -> Found:
    """Whether the logits are probabilities already."""
    found = len(seen.of.x) > 1 and bool(
        _checks.are_probabilities(jnp.asarray(seen.logits))
    )
    return Found(float(found), f"Logits are {'' if found else 'no '}probabilities.")


def precision(seen: Seen) -> Found:
    """Images that are judged otherwise at another precision."""
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
    """Images with NaN among their logits."""
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
    """What attackers without the weights did better."""
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
    """Images that stand though there is no radius."""
    if seen.gradients is None:
        return Found(None, seen.obstacle)
    left = _probes.unbounded(seen.of).correct
    count = round(float(np.sum(left)))
    detail = f"{count} of {len(left)} images are right anywhere in the box."
    return Found(left.mean(), detail, count)


def queries(seen: Seen, num_queries: int) -> Found:
    """What Square breaks beyond the gradient attacks."""
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
    """Images that twice the steps break."""
    if not seen.walks:
        return Found(None, seen.obstacle)
    on = seen.right(_probes.path(seen.of, start=seen.walks[0].x_adv))
    return _gain(seen, seen.left, [on], f"within {2 * seen.of.num_steps} steps")


def more_restarts(seen: Seen) -> Found:
    """Images that new starts break."""
    if not seen.walks:
        return Found(None, seen.obstacle)
    rows = [seen.right(walk) for walk in seen.walks]
    return _gain(seen, seen.standing, rows, f"from {STARTS} new starts")


def logit_scale(seen: Seen) -> Found:
    """Images that break at another scale of the logits."""
    if not seen.walks:
        return Found(None, seen.obstacle)
    scales = (*SCALES, _probes.own_scale(seen.logits, seen.of.y))
    rows = [seen.right(_probes.path(seen.of, scale=scale)) for scale in scales]
    return _gain(seen, seen.left, rows, "at another scale of the logits")


def one_step(seen: Seen) -> Found:
    """What one step breaks beyond many."""
    if not seen.walks:
        return Found(None, seen.obstacle)
    return _net(seen, seen.left, _probes.one_step(seen.of).correct)


def monotone(seen: Seen) -> Found:
    """The largest rise of accuracy with the radius."""
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
    """Accuracy beyond chance at the largest radius."""
    if not seen.walks or seen.of.threat.name != "linf":
        return Found(None, seen.obstacle or "L-inf only.")
    (eps, reached), prior = seen.curve[-1], class_prior(seen.of.y)
    over = reached - prior
    words = f"{reached:.1%} at eps {eps:g}, where chance is {prior:.1%}."
    return Found(over, words, round(over * len(seen.of.x)), _doubt(seen))


def _doubt(seen: Seen) -> float:
    return 0.0 if seen.exact else 3 / math.sqrt(len(seen.of.x))


def noise(seen: Seen, num_draws: int, num_images: int) -> Found:
    """Images that fall under random points."""
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
