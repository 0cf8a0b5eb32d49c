"""Heads, the classifiers made of them, and the choice of templates."""

import chex
import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import strategies as st

from robustjax import InputError, attacks, models, objectives, threats
from robustjax.interpolation import (
    Similarity,
    among,
    draw_templates,
    embed,
    interpolate,
    interpolate_singly,
    interpolated_logits_fn,
    kernel_regression,
    make_template,
    nearest_neighbors,
    quartic,
    stack_templates,
    wnll,
    wnll_released,
)
from robustjax.types import is_transductive

RNG = np.random.default_rng(0)
POINTS = RNG.normal(size=(90, 16))
LABELS = jnp.asarray(np.concatenate([np.arange(4), RNG.integers(0, 4, 56)]))
SHORT = Similarity(num_neighbors=5, bandwidth_rank=3)
EVERYONE = jnp.ones(30, bool)


@pytest.fixture
def float64():
    with jax.enable_x64(True):
        yield


def template_of(points=POINTS, likeness=SHORT, labels=LABELS):
    return make_template(jnp.asarray(points[:60]), labels, likeness)


# --- one query at a time --------------------------------------------------------------


def each_alone(queries, template, gamma):
    run = lambda query: interpolate(query[None], template, 4, template_weight=gamma)[0]
    return jax.vmap(run)(queries)


@pytest.mark.parametrize(
    ("likeness", "gamma"),
    [
        (Similarity(), "paper"),
        (SHORT, "released"),
        (SHORT, 0.0),
        (Similarity(5, 3, include_self=False), "paper"),
        (Similarity(5, 1, include_self=False, kernel=quartic), "released_floor"),
        (Similarity(2, 2), "paper"),
        (Similarity(15, 8, bandwidth=4.0), "paper"),
        (Similarity(None, 8), "paper"),
        (Similarity(None, 8, include_self=False), "released"),
    ],
    ids=lambda it: getattr(it, "num_neighbors", it),
)
def test_single_queries_are_batches_of_one(float64, likeness, gamma):
    template, queries = template_of(likeness=likeness), jnp.asarray(POINTS[60:])
    singly = lambda z: interpolate_singly(z, template, 4, template_weight=gamma)[0]
    alone = lambda z: each_alone(z, template, gamma)
    value = lambda run: lambda z: (jnp.log(run(z)[:, 1]).sum(), run(z))
    for run in (singly, alone):
        slope, scores = jax.jit(jax.grad(value(run), has_aux=True))(queries)
        if run is singly:
            expected = slope, scores
    chex.assert_trees_all_close((slope, scores), expected, rtol=1e-9, atol=1e-9)


def test_single_queries_that_coincide_with_templates():
    template = template_of(np.float32(POINTS))
    queries = jnp.float32(np.concatenate([POINTS[40:60], POINTS[60:70]]))
    run = jax.jit(lambda z: interpolate_singly(z, template, 4))
    scores, reached = run(queries)
    assert bool(reached.all())
    expected = jax.jit(lambda z: each_alone(z, template, "paper"))(queries)
    np.testing.assert_allclose(scores, expected, atol=1e-5)
    # With the bandwidth of so near a neighbour, rounding would weigh exp(-1).
    near = template_of(np.float32(POINTS), Similarity(6, 2))
    scores, _ = jax.jit(lambda z: interpolate_singly(z, near, 4))(queries)
    expected = jax.jit(lambda z: each_alone(z, near, "paper"))(queries)
    np.testing.assert_allclose(scores, expected, atol=1e-5)
    # All points the same: every template weighs 1, none prefers the query.
    same = make_template(jnp.zeros((60, 2)), LABELS, SHORT)
    scores, reached = interpolate_singly(jnp.zeros((1, 2)), same, 4)
    expected = interpolate(jnp.zeros((1, 2)), same, 4)
    np.testing.assert_allclose(scores, expected, atol=1e-6)
    assert bool(reached.all())


def test_the_single_query_by_hand(float64):
    template = make_template(
        jnp.array([[0.0], [1.0]]), jnp.array([0, 1]), Similarity(None, bandwidth=1.0)
    )
    scores, _ = interpolate_singly(jnp.array([[0.3]]), template, 2)
    np.testing.assert_allclose(scores, [[0.5986876601, 0.4013123399]], atol=1e-10)


# --- heads ----------------------------------------------------------------------------


