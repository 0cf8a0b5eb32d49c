"""AT+ALP, its ablations and neighbours against their formulas in float64."""

import itertools
import math
from typing import Any

import cases
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from robustjax import InputError, defenses, models
from robustjax.types import Batch, Model, ModelOutput

RNG = np.random.default_rng(0)
IMAGES = RNG.uniform(size=(4, 4, 4, 3))
LABELS = np.array([0, 2, 1, 2])
WEIGHTS = {
    "k": RNG.normal(size=(3, 5)),
    "m": RNG.normal(size=(5, 6)),
    "w": RNG.normal(size=(24, 3)) / 3,
}
PAIRS = ((0.0, 0.0), (0.7, 0.0), (0.0, 1.3), (0.7, 1.3))
LAYERS = ("fine", "coarse")
BATCH = cases.fake_batch(8)


def new_key():
    return jax.random.key(3)


def shifted(key, logits_fn, x, y):
    """An attack that asks nothing."""
    return x**2 + 0.3


def recorded(calls=None):
    """Two layers with maps, the first minus its mean over the batch, and a count of
    passes that move the statistics; float64 if its weights are."""

    def apply(params, model_state, x, *, mode="eval", capture=(), key=None, **_):
        if calls is not None:
            calls.append((mode, tuple(capture), x, key))
        fine = jnp.tanh(x @ params["k"])
        if mode != "eval":
            fine = fine - fine.mean(axis=0, keepdims=True)
        pooled = fine.reshape(-1, 2, 2, 2, 2, 5).mean((2, 4))
        coarse = jnp.tanh(pooled @ params["m"])
        seen = {"fine": fine, "coarse": coarse}
        logits = coarse.reshape(len(x), -1) @ params["w"]
        count = {"passes": model_state["passes"] + (mode == "train")}
        return ModelOutput(logits, {name: seen[name] for name in capture}, count)

    return Model(lambda key, x: (WEIGHTS, {"passes": 0}), apply)


def passes(params, *groups):
    """(logits, features) of every group of images, all groups in one batch."""
    rows = np.concatenate(groups)
    fine = np.tanh(np.einsum("nhwc,cd->nhwd", rows, params["k"]))
    fine -= fine.mean(0)
    pooled = sum(fine[:, i::2, j::2] for i in (0, 1) for j in (0, 1)) / 4
    coarse = np.tanh(np.einsum("nhwc,cd->nhwd", pooled, params["m"]))
    logits = np.einsum("np,pk->nk", coarse.reshape(len(rows), -1), params["w"])
    cuts = np.cumsum([len(group) for group in groups])[:-1]
    parts = [np.split(a, cuts) for a in (logits, fine, coarse)]
    return [(z, {"fine": a, "coarse": b}) for z, a, b in zip(*parts, strict=True)]


def cross_entropy(logits, y, smoothing):
    total = 0.0
    for z, label in zip(logits, y, strict=True):
        target = np.full(len(z), smoothing / len(z))
        target[label] += 1 - smoothing
        total += math.log(sum(math.exp(v) for v in z)) - float(target @ z)
    return total / len(logits)


def attention(one, other):
    """Sums of squares, and how far apart their directions end."""
    total = 0.0
    for name in one:
        q, r = ((a**2).sum(3).reshape(len(a), -1) for a in (one[name], other[name]))
        q, r = (m / np.linalg.norm(m, axis=1)[:, None] for m in (q, r))
        total += np.sqrt(np.maximum(2 - 2 * (q * r).sum(1), 0)).mean()
    return total


def at_alp_total(params, fixed, weights, joint, clean_weight, smoothing):
    """The loss; the clean members of pairs are those of the weights `fixed`."""
    x_adv = IMAGES**2 + 0.3

    def both(w):
        if joint:
            return passes(w, IMAGES, x_adv)
        return passes(w, IMAGES) + passes(w, x_adv)

    (z, _), (z_adv, features) = both(params)
    (z_fixed, features_fixed), _ = both(fixed)
    return (
        clean_weight * cross_entropy(z, LABELS, smoothing)
        + (1 - clean_weight) * cross_entropy(z_adv, LABELS, smoothing)
        + weights[0] * ((z_adv - z_fixed) ** 2).mean()
        + weights[1] * attention(features_fixed, features)
    )


def value_and_grad(loss_fn, params=WEIGHTS):
    """In float64, as numpy."""
    with jax.enable_x64(True):
        params = jax.tree.map(jnp.asarray, params)
        batch = Batch(jnp.asarray(IMAGES), jnp.asarray(LABELS))
        run = jax.value_and_grad(loss_fn, has_aux=True)
        (value, aux), grad = run(params, {"passes": 0}, new_key(), batch)
        return float(value), aux, jax.tree.map(np.asarray, grad)


