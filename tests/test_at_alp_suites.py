"""The suites of AT+ALP against section 8.6 of the spec, and what they are made of."""

import json
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import pytest

from robustjax import InputError, attacks, build, data, models, objectives, pairing
from robustjax.config import at_alp_suites
from robustjax.config.other_runs import Jointly

LINF = dict(name="linf", eps=0.1)
EVALUATION: dict[str, Any] = dict(threat=LINF, step_size=0.025, layer="stage3")
EVALUATION |= dict(paired_layers=("stage1", "stage3"))
WEIGHTS = (-10, -1, -0.1, 0.1, 1, 10)


def inside(block):
    """A block and all blocks in it."""
    yield block
    for name in ("attack", "start"):
        if name in block:
            yield from inside(block[name])
    for one in block.get("attacks", ()):
        yield from inside(one)


def named(block, *names):
    return [b for b in inside(block) if b["name"] in names]


def rows(**more):
    found = at_alp_suites.at_alp_adaptive(EVALUATION | more)
    labels = [block["label"] for block in found]
    assert len(set(labels)) == len(labels)
    return dict(zip(labels, found, strict=True))


def test_every_climb_has_200_steps_10_restarts_and_momentum():
    found = rows(gray="a,b,c", black="d")
    starred = {label: b for label, b in found.items() if label[:3] in SECTIONS}
    assert {label[:2] for label in starred} == {"A1", "A2", "A3", "A4", "A5", "A6"}
    for label, block in starred.items():
        if label.startswith("A4") or label.endswith("A4"):
            collision = named(block, "feature_collision")[0]
            assert (collision["num_steps"], collision["num_targets"]) == (200, 10)
            continue
        repeated = named(block, "restarts")
        assert {b["num_restarts"] for b in repeated} == {10}, label
        held = [c for b in repeated for c in named(b, "pgd", "mi_fgsm")]
        climbs = [c for c in named(block, "pgd", "mi_fgsm") if "iterate" in c]
        assert all(any(c is h for h in held) for c in climbs), label
        steps = {c["num_steps"] for c in climbs}
        assert (steps <= {100, 200} and 200 in steps) or "first" in label
    for label in ("A2 attention -10", "A3 logits +0.1", "A3 logits first"):
        both = {b["name"] for b in named(found[label], "pgd", "mi_fgsm")}
        assert both == {"pgd", "mi_fgsm"}, label
    for label in ("A5 from grey", "A5 from A4", "A5 from transfer"):
        climbs = [c for c in inside(found[label]["attack"]) if "iterate" in c]
        assert {c["name"] for c in climbs} == {"pgd", "mi_fgsm"}
        assert found[label]["jitter"] > 0  # or all restarts were the same
    both = named(found["A4 attention maps"], "feature_collision")
    assert [c["momentum"] for c in both] == [0, 1]
    assert {b["name"] for b in named(found["A1 margin, momentum, 200 x 10"], "mi_fgsm")}
    fewer = rows(adaptive_restarts=2)["A2 attention +1"]
    assert {b["num_restarts"] for b in named(fewer, "restarts")} == {2}


SECTIONS = ("A1 ", "A2 ", "A3 ", "A4 ", "A5 ", "A6 ")


def test_weights_of_both_signs_raise_and_lower_maps_and_logits():
    found = rows()
    given = [b["pairing"] for b in found.values() if "pairing" in b]
    expected = [{n: w} for n in ("attention", "logits") for w in WEIGHTS]
    assert given == expected
    assert "A2 attention +1" not in rows(paired_layers=(), layer=None)
    assert len(found) < 40


def test_logits_first_is_half_of_the_steps_and_half():
    (warm,) = named(rows()["A3 logits first"], "warm_start")
    assert warm["start"]["name"] == "drift"
    assert warm["start"]["num_steps"] == 100
    assert {b["num_steps"] for b in inside(warm["attack"]) if "num_steps" in b} == {100}


def test_a5_starts_from_the_best_of_all_transferred_examples():
    assert "A5 from transfer" not in rows()
    start = rows(gray="a,b", black="c")["A5 from transfer"]["start"]
    assert start["name"] == "strongest"  # the best, not the first success
    assert all(b["name"] == "transfer" for b in start["attacks"])
    crafted = {b["attack"]["name"] for b in start["attacks"]}
    assert crafted == {"pgd", "mi_fgsm", "di_fgsm", "fgsm", "r_fgsm", "step_ll"}
    for block in start["attacks"]:
        assert block["sources"] == ["a", "b", "c", ["a", "b"]]
    only = rows(black="c")["A5 from transfer"]["start"]
    assert only["attacks"][0]["sources"] == ["c"]


