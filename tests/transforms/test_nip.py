"""NIP against numpy's own, its guarantees, and what is known of its limits."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import trained
from flax import nnx
from jax.tree_util import Partial

from robustjax import InputError, attacks, data, influence, models, threats
from robustjax.attacks.selector import unpack_candidates
from robustjax.transforms import NIPOptions, nip
from robustjax.transforms._nip_candidates import perturbed
from robustjax.types import Batch, ModelOutput

SIDE, WIDTH, CLASSES = 4, 12, 3
FORMS = ("universal", "per_sample")
SMALL = dict(layer="hidden", front=3, tail=2, size=0.05)


def new_key():
    return jax.random.key(0)  # the same numbers, but not the same use


class Same(nn.Module):
    @nn.compact
    def __call__(self, x):
        return x


class Net(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = nn.relu(nn.Dense(WIDTH, name="one")(x.reshape(x.shape[0], -1)))
        return nn.Dense(CLASSES, name="two")(Same(name="hidden")(x))


class NnxSame(nnx.Module):
    def __call__(self, x):
        return x


class NnxNet(nnx.Module):
    def __init__(self, rngs):
        self.one = nnx.Linear(SIDE * SIDE, WIDTH, rngs=rngs)
        self.hidden = NnxSame()
        self.two = nnx.Linear(WIDTH, CLASSES, rngs=rngs)

    def __call__(self, x):
        x = nnx.relu(self.one(x.reshape(x.shape[0], -1)))
        return self.two(self.hidden(x))


def make(kind):
    images = jnp.zeros((1, SIDE, SIDE, 1))
    if kind == "linen":
        model = models.from_linen(Net(), call_kwargs=lambda mode: {})
    else:
        model = models.from_nnx(NnxNet)
    params, state = model.init(jax.random.key(1), images)
    params = jax.tree.map(lambda a: 2 * a, params)
    return models.model_fn(model, params, state), params


def benign(model_fn, count=60, seed=2):
    """Images and the model's own answers but for a few, which are wrong."""
    x = jax.random.uniform(jax.random.key(seed), (count, SIDE, SIDE, 1))
    y = model_fn(x).logits.argmax(axis=1)
    return Batch(x, jnp.where(jnp.arange(count) < 5, (y + 1) % CLASSES, y))


@pytest.fixture(scope="module", params=["linen", "nnx"])
def net(request):
    model_fn, params = make(request.param)
    batch = benign(model_fn)
    # Each class is there, and something is left out of each mean.
    assert len(np.unique(batch.y[5:])) == CLASSES
    return model_fn, params, batch


