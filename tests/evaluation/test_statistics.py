import math
import re

import numpy as np
import pytest
import scipy.optimize
import scipy.stats
from hypothesis import assume, given
from hypothesis import strategies as st

from robustjax import InputError
from robustjax.evaluation import (
    compare_paired,
    compare_runs,
    holm,
    mcnemar_exact,
    mean_and_deviation,
    results,
    tango_interval,
    wilson_interval,
)

Z = 1.959964


@st.composite
def tables(draw, largest=200):
    total = draw(st.integers(1, largest))
    first = draw(st.integers(0, total))
    return first, draw(st.integers(0, total - first)), total


def likelihood_score(b, c, n, d):
    """Tango's statistic with the nuisance share found by maximising the likelihood."""

    def minus_log_likelihood(q):  # q: share that only the second gets right
        shares = np.array([q + d, q, 1 - 2 * q - d])
        return -scipy.special.xlogy([b, c, n - b - c], np.maximum(shares, 0)).sum()

    low, high = max(0.0, -d), (1 - d) / 2
    found = scipy.optimize.minimize_scalar(
        minus_log_likelihood,
        bounds=(low, high),
        method="bounded",
        options=dict(xatol=1e-13),
    )
    ends = [low, high, found.x]
    q = min(ends, key=minus_log_likelihood)
    variance = (2 * q + d - d**2) / n
    return ((b - c) / n - d) / math.sqrt(variance)


# What R's PropCIs prints for the same tables: scoreci.mp(60, 20, 1000) at 95% and
# scoreci.mp(41, 48, 549) at 90%; its difference is the second minus the first.
@pytest.mark.parametrize(
    ("table", "z", "expected", "digits"),
    [
        ((20, 60, 1000), Z, (-0.0584, -0.0231), 4),
        ((48, 41, 549), 1.644854, (-0.0157, 0.0414), 4),
    ],
)
def test_tango_matches_another_implementation(table, z, expected, digits):
    found = tango_interval(*table, z=z)
    assert tuple(round(limit, digits) for limit in found) == expected


@pytest.mark.parametrize(
    "table",
    [(1, 7, 21), (6, 16, 161), (40, 20, 160), (0, 5, 25), (3, 0, 9), (9, 8, 17)],
)
def test_tango_limits_solve_the_score_equation(table):
    low, high = tango_interval(*table)
    assert likelihood_score(*table, low) == pytest.approx(Z, abs=2e-5)
    assert likelihood_score(*table, high) == pytest.approx(-Z, abs=2e-5)


def test_tango_of_classifiers_that_agree_has_a_closed_form():
    half = Z**2 / (50 + Z**2)
    assert tango_interval(0, 0, 50) == pytest.approx((-half, half), abs=1e-12)


@given(tables())
def test_tango_holds_the_difference_and_mirrors(table):
    b, c, n = table
    low, high = tango_interval(b, c, n)
    assert -1 <= low <= (b - c) / n <= high <= 1
    assert low < high
    assert tango_interval(c, b, n) == (-high, -low)


@given(tables(60), st.integers(2, 20))
def test_tango_narrows_with_images(table, times):
    low, high = tango_interval(*table)
    narrow_low, narrow_high = tango_interval(*(count * times for count in table))
    assert low - 1e-9 <= narrow_low
    assert narrow_high <= high + 1e-9
    assert narrow_high - narrow_low < high - low


@given(tables())
def test_tango_leaves_out_zero_where_mcnemar_rejects(table):
    b, c, n = table
    assume(abs((b - c) ** 2 - Z**2 * (b + c)) > 1e-6)
    low, high = tango_interval(b, c, n)
    assert (low > 0 or high < 0) == ((b - c) ** 2 > Z**2 * (b + c))


@pytest.mark.parametrize(
    ("only_first", "only_second"), [(0.05, 0.05), (0.2, 0.05), (0.02, 0.3), (0.4, 0.1)]
)
def test_tango_covers_as_often_as_it_says(only_first, only_second):
    """Exactly, over all tables of 60 images."""
    n, difference, covered = 60, only_first - only_second, 0.0
    rest = 1 - only_first - only_second
    law = scipy.stats.multinomial(n, [only_first, only_second, rest])
    for b in range(n + 1):
        for c in range(n + 1 - b):
            chance = law.pmf([b, c, n - b - c])
            if chance > 1e-7:
                low, high = tango_interval(b, c, n)
                covered += chance * (low <= difference <= high)
    assert 0.935 < covered < 0.975


def exact_p(b, c):
    """Twice the smaller tail, in whole numbers."""
    tail = sum(math.comb(b + c, k) for k in range(min(b, c) + 1))
    return min(1.0, 2 * tail / 2 ** (b + c))