def test_transfer_has_the_margin_and_joint_rows_with_momentum_and_diversity():
    found = at_alp_suites.at_alp_transfer(EVALUATION | dict(gray="a,b", black="c"))
    labels = [block["label"] for block in found]
    assert len(set(labels)) == len(labels)
    for source, access in (("a", "gray"), ("b", "gray"), ("c", "black")):
        rows_of = [b for b in found if b.get("source") == source]
        assert {b["access"] for b in rows_of} == {access}
        assert {(b["name"], b.get("objective")) for b in rows_of} == {
            *((name, None) for name in ("pgd", "mi_fgsm", "di_fgsm")),
            *((name, None) for name in ("fgsm", "r_fgsm", "step_ll")),
            ("pgd", "margin"),
        }
    joint = [b for b in found if b.get("source") == ["a", "b"]]
    assert {b["name"] for b in joint} == {"restarts", "pgd", "mi_fgsm", "di_fgsm"}
    assert {b["access"] for b in joint} == {"gray"}
    assert not [b for b in found if b.get("source") == ["c"]]  # one is no ensemble


def test_a6_is_a1_to_a5_on_surrogates():
    found = {k: b for k, b in rows(gray="a,b,c", black="d").items() if k[:2] == "A6"}
    assert list(found) == [
        *(f"A6 gray, A{i}" for i in (1, 2, 3, 4, 5)),
        *(f"A6 black, A{i}" for i in (1, 3, 5)),  # what needs no layers
    ]
    for label, block in found.items():
        gray = label.startswith("A6 gray")
        assert block["access"] == ("gray" if gray else "black")
        transferred = named(block, "transfer")
        assert all(
            b["sources"] == [["a", "b", "c"] if gray else ["d"]] for b in transferred
        )
        # Nothing asks the judged model for gradients.
        outside = [b for b in inside(block) if b["name"] in ("pgd", "mi_fgsm")]
        held = [c for b in transferred for c in inside(b["attack"])]
        assert all(any(c is h for h in held) for c in outside)
    weights = [b["pairing"] for b in inside(found["A6 gray, A2"]) if "pairing" in b]
    assert weights == [{"attention": w} for w in WEIGHTS]
    assert {b["maps"] for b in named(found["A6 gray, A4"], "feature_collision")} == {
        False,
        True,
    }
    assert len(named(found["A6 gray, A5"], "warm_start")) == 2


# --- blocks inside blocks ------------------------------------------------------------

MODEL = models.from_linen(models.small_cnn(stages=((4,), (4,)), dense=8))
SPLITS = data.load("digits")
X, Y = jnp.asarray(SPLITS.test.images[:6]), jnp.asarray(SPLITS.test.labels[:6])
LAYERS = ("relu1_1", "relu2_1")


def classifier(seed, **loss):
    config = ml_collections.ConfigDict(
        {
            "data": {"augment": {}},
            "stages": ("train",),
            "train": {"loss": dict(name="at_alp", layers=LAYERS) | loss},
        }
    )
    weights = jax.jit(MODEL.init)(jax.random.key(seed), X)
    return build.build_classifier(config, SPLITS, MODEL, *weights)


class Runs:
    """Other runs that are kept in memory."""

    def __init__(self):
        self.found = {"a": classifier(1), "b": classifier(2)}

    def __call__(self, source):
        return self.found[source].logits_fn

    def inside(self, sources):
        return Jointly(self.found.__getitem__, sources)


@pytest.fixture(scope="module")
def runs():
    return Runs()


def run(block, runs, own=None):
    own = classifier(0) if own is None else own
    named = build.build_attack(block, runs, own)
    json.dumps(named.parameters, allow_nan=False)
    logits_fn = own.logits_fn if named.source is None else named.source
    attacked = jax.jit(named.attack)(jax.random.key(5), logits_fn, X, Y)
    return attacked, named


BIM = dict(name="bim", threat=LINF, step_size=0.02, num_steps=1, objective="margin")
MOVED = dict(BIM, name="pgd", random_start="uniform")


def expected_step(climbed, x=X):
    slope = jax.grad(lambda z: climbed(z).sum())(x)
    return jnp.clip(jnp.clip(x + 0.02 * jnp.sign(slope), 0, 1), X - 0.1, X + 0.1)


def noisy(x):
    return jnp.clip(
        x + 0.01 * jnp.sign(jnp.sin(jnp.arange(x.size).reshape(x.shape))), 0, 1
    )


def maps_apart(classifier, z, **given):
    one, other = (classifier.model_fn(v, capture=LAYERS).features for v in (X, z))
    return pairing.attention_distance(one, other, **given)


def test_an_attack_on_surrogates_climbs_their_mean_pairing(runs):
    weights = dict(attention=3.0, logits=0.5)
    start = dict(name="sign_noise", threat=dict(LINF, eps=0.01))
    climb = dict(name="warm_start", start=start, attack=dict(BIM, name="pgd"))
    block = dict(
        name="transfer", attack=dict(climb, pairing=weights), sources=[["a", "b"]]
    )
    with pytest.raises(InputError, match=r"only eval\.py runs it"):
        build.build_attack(block, lambda source: runs(source), classifier(0))
    several = dict(block, sources=["a", "b"])
    with pytest.raises(InputError, match=r"one of `sources`|looks into"):
        build.build_attack(several, runs, classifier(0))
    x_adv, _ = run(block, runs)
    # The start is the only thing random: take it back from a step of length 0.
    still = dict(climb, attack=dict(BIM, name="pgd", step_size=1e-9))
    begun, _ = run(dict(block, attack=dict(still, pairing=weights)), runs)
    joint = attacks.ensemble([runs("a"), runs("b")])

    def climbed(z):
        apart = sum(maps_apart(runs.found[name], z) for name in "ab") / 2
        square = jnp.square(joint(z) - joint(X)).sum(axis=1)
        return objectives.margin(joint(z), Y) + 3 * apart + 0.5 * square

    np.testing.assert_allclose(x_adv, expected_step(climbed, begun), atol=1e-5)


