"""Groups and figures by hand, with probes that are sums; what the report shows."""

import dataclasses
import json

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from robustjax import InputError, attacks, information, models, threats, training
from robustjax.data import Dataset
from robustjax.evaluation import (
    AttackResult,
    NamedAttack,
    Robustness,
    evaluate,
    information_of,
    summarise,
    write_report,
)

# One pixel, two classes: right of a half is class 1.
X = np.float32([0.1, 0.4, 0.6, 0.9, 0.7]).reshape(-1, 1, 1, 1)
Y = np.int32([0, 0, 1, 1, 0])  # the last one is wrong
STEP = np.float32([0.2, 0.2, -0.2, -0.2, -0.1]).reshape(-1, 1, 1, 1)  # fools two
DATA = Dataset(X, Y, np.arange(5), ("low", "high"))
GROUPS = {
    "all": [0, 1, 2, 3, 4],
    "right": [0, 1, 2, 3],
    "fooled": [1, 2],
    "survived": [0, 3],
}


def logits_fn(x):
    x = x.reshape(len(x), 1)
    return jnp.concatenate([0.5 - x, x - 0.5], axis=1)


def probe(weight):
    """Tells samples from logits: weight * sample + 10 * logit of class 1."""
    return lambda samples, z: weight * samples.reshape(len(z)) + 10 * z[:, 1]


PROBES = dict(natural=probe(1), adversarial=probe(3), standard=probe(7))


def an_attack(name="step", step=STEP, **changes):
    x_adv = X + step
    right = (x_adv.ravel() > 0.5) == Y
    result = AttackResult(
        name=name,
        parameters={"name": name},
        correct=right,
        distance={norm: np.abs(step).ravel() for norm in ("linf", "l2", "l1")},
        lowest=float(x_adv.min()),
        highest=float(x_adv.max()),
        mass_above_one=0.0,
        seconds=1.0,
        x_adv=x_adv,
    )
    return dataclasses.replace(result, **changes)


def a_result(*found, **changes):
    result = Robustness(
        index=np.arange(5),
        labels=Y,
        clean_correct=(X.ravel() > 0.5) == Y,
        clean_seconds=0.1,
        attacks=found or (an_attack(),),
    )
    return dataclasses.replace(result, **changes)


def expected():
    x, x_adv, noise = X.ravel(), (X + STEP).ravel(), STEP.ravel()
    logit, logit_adv = 10 * (x - 0.5), 10 * (x_adv - 0.5)
    return {
        "natural_clean": x + logit,
        "natural_adv": x + logit_adv,
        "adversarial_clean": 3 * noise + logit,
        "adversarial_adv": 3 * noise + logit_adv,
        "standard_clean": 7 * x + logit,
        "standard_adv": 7 * x_adv + logit_adv,
    }


def test_figures_by_hand():
    found = information_of(a_result(), DATA, logits_fn, **PROBES)
    assert found["num_examples"] == 5
    assert found["quantities"] == list(expected())
    (attack,) = found["attacks"]
    assert attack["name"] == "step"
    for group, rows in GROUPS.items():
        figures = attack["groups"][group]
        assert figures["count"] == len(rows)
        for quantity, values in expected().items():
            values = values[rows]
            assert figures[quantity] == {
                "mean": pytest.approx(values.mean(), abs=1e-5),
                "deviation": pytest.approx(values.std(ddof=1), abs=1e-5),
                "smallest": pytest.approx(values.min(), abs=1e-5),
            }


@pytest.mark.parametrize("name", PROBES)
def test_a_single_probe_gives_its_two_quantities(name):
    whole = information_of(a_result(), DATA, logits_fn, **PROBES)
    found = information_of(a_result(), DATA, logits_fn, **{name: PROBES[name]})
    assert found["quantities"] == [f"{name}_clean", f"{name}_adv"]
    for group in GROUPS:
        row, of_all = (f["attacks"][0]["groups"][group] for f in (found, whole))
        assert set(row) == {"count", *found["quantities"]}
        for quantity, figures in row.items():
            assert figures == of_all[quantity]


def strict(content):
    def refuse(constant):
        raise AssertionError(f"{constant} is no JSON")

    return json.loads(json.dumps(content), parse_constant=refuse)


