"""How sure a number is: intervals, and two classifiers on the same images.

Two classifiers that are judged on the same images are compared image by image. Images
that both get right, or both wrong, say nothing about which of them is better, and where
most are such, a difference can be shown that two separate intervals would hide. What is
compared are these two classifiers on images like these, not two ways of training: that
question has training runs for its sample, see `compare_runs`.
"""

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from robustjax._checks import InputError

_Z = 1.959964  # 95%, two-sided
_Test = tuple[float, tuple[float, float], float]
_NOTHING = (-1.0, 1.0)  # the interval of a difference of which nothing is known


class Paired(NamedTuple):
    """Two classifiers on the same images, or two ways of training.

    Attributes:
      total: Images, or training runs of each.
      both: Images that both get right; None of shares and of runs.
      only_first: Those that only the first gets right, or None.
      only_second: Those that only the second gets right, or None.
      neither: Those that both get wrong, or None.
      difference: Accuracy of the first minus that of the second, in [-1, 1].
      interval: 95%, of the difference.
      p: Of the two-sided test that there is none, in [0, 1].
      method: The test and the interval, in words.
    """

    total: int
    both: int | None
    only_first: int | None
    only_second: int | None
    neither: int | None
    difference: float
    interval: tuple[float, float]
    p: float
    method: str


def wilson_interval(
    successes: float, total: int, *, z: float = _Z
) -> tuple[float, float]:
    """Wilson's score interval of a proportion, 95% by default.

    See "Probable Inference, the Law of Succession, and Statistical Inference" (Wilson,
    1927).

    Args:
      successes: From 0 to `total`; a share of draws counts as a part of an image.
      total: Images; of none nothing is known, and the interval is [0, 1].
      z: Quantile of the normal distribution; 1.96 is 95%.

    Raises:
      InputError: a count is out of range.

    Example:
      >>> low, high = wilson_interval(90, 100)
      >>> round(low, 4), round(high, 4)
      (0.8256, 0.9448)
    """
    _check_counts(total=total)
    if not 0 <= successes <= total:
        raise InputError(f"`successes` must lie in 0..{total}, got {successes!r}.")
    if total == 0:
        return 0.0, 1.0
    share = successes / total
    centre = (share + z**2 / (2 * total)) / (1 + z**2 / total)
    half = z * math.sqrt(share * (1 - share) / total + (z / (2 * total)) ** 2)
    half /= 1 + z**2 / total
    return max(0.0, centre - half), min(1.0, centre + half)


def mcnemar_exact(only_first: int, only_second: int) -> float:
    """McNemar's exact test: its two-sided p, on the images that only one gets right.

    If the classifiers are equally accurate, each of these is a fair coin. 1 if there is
    no such image. See "Note on the Sampling Error of the Difference Between Correlated
    Proportions or Percentages" (McNemar, 1947); this is the exact conditional form,
    which errs on the side of no difference.

    Args:
      only_first: Images that the first classifier alone gets right.
      only_second: Those that the second alone gets right.

    Raises:
      InputError: a count is negative or not whole.

    Example:
      >>> mcnemar_exact(1, 7)  # 2 (1 + 8) / 2^8
      0.0703125
      >>> mcnemar_exact(0, 0)
      1.0
    """
    from scipy.stats import binomtest  # half a second to import

    _check_counts(only_first=only_first, only_second=only_second)
    first = int(only_first)  # NumPy's small integers overflow
    discordant = first + int(only_second)
    if discordant == 0:
        return 1.0
    return min(1.0, float(binomtest(first, discordant, 0.5).pvalue))