@pytest.mark.parametrize("weights", PAIRS)
@pytest.mark.parametrize(
    ("joint", "detach", "clean_weight", "smoothing"),
    [
        (True, False, 0.5, 0.0),
        (False, True, 0.3, 0.1),
        pytest.param(True, True, 0.3, 0.1, marks=pytest.mark.slow),
        pytest.param(False, False, 0.5, 0.0, marks=pytest.mark.slow),
    ],
)
def test_at_alp_is_its_formula(weights, joint, detach, clean_weight, smoothing):
    loss_fn = defenses.at_alp(
        recorded(),
        shifted,
        logit_weight=weights[0],
        attention_weight=weights[1],
        layers=LAYERS,
        clean_weight=clean_weight,
        label_smoothing=smoothing,
        detach_clean=detach,
        joint_batch=joint,
    )
    value, aux, grad = value_and_grad(loss_fn)
    how = (weights, joint, clean_weight, smoothing)
    assert value == pytest.approx(at_alp_total(WEIGHTS, WEIGHTS, *how), rel=1e-10)
    assert aux.model_state == {"passes": 1 if joint else 2}
    metrics = {name: float(v) for name, v in aux.metrics.items()}
    total = metrics["loss/cross_entropy"]
    for name, weight in zip(("loss/logit", "loss/attention"), weights, strict=True):
        assert (name in metrics) == (weight > 0)
        total += weight * metrics.get(name, 0.0)
    assert value == pytest.approx(total, rel=1e-12)
    rng = np.random.default_rng(1)
    direction = {name: rng.normal(size=a.shape) for name, a in WEIGHTS.items()}
    h, ends = 1e-5, []
    for sign in (1, -1):
        moved = {name: a + sign * h * direction[name] for name, a in WEIGHTS.items()}
        ends.append(at_alp_total(moved, WEIGHTS if detach else moved, *how))
    inner = sum((grad[name] * direction[name]).sum() for name in WEIGHTS)
    assert inner == pytest.approx((ends[0] - ends[1]) / (2 * h), rel=1e-6)


@pytest.mark.parametrize(("smoothing", "expected"), [(0.0, 1.354203), (0.1, 1.470870)])
@pytest.mark.parametrize("precise", [True, False])
def test_worked_example(smoothing, expected, precise):
    """Examples A and B of the specification's section 10, in one image."""
    rows = np.array([[1.0, 2.0, 2.0, 0.0], [0.0, 3.0, 1.0, 0.0]])
    logits = np.array([[2.0, 0.0, -1.0], [1.0, 1.0, -1.0]])

    def apply(params, model_state, x, **_):
        return ModelOutput(x.reshape(-1, 4) @ params, {"maps": x}, model_state)

    with jax.enable_x64(precise):
        weights = jnp.asarray(np.linalg.pinv(rows) @ logits, float)
        clean, adv = (jnp.asarray(row, float).reshape(1, 1, 2, 2) for row in rows)
        loss_fn = defenses.at_alp(
            Model(lambda key, x: (weights, {}), apply),
            lambda key, logits_fn, x, y: adv,
            layers=("maps",),
            label_smoothing=smoothing,
        )
        loss, _ = loss_fn(weights, {}, new_key(), Batch(clean, jnp.array([0])))
        assert float(loss) == pytest.approx(expected, abs=1e-6 if precise else 1e-5)


def test_layers_are_added_or_averaged():
    make = lambda reduction, layers=LAYERS: value_and_grad(
        defenses.at_alp(recorded(), shifted, layers=layers, layer_reduction=reduction)
    )[1].metrics["loss/attention"]
    assert float(make("mean")) == pytest.approx(float(make("sum")) / 2)
    apart = [float(make("sum", (layer,))) for layer in LAYERS]
    assert float(make("sum")) == pytest.approx(sum(apart))


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_without_weights_it_is_mixed_minibatch_pgd(smoothing):
    model, params, state = cases.batch_norm_model()
    none: Any = dict(logit_weight=0.0, attention_weight=0.0, label_smoothing=smoothing)
    mixed: Any = dict(clean_weight=0.5, label_smoothing=smoothing)
    ((one, one_aux), one_grad), ((other, other_aux), other_grad) = (
        jax.jit(jax.value_and_grad(loss_fn, has_aux=True))(
            params, state, new_key(), BATCH
        )
        for loss_fn in (
            defenses.at_alp(model, shifted, **none),
            defenses.adversarial(model, shifted, **mixed),
        )
    )
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6),
        (one, one_grad, one_aux.model_state),
        (other, other_grad, other_aux.model_state),
    )
    for name in ("accuracy/clean", "accuracy/robust"):
        assert one_aux.metrics[name] == other_aux.metrics[name]


