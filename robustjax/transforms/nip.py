"""Neuron-level inverse perturbation: an image is moved to strengthen some neurons.

Benign images say which neurons of a layer a class rests on. A tested image is moved so
that these front neurons rise and tail neurons fall, by the gradient of their
difference, and is then classified (`_directions` has the equations). Which class, and
how far, no source defines: the abstracts say nothing of it and the scripts take the
true label. The policies are ours.
"""

import dataclasses
from collections.abc import Sequence
from typing import Literal

import jax
import jax.numpy as jnp

from robustjax import influence
from robustjax._checks import InputError
from robustjax.attacks.selector import Candidates, pack_candidates
from robustjax.influence import Measure, Output
from robustjax.influence.sets import TailOrder
from robustjax.transforms import _nip_fit
from robustjax.transforms._directions import slopes
from robustjax.transforms._nip_candidates import choice, perturbed, scored
from robustjax.transforms._nip_options import NIPOptions, NIPState, Policy, Rule
from robustjax.types import Array, Batch, Defense, Key, ModelFn


def nip(
    *,
    layer: str = "flatten",
    measure: Measure = influence.activation_x_gradient,
    output: Output = influence.log_probability,
    front: int | float = 5,
    tail: int | float = 5,
    tail_order: TailOrder = "most_negative",
    front_weight: float = 1.0,
    tail_weight: float = 1.0,
    class_weight: float = 0.0,
    neurons: Literal["influence", "random"] = "influence",
    sets: Literal["class", "image"] = "class",
    direction: Literal["gradient", "random"] = "gradient",
    form: Literal["universal", "per_sample"] = "universal",
    num_steps: int = 1,
    size: float | Array | Sequence[float | Array] = 0.001,
    gap_closing: bool = False,
    policy: Policy = "candidates",
    rule: Rule = "proto",
    top: int | None = None,
    nearest_by: Literal["pixels", "layer"] = "pixels",
    clip_gradient: Literal["exact", "straight_through"] = "exact",
    choice_gradient: Literal["constant", "soft"] = "constant",
    temperature: float = 1.0,
    answer: Literal["logits", "candidates"] = "logits",
    chunk_size: int = 250,
) -> Defense:
    """Neuron-level inverse perturbation (NIP) before the classifier.

    See "Fight Perturbations with Perturbations: Defending Adversarial Attacks via
    Neuron Influence" (Chen et al., 2021), https://arxiv.org/abs/2112.13060. Layer,
    influence, sets, weights, size and normalisation are as in the authors' early
    scripts where nothing else is said; the published text may differ. It is a
    test-time defense that an attacker who knows it takes apart: judge it by the suite
    `nip_adaptive` beside the bare model, never by attacks on the bare model alone.

    Args:
      layer: Whose outputs are the neurons.
      measure: Their influence. The scripts have both products and bare gradients.
      output: Of what. The scripts' probability underflows for confident images; the
        derivative of its logarithm, the default, is a positive multiple of its own.
      front: How many neurons are strengthened, or below 1 which share of them. The
        scripts: 1 and 5; with more it moved images further wherever it was measured.
      tail: How many are weakened.
      tail_order: "most_negative" or "smallest_magnitude" influence.
      front_weight: Of the front in S_c.
      tail_weight: Of the tail.
      class_weight: Of log p_c(x) in S_c, 0 in the scripts. 1, with both other weights
        0, makes plain cross-entropy candidates: the control.
      neurons: "random" draws the sets: the control.
      sets: Whether directions are of the class's mean influence, or as in the scripts
        of each "image" (for `form="universal"`, its mean is taken afterwards). Random
        sets, and what `rule` compares, are those of classes.
      direction: "random" is one fixed random direction for each class: the control.
      form: "universal", one direction per class, the normalised mean over its benign
        images; or "per_sample", the gradient at the tested image.
      num_steps: Above 1, a projected iteration of signs within `size` in every pixel,
        in place of one normalised step; `form="per_sample"` only.
      size: Root mean square of the step on the scale of pixels: 0.001 (the script for
        CIFAR-10) to 0.008 (for 224 x 224); far too small against attacks with a full
        budget. Of several, each image takes the smallest from which on the answer's
        class stays as it is. Traced ones pass, for `vmap` over sizes.
      gap_closing: The step that brings S_c to its mean over benign images of class c to
        first order, within [0, size].
      policy: "candidates" moves towards every class and chooses by `rule`; "predicted"
        only towards the predicted one, which strengthens what the attacker chose;
        "pooled" by the mean influence over all classes; "dictionary" by the direction
        of the nearest benign image.
      rule: "proto", the smallest mean squared distance (in deviations) of the moved
        image's front and tail from the class's mean; "gain", the largest rise of z_c;
        "conf", the largest probability; "avg", no choice but the mean of the logits.
      top: Only the likeliest so many classes are candidates, where there are many; of
        the policy "candidates".
      nearest_by: What the dictionary compares, by Euclidean distance.
      clip_gradient: "straight_through" gives the moved image the derivative of the
        tested one: not that of the step, nor of the clipping to [0, 1], which hides
        gradients where pixels are 0 or 1. What is computed stays the same.
      choice_gradient: "soft" differentiates the mean of all candidates' logits, by the
        softmax of their scores, in place of the chosen one's; and of a dictionary the
        softened smallest distance to each class.
      temperature: Of that softmax; scores are scaled to order 1.
      answer: "candidates" returns them packed, for `attacks.selector`.
      chunk_size: Images at a time in `fit`.

    Returns:
      A `Defense` with a `NIPState`.

    Raises:
      InputError: an argument is out of range or does not go with another; from `fit`,
        there is no such layer, a set is larger than it, both sets that `rule` compares
        are empty, or a class has no image that is classified correctly; from `apply`,
        the state is of another model or other images, or pixels are outside [0, 1].

    Example:
      >>> from robustjax.types import ModelOutput
      >>> def model_fn(x, *, capture=(), taps=None):  # two pixels, two classes
      ...     a = x.reshape(len(x), 2) + (taps or {}).get("flatten", 0)
      ...     return ModelOutput(a, {"flatten": a}, {})
      >>> x = jnp.array([[0.75, 0.25], [0.25, 0.75]]).reshape(2, 1, 2, 1)
      >>> defense, key = nip(front=1, tail=1, size=0.125), jax.random.key(0)
      >>> state = defense.fit(key, model_fn, Batch(x, jnp.array([0, 1])))
      >>> defense.apply(state, key, model_fn, x).round(2).tolist()
      [[0.87..., 0.12...], [0.12..., 0.87...]]
    """
    options = NIPOptions(**locals())
    return Defense(_Fit(options), _Apply(options))