class Reference:
    """The whole method in float64, with the derivatives of the net written out."""

    def __init__(self, params, batch, front=3, tail=2, size=0.05):
        leaf = lambda name, part: np.asarray(params[name][part], np.float64)
        self.w, self.b = leaf("one", "kernel"), leaf("one", "bias")
        self.v, self.c = leaf("two", "kernel"), leaf("two", "bias")
        self.size = size
        x = np.asarray(batch.x, np.float64).reshape(len(batch.x), -1)
        y = np.asarray(batch.y)
        right = self.logits(x).argmax(axis=1) == y
        self.x, self.y = x[right], y[right]
        a, p = self.hidden(self.x), self.probabilities(self.x)
        own = a * ((np.eye(CLASSES)[self.y] - p) @ self.v.T)  # of log p_y
        self.masks = np.zeros((CLASSES, WIDTH))
        for c in range(CLASSES):
            order = np.argsort(own[self.y == c].mean(axis=0))
            self.masks[c, order[-front:]] = 1
            self.masks[c, order[:tail]] = -1
        d = np.stack(
            [self.direction(z, c) for z, c in zip(self.x, self.y, strict=True)]
        )
        of_class = lambda rows, c: rows[self.y == c].mean(axis=0)
        self.u = np.stack([self.rms(of_class(d, c)) for c in range(CLASSES)])
        self.mean = np.stack([of_class(a, c) for c in range(CLASSES)])
        deviation = a.std(axis=0)
        self.deviation = np.maximum(deviation, 0.1 * deviation.mean())
        scores = np.stack(
            [self.score(z, c) for z, c in zip(self.x, self.y, strict=True)]
        )
        self.level = np.array([scores[self.y == c].mean() for c in range(CLASSES)])

    def hidden(self, x):
        return np.maximum(x @ self.w + self.b, 0)

    def logits(self, x):
        return self.hidden(x) @ self.v + self.c

    def probabilities(self, x):
        e = np.exp(self.logits(x) - self.logits(x).max(axis=-1, keepdims=True))
        return e / e.sum(axis=-1, keepdims=True)

    @staticmethod
    def rms(v):
        return v / (np.sqrt((v**2).mean()) + 1e-5)

    def slope(self, z, c):
        return self.w @ ((z @ self.w + self.b > 0) * self.masks[c])

    def direction(self, z, c):
        return self.rms(self.slope(z, c))

    def score(self, z, c):
        return self.masks[c] @ self.hidden(z)

    def moved(self, z, c, *, form="universal", gap=False):
        d = self.u[c] if form == "universal" else self.direction(z, c)
        step = self.size
        if gap:
            steep = self.slope(z, c) @ d
            gap = self.level[c] - self.score(z, c)
            step = np.clip(gap / steep, 0, self.size) if steep else 0.0
        return np.clip(z + step * d, 0, 1)

    def answer(self, z, rule, **how):
        images = [self.moved(z, c, **how) for c in range(CLASSES)]
        logits = [self.logits(image) for image in images]
        if rule == "avg":
            return np.mean(logits, axis=0)
        best = []
        for c, image in enumerate(images):
            chosen = self.masks[c] != 0
            off = (self.hidden(image) - self.mean[c]) / self.deviation
            if rule == "proto":
                best.append(-(off[chosen] ** 2).mean())
            elif rule == "gain":
                best.append(logits[c][c] - self.logits(z)[c])
            else:
                best.append(self.probabilities(image)[c])
        return logits[int(np.argmax(best))]