def test_the_head_is_the_logarithm_of_the_scores():
    template, queries = template_of(np.float32(POINTS)), jnp.float32(POINTS[60:])
    scores = interpolate(queries, template, 4)
    head = wnll(template, 4)
    np.testing.assert_allclose(jnp.exp(head(queries, EVERYONE)), scores, atol=1e-6)
    released = wnll_released(template, 4, template_weight="paper")
    np.testing.assert_allclose(released(queries, EVERYONE), scores, atol=1e-7)
    single = wnll(template, 4, queries="single")
    alone = interpolate_singly(queries, template, 4)[0]
    np.testing.assert_allclose(jnp.exp(single(queries, EVERYONE)), alone, atol=1e-6)
    assert [is_transductive(h) for h in (head, single, released)] == [True, False, True]


def test_gradients_are_finite_where_scores_are_zero():
    """1 / tiny times a derivative above 4 would be infinite, and times 0 no number."""
    points = np.float32(np.concatenate([POINTS[:30] + 50, POINTS[30:60] - 50]))
    labels = jnp.asarray(np.repeat([0, 1, 2, 3], [15, 15, 15, 15]))
    template = make_template(jnp.asarray(points), labels, SHORT)
    queries = jnp.float32(np.concatenate([POINTS[60:75] + 50, POINTS[75:] - 50]))
    y = jnp.arange(30) % 4
    for head in (
        wnll(template, 4, queries="single"),
        wnll(template, 4),
        kernel_regression(template, 4),
    ):
        assert (jnp.exp(head(queries, EVERYONE)) == 0).any()
        for objective in (objectives.dlr, objectives.margin, objectives.cross_entropy):
            loss = lambda z: 100 * objective(head(z, EVERYONE), y).sum()  # noqa: B023
            assert np.isfinite(jax.jit(jax.grad(loss))(queries)).all()


def test_features_that_are_no_numbers_have_no_answer():
    template = template_of(np.float32(POINTS))
    queries = jnp.float32(POINTS[60:]).at[3, 2].set(jnp.nan)
    for head in (wnll(template, 4, queries="single"), nearest_neighbors(template, 4)):
        answer = jax.jit(head)(queries, EVERYONE)
        wrong = np.isnan(answer).any(axis=1)
        assert wrong.tolist() == [i == 3 for i in range(30)]


def test_padding_rows_do_not_exist_for_a_head():
    template, queries = template_of(np.float32(POINTS)), jnp.float32(POINTS[60:])
    head = wnll(template, 4)
    padded = jnp.concatenate([queries, queries[:3]])
    scores = head(padded, jnp.arange(33) < 30)
    np.testing.assert_allclose(scores[:30], head(queries, EVERYONE), atol=1e-5)


def test_a_head_of_stacked_templates_averages(float64):
    rows = draw_templates(jax.random.key(0), LABELS, 20, num_sets=3, disjoint=True)
    known, queries = jnp.asarray(POINTS[:60]), jnp.asarray(POINTS[60:])
    sets = [make_template(known[r], LABELS[r], SHORT) for r in rows]
    each = jnp.stack([interpolate(queries, t, 4) for t in sets])
    stacked = stack_templates(sets)
    mean = wnll(stacked, 4)(queries, EVERYONE)
    np.testing.assert_allclose(jnp.exp(mean), each.mean(axis=0), atol=1e-12)
    draws = wnll(stacked, 4, average="draws")(queries, EVERYONE)
    np.testing.assert_allclose(jnp.exp(draws), each, atol=1e-12)
    with pytest.raises(InputError, match="one size"):
        stack_templates([sets[0], template_of()])
    with pytest.raises(InputError, match="at least one"):
        stack_templates([])


def test_unreachable_rows_hold_the_shares_or_nan():
    template = template_of(np.float32(POINTS))
    far = jnp.float32(1e3 + RNG.normal(size=(8, 16)))
    queries = jnp.concatenate([jnp.float32(POINTS[60:64]), far])
    valid = jnp.ones(12, bool)
    shares = wnll(template, 4)(queries, valid)
    np.testing.assert_allclose(
        jnp.exp(shares[4:]), np.tile(np.bincount(LABELS) / 60, (8, 1)), atol=1e-6
    )
    flagged = wnll(template, 4, unreachable="nan")(queries, valid)
    assert np.isnan(flagged).any(axis=1).tolist() == 4 * [False] + 8 * [True]


@pytest.mark.parametrize("include_self", [True, False])
def test_controls_are_what_they_say(float64, include_self):
    likeness = Similarity(6, 3, include_self)
    template, queries = template_of(likeness=likeness), jnp.asarray(POINTS[60:])
    square = ((POINTS[60:, None] - POINTS[None, :60]) ** 2).sum(axis=-1)
    order = np.argsort(square, axis=1)[:, : 6 - include_self]
    votes = np.eye(4)[np.asarray(LABELS)[order]]
    shares = jnp.exp(nearest_neighbors(template, 4)(queries, EVERYONE))
    np.testing.assert_allclose(shares, votes.mean(axis=1), atol=1e-12)
    near = np.take_along_axis(square, order, axis=1)
    width = near[:, [2 - include_self]]
    weight = np.exp(-near / width)[:, :, None]
    expected = (weight * votes).sum(axis=1) / weight.sum(axis=1)
    smooth = jnp.exp(kernel_regression(template, 4)(queries, EVERYONE))
    np.testing.assert_allclose(smooth, expected, atol=1e-12)