@pytest.mark.parametrize(
    ("table", "p"), [((1, 7), 18 / 256), ((0, 0), 1.0), ((5, 5), 1.0), ((0, 6), 2 / 64)]
)
def test_mcnemar_by_hand(table, p):
    assert mcnemar_exact(*table) == pytest.approx(p, rel=1e-12)


@given(st.integers(0, 300), st.integers(0, 300))
def test_mcnemar_is_twice_the_tail(b, c):
    p = mcnemar_exact(b, c)
    assert p == pytest.approx(exact_p(b, c), rel=1e-9)
    assert 0 <= p <= 1
    assert p == mcnemar_exact(c, b)


@given(st.lists(st.floats(0, 1), max_size=8), st.randoms())
def test_holm_guarantees(p_values, random):
    adjusted = holm(p_values)
    for own, found in zip(p_values, adjusted, strict=True):
        assert own <= found <= min(1.0, len(p_values) * own) or own == found == 0
    order = list(range(len(p_values)))
    random.shuffle(order)
    shuffled = holm([p_values[i] for i in order])
    assert shuffled == [adjusted[i] for i in order]


def holm_by_steps(p_values, level):
    """Which hypotheses fall: from the smallest p on, until one stands."""
    fallen = set()
    for rank, i in enumerate(np.argsort(p_values, kind="stable")):
        if p_values[i] > level / (len(p_values) - rank):
            break
        fallen.add(int(i))
    return fallen


@given(st.lists(st.floats(1e-6, 1), min_size=1, max_size=8))
def test_holm_rejects_what_its_steps_reject(p_values):
    adjusted = holm(p_values)
    assume(all(abs(p - 0.05) > 1e-9 for p in adjusted))
    assert {i for i, p in enumerate(adjusted) if p <= 0.05} == holm_by_steps(
        p_values, 0.05
    )


def test_holm_of_a_textbook_example():
    """By hand: 0.005 x 4, 0.01 x 3, then 0.03 x 2 holds 0.04 x 1 up."""
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])


def test_compare_paired_counts_all_four_cells():
    first = np.array([1, 1, 1, 1, 1, 1, 0, 0, 0, 0], bool)
    second = np.array([1, 1, 1, 0, 0, 0, 1, 0, 0, 0], bool)
    found = compare_paired(first, second)
    assert found[:5] == (10, 3, 3, 1, 3)
    assert found.difference == pytest.approx(first.mean() - second.mean())
    assert found.p == pytest.approx(exact_p(3, 1))
    assert found.interval == tango_interval(3, 1, 10)


def test_the_same_classifier_differs_in_nothing():
    right = np.random.default_rng(0).random(597) < 0.7
    found = compare_paired(right, right)
    assert (found.p, found.difference) == (1.0, 0.0)
    assert found.interval[0] < 0 < found.interval[1]
    shares = right.astype(np.float32)
    assert compare_paired(shares, shares).interval == found.interval
    assert compare_paired(shares, shares).p == 1.0


@given(st.integers(0, 2**31), st.booleans())
def test_compare_paired_is_antisymmetric(seed, random_classifier):
    rng = np.random.default_rng(seed)
    first, second = rng.random((2, 30)) < 0.6
    if random_classifier:
        first = rng.integers(0, 10, 30) / 10
    found, turned = compare_paired(first, second), compare_paired(second, first)
    assert 0 <= found.p <= 1
    assert found.p == pytest.approx(turned.p)
    assert found.difference == pytest.approx(-turned.difference)
    assert found.interval == pytest.approx((-turned.interval[1], -turned.interval[0]))
    assert found.interval[0] <= found.difference <= found.interval[1]


def test_shares_of_random_classifiers_take_the_paired_t_test():
    rng = np.random.default_rng(0)
    first, second = rng.integers(0, 11, (2, 200)) / 10
    found = compare_paired(first.astype(np.float32), second.astype(np.float32))
    reference = scipy.stats.ttest_rel(first, second)
    limits = reference.confidence_interval(0.95)
    assert found.method == "paired t over images"
    assert found.only_first is None
    assert found.p == pytest.approx(reference.pvalue, rel=1e-5)
    assert found.interval == pytest.approx((limits.low, limits.high), rel=1e-4)


def test_one_image_with_shares_says_nothing():
    found = compare_paired(np.array([0.7]), np.array([0.2]))
    assert found.interval == (-1.0, 1.0)
    assert found.p == 1.0


def test_runs_are_paired_by_seed():
    first = {"seed_0": 0.51, "seed_1": 0.56, "seed_2": 0.50}
    second = {"seed_1": 0.53, "seed_0": 0.49, "seed_2": 0.485}
    found = compare_runs(first, second)
    one, other = ([d[s] for s in sorted(first)] for d in (first, second))
    reference = scipy.stats.ttest_rel(one, other)
    limits = reference.confidence_interval(0.95)
    assert found.p == pytest.approx(reference.pvalue)
    assert found.interval == pytest.approx((limits.low, limits.high))
    assert "3 seeds" in found.method


