"""Suites: which attacks judge a classifier, as blocks.

Each is a function of `config.evaluation` (threat, step_size, num_steps, num_restarts).
The suites named after papers run the attacks with which the paper was evaluated, at the
paper's own constants where they are known; they show what the paper would have shown
and are no substitute for `standard`.
"""

import math
from typing import Any

from robustjax._checks import InputError
from robustjax.config.blocks import Block
from robustjax.config.rows import (
    Blocks,
    ball,
    best,
    pgd,
    restarts,
    whole_autoattack,
)


def quick(evaluation: Block) -> Blocks:
    """PGD, and the worst of `num_restarts` restarts keeping the best iterate."""
    steps, count = evaluation["num_steps"], evaluation["num_restarts"]
    return [
        pgd(evaluation, num_steps=steps, label=f"PGD-{steps}"),
        restarts(
            pgd(evaluation, num_steps=steps, iterate="best"),
            count,
            label=f"PGD-{steps} x {count} restarts",
        ),
    ]


def standard(evaluation: Block) -> Blocks:
    """PGD-20, PGD-100 with 5 restarts, AutoAttack."""
    return [
        pgd(evaluation, num_steps=20, label="PGD-20"),
        restarts(
            pgd(evaluation, num_steps=100, iterate="best"),
            5,
            at_once=1,
            label="PGD-100 x 5 restarts",
        ),
        whole_autoattack(evaluation),
    ]


def autoattack(evaluation: Block) -> Blocks:
    """AutoAttack alone, as leader boards ask."""
    return [whole_autoattack(evaluation)]


def screen(evaluation: Block) -> Blocks:
    """APGD-CE and APGD-T on the survivors: a screening, not AutoAttack."""
    return [dict(name="screen", threat=evaluation["threat"])]


def wnll_paper(evaluation: Block) -> Blocks:
    """FGSM, iterated FGSM and CW-L2 as the WNLL papers' code runs them.

    On a run with a head, the attacks climb the scores U of templates and queries
    together, as if they were logits, with the derivative of the linear head in place of
    the interpolation's; what they did to the templates is thrown away. They look past
    an input transform. To judge a whole batch at once, as their code does, add
    `--set=head.queries=batch`; it also draws new templates for every batch. The
    constants are those of the later CIFAR-10 scripts unless `evaluation.wnll_paper` has
    others; the radius of FGSM and the scale of CW are options there, of which only the
    example 0.02 is known. CW is shrunk towards x by that scale, as released.
    """
    given: dict[str, Any] = evaluation.get("wnll_paper") or dict(
        fgsm=dict(eps=0.02),
        ifgsm=dict(eps=0.031, step_size=0.003, num_steps=100),
        cw=dict(constant=10.0, num_steps=50, step_size=6e-4),
        cw_scale=0.02,
    )
    seen: dict[str, Any] = {}
    if evaluation.get("has_head"):
        view = dict(gradient="straight_through")
        seen = dict(view=view, perturb_templates=True)
    elif evaluation.get("has_transform"):
        seen = dict(view=dict(transform=None))
    ifgsm, scale = dict(given["ifgsm"]), given["cw_scale"]
    eps, steps = ifgsm.pop("eps"), ifgsm["num_steps"]
    return [
        dict(
            name="fgsm",
            threat=ball("linf", given["fgsm"]["eps"]),
            label=f"FGSM {given['fgsm']['eps']:g}",
            **seen,
        ),
        dict(
            name="bim",
            threat=ball("linf", eps),
            **ifgsm,
            label=f"IFGSM-{steps}",
            **seen,
        ),
        dict(
            name="carlini_wagner_fixed",
            threat=ball("l2", math.inf),
            **given["cw"],
            scale=scale,
            counts=False,
            label=f"CW-L2 scaled by {scale:g}",
            **seen,
        ),
    ]