def tango_interval(
    only_first: int, only_second: int, total: int, *, z: float = _Z
) -> tuple[float, float]:
    """Tango's score interval of the difference of two paired proportions.

    The differences d that a score test does not reject: with b and c the images that
    only the first and only the second gets right, of n, those with

      |b - c - n d| <= z sqrt(n (2 q + d (1 - d)))

    where q is the likeliest share of c when the difference is d, the larger root of
    2 n q^2 + ((2 n - b + c) d - b - c) q - c d (1 - d) = 0. It stays in [-1, 1], has a
    width where the classifiers agree on all images, half of it z^2 / (n + z^2), and
    leaves out 0 just where (b - c)^2 > z^2 (b + c), McNemar's test for many images.

    See "Equivalence test and confidence interval for the difference in proportions for
    the paired-sample design" (Tango, 1998), eqs. (24)-(26), there with the sign of d
    turned around.

    Args:
      only_first: b, images that the first classifier alone gets right.
      only_second: c, those that the second alone gets right.
      total: n, all images.
      z: Quantile of the normal distribution; 1.96 is 95%.

    Returns:
      Lower and upper limit of (b - c) / n.

    Raises:
      InputError: a count is negative or not whole, or there are more than `total`.

    Example:
      >>> low, high = tango_interval(20, 60, 1000)
      >>> round(low, 4), round(high, 4)
      (-0.0584, -0.0231)
    """
    _check_counts(only_first=only_first, only_second=only_second, total=total)
    if total < 1 or int(only_first) + int(only_second) > total:
        raise InputError(
            f"`total` must be at least 1 and count all images, got {total} with "
            f"{only_first} + {only_second} that only one gets right."
        )
    upper = _tango_upper(int(only_first), int(only_second), int(total), z)
    return -_tango_upper(int(only_second), int(only_first), int(total), z), upper


def _tango_upper(b: int, c: int, n: int, z: float) -> float:
    """The largest d that the score test does not reject."""
    if b == n:
        return 1.0

    def rejected(d: float) -> bool:
        slope = (2 * n - b + c) * d - b - c
        q = (math.sqrt(slope**2 + 8 * n * c * d * (1 - d)) - slope) / (4 * n)
        return n * d - (b - c) > z * math.sqrt(max(n * (2 * q + d * (1 - d)), 0.0))

    low, high = (b - c) / n, 1.0
    for _ in range(60):  # to the last bit
        middle = (low + high) / 2
        low, high = (low, middle) if rejected(middle) else (middle, high)
    return low


def compare_paired(first: np.ndarray, second: np.ndarray) -> Paired:
    """Two classifiers on the same images.

    Of classifiers with one answer McNemar's exact test and Tango's interval; see
    `mcnemar_exact` and `tango_interval`. Of a random one there is a share of draws for
    each image and no count: then the t test and interval of the mean difference over
    images, which hold for some hundred of them and take in what the draws add to the
    spread. Where no image differs the interval is Tango's with no image between them,
    and where all differ by the same, nothing is known: p is 1, the interval [-1, 1].

    Args:
      first: Whether the first is right, [N] bool or of numbers 0 and 1, or shares of
        draws in [0, 1].
      second: The same of the second, on the same images in the same order.

    Raises:
      InputError: lengths differ, there is no image, or an entry is out of range.

    Example:
      >>> one = np.array([True, True, True, False])
      >>> other = np.array([True, False, False, False])
      >>> found = compare_paired(one, other)
      >>> found.only_first, found.only_second, found.difference, found.p
      (2, 0, 0.5, 0.5)
    """
    first, second = np.asarray(first), np.asarray(second)
    if first.shape != second.shape or first.ndim != 1 or not len(first):
        raise InputError(
            "`first` and `second` must be of the same images, one entry each, got "
            f"shapes {first.shape} and {second.shape}."
        )
    for name, right in (("first", first), ("second", second)):
        if not ((right >= 0) & (right <= 1)).all():
            wrong = right[~((right >= 0) & (right <= 1))][0]
            raise InputError(f"`{name}` must lie in [0, 1], got {wrong!r}.")
    total = len(first)
    if not np.isin([first, second], [0, 1]).all():
        differences = first.astype(np.float64) - second.astype(np.float64)
        if not differences.any():
            low, high = tango_interval(0, 0, total)
            found = 0.0, (low, high), 1.0
        else:
            found = _t_of_mean(differences)
            found = found or (float(differences.mean()), _NOTHING, 1.0)
        return Paired(total, None, None, None, None, *found, "paired t over images")
    first, second = first.astype(bool), second.astype(bool)
    b, c = int((first & ~second).sum()), int((~first & second).sum())
    return Paired(
        total=total,
        both=int((first & second).sum()),
        only_first=b,
        only_second=c,
        neither=int((~first & ~second).sum()),
        difference=(b - c) / total,
        interval=tango_interval(b, c, total),
        p=mcnemar_exact(b, c),
        method="McNemar exact, Tango's interval",
    )


