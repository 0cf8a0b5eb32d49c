"""Suites for NIP and other test-time defenses: the paper's, and the adaptive."""

import math
from typing import Any

from robustjax._checks import InputError
from robustjax.config.blocks import Block
from robustjax.config.rows import Blocks, ball, best, pgd, whole_autoattack

_BARE: dict[str, Any] = dict(view=dict(transform=None))


def nip_paper(evaluation: Block) -> Blocks:
    """The attacks that the NIP scripts list; their budgets are not known.

    On a run with a transform they attack the model without it. The radius is that of
    `config.evaluation`. JSMA, DeepFool, single pixels, the boundary attack, the way to
    another image and the smallest PGD are held to no radius of it. Noises are controls.
    """
    threat, unlimited = evaluation["threat"], ball("l2", math.inf)
    wide = dict(name=threat["name"], eps=1.0)
    blocks = [
        dict(name="fgsm", threat=threat, label="FGSM"),
        dict(
            name="bim",
            threat=threat,
            step_size=evaluation["step_size"],
            num_steps=10,
            label="BIM",
        ),
        dict(name="mi_fgsm", threat=threat, label="MI-FGSM"),
        pgd(evaluation, num_steps=40, label="PGD-40"),
        dict(name="jsma", counts=False, label="JSMA"),
        dict(name="deepfool", threat=unlimited, radii=(0.5,), label="DeepFool"),
        dict(
            name="universal",
            threat=threat,
            num_steps=100,
            step_size=evaluation["step_size"],
            label="UAP of each batch",
        ),
        dict(name="single_pixel", counts=False, label="single pixel"),
        dict(
            name="boundary",
            threat=unlimited,
            num_steps=1000,
            radii=(0.5,),
            label="boundary",
        ),
        dict(
            name="pgd_minimal",
            threat=wide,
            radii=(threat["eps"],),
            label="smallest PGD, by bisection",
        ),
        dict(name="towards_other", counts=False, label="towards another image"),
        dict(name="uniform_noise", threat=threat, label="additive uniform noise"),
        dict(name="sign_noise", threat=threat, label="random signs"),
        dict(
            name="gaussian_noise",
            threat=unlimited,
            scale=2 * threat["eps"],
            counts=False,
            label="Gaussian noise of twice the radius",
        ),
    ]
    surrogate = evaluation.get("surrogate")
    if surrogate:
        blocks.append(
            pgd(evaluation, num_steps=40, label="PGD-40 on another model")
            | dict(source=surrogate)
        )
    if not evaluation.get("has_transform"):
        return blocks
    return [block if "source" in block else block | _BARE for block in blocks]


def nip_adaptive(evaluation: Block) -> Blocks:
    """The attacks of somebody who knows that there is a test-time defense.

    First those on the model without it, which stay in the pool: a defense that hides
    gradients looks better under attacks through it than under these. Then attacks
    through the defense: end to end, with the gradient of the moved image applied to the
    tested one (straight-through), with a softened choice, and on the choice itself,
    towards all wrong classes, at three weights.
    """
    defense = evaluation.get("defense")
    if not evaluation.get("has_transform"):
        raise InputError(
            "`suite` nip_adaptive judges a test-time defense: take --transform=nip, or "
            "the suite standard."
        )
    blocks: Blocks = [
        pgd(evaluation, num_steps=40, label="bare, PGD-40") | _BARE,
        best(evaluation, "bare, cross-entropy", num_steps=40, **_BARE),
        best(evaluation, "bare, margin", num_steps=40, objective="margin", **_BARE),
        dict(name="apgd_targeted", threat=evaluation["threat"], label="bare, APGD-T")
        | _BARE,
        whole_autoattack(evaluation) | dict(label="bare, AutoAttack") | _BARE,
        *_through(evaluation, "end to end", {}),
    ]
    if defense == "nip":
        straight = dict(clip_gradient="straight_through")
        soft = straight | dict(choice_gradient="soft")
        blocks += _through(evaluation, "straight-through", straight)
        blocks += _through(evaluation, "soft choice", soft)
        if evaluation.get("chooses"):
            blocks += _selector_rows(evaluation)
    if defense == "nearest_neighbor":
        blocks += _through(evaluation, "soft neighbors", dict(softness=1.0))
    square = dict(name="square", threat=evaluation["threat"], num_queries=1000)
    return [*blocks, square | dict(label="Square, 1,000 queries")]


def _through(evaluation: Block, label: str, changes: Block) -> Blocks:
    view = dict(transform=dict(changes))
    options: dict[str, Any] = dict(count=2, num_steps=25, view=view)
    margin: dict[str, Any] = dict(objective="margin", **options)
    return [
        best(evaluation, f"{label}, cross-entropy", **options),
        best(evaluation, f"{label}, margin", **margin),
    ]


def _selector_rows(evaluation: Block) -> Blocks:
    """Attacks on the choice among candidates."""
    blocks: Blocks = []
    for gradient in ("exact", "straight_through"):
        for weight in (1.0, 3.0, 10.0):
            attack = dict(
                name="selector",
                threat=evaluation["threat"],
                step_size=evaluation["step_size"],
                num_steps=60,
                weight=weight,
                at_once=1,
            )
            view = dict(transform=dict(answer="candidates", clip_gradient=gradient))
            if evaluation["chooses"] == "dictionary":
                view["transform"]["choice_gradient"] = "soft"
            name = "exact" if gradient == "exact" else "straight-through"
            label = f"choice, {name}, weight {weight:g}"
            blocks.append(attack | dict(view=view, label=label))
    return blocks
