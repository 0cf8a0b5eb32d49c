"""Accuracy after one start, two, and so on."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from robustjax import InputError, attacks, threats, training
from robustjax.data import Dataset
from robustjax.evaluation import compose, evaluate, restart_curve, summarise
from robustjax.evaluation.indicators import OWN

RNG = np.random.default_rng(0)
X = RNG.random((24, 3, 3, 1), dtype=np.float32)
WEIGHTS = RNG.normal(size=(9, 4)).astype(np.float32)
LINF, KEY = threats.linf(0.01), jax.random.key(0)
WALK = dict(step_size=0.005, num_steps=3)


def rough(z):
    """Many hills: where a walk ends depends on where it starts."""
    flat = z.reshape(len(z), -1)
    return flat @ jnp.asarray(WEIGHTS) + jnp.sin(60 * flat) @ jnp.asarray(WEIGHTS)


Y = np.asarray(rough(X).argmax(axis=1), np.int32)
DATA = Dataset(X, Y, np.arange(24), ("a", "b", "c", "d"))


def curve(fun=rough, **options):
    given = dict(threat=LINF, key=KEY, num_restarts=4, **WALK)
    given |= dict(mesh=training.data_mesh(jax.devices()[:1])) | options
    return restart_curve(fun, DATA, given.pop("threat"), **given)


def test_it_is_the_worst_of_so_many_runs_of_pgd():
    found = curve()
    keys = jax.vmap(jax.random.fold_in, (None, 0))
    left, expected = np.ones(24, bool), []
    for number in range(4):
        key = jax.random.fold_in(jax.random.fold_in(KEY, OWN), number)
        start = LINF.sample(keys(key, np.arange(24)), jnp.asarray(X))
        points = [start]
        for steps in (1, 2, 3):  # anywhere on the way counts
            attack = attacks.pgd(
                LINF,
                step_size=0.005,
                num_steps=steps,
                random_start=lambda key, x, start=start: start,
            )
            points.append(attack(jax.random.key(1), rough, jnp.asarray(X), Y))
        for z in points:
            left &= np.asarray(rough(z).argmax(axis=1)) == Y
        expected.append(left.mean())
    assert found["restarts"] == [1, 2, 3, 4]
    assert found["num_examples"] == 24
    np.testing.assert_allclose(found["accuracy"], expected)
    assert expected[-1] < expected[0]


def test_a_report_takes_it():
    result = evaluate(rough, DATA, [], key=KEY)
    content, pictures = compose(summarise(result), context={}, restarts=curve())
    assert content["restarts"]["restarts"] == [1, 2, 3, 4]
    assert "restarts" in pictures


def test_more_starts_go_on_where_fewer_stop():
    traces = []

    def counted(z):
        traces.append(z.shape)
        return rough(z)

    two = curve(counted, num_restarts=2)
    before = len(traces)
    many = curve(counted, num_restarts=5)
    assert many["accuracy"][:2] == two["accuracy"]
    assert len(traces) <= before + 1  # the number of draws is asked of the shape
    assert curve(subset=7)["num_examples"] == 7


def test_of_random_classifiers_the_best_start_counts():
    draws = lambda z: jnp.stack([rough(z), rough(z[:, ::-1]), rough(z) + 1])
    accuracy = curve(draws)["accuracy"]
    assert accuracy == sorted(accuracy, reverse=True)


def test_where_nothing_walks_there_is_no_curve():
    assert curve(threat=threats.linf(0.0)) is None
    assert curve(threat=threats.l2(float("inf"))) is None


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (dict(num_restarts=0), "`num_restarts`"),
        (dict(num_steps=0), "`num_steps`"),
        (dict(subset=0), "`subset`"),
        (dict(step_size=-1.0), "`step_size`"),
        (dict(key=0), "`key`"),
        (dict(threat=threats.linf(jnp.full(24, 0.1))), "`threat`"),
    ],
)
def test_bad_input(changes, message):
    with pytest.raises(InputError, match=message):
        curve(**changes)
