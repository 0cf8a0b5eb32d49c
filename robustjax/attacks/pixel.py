"""Attacks on one or a few pixels: no radius, but a count.

`pixel` searches for places and colours by differential evolution, `single_pixel` tries
places in random order with the extreme colours.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from robustjax import _checks, _random
from robustjax._checks import InputError
from robustjax.attacks import _outcome
from robustjax.attacks._outcome import Candidate
from robustjax.objectives import cross_entropy
from robustjax.types import Array, IteratedAttack, Key, LogitsFn, Objective

_LEAST_POPULATION = 3  # a mutant is made of three different individuals


class PixelState(NamedTuple):
    """Between two generations.

    Attributes:
      x_adv: The best point so far, [B, H, W, C]; the first misclassified one, for good.
      value: The objective there, [B].
      broken: Whether it is misclassified, [B].
      population: Individuals, [B, N, P, 2 + C]: per pixel a place in [0, 1)^2 and a
        colour.
      values: Their objectives, [B, N].
      keys: One per image, [B].
      index: Generations so far.
    """

    x_adv: Array
    value: Array
    broken: Array
    population: Array
    values: Array
    keys: Key
    index: Array


class SinglePixelState(NamedTuple):
    """Between two pixels.

    Attributes:
      x_adv: x, until a misclassified point is found.
      broken: Whether one was found, [B].
      order: The pixels in the order in which they are tried, [B, H W].
      index: Pixels so far.
    """

    x_adv: Array
    broken: Array
    order: Array
    index: Array


def pixel(
    *,
    num_pixels: int = 1,
    num_steps: int = 100,
    population: int = 400,
    differential_weight: float = 0.5,
    bounds: tuple[float, float] = (0.0, 1.0),
    objective: Objective = cross_entropy,
    chunk_size: int = 16,
) -> IteratedAttack:
    """Images with at most `num_pixels` pixels changed, by differential evolution.

    Each individual's mutant a + w (b - c), of three different random individuals, takes
    its place if its objective is at least as large; there is no crossover. An image
    stops at its first misclassified mutant. See "One Pixel Attack for Fooling Deep
    Neural Networks" (Su et al., 2019): population 400, at most 100 generations, places
    uniform, colours N(128, 127) of 255 at first. A generation is `population` forward
    passes; the first population and x itself take population + 1 more.

    Genes that leave their range are clipped to it. The paper climbs the probability of
    the other classes, which cross-entropy orders alike; its early stop waits for a true
    class below 5%.

    Args:
      num_pixels: How many may change; the paper uses 1, 3 and 5.
      num_steps: Generations.
      population: Individuals per image.
      differential_weight: The factor w of a difference.
      bounds: (low, high) of a pixel.
      objective: What is climbed.
      chunk_size: Individuals that are evaluated at once; memory grows with it.

    Returns:
      An attack on images [B, H, W, C] whose results differ from x in at most
      `num_pixels` pixels.

    Raises:
      InputError: an argument is out of range, or at the call, x is not [B, H, W, C].

    Example:
      >>> attack = pixel(num_steps=5, population=20)
      >>> x, y = jnp.full((1, 3, 3, 1), 0.5), jnp.array([0])
      >>> f = lambda z: jnp.stack([z[:, 1, 1, 0], 0.6 * z.mean((1, 2, 3))], axis=1)
      >>> x_adv = attack(jax.random.key(0), f, x, y)
      >>> int((x_adv != x).sum()), int(f(x_adv).argmax())
      (1, 1)
    """
    _checks.positive_int(
        num_pixels=num_pixels,
        num_steps=num_steps,
        population=population,
        chunk_size=chunk_size,
    )
    _checks.positive(differential_weight=differential_weight)
    _checks.box(bounds)
    if population < _LEAST_POPULATION:
        raise InputError(
            f"`population` must be at least {_LEAST_POPULATION}, got {population!r}."
        )

    def judged(logits_fn: LogitsFn, x: Array, y: Array, people: Array):
        """Objective and misclassification of each individual, both [B, N]."""
        climbed = _outcome.scored(objective, logits_fn, y)

        def one(individual: Array) -> tuple[Array, Array]:  # [B, P, 2 + C]
            return climbed(_painted(x, individual))

        found = jax.lax.map(one, jnp.moveaxis(people, 1, 0), batch_size=chunk_size)
        return jax.tree.map(jnp.transpose, found)

    def init(key: Key, logits_fn: LogitsFn, x: Array, y: Array) -> PixelState:
        _outcome.check_call(logits_fn, x, y)
        _checks.image_axes(x=x)
        keys = _random.per_image_keys(key, x.shape[0])
        shape = (population, num_pixels, x.shape[3])
        people = jax.vmap(lambda k: _first_population(k, shape, x.dtype, bounds))(
            _random.fold_in(keys, 0)
        )
        values, is_broken = judged(logits_fn, x, y, people)
        at_x = Candidate(x, *_outcome.scored(objective, logits_fn, y)(x))
        best = _best(at_x, x, people, values, is_broken)
        return PixelState(*best, people, values, keys, jnp.int32(0))

    def step(state: PixelState, logits_fn: LogitsFn, x: Array, y: Array) -> PixelState:
        keys = _random.fold_in(state.keys, state.index + 1)
        mutants = jax.vmap(lambda k, p: _mutants(k, p, differential_weight, bounds))(
            keys, state.population
        )
        values, is_broken = judged(logits_fn, x, y, mutants)
        best = _best(Candidate(*state[:3]), x, mutants, values, is_broken)
        wins = values >= state.values
        people = jnp.where(wins[:, :, None, None], mutants, state.population)
        values = jnp.where(wins, values, state.values)
        return PixelState(*best, people, values, state.keys, state.index + 1)

    def finish(state: PixelState, logits_fn: LogitsFn, x: Array, y: Array) -> Array:
        del logits_fn, x, y
        return state.x_adv

    return IteratedAttack(
        init, step, finish, num_steps, broken=lambda state: state.broken
    )


def single_pixel(
    *, num_steps: int = 1000, bounds: tuple[float, float] = (0.0, 1.0)
) -> IteratedAttack:
    """Images with one pixel, in all its channels, at the lowest or highest value.

    Pixels are tried once each in random order, at most `num_steps` of them, until one
    makes the image misclassified; an image where none does is returned as it is. A step
    is two forward passes, low and high; the start is one.

    Args:
      num_steps: Pixels tried.
      bounds: (low, high) of a pixel.

    Raises:
      InputError: an argument is out of range, or at the call, x is not [B, H, W, C].

    Example:
      >>> x, y = jnp.full((1, 3, 3, 1), 0.5), jnp.array([0])
      >>> f = lambda z: jnp.stack([z[:, 1, 1, 0], 0.6 * z.mean((1, 2, 3))], axis=1)
      >>> x_adv = single_pixel(num_steps=9)(jax.random.key(0), f, x, y)
      >>> float(x_adv[0, 1, 1, 0]), int(f(x_adv).argmax())
      (0.0, 1)
    """
    _checks.positive_int(num_steps=num_steps)
    _checks.box(bounds)

    def broken(logits_fn: LogitsFn, z: Array, y: Array) -> Array:
        return _outcome.scored(cross_entropy, logits_fn, y)(z)[1]

    def init(key: Key, logits_fn: LogitsFn, x: Array, y: Array) -> SinglePixelState:
        _outcome.check_call(logits_fn, x, y)
        _checks.image_axes(x=x)
        keys = _random.per_image_keys(key, x.shape[0])
        places = x.shape[1] * x.shape[2]
        order = jax.vmap(lambda k: jax.random.permutation(k, places))(keys)
        return SinglePixelState(x, broken(logits_fn, x, y), order, jnp.int32(0))

    def step(
        state: SinglePixelState, logits_fn: LogitsFn, x: Array, y: Array
    ) -> SinglePixelState:
        _, height, width, _ = x.shape
        place = state.order[:, state.index % state.order.shape[1]]
        grid = jnp.arange(height * width, dtype=place.dtype)
        here = grid.reshape(1, height, width, 1) == place.reshape(-1, 1, 1, 1)
        x_adv, is_broken = state.x_adv, state.broken
        for value in bounds:
            trial = jnp.where(here, jnp.asarray(value, x.dtype), x)
            wins = broken(logits_fn, trial, y) & ~is_broken
            x_adv, is_broken = _outcome.where(wins, trial, x_adv), is_broken | wins
        return SinglePixelState(x_adv, is_broken, state.order, state.index + 1)

    def finish(
        state: SinglePixelState, logits_fn: LogitsFn, x: Array, y: Array
    ) -> Array:
        del logits_fn, x, y
        return state.x_adv

    return IteratedAttack(
        init, step, finish, num_steps, broken=lambda state: state.broken
    )


def _first_population(
    key: Key, shape: tuple[int, ...], dtype: jnp.dtype, bounds: tuple[float, float]
) -> Array:
    """Uniform places and Gaussian colours around the middle, [N, P, 2 + C]."""
    size, num_pixels, channels = shape
    place_key, colour_key = jax.random.split(key)
    low, high = bounds
    places = jax.random.uniform(place_key, (size, num_pixels, 2), dtype)
    colours = jax.random.normal(colour_key, (size, num_pixels, channels), dtype)
    colours = 128 / 255 + 127 / 255 * colours
    return _in_range(
        jnp.concatenate([places, low + (high - low) * colours], axis=-1), bounds
    )


def _mutants(
    key: Key, people: Array, weight: float, bounds: tuple[float, float]
) -> Array:
    """A + weight (b - c) for each individual, with a, b, c different, [N, P, 2 + C]."""
    size = people.shape[0]
    uniform = jax.random.uniform(key, (3, size), jnp.float32)

    def below(row: Array, count: int) -> Array:
        return jnp.minimum((row * count).astype(jnp.int32), count - 1)

    a = below(uniform[0], size)
    to_b = 1 + below(uniform[1], size - 1)
    to_c = 1 + below(uniform[2], size - 2)
    to_c += (to_c >= to_b).astype(jnp.int32)  # skips b
    b, c = (a + to_b) % size, (a + to_c) % size
    return _in_range(people[a] + weight * (people[b] - people[c]), bounds)


def _in_range(people: Array, bounds: tuple[float, float]) -> Array:
    places, colours = people[..., :2], people[..., 2:]
    return jnp.concatenate(
        [jnp.clip(places, 0.0, 1.0), jnp.clip(colours, *bounds)], axis=-1
    )


def _painted(x: Array, individual: Array) -> Array:
    """X with the individual's pixels in their colours; later ones paint over."""
    _, height, width, _ = x.shape
    size = jnp.asarray((height, width), individual.dtype)
    place = (individual[..., :2] * size.reshape(1, 1, 2)).astype(jnp.int32)
    row = jnp.arange(height, dtype=jnp.int32).reshape(1, height, 1, 1)
    column = jnp.arange(width, dtype=jnp.int32).reshape(1, 1, width, 1)

    def paint(number: int, z: Array) -> Array:
        # A place of 1, where clipping ends, is in the last row or column.
        at = jnp.minimum(place[:, number], jnp.array([[height - 1, width - 1]]))
        here = (row == at[:, 0].reshape(-1, 1, 1, 1)) & (
            column == at[:, 1].reshape(-1, 1, 1, 1)
        )
        return jnp.where(here, individual[:, number, 2:][:, None, None, :], z)

    return jax.lax.fori_loop(0, individual.shape[1], paint, x)


def _best(
    old: Candidate, x: Array, people: Array, values: Array, is_broken: Array
) -> Candidate:
    """`old`, frozen once broken, or the best individual: broken first, then value."""
    eligible = is_broken == is_broken.any(axis=1, keepdims=True)
    number = jnp.where(eligible, values, -jnp.inf).argmax(axis=1)
    pick = jax.vmap(lambda rows, i: rows[i])
    value, is_broken = pick(values, number), pick(is_broken, number)
    wins = ~old.broken & (is_broken | (value > old.value))
    return Candidate(
        _outcome.where(wins, _painted(x, pick(people, number)), old.x_adv),
        jnp.where(wins, value, old.value),
        old.broken | is_broken,
    )
