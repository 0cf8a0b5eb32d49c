"""`rj.evaluate`: a classifier and images in, a report out."""

import json
import logging

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import robustjax as rj
from robustjax import InputError, attacks, threats
from robustjax.evaluation import NamedAttack, read_report
from robustjax.judging import Wanted

LINF = threats.linf(0.1)
RNG = np.random.default_rng(0)
X = RNG.random((40, 3, 3, 1), np.float32)
MARGIN = X.mean(axis=(1, 2, 3)) - 0.5
Y = (MARGIN > 0).astype(np.int32)
LITTLE = Wanted(indicators=False, pictures=False)
QUICK = dict(threat=LINF, num_steps=20, num_restarts=2)


def by_mean(x):
    """Two classes by the mean pixel: the worst case is known to the last image."""
    mean = x.mean(axis=(1, 2, 3))
    return 9.0 * jnp.stack([0.5 - mean, mean - 0.5], axis=1)


def rounded(x):
    return by_mean(jnp.round(4 * x) / 4)


def survivors():
    """Who stays right when every pixel moves by 0.1 within the box."""
    worst = np.where(Y[:, None, None, None] == 1, X - 0.1, X + 0.1).clip(0, 1)
    mean = worst.mean(axis=(1, 2, 3))
    return np.where(Y == 1, mean > 0.5, mean < 0.5)


@pytest.fixture(scope="module")
def whole():
    return rj.evaluate(by_mean, X, Y, **QUICK, class_names=("dark", "light"))


def test_the_worst_case_is_that_of_the_formula(whole):
    assert (whole.result.worst_case_correct == survivors()).all()
    assert whole.robust_accuracy == survivors().mean()
    assert whole.clean_accuracy == 1
    assert whole.flags == ()
    assert f"{100 * survivors().mean():.2f}%" in str(whole)
    assert "robust=" in repr(whole)


def scaled(weights, x):
    return weights * by_mean(x)


def test_judging_again_compiles_nothing_though_the_threat_is_built_anew(caplog):
    logits_fn = jax.tree_util.Partial(scaled, jnp.float32(1))
    options = dict(num_steps=3, num_restarts=2)
    compiled = []
    for _ in range(2):
        caplog.clear()
        with jax.log_compiles(), caplog.at_level(logging.WARNING):
            rj.evaluate(logits_fn, X, Y, threat=threats.linf(0.1), **options)
        compiled.append([one for one in caplog.messages if "XLA compilation" in one])
    assert len(compiled[0]) > 5
    assert compiled[1] == []


def test_a_curve_above_what_any_classifier_can_have_is_said():
    masked = lambda x: by_mean(jax.lax.stop_gradient(x))
    options = dict(QUICK, num_steps=2, num_restarts=1, threat=threats.linf(0.5))
    wanted = Wanted(indicators=False)
    content = rj.evaluate(masked, X, Y, **options, wanted=wanted).content
    prior = max(Y.mean(), 1 - Y.mean())
    limits = dict(zip(content["curve"]["eps"], content["curve"]["limit"], strict=True))
    assert limits[0.375] is None
    assert limits[0.5] == limits[1.0] == prior
    assert content["steps"]["limit"] == content["restarts"]["limit"] == prior
    assert any("eps 0.5 of the curve" in line for line in content["warnings"])


def in_numpy(x):
    mean = np.asarray(x).mean(axis=(1, 2, 3))
    return 9 * np.stack([0.5 - mean, mean - 0.5], axis=1)


def without_gradients(x):
    shape = jax.ShapeDtypeStruct((len(x), 2), np.float32)
    return jax.pure_callback(in_numpy, shape, x, vmap_method="sequential")


def three_classes(x):
    return jnp.pad(by_mean(x), ((0, 0), (0, 1)))


def called_back(x):
    shape, still = jax.ShapeDtypeStruct(x.shape, x.dtype), jax.lax.stop_gradient(x)
    return by_mean(x + jax.pure_callback(np.zeros_like, shape, still))


WIDE = {"name": "linf", "eps": 0.2, "bounds": (0.0, 1.0)}


