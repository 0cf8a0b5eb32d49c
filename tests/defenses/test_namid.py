"""NAMID's losses against NumPy, and what their gradients reach."""

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from robustjax import InputError, attacks, defenses, information, models, threats
from robustjax.defenses import critics, namid, wmim, wmim_critic
from robustjax.defenses._information import batch_cosine, place_cosine
from robustjax.defenses.critics import (
    maximisation,
    separation,
    separation_released,
)
from robustjax.types import AdversarialLoss, Batch, Model, ModelOutput

B, K, UNITS = 8, 3, 6
SHAPE = (8, 8, 1)
ESTIMATOR = models.mi_estimator(
    models.LocalCritic(UNITS, widths=(3, 4)), models.GlobalCritic(UNITS)
)
RNG = np.random.default_rng(0)


@pytest.fixture(autouse=True)
def float64():
    with jax.enable_x64(True):
        yield


def _linear_apply(params, model_state, x, *, mode="eval", **_):
    """A linear classifier that counts its passes in train mode."""
    logits = x.reshape(x.shape[0], -1) @ params["w"]
    passes = model_state["passes"] + (mode == "train")
    return ModelOutput(logits, {}, {"passes": passes})


def _linear_init(key, x):
    return {"w": jax.random.normal(key, (x[0].size, K))}, {"passes": jnp.zeros(())}


LINEAR = Model(_linear_init, _linear_apply)
MODEL, REFERENCE = models.part(LINEAR, "model"), models.part(LINEAR, "reference")


def shift(key, logits_fn, x, y):
    """An attack that fools some images and not others."""
    del key, logits_fn
    rng = np.random.default_rng(3)
    delta = rng.normal(size=SHAPE) * 0.9 * (1 + np.arange(B).reshape(B, 1, 1, 1)) / B
    return x + jnp.asarray(delta, x.dtype)


X = RNG.normal(size=(B, *SHAPE))


@functools.cache
def weights(names=("natural", "adversarial", "standard")):
    """Of all parts, and labels of which the model has most right; float64."""
    with jax.enable_x64(True):
        x = jnp.asarray(X)
        params, state = {}, {}
        for number, name in enumerate(("model", "reference")):
            params[name], state[name] = LINEAR.init(jax.random.key(number), x)
            params[name] = jax.tree.map(lambda a: a.astype(float), params[name])
        for number, name in enumerate(names):
            z = jnp.ones((2, K))
            params[name], state[name] = ESTIMATOR.init(jax.random.key(9 + number), x, z)
        rows = X.reshape(B, -1)
        y = (rows @ np.asarray(params["model"]["w"])).argmax(1)
        y[0] = (y[0] + 1) % K  # one is wrong on x
        return jax.tree.map(np.asarray, (params, state)), y


def dv(local, glob):
    """-l of the released code, sample by sample, place by place: [N, L]."""
    count = len(local)
    u = np.einsum("iu,jul->ijl", glob[:, :, 0], local)
    table = np.zeros((count, u.shape[2]))
    for i in range(count):
        others = sum(np.exp(u[i, j]) for j in range(count) if j != i)
        table[i] = u[i, i] - np.log((1 + others) / (count - 1))
    return table


def four(params, state, x, x_adv, z, z_adv, mode):
    """a, b, c, d by place, from the critics' own features."""
    found = []
    for name, sample in (("natural", x), ("adversarial", x_adv - x)):
        for logits in (z, z_adv):
            given = (params[name], state[name], jnp.asarray(sample))
            features = ESTIMATOR.features(*given, jnp.asarray(logits), mode=mode)
            found.append(-dv(*map(np.asarray, features[:2])))
    return found


def predicted(z, predictor):
    if predictor == "batch_softmax":
        z = z - np.log(np.exp(z).sum(axis=0, keepdims=True))
    return z.argmax(axis=1)


def cosine(v, w):
    return v @ w / (np.linalg.norm(v) * np.linalg.norm(w))


def setting(name="model", predictor="argmax"):
    (params, state), y = weights()
    x_adv = np.asarray(shift(None, None, jnp.asarray(X), None))
    w = params[name]["w"]
    z, z_adv = X.reshape(B, -1) @ w, x_adv.reshape(B, -1) @ w
    if predictor == "batch_softmax":
        y = predicted(z, predictor)
    right = predicted(z, predictor) == y
    survives = predicted(z_adv, predictor) == y
    return params, state, y, x_adv, z, z_adv, right, right & ~survives, right & survives


def cross_entropy(z, y):
    return np.mean(np.log(np.exp(z).sum(axis=1)) - z[np.arange(len(z)), y])


@functools.cache
def compiled(loss_fn):
    """Once for all tests that call the same loss: `target` and `pair` keep theirs."""
    return jax.jit(jax.value_and_grad(loss_fn, has_aux=True))


