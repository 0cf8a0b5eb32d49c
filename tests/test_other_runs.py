"""What is looked at beside a run: surrogates, other models, key areas, step grids."""

import dataclasses
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import pytest
from short_runs import MESH, trained

from configs import digits_at_alp
from robustjax import InputError, attacks, build, evaluation, models, threats
from robustjax.config import areas
from robustjax.evaluation._access_section import access_cells

LINF = dict(name="linf", eps=0.1)
SMALL = dict(name="small_cnn", stages=((4,),), dense=8)


def tiny(seed, **changes):
    config = digits_at_alp.get_config("undefended").unlock()
    config.seed, config.data.validation, config.data.batch_size = seed, 0.0, 240
    config.model = dict(SMALL)
    config.train.num_epochs, config.train.selection = 1, "last"
    config.update(changes)
    return config


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    root = tmp_path_factory.mktemp("runs")
    for seed, name in enumerate(("own", "gray", "other")):
        trained(tiny(seed), root / name)
    return root


@pytest.fixture(scope="module")
def own(runs):
    return build.restore(runs / "own", MESH)


def model_of(source):
    return build.another_run(MESH).model_fn(source)


def block(**more):
    given = dict(threat=LINF, step_size=0.025, num_steps=3, batch_size=16)
    return given | dict(layer="relu1_1") | more


def areas_of(own, test, evaluated, total=10):
    found = build.key_areas(evaluated, test, total, own.classifier, model_of)
    assert found is not None
    return found


def looked_at(own, test, evaluated, total=10):
    found = areas_of(own, test, evaluated, total)
    result = SimpleNamespace(index=test.index[:total], labels=test.labels[:total])
    return build.attention(own.classifier, result, test, found)


# --- key areas -----------------------------------------------------------------------


def test_every_model_sees_clean_gray_box_and_white_box_images(runs, own):
    test = own.run.splits.test
    evaluated = block(reference=str(runs / "other"), gray=str(runs / "gray"))
    evaluated |= dict(beside=f"{runs / 'gray'},{runs / 'other'}")
    found = looked_at(own, test, evaluated)
    names = ("clean", "gray-box PGD-3", "white-box PGD-3")
    seen = {(row["model"], row["images"], row["map"]) for row in found["rows"]}
    maps = ("attention", "grad_cam")
    models_shown = ("this", "gray", "other")
    expected = {(m, n, k) for m in models_shown for n in names for k in maps}
    # Its only surrogate would be itself.
    assert seen == {w for w in expected if w[:2] != ("gray", names[1])}
    assert set(found["pictures"]) == seen
    shown = lambda m, n: found["pictures"][(m, n, "attention")][0]
    x = np.asarray(test.images[:4])
    for model in models_shown:
        np.testing.assert_array_equal(shown(model, "clean"), x)
        assert np.abs(shown(model, names[2]) - x).max() == pytest.approx(0.1)
    # White-box images are each model's own, and those from one surrogate the same.
    assert (shown("this", names[2]) != shown("other", names[2])).any()
    np.testing.assert_allclose(
        shown("this", names[1]), shown("other", names[1]), atol=1e-6
    )
    keys = jax.vmap(jax.random.fold_in, (None, 0))(
        jax.random.key(0), jnp.asarray(test.index[:10], jnp.uint32)
    )
    pgd = attacks.pgd(threats.linf(0.1), step_size=0.025, num_steps=3)
    surrogate = build.restore(runs / "gray", MESH).logits_fn
    gray = attacks.transfer(pgd, [surrogate])
    expected = gray(keys, own.logits_fn, *first(test, 10))
    np.testing.assert_allclose(shown("this", names[1]), expected[:4], atol=1e-5)
    alone = looked_at(own, test, block(reference=str(runs / "other")))
    assert {row["images"] for row in alone["rows"]} == {"clean", names[2]}
    assert {row["model"] for row in alone["rows"]} == {"this"}


def test_models_are_written_as_suites_write_them(runs, own):
    test = own.run.splits.test
    another = build.another_run(MESH, own)
    plain, named = str(runs / "gray"), f"{runs / 'gray'}:model"
    x = jnp.asarray(test.images[:2])
    logits = another.model_fn(plain)(x).logits
    np.testing.assert_array_equal(another.model_fn(named)(x).logits, logits)
    evaluated = block(reference=named, gray=named, beside=named)
    found = build.key_areas(evaluated, test, 4, own.classifier, another.model_fn)
    assert found is not None
    assert [len(of) for of in found.gray.values()] == [1, 0]  # not from itself
    assert list(found.beside) == ["gray:model"]
    with pytest.raises(InputError, match="'teacher'"):
        another.model_fn(f"{plain}:teacher")