@pytest.mark.parametrize(
    ("net", "rule", "form", "gap"),
    [
        *(("linen", "proto", form, gap) for form in FORMS for gap in (False, True)),
        *(("linen", rule, "universal", False) for rule in ("gain", "conf", "avg")),
        ("linen", "gain", "per_sample", True),
        ("nnx", "proto", "universal", False),
        ("nnx", "conf", "per_sample", True),
    ],
    indirect=["net"],
)
def test_candidates_are_those_of_the_equations(net, rule, form, gap):
    model_fn, params, batch = net
    reference = Reference(params, batch)
    defense = nip(rule=rule, form=form, gap_closing=gap, chunk_size=16, **SMALL)
    state = defense.fit(new_key(), model_fn, batch)
    np.testing.assert_array_equal(state.masks, reference.masks)
    np.testing.assert_allclose(
        state.directions.reshape(CLASSES, -1), reference.u, rtol=1e-3, atol=1e-4
    )
    np.testing.assert_allclose(state.level[:-1], reference.level, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(state.means, reference.mean, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(state.deviation, reference.deviation, rtol=1e-3)
    x = jax.random.uniform(jax.random.key(3), (20, SIDE, SIDE, 1))
    got = defense.apply(state, new_key(), model_fn, x)
    flat = np.asarray(x, np.float64).reshape(20, -1)
    expected = [reference.answer(z, rule, form=form, gap=gap) for z in flat]
    np.testing.assert_allclose(got, expected, rtol=1e-3, atol=1e-3)


def test_the_other_policies_are_those_of_the_equations(net):
    model_fn, params, batch = net
    reference = Reference(params, batch)
    x = jax.random.uniform(jax.random.key(3), (20, SIDE, SIDE, 1))
    flat = np.asarray(x, np.float64).reshape(20, -1)

    predicted = nip(policy="predicted", **SMALL)
    state = predicted.fit(new_key(), model_fn, batch)
    got = predicted.apply(state, new_key(), model_fn, x)
    labels = reference.logits(flat).argmax(axis=1)
    moved = [reference.moved(z, c) for z, c in zip(flat, labels, strict=True)]
    np.testing.assert_allclose(got, reference.logits(np.stack(moved)), atol=1e-3)

    dictionary = nip(policy="dictionary", **SMALL)
    state = dictionary.fit(new_key(), model_fn, batch)
    got = dictionary.apply(state, new_key(), model_fn, x)
    nearest = ((flat[:, None] - reference.x[None]) ** 2).sum(axis=2).argmin(axis=1)
    step = [reference.direction(reference.x[n], reference.y[n]) for n in nearest]
    moved = np.clip(flat + 0.05 * np.stack(step), 0, 1)
    np.testing.assert_allclose(got, reference.logits(moved), atol=1e-3)

    pooled = nip(policy="pooled", form="per_sample", **SMALL)
    state = pooled.fit(new_key(), model_fn, batch)
    a, p = reference.hidden(reference.x), reference.probabilities(reference.x)
    own = a * ((np.eye(CLASSES)[reference.y] - p) @ reference.v.T)
    order = np.argsort(own.mean(axis=0))
    mask = np.zeros(WIDTH)
    mask[order[-3:]], mask[order[:2]] = 1, -1
    np.testing.assert_array_equal(state.pooled_mask[0], mask)
    slope = ((flat @ reference.w + reference.b > 0) * mask) @ reference.w.T
    size = np.sqrt((slope**2).mean(axis=1, keepdims=True))
    moved = np.clip(flat + 0.05 * slope / (size + 1e-5), 0, 1)
    got = pooled.apply(state, new_key(), model_fn, x)
    np.testing.assert_allclose(got, reference.logits(moved), atol=1e-3)


@pytest.mark.parametrize("net", ["linen"], indirect=True)
@pytest.mark.parametrize("form", ["universal", "per_sample"])
@pytest.mark.parametrize("sets", ["class", "image"])
def test_small_steps_raise_front_over_tail(net, form, sets):
    model_fn, _, batch = net
    options = NIPOptions(**{**SMALL, "size": 1e-3}, form=form, sets=sets)
    state = nip(**{**SMALL, "size": 1e-3}, form=form, sets=sets).fit(
        new_key(), model_fn, batch
    )
    x = 0.2 + 0.6 * batch.x
    classes = jnp.broadcast_to(jnp.arange(CLASSES)[:, None], (CLASSES, len(x)))
    moved = perturbed(options, state, model_fn, x, classes, 1e-3)
    scores = lambda z: (
        model_fn(z, capture=("hidden",)).features["hidden"] @ state.masks.T
    )
    rises = jnp.stack([(scores(moved[c]) - scores(x))[:, c] for c in range(CLASSES)])
    if form == "per_sample" and sets == "class":
        assert (rises >= -1e-6).all()
    assert (rises > 0).mean() > 0.75  # a mean direction is not every image's own


@pytest.mark.parametrize("net", ["linen"], indirect=True)
@pytest.mark.parametrize(
    "options",
    [
        {},
        dict(form="per_sample"),
        dict(form="per_sample", num_steps=3),
        pytest.param(dict(form="per_sample", sets="image"), marks=pytest.mark.slow),
        pytest.param(dict(size=(0.01, 0.05, 0.1)), marks=pytest.mark.slow),
        dict(rule="gain", top=2),
        dict(policy="dictionary", nearest_by="layer"),
        pytest.param(dict(policy="pooled", gap_closing=True), marks=pytest.mark.slow),
        pytest.param(dict(neurons="random"), marks=pytest.mark.slow),
        pytest.param(dict(direction="random"), marks=pytest.mark.slow),
        dict(class_weight=1.0, front_weight=0.0, tail_weight=0.0, rule="gain"),
        dict(clip_gradient="straight_through", choice_gradient="soft"),
    ],
)
def test_compiled_is_eager_and_images_are_on_their_own(net, options):
    model_fn, _, batch = net
    defense = nip(**{**SMALL, **options})
    state = defense.fit(new_key(), model_fn, batch)
    x = jax.random.uniform(jax.random.key(4), (7, SIDE, SIDE, 1))
    traces = []

    @jax.jit
    def run(state, model_fn, x):
        traces.append(1)
        return defense.apply(state, new_key(), model_fn, x)

    expected = defense.apply(state, new_key(), model_fn, x)
    np.testing.assert_allclose(run(state, model_fn, x), expected, rtol=1e-4, atol=1e-5)
    run(state, model_fn, x[::-1])
    assert len(traces) == 1
    one = jax.vmap(lambda z: defense.apply(state, new_key(), model_fn, z[None])[0])(x)
    np.testing.assert_allclose(one, expected, rtol=1e-4, atol=1e-5)
    slope = jax.grad(lambda z: run(state, model_fn, z)[:, 0].sum())(x)
    assert bool(jnp.isfinite(slope).all())
    chunked = nip(**{**SMALL, **options}, chunk_size=7).fit(new_key(), model_fn, batch)
    # The spread of scores is that of a chunk.
    assert_close(state._replace(scale=chunked.scale), chunked)


def assert_close(one, other):
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4), one, other
    )