def flops(loss_fn, model):
    params, state = jax.eval_shape(model.init, new_key(), BATCH.x)
    step = jax.jit(jax.value_and_grad(loss_fn, has_aux=True))
    cost: Any = step.lower(params, state, new_key(), BATCH).compile().cost_analysis()
    return cost["flops"]


def test_a_weight_of_0_costs_nothing():
    model = models.from_linen(models.small_cnn(num_classes=4, stages=((4,),), dense=8))
    none: Any = dict(logit_weight=0.0, attention_weight=0.0, label_smoothing=0.0)
    plain = flops(defenses.adversarial(model, shifted, clean_weight=0.5), model)
    assert flops(defenses.at_alp(model, shifted, **none), model) == plain
    more: Any = none | dict(attention_weight=1.0, layers=("relu1_1",))
    assert flops(defenses.at_alp(model, shifted, **more), model) > plain
    calls: list[Any] = []
    spied = recorded(calls)
    value_and_grad(defenses.at_alp(spied, shifted, attention_weight=0.0))
    assert [(mode, capture, len(x)) for mode, capture, x, _ in calls] == [
        ("train", (), 8)
    ]


def test_layers_that_do_not_exist_or_have_no_maps():
    model, params, state = cases.batch_norm_model()
    run = lambda **kwargs: defenses.at_alp(model, shifted, **kwargs)(
        params, state, new_key(), BATCH
    )
    assert np.isfinite(run(layers=("stage7",), attention_weight=0.0)[0])
    with pytest.raises(InputError, match=r"'stage7'.*Layers: .*conv.*norm.*head") as e:
        run(layers=("stage7",))
    assert "\n" not in str(e.value)
    with pytest.raises(InputError, match=r"maps \[B, H, W, C\].*\(8, 4\)"):
        run(layers=("head",))


@pytest.mark.parametrize("joint", [True, False])
def test_the_attack_sees_the_named_mode_and_every_pass_has_a_key(joint):
    calls: list[Any] = []

    def curious(key, logits_fn, x, y):
        logits_fn(x)
        return x

    loss_fn = defenses.at_alp(
        recorded(calls),
        curious,
        layers=LAYERS,
        joint_batch=joint,
        attack_mode="batch",
    )
    value_and_grad(loss_fn)
    assert [call[0] for call in calls] == ["batch", "train", "train"][: 3 - joint]
    keys = [tuple(jax.random.key_data(call[3]).tolist()) for call in calls]
    assert len(set(keys)) == len(keys)


def test_the_teacher_says_where_to_look_and_does_not_learn():
    net, layers = models.from_linen(cases.BatchNormNet()), ("conv", "norm")
    params, state = {}, {}
    for seed, name in enumerate(("model", "reference")):
        params[name], start = net.init(jax.random.key(seed), BATCH.x)
        state[name] = net.apply(params[name], start, BATCH.x, mode="train").model_state
    model, reference = (models.part(net, name) for name in params)
    loss_fn = defenses.teacher_attention(
        model, reference, shifted, attention_weight=2.0, layers=layers
    )
    run = jax.jit(jax.value_and_grad(loss_fn, has_aux=True))
    (value, aux), grad = run(params, state, new_key(), BATCH)
    assert not any(leaf.any() for leaf in jax.tree.leaves(grad["reference"]))
    assert all(leaf.any() for leaf in jax.tree.leaves(grad["model"]["norm"]))

    own, other = ((params[name], state[name]) for name in params)
    taught = net.apply(*other, BATCH.x, mode="eval", capture=layers)
    rows = jnp.concatenate([BATCH.x, shifted(None, None, BATCH.x, None)])
    out = net.apply(*own, rows, mode="train", capture=layers)
    fixed, maps = (
        {name: np.float64(a[-8:]) for name, a in found.features.items()}
        for found in (taught, out)
    )
    expected = cross_entropy(np.float64(out.logits), np.tile(BATCH.y, 2), 0.1)
    expected += 2 * attention(fixed, maps)
    assert float(value) == pytest.approx(expected, rel=1e-5)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6),
        aux.model_state,
        {"model": out.model_state, "reference": state["reference"]},
    )