@dataclasses.dataclass(frozen=True)
class _Fit:
    options: NIPOptions

    def __call__(self, key: Key, model_fn: ModelFn, batch: Batch) -> NIPState:
        state = _nip_fit.fit(self.options, key, model_fn, batch)
        if self.options.policy in ("predicted", "pooled"):
            return state
        sample = batch.x[: self.options.chunk_size]
        every = not self.options.top
        scores = scored(self.options, state, model_fn, sample, every=every).scores
        spread = scores.std(axis=1).mean()
        return state._replace(scale=jnp.where(spread > 0, spread, 1.0))


@dataclasses.dataclass(frozen=True)
class _Apply:
    options: NIPOptions

    def __call__(self, state: NIPState, key: Key, model_fn: ModelFn, x: Array) -> Array:
        del key
        check_state(self.options, state, model_fn, x)
        every = self.options.answer == "candidates"
        found = scored(self.options, state, model_fn, x, every=every)
        if every:
            scores = found.scores / state.scale
            return pack_candidates(Candidates(scores, found.logits))
        return choice(self.options, state, found)


def moved_towards(
    options: NIPOptions, state: NIPState, model_fn: ModelFn, x: Array, y: Array
) -> Array:
    """Images moved towards the neurons of given classes, [B, H, W, C].

    Args:
      options: Their form, sets and largest size.
      state: What `fit` returned.
      model_fn: The classifier.
      x: [B, H, W, C].
      y: Classes, [B].

    Raises:
      InputError: the state is of another model, or pixels are outside [0, 1].
    """
    check_state(options, state, model_fn, x)
    return perturbed(options, state, model_fn, x, y[None], options.sizes[-1])[0]


def own_direction(options: NIPOptions, model_fn: ModelFn, x: Array, y: Array) -> Array:
    """The direction of each image by its own influence, [B, H, W, C].

    Args:
      options: Influence, sets and weights.
      model_fn: The classifier.
      x: [B, H, W, C].
      y: Classes, [B].
    """
    masks = _nip_fit.weighted(options, _nip_fit.image_masks(options, model_fn, x, y))
    given = (masks[None], y[None], options.class_weight)
    return slopes(model_fn, x, options.layer, *given).direction[0]


def check_state(
    options: NIPOptions, state: NIPState, model_fn: ModelFn, x: Array
) -> None:
    """Raises unless a state fits the model, and images both."""
    _nip_fit.check_images(x)
    if not isinstance(state, NIPState):
        raise InputError(
            f"`state` must be what nip's `fit` returned, got {type(state).__name__}."
        )
    if state.directions.shape[1:] != x.shape[1:]:  # before the model sees them
        raise InputError(
            f"`state` belongs to images {state.directions.shape[1:]}, got `x` of "
            f"{x.shape[1:]}. Fit it again."
        )
    layer = influence.activations(model_fn, x, options.layer).shape[1:]
    num_classes = jax.eval_shape(lambda z: model_fn(z).logits, x).shape[1]
    known = (len(state.masks), state.masks.shape[1:])
    if known != (num_classes, layer):
        raise InputError(
            f"`state` belongs to another model: it knows {known[0]} classes and "
            f"{known[1]} neurons; this one has {num_classes} and {layer}. Fit it again."
        )
