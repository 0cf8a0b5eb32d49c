"""The images that NIP moves towards classes, and which of them answers."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp

from robustjax._checks import InputError
from robustjax._gradients import with_gradient_of
from robustjax.attacks.selector import Candidates, chosen
from robustjax.interpolation.single import all_square_distances
from robustjax.transforms import _nip_fit
from robustjax.transforms._directions import climbed, slopes
from robustjax.transforms._nip_options import NIPOptions, NIPState
from robustjax.types import Array, ModelFn

_NEVER = 1e4  # deviations of scores: classes that are no candidates are never chosen


def perturbed(
    options: NIPOptions,
    state: NIPState,
    model_fn: ModelFn,
    x: Array,
    classes: Array,
    size: float | Array,
) -> Array:
    """Images moved towards classes, [M, B, H, W, C].

    Args:
      options: Their form, steps and sets.
      state: What `fit` returned.
      model_fn: The classifier.
      x: [B, H, W, C].
      classes: [M, B]; not looked at by the policy "pooled".
      size: Of the step.
    """
    pooled = options.policy == "pooled"
    size = jnp.asarray(size, x.dtype)
    direction = state.pooled_direction if pooled else state.directions
    direction = direction[jnp.zeros_like(classes) if pooled else classes]
    if options.form == "universal" and not options.gap_closing:
        return _moved(options, x, size * direction)
    masks = _masks(options, state, model_fn, x, classes)
    if options.num_steps > 1:
        return _iterated(options, model_fn, x, classes, masks, size)
    found = slopes(model_fn, x, options.layer, masks, classes, options.class_weight)
    if options.form == "per_sample":
        direction = found.direction
    if options.gap_closing:
        axes = tuple(range(2, direction.ndim))
        steepness = (found.gradient * direction).sum(axis=axes)
        level = state.level[-1:] if pooled else state.level[:-1]
        gap = level[jnp.zeros_like(classes) if pooled else classes] - found.score
        flat = steepness == 0
        step = jnp.clip(gap / jnp.where(flat, 1.0, steepness), 0, size)
        size = jnp.where(flat, 0.0, step).reshape(*step.shape, *(1,) * len(axes))
    return _moved(options, x, size * direction)


def _masks(
    options: NIPOptions, state: NIPState, model_fn: ModelFn, x: Array, classes: Array
) -> Array:
    """Weights of neurons for each class and image, [M, B or 1, *layer]."""
    if options.policy == "pooled":
        masks = state.pooled_mask[None]
    elif options.sets == "image" and options.neurons == "influence":
        masks = jax.vmap(lambda y: _nip_fit.image_masks(options, model_fn, x, y))(
            classes
        )
    else:
        masks = state.masks[classes]
    return _nip_fit.weighted(options, masks)


def _iterated(
    options: NIPOptions,
    model_fn: ModelFn,
    x: Array,
    classes: Array,
    masks: Array,
    size: Array,
) -> Array:
    num, count = classes.shape
    whole = jnp.broadcast_to(masks, (num, count, *masks.shape[2:]))
    flat_masks, flat_classes = _flat(whole)[None], _flat(classes)[None]

    def gradient(z: Array) -> Array:
        found = slopes(
            model_fn,
            _flat(z),
            options.layer,
            flat_masks,
            flat_classes,
            options.class_weight,
        )
        return _apart(found.gradient[0], num)

    moved = climbed(gradient, x, num, size, options.num_steps)
    return _differentiated(options, moved, x)


def _moved(options: NIPOptions, x: Array, step: Array) -> Array:
    return _differentiated(options, jnp.clip(x[None] + step, 0.0, 1.0), x)


def _differentiated(options: NIPOptions, moved: Array, x: Array) -> Array:
    if options.clip_gradient == "exact":
        return moved
    return with_gradient_of(
        jax.lax.stop_gradient(moved), jnp.broadcast_to(x[None], moved.shape)
    )


def scored(
    options: NIPOptions, state: NIPState, model_fn: ModelFn, x: Array, *, every: bool
) -> Candidates:
    """Scores [B, M] and logits [B, M, K] of the candidates, at the size that is taken.

    Args:
      options: Everything.
      state: What `fit` returned.
      model_fn: The classifier.
      x: [B, H, W, C].
      every: Whether all classes are candidates, whatever `top` and the policy say.
    """
    if options.policy == "dictionary":
        return _from_dictionary(options, state, model_fn, x, every=every)
    num_classes = len(state.masks)
    clean = None
    narrow = options.policy == "predicted" or (options.top and not every)
    if options.top or narrow or options.rule == "gain":
        clean = model_fn(x).logits
    if options.policy == "pooled":
        classes = jnp.zeros((1, x.shape[0]), int)
    elif narrow and clean is not None:
        most = 1 if options.policy == "predicted" else options.top or 1
        classes = jax.lax.top_k(clean, min(most, num_classes))[1].T
    else:
        each = jnp.arange(num_classes)[:, None]
        classes = jnp.broadcast_to(each, (num_classes, x.shape[0]))

    kept = None
    if options.top and every and clean is not None:
        likely = jax.lax.top_k(clean, min(options.top, num_classes))[1]
        kept = jax.nn.one_hot(likely, num_classes, dtype=bool).any(axis=1)

    def at(size: float | Array) -> Candidates:
        images = perturbed(options, state, model_fn, x, classes, size)
        found = _judged(options, state, model_fn, images, classes, clean)
        if kept is None:
            return found
        # Before a size is settled on, or classes that are no candidates would decide.
        never = found.scores - _NEVER * state.scale
        return found._replace(scores=jnp.where(kept, found.scores, never))

    return _settled(options, [at(size) for size in options.sizes])


def _from_dictionary(
    options: NIPOptions, state: NIPState, model_fn: ModelFn, x: Array, *, every: bool
) -> Candidates:
    known = state.dictionary
    if not len(known.labels):
        raise InputError('`state` has no dictionary: fit it with policy="dictionary".')
    a = None
    if options.nearest_by == "layer":
        a = model_fn(x, capture=(options.layer,)).features[options.layer]
    keys = _nip_fit.flat_keys(options, x, x if a is None else a)
    distance = squared_distances(keys, known.keys)
    is_class = known.labels[:, None] == jnp.arange(len(state.masks))[None]
    soft = options.choice_gradient == "soft"
    if not every and not soft:
        is_class = is_class.any(axis=1, keepdims=True)
    # [B, N, K or 1]
    apart = jnp.where(is_class[None], distance[:, :, None], jnp.inf)
    nearest = apart.argmin(axis=1)
    scores = -apart.min(axis=1)
    if soft:
        unit = options.temperature * state.scale
        smooth = unit * jax.nn.logsumexp(-apart / unit, axis=1)
        scores = with_gradient_of(scores, smooth)

    def at(size: float | Array) -> Candidates:
        step = size * known.directions[nearest.T]
        images = _moved(options, x, step)
        logits = _outputs(model_fn, images)[0]
        return Candidates(scores, jnp.moveaxis(logits, 0, 1))

    return _settled(options, [at(size) for size in options.sizes])


def squared_distances(x: Array, others: Array) -> Array:
    """|x_b - o_n|^2, [B, N], for rows [B, D] and [N, D]."""
    return all_square_distances(x, others)[0]


def _judged(
    options: NIPOptions,
    state: NIPState,
    model_fn: ModelFn,
    images: Array,
    classes: Array,
    clean: Array | None,
) -> Candidates:
    """The rule's scores of candidates, and their logits."""
    single = options.policy in ("predicted", "pooled")
    by_neurons = options.rule == "proto" and not single
    capture = (options.layer,) if by_neurons else ()
    logits, features = _outputs(model_fn, images, capture)
    if single or options.rule == "avg":
        scores = jnp.zeros(classes.shape)
    elif options.rule == "proto":
        scores = prototype_scores(state, features[0], classes)
    elif options.rule == "gain" and clean is not None:
        before = jnp.broadcast_to(clean[None], (len(classes), *clean.shape))
        scores = _at(logits, classes) - _at(before, classes)
    else:
        scores = _at(jax.nn.log_softmax(logits), classes)
    return Candidates(scores.T, jnp.moveaxis(logits, 0, 1))


