"""A run of three stages from its config: what is trained when, killed anywhere."""

import json

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import pytest
from short_runs import MESH, Killed, trained

from configs import digits_namid
from robustjax import InputError, attacks, build, objectives, training
from robustjax.build import Networks
from robustjax.config.critics import _distance

pytestmark = pytest.mark.usefixtures("compilation_cache")

STAGES = ("reference", "critics", "train")
STEPS = 4 * 2  # batches of an epoch, epochs of a stage


def tiny(variant="namid", **changes):
    config = digits_namid.get_config(variant).unlock()
    config.data.batch_size = 240
    config.loop.validate_every = 1
    config.loop.keep_last = 100
    config.loop.log_every = 3
    config.validation_attack.num_steps = 1
    config.evaluation.bank = 8
    small = dict(name="small_cnn", stages=((4,),))
    config.model, config.networks.reference = dict(small), dict(small)
    for name in config.networks:
        if name != "reference":
            config.networks[name].update(units=8, widths=(4, 8))
    for name in STAGES:
        config[name].num_epochs = 2
        loss = config[name].loss
        loss.get("base", loss).attack.num_steps = 1
    config.update(changes)
    return config


def bits(tree):
    def plain(leaf):
        if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            leaf = jax.random.key_data(leaf)
        return np.asarray(leaf).tobytes()

    return [plain(leaf) for leaf in jax.tree.leaves(tree)]


def rows(workdir):
    return [json.loads(line) for line in (workdir / "metrics.jsonl").open()]


@pytest.fixture(scope="module")
def calm(tmp_path_factory):
    """A run that nothing happens to."""
    workdir = tmp_path_factory.mktemp("calm")
    return workdir, trained(tiny(), workdir)


def state_of(workdir, step, config=None):
    config = build.read_config(workdir) if config is None else config
    run = build.run(config, MESH)
    stages = build.build_stages(config, run.splits, run.networks, MESH)
    return training.load(
        stages, run.init, workdir=workdir, checkpoint=str(step), mesh=MESH
    )


def test_a_stage_moves_what_it_trains_and_nothing_else(calm):
    workdir, last = calm
    ends = [state_of(workdir, step) for step in (STEPS, 2 * STEPS, 3 * STEPS)]
    assert bits(ends[-1].params) == bits(last.params)
    run = build.run(build.read_config(workdir), MESH)
    init_key, _ = jax.random.split(jax.random.fold_in(run.key, 0))
    start = jax.jit(run.init)(init_key)
    moving = {
        "reference": (True, False, False),
        "natural": (False, True, False),
        "adversarial": (False, True, False),
        "model": (False, False, True),
    }
    assert set(last.params) == set(moving)
    before = start
    for number, state in enumerate(ends):
        after = (state.params, state.model_state)
        for name, moves in moving.items():
            for tree, was in zip(after, before, strict=True):
                same = bits(tree[name]) == bits(was[name])
                assert same != moves[number] or not bits(was[name]), name
        before = after


