"""A random classifier is judged by expected accuracy, not by its unluckiest draw."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from robustjax import attacks, threats, training
from robustjax.attacks import expectation
from robustjax.data import Dataset
from robustjax.evaluation import (
    NamedAttack,
    evaluate,
    robustness_curve,
    save_adversarial,
    summarise,
    write_report,
)
from robustjax.evaluation._judging import judged, worst_so_far

RIGHT = 0.7
THREAT = threats.linf(0.1)


@pytest.fixture(scope="module")
def dataset():
    x = np.linspace(0.3, 0.7, 200, dtype=np.float32).reshape(-1, 1, 1, 1)
    return Dataset(x, (x > 0.5).astype(np.int32).ravel(), np.arange(200), ("a", "b"))


def coin(keys, x):
    """Right 70% of the time, whatever the image: no attack can change that."""
    right = jax.vmap(lambda key: jax.random.bernoulli(key, RIGHT))(keys)
    margin = jnp.where(right, 1.0, -1.0) * jnp.where(x > 0.5, 1.0, -1.0).ravel()
    return jnp.stack([-margin, margin], axis=1)


def noisy(keys, x):
    """A threshold at 0.5 behind noise: what an attack shifts, it breaks."""
    z = x.ravel() + 0.01 * jax.vmap(jax.random.normal)(keys)
    return jnp.stack([0.5 - z, z - 0.5], axis=1)


def run(fun, dataset, named, **rest):
    return run_of(30, fun, dataset, named, **rest)


def run_of(draws, fun, dataset, named, **rest):
    predict = expectation(fun, jax.random.key(1), draws)
    mesh = training.data_mesh(jax.devices()[:1])
    return evaluate(
        predict, dataset, named, key=jax.random.key(0), mesh=mesh, batch_size=64, **rest
    )


def wiggle(seed):
    """Another image in the same class, so that draws are new."""

    def attack(key, logits_fn, x, y):
        del key, logits_fn
        return jnp.where(y.reshape(-1, 1, 1, 1) == 1, x + seed * 1e-4, x - seed * 1e-4)

    return NamedAttack(f"wiggle {seed}", attack)


def restarted(num):
    source = expectation(coin, jax.random.key(2), 1, average="logits")
    noise = attacks.uniform_noise(threats.linf(1e-4))
    return NamedAttack("noise", noise, source=source, repeats=num)


def test_many_attacks_find_no_unlucky_draws(dataset):
    result = run(coin, dataset, [wiggle(i) for i in range(8)] + [restarted(20)])
    # 200 images, a third of 30 draws each: a standard deviation of 0.01.
    assert result.draws == 30
    assert abs(result.clean_correct.mean() - RIGHT) < 0.04
    assert abs(result.attacks[-1].correct.mean() - RIGHT) < 0.04
    # Nor do many runs of one attack look stronger to the adversary than they are.
    assert abs(result.attacks[-1].seen.mean() - RIGHT) < 0.04
    assert abs(result.worst_case_correct.mean() - RIGHT) < 0.04
    # What is judged by the draws that the adversary picks by would be far lower.
    seen = np.min([a.seen for a in result.attacks], axis=0)
    assert seen.mean() < RIGHT - 0.15


def test_what_an_attack_breaks_in_every_draw_is_broken(dataset):
    source = expectation(noisy, jax.random.key(2), 1, average="logits")
    attack = attacks.pgd(THREAT, step_size=0.05, num_steps=4)
    result = run(noisy, dataset, [NamedAttack("PGD", attack, source=source)])
    far = np.abs(dataset.images.ravel() - 0.5)
    assert result.clean_correct[far > 0.05].min() == 1
    assert result.worst_case_correct[far < 0.05].max() == 0
    assert result.worst_case_correct[far > 0.15].min() == 1
    between = result.worst_case_correct[np.abs(far - 0.1) < 0.01]
    assert 0.2 < between.mean() < 0.8
    summary = summarise(result)
    row = summary["rows"][-1]
    assert summary["draws"] == 30
    assert row["accuracy"] == pytest.approx(result.worst_case_correct.mean())
    assert row["interval"][0] < row["accuracy"] < row["interval"][1]


def test_one_draw_is_a_classifier_like_any_other(dataset, tmp_path):
    result = run_of(1, noisy, dataset, [wiggle(1)], keep_adversarial=True)
    assert result.draws == 1
    assert result.clean_correct.dtype == result.attacks[0].correct.dtype == bool
    save_adversarial(tmp_path, result)
    assert np.load(tmp_path / "wiggle_1.npz")["broken"].dtype == bool
    shares = run_of(6, noisy, dataset, [wiggle(1)], keep_adversarial=True)
    save_adversarial(tmp_path, shares)
    broken = np.load(tmp_path / "wiggle_1.npz")["broken"]
    np.testing.assert_allclose(broken, 1 - shares.attacks[0].correct)


def test_an_attack_that_stops_at_one_wrong_draw_is_doubted(dataset):
    wide = lambda keys, x: noisy(keys, 0.5 + (x - 0.5) / 10)  # noise of 0.1 in x
    source = expectation(wide, jax.random.key(2), 1, average="logits")
    fgsm = NamedAttack("FGSM", attacks.fgsm(THREAT), source=source)
    staged = attacks.screen(THREAT)
    named = [fgsm, NamedAttack("screen", staged, source=source)]
    result = run(wide, dataset, named, num_examples=60)
    assert any("leaves an image alone" in line for line in result.attacks[1].warnings)
    # It left many at x, where other draws are right: the plain attack does more.
    assert result.attacks[0].correct.mean() < result.attacks[1].correct.mean()
    assert result.worst_case_correct.mean() <= result.attacks[0].correct.mean()


def test_a_curve_of_a_random_classifier(dataset):
    def curve(fun):
        return robustness_curve(
            expectation(fun, jax.random.key(1), 30),
            dataset,
            lambda eps: attacks.fgsm(threats.linf(eps)),
            [0.0, 0.05, 0.1, 0.15, 0.3],
            key=jax.random.key(0),
            source=expectation(fun, jax.random.key(2), 4),
            mesh=training.data_mesh(jax.devices()[:1]),
        ).mean(axis=1)

    broken = curve(noisy)
    assert broken[0] > 0.95
    assert broken[-1] < 0.02
    assert np.all(np.diff(broken) <= 0.02)
    # The coin answers by the image's own class: inside the classes it stays a coin.
    assert abs(curve(coin)[0] - RIGHT) < 0.04


def test_draws_that_are_all_the_same_are_one_classifier(dataset):
    def fun(z):
        return jnp.concatenate([0.5 - z, z - 0.5], -1).reshape(-1, 2)

    x, y = jnp.asarray(dataset.images), jnp.asarray(dataset.labels)
    one = judged((fun, lambda z: fun(z - 0.1)), x, y)
    many = judged((lambda z: fun(z)[None].repeat(5, 0), lambda z: fun(z - 0.1)), x, y)
    for alone, among in zip(one, many, strict=True):
        np.testing.assert_array_equal(alone, among)


def test_the_report_says_how_a_random_classifier_was_judged(dataset, tmp_path):
    result = run(coin, dataset, [wiggle(1)], num_examples=50)
    write_report(tmp_path, summarise(result), context={})
    assert "Of 30 per image" in (tmp_path / "report.md").read_text()
    sure = dataclasses.replace(result, draws=1)
    write_report(tmp_path, summarise(sure), context={})
    assert "draws" not in (tmp_path / "report.md").read_text()


def test_picking_by_few_draws_is_no_worse_than_one_attack_for_all():
    rng = np.random.default_rng(0)
    # One attack halves every image's accuracy, nine do next to nothing.
    chance = np.full((10, 400), 0.95)
    chance[3] = 0.5
    seen, correct = (rng.binomial(2, chance) / 2 for _ in range(2))
    worst = worst_so_far(correct, seen, draws=6)[-1]
    assert worst.mean() <= correct[3].mean()
    # Where each image has a worst attack of its own, the adversary finds it.
    chance = np.where(np.arange(10)[:, None] == np.arange(400) % 10, 0.1, 0.9)
    seen, correct = (rng.binomial(10, chance) / 10 for _ in range(2))
    worst = worst_so_far(correct, seen, draws=30)[-1]
    assert worst.mean() < 0.13
