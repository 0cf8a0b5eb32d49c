"""Other libraries' attacks on a JAX classifier: right gradients, right layout."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

torch = pytest.importorskip("torch")
foolbox = pytest.importorskip("foolbox")
torchattacks = pytest.importorskip("torchattacks")

from robustjax import attacks, interoperation, models, threats  # noqa: E402

MODEL = models.from_linen(models.small_cnn(stages=((4,),), dense=8))
X = jax.random.uniform(jax.random.key(0), (6, 8, 8, 3), minval=0.2, maxval=0.8)
F = models.logits_fn(MODEL, *MODEL.init(jax.random.key(1), X))
Y = F(X).argmax(1)


def nchw(x):
    return torch.from_numpy(np.array(x)).permute(0, 3, 1, 2)


@pytest.mark.parametrize("fn", [F, lambda x: F(x)], ids=["pytree", "closure"])
def test_torch_module_has_the_gradient_of_jax(fn):
    images = nchw(X).requires_grad_()
    weights = jax.random.normal(jax.random.key(2), (6, 10))
    logits = interoperation.as_torch_module(fn)(images)
    (logits * torch.from_numpy(np.array(weights))).sum().backward()
    np.testing.assert_allclose(logits.detach(), F(X), atol=1e-5)
    expected = jax.grad(lambda x: (F(x) * weights).sum())(X)
    np.testing.assert_allclose(
        images.grad.permute(0, 2, 3, 1), expected, rtol=1e-4, atol=1e-5
    )


def test_a_gradient_of_a_gradient_raises():
    images = nchw(X).requires_grad_()
    weights = torch.ones(6, 10, requires_grad=True)
    logits = interoperation.as_torch_module(F)(images)
    (grad,) = torch.autograd.grad((logits * weights).sum(), images, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        grad.sum().backward()


def test_torchattacks_runs_on_it():
    attack = torchattacks.BIM(interoperation.as_torch_module(F), 0.1, 0.05, steps=3)
    theirs = attack(nchw(X), torch.from_numpy(np.array(Y)).long())
    ours = attacks.bim(threats.linf(0.1), step_size=0.05, num_steps=3)
    expected = ours(jax.random.key(3), F, X, Y)
    same = np.isclose(theirs.permute(0, 2, 3, 1), expected, atol=1e-5)
    assert same.mean() > 0.999  # signs of gradients near 0


def test_foolbox_runs_on_it():
    model = interoperation.as_foolbox(F)
    assert (model.bounds, model.data_format) == ((0, 1), "channels_last")
    attack = foolbox.attacks.L2FastGradientAttack()
    _, (theirs,), _ = attack(model, X, Y, epsilons=[0.5])
    ours = attacks.fgsm(threats.l2(0.5))(jax.random.key(3), F, X, Y)
    inside = jnp.all((ours > 0) & (ours < 1), axis=(1, 2, 3))
    assert inside.any()
    np.testing.assert_allclose(theirs[inside], ours[inside], atol=1e-5)
