"""What is kept at test time: labelled features, and the graph among themselves."""

import dataclasses
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp

from robustjax import _checks
from robustjax._checks import InputError
from robustjax.interpolation import graph
from robustjax.interpolation.graph import Kernel, Neighbors, gaussian
from robustjax.types import Array


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class Similarity:
    """How points of the graph are alike.

    Attributes:
      num_neighbors: Length of a point's list; the released `num_s`. None lists all
        points: the complete graph, smooth and for small sets only.
      bandwidth_rank: The entry of its list whose distance is a point's bandwidth,
        counted from 1; the released `num_s_normal`.
      include_self: Whether a point takes the first place (and rank) of its own list, as
        in the released code; 15 and 8 then mean 14 neighbours and the 7th.
      bandwidth: None tunes each point's by `bandwidth_rank`; else one for all.
      kernel: `gaussian`, the papers', or `quartic`, the released code's, or any
        function of the squared distance in bandwidths.
      recall: As in `nearest`.
    """

    num_neighbors: int | None = 15
    bandwidth_rank: int = 8
    include_self: bool = True
    bandwidth: float | None = None
    kernel: Kernel = gaussian
    recall: float | None = None

    def __post_init__(self):
        _checks.positive_int(bandwidth_rank=self.bandwidth_rank)
        if self.num_neighbors is not None:
            _checks.positive_int(num_neighbors=self.num_neighbors)
        if self.bandwidth is not None:
            _checks.positive(bandwidth=self.bandwidth)
            return
        least, most = 1 + self.include_self, self.num_neighbors or math.inf
        if not least <= self.bandwidth_rank <= most:
            raise InputError(
                f"`bandwidth_rank` must lie in [{least}, {most}], up to "
                f"`num_neighbors`, got {self.bandwidth_rank}."
            )


class Template(NamedTuple):
    """Labelled points that are kept at test time, made by `make_template`.

    Attributes:
      features: [M, D].
      labels: [M] int32.
      neighbors: The lists of the templates among themselves. They depend on the
        features alone: make the template anew when the network changes.
      similarity: What the lists were made with.
    """

    features: Array
    labels: Array
    neighbors: Neighbors
    similarity: Similarity


def make_template(
    features: Array, labels: Array, similarity: Similarity | None = None
) -> Template:
    """The template of these points, with the lists of its points among themselves.

    Args:
      features: [M, D], float32 or float64.
      labels: [M] integers.
      similarity: The one to be interpolated with.

    Raises:
      InputError: shapes do not fit, features are not finite, or there are fewer points
        than neighbours.

    Example:
      >>> points = jnp.array([[0.0], [0.1], [1.0], [1.1]])
      >>> likeness = Similarity(num_neighbors=3, bandwidth_rank=2)
      >>> template = make_template(points, jnp.array([0, 0, 1, 1]), likeness)
      >>> template.neighbors.index[:, :2].tolist()
      [[0, 1], [1, 0], [2, 3], [3, 2]]
    """
    similarity = similarity or Similarity()
    graph.features(features=features)
    if labels.shape != features.shape[:1] or not jnp.issubdtype(
        labels.dtype, jnp.integer
    ):
        raise InputError(
            f"`labels` must be integers [{features.shape[0]}], one per template, got "
            f"{labels.dtype} {labels.shape}."
        )
    count = features.shape[0]
    size = similarity.num_neighbors or count
    if similarity.bandwidth is None:
        size = max(size, similarity.bandwidth_rank)
    if count < size:
        raise InputError(
            f"`features` holds {count} templates, fewer than `num_neighbors` (or "
            f"`bandwidth_rank`), {size}: take more templates or shorter lists."
        )
    neighbors = graph.nearest(
        *(features, features, size),
        own=jnp.arange(count),
        include_self=similarity.include_self,
        recall=similarity.recall,
    )
    return Template(features, labels.astype(jnp.int32), neighbors, similarity)