def first(test, count):
    return jnp.asarray(test.images[:count]), jnp.asarray(test.labels[:count])


def test_areas_that_are_missing_are_counted(own, tmp_path):
    test = own.run.splits.test
    boxes = np.tile(np.float32([1, 1, 4, 4]), (10, 1))
    boxes[[2, 5, 6]] = np.nan
    np.savez(tmp_path / "boxes.npz", boxes=boxes)
    masks = np.zeros((10, 8, 8), np.float32)  # [N, H, W], 0 and not NaN
    masks[[0, 1, 3, 4, 7, 8, 9], 1:4, 1:4] = 1
    np.savez(tmp_path / "masks.npz", masks=masks)
    for name in ("boxes", "masks"):
        found = looked_at(own, test, block(masks=str(tmp_path / f"{name}.npz")))
        assert "3 of 10 images have no area" in found["masks"]
        counts = {row["count"] for row in found["rows"] if row["map"] == "attention"}
        assert counts == {7}


def test_areas_of_a_split_in_another_order_are_found_by_their_places(own, tmp_path):
    test = own.run.splits.test
    mixed = test.take(np.random.default_rng(1).permutation(10))
    masks = np.zeros((10, 8, 8))
    masks[np.arange(10), np.arange(10) % 8] = 1
    masks[:, 0, 0] = np.arange(10) / 10  # no two are alike
    at, path = np.argsort(mixed.index), tmp_path / "masks.npz"
    np.savez(path, masks=masks, index=mixed.index[at])
    areas = areas_of(own, mixed, block(masks=str(path)))
    np.testing.assert_array_equal(areas.masks[at], masks)
    np.savez(path, masks=masks)
    with pytest.raises(InputError, match="must hold `index`"):
        areas_of(own, mixed, block(masks=str(path)))
    np.savez(path, masks=masks, index=np.arange(2000, 2010))
    with pytest.raises(InputError, match="every image that is judged in `index`"):
        areas_of(own, mixed, block(masks=str(path)))


def test_models_that_do_not_fit_are_refused_before_any_attack(runs, own):
    test = own.run.splits.test

    def of(num_classes=10, side=8, **changes):
        module = models.small_cnn(
            **{k: v for k, v in (SMALL | changes).items() if k != "name"},
            num_classes=num_classes,
        )
        model = models.from_linen(module)
        weights = model.init(jax.random.key(0), jnp.zeros((1, side, side, 1)))
        return lambda source: models.model_fn(model, *weights)

    reference = dict(reference="somewhere", beside="a")
    for argument, find, words in (
        (reference, of(num_classes=3), "`evaluation.beside` a has 3 classes"),
        (reference | dict(gray="b", beside=()), of(num_classes=3), "gray` b has 3"),
        (dict(reference, beside="b"), of(side=12), "does not take images"),
    ):
        with pytest.raises(InputError, match=words) as error:
            build.key_areas(block(**argument), test, 4, own.classifier, find)
        assert "\n" not in str(error.value)
    with pytest.raises(InputError, match="relu9"):
        build.key_areas(
            block(reference="a", layer="relu9"), test, 4, own.classifier, of()
        )


def test_names_beside_are_short_where_they_differ():
    named = lambda runs: areas._named(dict(beside=runs), "beside")
    assert named("runs/a,runs/b") == {"a": "runs/a", "b": "runs/b"}
    assert list(named("one/a,two/a")) == ["one/a", "two/a"]
    assert named(()) == {}


# --- surrogates ----------------------------------------------------------------------


def test_a_surrogate_is_read_once_and_has_to_fit(runs, own, monkeypatch):
    another = build.another_run(MESH, own)
    source = str(runs / "gray")
    assert another(source) is another(source)
    small = dataclasses.replace(own.run.splits.test.take(slice(4)))
    of = lambda test: own._replace(
        run=dataclasses.replace(
            own.run, splits=dataclasses.replace(own.run.splits, test=test)
        )
    )
    fewer = dataclasses.replace(
        small, class_names=small.class_names[:3], labels=small.labels % 3
    )
    wider = dataclasses.replace(small, images=np.zeros((4, 9, 9, 1), np.float32))
    for test, words in ((fewer, "has 10 classes, .* judged 3"), (wider, "images")):
        suite = [dict(name="fgsm", threat=LINF, source=source, access="gray")]
        with pytest.raises(InputError, match=words) as error:
            build.build_attack(suite[0], build.another_run(MESH, of(test)))
        assert "\n" not in str(error.value)