def test_clean_logit_pairing_is_its_formula():
    kinds: Any = ("mse", "l2")
    for kind in kinds:
        loss_fn = defenses.clean_logit_pairing(
            recorded(), weight=0.7, kind=kind, label_smoothing=0.1
        )
        value, aux, grad = value_and_grad(loss_fn)
        [(z, _)] = passes(WEIGHTS, IMAGES)
        gaps = z[2:] - z[:2]
        term = np.linalg.norm(gaps, axis=1).mean() if kind == "l2" else (gaps**2).mean()
        expected = cross_entropy(z, LABELS, 0.1) + 0.7 * term
        assert value == pytest.approx(expected, rel=1e-10)
        assert float(aux.metrics["loss/logit"]) == pytest.approx(term)
        assert aux.model_state == {"passes": 1}
        assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(grad))


def test_logit_squeezing_is_its_formula():
    kinds: Any = ("l2", "sq")
    for kind in kinds:
        loss_fn = defenses.logit_squeezing(recorded(), weight=0.7, kind=kind)
        value, aux, _ = value_and_grad(loss_fn)
        [(z, _)] = passes(WEIGHTS, IMAGES)
        size = np.linalg.norm(z, axis=1) ** (1 if kind == "l2" else 2)
        expected = cross_entropy(z, LABELS, 0.0) + 0.7 * size.mean()
        assert value == pytest.approx(expected, rel=1e-10)
        assert float(aux.metrics["accuracy/clean"]) == (z.argmax(1) == LABELS).mean()
    silent = WEIGHTS | {"w": np.zeros((24, 3))}
    grad = value_and_grad(defenses.logit_squeezing(recorded()), silent)[2]
    plain = value_and_grad(defenses.standard(recorded()), silent)[2]
    np.testing.assert_allclose(grad["w"], plain["w"], atol=1e-12)


SQUEEZING = [defenses.clean_logit_pairing, defenses.logit_squeezing]


@pytest.mark.parametrize("make", SQUEEZING)
def test_noise_comes_from_the_key_and_stays_in_the_box(make):
    calls: list[Any] = []
    batch = Batch(jnp.asarray(IMAGES, jnp.float32), jnp.asarray(LABELS))
    params = jax.tree.map(jnp.float32, WEIGHTS)

    def run(noise, seed):
        loss_fn = make(recorded(calls), noise=noise)
        return float(loss_fn(params, {"passes": 0}, jax.random.key(seed), batch)[0])

    assert run(0.5, 1) == run(0.5, 1)
    assert run(0.5, 1) != run(0.5, 2)
    seen = calls[0][2]
    assert seen.min() == 0
    assert seen.max() == 1
    drawn = np.asarray(seen - batch.x)[(seen > 0) & (seen < 1)]
    assert 0.2 < drawn.std() < 0.5
    calls.clear()
    assert run(0.0, 1) == run(0.0, 2)
    np.testing.assert_array_equal(calls[0][2], batch.x)


def test_clean_logit_pairing_needs_pairs():
    model, params, state = cases.batch_norm_model()
    batch = Batch(BATCH.x[:5], BATCH.y[:5])
    with pytest.raises(InputError, match=r"`batch` .*even.*got 5") as error:
        defenses.clean_logit_pairing(model)(params, state, new_key(), batch)
    assert "\n" not in str(error.value)


BAD_VALUES = [
    ("logit_weight", -1.0),
    ("attention_weight", -1.0),
    ("clean_weight", 1.5),
    ("label_smoothing", -0.1),
    ("logit_kind", "both"),
    ("attention_kind", "both"),
    ("map_kind", "both"),
    ("layer_reduction", "both"),
    ("power", 0.0),
    ("floor", -1.0),
    ("layers", ()),
    ("layers", "stage1"),
]


@pytest.mark.parametrize(("name", "value"), BAD_VALUES)
def test_errors_name_the_argument_and_the_value(name, value):
    given: Any = {name: value}
    with pytest.raises(InputError, match=f"`{name}` must .* got ") as error:
        defenses.at_alp(recorded(), shifted, **given)
    assert repr(value) in str(error.value)
    if not name.startswith("logit"):
        with pytest.raises(InputError, match=f"`{name}`"):
            defenses.teacher_attention(recorded(), recorded(), shifted, **given)


def test_errors_of_the_others():
    reference = recorded()
    with pytest.raises(InputError, match=r"`attention_weight` .* above 0, got 0\.0"):
        defenses.teacher_attention(reference, reference, shifted, attention_weight=0.0)
    wrong: dict[str, Any] = dict(weight=-1.0, noise=-1.0, kind="both")
    for make, name in itertools.product(SQUEEZING, wrong):
        with pytest.raises(InputError, match=f"`{name}`"):
            make(reference, **{name: wrong[name]})
