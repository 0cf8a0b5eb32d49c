"""The lists whose product the shared tests run over: add a name, get all guarantees."""

import importlib
import pkgutil

import attack_cases
import flax.linen as nn
import jax
import jax.numpy as jnp

from robustjax import attacks, defenses, models, objectives, threats
from robustjax.models.layers import Mark
from robustjax.types import Batch

# Name -> (radius -> threat, a radius that binds on the images below).
THREATS = {
    "linf": (threats.linf, 0.1),
    "l2": (threats.l2, 0.5),
    "l1": (lambda eps, **kw: threats.l1(eps, sparsity=0.3, **kw), 1.0),
}

# Name -> case; every file of `attack_cases` is a family.
_FAMILIES = (
    importlib.import_module(f"attack_cases.{module.name}")
    for module in pkgutil.iter_modules(attack_cases.__path__)
)
ATTACKS = {name: case for family in _FAMILIES for name, case in family.CASES.items()}


def _short_pgd(**kwargs):
    return attacks.pgd(threats.linf(0.1), step_size=0.05, num_steps=2, **kwargs)


def _kl_pgd():
    # Not the papers' 0.001: so near x the gradient of the KL is rounding noise, whose
    # signs no two compilations agree on.
    start = threats.gaussian_start(0.05)
    return _short_pgd(objective=objectives.kl, random_start=start)


# Name -> model -> loss.
DEFENSES = {
    "standard": defenses.standard,
    "adversarial": lambda m: defenses.adversarial(m, _short_pgd()),
    "adversarial-mixed": lambda m: defenses.adversarial(
        m, _short_pgd(), clean_weight=0.5, label_smoothing=0.1
    ),
    "trades": lambda m: defenses.trades(m, _kl_pgd()),
    "trades-both": lambda m: defenses.trades(m, _kl_pgd(), statistics="both"),
    "mart": lambda m: defenses.mart(m, _short_pgd()),
    "mart-both": lambda m: defenses.mart(m, _short_pgd(), statistics="both"),
    "at_alp": lambda m: defenses.at_alp(m, _short_pgd(), layers=("stage1",)),
    "at_alp-both": lambda m: defenses.at_alp(
        m, _short_pgd(), layers=("stage1",), joint_batch=False, detach_clean=True
    ),
    "clean_logit_pairing": lambda m: defenses.clean_logit_pairing(m, noise=0.1),
    "logit_squeezing": lambda m: defenses.logit_squeezing(m, noise=0.1),
    "awp": lambda m: defenses.awp(defenses.adversarial(m, _short_pgd())),
    "awp-trades": lambda m: defenses.awp(defenses.trades(m, _kl_pgd()), gamma=0.005),
    "awp-standard": lambda m: defenses.awp(defenses.standard(m)),
}


class BatchNormNet(nn.Module):
    """The smallest network whose modes differ."""

    @nn.compact
    def __call__(self, x, *, train):
        x = nn.Conv(8, (3, 3), name="conv")(x)
        x = nn.BatchNorm(use_running_average=not train, momentum=0.9, name="norm")(x)
        x = Mark(name="stage1")(nn.relu(x))
        return nn.Dense(4, name="head")(x.mean((1, 2)))


def batch_norm_model():
    """(model, params, model_state) for images [B, 8, 8, 1]; running statistics moved
    off their start, so that the modes give different logits."""
    model = models.from_linen(BatchNormNet())
    x = jax.random.uniform(jax.random.key(11), (16, 8, 8, 1))
    params, state = model.init(jax.random.key(12), x)
    return model, params, model.apply(params, state, x, mode="train").model_state


def fake_batch(size=32, *, num_classes=4, side=8, channels=1):
    """Images that show their class, so that a loss can fall."""
    y = jnp.arange(size) % num_classes
    noise = jax.random.uniform(jax.random.key(13), (size, side, side, channels))
    shade = (y / num_classes).reshape(-1, 1, 1, 1)
    return Batch(0.5 * noise + 0.5 * shade, y.astype(jnp.int32))