def test_empty_groups_and_infinite_estimates_are_null():
    nothing = an_attack("nothing", np.zeros_like(STEP))
    infinite = lambda samples, z: jnp.where(samples.reshape(-1) > 0.8, jnp.inf, 1.0)
    found = information_of(
        a_result(nothing), DATA, logits_fn, natural=probe(1), standard=infinite
    )
    assert strict(found) == found
    none = dict(mean=None, deviation=None, smallest=None)
    groups = found["attacks"][0]["groups"]
    assert groups["fooled"] == dict(count=0, **dict.fromkeys(found["quantities"], none))
    assert groups["survived"]["count"] == 4
    assert groups["survived"]["natural_adv"] == groups["survived"]["natural_clean"]
    assert groups["all"]["standard_clean"] == none
    wrong = a_result(clean_correct=np.zeros(5, bool))
    found = strict(information_of(wrong, DATA, logits_fn, natural=probe(1)))
    counts = [g["count"] for g in found["attacks"][0]["groups"].values()]
    assert counts == [5, 0, 0, 0]


def test_of_one_image_the_deviation_is_zero():
    one = an_attack("one", STEP * np.float32([0, 1, 0, 0, 0]).reshape(-1, 1, 1, 1))
    found = information_of(a_result(one), DATA, logits_fn, natural=probe(1))
    figures = found["attacks"][0]["groups"]["fooled"]["natural_adv"]
    assert figures["deviation"] == 0
    assert figures["mean"] == figures["smallest"] == pytest.approx(1.4, abs=1e-5)


def test_code_is_compiled_once_for_all_attacks():
    natural = chex.assert_max_traces(probe(1), n=2)  # on x, and on any x_adv
    both = a_result(an_attack(), an_attack("half", STEP / 2))
    found = information_of(both, DATA, logits_fn, natural=natural)
    one, other = (attack["groups"]["all"] for attack in found["attacks"])
    assert one["natural_clean"] == other["natural_clean"]
    assert one["natural_adv"] != other["natural_adv"]


def test_pixels_in_bytes_and_part_of_a_data_set():
    x = np.round(255 * X).astype(np.uint8)
    whole = Dataset(np.tile(x, (2, 1, 1, 1)), np.tile(Y, 2), np.arange(10), ("a", "b"))
    found = information_of(a_result(), whole, logits_fn, **PROBES)
    near = information_of(a_result(), DATA, logits_fn, **PROBES)
    chex.assert_trees_all_close(
        found["attacks"][0]["groups"], near["attacks"][0]["groups"], atol=0.1
    )


@pytest.fixture(scope="module")
def with_critics():
    """Real images, a real attack, and the two critics of NAMID as they start."""
    rng = np.random.default_rng(0)
    images = rng.random((20, 8, 8, 1), np.float32)
    labels = rng.integers(3, size=20).astype(np.int32)
    dataset = Dataset(images, labels, np.arange(20), ("a", "b", "c"))
    weights = jnp.float32(rng.normal(size=(64, 3)))
    predict = jax.tree_util.Partial(lambda w, x: x.reshape(len(x), -1) @ w, weights)
    attack = attacks.fgsm(threats.linf(0.05))
    result = evaluate(
        *(predict, dataset, [NamedAttack("fgsm", attack)]),
        key=jax.random.key(0),
        keep_adversarial=True,
    )
    critic = models.mi_estimator(
        models.LocalCritic(8, widths=(3, 5)), models.GlobalCritic(8)
    )
    bank = jnp.float32(rng.random((7, 8, 8, 1)))
    made = jax.jit(critic.init)(jax.random.key(1), bank[:2], jnp.ones((2, 3)))
    probes = dict(
        natural=information.probe(critic, *made, bank),
        adversarial=information.probe(critic, *made, bank / 10, block_size=2),
    )
    return result, dataset, predict, probes


