"""Test-time defenses of a config: views, suites, files, reports."""

import json

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import pytest
import trained

from configs import nip as blocks
from robustjax import InputError, build, data, evaluation, models
from robustjax.config import names
from robustjax.config.classifiers import Classifier
from robustjax.evaluation._verdict import adaptive_rows

SPLITS = data.load("digits")
X, Y = jnp.asarray(SPLITS.test.images[:20]), jnp.asarray(SPLITS.test.labels[:20])
NIP = blocks.nip("flatten", size=0.05, front=20, tail=20)
CONTROLS = blocks.controls("flatten", NIP)
EVALUATION = {
    "threat": {"name": "linf", "eps": 0.1},
    "step_size": 0.02,
    "num_steps": 3,
    "num_restarts": 2,
}


def built(block, directory=None, **rest):
    given = {"data": {"augment": {}}, "evaluation": {"draws": 6}, **rest}
    config = ml_collections.ConfigDict({"transform": block, **given})
    weights = trained.small_net()
    return build.build_classifier(config, SPLITS, *weights, directory=directory)


def bare(x):
    return models.logits_fn(*trained.small_net())(x)


# One of each defense and policy; the others differ from these in an option.
QUICK = (
    *("candidates, proto", "dictionary by pixels", "Gaussian noise, 16 votes"),
    *("hedge", "nearest class mean", "nearest neighbor, pixels"),
)


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=() if name in QUICK else pytest.mark.slow)
        for name in CONTROLS
        if name != "none"
    ],
)
def test_every_control_answers(name):
    classifier = built(CONTROLS[name])
    logits = classifier.logits_fn(X)
    is_random = CONTROLS[name]["name"] == "noise_voting"
    assert logits.shape == ((6, 20, 10) if is_random else (20, 10))
    assert classifier.defense == CONTROLS[name]["name"]
    answers = classifier.view({})(X).argmax(axis=1)
    assert (answers == Y).mean() > 0.7
    past = classifier.view(dict(transform=None))(X)
    np.testing.assert_array_equal(past, bare(X))
    np.testing.assert_array_equal(classifier.bare(X), bare(X))


def test_a_random_defense_is_judged_by_other_draws_than_attacks_see():
    classifier = built(CONTROLS["Gaussian noise, 16 votes"])
    draws = classifier.logits_fn(X)
    assert np.abs(draws[0] - draws[1]).max() > 1e-3
    np.testing.assert_array_equal(draws, classifier.logits_fn(X))
    source = classifier.source(X)
    assert source.shape[-2:] == (20, 10)
    assert np.abs(source[:1] - draws[:1]).max() > 1e-3


def test_front_and_tail_of_a_report_are_by_influence():
    drawn = built(CONTROLS["random sets, proto"])
    by_influence, shown = built(NIP).neurons, drawn.neurons
    np.testing.assert_array_equal(shown["masks"], by_influence["masks"])
    own = drawn._fitted.state(drawn._transform).masks
    assert (own != shown["masks"]).any()
    fitted = built(NIP)._fitted
    np.testing.assert_array_equal(by_influence["masks"], fitted.state(NIP).masks)


def test_views_share_what_was_learnt(monkeypatch):
    classifier = built(NIP)
    learnt = classifier._fitted.state(classifier._transform)
    fits = []
    monkeypatch.setattr(
        type(classifier._fitted), "_stored", lambda *_: fits.append(1) or learnt
    )
    views = [
        dict(clip_gradient="straight_through"),
        dict(choice_gradient="soft", temperature=2.0),
        dict(answer="candidates"),
    ]
    shapes = [classifier.view(dict(transform=view))(X).shape for view in views]
    assert shapes == [(20, 10), (20, 10), (20, 110)]
    assert not fits
    classifier.view(dict(transform=dict(rule="gain")))
    assert fits


def test_states_are_kept_and_are_of_these_weights(tmp_path):
    first = built(NIP, tmp_path).logits_fn(X)
    (path,) = tmp_path.glob("nip-*.npz")
    written = path.stat().st_mtime_ns
    np.testing.assert_array_equal(built(NIP, tmp_path).logits_fn(X), first)
    assert path.stat().st_mtime_ns == written
    model, params, state = trained.small_net()
    other = jax.tree.map(lambda a: 1.01 * a, params)
    config = ml_collections.ConfigDict({"transform": NIP, "data": {"augment": {}}})
    given = (SPLITS.train, build.build_augmentation({}), model, other, state)
    answer = Classifier(config, *given, directory=tmp_path).logits_fn(X)
    assert len(list(tmp_path.glob("nip-*.npz"))) == 2
    assert np.abs(answer - first).max() > 1e-3
    (own,) = {*tmp_path.glob("nip-*.npz")} - {path}
    path.write_bytes(own.read_bytes())  # somebody copied it
    with pytest.raises(InputError, match="belongs to another model"):
        built(NIP, tmp_path).logits_fn(X)


def test_the_block_says_how_many_benign_images():
    fitted = built(NIP | dict(benign_per_class=7))._fitted
    batch = fitted._benign(NIP | dict(benign_per_class=7))
    np.testing.assert_array_equal(np.bincount(batch.y), np.full(10, 7))
    assert float(batch.x.max()) <= 1
    with pytest.raises(InputError, match=r"`transform\.benign_per_class`"):
        built(NIP | dict(benign_per_class=0)).logits_fn(X)