def compare_runs(
    first: Mapping[str, float], second: Mapping[str, float]
) -> Paired | None:
    """Two ways of training, each by the accuracies of its runs.

    Runs of one seed share what it decides, such as the split and the order of the
    data, so they are paired where both ways have the same seeds: the t test and
    interval of the mean difference. Else Welch's, for two samples of their own. Both
    take accuracies to be normal over runs, and with three of them find large
    differences only. Restarts of an attack are no runs.

    Args:
      first: Accuracy in [0, 1] by seed, of the first.
      second: The same of the second.

    Returns:
      None where a way has one run, or no run differs from others: the spread is not
      known, and nothing can be said.

    Example:
      >>> one = {"seed_0": 0.51, "seed_1": 0.52, "seed_2": 0.50}
      >>> other = {"seed_0": 0.49, "seed_1": 0.51, "seed_2": 0.485}
      >>> found = compare_runs(one, other)
      >>> round(found.difference, 4), round(found.p, 4), found.method
      (0.015, 0.0351, 'paired t over 3 seeds')
    """
    for name, runs in (("first", first), ("second", second)):
        wrong = [value for value in runs.values() if not 0 <= value <= 1]
        if wrong:
            raise InputError(
                f"`{name}` must hold accuracies in [0, 1], got {wrong[0]!r}."
            )
    if min(len(first), len(second)) < 2:
        return None
    if first.keys() == second.keys():
        seeds = list(first)
        differences = np.array([first[seed] - second[seed] for seed in seeds])
        method = f"paired t over {len(seeds)} seeds"
        total, found = len(seeds), _t_of_mean(differences)
    else:
        one, other = np.array([*first.values()]), np.array([*second.values()])
        found = _welch(one, other)
        total = min(len(one), len(other))
        method = f"Welch's t over {len(one)} and {len(other)} runs"
    if found is None:
        return None
    return Paired(total, None, None, None, None, *found, method)


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's p of several tests that are read together.

    What stays below 0.05 does so with a chance of at most 5% that any test of a true
    hypothesis is among it, whatever depends on what. See "A Simple Sequentially
    Rejective Multiple Test Procedure" (Holm, 1979).

    Args:
      p_values: Each in [0, 1].

    Returns:
      Adjusted ones in the same order, none below its own and none above 1.

    Raises:
      InputError: one lies outside [0, 1].

    Example:
      >>> [round(p, 3) for p in holm([0.01, 0.04, 0.03])]
      [0.03, 0.06, 0.06]
    """
    wrong = [p for p in p_values if not 0 <= p <= 1]
    if wrong:
        raise InputError(f"`p_values` must lie in [0, 1], got {wrong[0]!r}.")
    order = np.argsort(p_values, kind="stable")
    adjusted, largest = [0.0] * len(p_values), 0.0
    for rank, place in enumerate(order):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[place]))
        adjusted[place] = largest
    return adjusted


def mean_and_deviation(values: Sequence[float]) -> tuple[float, float]:
    """Mean and sample standard deviation (0 for a single value).

    Example:
      >>> mean_and_deviation([1.0, 3.0])
      (2.0, 1.4142135623730951)
    """
    deviation = float(np.std(values, ddof=1)) if len(values) > 1 else 0.0
    return float(np.mean(values)), deviation


def _t_of_mean(values: np.ndarray) -> _Test | None:
    mean, deviation = mean_and_deviation(values.tolist())
    return _t(mean, deviation / math.sqrt(len(values)), len(values) - 1)


def _welch(first: np.ndarray, second: np.ndarray) -> _Test | None:
    """See "The generalization of 'Student's' problem ..." (Welch, 1947)."""
    one, other = first.var(ddof=1) / len(first), second.var(ddof=1) / len(second)
    squares = one**2 / (len(first) - 1) + other**2 / (len(second) - 1)
    freedom = (one + other) ** 2 / squares if squares > 0 else 1.0
    mean = float(first.mean() - second.mean())
    return _t(mean, math.sqrt(one + other), freedom)


def _t(mean: float, error: float, freedom: float) -> _Test | None:
    """Mean, interval and p; None where the spread is not known."""
    from scipy.stats import t

    # Equal values have a spread of 1e-17 by rounding, and of 0 by being rounded.
    if freedom < 1 or error < 1e-12:
        return None
    half = float(t.ppf(0.975, freedom)) * error
    p = 2 * float(t.sf(abs(mean) / error, freedom))
    return mean, (max(-1.0, mean - half), min(1.0, mean + half)), min(1.0, p)


def _check_counts(**counts: object) -> None:
    for name, value in counts.items():
        whole = isinstance(value, (int, np.integer)) and not isinstance(value, bool)
        if not whole or value < 0:  # pyright: ignore[reportOperatorIssue]
            raise InputError(
                f"`{name}` must be a whole number of images, got {value!r}."
            )