def test_a_classifier_without_gradients_is_attacked_by_queries_and_flagged():
    square = NamedAttack("square", attacks.square(LINF, num_queries=50))
    report = rj.evaluate(without_gradients, X, Y, threat=LINF, suite=[square])
    assert report.robust_accuracy < 1
    assert "gradient" in report.flags
    assert "curve" not in report.content


def test_weights_that_a_function_reads_may_change_between_two_calls():
    weights = {"scale": 1.0}

    def logits_fn(x):
        return weights["scale"] * by_mean(x)

    def judged():
        report = rj.evaluate(logits_fn, X, Y, **QUICK, wanted=LITTLE)
        return report.clean_accuracy, report.robust_accuracy

    assert judged() == (1, survivors().mean())
    weights["scale"] = -1.0
    assert judged() == (0, 0)


def test_a_notebook_sees_the_report(whole):
    html = whole._repr_html_()
    assert f"{100 * survivors().mean():.2f}%" in html
    assert "<html" not in html
    assert "data:image/png;base64," in html
    assert "http://" not in html


def test_it_is_saved_whole(whole, tmp_path):
    whole.save(tmp_path / "report")
    there = {path.name for path in (tmp_path / "report").iterdir()}
    assert {"report.json", "report.md", "report.html", "curve.png"} <= there
    content = read_report(tmp_path / "report")
    assert content == json.loads(json.dumps(whole.content))
    assert len(content["indicators"]) > 15
    assert content["threat"]["eps"] == 0.1
    assert "dark" in (tmp_path / "report" / "report.html").read_text()


@pytest.fixture(scope="module")
def masked():
    return rj.evaluate(rounded, X, Y, **QUICK)


def test_a_broken_defense_is_flagged_and_falls_to_the_right_attack(masked):
    assert masked.robust_accuracy > survivors().mean() + 0.1
    assert {"gradient", "unbounded"} <= set(masked.flags)

    def straight_through(x):
        return by_mean(x + jax.lax.stop_gradient(jnp.round(4 * x) / 4 - x))

    options = dict(QUICK, wanted=LITTLE, source=straight_through)
    fixed = rj.evaluate(rounded, X, Y, **options)
    assert fixed.robust_accuracy < masked.robust_accuracy - 0.1
    assert fixed.flags == ()  # none was measured, as the report says
    assert "No failure indicators were measured" in fixed.html


def test_transfer_from_surrogates_is_another_access():
    options = dict(QUICK, wanted=LITTLE, surrogates={"twin": by_mean})
    report = rj.evaluate(rounded, X, Y, **options)
    assert report.result.attacks[-1].name == "PGD-50 on twin"
    assert report.summary["access"]["black"] < report.summary["access"]["white"]
    assert report.summary["inconsistent"]


def test_attacks_of_ones_own_and_bytes():
    named = [NamedAttack("FGSM", attacks.fgsm(LINF), {"name": "fgsm"})]
    images = np.uint8(255 * X)
    labels = (images / np.float32(255)).mean(axis=(1, 2, 3)) > 0.5
    report = rj.evaluate(
        by_mean, images, labels.astype(int), threat=LINF, suite=named, wanted=LITTLE
    )
    assert [attack.name for attack in report.result.attacks] == ["FGSM"]
    assert report.clean_accuracy == 1


