import json
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import pytest

import robustjax
from configs import digits_pgd
from robustjax import InputError, build, models, objectives, threats, training
from robustjax.build import Networks
from robustjax.config import names
from robustjax.types import Batch

LINF = {"name": "linf", "eps": 0.1}
PGD = {"name": "pgd", "threat": LINF, "step_size": 0.05, "num_steps": 2}


def logits_fn(x):
    flat = x.reshape(x.shape[0], -1)
    return jnp.concatenate([flat[:, :1], 1 - flat[:, :1]], 1)


def test_a_block_is_its_name_and_its_keywords():
    threat = build.build_threat({"name": "l2", "eps": 0.5})
    assert (threat.name, threat.eps) == ("l2", 0.5)
    named = build.build_attack({**PGD, "num_steps": 4, "label": "mine"})
    assert named.name == "mine"
    x, y = jnp.full((3, 2, 2, 1), 0.4), jnp.zeros(3, jnp.int32)
    x_adv = named.attack(jax.random.key(0), logits_fn, x, y)
    np.testing.assert_allclose(x_adv[:, 0, 0, 0], 0.3, atol=1e-6)


def test_an_attack_is_described_with_all_its_defaults():
    block = {
        "name": "restarts",
        "num_restarts": 3,
        "attack": {**PGD, "objective": "margin", "random_start": "none"},
    }
    parameters = build.build_attack(block).parameters
    assert parameters == {
        "name": "restarts",
        "num_restarts": 3,
        "objective": "cross_entropy",
        "at_once": None,
        "attack": {
            "name": "pgd",
            "threat": {"name": "linf", "eps": 0.1, "bounds": [0.0, 1.0]},
            "step_size": 0.05,
            "num_steps": 2,
            "objective": "margin",
            "random_start": {"name": "none"},
            "iterate": "last",
            "freeze_broken": False,
        },
    }


def test_random_starts_have_names():
    x, y = jnp.full((4, 2, 2, 1), 0.5), jnp.zeros(4, jnp.int32)
    still = {**PGD, "step_size": 1e-9}

    def moved(start):
        attack = build.build_attack({**still, "random_start": start}).attack
        return float(jnp.abs(attack(jax.random.key(0), logits_fn, x, y) - x).max())

    assert moved("none") < 1e-6
    assert 0.05 < moved("uniform") <= 0.1 + 1e-6
    assert 1e-5 < moved({"name": "gaussian", "scale": 0.001}) < 0.01
    assert moved({"name": "uniform", "clean": 1.0}) < 1e-6
    assert 0.05 < moved({"name": "uniform", "clean": 0.0}) <= 0.1 + 1e-6
    for wrong in ({"name": "uniform", "clear": 0.2}, {"name": "uniform", "clean": 2}):
        with pytest.raises(InputError, match=r"`random_start`|`share`"):
            moved(wrong)


@pytest.mark.parametrize(
    ("make", "word"),
    [
        (lambda: build.build_threat({"name": "l7", "eps": 0.1}), "`threat name`"),
        (lambda: build.build_threat({"eps": 0.1}), "`threat name`"),
        (lambda: build.build_threat({**LINF, "radius": 1}), r"radius.* eps"),
        (lambda: build.build_threat({"name": "linf", "eps": 8}), "Did you mean 8/255"),
        (lambda: build.build_attack({**PGD, "steps": 3}), "steps.*num_steps"),
        (lambda: build.build_attack({**PGD, "objective": "mse"}), "`objective name`"),
        (lambda: build.build_attack({**PGD, "random_start": "no"}), "`random_start`"),
        (lambda: build.build_augmentation({"blur": {}}), "`augment`"),
        (lambda: build.build_suite("slow", {}), "`suite`"),
        (
            lambda: build.build_optimizer(
                {"name": "sgd", "schedule": {"name": "cosine", "peak": 1}},
                total_steps=3,
            ),
            "schedule",
        ),
        (
            lambda: build.build_loss(
                {"name": "trades"}, Networks(models.from_linen(None))
            ),
            "The block of loss",
        ),
    ],
)
def test_a_wrong_block_is_named(make, word):
    with pytest.raises(InputError, match=word) as caught:
        make()
    assert "\n" not in str(caught.value)


def test_the_table_of_objectives_is_the_modules():
    for name, objective in names.OBJECTIVES.items():
        assert objective is getattr(objectives, name)
    for name, threat in names.THREATS.items():
        assert threat is getattr(threats, name)