@pytest.mark.parametrize(
    ("block", "message"),
    [
        (NIP | dict(layer="flaten"), "'flaten', but no layer of that path"),
        (NIP | dict(measure="shap"), "measure name.*gradient"),
        (NIP | dict(output="softmax"), "output name.*logit"),
        (NIP | dict(budget=3), "block of transform does not fit"),
        (NIP | dict(front=2000), "at most the .* neurons of the layer"),
        (dict(name="nap"), "transform name.*total_variation"),
    ],
)
def test_a_wrong_block_says_so(block, message):
    with pytest.raises(InputError, match=message):
        built(block).logits_fn(X)


@pytest.mark.parametrize(
    ("layer", "message"),
    [
        ("flaten", r"`evaluation\.influence_maps` names 'flaten'.*flatten"),
        ("flatten", r"`evaluation\.influence_maps` 'flatten' must have outputs"),
    ],
)
def test_a_layer_without_maps_is_found_before_any_attack(layer, message):
    classifier = built(NIP, evaluation={"draws": 6, "influence_maps": layer})
    with pytest.raises(InputError, match=message):
        build.check_layer(classifier, SPLITS.test, None)


def test_heads_have_no_place_behind_it():
    with pytest.raises(InputError, match="takes its linear head, got the head 'wnll'"):
        built(NIP, head={"name": "wnll", "num_templates": 60})


def test_suites_know_the_defense():
    rows = lambda suite, block: {
        attack.name: attack
        for attack in build.build_suite(suite, EVALUATION, None, built(block))
    }
    paper = rows("nip_paper", NIP)
    np.testing.assert_array_equal(paper["PGD-40"].source(X), bare(X))
    assert not paper["towards another image"].counts
    known = lambda found: adaptive_rows(
        [dict(name=name, parameters=a.parameters) for name, a in found.items()]
    )
    assert known(paper) == []
    adaptive = rows("nip_adaptive", NIP)
    assert len([name for name in adaptive if name.startswith("choice")]) == 6
    assert len([name for name in adaptive if name.startswith("bare")]) == 5
    assert adaptive["choice, exact, weight 10"].source(X).shape == (20, 110)
    unaware = [name for name in adaptive if name.startswith(("bare", "Square"))]
    assert known(adaptive) == [name for name in adaptive if name not in unaware]
    for block in (
        NIP | dict(policy="pooled"),
        NIP | dict(policy="predicted"),
        NIP | dict(rule="avg"),
    ):
        assert not [n for n in rows("nip_adaptive", block) if n.startswith("choice")]
    dictionary = rows("nip_adaptive", NIP | dict(policy="dictionary"))
    assert "choice, straight-through, weight 3" in dictionary
    assert "soft neighbors, margin, PGD-25 x 2" in rows(
        "nip_adaptive", dict(name="nearest_neighbor")
    )
    with pytest.raises(InputError, match="nip_adaptive judges a test-time defense"):
        build.build_suite("nip_adaptive", EVALUATION, None, built({}))
    with pytest.raises(InputError, match="take the suite nip_adaptive"):
        rows("wnll_adaptive", NIP)


def test_a_report_stands_beside_the_bare_model(tmp_path):
    classifier = built(NIP)
    assert build.looks_at_images(classifier)
    test = SPLITS.test.take(slice(40))
    blocks_ = [
        dict(
            name="pgd",
            threat=EVALUATION["threat"],
            step_size=0.02,
            num_steps=10,
            view=dict(transform=None),
            label="bare",
        ),
        dict(name="sign_noise", threat=EVALUATION["threat"], label="signs"),
    ]
    attacks = [build.build_attack(block, None, classifier) for block in blocks_]
    result = evaluation.evaluate(
        *(classifier.logits_fn, test, attacks),
        key=jax.random.key(0),
        keep_adversarial=True,
    )
    found = build.diagnostics(classifier, result, test, batch_size=16)
    rows = {row["name"]: row for row in found["defended"]["rows"]}
    x_adv = result.attacks[0].x_adv
    right = lambda f, x: np.asarray(f(jnp.asarray(x)).argmax(axis=1)) == test.labels
    before, after = right(bare, test.images), right(bare, x_adv)
    assert rows["bare"]["bare"] == pytest.approx(after.mean())
    assert rows["bare"]["fallen"] == (before & ~after).sum() > 0
    saved = right(classifier.logits_fn, x_adv)[before & ~after].mean()
    assert rows["bare"]["dsr"] == pytest.approx(saved)
    worst = before & after & right(bare, result.attacks[1].x_adv)
    assert rows["worst case"]["bare"] == pytest.approx(worst.mean())
    shifts = {attack["name"]: attack for attack in found["neurons"]["attacks"]}
    assert shifts["bare"]["groups"]["succeeded"]["front"] < -0.1
    assert shifts["bare"]["groups"]["succeeded"]["spearman"] < -0.1
    summary = evaluation.summarise(result)
    evaluation.write_report(tmp_path, summary, context={}, **found)
    text = (tmp_path / "report.md").read_text()
    assert "With and without the defense" in text
    assert (tmp_path / "neurons.png").stat().st_size > 10_000
    assert json.loads((tmp_path / "report.json").read_text())["neurons"]["neurons"] > 0


def test_the_truth_is_never_a_row():
    told = ("oracle", "benign_twin")
    everything = [*names.DEFENSES, *names.ATTACKS, *names.SUITES, *names.TRANSFORMS]
    assert not [name for name in everything if any(word in name for word in told)]
    for policy in told:
        with pytest.raises(InputError, match="`policy` must be one of"):
            built(NIP | dict(policy=policy))