@pytest.mark.parametrize("net", ["linen"], indirect=True)
def test_iterated_perturbations_stay_in_the_ball(net):
    model_fn, _, batch = net
    options = NIPOptions(layer="hidden", front=3, tail=2, size=0.1, form="per_sample")
    state = nip(**SMALL).fit(new_key(), model_fn, batch)
    classes = jnp.broadcast_to(jnp.arange(CLASSES)[:, None], (CLASSES, 10))
    x = batch.x[:10]
    score = lambda z: jnp.stack(
        [
            (model_fn(z[c], capture=("hidden",)).features["hidden"] @ state.masks[c])
            for c in range(CLASSES)
        ]
    )
    many = NIPOptions(**{**options.__dict__, "num_steps": 10})
    moved = perturbed(many, state, model_fn, x, classes, 0.1)
    assert float(jnp.abs(moved - x[None]).max()) <= 0.1 + 1e-6
    assert float(moved.min()) >= 0
    assert float(moved.max()) <= 1
    whole = jnp.broadcast_to(x[None], moved.shape)
    assert (score(moved) >= score(whole) - 1e-5).mean() > 0.95


@pytest.mark.parametrize("net", ["linen"], indirect=True)
def test_the_smallest_size_that_settles_the_answer(net):
    model_fn, _, batch = net
    sizes = (0.0, 0.05, 0.2, 0.5)
    x = batch.x
    state = nip(**SMALL).fit(new_key(), model_fn, batch)
    each = [
        nip(**{**SMALL, "size": s}).apply(state, new_key(), model_fn, x) for s in sizes
    ]
    answers = np.stack([np.argmax(a, axis=1) for a in each])
    got = nip(**{**SMALL, "size": sizes}).apply(state, new_key(), model_fn, x)
    assert len(set(answers.T.tolist()[0])) >= 1
    taken = []
    for row in range(len(x)):
        last = len(sizes) - 1
        while last > 0 and answers[last - 1, row] == answers[-1, row]:
            last -= 1
        taken.append(last)
        np.testing.assert_allclose(got[row], each[last][row], rtol=1e-4, atol=1e-5)
    assert len(set(taken)) > 1
    each = [
        nip(**{**SMALL, "size": s}, rule="avg").apply(state, new_key(), model_fn, x)
        for s in sizes
    ]
    got = nip(**{**SMALL, "size": sizes}, rule="avg").apply(
        state, new_key(), model_fn, x
    )
    answers = np.stack([np.argmax(a, axis=1) for a in each])
    np.testing.assert_array_equal(got.argmax(axis=1), answers[-1])


