"""Influence against closed forms, on linen and nnx models and on numpy's own nets."""

import itertools
import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from hypothesis import given
from hypothesis import strategies as st

from robustjax import InputError, influence, models
from robustjax.types import ModelOutput

X = jax.random.uniform(jax.random.key(0), (4, 6, 6, 2))
Y = jnp.array([0, 2, 1, 1])
MEASURES = (influence.gradient, influence.activation_x_gradient, influence.conductance)


class LinenNet(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = nn.relu(nn.Conv(3, (3, 3), name="conv")(x))
        x = nn.relu(nn.Dense(8, name="hidden")(x.reshape(x.shape[0], -1)))
        return nn.Dense(3, name="head")(Same(name="last")(x))


class Same(nn.Module):
    def __call__(self, x):
        return x


class NnxSame(nnx.Module):
    def __call__(self, x):
        return x


class NnxNet(nnx.Module):
    def __init__(self, rngs):
        self.conv = nnx.Conv(2, 3, (3, 3), rngs=rngs)
        self.hidden = nnx.Linear(108, 8, rngs=rngs)
        self.last = NnxSame()
        self.head = nnx.Linear(8, 3, rngs=rngs)

    def __call__(self, x):
        x = nnx.relu(self.conv(x))
        return self.head(self.last(nnx.relu(self.hidden(x.reshape(x.shape[0], -1)))))


def linen():
    model = models.from_linen(LinenNet(), call_kwargs=lambda mode: {})
    params, state = model.init(jax.random.key(1), X)
    params["head"]["bias"] = jnp.array([0.1, -0.2, 0.3])
    return models.model_fn(model, params, state), params["head"]


def from_nnx():
    model = models.from_nnx(NnxNet)
    params, state = model.init(jax.random.key(1), X)
    params["head"]["bias"] = jnp.array([0.1, -0.2, 0.3])
    return models.model_fn(model, params, state), params["head"]


@pytest.fixture(params=[linen, from_nnx], ids=["linen", "nnx"], scope="module")
def net(request):
    return request.param()


def test_at_a_linear_head_the_gradient_is_its_column(net):
    model_fn, head = net
    got = influence.gradient(model_fn, X, Y, layer="last")
    np.testing.assert_allclose(got, head["kernel"].T[Y], rtol=1e-6)


def test_at_a_linear_head_products_sum_to_the_logit_without_its_bias(net):
    model_fn, head = net
    got = influence.activation_x_gradient(model_fn, X, Y, layer="last").sum(axis=1)
    expected = influence.logit(model_fn(X).logits, Y) - head["bias"][Y]
    np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("layer", ["conv", "hidden", "last"])
def test_taps_give_the_gradient_of_the_split_model(net, layer):
    model_fn, _ = net
    activation = model_fn(X, capture=(layer,)).features[layer]

    def upper(a):  # the model from the layer on, its own input thrown away
        taps = {layer: a - jax.lax.stop_gradient(activation)}
        return influence.margin(model_fn(X, taps=taps).logits, Y).sum()

    expected = jax.grad(upper)(activation)
    output = influence.margin
    got = influence.gradient(model_fn, X, Y, layer=layer, output=output)
    np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-6)


def two_layers(rng, width=8, side=5):
    weights = [rng.normal(size=s) for s in ((side, width), (width, 3))]
    x = rng.normal(size=(4, side))
    hidden = lambda x: np.maximum(x @ weights[0], 0)

    class Net(nn.Module):
        @nn.compact
        def __call__(self, x):
            x = nn.relu(nn.Dense(width, use_bias=False, name="one")(x))
            x = Same(name="hidden")(x)
            return nn.Dense(3, use_bias=False, name="two")(x)

    model = models.from_linen(Net(), call_kwargs=lambda mode: {})
    params = {"one": {"kernel": weights[0]}, "two": {"kernel": weights[1]}}
    params = jax.tree.map(lambda a: jnp.asarray(a, jnp.float32), params)
    return models.model_fn(model, params, {}), weights, hidden, x