def test_progress_is_said(capsys):
    rj.evaluate(by_mean, X, Y, **QUICK, wanted=LITTLE, progress=True)
    printed = capsys.readouterr()
    assert "About " in printed.out
    assert "100%" in printed.err


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        (dict(x=255 * X), r"`x` must lie in \[0, 1\], got \[.*\]: divide by 255"),
        (dict(x=X[0]), r"`x`"),
        (dict(y=Y + 1), r"`y` must lie in \[0, 2\), as the logits do, got 1 to 2"),
        (dict(y=Y.astype(float)), r"`y` must be integer labels \[N\], got float64"),
        (dict(suite="quik"), r"`suite` must be one of quick, .*; got 'quik'"),
        (dict(suite=[]), r"`suite` must hold at least one attack"),
        (dict(class_names=("a",)), r"`class_names` must name the 2 classes, got 1"),
        (dict(key=0), r"`key`"),
        (
            dict(fun=in_numpy),
            "`logits_fn` must be written in jax.numpy, .* jax.pure_callb",
        ),
        (dict(fun=without_gradients), "`suite` 'quick' needs gradients .* `source`"),
        (dict(fun=lambda x: (by_mean(x), x)), r"return logits \[B, K\].*got tuple"),
        (dict(fun=lambda x: by_mean(x)[:, 0]), r"logits \[B, K\].*got \(2,\) for 2"),
        (dict(fun=lambda x: by_mean(x)[:, :1]), "2 classes or more, got 1"),
        (dict(fun=3), "`logits_fn` must be a function of images .* got int"),
        (dict(x=np.where(X[3] == X, np.nan, X)), "`x` must hold numbers, image 3"),
        (dict(x=np.uint8(X > 0.5)), "`x` of uint8 is divided by 255"),
        (dict(key=jax.random.split(jax.random.key(0), 3)), "`key` must be one key"),
        (dict(threat=0.1), "`threat` must be a threat .* got 0.1"),
        (dict(threat=threats.linf(np.full(40, 0.1))), "`threat` must have one radius"),
        (dict(threat=threats.linf(0.0)), "`threat` has the radius 0"),
        (
            dict(threat=threats.linf(0.1, bounds=(0.4, 0.6))),
            "in the bounds of `threat`",
        ),
        (dict(suite=[attacks.fgsm(LINF)]), "got IteratedAttack: write NamedAttack"),
        (dict(suite=None), "`suite` must be a name, .* got NoneType"),
        (dict(source=three_classes), "`source` must tell the 2 classes .* got 3"),
        (
            dict(surrogates=dict(a=three_classes)),
            r"`surrogates\['a'\]` must tell the 2",
        ),
        (dict(surrogates=[by_mean]), "`surrogates` must be classifiers by name"),
        (dict(wanted=dict(indicators=False)), "`wanted` must be a judging.Wanted"),
        (dict(fun=called_back), "cannot be mapped .* vmap_method='sequential'"),
    ],
)
def test_bad_input_is_one_line(changes, line):
    given = dict(fun=by_mean, x=X, y=Y, threat=LINF, wanted=LITTLE) | changes
    judged = [given.pop(name) for name in ("fun", "x", "y")]
    with pytest.raises(InputError, match=line) as error:
        rj.evaluate(*judged, **given)
    assert "\n" not in str(error.value)


def test_the_binarization_test_is_run():
    flat = lambda x: x.reshape(len(x), -1)
    wanted = Wanted(indicators=False, pictures=False, binarization=4)
    options = dict(QUICK, num_steps=20, wanted=wanted, features_fn=flat)
    report = rj.evaluate(by_mean, X, Y, **options)
    assert report.content["binarization"]["num_images"] == 4
    with pytest.raises(InputError, match="`binarization`"):
        Wanted(binarization=-1)


def test_binarization_takes_the_gradient_that_attacks_take():
    x = RNG.random((6, 5, 5, 1), np.float32)
    y = (x.mean(axis=(1, 2, 3)) > 0.5).astype(np.int32)

    def rounds(z):
        return (jnp.round(16 * z) / 16).reshape(len(z), -1)

    def passed(z):
        flat = z.reshape(len(z), -1)
        return flat + jax.lax.stop_gradient(rounds(z) - flat)

    wanted = Wanted(indicators=False, pictures=False, binarization=6)
    options = dict(QUICK, wanted=wanted, features_fn=rounds)
    blind = rj.evaluate(by_mean, x, y, **options)
    seeing = rj.evaluate(by_mean, x, y, **options, source_features_fn=passed)
    found = [one.content["binarization"]["success"] for one in (blind, seeing)]
    assert found[0] < 0.5 < found[1]
    assert blind.content["binarization"]["flagged"]


