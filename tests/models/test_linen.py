"""What is the linen adapter's own."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from robustjax import InputError
from robustjax.models import from_linen

X = jax.random.uniform(jax.random.key(0), (4, 5))


def no_kwargs(mode):
    return {}


class Dropped(nn.Module):
    @nn.compact
    def __call__(self, x, *, deterministic):
        return nn.Dense(3)(nn.Dropout(0.5)(x, deterministic=deterministic))


class Shared(nn.Module):
    @nn.compact
    def __call__(self, x):
        layer = nn.Dense(5, name="layer")
        return layer(layer(x))


class Pair(nn.Module):
    @nn.compact
    def __call__(self, x):
        return x, x


class PairInside(nn.Module):
    @nn.compact
    def __call__(self, x):
        return Pair(name="pair")(x)[0]


class Remat(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.Dense(3, name="head")(nn.remat(nn.Dense)(5, name="inner")(x))


class ScanBody(nn.Module):
    @nn.compact
    def __call__(self, x, _):
        return nn.Dense(5, name="inner")(x), None


class Scanned(nn.Module):
    @nn.compact
    def __call__(self, x):
        body = nn.scan(
            ScanBody,
            variable_axes={"params": 0},
            split_rngs={"params": True},
            length=2,
        )
        return body(name="body")(x, None)[0]


def init(model):
    return model.init(jax.random.key(0), X)


def test_a_module_that_needs_a_key_says_so():
    model = from_linen(
        Dropped(), call_kwargs=lambda mode: {"deterministic": mode == "eval"}
    )
    params, state = init(model)
    model.apply(params, state, X)
    for mode in ("train", "batch"):
        with pytest.raises(InputError, match="`key` must be given"):
            model.apply(params, state, X, mode=mode)


def test_equals_the_module_called_by_hand():
    module = Dropped()
    model = from_linen(
        module, call_kwargs=lambda mode: {"deterministic": mode == "eval"}
    )
    params, state = init(model)
    ours = model.apply(params, state, X, mode="batch", key=jax.random.key(4)).logits
    theirs = module.apply(
        {"params": params}, X, deterministic=False, rngs={"dropout": jax.random.key(4)}
    )
    np.testing.assert_array_equal(ours, theirs)


def test_a_wrong_keyword_comes_with_a_hint():
    with pytest.raises(TypeError) as raised:
        init(from_linen(nn.Dense(3)))
    assert any("`call_kwargs`" in note for note in raised.value.__notes__)


def test_a_layer_called_twice_is_tapped_twice_but_not_captured():
    model = from_linen(Shared(), call_kwargs=no_kwargs)
    params, state = init(model)
    kernel = params["layer"]["kernel"]
    tap = jnp.ones((1, 5))
    out = model.apply(params, state, X, taps={"layer": tap}).logits
    np.testing.assert_allclose(out, (X @ kernel + tap) @ kernel + tap, atol=1e-5)
    with pytest.raises(InputError, match="calls 2 times"):
        model.apply(params, state, X, capture=("layer",))


def test_outputs_that_are_no_array_are_refused():
    model = from_linen(PairInside(), call_kwargs=no_kwargs)
    for call in ({"capture": ("pair",)}, {"taps": {"pair": X}}):
        with pytest.raises(InputError, match="returns a tuple"):
            model.apply({}, {}, X, **call)
    with pytest.raises(InputError, match="must return logits"):
        from_linen(Pair(), call_kwargs=no_kwargs).apply({}, {}, X)


def test_reaches_into_remat():
    model = from_linen(Remat(), call_kwargs=no_kwargs)
    params, state = init(model)

    def total(tap):
        out = model.apply(params, state, X, capture=("inner",), taps={"inner": tap})
        return out.logits.sum(), out.features["inner"]

    gradient, inner = jax.grad(total, has_aux=True)(jnp.zeros((4, 5)))
    expected = params["head"]["kernel"].sum(1)
    np.testing.assert_allclose(gradient, np.tile(expected, (4, 1)), atol=1e-5)
    assert inner.shape == (4, 5)


def test_inside_a_scan_taps_work_and_capture_says_no():
    model = from_linen(Scanned(), call_kwargs=no_kwargs)
    params, state = init(model)
    kernels = params["body"]["inner"]["kernel"]
    tap = jnp.ones((4, 5))
    out = model.apply(params, state, X, taps={"body/inner": tap}).logits
    expected = (X @ kernels[0] + tap) @ kernels[1] + tap
    np.testing.assert_allclose(out, expected, atol=1e-5)
    with pytest.raises(InputError, match="inside a linen transform"):
        model.apply(params, state, X, capture=("body/inner",))


def test_flax_own_probes_are_no_state():
    class Probed(nn.Module):
        @nn.compact
        def __call__(self, x):
            x = self.perturb("probe", nn.Dense(3)(x))
            self.sow("intermediates", "seen", x)
            return x

    model = from_linen(Probed(), call_kwargs=no_kwargs)
    params, state = init(model)
    assert state == {}
    assert model.apply(params, state, X[:2]).logits.shape == (2, 3)