def test_schedules_stretch_over_the_run():
    block = {"name": "sgd", "momentum": 0.0}
    schedule = {"name": "piecewise", "value": 1.0, "drops": (0.5,), "factor": 0.1}
    optimizer = build.build_optimizer({**block, "schedule": schedule}, total_steps=4)
    params = {"w": jnp.zeros(())}
    state, steps = optimizer.init(params), []
    for _ in range(4):
        updates, state = optimizer.update({"w": jnp.ones(())}, state, params)
        steps.append(-float(updates["w"]))
    np.testing.assert_allclose(steps, [1.0, 1.0, 0.1, 0.1], rtol=1e-6)


def test_the_quick_suite_is_pgd_and_its_best_restart():
    block = digits_pgd.get_config().evaluation
    first, second = build.build_suite("quick", block)
    assert (first.name, second.name) == ("PGD-40", "PGD-40 x 5 restarts")
    assert second.parameters["attack"]["iterate"] == "best"
    assert second.parameters["num_restarts"] == 5


def test_curve_steps_are_in_proportion():
    block = {"threat": LINF, "step_size": 0.05, "num_steps": 1}
    attack = build.curve_attack(block)(jnp.float32(0.2))
    x, y = jnp.full((1, 1, 1, 1), 0.5), jnp.zeros(1, jnp.int32)
    x_adv = attack(jax.random.key(0), logits_fn, x, y)
    assert 0.3 - 1e-6 <= float(x_adv[0, 0, 0, 0]) < 0.7
    with pytest.raises(InputError, match="--curve"):
        build.curve_attack({**block, "threat": {"name": "linf", "eps": 0.0}})


def test_awp_wraps_the_loss_of_its_block():
    model = models.from_linen(models.small_cnn(stages=((4,),), dense=8))
    inner = {"name": "adversarial", "attack": PGD, "clean_weight": 0.0}
    loss = build.build_loss(
        {"name": "awp", "loss": inner, "gamma": 0.01}, Networks(model)
    )
    x = jnp.full((2, 8, 8, 1), 0.5)
    params, state = model.init(jax.random.key(0), x)
    value, aux = loss(params, state, jax.random.key(1), Batch(x, jnp.array([1, 2])))
    assert value.shape == ()
    assert "accuracy/robust" in aux.metrics


def test_stages_come_in_the_order_of_their_names():
    config = digits_pgd.get_config().unlock()
    config.second = ml_collections.ConfigDict(config.train.to_dict())
    config.second.num_epochs = 3
    config.stages = ("second", "train")
    mesh = training.data_mesh()
    run = build.run(config.lock(), mesh, progress_bar=False)
    stages = build.build_stages(config, run.splits, run.networks, mesh)
    assert [(s.name, s.num_epochs) for s in stages] == [("second", 3), ("train", 40)]
    first, second = (next(iter(stage.data)).y for stage in stages)
    assert (first != second).any()
    for wrong, word in (((), "`stages`"), (("none",), "config.none")):
        config.unlock().stages = wrong
        with pytest.raises(InputError, match=word):
            build.build_stages(config, run.splits, run.networks, mesh)


def test_a_union_adds_what_it_names_to_the_training_images():
    config = digits_pgd.get_config().unlock()
    config.data.union = ml_collections.ConfigDict(
        {
            "total_variation": {"p_drop": 0.2, "max_steps": 20},
            "adversarial": {"workdir": "runs/other", "attack": {**PGD, "num_steps": 1}},
        }
    )
    train = build.load_data(config).train.take(slice(6))
    asked = []

    def other(workdir):
        asked.append(workdir)
        return logits_fn

    union = build.build_union(config, train, other)
    assert asked == ["runs/other"]
    assert len(union) == 18
    np.testing.assert_array_equal(union.labels, np.tile(train.labels, 3))
    original, adversarial, smooth = np.split(union.images, 3)  # by name
    np.testing.assert_array_equal(original, train.images)
    assert np.abs(smooth - original).max() > 0.01
    assert 0.05 < np.abs(adversarial - original).max() <= 0.1 + 1e-6
    again = build.build_union(config, train, other)
    np.testing.assert_array_equal(again.images, union.images)
    assert len(build.build_union(config, train, None)) == 18


EVALUATION = {"threat": LINF, "step_size": 0.025, "num_steps": 3, "num_restarts": 2}