def test_a_run_killed_in_every_stage_goes_on_in_it_and_ends_with_the_same_bits(
    calm, tmp_path
):
    workdir, last = calm
    for number, stage in enumerate(STAGES):
        with pytest.raises(Killed):
            trained(tiny(), tmp_path, crash=(stage, STEPS // 2 + 2))
        steps = sorted(int(path.name) for path in (tmp_path / "checkpoints").iterdir())
        assert steps[-1] == number * STEPS + STEPS // 2
        begun = [row["stage"] for row in rows(tmp_path) if row["step"] > number * STEPS]
        assert set(begun) == {stage}
    again = trained(tiny(), tmp_path)
    assert bits(again) == bits(last)
    assert rows(tmp_path) == rows(workdir)


def test_each_stage_reports_what_it_trains(calm):
    found = rows(calm[0])
    validated = {row["stage"] for row in found if row["split"] == "validation"}
    assert validated == {"reference", "train"}  # critics classify nothing
    (first, *_) = (row for row in found if row["stage"] == "critics")
    assert {"loss/natural", "loss/adversarial", "share/fooled"} <= set(first)


def test_either_classifier_of_a_run_is_judged(calm):
    workdir, last = calm
    x = jnp.asarray(build.load_data(tiny()).test.images[:5])
    answers = {}
    for name in ("model", "reference"):
        restored = build.restore(workdir, MESH, checkpoint="last", network=name)
        answers[name] = restored.classifier.logits_fn(x)
        network = restored.run.networks.classifier(name)
        expected = network.apply(last.params[name], last.model_state[name], x).logits
        np.testing.assert_allclose(answers[name], expected, rtol=1e-6)
    assert jnp.abs(answers["model"] - answers["reference"]).max() > 1e-3
    for name in ("natural", "nobody"):
        with pytest.raises(InputError, match="must be one of model, reference"):
            build.restore(workdir, MESH, network=name)
    early = str(2 * STEPS)
    with pytest.raises(InputError, match="has not trained 'model' at step 16"):
        build.restore(workdir, MESH, checkpoint=early)
    build.restore(workdir, MESH, checkpoint=early, network="reference")


def test_networks_are_taken_over_from_another_run(calm, tmp_path):
    workdir, last = calm
    config = tiny("no_information", stages=("train",))
    for name in config.adopt:
        config.adopt[name] = str(workdir)
    state = trained(config, tmp_path)
    assert int(state.step) == STEPS
    for name in ("reference", "natural", "adversarial"):
        assert bits(state.params[name]) == bits(last.params[name])
        assert bits(state.model_state[name]) == bits(last.model_state[name])
    assert bits(state.params["model"]) != bits(last.params["model"])
    build.restore(tmp_path, MESH, network="reference")
    wider = tiny(stages=("train",))
    wider.networks.natural.units = 12
    wider.adopt.natural = str(workdir)
    with pytest.raises(InputError, match=r"`adopt.natural` is another network"):
        trained(wider, tmp_path / "wider")
    wider.adopt.natural = str(tmp_path / "nowhere")
    with pytest.raises(InputError, match="no run was started there"):
        trained(wider, tmp_path / "none")


def checked(config):
    """What train.py asks before it takes a directory."""
    run = build.run(config, MESH)
    stages = build.build_stages(config, run.splits, run.networks, MESH)
    images = run.splits.train.images
    build.check_losses(config, stages, run.init, run.prepare, images)


@pytest.mark.parametrize(
    ("variant", "stages", "adopted", "words"),
    [
        ("namid", ("train",), (), "`train.loss` reads the network 'adversarial'"),
        ("namid", ("train",), ("adversarial",), "config.adopt.natural=DIR"),
        ("no_natural", ("train",), ("adversarial",), None),
        ("no_information", ("train",), (), None),
        ("namid", ("critics", "train"), (), "`critics.loss` .* 'reference'"),
        ("namid", ("train", "reference", "critics"), (), "`train.loss` reads"),
        ("wmim", ("reference", "train"), (), "'standard'"),
        ("namid", STAGES, (), None),
    ],
)
def test_losses_read_no_network_with_its_first_weights(variant, stages, adopted, words):
    config = tiny(variant, stages=stages)
    for name in adopted:
        config.adopt[name] = "runs/other"
    if words is None:
        checked(config)
        return
    with pytest.raises(InputError, match=words):
        checked(config)


def test_what_was_not_trained_has_no_say_in_a_report(calm, tmp_path):
    trained(tiny("no_information", stages=("train",)), tmp_path)
    assert build.restore(tmp_path, MESH).classifier.critics is None
    early = build.restore(
        calm[0], MESH, checkpoint=str(STEPS), network="reference"
    ).classifier.critics
    assert early.has_reference
    assert not early.roles


def test_wmim_has_one_critic_and_attackers_know_it(tmp_path):
    state = trained(tiny("wmim"), tmp_path)
    assert set(state.params) == {"model", "reference", "standard"}
    classifier = build.restore(tmp_path, MESH).classifier
    critics = classifier.critics
    assert critics is not None
    assert critics.roles == ("standard",)
    for changes, words in (
        (dict(weight=-1.0), "`weight`"),
        (dict(sign=2), "`sign`"),
        (dict(amount=1.0), "block of information"),
    ):
        with pytest.raises(InputError, match=words):
            critics.penalised(lambda *_: None, changes)

    def read(key, shifted, x, y):
        return jnp.broadcast_to(shifted(x).mean(axis=1)[:, None, None, None], x.shape)

    x = jax.random.uniform(jax.random.key(0), (6, 8, 8, 1))
    told = critics.probes["standard"](x, classifier.logits_fn(x))
    for changes, factor in (({}, -1.0), (dict(weight=3.0, sign=-1), 3.0)):
        attack = classifier.penalised(read, "information", changes)
        got = attack(jax.random.key(0), classifier.logits_fn, x, jnp.zeros(6, int))
        np.testing.assert_allclose(got[:, 0, 0, 0], factor * told, rtol=1e-4, atol=1e-5)


def wrong(change):
    config = tiny()
    change(config)
    run = build.run(config, MESH)
    build.build_stages(config, run.splits, run.networks, MESH)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda c: c.train.__delitem__("trainable"), r"`train.trainable` must say"),
        (lambda c: c.networks.__delitem__("natural"), "needs the network 'natural'"),
        (lambda c: c.networks.update(model=c.model), "must not name a 'model'"),
        (lambda c: c.networks.natural.update(name="oracle"), "`model name`"),
        (lambda c: c.reference.loss.update(network="natural"), "`network`"),
        (lambda c: c.train.loss.bound.update(name="none"), "`bound name`"),
        (lambda c: c.critics.loss.objective.update(name="x"), "`objective name`"),
        (lambda c: c.train.loss.base.update(clean_weight=0.5), "`base`"),
        (lambda c: c.train.update(trainable=("modell",)), None),
    ],
)
def test_a_wrong_config_is_named(change, words):
    if words is None:
        config = tiny()
        change(config)
        run = build.run(config, MESH)
        (*_, stage) = build.build_stages(config, run.splits, run.networks, MESH)
        params = jax.eval_shape(run.init, jax.random.key(0))[0]
        with pytest.raises(InputError, match="`trainable`"):
            stage.trainable(params)
        return
    with pytest.raises(InputError, match=words):
        wrong(change)