def test_attacks_look_into_restored_runs(runs, own):
    another = build.another_run(MESH, own)
    sources = [str(runs / "gray"), str(runs / "other")]
    climb = dict(name="bim", threat=LINF, step_size=0.02, num_steps=2)
    attack = dict(climb, pairing=dict(attention=1.0, layers=("relu1_1",)))
    given = dict(name="transfer", attack=attack, sources=[sources], access="gray")
    named = build.build_attack(given, another, own.classifier)
    x, y = first(own.run.splits.test, 4)
    x_adv = jax.jit(named.attack)(jax.random.key(0), own.logits_fn, x, y)
    assert 0 < np.abs(x_adv - x).max() <= 0.1 + 1e-6
    assert named.parameters["attack"]["pairing"]["attention"] == 1.0


def judged(workdir, layer):
    config = build.read_config(workdir)
    config.evaluation.layer = layer
    return build.restore(workdir, MESH, config=config)


def adaptive(views, another, gray):
    """The A6 rows of the suite by their labels."""
    evaluated = block(gray=gray, adaptive_restarts=1)
    evaluated["layer"] = views.paired_layers[0]
    suite = build.build_suite("at_alp_adaptive", evaluated, another, views)
    return {a.name: a for a in suite if a.name.startswith("A6")}


def test_a_surrogate_that_pairs_nothing_compares_as_the_judged_run(runs, own):
    """Gray-2: the same network, trained without any defense."""
    paired, source = judged(runs / "own", "relu1_1"), str(runs / "gray")
    another = build.another_run(MESH, paired)
    found = adaptive(paired.classifier, another, source)
    assert {f"A6 gray, A{i}" for i in range(1, 6)} == set(found)
    climb = dict(name="pgd", threat=LINF, step_size=0.02, num_steps=2)
    x, y = first(own.run.splits.test, 4)

    def attacked(**more):
        attack = dict(climb, pairing=dict(attention=5.0) | more)
        given = dict(name="transfer", attack=attack, sources=[[source]], access="gray")
        named = build.build_attack(given, another, paired.classifier)
        return jax.jit(named.attack)(jax.random.key(0), own.logits_fn, x, y)

    np.testing.assert_array_equal(attacked(), attacked(layers=("relu1_1",)))
    assert (np.abs(attacked() - attacked(attention=0.0)) > 1e-3).any()


def test_a_surrogate_without_the_layers_stays_out_of_rows_that_look_at_them(
    runs, tmp_path
):
    trained(tiny(3, model=dict(SMALL, stages=((4,), (4,)))), tmp_path / "deep")
    deep, source = judged(tmp_path / "deep", "relu2_1"), str(runs / "gray")
    another = build.another_run(MESH, deep)
    both = adaptive(deep.classifier, another, f"{source},{tmp_path / 'deep'}")
    labels = [f"A6 gray, A{i}" for i in (1, 2, 3, 4, 5)]
    labels[1] += f" without {source}"
    labels[3] += f" without {source}"
    assert list(both) == labels
    alone = adaptive(deep.classifier, another, source)
    assert list(alone) == ["A6 gray, A1", "A6 gray, A3", "A6 gray, A5"]
    climb = dict(name="bim", threat=LINF, step_size=0.02, num_steps=1)
    block = dict(climb, pairing=dict(attention=1.0))
    given = dict(name="transfer", attack=block, sources=[[source]], access="gray")
    with pytest.raises(InputError, match=f"`source` {source} has no `layers`") as error:
        build.build_attack(given, another, deep.classifier)
    assert "relu2_1" in str(error.value)
    assert "\n" not in str(error.value)


# --- by access and surrogate ---------------------------------------------------------