@pytest.mark.parametrize("net", ["linen"], indirect=True)
def test_few_candidates_are_all_where_the_answer_is_among_them(net):
    model_fn, _, batch = net
    state = nip(**SMALL).fit(new_key(), model_fn, batch)
    x = batch.x
    whole = nip(**SMALL).apply(state, new_key(), model_fn, x)
    top = nip(**SMALL, top=CLASSES).apply(state, new_key(), model_fn, x)
    np.testing.assert_allclose(top, whole, rtol=1e-5, atol=1e-5)
    one = nip(**SMALL, top=1).apply(state, new_key(), model_fn, x)
    predicted = nip(**SMALL, policy="predicted").apply(state, new_key(), model_fn, x)
    np.testing.assert_allclose(one, predicted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("net", ["linen"], indirect=True)
def test_surrogate_gradients_change_no_answer(net):
    model_fn, _, batch = net
    state = nip(**SMALL).fit(new_key(), model_fn, batch)
    x = jnp.round(batch.x)  # on the bounds, where clipping hides gradients
    exact = nip(**SMALL)
    straight = nip(**SMALL, clip_gradient="straight_through")
    soft = nip(**SMALL, choice_gradient="soft")

    def slope(defense):
        fun = lambda z: defense.apply(state, new_key(), model_fn, z)
        logits, pull_back = jax.vjp(fun, x)
        return logits, pull_back(jnp.ones_like(logits))[0]

    logits, own = slope(exact)
    hidden = []
    for other in (straight, soft):
        same, found = slope(other)
        np.testing.assert_array_equal(same, logits)
        hidden.append(found)
        assert jnp.abs(found - own).max() > 1e-4
    assert (own == 0).mean() > 0.2
    assert (hidden[0] == 0).mean() < 0.05


@pytest.mark.slow
@pytest.mark.parametrize("net", ["linen"], indirect=True)
def test_a_soft_choice_among_neighbors_has_another_gradient(net):
    model_fn, _, batch = net
    options = dict(**SMALL, policy="dictionary")
    state = nip(**options).fit(new_key(), model_fn, batch)
    x = jax.random.uniform(jax.random.key(5), (8, SIDE, SIDE, 1))

    def slope(**changes):
        fun = lambda z: nip(**options, **changes).apply(state, new_key(), model_fn, z)
        logits, pull_back = jax.vjp(fun, x)
        return logits, pull_back(jnp.ones_like(logits))[0]

    logits, own = slope()
    same, soft = slope(choice_gradient="soft")
    np.testing.assert_allclose(same, logits, rtol=1e-4, atol=1e-5)
    assert jnp.abs(soft - own).max() > 1e-3


@pytest.mark.parametrize("net", ["linen"], indirect=True)
def test_a_score_without_slope_has_no_nan_in_its_derivative(net):
    model_fn, _, batch = net

    def saturated(x, *, capture=(), taps=None):
        found = model_fn(x, capture=capture, taps=taps)
        return found._replace(logits=1e4 * found.logits)

    plain = dict(class_weight=1.0, front_weight=0.0, tail_weight=0.0, rule="gain")
    defense = nip(**SMALL, **plain, form="per_sample")
    state = defense.fit(new_key(), saturated, batch)
    fun = lambda z: defense.apply(state, new_key(), saturated, z)[:, 0].sum()
    assert bool(jnp.isfinite(jax.grad(fun)(batch.x)).all())


@pytest.mark.parametrize("net", ["linen"], indirect=True)
def test_controls_are_controls_in_every_form(net):
    model_fn, _, batch = net

    def fitted(**changes):
        return nip(**SMALL, **changes).fit(new_key(), model_fn, batch)

    real, drawn = fitted(sets="image"), fitted(sets="image", neurons="random")
    assert jnp.abs(real.directions - drawn.directions).max() > 0.1
    one, other = fitted(policy="pooled"), fitted(policy="pooled", direction="random")
    assert jnp.abs(one.pooled_direction - other.pooled_direction).max() > 0.1


def test_sizes_come_as_numbers_of_any_kind():
    assert NIPOptions(size=[0.1, 0.2]).sizes == (0.1, 0.2)
    assert NIPOptions(size=np.float32(0.5)).sizes == (0.5,)
    hash(NIPOptions(size=[0.1, 0.2]))
    for one in (jnp.float32(0.5), np.array(0.5), jnp.array([0.5]), np.array([0.5])):
        assert NIPOptions(size=one).sizes == (0.5,)
    two = (np.float32(0.25), jnp.float32(0.5))
    for several in (two, np.array(two), jnp.array(two)):
        assert NIPOptions(size=several).sizes == (0.25, 0.5)
        hash(NIPOptions(size=several))


@pytest.mark.parametrize("net", ["linen"], indirect=True)
@pytest.mark.parametrize("form", FORMS)
def test_sizes_are_mapped_over(net, form):
    model_fn, _, batch = net
    whole = dict(layer="hidden", front=np.int64(3), tail=np.int32(2), form=form)
    sizes = jnp.array([0.02, 0.1])

    def answer(size):
        defense = nip(**whole, size=size)
        state = defense.fit(new_key(), model_fn, batch)
        return defense.apply(state, new_key(), model_fn, batch.x)

    one_by_one = jnp.stack([answer(float(size)) for size in sizes])
    got = jax.jit(jax.vmap(answer))(sizes)
    np.testing.assert_allclose(got, one_by_one, rtol=1e-4, atol=1e-5)
    ends = jax.jit(lambda s: answer((s[0], s[1])))(sizes)
    expected = answer(tuple(sizes.tolist()))
    np.testing.assert_allclose(ends, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("policy", "form"),
    [
        pytest.param("dictionary", "universal", marks=pytest.mark.slow),
        ("candidates", "per_sample"),
        pytest.param("candidates", "universal", marks=pytest.mark.slow),
        pytest.param("pooled", "per_sample", marks=pytest.mark.slow),
    ],
)
def test_layers_of_convolutions_and_half_precision(policy, form):
    model = models.from_linen(
        models.small_cnn(stages=((4,),), dense=8, num_classes=2, dtype="bfloat16")
    )
    x = jax.random.uniform(jax.random.key(0), (40, 8, 8, 1))
    params, state = model.init(jax.random.key(1), x[:1])
    middle = model.apply(params, state, x).logits
    params["head"]["bias"] = params["head"]["bias"] + jnp.array(
        [0.0, jnp.median(middle[:, 0] - middle[:, 1])]
    )
    model_fn = models.model_fn(model, params, state)
    batch = Batch(x, model_fn(x).logits.argmax(axis=1))
    defense = nip(
        layer="stage1",
        front=0.25,
        tail=10,
        size=0.05,
        policy=policy,
        form=form,
        nearest_by="layer",
    )
    fitted = defense.fit(new_key(), model_fn, batch)
    assert fitted.dictionary.keys.dtype == jnp.float32
    got = jax.jit(defense.apply)(fitted, new_key(), model_fn, x[:1])
    assert got.shape == (1, 2)
    assert bool(jnp.isfinite(got).all())


@pytest.mark.parametrize("net", ["linen"], indirect=True)
def test_candidates_come_packed(net):
    model_fn, _, batch = net
    for changes in (dict(policy="candidates"), dict(policy="dictionary"), dict(top=2)):
        options = dict(**SMALL, **changes)
        state = nip(**options).fit(new_key(), model_fn, batch)
        packed = nip(**options, answer="candidates").apply(
            state, new_key(), model_fn, batch.x
        )
        found = unpack_candidates(packed)
        expected = nip(**options).apply(state, new_key(), model_fn, batch.x)
        np.testing.assert_allclose(
            attacks.chosen(found), expected, rtol=1e-4, atol=1e-5
        )
        if not changes.get("top"):
            assert 0.1 < float(found.scores.std(axis=1).mean()) < 10


@pytest.mark.parametrize("rule", ["proto", "gain", "conf"])
def test_packed_candidates_settle_on_the_size_of_the_likely_ones(rule):
    first = jax.random.normal(jax.random.key(0), (SIDE * SIDE, WIDTH))
    second = jax.random.normal(jax.random.key(1), (WIDTH, 6))

    def model_fn(x, *, capture=(), taps=None):
        a = jax.nn.relu((x.reshape(x.shape[0], -1) - 0.5) @ first)
        a = a + (taps or {}).get("hidden", 0)
        return ModelOutput(a @ second - middle[None], {"hidden": a}, {})

    x, middle = (
        jax.random.uniform(jax.random.key(2), (300, SIDE, SIDE, 1)),
        jnp.zeros(6),
    )
    middle = model_fn(x).logits.mean(axis=0)  # of every class there are some
    batch = Batch(x, model_fn(x).logits.argmax(axis=1))
    options = dict(layer="hidden", front=2, tail=2, size=(0.02, 0.05, 0.1, 0.2))
    options |= dict(rule=rule, top=2)
    state = nip(**options).fit(new_key(), model_fn, batch)
    whole = nip(**options, answer="candidates")
    packed = jax.jit(whole.apply, static_argnums=2)(state, new_key(), model_fn, x)
    got = attacks.chosen(unpack_candidates(packed))
    apply = jax.jit(nip(**options).apply, static_argnums=2)
    expected = apply(state, new_key(), model_fn, x)
    np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-4)