def test_a_relu_net_written_out_in_numpy():
    rng = np.random.default_rng(0)
    model_fn, (_, second), hidden, x = two_layers(rng)
    y = np.array([0, 2, 1, 1])
    a = hidden(x)
    logits = a @ second
    p = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    own = p[np.arange(4), y][:, None]
    slopes = {  # of the output with respect to the logits
        influence.logit: np.eye(3)[y],
        influence.probability: own * (np.eye(3)[y] - p),
        influence.log_probability: np.eye(3)[y] - p,
    }
    given = (model_fn, jnp.asarray(x, jnp.float32), jnp.asarray(y))
    for output, slope in slopes.items():
        expected = slope @ second.T
        got = influence.gradient(*given, layer="hidden", output=output)
        np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-5)
        got = influence.activation_x_gradient(*given, layer="hidden", output=output)
        np.testing.assert_allclose(got, a * expected, rtol=1e-4, atol=1e-5)
    lost = influence.ablation(*given, layer="hidden")
    np.testing.assert_allclose(lost, a * second.T[y], rtol=1e-4, atol=1e-5)
    mean = a.mean(axis=0)
    lost = influence.ablation(*given, layer="hidden", value=mean.astype(np.float32))
    np.testing.assert_allclose(lost, (a - mean) * second.T[y], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("baseline", [0.0, np.full((6, 6, 2), 0.5), X[::-1]])
@pytest.mark.parametrize("layer", ["conv", "hidden"])
def test_conductance_sums_to_the_difference_of_outputs(net, layer, baseline):
    model_fn, _ = net
    got = influence.conductance(
        model_fn, X, Y, layer=layer, baseline=baseline, num_steps=200
    )
    at = lambda x: influence.logit(model_fn(x).logits, Y)
    start = jnp.broadcast_to(jnp.asarray(baseline, jnp.float32), X.shape)
    np.testing.assert_allclose(
        got.reshape(4, -1).sum(axis=1), at(X) - at(start), rtol=0.01, atol=2e-3
    )


def test_conductance_is_the_sum_of_its_trapezoids():
    rng = np.random.default_rng(1)
    model_fn, (_, second), hidden, x = two_layers(rng)
    y, base, steps = np.array([0, 2, 1, 1]), rng.normal(size=5), 7

    def slope(a):
        p = np.exp(a @ second)
        p /= p.sum(axis=1, keepdims=True)
        return (np.eye(3)[y] - p) @ second.T

    line = [hidden(base + k / steps * (x - base)) for k in range(steps + 1)]
    expected = sum(
        (slope(a) + slope(b)) / 2 * (b - a) for a, b in itertools.pairwise(line)
    )
    got = influence.conductance(
        *(model_fn, jnp.asarray(x, jnp.float32), jnp.asarray(y)),
        layer="hidden",
        output=influence.log_probability,
        baseline=base.astype(np.float32),
        num_steps=steps,
    )
    np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-5)


def test_more_steps_make_conductance_no_worse_in_half_precision():
    rng = np.random.default_rng(2)
    weights = [
        jnp.asarray(rng.normal(size=size) / 4, jnp.bfloat16)
        for size in ((16, 64), (64, 64), (64, 3))
    ]

    def model_fn(x, *, capture=(), taps=None):
        a = jnp.tanh(x.astype(jnp.bfloat16) @ weights[0])
        a = a + (taps or {}).get("a", jnp.bfloat16(0))
        logits = jax.nn.relu(a @ weights[1]) @ weights[2]
        return ModelOutput(logits.astype(jnp.float32), {"a": a}, {})

    x, y = jnp.asarray(rng.uniform(size=(32, 16)), jnp.float32), jnp.zeros(32, int)
    at = lambda x: influence.logit(model_fn(x).logits, y)
    whole = at(x) - at(jnp.zeros_like(x))

    def error(num_steps):
        of = jax.jit(
            lambda x: influence.conductance(
                model_fn, x, y, layer="a", num_steps=num_steps
            )
        )
        found = of(x)
        assert found.dtype == jnp.bfloat16
        return float(jnp.abs(found.astype(jnp.float32).sum(axis=1) - whole).mean())

    few, many = error(20), error(200)
    assert many < 1.1 * few
    assert many < 0.02