def test_a_source_is_an_adaptive_attack():
    report = rj.evaluate(by_mean, X, Y, **QUICK, wanted=LITTLE, source=by_mean)
    assert report.content["verdict"]["adaptive"]
    assert all("view" in a.parameters for a in report.result.attacks)


def test_the_suites_own_attack_is_put_to_the_binarization_test():
    """Cross-entropy of huge logits has no gradient, and PGD on a margin would."""
    huge = lambda x: 1e4 * by_mean(x)
    flat = lambda x: (1e4 * x.reshape(len(x), -1), huge(x))
    wanted = Wanted(indicators=False, pictures=False, binarization=6)
    options = dict(wanted=wanted, features_fn=flat, threat=LINF, num_steps=20)
    own = rj.evaluate(huge, X, Y, **options, num_restarts=1).content["binarization"]
    assert own["attack"].startswith("PGD-20")
    assert own["flagged"]
    staged = [NamedAttack("AA", attacks.screen(LINF), {"threat": "linf"})]
    stands_in = rj.evaluate(huge, X, Y, **options, suite=staged)
    assert stands_in.content["binarization"]["attack"] == "PGD-20 on the margin"
    assert not stands_in.content["binarization"]["flagged"]


@pytest.mark.parametrize("worst", [np.nan, np.inf])
def test_images_that_a_model_has_no_number_for_count_as_broken(worst):
    """Logits, their gradients and losses that are no numbers: a report all the same."""

    def partly(x):
        return by_mean(x) * jnp.where(x.mean((1, 2, 3)) > 0.6, worst, 1.0)[:, None]

    report = rj.evaluate(partly, X, Y, threat=LINF, num_steps=5, num_restarts=2)
    lost = X.mean(axis=(1, 2, 3)) > 0.6
    if np.isnan(worst):  # of infinite logits the larger one is still the larger one
        assert not report.result.worst_case_correct[lost].any()
    assert "gradient" in report.flags
    assert np.isnan(worst) == ("not_a_number" in report.flags)
    assert "steps" in report.content


def test_an_attack_beyond_the_threat_model_is_named():
    far = lambda key, logits_fn, x, y: jnp.clip(x + 0.3, 0, 1)
    named = [NamedAttack("far", far)]
    report = rj.evaluate(by_mean, X, Y, threat=LINF, suite=named, wanted=LITTLE)
    assert any("Beyond the threat model" in line for line in report.summary["warnings"])
    wide = NamedAttack("wide", attacks.fgsm(threats.linf(0.2)), {"threat": WIDE})
    report = rj.evaluate(by_mean, X, Y, threat=LINF, suite=wide, wanted=LITTLE)
    assert "at most 0.2" in str(report)
    assert "not measured" in repr(report)


def test_what_cannot_be_measured_is_said_first():
    def random(x):
        return jnp.stack([by_mean(x), by_mean(x) + 0.1])

    wanted = Wanted(indicators=False, pictures=False, binarization=4)
    with pytest.raises(InputError, match="`binarization` needs one answer"):
        rj.evaluate(random, X, Y, **QUICK, wanted=wanted)
    with pytest.raises(InputError, match="classes"):  # before PGD has run
        rj.evaluate(by_mean, X, Y, threat=LINF, suite="full", wanted=LITTLE)


def test_attacks_that_fall_short_of_the_threat_are_named():
    weak = threats.linf(1e-4)
    ball = dict(name="l2", eps=1e-4, bounds=[0.0, 1.0])
    silent = attacks.fgsm(weak)
    for one in (
        NamedAttack("weak", silent),
        NamedAttack("other norm", attacks.fgsm(threats.l2(1e-4)), {"threat": ball}),
        NamedAttack("nothing", lambda key, logits_fn, x, y: x),
    ):
        report = rj.evaluate(by_mean, X, Y, threat=LINF, suite=one, wanted=LITTLE)
        assert "each pixel moves by at most 0.1" in str(report)
        (line,) = report.content["warnings"]
        assert "Short of the threat model (linf 0.1)" in line
    both = [NamedAttack("weak", silent), NamedAttack("whole", attacks.fgsm(LINF))]
    report = rj.evaluate(by_mean, X, Y, threat=LINF, suite=both, wanted=LITTLE)
    assert report.content["warnings"] == []