def test_bad_input_says_so(net):
    model_fn, _, batch = net
    fit = lambda **changes: nip(**{**SMALL, **changes}).fit(new_key(), model_fn, batch)
    with pytest.raises(InputError, match=r"'hiden', but no layer of.*hidden"):
        fit(layer="hiden")
    with pytest.raises(InputError, match="at most the 12 neurons"):
        fit(front=10, tail=3)
    with pytest.raises(InputError, match="no image of class 1 that the model"):
        nip(**SMALL).fit(
            new_key(), model_fn, Batch(batch.x, jnp.where(batch.y == 1, 0, 2))
        )
    with pytest.raises(InputError, match=r"pixels in \[0, 1\], got .* to 255"):
        nip(**SMALL).fit(
            new_key(), model_fn, Batch(batch.x.at[0, 0, 0, 0].set(255), batch.y)
        )
    state = fit()
    apply = nip(**SMALL).apply
    with pytest.raises(InputError, match=r"pixels in \[0, 1\]"):
        apply(state, new_key(), model_fn, batch.x + 1)
    with pytest.raises(InputError, match=r"`layer` names 'hiden'"):
        fit(layer="hiden")
    with pytest.raises(InputError, match="`batch` has no images"):
        nip(**SMALL).fit(new_key(), model_fn, Batch(batch.x[:0], batch.y[:0]))
    one_hot = jax.nn.one_hot(batch.y, CLASSES)
    with pytest.raises(InputError, match=r"`y` must be integer labels \[60\].*argmax"):
        nip(**SMALL).fit(new_key(), model_fn, Batch(batch.x, one_hot))
    larger = jnp.zeros((2, SIDE + 2, SIDE + 2, 1))
    with pytest.raises(InputError, match=r"`state` belongs to images \(4, 4, 1\)"):
        apply(state, new_key(), model_fn, larger)
    for few in (dict(front=0, tail=0), dict(front=0.05, tail=0)):
        with pytest.raises(InputError, match="`front` and `tail` must leave some"):
            fit(**few)
        plain = dict(class_weight=1.0, front_weight=0.0, tail_weight=0.0)
        fit(**few, **plain, rule="gain")
    wide = models.from_linen(models.small_cnn())
    images = jnp.zeros((2, SIDE, SIDE, 1))
    other = models.model_fn(wide, *wide.init(new_key(), images))
    with pytest.raises(InputError, match="`state` belongs to another model: it knows"):
        nip(**{**SMALL, "layer": "features"}).apply(state, new_key(), other, images)
    with pytest.raises(InputError, match="`state` must be what nip's `fit` returned"):
        apply((), new_key(), model_fn, batch.x)
    with pytest.raises(InputError, match="`state` has no dictionary"):
        nip(**SMALL, policy="dictionary").apply(state, new_key(), model_fn, batch.x)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(size=-1.0), "`size` must be"),
        (dict(size=(0.2, 0.1)), "ascending"),
        (dict(size=()), "`size`"),
        (dict(rule="best"), "`rule` must be one of 'proto'"),
        (dict(num_steps=3), "`num_steps` 3 is of images' own"),
        (dict(gap_closing=True, size=(0.1, 0.2)), "`gap_closing` needs one"),
        (dict(direction="random", form="per_sample"), '`direction` "random"'),
        (dict(policy="dictionary", form="per_sample"), '`form` "per_sample" is of'),
        (dict(answer="candidates", rule="avg"), '`answer` "candidates" needs'),
        (dict(top=0), "`top`"),
        (dict(front_weight=-1.0), "`front_weight`"),
        (dict(layer=3), "`layer`"),
        (dict(size=jnp.ones((2, 2))), "`size`"),
        (dict(size=np.array([0.2, 0.1])), "ascending"),
        (dict(size=jnp.float32(-1)), "`size`"),
        (dict(measure="gradient"), "`measure` must be a function.*'gradient'"),
        (dict(output="logit"), "`output` must be a function.*'logit'"),
        (dict(top=2, policy="dictionary"), '`top` 2 is of the policy "candidates"'),
    ],
)
def test_bad_options_say_so(options, message):
    with pytest.raises(InputError, match=message):
        nip(**{**dict(layer="hidden"), **options})


