"""The smallest entries of each column of a large array.

XLA sorts on one core of a CPU, so that `top_k` of long columns costs more than the
matrix product before it. There a column is cut by a threshold that keeps its smallest
entries and few others, which needs comparisons and sums only; the survivors are packed
into bits, 32 entries a word, and the bits are read off.
"""

import functools
import math

import jax
import jax.numpy as jnp

from robustjax.types import Array

WORD = 32


def _num_slots(num_rows: int, count: int) -> int:
    """Room for survivors of the threshold: `count` and those that come with them."""
    return min(count + count // 2 + 6, num_rows)


def smallest(
    values: Array, count: int, slack: Array, within: Array | None = None
) -> Array:
    """Positions of the `count` smallest finite entries of each column, and of others.

    Of equal entries that compete for the last places the first are there.

    Args:
      values: [N, R], N divisible by 32; not below 0, except -1 for entries that precede
        others.
      count: At most N.
      slack: By how much entries may be wrong, [R]: those as near the last are found.
      within: Entries above this need not be found, [R].

    Returns:
      [R, slots], ascending; -1 at the end where there are fewer.
    """
    if values.shape[0] < 16 * max(count, 16):
        return _by_sorting(values, count, slack)

    slots = _num_slots(values.shape[0], count)

    def by_threshold(values: Array) -> Array:
        near = lambda: _pack(values, _threshold(values, count) + slack)
        if within is None:
            words = near()
        else:
            words = _pack(values, within + slack)
            words = jax.lax.cond(_overflow(words, slots), near, lambda: words)
        return jax.lax.cond(
            _overflow(words, slots),  # coincident points, for instance
            lambda: _by_sorting(values, count, slack),
            lambda: _positions(words, slots),
        )

    sort = lambda values: _by_sorting(values, count, slack)
    return jax.lax.platform_dependent(values, cpu=by_threshold, default=sort)


def _by_sorting(values: Array, count: int, slack: Array) -> Array:
    closeness = -values.T
    # The barrier keeps XLA from a full sort where only the last is used.
    best = jax.lax.optimization_barrier(jax.lax.top_k(closeness, count))
    # What rounding alone tells from the last counts as equal, so that the first win.
    end, slack = best[0][:, -1:], slack[:, None]
    equal = (closeness >= end - slack) & (closeness <= end + slack)
    closeness, index = jax.lax.top_k(jnp.where(equal, end, closeness), count)
    last = jnp.iinfo(jnp.int32).max
    index = jnp.sort(jnp.where(closeness > -jnp.inf, index, last), axis=1)
    index = jnp.where(index == last, -1, index).astype(jnp.int32)
    missing = _num_slots(values.shape[0], count) - count
    return jnp.pad(index, ((0, 0), (0, missing)), constant_values=-1)


def _groups(num_rows: int, count: int) -> tuple[int, int]:
    """How many groups, and of how many entries, bound the smallest; a power of 2.

    Neighbours in space are often at regular places, one class after the other or every
    tenth row, so that the number shares no small factor with a period.
    """
    size = 1
    while num_rows // (2 * size) >= 8 * max(count, 16):
        size *= 2
    number = num_rows // size
    while math.gcd(number, 210) > 1:
        number -= 1
    return number, size


def _threshold(values: Array, count: int) -> Array:
    """That which at least `count` entries of a column do not exceed, and few more.

    The count-th smallest of the minima of groups is no less than that of all, and in a
    small array. Bisection on the bits of floats, which order like the floats, finds it.
    """
    number, size = _groups(values.shape[0], count)
    minima = values[: number * size]
    while size > 1:  # slice by slice: XLA reduces over a leading axis slowly
        few = min(size, 16)
        minima = functools.reduce(jnp.minimum, jnp.split(minima, few))
        size //= few
    minima = jnp.maximum(minima, 0.0)
    integer = jnp.int64 if values.dtype == jnp.float64 else jnp.int32
    bits = jax.lax.bitcast_convert_type(minima, integer)
    finite = minima < jnp.inf
    most = jnp.where(finite, bits, 0).max(axis=0)

    def halve(carry: tuple[Array, Array]) -> tuple[Array, Array]:
        low, high = carry
        middle = low + (high - low) // 2
        kept = (bits <= middle[None]).sum(axis=0, dtype=jnp.int32)
        # Both, which settles a column, if few more are kept.
        low = jnp.where(kept <= count + count // 8, middle, low)
        return low, jnp.where(kept >= count, middle, high)

    start = (jnp.minimum(bits.min(axis=0), most) - 1, most)
    unsettled = lambda carry: (carry[1] - carry[0] > 1).any()
    _, high = jax.lax.while_loop(unsettled, halve, start)
    # With fewer than `count` groups that hold anything, all entries are wanted.
    bound = jax.lax.bitcast_convert_type(high, values.dtype)
    return jnp.where(finite.sum(axis=0) >= count, bound, jnp.inf)


def _pack(values: Array, within: Array) -> Array:
    """Bit b of word w says whether entry 32 w + b is finite and <= within."""
    kept = (values <= within[None]) & (values < jnp.inf)
    kept = kept.reshape(-1, WORD, kept.shape[1])
    place = jnp.arange(WORD, dtype=jnp.uint32)[None, :, None]
    return (kept.astype(jnp.uint32) << place).sum(axis=1, dtype=jnp.uint32)


def _overflow(words: Array, slots: int) -> Array:
    count = jax.lax.population_count(words).astype(jnp.int32).sum(axis=0)
    return count.max() > slots


def _positions(words: Array, slots: int) -> Array:
    """Where the bits of each column are, [R, slots], ascending, then -1."""
    num_words, num_columns = words.shape
    missing = -num_words % WORD
    # Bit b of summary s says whether word 32 s + b holds any.
    some = jnp.pad(words, ((0, missing), (0, 0)))
    summary = _pack(
        (some == 0).astype(jnp.float32), jnp.zeros(num_columns, jnp.float32)
    )
    row = jnp.arange(summary.shape[0], dtype=jnp.int32)[:, None]

    def read(carry):
        turn, summary, word, place, index, _ = carry
        # A column that is through with its word takes the next that holds any.
        first = jnp.where(summary != 0, row, summary.shape[0] - 1).min(axis=0)
        bits = jnp.take_along_axis(summary, first[None], axis=0)[0]
        ahead = jnp.minimum(WORD * first + _lowest(bits), num_words - 1)
        following = jnp.take_along_axis(words, ahead[None], axis=0)[0]
        through, more = word == 0, bits != 0
        taken = (row == first[None]) & through[None]
        summary = jnp.where(taken, (bits & (bits - 1))[None], summary)
        place = jnp.where(through, ahead, place)
        word = jnp.where(through, jnp.where(more, following, 0), word)
        found = jnp.where(word != 0, WORD * place + _lowest(word), -1)
        word = word & (word - 1)
        index = jax.lax.dynamic_update_index_in_dim(index, found, turn, axis=0)
        return turn + 1, summary, word, place, index, (found >= 0).any()

    start = (
        jnp.int32(0),
        summary,
        jnp.zeros(num_columns, jnp.uint32),
        jnp.zeros(num_columns, jnp.int32),
        jnp.full((slots, num_columns), -1, jnp.int32),
        jnp.array(True),
    )
    unread = lambda carry: carry[5] & (carry[0] < slots)
    return jax.lax.while_loop(unread, read, start)[4].T


def _lowest(word: Array) -> Array:
    """The place of the lowest bit; 32 if there is none."""
    return jax.lax.population_count(~word & (word - 1)).astype(jnp.int32)
