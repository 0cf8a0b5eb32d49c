"""Each loss against its formula, in float64 and in numpy."""

import functools

import cases
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from robustjax import attacks, defenses, models, objectives, threats
from robustjax.defenses.mart import mart_terms
from robustjax.types import AdversarialLoss, Batch, LossAux, Model, ModelOutput

BATCH = cases.fake_batch(8)
RNG = np.random.default_rng(0)
CLEAN, ADV = RNG.normal(size=(2, 7, 5)) * 3
Y = RNG.integers(0, 5, 7)


def still(key, logits_fn, x, y):
    """The attack that does nothing."""
    return x


def shifted(key, logits_fn, x, y):
    return jnp.clip(x + 0.1, 0, 1)


def linear_model(dtype=jnp.float32):
    """Logits x @ w: differentiable by eye."""

    def apply(params, model_state, x, **_):
        logits = x.reshape(x.shape[0], -1) @ params["w"] + params["b"].reshape(1, -1)
        return ModelOutput(logits, {}, model_state)

    def init(key, x):
        n = x[0].size
        weights = jax.random.normal(key, (n, 4), dtype) / n**0.5
        return {"w": weights, "b": jnp.linspace(0.0, 1.0, 4, dtype=dtype)}, {}

    return Model(init, apply)


def softmax(z):
    e = np.exp(z - z.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def mart_reference(clean, adv, y):
    """Eq. (11) example by example, with the authors' guards."""
    boosted, weighted = [], []
    for z, z_adv, label in zip(clean, adv, y, strict=True):
        p, q = softmax(z), softmax(z_adv)
        wrong = max(q[k] for k in range(len(q)) if k != label)
        boosted.append(-np.log(q[label]) - np.log(1.0001 - wrong + 1e-12))
        kl = sum(a * (np.log(a) - np.log(b + 1e-12)) for a, b in zip(p, q, strict=True))
        weighted.append((1.0000001 - p[label]) * kl)
    return np.array(boosted), np.array(weighted)


def test_mart_terms():
    with jax.enable_x64(True):
        terms = mart_terms(jnp.asarray(CLEAN), jnp.asarray(ADV), jnp.asarray(Y))
    for term, expected in zip(terms, mart_reference(CLEAN, ADV, Y), strict=True):
        np.testing.assert_allclose(term, expected, rtol=1e-10)


def test_mart_does_not_weigh_confident_correct_images():
    confident = jnp.array([[60.0, 0, 0, 0, 0], [0.0, 60, 0, 0, 0]])
    boosted, weighted = mart_terms(confident, jnp.asarray(ADV[:2]), jnp.array([0, 0]))
    assert abs(float(weighted[0])) < 1e-4  # sure and right
    assert float(weighted[1]) > 0.1  # sure and wrong
    # Finite where probabilities are exactly 0 or 1, gradients too.
    total = lambda a, b: sum(t.sum() for t in mart_terms(a, b, jnp.array([0, 0])))
    for grad in jax.grad(total, (0, 1))(confident * 10, confident * 10):
        assert np.isfinite(grad).all()
    assert np.isfinite(boosted).all()


@pytest.mark.parametrize("beta", [0.0, 5.0])
def test_mart_is_the_sum_of_its_terms(beta):
    model = linear_model()
    params, state = model.init(jax.random.key(0), BATCH.x)
    loss, aux = defenses.mart(model, shifted, beta=beta)(
        params, state, jax.random.key(1), BATCH
    )
    z = np.float64(model.apply(params, {}, BATCH.x).logits)
    z_adv = np.float64(
        model.apply(params, {}, shifted(None, None, BATCH.x, None)).logits
    )
    boosted, weighted = mart_reference(z, z_adv, np.asarray(BATCH.y))
    assert float(loss) == pytest.approx(
        boosted.mean() + beta * weighted.mean(), rel=1e-5
    )
    assert float(aux.metrics["loss/boosted"]) == pytest.approx(boosted.mean(), rel=1e-5)
    assert float(aux.metrics["loss/kl"]) == pytest.approx(weighted.mean(), rel=1e-4)


def test_trades_without_an_attack_is_cross_entropy():
    model, params, state = cases.batch_norm_model()
    results = [
        jax.jit(jax.value_and_grad(loss_fn, has_aux=True))(
            params, state, jax.random.key(0), BATCH
        )
        for loss_fn in (defenses.trades(model, still), defenses.standard(model))
    ]
    (trades, plain), (trades_grad, plain_grad) = zip(
        *[(value, grad) for (value, _), grad in results], strict=True
    )
    assert float(trades) == pytest.approx(float(plain), abs=1e-6)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6),
        trades_grad,
        plain_grad,
    )