@pytest.fixture(scope="module")
def digits():
    """A net trained on digits, its training images, and test images."""
    model, params, state = trained.small_net()
    splits = data.load("digits")
    split = lambda part, n: Batch(
        jnp.asarray(part.images[:n]), jnp.asarray(part.labels[:n])
    )
    model_fn = models.model_fn(model, params, state)
    test = split(splits.test, 100)
    assert (model_fn(test.x).logits.argmax(1) == test.y).mean() > 0.9
    return model_fn, split(splits.train, 1200), test


def logits_of(model_fn):
    return Partial(lambda model_fn, x: model_fn(x).logits, model_fn)


@pytest.fixture(scope="module")
def x_adv(digits):
    """The test images, attacked without the defense."""
    model_fn, _, test = digits
    attack = attacks.pgd(threats.linf(0.1), step_size=0.01, num_steps=40)
    return jax.jit(attack)(new_key(), logits_of(model_fn), *test)


def test_the_predicted_class_cannot_defend(digits, x_adv):
    model_fn, train, test = digits
    before = model_fn(x_adv).logits.argmax(axis=1)
    assert 0.2 < (before == test.y).mean() < 0.9
    defense = nip(policy="predicted", front=20, tail=20, size=0.05)
    state = defense.fit(new_key(), model_fn, train)
    after = defense.apply(state, new_key(), model_fn, x_adv).argmax(axis=1)
    assert (after != before).mean() <= 0.02


