"""The block `head` of a config."""

import dataclasses
import functools
from typing import Any, Literal

import jax

from robustjax import interpolation
from robustjax._checks import InputError, one_of, positive_int
from robustjax.config import names
from robustjax.config.blocks import Block, call, lookup
from robustjax.interpolation import Similarity, Template, TemplateWeight
from robustjax.types import Array


@dataclasses.dataclass(frozen=True, kw_only=True)
class HeadSettings:
    """The block `head`.

    Attributes:
      name: In `names.HEADS`, or "linear", the model's own.
      layer: Whose output the head is on.
      num_templates: Training images of a set of templates.
      num_sets: Sets over which the head averages.
      disjoint: Whether they are chunks of the training set, without overlap.
      balanced: Whether a set has as many templates of every class.
      augment: Whether templates are augmented like training images.
      seed: Of the draw of templates and of their augmentation.
      queries: "single" answers each image as if it were alone, "batch" all images of
        an evaluation batch together, as the papers do.
      average: "scores" or "draws", see `interpolation.wnll`. With draws, what is judged
        is a classifier that draws its templates anew for each answer.
      template_weight: See `interpolation.interpolate`.
      similarity: Keywords of `Similarity`, the kernel by name.
      gradient: "exact", "straight_through", or a view (what changes in this block)
        whose derivative takes the place of this one's.
      companions: Clean training images, not among the templates, that are the other
        queries of each image, with `queries="batch"`; 0 for none.
      solver: Keywords of `Solver`.
    """

    name: str = "wnll"
    layer: str = "features"
    num_templates: int = 1000
    num_sets: int = 1
    disjoint: bool = False
    balanced: bool = False
    augment: bool = True
    seed: int = 0
    queries: Literal["single", "batch"] = "single"
    average: Literal["scores", "draws"] = "scores"
    template_weight: TemplateWeight = "paper"
    similarity: Block = dataclasses.field(default_factory=dict)
    gradient: Any = "exact"
    companions: int = 0
    solver: Block = dataclasses.field(default_factory=dict)

    def __post_init__(self):
        one_of(("linear", *names.HEADS), **{"head name": self.name})
        positive_int(num_templates=self.num_templates, num_sets=self.num_sets)
        for name in ("disjoint", "balanced", "augment"):
            one_of((True, False), **{f"head.{name}": getattr(self, name)})
        for name in ("seed", "companions"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < 0:
                raise InputError(
                    f"`head.{name}` must be an integer of at least 0, got {value!r}."
                )
        if self.companions and self.queries != "batch":
            raise InputError(
                f"`head.companions` {self.companions} needs `head.queries` 'batch', "
                f"got {self.queries!r}: single queries have none."
            )


def build_similarity(block: Block) -> Similarity:
    """The `Similarity` of a block, its kernel by name."""
    given = dict(block)
    if "kernel" in given:
        given["kernel"] = lookup("kernel", names.KERNELS, given["kernel"])
    return call("similarity", Similarity, given)


@functools.partial(jax.jit, static_argnums=2)
def made_template(features: Array, labels: Array, similarity: Similarity) -> Template:
    """`interpolation.make_template`, compiled."""
    return interpolation.make_template(features, labels, similarity)