def call(loss_fn, y=None):
    """The loss in float64, its metrics, new state and gradient."""
    (params, state), labels = weights()
    with jax.enable_x64(True):
        given = jax.tree.map(jnp.asarray, (params, state))
        batch = Batch(jnp.asarray(X), jnp.asarray(labels if y is None else y))
        run = compiled(loss_fn)
        (value, aux), slope = run(*given, jax.random.key(0), batch)
    return float(value), aux, slope


BASE = defenses.adversarial(MODEL, shift)


@functools.cache
def target(**options):
    return namid(MODEL, BASE, ESTIMATOR, ESTIMATOR, **options)


@functools.cache
def pair(**options):
    return critics(REFERENCE, shift, ESTIMATOR, ESTIMATOR, **options)


@pytest.mark.parametrize(
    ("cosine_of", "predictor"),
    [
        ("batch", "argmax"),
        ("batch", "batch_softmax"),
        ("places", "argmax"),
        # The two options meet nowhere in the code.
        pytest.param("places", "batch_softmax", marks=pytest.mark.slow),
    ],
)
def test_the_target_loss(cosine_of, predictor):
    params, state, y, x_adv, z, z_adv, _, fooled, _ = setting(predictor=predictor)
    assert 0 < fooled.sum() < B
    a, b, c, d = four(params, state, X, x_adv, z, z_adv, "eval")
    if cosine_of == "places":
        rows = np.flatnonzero(fooled)
        apart = lambda v, w: abs(1 - np.mean([cosine(v[i], w[i]) for i in rows]))
    else:
        apart = lambda v, w: abs(1 - cosine(v.mean(1)[fooled], w.mean(1)[fooled]))
    gap = np.mean(b[fooled].mean(1) - d[fooled].mean(1))
    expected = cross_entropy(z_adv, y) + 3.0 * (apart(a, b) + apart(c, d) + 0.2 * gap)
    loss_fn = target(
        alpha=3.0, information_weight=0.2, cosine=cosine_of, predictor=predictor
    )
    value, aux, slope = call(loss_fn, y=y)
    np.testing.assert_allclose(value, expected, rtol=1e-7)
    np.testing.assert_allclose(aux.metrics["share/fooled"], fooled.mean())
    np.testing.assert_allclose(aux.metrics["information/natural_adv"], -b.mean())
    assert np.abs(slope["model"]["w"]).max() > 0
    for name in ("natural", "adversarial", "reference"):
        assert all(not np.any(leaf) for leaf in jax.tree.leaves(slope[name]))
    kept = jax.tree.map(np.array_equal, aux.model_state["natural"], state["natural"])
    assert all(jax.tree.leaves(kept))


def test_ablations_and_bases():
    params, state, y, x_adv, z, z_adv, _, fooled, _ = setting()
    a, b, c, d = (v.mean(1) for v in four(params, state, X, x_adv, z, z_adv, "eval"))
    plain = cross_entropy(z_adv, y)
    natural = abs(1 - cosine(a[fooled], b[fooled])) + 0.1 * b[fooled].mean()
    adversarial = abs(1 - cosine(c[fooled], d[fooled])) - 0.1 * d[fooled].mean()
    for options, expected in (
        (dict(adversarial_weight=0.0), plain + 5 * natural),
        (dict(natural_weight=0.0), plain + 5 * adversarial),
        (dict(alpha=0.0), plain),
    ):
        np.testing.assert_allclose(call(target(**options))[0], expected, rtol=1e-7)
    for factory in (defenses.trades, defenses.mart):
        base = factory(MODEL, shift)
        found, aux, _ = call(namid(MODEL, base, ESTIMATOR, ESTIMATOR))
        alone, _, _ = call(base)
        expected = alone + 5 * (natural + adversarial)
        np.testing.assert_allclose(found, expected, rtol=1e-7)
        assert "loss/kl" in aux.metrics


def test_no_gradient_runs_through_the_attack():
    attack = attacks.pgd(
        threats.linf(0.5, bounds=(-9.0, 9.0)),
        step_size=0.2,
        num_steps=3,
        random_start=None,
    )
    (params, state), labels = weights()
    given = jax.tree.map(jnp.asarray, (params, state))
    x_adv = attack(
        jax.random.key(0),
        lambda x: LINEAR.apply(given[0]["model"], given[1]["model"], x).logits,
        jnp.asarray(X),
        jnp.asarray(labels),
    )
    losses = [
        namid(MODEL, defenses.adversarial(MODEL, own), ESTIMATOR, ESTIMATOR)
        for own in (attack, lambda *_: x_adv)
    ]
    (value, aux, slope), (same, _, expected) = map(call, losses)
    assert 0 < aux.metrics["share/fooled"] < 1
    np.testing.assert_allclose(value, same, rtol=1e-9)
    np.testing.assert_allclose(slope["model"]["w"], expected["model"]["w"], rtol=1e-7)