def test_an_infinite_radius_has_a_report(tmp_path):
    pgd = attacks.pgd(threats.l2(1.0), step_size=0.1, num_steps=3)
    free = threats.l2(float("inf"))
    named = NamedAttack("own", pgd)
    options = dict(threat=free, step_size=0.1, suite=named, wanted=LITTLE)
    rj.evaluate(by_mean, X, Y, **options).save(tmp_path)
    assert "at most inf" in (tmp_path / "report.html").read_text()
    assert read_report(tmp_path)["threat"]["eps"] is None


def test_nan_is_told_without_indicators_too():
    bright = lambda x: (x.mean((1, 2, 3)) > 0.5)[:, None]
    partly = lambda x: jnp.where(bright(x), jnp.nan, by_mean(x))
    fgsm = NamedAttack("fgsm", attacks.fgsm(LINF))
    report = rj.evaluate(partly, X, Y, threat=LINF, suite=fgsm, wanted=LITTLE)
    count = int((MARGIN > 0).sum())
    (clean, *_) = report.content["warnings"]
    assert clean.startswith(f"clean: logits hold NaN on {count} of 40 images")


def test_a_random_classifier_has_pictures():
    draws = lambda x: jnp.stack([by_mean(x), 1.1 * by_mean(x)])
    pgd = NamedAttack("pgd", attacks.pgd(LINF, step_size=0.05, num_steps=3))
    wanted = Wanted(indicators=False)
    report = rj.evaluate(
        draws, X[:6], Y[:6], threat=LINF, num_steps=3, suite=pgd, wanted=wanted
    )
    assert report.content["gradients"]["count"] == 2


def cannot(x):
    raise RuntimeError("no such layer\nand so on")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (dict(logits_fn=cannot), "`logits_fn` fails on .* RuntimeError: no such layer"),
        (dict(source=3), "`source` must be a function of images, got 3"),
        (dict(surrogates={"a": 3}), r"`surrogates\['a'\]` must be a function"),
        (dict(features_fn=3), "`features_fn` must be a function of images, got 3"),
        (dict(class_names=5), "`class_names` must be a list, got 5"),
        (dict(batch_size=None), "`batch_size` must be an integer .* got None"),
        (
            dict(threat=threats.linf(8.0, bounds=(0, 255))),
            r"`threat` has pixels in \[0, 255\].* divide",
        ),
        (
            dict(
                features_fn=lambda z: z.sum(),
                wanted=Wanted(indicators=False, pictures=False, binarization=4),
            ),
            "`features_fn` must return features",
        ),
    ],
)
def test_mistakes_are_said_before_anything_runs(changes, words):
    ran = []
    told = lambda key, logits_fn, x, y: ran.append(1) or x
    given = dict(logits_fn=by_mean, threat=LINF, wanted=LITTLE) | changes
    suite = NamedAttack("told", told)
    with pytest.raises(InputError, match=words):
        rj.evaluate(given.pop("logits_fn"), X, Y, suite=suite, **given)
    assert not ran


def test_what_is_wanted_is_checked():
    with pytest.raises(InputError, match="`indicators` must be True or False"):
        Wanted(indicators="no")
    with pytest.raises(InputError, match="`binarization` must be an integer"):
        Wanted(binarization=1.5)


def test_classes_and_sizes_are_told_apart_in_comparisons(tmp_path):
    fgsm = NamedAttack(
        "fgsm", attacks.fgsm(LINF), {"threat": dict(name="linf", eps=0.1)}
    )
    more = lambda x: jnp.pad(by_mean(x), ((0, 0), (0, 2)), constant_values=-100.0)
    for name, fun in (("a", by_mean), ("b", more)):
        report = rj.evaluate(fun, X, Y, threat=LINF, suite=fgsm, wanted=LITTLE)
        report.save(tmp_path / name / "report")
    with pytest.raises(InputError, match="different class counts"):
        rj.evaluation.compare([tmp_path / "a", tmp_path / "b"])