def test_nothing_depends_on_batches_or_devices(with_critics):
    result, dataset, predict, probes = with_critics
    whole = information_of(result, dataset, predict, **probes)
    single = training.data_mesh(jax.devices()[:1])
    for mesh, size in ((None, 8), (single, 7)):
        found = information_of(
            result, dataset, predict, **probes, batch_size=size, mesh=mesh
        )
        groups = (f["attacks"][0]["groups"] for f in (found, whole))
        chex.assert_trees_all_close(*groups, atol=1e-4)
    # The critics by hand.
    x, x_adv = jnp.asarray(dataset.images), jnp.asarray(result.attacks[0].x_adv)
    by_hand = {
        "natural_clean": probes["natural"](x, predict(x)),
        "natural_adv": probes["natural"](x, predict(x_adv)),
        "adversarial_clean": probes["adversarial"](x_adv - x, predict(x)),
        "adversarial_adv": probes["adversarial"](x_adv - x, predict(x_adv)),
    }
    groups = whole["attacks"][0]["groups"]
    for quantity, values in by_hand.items():
        mean = groups["all"][quantity]["mean"]
        assert mean == pytest.approx(float(values.mean()), abs=1e-4)
        fooled = values[result.clean_correct & ~result.attacks[0].correct]
        mean = groups["fooled"][quantity]["mean"]
        assert mean == pytest.approx(float(fooled.mean()), abs=1e-4)


@pytest.mark.parametrize(
    ("changes", "probes", "message"),
    [
        ({}, {}, "at least one"),
        (dict(index=np.arange(5) + 1), PROBES, "`dataset` must be what"),
        (dict(draws=3), PROBES, "random classifier"),
        (dict(attacks=(an_attack(x_adv=None),)), PROBES, "keep_adversarial"),
        ({}, dict(PROBES, batch_size=0), "batch_size"),
    ],
)
def test_bad_input(changes, probes, message):
    with pytest.raises(InputError, match=message):
        information_of(a_result(**changes), DATA, logits_fn, **probes)


def test_a_classifier_that_draws_once_is_refused():
    with pytest.raises(InputError, match=r"must return \[B, K\]"):
        information_of(a_result(), DATA, lambda x: logits_fn(x)[None], **PROBES)


def written(directory, result, **probes):
    found = information_of(result, DATA, logits_fn, **probes)
    summary = summarise(result)
    write_report(directory, summary, context={"seed": 0}, information=found)
    assert json.loads((directory / "report.json").read_text())["information"] == found
    for path in directory.glob("*.png"):
        assert path.read_bytes().startswith(b"\x89PNG")
    names = {path.name for path in directory.iterdir()}
    return names, (directory / "report.md").read_text()


def test_the_report_has_a_table_and_bars(tmp_path):
    nothing = an_attack("nothing", np.zeros_like(STEP))
    names, text = written(tmp_path, a_result(an_attack(), nothing), **PROBES)
    assert names > {"report.json", "report.md", "report.html", "information.png"}
    assert "information_radar.png" not in names
    assert "](information.png)" in text
    assert "radar" not in text
    lines = [line for line in text.splitlines() if line.startswith("|")]
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    rows = {tuple(row[:2]): row[2:] for row in cells}
    titles = [name.replace("_", " ") for name in expected()]
    assert rows["attack", "images"] == ["n", *titles]
    natural = expected()["natural_clean"][GROUPS["fooled"]]
    mean, deviation = natural.mean(), natural.std(ddof=1)
    assert rows["step", "fooled"][:2] == ["2", f"{mean:.3f} ({deviation:.3f})"]
    assert rows["nothing", "fooled"] == ["0", *["-"] * 6]


@pytest.mark.parametrize(
    ("probes", "radar"),
    [
        (PROBES, True),
        (dict(standard=probe(7)), True),
        (dict(adversarial=probe(3)), False),
    ],
)
def test_a_radar_has_three_attacks_and_a_critic_of_images(tmp_path, probes, radar):
    several = [an_attack(str(n), STEP / n) for n in (1, 2, 3)]
    names, text = written(tmp_path, a_result(*several), **probes)
    assert ("information_radar.png" in names) == radar
    assert ("(information_radar.png)" in text) == radar


def test_pictures_of_estimates_that_are_not_finite(tmp_path):
    several = [an_attack(str(n), STEP / n) for n in (1, 2, 3)]
    infinite = lambda samples, z: jnp.full(len(z), -jnp.inf)
    names, _ = written(tmp_path, a_result(*several), natural=infinite)
    assert {"information.png", "information_radar.png"} < names