def test_among_companions(float64):
    template = template_of()
    rows, others = jnp.asarray(POINTS[60:65]), jnp.asarray(POINTS[65:])
    head = wnll(template, 4)
    answers = jax.jit(among(head, others))(rows, EVERYONE[:5])
    assert not is_transductive(among(head, others))
    together = jax.jit(lambda batch: head(batch, jnp.ones(26, bool)))
    for row, answer in zip(rows, answers, strict=True):
        expected = together(jnp.concatenate([row[None], others]))[0]
        np.testing.assert_allclose(answer, expected, atol=1e-12)
    stacked = stack_templates([template, template])
    several = among(wnll(stacked, 4, average="draws"), others)
    draws = jax.jit(several)(rows, EVERYONE[:5])
    np.testing.assert_allclose(draws, np.stack([answers, answers]), atol=1e-12)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(queries="one"), r"`queries` must be one of.*'one'"),
        (dict(unreachable="zero"), r"`unreachable` must be one of.*'zero'"),
        (dict(average="sum"), r"`average` must be one of.*'sum'"),
        (dict(num_classes=0), r"`num_classes` must be"),
        (dict(num_classes=5), r"`template` must hold every class, has none of 4"),
        (dict(num_classes=3), r"`template\.labels` must lie in \[0, 3\).*got 3"),
    ],
)
def test_bad_heads_are_one_line(options, message):
    with pytest.raises(InputError, match=message):
        wnll(template_of(np.float32(POINTS)), **{"num_classes": 4, **options})


# --- classifiers ----------------------------------------------------------------------

MODEL = models.from_linen(models.small_cnn(num_classes=4, stages=((4,),), dense=8))
IMAGES = jnp.asarray(RNG.uniform(size=(72, 6, 6, 1)), jnp.float32)
CLASSES = jnp.asarray(RNG.integers(0, 4, 12))


def classifier_of(weights, gradient="exact", head=wnll, **options):
    features = embed(MODEL, *weights, IMAGES[:60], batch_size=25)
    template = make_template(features, LABELS, SHORT)
    return interpolated_logits_fn(
        MODEL, *weights, head(template, 4, **options), gradient=gradient
    )


@pytest.fixture(scope="module")
def weights():
    return MODEL.init(jax.random.key(0), IMAGES[:1])


def test_features_in_blocks_are_those_of_one_pass(weights):
    whole = MODEL.apply(*weights, IMAGES, capture=("features",)).features["features"]
    np.testing.assert_allclose(
        embed(MODEL, *weights, IMAGES, batch_size=25), whole, atol=1e-6
    )


def test_cross_entropy_is_the_logarithm_of_the_score(weights):
    fun = classifier_of(weights)
    logits = jax.jit(fun)(IMAGES[60:])
    np.testing.assert_allclose(jnp.exp(logits).sum(axis=1), 1, atol=1e-5)
    own = -np.asarray(logits)[np.arange(12), CLASSES]
    loss = objectives.cross_entropy(logits, CLASSES)
    np.testing.assert_allclose(loss, own, rtol=1e-4, atol=1e-5)
    assert is_transductive(fun)
    assert not is_transductive(classifier_of(weights, queries="single"))


def test_the_released_gradient_is_that_of_its_formula(weights):
    fun = classifier_of(weights, "straight_through", wnll_released)
    params, model_state = weights
    x = IMAGES[60:]

    def loss(z):
        return objectives.cross_entropy(fun(z), CLASSES).mean()

    def feature(z):
        return MODEL.apply(params, model_state, z, capture=("features",)).features[
            "features"
        ]

    _, pull_back = jax.vjp(feature, x)
    scores = fun(x)
    assert 0 <= scores.min() <= scores.max() <= 1
    residual = jax.nn.softmax(scores) - jax.nn.one_hot(CLASSES, 4)
    expected = pull_back(residual @ params["head"]["kernel"].T / 12)[0]
    np.testing.assert_allclose(jax.grad(loss)(x), expected, atol=1e-7)