def test_a_variant_is_one_of_those_that_there_are():
    with pytest.raises(InputError, match="got :best"):
        digits_namid.get_config("best")


# --- attackers who know the critics --------------------------------------------------


@pytest.fixture(scope="module")
def judged(calm):
    """The classifier with its critics, and test images."""
    restored = build.restore(calm[0], MESH)
    test = restored.run.splits.test
    return (
        restored.classifier,
        jnp.asarray(test.images[:6]),
        jnp.asarray(test.labels[:6]),
    )


@pytest.mark.slow
def test_the_penalty_is_the_training_losses_own(judged):
    classifier, x, _ = judged
    weights = dict(amount=0.5, cosine=2.0)
    critics = classifier.critics
    logits_fn = classifier.logits_fn
    z = jnp.clip(x + 0.05, 0, 1)
    both = logits_fn(x), logits_fn(z)
    natural, adversarial = (critics.probes[n] for n in ("natural", "adversarial"))
    (a, b), (c, d) = (
        [np.float64(probe(sample, logits)) for logits in both]
        for probe, sample in ((natural, x), (adversarial, z - x))
    )
    beside = np.float64(critics._companions)

    def apart(one, other, rest):
        found = []
        for i in range(len(one)):
            u, v = (np.append(r, w[i]) for r, w in zip(rest, (one, other), strict=True))
            found.append(abs(1 - u @ v / np.linalg.norm(u) / np.linalg.norm(v)))
        return np.array(found)

    of_x = 2.0 * apart(a, b, beside[:2]) - 0.5 * b
    of_noise = 2.0 * apart(c, d, beside[2:]) + 0.5 * d
    for sign, share in ((1, 1.0), (-1, 1.0), (1, 0.0)):  # the last: an ablation

        def read(key, shifted, x, y):
            found = shifted(jnp.clip(x + 0.05, 0, 1))
            return jnp.broadcast_to(found.mean(axis=1)[:, None, None, None], x.shape)

        attack = classifier.penalised(
            read, "information", weights | dict(sign=sign, natural=share)
        )
        got = attack(jax.random.key(0), logits_fn, x, jnp.zeros(6, int))[:, 0, 0, 0]
        expected = sign * (share * of_x + of_noise)
        np.testing.assert_allclose(got, expected, rtol=1e-3, atol=1e-4)


def test_defaults_are_the_weights_of_training(judged):
    critics = judged[0].critics
    weights = dict(amount=0.5, cosine=5.0, natural=1.0, adversarial=1.0)
    assert critics._defaults == weights
    with pytest.raises(InputError, match="`sign`"):
        critics.penalised(lambda *_: None, dict(sign=2))
    with pytest.raises(InputError, match="block of information"):
        critics.penalised(lambda *_: None, dict(weight=2))