def _deep_apply(params, model_state, x, *, capture=(), **rest):
    """The linear classifier with a layer inside: the image, as it came."""
    out = _linear_apply(params, model_state, x, **rest)
    return out._replace(features=dict.fromkeys(capture, 2.0 * x))


def test_critics_may_see_a_layer():
    deep = models.part(Model(_linear_init, _deep_apply), "model")
    reference = models.part(Model(_linear_init, _deep_apply), "reference")
    inner = models.layer_critic(UNITS, layer="stage", depth=3, widths=(3, 4))
    assert inner.layer == "stage"
    (params, state), labels = weights()
    params, state = dict(params), dict(state)
    x = jnp.asarray(X)
    for name in ("natural", "adversarial", "standard"):
        params[name], state[name] = inner.init(jax.random.key(7), x, 2.0 * x)
    x_adv = shift(None, None, x, None)
    local, glob, _ = inner.features(params["natural"], state["natural"], x, 2.0 * x_adv)
    expected = information.estimates(information.dv(), local, glob).mean()
    batch = Batch(x, jnp.asarray(labels))
    losses = (
        namid(deep, defenses.adversarial(deep, shift), inner, inner),
        critics(reference, shift, inner, inner),
        wmim(deep, defenses.adversarial(deep, shift), inner),
        wmim_critic(reference, shift, inner),
    )
    for number, loss_fn in enumerate(losses):
        value, aux = jax.jit(loss_fn)(params, state, jax.random.key(0), batch)
        assert jnp.isfinite(value)
        if number == 0:
            found = aux.metrics["information/natural_adv"]
            np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_nothing_selected_is_the_base_alone():
    z_adv = setting()[5]
    y = z_adv.argmax(1)  # nobody is fooled
    value, _, slope = call(target(), y=y)
    alone, _, expected = call(BASE, y=y)
    np.testing.assert_allclose(value, alone, rtol=1e-12)
    np.testing.assert_allclose(slope["model"]["w"], expected["model"]["w"], rtol=1e-9)


@pytest.mark.parametrize(
    ("statistics", "passes"), [("adversarial", 1), ("both", 2), ("released", 7)]
)
def test_forward_passes_that_move_statistics(statistics, passes):
    default, _, _ = call(target())
    value, aux, _ = call(target(statistics=statistics))
    np.testing.assert_allclose(value, default, rtol=1e-12)
    assert aux.model_state["model"]["passes"] == passes


def reference_critics(objective):
    params, state, y, x_adv, z, z_adv, right, fooled, survived = setting("reference")
    wrong = z_adv.argmax(1) != y
    given = four(params, state, X, x_adv, z, z_adv, "train")
    a, b, c, d = (v.mean(1) for v in given)
    if objective == "maximise":
        return a.mean(), d.mean()
    if objective == "maximise_released":
        return a[right].mean(), d[wrong].mean()
    if objective == "separate":
        return (a - b)[fooled].mean(), (d - c)[fooled].mean()
    one = 5 * abs(cosine(a[fooled], b[fooled])) + a[fooled].sum() / right.sum()
    two = 5 * abs(1 - cosine(a[survived], b[survived]))
    two += a[survived].sum() / right.sum()
    three = 5 * abs(cosine(d[fooled], c[fooled])) + d[fooled].mean()
    four_ = 8 * abs(1 - cosine(c[survived], d[survived])) - 0.1 * d[survived].mean()
    return one + 0.5 * two, three + 0.5 * four_


@pytest.fixture
def right_reference(monkeypatch):
    """Labels that the reference network mostly gets right."""
    (params, state), _ = weights()
    y = (X.reshape(B, -1) @ params["reference"]["w"]).argmax(1)
    y[0] = (y[0] + 1) % K
    monkeypatch.setitem(globals(), "weights", lambda: ((params, state), y))


OBJECTIVES = {
    "released": separation_released(),
    "separate": separation(),
    "maximise": maximisation(),
    "maximise_released": maximisation(selection="released"),
}