def wnll_adaptive(evaluation: Block) -> Blocks:
    """The attacks of somebody who knows that there is an interpolation, or a transform.

    All at the radius of `config.evaluation`. Exact gradients of three objectives,
    surrogates of the linear head and of a smooth graph, transfer from the linear head,
    several templates and masks at once, other queries beside, features, queries.
    """
    has_head, has_transform = (
        evaluation.get("has_head"),
        evaluation.get("has_transform"),
    )
    if evaluation.get("defense"):
        raise InputError(
            "`suite` wnll_adaptive judges a head or an input transform, not the "
            f"test-time defense {evaluation['defense']}: take the suite nip_adaptive."
        )
    if not has_head and not has_transform:
        raise InputError(
            "`suite` wnll_adaptive judges a head or a transform: take --head=wnll or "
            "--transform=total_variation, or the suite standard."
        )

    exact = dict(gradient="exact")
    blocks: Blocks = [
        best(evaluation, "exact, cross-entropy", view=exact),
        best(evaluation, "exact, margin of logits", view=exact, **_MARGIN),
        dict(
            name="apgd",
            threat=evaluation["threat"],
            label="exact, APGD-CE",
            view=exact,
        ),
        dict(
            name="apgd",
            threat=evaluation["threat"],
            objective="dlr",
            label="exact, APGD-DLR",
            view=exact,
        ),
    ]
    if has_head:
        blocks += _head_rows(evaluation)
    if has_transform:
        blocks += _transform_rows(evaluation)
    square = dict(name="square", threat=evaluation["threat"], num_queries=1000)
    return [*blocks, square | dict(label="Square, 1,000 queries")]


# Where a surrogate is multiplied by the objective's own derivative: that of the
# cross-entropy is exactly 0 where U is one-hot, which it often is.
_MARGIN: dict[str, Any] = dict(objective="margin")


def _head_rows(evaluation: Block) -> Blocks:
    """Attacks on an interpolating head."""
    linear = dict(name="linear")
    smooth = dict(similarity=dict(num_neighbors=None, bandwidth_rank=30))
    smooth |= dict(name="wnll", gradient="exact")
    draws = dict(num_sets=10, average="draws", seed=1, gradient="exact")
    others = [dict(seed=seed) for seed in range(2, 11)]
    batch = dict(queries="batch", gradient="exact")
    among = dict(companions=31, **batch)
    released = dict(name="wnll_released", gradient="exact")
    straight = dict(gradient="straight_through")
    return [
        best(evaluation, "exact, margin of U", view=released, **_MARGIN),
        best(evaluation, "smooth graph, margin", view=dict(gradient=smooth), **_MARGIN),
        best(evaluation, "straight-through, margin", view=straight, **_MARGIN),
        best(evaluation, "linear head, margin", view=linear, **_MARGIN),
        whole_autoattack(evaluation)
        | dict(view=linear, label="linear head, AutoAttack"),
        best(evaluation, "10 other templates, margin", count=1, view=draws, **_MARGIN),
        best(
            evaluation,
            "worst of 10 draws, margin",
            count=1,
            view=draws,
            judges=others,
            counts=False,
            **_MARGIN,
        ),
        *_beside(evaluation, "whole batch", ", margin", batch),
        *_beside(evaluation, "among 31 clean", "", among, num_steps=20),
        *(
            dict(
                name="feature_collision",
                threat=evaluation["threat"],
                guides=guides,
                step_size=evaluation["step_size"],
                num_steps=50,
                label=label,
            )
            for guides, label in (
                ("any", "feature collision"),
                ("runner_up", "feature collision, runner-up"),
            )
        ),
    ]


def _beside(
    evaluation: Block, label: str, about: str, view: Block, **options: Any
) -> Blocks:
    """Attacks with other queries beside, judged alone and (not counted) so too."""
    options = dict(count=1, view=view, **options, **_MARGIN)
    return [
        best(evaluation, label + about, **options),
        best(
            evaluation,
            f"{label}, judged so too",
            judges=[view],
            counts=False,
            **options,
        ),
    ]


def _transform_rows(evaluation: Block) -> Blocks:
    """Attacks on a random transform."""
    unrolled = dict(transform=dict(gradient="unrolled"))
    masks = dict(samples=10)
    return [
        best(evaluation, "past the transform", view=dict(transform=None), **_MARGIN),
        best(
            evaluation, "10 masks, margin", count=1, num_steps=40, view=masks, **_MARGIN
        ),
        best(
            evaluation,
            "unrolled, margin",
            count=1,
            num_steps=20,
            view=unrolled,
            **_MARGIN,
        ),
    ]
