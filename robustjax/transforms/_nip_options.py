"""What `nip` can be told, and what it remembers."""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from robustjax import _checks, influence
from robustjax._checks import InputError
from robustjax.influence import Measure, Output
from robustjax.influence.sets import TailOrder
from robustjax.types import Array

Policy = Literal["candidates", "predicted", "pooled", "dictionary"]
Rule = Literal["proto", "gain", "conf", "avg"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class NIPOptions:
    """The arguments of `nip`, checked: see there."""

    layer: str = "flatten"
    measure: Measure = influence.activation_x_gradient
    output: Output = influence.log_probability
    front: int | float = 5
    tail: int | float = 5
    tail_order: TailOrder = "most_negative"
    front_weight: float = 1.0
    tail_weight: float = 1.0
    class_weight: float = 0.0
    neurons: Literal["influence", "random"] = "influence"
    sets: Literal["class", "image"] = "class"
    direction: Literal["gradient", "random"] = "gradient"
    form: Literal["universal", "per_sample"] = "universal"
    num_steps: int = 1
    size: float | Array | Sequence[float | Array] = 0.001
    gap_closing: bool = False
    policy: Policy = "candidates"
    rule: Rule = "proto"
    top: int | None = None
    nearest_by: Literal["pixels", "layer"] = "pixels"
    clip_gradient: Literal["exact", "straight_through"] = "exact"
    choice_gradient: Literal["constant", "soft"] = "constant"
    temperature: float = 1.0
    answer: Literal["logits", "candidates"] = "logits"
    chunk_size: int = 250

    def __post_init__(self):
        object.__setattr__(self, "size", _as_sizes(self.size))
        for name, choices in _CHOICES.items():
            _checks.one_of(choices, **{name: getattr(self, name)})
        if not isinstance(self.layer, str):
            raise InputError(f"`layer` must be a layer's path, got {self.layer!r}.")
        for name in ("measure", "output"):
            if not callable(getattr(self, name)):
                raise InputError(
                    f"`{name}` must be a function of robustjax.influence or the like, "
                    f"got {getattr(self, name)!r}."
                )
        _checks.non_negative(
            front_weight=self.front_weight,
            tail_weight=self.tail_weight,
            class_weight=self.class_weight,
        )
        _checks.positive_int(num_steps=self.num_steps, chunk_size=self.chunk_size)
        _checks.positive(temperature=self.temperature)
        if self.top is not None:
            _checks.positive_int(top=self.top)
        self._check_sizes()
        self._check_together()

    @property
    def sizes(self) -> tuple[float | Array, ...]:
        """The sizes tried, ascending."""
        return self.size if isinstance(self.size, tuple) else (self.size,)  # pyright: ignore

    @property
    def chooses_by_neurons(self) -> bool:
        """Whether candidates compete by their front and tail neurons."""
        return self.policy == "candidates" and self.rule == "proto"

    def _check_sizes(self) -> None:
        known = [s for s in self.sizes if _checks.is_concrete(s)]
        valid = [isinstance(s, (int, float)) and 0 <= s < math.inf for s in known]
        valid += [np.ndim(s) == 0 for s in self.sizes if not _checks.is_concrete(s)]
        if not valid or not all(valid) or known != sorted(set(known)):
            raise InputError(
                "`size` must be a root mean square on the scale of pixels such as "
                f"0.05, or several ascending ones, got {self.size!r}."
            )

    def _check_together(self) -> None:
        per_sample = self.form == "per_sample"
        if self.num_steps > 1 and not per_sample:
            raise InputError(
                f"`num_steps` {self.num_steps} is of images' own perturbations: set "
                'form="per_sample", or num_steps=1.'
            )
        if self.policy == "dictionary" and per_sample:
            raise InputError(
                '`form` "per_sample" is of images of unknown class; a dictionary has '
                'the directions of benign images: set form="universal".'
            )
        if self.top is not None and self.policy != "candidates":
            raise InputError(
                f'`top` {self.top} is of the policy "candidates", got '
                f'"{self.policy}": leave it out.'
            )
        fixed = len(self.sizes) > 1 or self.num_steps > 1
        if self.gap_closing and (fixed or self.policy == "dictionary"):
            raise InputError(
                "`gap_closing` needs one `size`, the largest step that it may take, "
                "num_steps=1 and no dictionary."
            )
        if self.direction == "random" and (per_sample or self.policy == "dictionary"):
            raise InputError(
                '`direction` "random" is one for each class: set form="universal" and '
                'another policy than "dictionary".'
            )
        single = self.policy in ("predicted", "pooled")
        averaged = self.policy == "candidates" and self.rule == "avg"
        if self.answer == "candidates" and (single or averaged):
            raise InputError(
                '`answer` "candidates" needs a candidate of every class and a choice '
                'among them: policy "candidates" with a rule that chooses, or '
                '"dictionary".'
            )


def _as_sizes(size: Any) -> Any:
    """Numbers of any kind as Python's, which can be hashed; tracers as they are."""
    several = isinstance(size, (list, tuple)) or np.ndim(size) == 1
    return tuple(map(_as_number, size)) if several else _as_number(size)


def _as_number(size: Any) -> Any:
    if not isinstance(size, (np.generic, np.ndarray, jax.Array)):
        return size
    real = jnp.issubdtype(size.dtype, jnp.floating)
    real = real or jnp.issubdtype(size.dtype, jnp.integer)
    known = _checks.is_concrete(size) and real and np.ndim(size) == 0
    return np.asarray(size).item() if known else size


_CHOICES = dict(
    tail_order=("most_negative", "smallest_magnitude"),
    neurons=("influence", "random"),
    sets=("class", "image"),
    direction=("gradient", "random"),
    form=("universal", "per_sample"),
    policy=("candidates", "predicted", "pooled", "dictionary"),
    rule=("proto", "gain", "conf", "avg"),
    nearest_by=("pixels", "layer"),
    clip_gradient=("exact", "straight_through"),
    choice_gradient=("constant", "soft"),
    answer=("logits", "candidates"),
)


class Dictionary(NamedTuple):
    """What is stored of benign images; empty but for the policy "dictionary".

    Attributes:
      keys: What is compared, pixels or a layer's outputs, [N, D].
      directions: [N, H, W, C], of root mean square 1.
      labels: [N]; -1 for an image that was classified wrongly, which is never nearest.
    """

    keys: Array
    directions: Array
    labels: Array


class NIPState(NamedTuple):
    """What `nip` has learnt from benign images of K classes.

    Attributes:
      influence: Mean influence of neurons on each class, [K, *layer].
      masks: +1 in front, -1 in the tail, 0 between, [K, *layer].
      directions: [K, H, W, C], of root mean square 1.
      pooled_mask: Of the mean influence of all classes, [1, *layer].
      pooled_direction: [1, H, W, C].
      means: Mean outputs of the layer by class, [K, *layer].
      deviation: Their deviation over all classes, floored, [*layer].
      level: Mean S_c of class c, [K], and at its end that of the pooled mask, [K + 1].
      scale: Spread of the rule's scores over the classes.
      counts: Benign images of each class that were classified correctly, [K].
      dictionary: The images themselves, where the policy needs them.
    """

    influence: Array
    masks: Array
    directions: Array
    pooled_mask: Array
    pooled_direction: Array
    means: Array
    deviation: Array
    level: Array
    scale: Array
    counts: Array
    dictionary: Dictionary