def interacting(x, *, capture=(), taps=None):
    """Eight neurons whose pairs count: the logits of a quadratic form."""
    a = x + (taps or {}).get("a", 0)
    matrix = jnp.asarray(np.random.default_rng(3).normal(size=(2, 8, 8)), a.dtype)
    logits = jnp.tanh(jnp.einsum("bi,kij,bj->bk", a, matrix, a))
    return ModelOutput(logits, {"a": a}, {})


def test_shapley_estimates_match_the_enumeration_of_all_sets():
    rng = np.random.default_rng(4)
    x = rng.normal(size=(3, 8)).astype(np.float32)
    y = np.array([0, 1, 1])
    worth = {}
    for members in itertools.product((0, 1), repeat=8):
        a = jnp.asarray(x * np.array(members, np.float32))
        worth[members] = np.asarray(interacting(a).logits)[np.arange(3), y]
    exact = np.zeros((3, 8))
    for members, value in worth.items():
        size = sum(members)
        for j in range(8):
            if not members[j]:
                more = (*members[:j], 1, *members[j + 1 :])
                share = math.factorial(size) * math.factorial(7 - size)
                exact[:, j] += share / math.factorial(8) * (worth[more] - value)
    for at_once in (None, 3):
        got = influence.shapley(
            *(jax.random.key(5), interacting, jnp.asarray(x), jnp.asarray(y)),
            layer="a",
            num_permutations=400,
            at_once=at_once,
        )
        assert np.abs(got.value - exact).max() < 0.2
        assert (np.abs(got.value - exact) <= 3 * got.standard_error + 1e-5).all()
        whole = worth[(1,) * 8] - worth[(0,) * 8]
        np.testing.assert_allclose(got.value.sum(axis=1), whole, atol=1e-5)


def test_the_standard_error_is_that_of_repeated_estimates():
    x, y = jax.random.normal(jax.random.key(6), (1, 8)), jnp.array([0])

    def once(key):
        return influence.shapley(key, interacting, x, y, layer="a", num_permutations=20)

    found = jax.jit(jax.vmap(once))(jax.random.split(jax.random.key(7), 200))
    spread = found.value.std(axis=0, ddof=1)[0]
    claimed = jnp.sqrt((found.standard_error**2).mean(axis=0))[0]
    np.testing.assert_allclose(claimed, spread, rtol=0.25)


def test_shapley_of_an_additive_game_has_no_error(net):
    model_fn, _ = net
    got = influence.shapley(
        jax.random.key(0), model_fn, X, Y, layer="last", num_permutations=3
    )
    own = influence.activation_x_gradient(model_fn, X, Y, layer="last")
    np.testing.assert_allclose(got.value, own, rtol=1e-4, atol=1e-5)
    assert got.standard_error.max() < 1e-5


def test_channels_are_taken_away_whole(net):
    model_fn, _ = net
    a = model_fn(X, capture=("conv",)).features["conv"]
    at = lambda tap: influence.logit(model_fn(X, taps={"conv": tap}).logits, Y)
    whole = at(jnp.zeros_like(a))
    expected = [
        whole - at(-a * jax.nn.one_hot(c, 3)[None, None, None]) for c in range(3)
    ]
    got = influence.ablation(model_fn, X, Y, layer="conv", channels=True, at_once=2)
    np.testing.assert_allclose(got, jnp.stack(expected, 1), rtol=1e-4, atol=1e-5)
    units = influence.gradient(model_fn, X, Y, layer="conv")
    np.testing.assert_allclose(
        influence.per_channel(units), units.sum((1, 2)), rtol=1e-6
    )
    game = influence.shapley(
        jax.random.key(0), model_fn, X, Y, layer="conv", channels=True
    )
    assert game.value.shape == game.standard_error.shape == (4, 3)
    np.testing.assert_allclose(game.value.sum(axis=1), whole - at(-a), atol=1e-4)