def test_candidates_help_until_somebody_attacks_the_choice(digits, x_adv):
    model_fn, train, test = digits
    threat = threats.linf(0.1)
    defense = nip(front=20, tail=20, size=0.05)
    state = defense.fit(new_key(), model_fn, train)

    def defended(**options):
        apply = nip(front=20, tail=20, size=0.05, **options).apply
        run = functools.partial(_applied, apply)
        return Partial(run, state, model_fn)

    accuracy = lambda f, x: float((f(x).argmax(axis=1) == test.y).mean())
    bare = accuracy(logits_of(model_fn), x_adv)
    assert accuracy(defended(), x_adv) > bare + 0.05
    assert accuracy(defended(), test.x) > 0.9
    adaptive = attacks.selector(threat, step_size=0.02, num_steps=15, num_targets=4)
    view = defended(answer="candidates", clip_gradient="straight_through")
    found = jax.jit(adaptive)(new_key(), view, *test)
    assert float(jnp.abs(found - test.x).max()) <= 0.1 + 1e-6
    right = defended()(found).argmax(axis=1) == test.y
    right &= defended()(x_adv).argmax(axis=1) == test.y
    assert float(right.mean()) < bare + 0.05


def _applied(apply, state, model_fn, x):
    return apply(state, new_key(), model_fn, x)


def test_random_sets_and_directions_are_as_large_as_the_real_ones(digits):
    model_fn, train, _ = digits
    real = nip(front=20, tail=20).fit(new_key(), model_fn, train)
    sets = nip(front=20, tail=20, neurons="random").fit(new_key(), model_fn, train)
    ways = nip(front=20, tail=20, direction="random").fit(new_key(), model_fn, train)
    size = lambda state: jnp.sqrt((state.directions**2).mean(axis=(1, 2, 3)))
    for state in (real, sets, ways):
        np.testing.assert_allclose(size(state), 1, rtol=1e-3)
        np.testing.assert_array_equal((state.masks == 1).sum(axis=1), 20)
    np.testing.assert_array_equal(ways.masks, real.masks)
    assert (sets.masks != real.masks).any()


@pytest.mark.parametrize("net", ["linen"], indirect=True)
def test_shapley_values_can_be_the_measure(net):
    model_fn, _, batch = net

    def measure(model_fn, x, y, *, layer, output):
        return influence.shapley(
            new_key(), model_fn, x, y, layer=layer, output=output, num_permutations=5
        ).value

    state = nip(**SMALL, measure=measure).fit(new_key(), model_fn, batch)
    usual = nip(**SMALL).fit(new_key(), model_fn, batch)
    assert (state.masks == usual.masks).mean() > 0.8