def views_of(roles, *, head=False, defense=None, has_reference=True):
    guides = dict(
        features_fn=lambda z: z, images=jnp.zeros((2, 1)), labels=jnp.arange(2)
    )
    return SimpleNamespace(
        random_view=None,
        paired_layers=("stage1", "stage2"),
        has_head=head,
        has_transform=head or defense is not None,
        defense=defense,
        chooses="candidates" if defense == "nip" else None,
        critics=SimpleNamespace(roles=roles, has_reference=has_reference)
        if roles
        else None,
        view=lambda changes: logits_fn,
        judge=lambda changes: logits_fn,
        guides=lambda asked: guides | {"num_targets": 2},
        penalised=lambda attack, kind, changes: attack,
    )


def built(suite, views=None, **more):
    attacks = build.build_suite(
        suite, EVALUATION | more, lambda source: logits_fn, views
    )
    assert len({attack.name for attack in attacks}) == len(attacks)
    for attack in attacks:
        json.dumps(attack.parameters, allow_nan=False)
        assert not (attack.counts and attack.radii)
    return {attack.name: attack for attack in attacks}


@pytest.mark.parametrize("suite", names.SUITES)
def test_every_suite_builds(suite):
    views = {"wnll_adaptive": views_of((), head=True), "nip_paper": views_of(())}
    views["nip_adaptive"] = views_of((), defense="nip")
    views["at_alp_adaptive"] = views_of(())
    sources = {"at_alp_transfer": dict(gray="runs/a,runs/b", black="runs/c")}
    built(suite, views.get(suite), **sources.get(suite, {}))
    if suite == "nip_paper":
        built(suite, views["nip_adaptive"])


def test_the_suite_that_knows_critics():
    plain = built("namid_adaptive", views_of(()))
    one = built("namid_adaptive", views_of(("standard",)))
    both = built("namid_adaptive", views_of(("natural", "adversarial")))
    (transfer,) = [n for n in one if "source" in one[n].parameters]
    assert one[transfer].source is logits_fn
    assert one[transfer].parameters["source"] == ":reference"
    alone = built("namid_adaptive", views_of(("standard",), has_reference=False))
    assert set(one) - set(alone) == {transfer}
    told = lambda name: "information" in both[name].parameters
    rows = [both[name].parameters["information"] for name in filter(told, both)]
    assert len(rows) == 2 + 2 * 2 * 4
    assert len(set(one) - set(plain)) == 1 + 2 + 2 * 4
    assert {row.get("sign") for row in rows} == {None, 1, -1}
    climbed = both["training loss, margin, PGD-100 x 5"].parameters["attack"]
    assert climbed["objective"] == "margin"
    scaled = next(name for name in plain if "x 0.01" in name)
    assert plain[scaled].parameters["attack"]["objective"]["scale"] == 0.01


def test_black_box_rows_climb_the_surrogate():
    white = built("namid_paper")
    all_rows = built("namid_paper", surrogate="runs/other")
    black = [all_rows[name] for name in all_rows if name not in white]
    assert len(black) == len(white) == 7
    assert all(row.source is logits_fn for row in black)
    assert {row.parameters["source"] for row in black} == {"runs/other"}


def test_every_attack_has_a_name():
    public = {
        name
        for name, value in vars(robustjax.attacks).items()
        if callable(value) and getattr(value, "__module__", "").startswith("robustjax.")
    }
    # What takes functions or arrays, or makes no attack, is for code and not configs.
    code_only = {
        *("against", "apply_perturbation", "apgd_target", "autoattack_rand", "broken"),
        *("each_target", "estimated_gradient", "expectation", "fab_target"),
        *("gaussian_kernel", "keep_path", "keep_trajectory", "mass_above_one"),
        *("oblivious", "projected_gradient", "resize_and_pad", "transferable"),
        *("uniform_start", "universal_perturbation", "with_surrogate"),
        *("Placement", "Stage", "StagedAttack", "StageOutcome", "Trajectory"),
        *("WithPenalty", "PairingPenalty", "mean_penalty", "penalised", "around"),
        *("ensemble", "sign_start", "towards"),
        *("Candidates", "chosen", "pack_candidates", "unpack_candidates"),
    }
    assert public - code_only == set(names.ATTACKS)