def test_runs_of_other_seeds_take_welchs_test():
    first = {"seed_0": 0.51, "seed_1": 0.56, "seed_2": 0.50}
    second = {"seed_0": 0.49, "seed_7": 0.42}
    found = compare_runs(first, second)
    reference = scipy.stats.ttest_ind(
        [*first.values()], [*second.values()], equal_var=False
    )
    limits = reference.confidence_interval(0.95)
    assert found.p == pytest.approx(reference.pvalue)
    assert found.interval == pytest.approx((limits.low, limits.high))
    assert found.method == "Welch's t over 3 and 2 runs"


def test_a_single_run_or_no_spread_says_nothing():
    assert compare_runs({"seed_0": 0.5}, {"seed_0": 0.4, "seed_1": 0.3}) is None
    same = {"seed_0": 0.5, "seed_1": 0.6}
    assert compare_runs(same, {"seed_0": 0.4, "seed_1": 0.5}) is None


@given(tables(500))
def test_wilson_holds_the_share_and_mirrors(table):
    successes, _, total = table
    low, high = wilson_interval(successes, total)
    assert 0 <= low <= successes / total + 1e-12
    assert successes / total - 1e-12 <= high <= 1
    mirrored = wilson_interval(total - successes, total)
    assert mirrored == pytest.approx((1 - high, 1 - low), abs=1e-12)
    reference = scipy.stats.binomtest(successes, total).proportion_ci(method="wilson")
    assert (low, high) == pytest.approx((reference.low, reference.high), abs=1e-6)


def test_names_stay_where_they_were():
    assert results.wilson_interval is wilson_interval
    from robustjax.evaluation import report

    assert report.mean_and_deviation is mean_and_deviation


@pytest.mark.parametrize(
    ("call", "match"),
    [
        (lambda: mcnemar_exact(-1, 2), "only_first.*-1"),
        (lambda: mcnemar_exact(1, 2.5), r"only_second.*2\.5"),
        (lambda: tango_interval(3, 4, 6), "total.*6"),
        (lambda: tango_interval(0, 0, 0), "total.*0"),
        (lambda: holm([0.1, 1.2]), r"p_values.*1\.2"),
        (lambda: holm([math.nan]), "p_values.*nan"),
        (lambda: compare_paired(np.ones(3, bool), np.ones(4, bool)), "same images"),
        (lambda: compare_paired(np.ones(0, bool), np.ones(0, bool)), "same images"),
    ],
)
def test_bad_input_is_one_line(call, match):
    with pytest.raises(InputError, match=match) as caught:
        call()
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize(
    ("successes", "total", "line"),
    [
        (11, 10, "`successes` must lie in 0..10, got 11"),
        (-1, 10, "`successes` must lie in 0..10, got -1"),
        (float("nan"), 10, "`successes` must lie in 0..10, got nan"),
        (0, -3, "`total` must be a whole number of images, got -3"),
    ],
)
def test_an_interval_of_what_is_no_count(successes, total, line):
    with pytest.raises(InputError, match=re.escape(line)):
        wilson_interval(successes, total)


def test_what_is_compared_lies_between_none_and_all():
    right, other = np.array([True, True, False]), np.array([True, False, False])
    counted = compare_paired(right.astype(int), other.astype(int))
    assert counted == compare_paired(right, other)
    for wrong in ([3, 1, 0], [0.5, np.nan, 1.0], [-1, 0, 1]):
        with pytest.raises(InputError, match=r"`second` must lie in \[0, 1\], got"):
            compare_paired(right, np.array(wrong))


def test_zeros_and_ones_are_counts_whatever_their_type():
    first, second = np.array([1, 1, 1, 0]), np.array([0, 0, 1, 0])
    expected = compare_paired(first.astype(bool), second.astype(bool))
    for dtype in (np.int8, np.float32, np.float64):
        assert compare_paired(first.astype(dtype), second.astype(dtype)) == expected
    always, never = np.ones(20), np.zeros(20)
    assert compare_paired(always, never).p == pytest.approx(2 * 0.5**20)


def test_runs_that_cancel_are_a_finding_and_percentages_are_refused():
    found = compare_runs({"a": 0.5, "b": 0.6}, {"a": 0.6, "b": 0.5})
    assert (found.difference, found.p) == (0.0, 1.0)
    with pytest.raises(InputError, match=r"`second` must hold .* got 60"):
        compare_runs({"a": 0.5, "b": 0.6}, {"a": 60, "b": 50})


def test_small_integers_of_numpy_do_not_overflow():
    b, c = np.uint8(200), np.uint8(100)
    assert mcnemar_exact(b, c) == mcnemar_exact(200, 100)
    assert tango_interval(b, c, np.uint16(300)) == tango_interval(200, 100, 300)
    with pytest.raises(InputError, match="`total`"):
        tango_interval(b, c, np.uint16(250))