@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.usefixtures("right_reference")
def test_critics_losses(objective):
    *_, fooled, survived = setting("reference")
    assert fooled.sum() > 1
    assert survived.sum() > 1
    expected = reference_critics(objective)
    loss_fn = pair(objective=OBJECTIVES[objective])
    value, aux, slope = call(loss_fn)
    np.testing.assert_allclose(aux.metrics["loss/natural"], expected[0], rtol=1e-7)
    np.testing.assert_allclose(aux.metrics["loss/adversarial"], expected[1], rtol=1e-7)
    np.testing.assert_allclose(value, sum(expected), rtol=1e-7)
    assert not np.any(slope["reference"]["w"])
    assert aux.model_state["reference"]["passes"] == 0
    before = weights()[0][1]
    for name in ("natural", "adversarial"):
        assert np.abs(slope[name]["local"]["conv1"]["kernel"]).max() > 0
        moved = aux.model_state[name]["global"]["batch_stats"]["head"]["norm1"]["mean"]
        old = before[name]["global"]["batch_stats"]["head"]["norm1"]["mean"]
        assert np.abs(moved - old).max() > 0


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_critics_without_anything_selected(objective):
    (params, _), _ = weights()
    z = X.reshape(B, -1) @ params["reference"]["w"]
    loss_fn = pair(objective=OBJECTIVES[objective])
    value, aux, slope = call(loss_fn, y=z.argmin(axis=1))  # nothing is right on x
    assert math.isfinite(value)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(slope))
    if objective == "released":
        plain = -aux.metrics["information/natural_clean"]
        np.testing.assert_allclose(aux.metrics["loss/natural"], plain)


def test_wmim():
    params, state, y, x_adv, _, z_adv, *_ = setting()

    def standard(logits, mode):
        given = (params["standard"], state["standard"], jnp.asarray(x_adv))
        features = ESTIMATOR.features(*given, jnp.asarray(logits), mode=mode)
        return dv(*map(np.asarray, features[:2])).mean()

    frozen = standard(z_adv, "eval")
    z_reference = x_adv.reshape(B, -1) @ params["reference"]["w"]
    learning = standard(z_reference, "train")
    value, _, slope = call(wmim(MODEL, BASE, ESTIMATOR, weight=0.5))
    np.testing.assert_allclose(value, cross_entropy(z_adv, y) - 0.5 * frozen, rtol=1e-6)
    assert not any(map(np.any, jax.tree.leaves(slope["standard"])))
    value, _, slope = call(wmim_critic(REFERENCE, shift, ESTIMATOR))
    np.testing.assert_allclose(value, -learning, rtol=1e-6)
    assert np.any(slope["standard"]["global"]["head"]["conv1"]["kernel"])
    assert not np.any(slope["reference"]["w"])


def test_cosines_of_nothing_are_safe():
    zeros, some = jnp.zeros(4), jnp.arange(4.0)
    for mask in (jnp.zeros(4, bool), jnp.ones(4, bool)):
        value, slope = jax.value_and_grad(batch_cosine)(zeros, some, mask)
        assert value == 0
        assert np.isfinite(slope).all()
    both = jnp.stack([some, some])
    one = place_cosine(both, 2 * both, jnp.array([True, False]))
    assert float(one) == pytest.approx(1)
    assert float(place_cosine(both, both, jnp.zeros(2, bool))) == 0


def test_two_images_of_one_class():
    (params, state), _ = weights()
    cut = lambda tree: jax.tree.map(lambda a: jnp.asarray(a, jnp.float32), tree)
    batch = Batch(jnp.float32(X[:2]), jnp.zeros(2, jnp.int32))
    attack = attacks.pgd(threats.linf(0.3), step_size=0.1, num_steps=2)
    base = defenses.adversarial(MODEL, attack)
    for loss_fn in (
        namid(MODEL, base, ESTIMATOR, ESTIMATOR),
        critics(REFERENCE, attack, ESTIMATOR, ESTIMATOR),
    ):
        both = jax.jit(jax.value_and_grad(loss_fn, has_aux=True))
        (value, _), slope = both(cut(params), cut(state), jax.random.key(0), batch)
        assert np.isfinite(value)
        assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(slope))


ANY: Any = "wrong"
POOLED = information.donsker_varadhan()
NO_TERMS = AdversarialLoss(BASE.craft, BASE.objective)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: target(alpha=-1.0), "alpha"),
        (lambda: target(cosine=ANY), "cosine"),
        (lambda: target(predictor=ANY), "predictor"),
        (lambda: target(statistics=ANY), "statistics"),
        (lambda: namid(MODEL, NO_TERMS, ESTIMATOR, ESTIMATOR), "terms"),
        (lambda: wmim(MODEL, NO_TERMS, ESTIMATOR), "terms"),
        (lambda: pair(predictor=ANY), "predictor"),
        (lambda: separation_released(cosine_survived=(1.0, -1.0)), "cosine_survived"),
        (lambda: wmim(MODEL, BASE, ESTIMATOR, weight=-1.0), "weight"),
        (lambda: call(target(bound=POOLED, cosine="places")), "by place"),
    ],
)
def test_bad_input(call, message):
    with pytest.raises(InputError, match=message):
        call()