@pytest.mark.parametrize("make", [defenses.trades, defenses.mart])
def test_gradients_reach_both_branches(make):
    """Against finite differences of the whole loss: a detached branch would show."""
    with jax.enable_x64(True):
        model = linear_model(jnp.float64)
        batch = Batch(jnp.asarray(np.float64(BATCH.x)), BATCH.y)
        params, state = model.init(jax.random.key(0), batch.x)
        loss_fn = make(model, shifted, beta=6.0)
        value = jax.jit(lambda p: loss_fn(p, state, jax.random.key(1), batch)[0])
        grad = jax.grad(value)(params)
        for seed in range(3):
            step = jax.tree.map(
                lambda a, s=seed: np.random.default_rng(s).normal(size=a.shape), params
            )
            h = 1e-6
            ends = [
                value(jax.tree.map(lambda a, d, h=h: a + h * d, params, step))
                for h in (h, -h)
            ]
            inner = sum((grad[k] * step[k]).sum() for k in params)
            np.testing.assert_allclose(inner, (ends[0] - ends[1]) / (2 * h), rtol=1e-6)


def test_trades_value_and_what_its_attack_is_given():
    model = linear_model()
    params, state = model.init(jax.random.key(0), BATCH.x)
    given = []

    def spy(key, logits_fn, x, y):
        given.append(y)
        return shifted(key, logits_fn, x, y)

    loss, aux = defenses.trades(model, spy, beta=3.0)(
        params, state, jax.random.key(1), BATCH
    )
    z = np.float64(model.apply(params, {}, BATCH.x).logits)
    z_adv = np.float64(model.apply(params, {}, shifted(0, 0, BATCH.x, 0)).logits)
    p, q, y = softmax(z), softmax(z_adv), np.asarray(BATCH.y)
    np.testing.assert_allclose(given[0], p, atol=1e-6)
    natural = -np.log(p[np.arange(8), y]).mean()
    divergence = (p * (np.log(p) - np.log(q))).sum(1).mean()
    assert float(loss) == pytest.approx(natural + 3 * divergence, rel=1e-5)
    assert float(aux.metrics["loss/clean"]) == pytest.approx(natural, rel=1e-5)
    assert float(aux.metrics["loss/kl"]) == pytest.approx(divergence, rel=1e-4)
    accuracy = (z_adv.argmax(1) == y).mean()
    assert float(aux.metrics["accuracy/robust"]) == pytest.approx(accuracy)


@pytest.mark.parametrize("make", [defenses.trades, defenses.mart])
def test_statistics_change_neither_loss_nor_gradient(make):
    model, params, state = cases.batch_norm_model()
    (one, one_grad), (both, both_grad) = (
        jax.jit(jax.value_and_grad(make(model, shifted, statistics=s), has_aux=True))(
            params, state, jax.random.key(0), BATCH
        )
        for s in ("adversarial", "both")
    )
    np.testing.assert_array_equal(one[0], both[0])
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=1e-7), one_grad, both_grad
    )
    means = [aux.model_state["batch_stats"]["norm"]["mean"] for _, aux in (one, both)]
    assert not np.allclose(*means, atol=1e-4)
    # By hand: clean rows move the statistics first, adversarial rows next.
    after = model.apply(params, state, BATCH.x, mode="train").model_state
    x_adv = shifted(0, 0, BATCH.x, 0)
    after = model.apply(params, after, x_adv, mode="train").model_state
    np.testing.assert_allclose(
        means[1], after["batch_stats"]["norm"]["mean"], atol=1e-6
    )


@pytest.mark.parametrize("clean_weight", [0.0, 0.5, 0.3, 1.0])
@pytest.mark.parametrize("label_smoothing", [0.0, 0.1])
def test_adversarial_is_a_mean_over_one_joint_batch(clean_weight, label_smoothing):
    model, params, state = cases.batch_norm_model()
    loss_fn = defenses.adversarial(
        model, shifted, clean_weight=clean_weight, label_smoothing=label_smoothing
    )
    loss, aux = loss_fn(params, state, jax.random.key(0), BATCH)
    x_adv = shifted(0, 0, BATCH.x, 0)
    rows = jnp.concatenate([x_adv, BATCH.x]) if clean_weight else x_adv
    out = model.apply(params, state, rows, mode="train")
    entropy = functools.partial(
        objectives.cross_entropy, label_smoothing=label_smoothing
    )
    expected = (1 - clean_weight) * entropy(out.logits[:8], BATCH.y).mean()
    if clean_weight:
        expected += clean_weight * entropy(out.logits[8:], BATCH.y).mean()
    assert float(loss) == pytest.approx(float(expected), abs=1e-6)
    if clean_weight == 0.5:  # the mean over all 2B rows
        joint = entropy(out.logits, jnp.tile(BATCH.y, 2)).mean()
        assert float(loss) == pytest.approx(float(joint), abs=1e-6)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6),
        aux.model_state,
        out.model_state,
    )
    assert ("accuracy/clean" in aux.metrics) == bool(clean_weight)


def offset(params, grads, gamma):
    """v of AWP, by the paper's text, in numpy."""
    result = {}
    for name, w in params.items():
        w, g = np.float64(w), np.float64(grads[name])
        norm = np.sqrt((g**2).sum())
        if w.ndim == 1 or norm == 0:
            result[name] = np.zeros_like(w)
        else:
            result[name] = gamma * np.sqrt((w**2).sum()) * g / norm
    return result


