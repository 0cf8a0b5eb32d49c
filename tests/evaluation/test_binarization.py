"""The binarization test: what is planted is there, and weak attacks miss it."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from cases import THREATS
from sklearn.svm import SVC

from robustjax import InputError, attacks, data, defenses, models, threats, training
from robustjax.data import Dataset
from robustjax.evaluation import (
    Binarization,
    binarization,
    features_of,
    summarise_binarization,
    wilson_interval,
)
from robustjax.evaluation._planted import inside, on_surface
from robustjax.evaluation._protocol_sections import binarization_section
from robustjax.evaluation._readout import fit_readout, nearest_in_hull
from robustjax.types import Batch, ModelOutput

RNG = np.random.default_rng(0)
X = RNG.random((6, 4, 4, 1), dtype=np.float32)
DATA = Dataset(X, np.zeros(6, np.int32), np.arange(6), ("a", "b"))
MIXING = jnp.asarray(RNG.normal(size=(16, 40)), jnp.float32)
LINF = threats.linf(0.1)
PGD = attacks.pgd(LINF, step_size=0.03, num_steps=8)
KEY = 5


def smooth(z):
    return jnp.tanh(z.reshape(len(z), -1) @ MIXING)


def rounded(z):
    return smooth(jnp.round(z * 20) / 20)


def run(fun=smooth, images=DATA, attack=PGD, **options):
    threat = options.pop("threat", LINF)
    given = dict(key=jax.random.key(KEY), num_inner=60) | options
    given.setdefault("mesh", training.data_mesh(jax.devices()[:1]))
    return binarization(fun, images, threat, attack, **given)


def cloud(dim, spread, seed):
    """Features of points around an image under a random network, and of one outside."""
    rng = np.random.default_rng(seed)
    first = rng.normal(size=(20, dim))
    inner = rng.uniform(-0.95, 0.95, (150, 20))
    boundary = rng.uniform(-1, 1, 20)
    boundary /= np.abs(boundary).max()
    features = lambda z: np.maximum(z @ first + 1, 0) * spread + 3 * spread
    return features(inner).astype(np.float32), features(boundary).astype(np.float32)


@pytest.mark.parametrize(("dim", "spread"), [(12, 1.0), (40, 1e3), (400, 1e-3)])
def test_the_readout_is_that_of_a_support_vector_machine(dim, spread):
    inner, boundary = cloud(dim, spread, dim)
    fit = fit_readout(jnp.asarray(inner), jnp.asarray(boundary), closeness=0.0)
    assert fit.separable
    both = np.vstack([inner, boundary[None]]).astype(np.float64) / spread
    machine = SVC(kernel="linear", C=1e9, tol=1e-7)
    machine.fit(both, np.arange(len(both)) == len(inner))
    # Its decision values are -1 at the nearest of the cloud and 1 at the point.
    scores = fit.readout(jnp.asarray(both * spread, jnp.float32))
    expected = machine.decision_function(both)
    np.testing.assert_allclose(scores, expected, rtol=5e-3, atol=5e-3)
    way = np.linalg.norm(both[:-1] - both[-1], axis=1).max()
    margin = 2 / np.linalg.norm(machine.coef_) / way
    assert fit.margin == pytest.approx(margin, rel=2e-3)


@pytest.mark.parametrize("closeness", [0.0, 0.9, 0.999])
@pytest.mark.parametrize("seed", range(3))
def test_only_the_boundary_point_is_adversarial_whatever_the_features(closeness, seed):
    inner, boundary = cloud(60, 10.0 ** (seed - 1), seed)
    inner, boundary = np.round(inner, 2 - seed), np.round(boundary, 2 - seed)
    fit = fit_readout(jnp.asarray(inner), jnp.asarray(boundary), closeness=closeness)
    assert fit.separable
    weights, at, offset = (np.asarray(part, np.float64) for part in fit.readout)
    score = lambda f: (f.astype(np.float64) - at) @ weights + offset
    assert score(boundary) == pytest.approx(1 - closeness)
    # From the nearest of the cloud it is closeness + 1 halves of the way to the plane.
    assert score(inner).max() == pytest.approx(-(1 + closeness), rel=1e-4)
    halfway = 0.5 * (inner[score(inner).argmax()] + boundary)
    assert score(halfway) == pytest.approx(-closeness, abs=1e-3)


def test_what_no_plane_separates_is_said():
    inner, _ = cloud(30, 1.0, 0)
    fit = jax.jit(fit_readout, static_argnames="closeness")
    for boundary in (inner[3], inner.mean(axis=0), np.full(30, np.nan, np.float32)):
        found = fit(jnp.asarray(inner), jnp.asarray(boundary), closeness=0.9)
        assert not found.separable
        assert found.margin < 1e-3
    same = fit(jnp.ones((9, 3)), jnp.ones(3), closeness=0.9)
    assert not same.separable
    wild = jnp.asarray(inner).at[0, 0].set(jnp.inf)
    assert not fit(wild, 5 * jnp.ones(30), closeness=0.9).separable


def test_the_nearest_point_meets_the_conditions_of_the_minimum():
    points = np.float32(RNG.normal(size=(200, 15)) + 4 * np.eye(1, 15))
    shares = np.asarray(nearest_in_hull(jnp.asarray(points)), np.float64)
    assert shares.min() >= 0
    assert shares.sum() == pytest.approx(1)
    nearest = shares @ points
    # The plane across it has the whole hull on its far side.
    assert (points @ nearest).min() >= (1 - 2e-3) * (nearest @ nearest)


def test_one_fit_or_many_compiled_or_not():
    clouds = [cloud(25, 1.0, seed) for seed in range(3)]
    inner, boundary = (
        jnp.asarray(np.stack(part)) for part in zip(*clouds, strict=True)
    )
    fit = lambda i, b: fit_readout(i, b, closeness=0.9)
    several = jax.jit(jax.vmap(fit))(inner, boundary)
    for number in range(3):
        alone = fit(inner[number], boundary[number])
        for one, row in zip(
            jax.tree.leaves(alone), jax.tree.leaves(several), strict=True
        ):
            np.testing.assert_allclose(row[number], one, rtol=1e-2, atol=1e-3)


@pytest.mark.parametrize("name", THREATS)
def test_points_are_inside_or_on_the_surface(name):
    make, eps = THREATS[name]
    threat = make(eps)
    x = jnp.asarray(RNG.choice([0, 0.3, 1], (50, 4, 4, 1)), jnp.float32)
    keys = jax.random.split(jax.random.key(0), 50)
    near = inside(threat, 0.5)(keys, x)
    assert threat.norm(near - x).max() <= 0.5 * eps * (1 + 1e-5)
    surface = on_surface(threat)(jax.random.clone(keys), x)
    for points in (near, surface):
        assert points.min() >= 0
        assert points.max() <= 1
    np.testing.assert_allclose(threat.norm(surface - x), eps, rtol=1e-5)
    # What the box does not stop has moved along one ray.
    moved = np.asarray(surface - x).reshape(50, -1)
    free = (np.asarray(surface).reshape(50, -1) % 1 > 0) & (moved != 0)
    assert free.sum() > 300
    assert len(np.unique(np.sign(moved[free]))) == 2


def test_corners_move_every_pixel_that_has_room():
    x = jnp.full((20, 4, 4, 1), 0.5)
    keys = jax.random.split(jax.random.key(0), 20)
    corner = on_surface(LINF, corners=True)(keys, x)
    np.testing.assert_allclose(jnp.abs(corner - x), 0.1, rtol=1e-5)
    assert 100 < (corner > x).sum() < 220


@pytest.mark.parametrize("name", ["linf", "l2", "l1"])
def test_a_sound_model_passes(name):
    make, eps = THREATS[name]
    threat, attack = LINF, PGD
    if name != "linf":
        threat = make(2 * eps)
        attack = attacks.pgd(threat, step_size=eps / 2, num_steps=10)
    summary = summarise_binarization(run(attack=attack, threat=threat))
    assert summary["num_separable"] >= 5
    assert summary["success"] == 1
    assert summary["random_success"] < 0.5
    assert not summary["flagged"]


def test_a_masked_model_fails_unless_the_attack_climbs_another_gradient():
    masked = summarise_binarization(run(rounded))
    assert masked["num_counted"] >= 4
    assert masked["success"] == 0
    assert masked["flagged"]
    json.dumps(masked, allow_nan=False)
    straight = attacks.with_surrogate(lambda z: jnp.round(z * 20) / 20)
    assert run(rounded, source=lambda z: smooth(straight(z))).success.all()


def test_results_are_the_same_in_blocks_of_any_size_and_alone():
    whole = run()
    assert whole.index.tolist() == list(range(6))
    assert whole.success.all()
    several = training.data_mesh(jax.devices()[:2])
    for other in (run(images=X), run(batch_size=7, mesh=several)):
        for one, another in zip(whole, other, strict=True):
            np.testing.assert_allclose(one, another, rtol=1e-3)
    alone = [run(images=DATA.take([row])) for row in range(6)]
    for one, rows in zip(whole, zip(*alone, strict=True), strict=True):
        np.testing.assert_allclose(one, np.concatenate(rows), rtol=1e-3)


def test_nothing_is_traced_again():
    calls = []

    def features(z):
        calls.append(z.shape)
        return smooth(z)

    run(features, num_images=3, batch_size=3)
    traced = len(calls)
    run(features, images=DATA.take([3, 4, 5]), batch_size=3)
    assert len(calls) == traced


def test_a_step_out_of_the_ball_does_not_count():
    far = attacks.pgd(threats.linf(0.3), step_size=0.1, num_steps=8)
    found = run(attack=far)
    assert found.separable.all()
    assert found.outside.all()
    assert not found.success.any()
    assert summarise_binarization(found)["num_outside"] == 6


def test_the_scale_is_that_of_the_classifier():
    """Logits so large that the softmax saturates hide the example here as there."""
    scaled = lambda factor: lambda z: (smooth(z), factor * smooth(z)[:, :3])
    assert not run(scaled(1e5)).success.any()


def test_the_features_of_a_layer():
    def model_fn(z, *, capture=(), taps=None):
        hidden = jnp.stack([smooth(z)] * 2, axis=2)
        return ModelOutput(hidden[:, :3, 0], dict.fromkeys(capture, hidden), {})

    features, logits = features_of(model_fn, "hidden")(jnp.asarray(X))
    assert features.shape == (6, 80)
    np.testing.assert_array_equal(features[:, ::2], smooth(X))
    np.testing.assert_array_equal(logits, smooth(X)[:, :3])


def test_a_summary_leaves_out_what_says_nothing():
    index = np.arange(10)
    separable = index < 8
    random_success = index < 2
    success = index < 5
    found = Binarization(
        *(index, separable, success, random_success, index < 0, np.ones(10)),
        still=index == 9,
    )
    summary = summarise_binarization(found, threshold=0.6)
    assert summary["success"] == 3 / 6
    assert summary["interval"] == list(wilson_interval(3, 6))
    assert summary["random_success"] == 2 / 8
    assert (summary["num_images"], summary["num_separable"]) == (10, 8)
    assert summary["flagged"]
    assert not summary["too_easy"]
    assert not summarise_binarization(found, threshold=0.5)["flagged"]
    assert "2 of 10 images could not be fitted" in summary["detail"]
    assert summary["num_still"] == 1
    assert "around 1 the features stand still" in summary["detail"]
    nothing = summarise_binarization(
        found._replace(separable=index < 0, random_success=index < 0)
    )
    assert nothing["success"] is None
    assert nothing["too_easy"]
    assert not nothing["flagged"]


def test_features_that_stand_still_are_told_from_those_that_no_plane_separates():
    def saturated(z):
        small = 1e-6 * z[:, 0, 0]
        return jnp.concatenate([small, small - 80, small - 85], axis=1)

    found = run(saturated)
    assert found.still.all()
    assert not found.separable.any()
    summary = summarise_binarization(found)
    assert summary["num_still"] == 6
    section = binarization_section(summary)
    assert any("Around 6 of 6 images" in text.text for text in section.blocks[:-1])
    length = lambda z: jnp.square(z).sum((1, 2, 3), keepdims=True)
    for moving in (length, smooth):
        assert not run(moving).still.any()


@pytest.mark.parametrize(("share", "said"), [(None, "No readout"), (0.6, "Random")])
def test_a_report_says_what_was_tested_and_why_it_says_little(share, said):
    found = dict(attack="PGD-40", random_success=share, too_easy=True)
    _, strong, table = binarization_section(found).blocks
    assert strong.text.startswith(said)
    assert ("attack under test", "PGD-40") in table.cells


def test_input_that_does_not_fit_says_so():
    with pytest.raises(InputError, match="`closeness` must be below 1"):
        run(closeness=1.0)
    with pytest.raises(InputError, match="`inner_share` must lie in"):
        run(inner_share=1.5)
    with pytest.raises(InputError, match="`num_inner` must be an integer"):
        run(num_inner=0)
    with pytest.raises(InputError, match="`corners` are those of an L-inf ball"):
        run(threat=threats.l2(0.5), corners=True)
    with pytest.raises(InputError, match="one radius for all images"):
        run(threat=threats.linf(jnp.full(6, 0.1)))
    with pytest.raises(InputError, match="got a staged one"):
        run(attack=attacks.autoattack(LINF))
    with pytest.raises(InputError, match="`features_fn` must return features"):
        run(lambda z: smooth(z)[None].repeat(3, 0))
    with pytest.raises(InputError, match="`source` must return features"):
        run(source=lambda z: z.sum())
    with pytest.raises(InputError, match="Divide integer images by 255"):
        run(images=np.uint8(255 * X))


@pytest.mark.slow
@pytest.mark.usefixtures("compile_fully")
def test_authors_finding_on_digits():
    """A trained model is broken on nearly every image, a masked one on hardly any."""
    splits = data.load("digits")
    x, y = data.as_float(jnp.asarray(splits.train.images)), splits.train.labels
    y = jnp.asarray(y)
    model = models.from_linen(models.small_cnn())
    params, state = model.init(jax.random.key(0), x[:1])
    loss_fn = defenses.adversarial(
        model, attacks.pgd(LINF, step_size=0.03, num_steps=7)
    )
    optimizer = optax.adam(3e-3)

    @jax.jit
    def trained(params):
        def step(carry, key):
            params, moments = carry
            rows_key, loss_key = jax.random.split(key)
            rows = jax.random.randint(rows_key, (128,), 0, len(x))
            batch = Batch(x[rows], y[rows])
            grads, _ = jax.grad(loss_fn, has_aux=True)(params, state, loss_key, batch)
            updates, moments = optimizer.update(grads, moments)
            return (optax.apply_updates(params, updates), moments), None

        keys = jax.random.split(jax.random.key(1), 300)
        return jax.lax.scan(step, (params, optimizer.init(params)), keys)[0][0]

    model_fn = models.model_fn(model, trained(params), state)
    features = features_of(model_fn, "features")
    quantised = lambda z: features(jnp.round(z * 16) / 16)
    attack = attacks.pgd(LINF, step_size=0.02, num_steps=20)
    sound, masked = (
        summarise_binarization(
            binarization(fun, splits.test, LINF, attack, key=jax.random.key(3))
        )
        for fun in (features, quantised)
    )
    assert sound["success"] > 0.95
    assert masked["success"] < 0.5
    for summary in (sound, masked):
        assert summary["num_images"] == 64
        assert summary["num_separable"] > 60
        assert summary["random_success"] < 0.1
    assert masked["flagged"]
    assert not sound["flagged"]
