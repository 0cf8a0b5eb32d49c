"""The suite `full`: everything that is counted against a classifier at its radius."""

from collections.abc import Callable, Mapping
from typing import Any

from robustjax.config.at_alp_suites import at_alp_adaptive
from robustjax.config.blocks import Block
from robustjax.config.namid_suites import namid_adaptive
from robustjax.config.nip_suites import nip_adaptive
from robustjax.config.rows import Blocks, ball, best, restarts
from robustjax.config.suites import standard, wnll_adaptive

_SEARCHES: Mapping[str, Mapping[str, Any]] = {
    "l2": dict(name="ddn", num_steps=100, label="DDN, smallest L2"),
    "linf": dict(name="fmn", num_steps=100, label="FMN, smallest L-inf"),
    "l1": dict(name="fmn", num_steps=100, label="FMN, smallest L1"),
}


def full(evaluation: Block) -> Blocks:
    """`standard`, other objectives and rules, queries, and what knows the defense.

    Margin, DLR and momentum with restarts, cross-entropy of scaled logits, 5,000
    queries of Square, the smallest perturbations (not counted), and the whole adaptive
    suite of each defense that the run has: a head or an input transform, a test-time
    defense, critics, paired layers.
    """
    threat, step = evaluation["threat"], evaluation["step_size"]
    momentum = dict(name="mi_fgsm", threat=threat, num_steps=100, step_size=step)
    momentum |= dict(random_start="uniform", iterate="best")
    blocks: Blocks = [
        *standard(evaluation),
        best(evaluation, "margin", objective="margin"),
        best(evaluation, "DLR", objective="dlr"),
        restarts(momentum, 5, at_once=1, label="momentum, 100 x 5"),
        *(
            best(
                evaluation,
                f"cross-entropy, logits x {scale:g}",
                count=1,
                objective=dict(name="cross_entropy", scale=scale),
            )
            for scale in (0.01, 100.0)
        ),
        dict(name="square", threat=threat, num_queries=5000, label="Square, 5,000"),
    ]
    search = _SEARCHES[threat["name"]]
    unlimited = ball(threat["name"], 1.0 if threat["name"] == "linf" else float("inf"))
    radii = (threat["eps"] / 2, threat["eps"], 2 * threat["eps"])
    blocks.append(dict(search, threat=unlimited, radii=radii))
    for adaptive in _knows(evaluation):
        blocks += [row for row in adaptive(evaluation) if row not in blocks]
    return blocks


def _knows(evaluation: Block) -> list[Callable[[Block], Blocks]]:
    """The suites of those who know what is there."""
    if evaluation.get("defense"):
        return [nip_adaptive]
    if evaluation.get("has_head") or evaluation.get("has_transform"):
        return [wnll_adaptive]
    if evaluation.get("critics"):
        return [namid_adaptive]
    return [at_alp_adaptive] if evaluation.get("paired_layers") else []
