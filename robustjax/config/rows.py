"""Rows that several suites have: blocks of attacks."""

from typing import Any

from robustjax.config.blocks import Block

Blocks = list[dict[str, Any]]


def best(
    evaluation: Block,
    label: str,
    *,
    count: int = 5,
    num_steps: int = 100,
    **options: Any,
) -> dict[str, Any]:
    """The worst of several restarts of PGD that keep their best iterate."""
    apart = ("view", "judges", "counts", "information", "pairing", "source", "access")
    seen = {name: options.pop(name) for name in apart if name in options}
    attack = pgd(evaluation, num_steps=num_steps, iterate="best", **options)
    label = f"{label}, PGD-{num_steps} x {count}"
    return restarts(attack, count, at_once=1, label=label, **seen)


def whole_autoattack(evaluation: Block) -> dict[str, Any]:
    """AutoAttack, standard."""
    return dict(name="autoattack", threat=evaluation["threat"], label="AutoAttack")


def ball(name: str, eps: float) -> dict[str, Any]:
    """A threat's block."""
    return dict(name=name, eps=eps)


def pgd(evaluation: Block, **options: Any) -> dict[str, Any]:
    """PGD at the radius of `config.evaluation`."""
    return dict(
        name="pgd",
        threat=evaluation["threat"],
        step_size=evaluation["step_size"],
        **options,
    )


def restarts(attack: dict, num_restarts: int, **options: Any) -> dict[str, Any]:
    """The worst of several runs of an attack."""
    return dict(name="restarts", attack=attack, num_restarts=num_restarts, **options)