def test_surrogates_change_gradients_and_no_values(weights):
    x = IMAGES[60:]
    exact, straight = classifier_of(weights), classifier_of(weights, "straight_through")
    linear = models.logits_fn(MODEL, *weights)
    given = classifier_of(weights, linear)
    value = lambda f, z: objectives.margin(f(z), CLASSES).sum()
    slope = jax.jit(lambda f: jax.grad(lambda z: value(f, z))(x))
    answers = jax.jit(lambda f: f(x))
    for other in (straight, given):
        np.testing.assert_array_equal(answers(other), answers(exact))
    np.testing.assert_allclose(slope(given), slope(straight), atol=1e-6)
    assert np.abs(slope(exact) - slope(straight)).max() > 1e-3
    with pytest.raises(InputError, match="`gradient` must be one of"):
        classifier_of(weights, "none")


@pytest.mark.parametrize("queries", ["batch", "single"])
def test_exact_gradients_are_those_of_the_head_through_the_model(weights, queries):
    x = IMAGES[60:]
    template = make_template(embed(MODEL, *weights, IMAGES[:60]), LABELS, SHORT)
    head = wnll(template, 4, queries=queries)
    fun = classifier_of(weights, queries=queries)

    def feature(z):
        return MODEL.apply(*weights, z, capture=("features",)).features["features"]

    features, pull_back = jax.vjp(feature, x)
    loss = lambda logits: objectives.cross_entropy(logits, CLASSES).sum()
    slope = jax.grad(lambda z: loss(head(z, EVERYONE[:12])))(features)
    expected = pull_back(slope)[0]
    assert np.abs(expected).max() > 1e-3
    exact = jax.grad(lambda z: loss(fun(z)))(x)
    np.testing.assert_allclose(exact, expected, rtol=1e-4, atol=1e-5)


def test_attacks_climb_the_exact_gradient_and_trace_once(weights):
    attack = attacks.pgd(threats.linf(0.1), step_size=0.02, num_steps=10)
    x, y = IMAGES[60:], CLASSES
    run = jax.jit(
        chex.assert_max_traces(lambda f, x: attack(jax.random.key(0), f, x, y), n=1)
    )
    fun = classifier_of(weights, queries="single")
    x_adv = run(fun, x)
    before, after = (objectives.cross_entropy(fun(z), y) for z in (x, x_adv))
    assert (after > before)[before < 80].mean() > 0.8  # others are at log(tiny)
    other = jax.tree.map(lambda a: 0.9 * a, weights)
    run(classifier_of(other, queries="single"), x)  # other weights, same code
    stacked = stack_templates(
        [
            make_template(embed(MODEL, *weights, IMAGES[:60])[r], LABELS[r], SHORT)
            for r in draw_templates(jax.random.key(1), LABELS, 30, num_sets=3)
        ]
    )
    head = wnll(stacked, 4, queries="single", average="draws")
    draws = interpolated_logits_fn(MODEL, *weights, head)
    assert draws(x).shape == (3, 12, 4)
    x_adv = attack(jax.random.key(0), draws, x, y)
    loss = lambda z: jax.vmap(lambda d: objectives.cross_entropy(d, y))(draws(z)).mean()
    assert loss(x_adv) > loss(x)


# --- templates ------------------------------------------------------------------------


@hypothesis.given(seed=st.integers(0, 99), balanced=st.booleans())
@hypothesis.settings(max_examples=20)
def test_draws_hold_every_image_at_most_once(seed, balanced):
    labels = jnp.asarray(np.random.default_rng(seed).integers(0, 4, 60))
    key = jax.random.key(seed)
    rows = draw_templates(key, labels, 24, num_sets=3, balanced=balanced)
    for row in rows:
        assert len(set(row.tolist())) == 24
    assert rows[0].tolist() != rows[1].tolist()
    whole = draw_templates(key, labels, 20, num_sets=3, disjoint=True)
    assert sorted(whole.ravel().tolist()) == list(range(60))


def test_balanced_draws_take_the_same_of_every_class():
    labels = jnp.asarray([0] * 50 + [1] * 6 + [2] * 4)
    for sets in (dict(num_sets=2), dict(num_sets=2, disjoint=True)):
        rows = draw_templates(jax.random.key(0), labels, 6, balanced=True, **sets)
        for row in rows:
            assert np.bincount(labels[row], minlength=3).tolist() == [2, 2, 2]
    rest = draw_templates(jax.random.key(0), labels, 30, balanced=True)[0]
    assert np.bincount(labels[rest]).tolist() == [20, 6, 4]


def test_too_many_templates_are_one_line():
    with pytest.raises(InputError, match=r"at most 60.*61"):
        draw_templates(jax.random.key(0), LABELS, 61)
    with pytest.raises(InputError, match=r"at most 60.*80"):
        draw_templates(jax.random.key(0), LABELS, 40, num_sets=2, disjoint=True)
