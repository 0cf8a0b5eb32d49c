"""The suites of NAMID: its paper's attacks, and those of somebody who knows it."""

import math

from robustjax.config.blocks import Block
from robustjax.config.rows import Blocks, ball, best, whole_autoattack


def namid_paper(evaluation: Block) -> Blocks:
    """The seven columns of NAMID's tables, as its released code runs them.

    CW and DDN search without any limit there, so that their accuracies are no
    accuracies at 0.5: they are judged at 0.5 here, and the success without limit stands
    beside it. The Wasserstein attack ("FWA") is held to no L-inf radius. The paper's
    text differs: steps of eps / 4, and 20 steps of CW. With `evaluation.surrogate`, the
    directory of another run, the black-box rows follow: the same, climbing that one.
    """
    linf, l2 = ball("linf", 8 / 255), ball("l2", 0.5)
    unlimited = ball("l2", math.inf)
    rows: Blocks = [
        dict(name="pgd", threat=linf, step_size=0.007, num_steps=40, label="PGD-40"),
        dict(name="pgd", threat=l2, step_size=0.025, num_steps=40, label="PGD-40 L2"),
        dict(name="aa_namid", threat=linf, label="AA as released (40 iterations)"),
        dict(
            name="wasserstein_pgd",
            eps=8 / 255,
            num_steps=40,
            step_size=0.007,
            kernel_size=4,
            search_steps=15,
            clip=False,
            counts=False,
            label="FWA-40 (no L-inf radius)",
        ),
        dict(
            name="ti_dim",
            threat=linf,
            num_steps=40,
            step_size=0.007,
            momentum=0.1,
            low=1.0,  # its resize range, 32 to 32 pixels, changes nothing
            high=1.0,
            label="TI-DIM",
        ),
        dict(
            name="carlini_wagner",
            threat=unlimited,
            num_steps=10,
            search_steps=4,
            initial_constant=1.0,
            confidence=1.0,
            step_size=0.01,
            radii=(0.5,),
            label="CW",
        ),
        dict(
            name="ddn",
            threat=unlimited,
            num_steps=20,
            levels=16,
            radii=(0.5,),
            label="DDN",
        ),
    ]
    surrogate = evaluation.get("surrogate")
    if surrogate is None:
        return rows
    other = [
        row | dict(source=surrogate, access="black", label=f"{row['label']}, black box")
        for row in rows
    ]
    return rows + other


def namid_adaptive(evaluation: Block) -> Blocks:
    """The attacks of somebody who knows the critics; AutoAttack is the headline.

    At the radius of `config.evaluation`. Gradients of three objectives with restarts,
    targets, cross-entropy at other scales of the logits, queries, transfer from the
    reference, and on runs with critics (NAMID's two, or WMIM's) the training loss:
    raised as a whole, and term by term in both directions, raised, and lowered towards
    images that look benign.
    """
    threat = evaluation["threat"]
    blocks: Blocks = [
        whole_autoattack(evaluation),
        best(evaluation, "cross-entropy", count=10),
        best(evaluation, "margin", count=10, objective="margin"),
        best(evaluation, "DLR", count=10, objective="dlr"),
        dict(name="apgd_targeted", threat=threat, label="APGD-T"),
        *(
            best(
                evaluation,
                f"cross-entropy, logits x {scale:g}",
                count=1,
                objective=dict(name="cross_entropy", scale=scale),
            )
            for scale in (0.01, 0.1, 10.0, 100.0)
        ),
        dict(name="square", threat=threat, num_queries=5000, label="Square, 5,000"),
    ]
    critics = evaluation.get("critics", ())
    if evaluation.get("has_reference"):
        blocks.append(
            best(evaluation, "from the reference", count=1, source=":reference")
        )
    if not ({"natural", "adversarial"} <= set(critics) or "standard" in critics):
        return blocks
    for objective in ("cross_entropy", "margin"):
        label = f"training loss, {objective.replace('_', '-')}"
        blocks.append(best(evaluation, label, objective=objective, information=dict()))
    terms = [("WMIM's term", "weight", {})]
    if "standard" not in critics:
        off = dict(amount=0.0, cosine=0.0)
        terms = [(name, name, off) for name in off]
    for sign, words in ((1, "raised"), (-1, "lowered")):
        for label, name, others in terms:
            blocks += [
                best(
                    evaluation,
                    f"{label} {words}, c {weight:g}",
                    count=1,
                    information={**others, "sign": sign, name: weight},
                )
                for weight in (0.1, 1.0, 5.0, 10.0)
            ]
    return blocks