def test_a_collision_on_surrogates_is_of_all_their_features(runs):
    about = dict(threat=LINF, step_size=0.02, num_steps=1, num_targets=1)
    block = dict(name="feature_collision", layer="relu2_1", maps=False, **about)
    alone, _ = run(block, runs)
    x_adv, named = run(
        dict(name="transfer", attack=block, sources=[["a", "b"]], access="gray"), runs
    )
    assert (np.abs(x_adv - alone) > 1e-3).any()
    assert named.parameters["attack"]["layer"] == "relu2_1"
    found = [runs.found[name].guides(dict(layer="relu2_1")) for name in "ab"]
    joint = runs.inside(("a", "b")).guides(dict(layer="relu2_1"))
    both = np.concatenate([each["features_fn"](X).reshape(6, -1) for each in found], 1)
    np.testing.assert_allclose(joint["features_fn"](X), both, atol=1e-6)


def test_a_penalty_reaches_attacks_inside_of_attacks(runs):
    weights = dict(logits=-4.0)
    both = dict(name="worst_case", attacks=[MOVED, dict(MOVED, num_steps=2)])
    block = dict(name="restarts", num_restarts=2, attack=both, pairing=weights)
    outer, named = run(block, runs)
    assert named.parameters["pairing"] == weights
    inner = dict(name="restarts", num_restarts=2, attack=dict(both, pairing=weights))
    nested, _ = run(inner, runs)
    np.testing.assert_allclose(outer, nested, atol=1e-6)
    plain, _ = run(dict(name="restarts", num_restarts=2, attack=both), runs)
    assert (np.abs(outer - plain) > 1e-3).any()


def test_a_start_reaches_attacks_inside_of_attacks(runs):
    start = dict(name="grey", threat=LINF)
    climb = dict(MOVED, step_size=1e-9, num_steps=1)
    for attack in (
        climb,
        dict(name="restarts", num_restarts=2, attack=climb),
        dict(name="strongest", attacks=[climb, dict(climb, name="mi_fgsm")]),
    ):
        block = dict(name="warm_start", start=start, attack=attack)
        grey = X + jnp.clip(0.5 - X, -0.1, 0.1)
        np.testing.assert_allclose(run(block, runs)[0], grey, atol=1e-6)
        moved = np.asarray(run(dict(block, jitter=0.5), runs)[0])
        assert 0.02 < np.abs(moved - grey).max() <= 0.05 + 1e-6
        assert np.abs(moved - X).max() <= 0.1 + 1e-6
    with pytest.raises(InputError, match="may have `jitter`"):
        run(dict(block, noise=0.5), runs)


# --- as the run pairs ----------------------------------------------------------------


@pytest.mark.parametrize(
    ("loss", "how"),
    [
        (dict(), dict()),
        (
            dict(attention_kind="l1", map_kind="max", power=4.0),
            dict(kind="l1", map_kind="max", power=4.0),
        ),
        (
            dict(layer_reduction="mean", attention_kind="mse", floor=0.5),
            dict(reduction="mean", kind="mse", floor=0.5),
        ),
    ],
)
def test_the_penalty_compares_maps_as_the_run_does(loss, how):
    own = classifier(0, **loss)
    moved = noisy(X)
    logits = own.logits_fn(X), own.logits_fn(moved)
    found = own.pairing(dict(attention=2.0))(X, moved, *logits)
    np.testing.assert_allclose(found, 2 * maps_apart(own, moved, **how), rtol=1e-5)
    other = own.pairing(dict(attention=2.0, attention_kind="sq"))(X, moved, *logits)
    assert (np.abs(found - other) > 1e-6).any()


def test_what_is_paired_is_found_inside_of_losses():
    inner = dict(name="at_alp", layers=("stage2",), power=1.0)
    for loss in (
        inner,
        dict(name="awp", loss=inner, gamma=0.01),
        dict(name="awp", loss=dict(name="awp", loss=inner)),
        dict(name="wmim", base=inner),
    ):
        config = ml_collections.ConfigDict(
            dict(stages=("train",), train=dict(loss=loss))
        )
        assert build.paired(config) == dict(layers=("stage2",), power=1.0)
    judged = dict(stages=("train",), train=dict(loss=dict(name="standard")))
    config = ml_collections.ConfigDict(judged | dict(evaluation=dict(layer="stage1")))
    assert build.paired(config) == dict(layers=("stage1",))
    assert build.paired(SimpleNamespace(get=lambda name: None)) == dict(layers=())
