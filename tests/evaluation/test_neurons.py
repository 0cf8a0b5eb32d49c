"""What attacks do to neurons, against numpy; what is told the truth."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from robustjax import InputError, attacks, evaluation, influence, threats
from robustjax.data import Dataset
from robustjax.evaluation import NamedAttack
from robustjax.transforms import NIPOptions, moved_towards, nip
from robustjax.types import Batch, ModelOutput

RNG = np.random.default_rng(0)
FIRST = RNG.normal(size=(16, 10)).astype(np.float32)
SECOND = RNG.normal(size=(10, 3)).astype(np.float32)


def model_fn(x, *, capture=(), taps=None):
    a = jax.nn.relu((x.reshape(x.shape[0], 16) - 0.5) @ FIRST)
    a = a + (taps or {}).get("hidden", 0)
    return ModelOutput(a @ SECOND, {"hidden": a, "image": x}, {})


def logits_fn(x):
    return model_fn(x).logits


IMAGES = RNG.uniform(size=(60, 4, 4, 1)).astype(np.float32)
ANSWERS = np.asarray(logits_fn(jnp.asarray(IMAGES)).argmax(axis=1))
LABELS = np.where(np.arange(60) < 8, (ANSWERS + 1) % 3, ANSWERS).astype(np.int32)
DATASET = Dataset(IMAGES, LABELS, np.arange(60), ("a", "b", "c"))
OPTIONS = NIPOptions(layer="hidden", front=3, tail=2, size=0.05)


@pytest.fixture(scope="module")
def state():
    defense = nip(layer="hidden", front=3, tail=2, size=0.05)
    batch = Batch(jnp.asarray(IMAGES), jnp.asarray(LABELS))
    return defense.fit(jax.random.key(0), model_fn, batch)


@pytest.fixture(scope="module")
def result():
    attack = attacks.pgd(threats.linf(0.05), step_size=0.02, num_steps=5)
    rows = [
        NamedAttack("pgd", attack),
        NamedAttack("nothing", lambda key, f, x, y: x),
    ]
    key = jax.random.key(1)
    return evaluation.evaluate(
        logits_fn, DATASET, rows, key=key, keep_adversarial=True, batch_size=17
    )


def given(state, **changes):
    known = dict(
        model_fn=model_fn,
        layer="hidden",
        masks=state.masks,
        class_influence=state.influence,
        deviation=state.deviation,
        batch_size=13,
    )
    return known | changes


def test_shifts_against_numpy(state, result):
    found = evaluation.neuron_shifts(result, DATASET, **given(state))
    hidden = lambda x: np.maximum((x.reshape(60, 16) - 0.5) @ FIRST, 0)
    x_adv = result.attacks[0].x_adv
    shift = (hidden(x_adv) - hidden(IMAGES)) / np.asarray(state.deviation)
    masks = np.asarray(state.masks)[LABELS]
    worth = np.asarray(state.influence)[LABELS]
    right = LABELS == ANSWERS
    fell = (hidden(x_adv) @ SECOND).argmax(axis=1) != LABELS
    pgd, nothing = found["attacks"]
    for name, rows in (("succeeded", right & fell), ("failed", right & ~fell)):
        row = pgd["groups"][name]
        assert row["count"] == rows.sum() > 3
        part, sets = shift[rows], masks[rows]
        for column, sign in (("front", 1), ("middle", 0), ("tail", -1)):
            assert row[column] == pytest.approx(part[sets == sign].mean(), rel=1e-4)
        falls = (part < 0)[sets == 1].mean()
        assert row["front_falls"] == pytest.approx(falls)
        expected = [
            stats.spearmanr(a, b).statistic
            for a, b in zip(worth[rows], part, strict=True)
        ]
        assert row["spearman"] == pytest.approx(np.nanmean(expected), rel=1e-4)
    score = -(shift * masks).sum(axis=1)
    above = score[right & fell][:, None] - score[right & ~fell][None]
    assert pgd["auroc"]["shift"] == pytest.approx((above > 0).mean(), abs=1e-6)
    assert pgd["groups"]["all"]["front"] < 0
    order = np.argsort(-worth[right], axis=1)
    ranked = np.take_along_axis(shift[right], order, axis=1).mean(axis=0)
    np.testing.assert_allclose(
        pgd["by_rank"], ranked, atol=1e-5
    )  # ten neurons, a bin each
    assert nothing["groups"]["succeeded"]["front"] is None
    assert nothing["auroc"] == dict(shift=None, random_sets=None, margin=None)
    zero = (hidden(IMAGES) == 0)[right][masks[right] > 0].mean()
    assert found["at_zero"]["front"] == pytest.approx(zero)


def test_shifts_of_what_does_not_fit_say_so(state, result):
    with pytest.raises(InputError, match="`dataset` must be what"):
        evaluation.neuron_shifts(
            result, DATASET.take(slice(None, None, -1)), **given(state)
        )
    with pytest.raises(InputError, match=r"`masks` must be .* of 10 neurons, got 4"):
        evaluation.neuron_shifts(result, DATASET, **given(state, masks=np.ones((3, 4))))
    with pytest.raises(InputError, match="`deviation` must be 10 numbers above 0"):
        evaluation.neuron_shifts(
            result, DATASET, **given(state, deviation=np.zeros(10))
        )
    empty = dataclasses.replace(
        result, attacks=(dataclasses.replace(result.attacks[0], x_adv=None),)
    )
    with pytest.raises(InputError, match="keep_adversarial=True"):
        evaluation.neuron_shifts(empty, DATASET, **given(state))
    with pytest.raises(InputError, match="keep_adversarial=True"):
        evaluation.beside_bare(empty, DATASET, logits_fn)
    with pytest.raises(InputError, match="`dataset` must be what"):
        evaluation.beside_bare(result, DATASET.take(slice(30)), logits_fn)


def test_maps_are_sums_over_channels():
    x, y = jnp.asarray(IMAGES[:4]), jnp.asarray(LABELS[:4])

    def spatial(x, *, capture=(), taps=None):
        a = jnp.concatenate([x, x**2], axis=-1) + (taps or {}).get("conv", 0)
        logits = jnp.stack([a[:, 0, 0, 0], a[:, 1, 2, 1], 0 * a[:, 0, 0, 0]], axis=1)
        return ModelOutput(logits, {"conv": a}, {})

    found = evaluation.influence_maps(spatial, x, y, layer="conv")
    products = influence.activation_x_gradient(
        spatial, x, y, layer="conv", output=influence.log_probability
    )
    np.testing.assert_allclose(found, np.abs(products).sum(axis=3), rtol=1e-6)
    where = found > 0
    assert where[:, 0, 0].all()
    assert where[:, 1, 2].all()
    assert where.sum() == 8
    with pytest.raises(InputError, match=r"must have outputs .B, h, w, C. for a map"):
        evaluation.influence_maps(model_fn, x, y, layer="hidden")


def test_the_oracle_counts_what_it_moves(state):
    x, y = jnp.asarray(IMAGES), jnp.asarray(LABELS)
    moved = moved_towards(OPTIONS, state, model_fn, x, y)
    expected = (logits_fn(moved).argmax(axis=1) == y).mean()
    got = evaluation.oracle_share(OPTIONS, state, model_fn, x, y)
    assert got == pytest.approx(float(expected))
    assert got >= float((logits_fn(x).argmax(axis=1) == y).mean())


def test_the_released_protocol_step_by_step(result):
    x, x_adv = jnp.asarray(IMAGES), jnp.asarray(result.attacks[0].x_adv)
    got = {
        flip: evaluation.benign_twin_share(
            OPTIONS, model_fn, x, x_adv, size=0.02, sign_flip=flip
        )
        for flip in (False, True)
    }
    flat = IMAGES.reshape(60, 16).astype(np.float64)
    count = {False: 0, True: 0}
    for z, z_adv, c in zip(
        flat, np.asarray(x_adv).reshape(60, 16), ANSWERS, strict=True
    ):
        before = (z - 0.5) @ FIRST
        a = np.maximum(before, 0)
        p = np.exp(a @ SECOND)
        own = a * (SECOND @ (np.eye(3)[c] - p / p.sum()))
        mask = np.zeros(10)
        order = np.argsort(own, kind="stable")
        mask[np.argsort(-own, kind="stable")[:3]] = 1
        mask[[j for j in order if mask[j] == 0][:2]] = -1
        slope = FIRST @ ((before > 0) * mask)
        d = slope / (np.sqrt((slope**2).mean()) + 1e-5)
        answer = lambda z: np.argmax(np.maximum((z - 0.5) @ FIRST, 0) @ SECOND)
        there = answer(np.clip(z_adv + 0.02 * d, 0, 1)) == c
        back = answer(np.clip(z_adv - 0.02 * d, 0, 1)) == c
        count[False] += there
        count[True] += there or back
    for flip, number in count.items():
        assert got[flip] == pytest.approx(number / 60, abs=1.1 / 60)
    drawn = evaluation.benign_twin_share(
        OPTIONS, model_fn, x, x_adv, size=0.02, random_key=jax.random.key(3)
    )
    assert 0 < drawn <= 1
