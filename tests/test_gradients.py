"""`loop_safe` changes how convolutions are spelt, never what a function is."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from robustjax import _gradients, objectives
from robustjax._gradients import input_gradient, input_jacobian, loop_safe

X = jax.random.normal(jax.random.key(0), (2, 6, 6, 3))
W = jax.random.normal(jax.random.key(1), (3, 3, 3, 3)) / 5
BIAS = jnp.array([0.1, -0.2, 0.3]).reshape(1, 1, 1, 3)


def conv(x, w=W, padding="SAME", **kwargs):
    return jax.lax.conv_general_dilated(
        x,
        w,
        kwargs.pop("strides", (1, 1)),
        padding,
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        **kwargs,
    )


def plain(x):
    return jnp.sin(conv(x) + BIAS)


def in_scan(x):
    # A weakly typed carry beside the convolution.
    step = lambda carry, _: ((jnp.tanh(conv(carry[0])), carry[1] * 0.5), carry[1])
    (out, _), seen = jax.lax.scan(step, (x, 1.0), length=3)
    return out + seen.sum()


def in_while(x):
    body = lambda carry: (carry[0] + 1, jnp.tanh(conv(carry[1])))
    return jax.lax.while_loop(lambda carry: carry[0] < 3, body, (0, x))[1]


def in_cond(x):
    return jax.lax.cond(x.sum() > 0, conv, lambda z: conv(2 * z), jnp.cos(x))


@jax.checkpoint
def in_remat(x):
    return jnp.tanh(conv(jnp.sin(conv(x))))


def block(x, w):
    return nn.relu(conv(x, w))


def in_jit(x):
    inner = jax.jit(block)
    return inner(inner(x, W), 2 * W)


@jax.custom_vjp
def surrogate(x):
    return jnp.round(conv(x))


surrogate.defvjp(lambda x: (surrogate(x), x), lambda x, g: (g * x + conv(g),))


@jax.custom_jvp
def own_tangent(x):
    return jnp.round(conv(x))


own_tangent.defjvp(lambda x, t: (own_tangent(*x), 3 * conv(*t)))


def in_solver(x):
    symmetric = W[..., :1, :1] + W[::-1, ::-1, :1, :1]
    matvec = lambda v: 9 * v + conv(v, symmetric)
    return jax.scipy.sparse.linalg.cg(matvec, x[..., :1], maxiter=20)[0]


def in_vmap(x):
    kernels = jnp.stack([W, 2 * W])
    return jax.vmap(conv, (None, 0))(x, kernels).sum(0) + jax.vmap(
        lambda image: conv(image[None])[0]
    )(x)


def one_dimensional(x):
    rows = x.reshape(2, 36, 3)
    return jax.lax.conv_general_dilated(
        rows, W[0], (2,), [(1, 1)], dimension_numbers=("NHC", "HIO", "NHC")
    )


def three_dimensional(x):
    cube = x.reshape(2, 3, 4, 3, 3)
    return jax.lax.conv_general_dilated(
        cube,
        W[:2, :2, None],
        (1, 1, 1),
        "SAME",
        dimension_numbers=("NDHWC", "DHWIO", "NDHWC"),
    )


def without_space(x):
    rows = x.reshape(2, -1)
    return jax.lax.conv_general_dilated(rows, jnp.ones((4, 108)), (), ())


def channels_first(x):
    return jax.lax.conv_general_dilated(
        x.transpose(0, 3, 1, 2), W.transpose(3, 2, 0, 1), (1, 1), "SAME"
    )


FUNCTIONS = {
    "plain": plain,
    "scan": in_scan,
    "cond": in_cond,
    "remat": in_remat,
    "jit": in_jit,
    "custom-vjp": surrogate,
    "custom-jvp": own_tangent,
    "solver": in_solver,
    "vmap": in_vmap,
    "1d": one_dimensional,
    "3d": three_dimensional,
    "0d": without_space,
    "channels-first": channels_first,
    "strided": lambda x: conv(x, strides=(2, 3), padding=((2, 0), (1, 1))),
    "dilated": lambda x: conv(x, rhs_dilation=(2, 2), padding="VALID"),
    "transposed": lambda x: jax.lax.conv_transpose(x, W, (2, 2), "SAME"),
    "grouped": lambda x: conv(x, W[:, :, :1], feature_group_count=3),
    "kernel-larger-than-image": lambda x: conv(jnp.sin(conv(x[:, :2, :1]))),
    "no-convolution": lambda x: jnp.where(x > 0, x, jnp.exp(x)),
}
every_function = pytest.mark.parametrize("name", FUNCTIONS)
close = functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-4)


def total(f, x):
    return jnp.sum(jnp.sin(f(x)))


def together(*functions):
    """One program of several functions of x."""
    return jax.jit(lambda x: [f(x) for f in functions])


@every_function
def test_values_and_gradients(name):
    f = FUNCTIONS[name]
    gradient = jax.grad(functools.partial(total, f))
    # Differentiated from outside, where custom rules must have survived.
    outside = jax.grad(functools.partial(total, loop_safe(f)))
    value, expected = together(f, gradient)(X)
    same, inside, outside = together(loop_safe(f), loop_safe(gradient), outside)(X)
    close(same, value)
    close(inside, expected)
    close(outside, expected)


@pytest.mark.parametrize(
    "name", ["plain", "scan", "remat", "jit", "strided", "grouped"]
)
def test_vmap_and_second_derivative(name):
    gradient = jax.grad(functools.partial(total, FUNCTIONS[name]))
    many = jnp.stack([X, 2 * X, -X])

    @functools.partial(jax.jit, static_argnums=0)
    def found(g, many):
        curvature = jax.grad(lambda x: jnp.sum(g(x) ** 2))
        return jax.vmap(g)(many), curvature(many[0])

    (mapped, bent), (expected, curvature) = (
        found(g, many) for g in (loop_safe(gradient), gradient)
    )
    close(mapped, expected)
    np.testing.assert_allclose(bent, curvature, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(
    ("shape", "strides", "dilation", "padding"),
    [
        ((2, 1), (1, 1), (2, 3), ((3, 1), (2, 2))),
        ((6, 6), (1, 1), (1, 1), ((-1, 2), (0, -1))),
        ((6, 5), (2, 3), (1, 1), ((-1, 1), (2, -2))),
        ((2, 2), (2, 2), (1, 1), ((1, 1), (1, 1))),
    ],
)
def test_padding_where_plain_jit_is_no_reference(shape, strides, dilation, padding):
    """XLA on CPU reads beyond the image if padding is negative (jax 0.10.2)."""
    x = X[:, : shape[0], : shape[1]]
    options = {"strides": strides, "lhs_dilation": dilation, "padding": padding}

    def by_hand(x):
        sides = [(*p, d - 1) for p, d in zip(padding, dilation, strict=True)]
        x = jax.lax.pad(x, 0.0, ((0, 0, 0), *sides, (0, 0, 0)))
        ends = [x.shape[axis] - 2 for axis in (1, 2)]
        return sum(
            x[:, i : i + ends[0] : strides[0], j : j + ends[1] : strides[1]] @ W[i, j]
            for i in range(3)
            for j in range(3)
        )

    spelt = lambda x: conv(x, **options)
    gradient = lambda f: jax.grad(functools.partial(total, f))
    found = together(loop_safe(spelt), loop_safe(gradient(spelt)))(x)
    for one, other in zip(found, together(by_hand, gradient(by_hand))(x), strict=True):
        close(one, other)


def test_forward_mode_and_while():
    tangent = lambda f: jax.jit(lambda x: jax.jvp(f, (x,), (jnp.cos(x),)))(X)
    for f in (in_while, plain):
        for one, other in zip(tangent(loop_safe(f)), tangent(f), strict=True):
            close(one, other)


def test_closed_over_tracers_keywords_and_trees():
    def outer(x, w):
        inner = lambda z, *, scale: {"a": conv(z, w) * scale, "b": (z, w.sum())}
        out = loop_safe(inner)(x, scale=2.0)
        return jnp.sum(jnp.sin(out["a"])) + out["b"][1]

    def reference(x, w):
        return jnp.sum(jnp.sin(2.0 * conv(x, w))) + w.sum()

    for argument in (0, 1):
        grads = [jax.jit(jax.grad(f, argument))(X, W) for f in (outer, reference)]
        close(*grads)


def test_integer_and_static_looking_arguments():
    f = loop_safe(lambda x, n: jax.lax.fori_loop(0, n, lambda _, z: conv(z), x))
    close(f(X, 2), conv(conv(X)))


def test_precision_survives():
    f = lambda x: conv(
        x.astype(jnp.bfloat16), W.astype(jnp.bfloat16), preferred_element_type="float32"
    )
    assert loop_safe(f)(X).dtype == jnp.float32
    with jax.enable_x64(True):
        x, w = np.float64(X), np.float64(W)
        g = jax.grad(lambda z: jnp.sum(conv(z, w) ** 2))
        assert loop_safe(g)(x).dtype == jnp.float64
        np.testing.assert_allclose(loop_safe(g)(x), g(x), rtol=1e-12)


def test_other_backends_are_left_alone(monkeypatch):
    monkeypatch.setattr(jax, "default_backend", lambda: "tpu")
    monkeypatch.setattr(_gradients, "_evaluate", None)
    close(loop_safe(plain)(X), plain(X))


def test_input_gradient_is_per_example():
    y = jnp.array([0, 2])
    logits = lambda x: conv(x).mean((1, 2))

    def climbed(x):
        z = logits(x)
        return objectives.cross_entropy(z, y), z

    values, aux, grad = jax.jit(lambda x: input_gradient(climbed, x))(X)
    close(values, climbed(X)[0])
    close(aux, logits(X))
    for i in range(2):
        one = jax.grad(
            lambda x, i=i: objectives.cross_entropy(logits(x), y[i : i + 1]).sum()
        )
        close(grad[i : i + 1], one(X[i : i + 1]))


def mixed_logits(x):
    return jnp.sin(conv(jnp.tanh(conv(x)))).mean(2).reshape(x.shape[0], -1)[:, :5]


def test_input_jacobian_is_that_of_each_example():
    logits, jacobian = jax.jit(lambda x: input_jacobian(mixed_logits, x))(X)
    close(logits, mixed_logits(X))
    assert jacobian.shape == (2, 5, *X.shape[1:])
    for i in range(2):
        one = lambda image: mixed_logits(image[None])[0]
        close(jacobian[i], jax.jacrev(one)(X[i]), atol=1e-6)


def test_input_jacobian_of_chosen_classes_inside_a_loop():
    classes = jnp.array([[4, 0], [1, 1]])

    def body(x, _):
        _, jacobian = input_jacobian(mixed_logits, x, classes)
        return x - 0.1 * jacobian[:, 0], jacobian

    _, seen = jax.jit(lambda x: jax.lax.scan(body, x, length=2))(X)
    x = X
    for step in range(2):
        full = jax.vmap(jax.jacrev(lambda z: mixed_logits(z[None])[0]))(x)
        close(seen[step], full[jnp.arange(2)[:, None], classes], atol=1e-6)
        x = x - 0.1 * seen[step][:, 0]


def test_input_jacobian_keeps_double_precision_and_maps():
    with jax.enable_x64(True):
        x = np.float64(X)[:, 0, 0]
        matrix = np.arange(15.0).reshape(3, 5)
        _, jacobian = input_jacobian(lambda z: z @ matrix, jnp.asarray(x))
        assert jacobian.dtype == jnp.float64
        close(jacobian, np.broadcast_to(matrix.T, (2, 5, 3)), rtol=1e-12)
    many = jnp.stack([X, -X])
    mapped = jax.jit(jax.vmap(lambda x: input_jacobian(mixed_logits, x)[1]))(many)
    close(mapped[1], input_jacobian(mixed_logits, -X)[1], atol=1e-6)


@pytest.mark.parametrize("padding", ["SAME", "VALID", ((2, 0), (0, 1))])
@pytest.mark.parametrize("shape", [(3, 3, 1, 8), (3, 3, 3, 16), (2, 5, 1, 4)])
def test_a_small_stem_is_a_sum_of_shifts(shape, padding):
    x = jax.random.normal(jax.random.key(0), (2, 9, 8, shape[2]))
    kernel = jax.random.normal(jax.random.key(1), shape)

    def convolved(z):
        return jax.lax.conv_general_dilated(
            z, kernel, (1, 1), padding, dimension_numbers=("NHWC", "HWIO", "NHWC")
        )

    safe = loop_safe(convolved)
    assert "conv_general_dilated" not in str(jax.make_jaxpr(safe)(x))
    gradient = lambda f: jax.grad(functools.partial(total, f))
    (value, grad), (expected, slope) = (
        together(f, gradient(f))(x) for f in (safe, convolved)
    )
    np.testing.assert_allclose(value, expected, atol=1e-5)
    np.testing.assert_allclose(grad, slope, atol=1e-4)


@pytest.mark.parametrize(
    ("shape", "options"),
    [
        ((3, 3, 4, 8), {}),  # too much to multiply
        ((3, 3, 1, 64), {}),
        ((3, 3, 1, 8), {"window_strides": (2, 2)}),
        ((3, 3, 1, 8), {"rhs_dilation": (2, 2)}),
    ],
)
def test_other_convolutions_stay(shape, options):
    x = jax.random.normal(jax.random.key(0), (2, 9, 8, shape[2]))
    kernel = jax.random.normal(jax.random.key(1), shape)
    options = {"window_strides": (1, 1), "padding": "SAME", **options}

    def convolved(z):
        return jax.lax.conv_general_dilated(
            z, kernel, dimension_numbers=("NHWC", "HWIO", "NHWC"), **options
        )

    assert "conv_general_dilated" in str(jax.make_jaxpr(loop_safe(convolved))(x))
    np.testing.assert_allclose(loop_safe(convolved)(x), convolved(x), atol=1e-5)
