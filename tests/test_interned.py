"""Equal arguments, one object: what `jit` needs to find a program again."""

import jax
import jax.numpy as jnp
import numpy as np

from robustjax import attacks, objectives, threats
from robustjax._interned import interned


def test_threats_and_attacks_are_the_same_for_the_same_numbers():
    def built(eps=0.1, bounds=(0.0, 1.0), objective=objectives.cross_entropy):
        threat = threats.linf(eps, bounds=bounds)
        pgd = attacks.pgd(threat, step_size=0.05, num_steps=2, objective=objective)
        return attacks.restarts(pgd, 3)

    assert built() is built()
    assert built() is not built(eps=0.2)
    assert built() is not built(bounds=(-1.0, 1.0))
    assert built() is not built(objective=objectives.margin)
    assert threats.l2(0.5) is threats.l2(0.5)
    assert threats.l1(0.5, sparsity=0.1) is not threats.l1(0.5, sparsity=1)


def objective_that_may_read_globals(logits, y):
    return logits.sum(axis=1)


def test_functions_of_others_are_not_trusted_to_stay_what_they_are():
    def built():
        return attacks.pgd(
            threats.linf(0.1),
            step_size=0.1,
            num_steps=1,
            objective=objective_that_may_read_globals,
        )

    assert built() is not built()


def test_a_whole_number_is_not_the_float():
    assert threats.l1(2.0, sparsity=1) is not threats.l1(2.0, sparsity=1.0)


def test_nothing_is_kept_of_arrays_and_of_functions_that_close_over_them():
    built = []

    @interned
    def factory(*args, **kwargs):
        built.append((args, kwargs))
        return object()

    array, scale = jnp.ones(2), np.ones(2)
    own = attacks.pgd(
        threats.linf(0.1),
        step_size=0.1,
        num_steps=1,
        objective=lambda logits, y: (scale * logits).sum(axis=1),
    )
    unkept = (array, scale, own, threats.linf(jnp.float32(0.1)), (0.1, array), [0.1])
    for value in unkept:
        assert factory(value) is not factory(value)
        assert factory(given=value) is not factory(given=value)
    assert len(built) == 4 * len(unkept)


def test_a_traced_radius_stays_in_its_trace():
    x = jnp.full((1, 2, 2, 1), 0.5)

    @jax.jit
    def moved(eps):
        return threats.linf(eps).project(x + 1, x)

    for eps in (0.1, 0.2):
        assert jnp.allclose(moved(eps), x + eps)
    assert jnp.allclose(threats.linf(0.1).project(x + 1, x), x + 0.1)