@pytest.mark.parametrize("measure", MEASURES)
def test_all_classes_are_the_classes_one_by_one(net, measure):
    model_fn, _ = net
    one = [measure(model_fn, X, jnp.full(4, k), layer="conv") for k in range(3)]
    for at_once in (None, 1, 2):
        got = influence.all_classes(
            measure, model_fn, X, 3, layer="conv", at_once=at_once
        )
        np.testing.assert_allclose(got, jnp.stack(one, 1), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("measure", [*MEASURES, influence.ablation])
def test_compiled_and_batched_is_eager_and_one_by_one(net, measure):
    model_fn, _ = net

    def run(model_fn, x, y):
        return measure(model_fn, x, y, layer="hidden")

    expected = run(model_fn, X, Y)
    traces = []

    @jax.jit
    def compiled(model_fn, x, y):
        traces.append(1)
        return run(model_fn, x, y)

    np.testing.assert_allclose(compiled(model_fn, X, Y), expected, rtol=1e-5, atol=1e-6)
    compiled(model_fn, X[::-1], Y)
    assert len(traces) == 1
    single = jax.vmap(lambda x, y: run(model_fn, x[None], y[None])[0])(X, Y)
    np.testing.assert_allclose(single, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("measure", MEASURES)
def test_influence_is_differentiable_again(net, measure):
    model_fn, _ = net

    def total(x):
        found = measure(
            model_fn, x, Y, layer="hidden", output=influence.log_probability
        )
        return (found**2).sum()

    slope = jax.grad(total)(X)
    direction = jax.random.normal(jax.random.key(8), X.shape)
    step = 1e-3
    change = (total(X + step * direction) - total(X - step * direction)) / (2 * step)
    np.testing.assert_allclose((slope * direction).sum(), change, rtol=0.06, atol=1e-3)


@pytest.mark.parametrize("measure", [*MEASURES, influence.ablation, influence.shapley])
def test_every_measure_says_what_does_not_fit(measure):
    model_fn, _ = linen()
    given = (model_fn, X) if measure is not influence.shapley else ()
    given = given or (jax.random.key(0), model_fn, X)
    for output in (lambda logits, y: logits, lambda logits, y: logits.sum()):
        with pytest.raises(InputError, match="`output` must return one number per im"):
            measure(*given, Y, layer="hidden", output=output)
    with pytest.raises(InputError, match=r"`y` must be one label .*\(4, 3\).*argmax"):
        measure(*given, jax.nn.one_hot(Y, 3), layer="hidden")
    with pytest.raises(InputError, match="`layer` names 'hiden', but no layer"):
        measure(*given, Y, layer="hiden")


def test_bad_layers_and_labels_say_so(net):
    model_fn, _ = net
    with pytest.raises(InputError, match=r"'hiden', but no layer.*hidden"):
        influence.gradient(model_fn, X, Y, layer="hiden")
    with pytest.raises(InputError, match="`y`"):
        influence.gradient(model_fn, X, Y[:2], layer="hidden")
    with pytest.raises(InputError, match="`output` must return one number per image"):
        influence.gradient(
            model_fn, X, Y, layer="hidden", output=lambda logits, y: logits
        )
    with pytest.raises(InputError, match="`baseline` must be a number"):
        influence.conductance(model_fn, X, Y, layer="conv", baseline=np.zeros(3))
    with pytest.raises(InputError, match="`value` must be a number or an array"):
        influence.ablation(model_fn, X, Y, layer="hidden", value=np.zeros(3))
    with pytest.raises(InputError, match="`num_permutations` must be at least 2"):
        influence.shapley(
            jax.random.key(0), model_fn, X, Y, layer="hidden", num_permutations=1
        )


@given(
    seed=st.integers(0, 1000),
    front=st.integers(0, 6),
    tail=st.integers(0, 6),
    order=st.sampled_from(["most_negative", "smallest_magnitude"]),
    scale=st.floats(0.01, 100),
)
def test_sets_are_those_of_a_sort(seed, front, tail, order, scale):
    values = np.random.default_rng(seed).normal(size=(3, 12)).astype(np.float32)
    masks = influence.front_and_tail(
        jnp.asarray(scale * values), front, tail, tail_order=order
    )
    for row, mask in zip(values, np.asarray(masks), strict=True):
        order_of = np.argsort(-row)
        rest = order_of[front:]
        key = row[rest] if order == "most_negative" else np.abs(row[rest])
        expected = np.zeros(12)
        expected[order_of[:front]] = 1
        expected[rest[np.argsort(key)[:tail]]] = -1
        np.testing.assert_array_equal(mask, expected)


def test_halves_leave_nothing_in_the_middle():
    values = jax.random.normal(jax.random.key(0), (2, 4, 4, 3))
    masks = influence.front_and_tail(values, 0.5, 0.5)
    assert masks.shape == values.shape
    assert bool((jnp.abs(masks) == 1).all())
    drawn = influence.random_sets(jax.random.key(1), (5, 48), 7, 9)
    np.testing.assert_array_equal((drawn == 1).sum(1), 7)
    np.testing.assert_array_equal((drawn == -1).sum(1), 9)
    assert not (drawn[0] == drawn[1]).all()


@pytest.mark.parametrize(
    ("front", "tail", "message"),
    [
        (7, 6, "at most the 12 neurons of the layer together, got 7 and 6"),
        (13, 0, "at most the 12 neurons"),
        (1.5, 1, "`front` must be a number of neurons, or a share"),
        (1, -1, "`tail` must be a number"),
        (True, 1, "`front` must be"),
    ],
)
def test_sizes_that_do_not_fit_say_so(front, tail, message):
    with pytest.raises(InputError, match=message):
        influence.front_and_tail(jnp.ones((2, 12)), front, tail)


def test_means_of_classes_forget_what_has_no_weight():
    values = jnp.array([[1.0, 2.0], [jnp.nan, 7.0], [3.0, 4.0]])
    got = influence.class_means(
        values, jnp.array([0, 0, 2]), 3, jnp.array([1.0, 0.0, 1.0])
    )
    np.testing.assert_array_equal(got.mean, [[1, 2], [0, 0], [3, 4]])
    np.testing.assert_array_equal(got.weight, [1, 0, 1])
    with pytest.raises(InputError, match="`y`"):
        influence.class_means(values, jnp.array([0, 0]), 3)
    with pytest.raises(InputError, match=r"`y` must hold labels in \[0, 2\], got 7"):
        influence.class_means(values, jnp.array([0, 7, 1]), 3)
    got = influence.class_means(
        values, jnp.array([0, 0, 2]), 3, jnp.array([True, False, True])
    )
    np.testing.assert_array_equal(got.mean, [[1, 2], [0, 0], [3, 4]])


def test_shares_are_those_that_were_written():
    for percent in range(100):
        for share in (percent / 100, np.float32(percent / 100)):
            assert influence.set_sizes(100, share, 0) == (percent, 0)
    for count in (7, 49, 512):
        for front in range(count):
            assert influence.set_sizes(count, front / count, 0) == (front, 0)
    assert influence.set_sizes(12, 0.24, 0.5) == (2, 6)
    assert influence.set_sizes(12, np.int64(5), np.int32(0)) == (5, 0)