def test_a_suite_of_ones_own(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text(
        "def get_config(evaluation):\n"
        "    inner = dict(name='fgsm', threat=evaluation['threat'])\n"
        "    free = dict(name='l2', eps=float('inf'))\n"
        "    return [dict(name='worst_case', attacks=[inner, inner], label='both'),\n"
        "            dict(name='ddn', threat=free, num_steps=3, radii=(0.5,))]\n"
    )
    both, ddn = build.build_suite(str(path), EVALUATION)
    assert (both.name, both.counts, len(both.parameters["attacks"])) == (
        "both",
        True,
        2,
    )
    assert (ddn.norm, ddn.radii, ddn.counts) == ("l2", (0.5,), False)
    assert ddn.parameters["threat"]["eps"] == "inf"


_FGSM = "name='fgsm', threat=dict(name='linf', eps=0.1)"


def _own(block):
    return f"def get_config(): return [dict({block})]"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "does not exist"),
        ("", "no function get_config"),
        ("def get_config(): return 3", "must return a list"),
        ("def get_config(): return [dict(name='pdg')]", "attack name.*'pdg'"),
        ("import sys; sys.exit(3)", "SystemExit: 3"),
        (_own("name='fgsm', threat='linf'"), "must be a block .* got 'linf'"),
        (_own("name='restarts', attack='fgsm', num_restarts=2"), "got 'fgsm'"),
        (_own(f"{_FGSM}, label=3"), "`name` of an attack .* got 3"),
        (_own(f"{_FGSM}, label='clean'"), "`name` of an attack .* got 'clean'"),
        (_own(f"{_FGSM}, counts='no'"), "`counts` .* got 'no'"),
    ],
)
def test_a_wrong_suite_is_named(tmp_path, content, message):
    path = tmp_path / "mine.py"
    if content is not None:
        path.write_text(content)
    with pytest.raises(InputError, match=message) as caught:
        build.build_suite(str(path), EVALUATION)
    assert "\n" not in str(caught.value)


def test_sources_of_a_transfer_are_runs():
    block = {"name": "transfer", "attack": PGD, "sources": ["runs/a", "runs/b"]}
    with pytest.raises(InputError, match="sources"):
        build.build_attack(block)
    asked = []

    def classifier(workdir):
        asked.append(workdir)
        return logits_fn

    attack = build.build_attack(block, classifier)
    assert asked == ["runs/a", "runs/b"]
    assert attack.parameters["sources"] == asked


def test_a_drawn_source_attacks_runs_and_the_model_itself():
    step = {"name": "unlabelled", "attack": {"name": "r_fgsm", "threat": LINF}}
    block = {"name": "drawn_source", "attack": step, "sources": ["a", "b"], "own": PGD}
    with pytest.raises(InputError, match="sources"):
        build.build_attack(block)
    asked = []

    def another(workdir):
        asked.append(workdir)
        return logits_fn

    named = build.build_attack(block, another)
    assert asked == ["a", "b"]
    assert named.parameters["sources"] == asked
    assert named.parameters["own"]["name"] == "pgd"
    assert named.parameters["attack"]["attack"]["random_step"] is None
    json.dumps(named.parameters, allow_nan=False)
    x, y = jnp.full((3, 2, 2, 1), 0.4), jnp.zeros(3, jnp.int32)
    assert (named.attack(jax.random.key(0), logits_fn, x, y) != x).any()
    with pytest.raises(InputError, match="`attack name`"):
        build.build_attack({**block, "own": {"name": "pdg"}}, another)
    model = models.from_linen(models.small_cnn(stages=((4,),), dense=8))
    loss = {"name": "trades", "attack": {**block, "attack": {**PGD, "objective": "kl"}}}
    build.build_loss(loss, Networks(model), another)
    assert asked == 2 * ["a", "b"]


@pytest.mark.parametrize("choice", ["least_likely", "runner_up", "random", "every"])
def test_a_target_is_chosen_by_name(choice):
    block = {**PGD, "name": "pgd_targeted", "choice": choice, "objective": "margin"}
    named = build.build_attack({**block, "random_start": "none"})
    assert named.parameters["choice"] == choice
    x, y = jnp.full((3, 2, 2, 1), 0.4), jnp.zeros(3, jnp.int32)  # 1, before and after
    x_adv = named.attack(jax.random.key(0), logits_fn, x, y)
    moved = 0.4 if choice == "every" else 0.3  # which spares what is wrong already
    np.testing.assert_allclose(x_adv[:, 0, 0, 0], moved, atol=1e-6)
    with pytest.raises(InputError, match="`choice` must be one of"):
        build.build_attack({**block, "choice": "last"})
