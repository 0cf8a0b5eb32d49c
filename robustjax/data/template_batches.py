"""Batches for the WNLL stage: templates first, then queries."""

import dataclasses
import functools
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np

from robustjax import _checks
from robustjax.data.dataset import Dataset
from robustjax.types import Batch, BatchStream


def template_batches(
    dataset: Dataset,
    *,
    num_templates: int,
    num_queries: int,
    share: float = 0.2,
    seed: int,
    process_index: int | None = None,
    process_count: int | None = None,
) -> BatchStream:
    """Every pair of a batch of templates and a batch of queries, epoch after epoch.

    Each epoch splits the set anew at random, a `share` of templates and the rest
    queries, an image and what was made of it (same `index`) on one side, cuts both into
    batches and goes through all pairs in random order. With 20% of 50,000 images, 2,000
    and 4,000 these are the 5 x 10 pairs of "Deep Neural Nets with Interpolating
    Function as Output Activation" (Wang et al., 2018).

    Args:
      dataset: What is split.
      num_templates: Templates of a batch, its first rows.
      num_queries: Queries of a batch, the rows after them.
      share: Of the images that are templates in an epoch, in (0, 1).
      seed: Another seed, other splits.
      process_index: Which share of the rows; None is `jax.process_index()`.
      process_count: How many shares; None is `jax.process_count()`.

    Returns:
      A `BatchStream` of [num_templates + num_queries, ...] rows over all processes.

    Raises:
      InputError: an argument is out of range, or the set too small for one pair.

    Example:
      >>> images = np.zeros((10, 8, 8, 1), np.uint8)
      >>> labels = np.arange(10, dtype=np.int32)
      >>> digits = Dataset(images, labels, np.arange(10), tuple("0123456789"))
      >>> stream = template_batches(
      ...     digits, num_templates=2, num_queries=4, share=0.4, seed=0)
      >>> stream.steps_per_epoch, len(next(iter(stream)).y)
      (2, 6)
    """
    _checks.positive_int(num_templates=num_templates, num_queries=num_queries)
    _checks.positive(share=share)
    _checks.fraction(share=share)
    index = jax.process_index() if process_index is None else process_index
    count = jax.process_count() if process_count is None else process_count
    if (num_templates + num_queries) % count:
        raise _checks.InputError(
            f"`num_templates` + `num_queries` must be a multiple of the {count} "
            f"processes, got {num_templates + num_queries}."
        )
    stream = _TemplateBatches(
        dataset, num_templates, num_queries, share, seed, index, count
    )
    if not stream.steps_per_epoch:
        templates = round(share * len(dataset))
        raise _checks.InputError(
            f"`share` {share} of {dataset!r} gives {templates} templates and "
            f"{len(dataset) - templates} queries, too few for `num_templates` "
            f"{num_templates} and `num_queries` {num_queries}."
        )
    return stream


@dataclasses.dataclass(frozen=True)
class _TemplateBatches:
    dataset: Dataset
    num_templates: int
    num_queries: int
    share: float
    seed: int
    process_index: int
    process_count: int

    @property
    def _batches(self) -> tuple[int, int]:
        """Of templates and of queries, per epoch."""
        templates = self._num_templates
        queries = len(self.dataset) - templates
        return templates // self.num_templates, queries // self.num_queries

    @functools.cached_property
    def _twins(self) -> np.ndarray:
        """Rows of one image each, [images, copies]."""
        order = np.argsort(self.dataset.index, kind="stable")
        counts = np.unique(self.dataset.index, return_counts=True)[1]
        copies = counts[0] if (counts == counts[0]).all() else 1
        return order.reshape(-1, copies)

    @property
    def _num_templates(self) -> int:
        """Rows that are templates in an epoch."""
        images, copies = self._twins.shape
        return round(self.share * images) * copies

    @property
    def steps_per_epoch(self) -> int:
        templates, queries = self._batches
        return templates * queries

    def __iter__(self) -> "_Pairs":
        return _Pairs(self)

    def batch(self, number: int) -> Batch:
        """The pair of this number, counted from the start of the stage."""
        epoch, step = divmod(number, self.steps_per_epoch)
        rng = np.random.default_rng((self.seed, epoch))
        chosen = rng.permutation(self._twins)
        split = self._num_templates // self._twins.shape[1]
        parts = (rng.permutation(part.ravel()) for part in np.split(chosen, [split]))
        order = np.concatenate(list(parts))
        pair = rng.permutation(self.steps_per_epoch)[step]
        templates, queries = divmod(int(pair), self._batches[1])
        first = templates * self.num_templates
        second = self._num_templates + queries * self.num_queries
        rows = np.concatenate(
            [
                order[first : first + self.num_templates],
                order[second : second + self.num_queries],
            ]
        )
        size = len(rows) // self.process_count
        rows = rows[self.process_index * size :][:size]
        x, y = self.dataset.images[rows], self.dataset.labels[rows]
        return Batch(x, y)  # pyright: ignore[reportArgumentType]  # the step puts them on devices


class _Pairs:
    """A `BatchIterator`."""

    def __init__(self, stream: _TemplateBatches):
        self._stream, self._next = stream, 0

    def __iter__(self) -> Iterator[Batch]:
        return self

    def __next__(self) -> Batch:
        self._next += 1
        return self._stream.batch(self._next - 1)

    def get_state(self) -> dict[str, Any]:
        return {"next_index": self._next}

    def set_state(self, state: dict[str, Any]) -> None:
        index = state.get("next_index")
        if not isinstance(index, int) or index < 0:
            raise _checks.InputError(
                f"`state` must be {{'next_index': n}} with n >= 0, got {state!r}."
            )
        self._next = index