@pytest.mark.parametrize("inner", ["adversarial", "trades", "standard"])
@pytest.mark.parametrize("gamma", [0.0, 0.05])
def test_awp_is_the_loss_at_perturbed_weights(inner, gamma):
    model = linear_model()
    params, state = model.init(jax.random.key(0), BATCH.x)
    loss_fn = {
        "adversarial": lambda: defenses.adversarial(model, shifted),
        "trades": lambda: defenses.trades(model, shifted),
        "standard": lambda: defenses.standard(model),
    }[inner]()
    run = lambda f, p: jax.jit(jax.value_and_grad(f, has_aux=True))(
        p, state, jax.random.key(1), BATCH
    )
    (_, _), grads = run(loss_fn, params)
    v = offset(params, grads, gamma)
    moved = {name: jnp.float32(params[name] + v[name]) for name in params}
    (expected, _), expected_grads = run(loss_fn, moved)
    (loss, _), found = run(defenses.awp(loss_fn, gamma=gamma), params)
    assert float(loss) == pytest.approx(float(expected), rel=1e-6)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), found, expected_grads
    )
    if gamma:
        assert float(loss) > float(run(loss_fn, params)[0][0])  # it ascends


def test_awp_offsets_per_tensor():
    """Every tensor with more than one axis moves by gamma times its norm."""
    seen = []

    def loss_fn(params, model_state, key, batch):
        seen.append(params)
        return sum(jnp.sum(jnp.sin(leaf)) for leaf in params.values()), LossAux({}, {})

    params = {
        "kernel": jax.random.normal(jax.random.key(0), (3, 3, 2, 4)),
        "dense": jax.random.normal(jax.random.key(1), (5, 2)),
        "bias": jnp.ones(3),
        "scale": jnp.ones(()),
        "dead": jnp.full((2, 2), jnp.pi / 2),  # its gradient is almost 0
        "zero": jnp.zeros((2, 2)),
    }
    before = jax.tree.map(np.array, params)
    defenses.awp(loss_fn, gamma=0.01)(params, {}, jax.random.key(2), BATCH)
    jax.tree.map(np.testing.assert_array_equal, before, params)
    v = {name: np.asarray(seen[1][name] - params[name]) for name in params}
    for name in ("kernel", "dense", "dead"):
        ratio = np.linalg.norm(v[name]) / np.linalg.norm(params[name])
        assert ratio == pytest.approx(0.01, rel=1e-3)
    for name in ("bias", "scale", "zero"):
        assert not v[name].any()


def test_awp_attacks_once_at_the_unperturbed_weights():
    model = linear_model()
    params, state = model.init(jax.random.key(0), BATCH.x)
    seen = []

    def spy(key, logits_fn, x, y):
        seen.append(logits_fn(x))
        return shifted(key, logits_fn, x, y)

    defenses.awp(defenses.adversarial(model, spy), gamma=0.5)(
        params, state, jax.random.key(1), BATCH
    )
    assert len(seen) == 1
    expected = model.apply(params, {}, BATCH.x).logits
    np.testing.assert_allclose(seen[0], expected, atol=1e-6)


def test_losses_come_in_two_halves():
    model = models.from_linen(models.small_cnn(num_classes=4, stages=((4,),), dense=8))
    params, state = model.init(jax.random.key(0), BATCH.x)
    attack = attacks.pgd(threats.linf(0.1), step_size=0.05, num_steps=2)
    loss_fn = defenses.adversarial(model, attack)
    assert isinstance(loss_fn, AdversarialLoss)

    @jax.jit
    def by_hand(key):
        craft_key, objective_key = jax.random.split(key)
        x_adv = loss_fn.craft(params, state, craft_key, BATCH)
        return loss_fn.objective(params, state, objective_key, BATCH, x_adv)[0], x_adv

    loss, x_adv = by_hand(jax.random.key(1))
    whole = jax.jit(loss_fn)(params, state, jax.random.key(1), BATCH)[0]
    assert float(loss) == pytest.approx(float(whole), abs=1e-6)
    assert 0.05 < np.abs(x_adv - BATCH.x).max() <= 0.1 + 1e-6
    # No gradient of the attack is even traced: the weights are cut off before it.
    jaxpr = str(
        jax.make_jaxpr(
            jax.grad(lambda p: loss_fn.craft(p, state, jax.random.key(1), BATCH).sum())
        )(params)
    )
    scans = jaxpr.count("scan[")
    assert scans == 1


def test_smoothing_of_the_standard_loss():
    model = linear_model()
    params, state = model.init(jax.random.key(0), BATCH.x)
    loss, aux = defenses.standard(model, label_smoothing=0.2)(
        params, state, jax.random.key(1), BATCH
    )
    log_p = np.log(softmax(np.float64(model.apply(params, {}, BATCH.x).logits)))
    q = 0.8 * np.eye(4)[np.asarray(BATCH.y)] + 0.05
    assert float(loss) == pytest.approx(-(q * log_p).sum(1).mean(), rel=1e-5)
    assert set(aux.metrics) == {"accuracy/clean"}