def prototype_scores(state: NIPState, a: Array, classes: Array) -> Array:
    """Minus the mean squared distance from the class's mean, in deviations, [M, B].

    Over the front and tail of the class. `a` is [M or 1, B, *layer], classes [M, B].
    """
    off = (a - state.means[classes]) / state.deviation[None, None]
    counted = jnp.abs(state.masks[classes])
    axes = tuple(range(2, off.ndim))
    size = jnp.maximum(counted.sum(axis=axes), 1)
    return -(counted * jnp.square(off)).sum(axis=axes) / size


def _outputs(
    model_fn: ModelFn, images: Array, capture: Sequence[str] = ()
) -> tuple[Array, list[Array]]:
    """Logits [M, B, K] and features of images [M, B, ...]: one pass for all."""
    num = len(images)
    found = model_fn(_flat(images), capture=capture)
    features = [_apart(found.features[name], num) for name in capture]
    return _apart(found.logits, num), features


def _flat(rows: Array) -> Array:
    """[M, B, ...] as [B * M, ...]: images first, so that devices keep their own."""
    return jnp.moveaxis(rows, 0, 1).reshape(-1, *rows.shape[2:])


def _apart(rows: Array, num: int) -> Array:
    """The reverse, [M, B, ...]."""
    return jnp.moveaxis(rows.reshape(-1, num, *rows.shape[1:]), 1, 0)


def _at(logits: Array, classes: Array) -> Array:
    return jnp.take_along_axis(logits, classes[..., None], axis=2)[..., 0]


def _settled(options: NIPOptions, found: list[Candidates]) -> Candidates:
    """Of several sizes the smallest from which on the answer's class stays."""
    if len(found) == 1:
        return found[0]
    answers = jnp.stack([_answer(options, each).argmax(axis=1) for each in found])
    same = answers == answers[-1:]
    stays = jnp.flip(jnp.cumprod(jnp.flip(same, 0).astype(int), axis=0), 0)
    first = stays.argmax(axis=0)
    pick = lambda *parts: jax.vmap(lambda row, i: row[i], (1, 0))(
        jnp.stack(parts), first
    )
    return jax.tree.map(pick, *found)


def choice(options: NIPOptions, state: NIPState, found: Candidates) -> Array:
    """The answer, [B, K], with the gradient that is asked for."""
    logits = _answer(options, found)
    averaged = options.rule == "avg" and options.policy == "candidates"
    single = options.policy in ("predicted", "pooled")
    if options.choice_gradient == "constant" or single or averaged:
        return logits
    weights = jax.nn.softmax(found.scores / (state.scale * options.temperature))
    smooth = (weights[:, :, None] * found.logits).sum(axis=1)
    return with_gradient_of(logits, smooth)


def _answer(options: NIPOptions, found: Candidates) -> Array:
    if options.rule == "avg" and options.policy == "candidates":
        return found.logits.mean(axis=1)
    return chosen(found)
