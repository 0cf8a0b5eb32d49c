"""The second stage of WNLL: its gradients by formula, and what it moves."""

import cases
import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import pytest

from configs import digits_wnll
from robustjax import InputError, attacks, build, defenses, models, threats, training
from robustjax.interpolation import Similarity, interpolate, make_template
from robustjax.training import sharding
from robustjax.types import Batch

LIKENESS = Similarity(num_neighbors=6, bandwidth_rank=3)
MODEL = models.from_linen(
    models.small_cnn(num_classes=4, stages=((4,),), dense=8, buffer=1)
)
BATCH = cases.fake_batch(32)
SIZES = dict(num_templates=20, num_queries=12, similarity=LIKENESS)


@pytest.fixture(scope="module")
def weights():
    return MODEL.init(jax.random.key(0), BATCH.x)


def captured(params, x, layer="features"):
    return MODEL.apply(params, {}, x, capture=(layer,)).features[layer]


def value_of(loss_fn, state):
    return lambda params: loss_fn(params, state, jax.random.key(3), BATCH)[0]


def scores_of(features):
    template = make_template(features[:20], BATCH.y[:20], LIKENESS)
    return interpolate(features[20:], template, 4)


def test_the_released_gradient_is_that_of_its_formula(weights):
    params, state = weights
    loss_fn = defenses.wnll(MODEL, **SIZES)
    value, slope = jax.value_and_grad(value_of(loss_fn, state))(params)
    features = captured(params, BATCH.x)
    onehot = np.eye(4)[np.asarray(BATCH.y)]
    rows = np.concatenate([onehot[:20], scores_of(features)])
    shares = np.exp(rows) / np.exp(rows).sum(axis=1, keepdims=True)
    expected = -np.log(shares[np.arange(32), BATCH.y]).mean()
    assert float(value) == pytest.approx(expected, rel=1e-5)
    assert np.log(1 + 3 / np.e) - 1e-6 <= value <= np.log(3 + np.e)
    residual = jnp.asarray((shares - onehot) / 32, jnp.float32)
    wanted = residual @ params["head"]["kernel"].T
    _, pull_back = jax.vjp(lambda p: captured(p, BATCH.x), params)
    by_hand = pull_back(wanted)[0]["buffer"]
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6),
        slope["buffer"],
        by_hand,
    )


@pytest.mark.parametrize("gradient", ["exact", "straight_through"])
def test_the_logarithm_is_over_the_queries(weights, gradient):
    params, state = weights
    loss_fn = defenses.wnll(MODEL, gradient=gradient, loss="log", **SIZES)

    def own(p):
        scores = scores_of(captured(p, BATCH.x))
        return -jnp.log(scores[jnp.arange(12), BATCH.y[20:]]).mean()

    run = value_of(loss_fn, state)
    value, slope = jax.value_and_grad(run)(params)
    expected, exact = jax.value_and_grad(own)(params)
    assert float(value) == pytest.approx(float(expected), rel=1e-4)
    difference = np.abs(
        slope["buffer"]["fc1"]["kernel"] - exact["buffer"]["fc1"]["kernel"]
    )
    if gradient == "exact":
        assert difference.max() < 1e-5
    else:
        assert difference.max() > 1e-3


def test_emphasis_takes_what_is_right_as_done(weights):
    params, state = weights
    given = lambda: (params, state, jax.random.key(3), BATCH)
    plain, emphasised = (
        defenses.wnll(MODEL, emphasis=e, loss="log", **SIZES)(*given())
        for e in (False, True)
    )
    scores = np.asarray(scores_of(captured(params, BATCH.x)))
    own = -np.log(scores[np.arange(12), BATCH.y[20:]])
    wrong = scores.argmax(axis=1) != np.asarray(BATCH.y[20:])
    assert 0 < wrong.sum() < 12
    assert float(plain[0]) == pytest.approx(own.mean(), rel=1e-4)
    assert float(emphasised[0]) == pytest.approx(own[wrong].sum() / 12, rel=1e-4)
    share = float(plain[1].metrics["accuracy/wnll"])
    assert share == pytest.approx(1 - wrong.mean(), abs=1e-6)


