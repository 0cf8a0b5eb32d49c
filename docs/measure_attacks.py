"""What attacks cost: passes counted while they run, arrays counted in their programs.

The classifier is a few means of pixels, so that its own work is nothing, and its
forward and backward passes call a counter on the host. One image of CIFAR's size, 10
classes, compiled as users compile it.
"""

import collections
import inspect
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.extend import core
from jax.tree_util import Partial

from robustjax import attacks, threats
from robustjax._checks import InputError
from robustjax.attacks import StagedAttack

IMAGE, CLASSES = (32, 32, 3), 10
NORMS = {"L-inf": threats.linf, "L2": threats.l2, "L1": threats.l1}
RADII = {"L-inf": 8 / 255, "L2": 0.5, "L1": 12.0}

_PASSES: collections.Counter[str] = collections.Counter()


def _counted(means_to_logits: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """A classifier of `CLASSES` means of pixels that counts its passes."""

    def plain(x):
        pixels = x.reshape(len(x), -1)
        pixels = pixels[:, : pixels.shape[1] // CLASSES * CLASSES]
        return means_to_logits(pixels.reshape(len(x), CLASSES, -1).mean(axis=2))

    def count(name, x):
        size = len(x)  # the callback runs once more for each row of a `vmap`
        jax.debug.callback(lambda _: _PASSES.update({name: size}), x.ravel()[0])

    @jax.custom_vjp
    def classifier(x):
        count("forward", x)
        return plain(x)

    def backward(x, cotangent):
        count("backward", cotangent)
        return jax.vjp(plain, x)[1](cotangent)

    classifier.defvjp(lambda x: (classifier(x), x), backward)
    return classifier


# Nothing breaks it, and it has gradients: attacks that stop early do not.
WITHSTANDS = _counted(lambda means: means + 5 * jnp.eye(1, CLASSES, dtype=means.dtype))
# Half of all noise is on the other side of a plane, which decisions need to start from.
GIVES_WAY = _counted(
    lambda means: (
        jnp.pad(20 * (means.mean(axis=1, keepdims=True) - 0.5), ((0, 0), (1, 8)))
        - 5 * (jnp.arange(CLASSES) > 1)[None]
    )
)


def _packed(x):
    logits = WITHSTANDS(x)
    lifted = logits[:, None] + jnp.eye(CLASSES)[None]
    return attacks.pack_candidates(attacks.Candidates(logits, lifted))


CHOOSES = Partial(_packed)


def _collision() -> dict[str, Any]:
    guides = jax.random.uniform(jax.random.key(2), (CLASSES, *IMAGE))
    return dict(
        features_fn=WITHSTANDS,
        images=guides,
        labels=jnp.arange(CLASSES),
        step_size=0.01,
    )


def _noisy(keys, x):
    noise = jax.vmap(lambda key: jax.random.normal(key, x.shape[1:]))(keys)
    return WITHSTANDS(x + 1e-6 * noise)


# What has no default, or changes no count.
ARGUMENTS: dict[str, Callable[[], dict[str, Any]]] = {
    "projected_gradient": lambda: dict(rule=optax.sgd(-0.01), num_steps=10),
    "pgd": lambda: dict(step_size=0.01, num_steps=10),
    "pgd_targeted": lambda: dict(step_size=0.01, num_steps=10),
    "drift": lambda: dict(step_size=0.01, num_steps=10),
    "bim": lambda: dict(step_size=0.01, num_steps=10),
    "universal": lambda: dict(step_size=0.01, num_steps=10),
    "apgd_target": lambda: dict(rank=2),
    "fab_target": lambda: dict(rank=2),
    "estimated_gradient": lambda: dict(
        rule=optax.sgd(-0.01),
        sampler=jax.random.rademacher,
        num_steps=10,
        num_samples=16,
        delta=0.01,
    ),
    "autoattack_rand": lambda: dict(
        attacked=attacks.expectation(Partial(_noisy), jax.random.key(3), 20)
    ),
    "apply_perturbation": lambda: dict(delta=jnp.full(IMAGE, 0.01)),
    "feature_collision": _collision,
    "selector": lambda: dict(step_size=0.01, num_steps=2, at_once=1),
    "towards_other": lambda: dict(
        images=jax.random.uniform(jax.random.key(2), (CLASSES, *IMAGE)),
        labels=jnp.arange(CLASSES),
    ),
    "gaussian_noise": lambda: dict(scale=0.1),
    "wasserstein_pgd": lambda: dict(eps=0.005),
    "carlini_wagner": lambda: dict(abort_early=False),
    "ead": lambda: dict(abort_early=False),
}
# Passes grow in proportion to this argument, but for a constant: counted at two values.
STEPS = {
    "carlini_wagner": ("num_steps", 10, 20),
    "carlini_wagner_linf": ("num_steps", 10, 20),
    "ead": ("num_steps", 10, 20),
    "feature_collision": ("num_steps", 2, 3),
    "square": ("num_queries", 20, 30),
    "spsa": ("num_steps", 2, 3),
    "nes": ("num_steps", 2, 3),
    "pixel": ("num_steps", 1, 2),
    "boundary": ("num_steps", 200, 300),
}
# Their counts depend on the image; measured where noise finds a start.
DECISIONS = ("boundary", "hop_skip_jump")


def norms(factory: Callable[..., Any], arguments: dict[str, Any]) -> list[str]:
    """The names of the norms that a factory accepts; none without a threat."""
    found = []
    for name, threat in NORMS.items():
        if "threat" in inspect.signature(factory).parameters:
            try:
                factory(threat(RADII[name]), **arguments)
            except InputError:
                continue
            found.append(name)
    return found


def measure(name: str) -> dict[str, Any]:
    """Norms, passes, memory and randomness of one attack of `robustjax.attacks`."""
    factory = getattr(attacks, name)
    arguments = ARGUMENTS.get(name, dict)()
    accepted = norms(factory, arguments)
    threat = [NORMS[norm](RADII[norm]) for norm in accepted[:1]]
    x = 0.9 * jax.random.uniform(jax.random.key(0), (1, *IMAGE))
    call = (jax.random.key(1), x, jnp.zeros(1, jnp.int32))

    def run(**more) -> dict[str, Any]:
        attack = factory(*threat, **{**arguments, **more})
        classifier = GIVES_WAY if name in DECISIONS else WITHSTANDS
        classifier = CHOOSES if name == "selector" else classifier
        if isinstance(attack, StagedAttack):
            return _staged(attack, classifier, *call)
        return _compiled(attack, classifier, *call)

    if name not in STEPS:
        return _result(name, accepted, run())
    argument, few, more = STEPS[name]
    at_few, at_more = run(**{argument: few}), run(**{argument: more})
    default = inspect.signature(factory).parameters[argument].default
    runs, passes = (default - few) // (more - few), {}
    for kind, count in at_few["passes"].items():
        passes[kind] = count + (at_more["passes"][kind] - count) * runs
    return _result(name, accepted, {**at_few, "passes": passes})


def _result(name: str, norms: list[str], costs: dict[str, Any]) -> dict[str, Any]:
    if name in DECISIONS:  # rounding errors move them by a few
        passes = {k: 2000 * round(n / 2000) for k, n in costs["passes"].items()}
        costs = {**costs, "passes": passes}
    return dict(norms=norms, **costs)


def _passes() -> dict[str, int]:
    jax.effects_barrier()
    return {kind: _PASSES[kind] for kind in ("forward", "backward")}


def _compiled(attack, classifier, key, x, y) -> dict[str, Any]:
    _PASSES.clear()
    traced = jax.jit(lambda key, x, y: attack(key, classifier, x, y)).trace(key, x, y)
    traced.lower().compile()(key, x, y).block_until_ready()
    held, largest, draws = _arrays(traced.jaxpr.jaxpr, x.nbytes)
    return dict(
        passes=_passes(), held=round(held, 1), largest=round(largest, 1), draws=draws
    )


def _staged(attack: StagedAttack, classifier, key, x, y) -> dict[str, Any]:
    """Of all stages together; memory is that of the most demanding."""
    before, stages = [], {}

    def log(line: str) -> None:
        now = _passes()
        stages[line.split(":")[0]] = [now[k] - before[-1][k] for k in now]
        before.append(now)

    _PASSES.clear()
    # The stages are asked for after the first look at the classifier.
    watched = dict(attack.__dict__)
    watched["stages"] = lambda k: (before.append(_passes()), attack.stages(k))[1]
    StagedAttack(**watched).run(key, Partial(classifier), x, y, log=log)
    total = _passes()
    climbed = attack.attacked or classifier

    def program(stage: attacks.Stage):
        one_round = stage.attack(jnp.uint32(0))
        traced = jax.make_jaxpr(lambda key, x, y: one_round(key, climbed, x, y))
        return _arrays(traced(key, x, y).jaxpr, x.nbytes)

    programs = list(map(program, attack.stages(CLASSES)))
    return dict(
        passes=total,
        held=round(max(p[0] for p in programs), 1),
        largest=round(max(p[1] for p in programs), 1),
        draws=any(p[2] for p in programs),
        stages=stages,
    )


def _arrays(jaxpr: core.Jaxpr, image: int) -> tuple[float, float, bool]:
    """What nested loops hold and the largest array, in images; whether it draws."""
    held, largest, draws = 0.0, 0.0, False
    for eqn in jaxpr.eqns:
        inner = [_arrays(part, image) for part in _programs(eqn.params)]
        own = 0
        if eqn.primitive.name == "scan":
            first = eqn.params["num_consts"]
            own = _size(eqn.invars[first : first + eqn.params["num_carry"]])
            own += _size(eqn.outvars[eqn.params["num_carry"] :])
        elif eqn.primitive.name == "while":
            own = _size(eqn.outvars)
        draws |= "random_bits" in eqn.primitive.name or any(i[2] for i in inner)
        held = max(held, own / image + max((i[0] for i in inner), default=0.0))
        outputs = max((_size([v]) for v in eqn.outvars), default=0) / image
        largest = max(largest, outputs, *(i[1] for i in inner))
    return held, largest, draws


def _programs(value: Any):
    """The jaxprs in an equation's parameters."""
    if isinstance(value, core.ClosedJaxpr):
        yield value.jaxpr
    elif isinstance(value, core.Jaxpr):
        yield value
    elif isinstance(value, (tuple, list)):
        for item in value:
            yield from _programs(item)
    elif isinstance(value, dict):
        for item in value.values():
            yield from _programs(item)


def _size(variables) -> int:
    return sum(v.aval.size * v.aval.dtype.itemsize for v in variables)