def test_accuracies_by_surrogate_are_the_worst_of_its_attacks(own):
    right = np.ones(4, bool)

    def attack(name, broken, counts=True, **parameters):
        correct = right.copy()
        correct[list(broken)] = False
        return SimpleNamespace(
            **dict(name=name, correct=correct, counts=counts, seen=None, norm=None),
            parameters=parameters,
        )

    joint = dict(name="transfer", sources=[["runs/a", "runs/b"]])
    far = dict(attack=dict(threat=dict(name="linf", eps=0.25)))
    result = SimpleNamespace(
        clean_correct=right,
        clean_seen=None,
        draws=1,
        attacks=[
            attack("PGD", [0, 1, 2]),
            attack("one", [0], access="gray", source="runs/a"),
            attack("two", [1, 2], access="gray", source="runs/a"),
            attack("black", [], access="black", source="runs/c"),
            attack("three", [0], access="gray", source=["runs/a", "runs/b"]),
            attack("A6", [3], access="gray", name_="x", attacks=[dict(attack=joint)]),
            attack("nowhere", [0], False, access="black", source="runs/c"),
            attack("far", [0, 1, 2], False, access="black", source="runs/c", **far),
        ],
    )
    found = evaluation.surrogate_accuracies(result)
    jointly = "runs/a + runs/b jointly"
    assert [
        (row["access"], row["surrogate"], row["accuracy"], row["strongest"])
        for row in found
    ] == [
        ("gray", "runs/a", 0.25, "two"),
        ("gray", jointly, 0.5, "three"),
        ("black", "runs/c", 1.0, "black"),
        ("black", "runs/c", 0.25, "far"),
    ]
    assert [row.get("at") for row in found] == [None] * 3 + ["linf 0.25"]
    elsewhere = {"linf 0.25": dict(white=0.0, black=0.25)}
    table = access_cells(dict(white=0.25, gray=0.0, black=1.0), found, elsewhere)
    assert len(table) == 1 + 3 + 3 + 2 + 1
    assert table[-1] == ("", "runs/c", "1", "25.00%", "far")
    assert ("white-box at linf 0.25 (not counted)", "all", "", "0.00%", "") in table
    assert ("white-box", "all", "", "25.00%", "") in table
    assert ("", jointly, "2", "50.00%", "three") in table


# --- steps, limits -------------------------------------------------------------------


def test_a_grid_has_restarts_and_more_of_the_best_step_size(own):
    test = own.run.splits.test
    evaluated = block(grid_restarts=2, best_restarts=3)
    options = dict(key=jax.random.key(0), batch_size=16, num_examples=16, mesh=MESH)
    found = build.step_curves(own.classifier, test, evaluated, [1, 3], **options)
    assert (found["num_restarts"], found["best"]["num_restarts"]) == (2, 3)
    left = [worst[-1] for worst in found["worst"]]
    assert found["best"]["step_sizes"] == [found["step_sizes"][int(np.argmin(left))]]
    assert found["best"]["worst"][0][-1] <= min(left)
    none = build.step_curves(
        own.classifier, test, dict(evaluated, best_restarts=0), [1], **options
    )
    assert "best" not in none


@pytest.mark.parametrize("eps", [0.0, float("inf"), -0.1, 3.0])
def test_steps_without_a_radius_are_refused_with_the_flags(eps):
    wrong = block(threat=dict(name="l2" if eps == float("inf") else "linf", eps=eps))
    with pytest.raises(InputError, match="eps"):
        build.as_steps(["1", "5"], wrong)
    assert build.as_steps(["1", "5"], block()) == [1, 5]
    assert build.as_steps(["1", "5"]) == [1, 5]


def test_a_curve_above_the_limit_is_said(own):
    labels = np.array([0, 0, 1, 2])
    correct = np.array(
        [[True] * 4, [True, True, True, False], [True] * 2 + [False] * 2]
    )
    evaluated = dict(threat=dict(name="linf", eps=0.1))
    curve = build.as_curve(evaluated, [0.1, 0.5, 0.6], correct, labels)
    (line,) = evaluation.above_limit(curve)
    assert "eps 0.5" in line
    assert "75.00%" in line
    assert "50.00%" in line
    assert evaluation.above_limit(dict(eps=[0.5], accuracy=[1.0])) == []


# --- where a run begins --------------------------------------------------------------


def test_a_teacher_is_an_ordinary_runs_model(runs, own, tmp_path):
    def adopted(place):
        config = tiny(3)
        config.networks = ml_collections.ConfigDict(dict(reference=dict(SMALL)))
        config.adopt = ml_collections.ConfigDict(dict(reference=place))
        networks = build.build_networks(config, num_classes=10)
        take = build.initial_weights(config, networks, MESH)
        shapes = jax.eval_shape(
            networks.init, jax.random.key(0), jnp.zeros((1, 8, 8, 1))
        )
        assert take is not None
        return take(*shapes)

    _, params, model_state = own.classifier._weights
    for place in (runs / "own", f"{runs / 'own'}:model"):
        found, state = adopted(str(place))
        jax.tree.map(np.testing.assert_array_equal, found["reference"], params)
        jax.tree.map(np.testing.assert_array_equal, state["reference"], model_state)
    with pytest.raises(InputError, match=r"`adopt\.reference`.*model.*'teacher'"):
        adopted(f"{runs / 'own'}:teacher")