@pytest.mark.parametrize(
    ("loss", "perturb"),
    [
        ("softmax", True),
        ("log", False),
        pytest.param("softmax", False, marks=pytest.mark.slow),
        pytest.param("log", True, marks=pytest.mark.slow),
    ],
)
def test_an_attack_moves_queries_and_leaves_templates(weights, perturb, loss):
    params, state = weights
    attack = attacks.pgd(threats.linf(0.1), step_size=0.05, num_steps=3)
    options = dict(gradient="exact", loss=loss, **SIZES)
    loss_fn = defenses.wnll(MODEL, attack=attack, perturb_templates=perturb, **options)
    x_adv = loss_fn.craft(params, state, jax.random.key(3), BATCH)
    np.testing.assert_array_equal(x_adv[:20], BATCH.x[:20])
    assert np.abs(x_adv[20:] - BATCH.x[20:]).max() == pytest.approx(0.1, abs=1e-5)
    clean = value_of(defenses.wnll(MODEL, **options), state)(params)
    run = value_of(loss_fn, state)
    value, slope = jax.jit(jax.value_and_grad(run))(params)
    if not perturb:  # templates that come back may undo what moved with them
        assert value > clean
    assert np.abs(slope["buffer"]["fc1"]["kernel"]).max() > 0


def test_one_device_and_eight_agree(weights):
    params, state = weights
    loss_fn = defenses.wnll(MODEL, gradient="exact", loss="log", **SIZES)
    step = training.make_train_step(loss_fn, training.sgd(training.constant(0.05)))
    optimizer = training.sgd(training.constant(0.05))
    start = training.create_state(params, state, optimizer, jax.random.key(1))
    finals = []
    for count in (1, 8):
        mesh = sharding.data_mesh(jax.devices()[:count])
        replicated = sharding.replicated(mesh)
        batch = sharding.global_rows(mesh, jax.tree.map(np.asarray, BATCH))
        run = jax.jit(step, out_shardings=replicated)
        after, metrics = run(jax.device_put(start, replicated), batch)
        finals.append(jax.device_get((after.params, metrics)))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-6), *finals)


def test_the_second_stage_moves_the_buffer_and_nothing_else(tmp_path):
    config = digits_wnll.get_config().unlock()
    config.model.stages = ((4,),)
    config.train.num_epochs, config.wnll.num_epochs = 2, 1
    config.train.loss.attack.num_steps = 1
    config.validation_attack.num_steps = 1
    config.loop.validate_every = 2
    config.head.num_templates = 100
    mesh = training.data_mesh(jax.devices()[:1])
    run = build.run(config, mesh, progress_bar=False)
    stages = build.build_stages(config, run.splits, run.networks, mesh)
    assert [stage.name for stage in stages] == ["train", "wnll"]
    assert stages[1].data.steps_per_epoch == 1 * 2  # 216 / 200 times 864 / 400

    def trained(stages, name):
        state = training.train(
            stages,
            run.init,
            key=jax.random.key(0),
            workdir=tmp_path / name,
            prepare=run.prepare,
            options=run.options,
            mesh=mesh,
        )
        return jax.device_get((state.params, state.model_state))

    before, after = trained(stages[:1], "one"), trained(stages, "both")
    moved = jax.tree.map(lambda a, b: bool((a != b).any()), before[0], after[0])
    assert all(jax.tree.leaves(moved.pop("buffer")))
    assert not any(jax.tree.leaves(moved))
    jax.tree.map(np.testing.assert_array_equal, before[1], after[1])


def test_the_released_algorithm_has_no_second_stage():
    config = digits_wnll.get_config("released")
    assert config.stages == ("train",)
    assert config.head.name == "wnll"
    with pytest.raises(InputError, match="intended or :released, got :other"):
        digits_wnll.get_config("other")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(num_templates=0), r"`num_templates` must be"),
        (dict(gradient="linear"), r"`gradient` must be one of.*'linear'"),
        (dict(loss="margin"), r"`loss` must be one of.*'margin'"),
    ],
)
def test_bad_arguments_are_one_line(options, message):
    with pytest.raises(InputError, match=message):
        defenses.wnll(MODEL, **{**SIZES, **options})


def test_a_batch_of_another_size_is_one_line(weights):
    loss_fn = defenses.wnll(MODEL, **SIZES)
    half = Batch(BATCH.x[:16], BATCH.y[:16])
    with pytest.raises(InputError, match=r"32 rows, got 16.*template_batches"):
        loss_fn(*weights, jax.random.key(3), half)


def test_configs_of_the_stage_are_checked():
    config = digits_wnll.get_config().unlock()
    mesh = training.data_mesh()
    run = build.run(config, mesh, progress_bar=False)
    build_all = lambda: build.build_stages(config, run.splits, run.networks, mesh)
    config.loop.accumulate = 2
    with pytest.raises(InputError, match=r"`loop.accumulate` must be 1"):
        build_all()
    config.loop.accumulate = 1
    config.wnll.trainable = ("bufer",)
    params, _ = jax.eval_shape(run.init, jax.random.key(0))
    with pytest.raises(InputError, match=r"`trainable` must be one of.*bufer"):
        build_all()[1].trainable(params)
    config.wnll.data = ml_collections.ConfigDict(dict(name="tempates"))
    with pytest.raises(InputError, match=r"`data name` must be one of.*tempates"):
        build_all()