def penalised_pgd(num_steps, **information):
    return dict(
        name="pgd",
        threat=dict(name="linf", eps=0.1),
        step_size=0.02,
        num_steps=num_steps,
        random_start="none",
        information=information,
    )


def test_an_attack_with_a_penalty_lowers_what_it_is_told_to(judged):
    classifier, x, y = judged
    probe = classifier.critics.probes["adversarial"]

    def attacked(sign):
        block = penalised_pgd(10, amount=100.0, cosine=0.0, sign=sign)
        named = build.build_attack(block, views=classifier)
        assert named.parameters["information"]["sign"] == sign
        key = jax.random.key(1)
        x_adv = named.attack(key, classifier.logits_fn, x, y)
        assert float(jnp.abs(x_adv - x).max()) <= 0.1 + 1e-6
        if sign == 1:  # images are apart
            single = named.attack(key, classifier.logits_fn, x[:2], y[:2])
            np.testing.assert_allclose(single, x_adv[:2], atol=1e-5)
        logits = classifier.logits_fn(x_adv)
        natural = classifier.critics.probes["natural"](x, logits)
        return (probe(x_adv - x, logits) - natural).mean()

    assert attacked(1) > attacked(-1) + 1e-3


def test_the_gradient_of_the_penalty_reaches_the_noise(judged):
    classifier, x, _ = judged
    probe = classifier.critics.probes["adversarial"]
    z = classifier.logits_fn(x)
    slope = jax.grad(lambda noise: probe(noise, z).sum())(0.01 * x)
    assert float(jnp.abs(slope).max()) > 1e-6


def test_shifts_leave_objectives_alone():
    logits = jax.random.normal(jax.random.key(0), (5, 4))
    y = jnp.arange(5) % 4
    shift = jnp.linspace(-3, 3, 5)
    shifted = logits - logits.mean(axis=1, keepdims=True) + shift[:, None]
    for objective in (objectives.cross_entropy, objectives.margin, objectives.dlr):
        found = attacks.WithPenalty(objective)(shifted, y)
        np.testing.assert_allclose(found, objective(logits, y) + shift, atol=2e-6)


def test_the_distance_is_that_of_longer_vectors():
    one, other = jnp.array([1.0, -2.0]), jnp.array([0.5, 3.0])
    rest = jnp.array([[1.0, 0.0, 2.0], [3.0, 0.0, -1.0]])
    found = _distance(one, other, *rest)
    for i in range(2):
        u = np.append(rest[0], one[i])
        v = np.append(rest[1], other[i])
        cosine = u @ v / np.sqrt((u @ u) * (v @ v))
        assert float(found[i]) == pytest.approx(abs(1 - cosine), abs=1e-6)
    nothing = _distance(jnp.zeros(1), jnp.zeros(1), jnp.zeros(3), jnp.zeros(3))
    assert nothing.tolist() == [1.0]


def test_attacks_that_look_at_critics_need_some(calm):
    with pytest.raises(InputError, match=r"only eval\.py runs it"):
        build.build_attack(penalised_pgd(1))
    config = build.read_config(calm[0]).unlock()
    config.transform = dict(name="total_variation", p_drop=0.5)
    random = build.restore(calm[0], MESH, config=config).classifier
    assert random.critics is None  # there is no estimate of draws
    with pytest.raises(InputError, match="a classifier that is not random"):
        build.build_attack(penalised_pgd(1), views=random)


def test_the_reference_of_a_run_is_a_source(calm):
    restored = build.restore(calm[0], MESH)
    another = build.another_run(MESH, restored)
    x = jnp.asarray(restored.run.splits.test.images[:3])
    expected = restored.another("reference").logits_fn(x)
    for source in (":reference", f"{calm[0]}:reference"):
        np.testing.assert_array_equal(another(source)(x), expected)
    assert jnp.abs(another(str(calm[0]))(x) - expected).max() > 1e-3
    with pytest.raises(InputError, match="`source` must name a run"):
        build.another_run(MESH)(":reference")


def test_networks_alone_keep_the_models_own_params():
    model = build.build_model(dict(name="small_cnn", stages=((4,),)), num_classes=3)
    params, _ = Networks(model).init(jax.random.key(0), jnp.zeros((1, 8, 8, 1)))
    assert "model" not in params
    assert Networks(model).weights(params, {}, "model") == (params, {})
    config = ml_collections.ConfigDict(dict(num_epochs=1))
    assert Networks(model).trained_classifier(config) == "model"
