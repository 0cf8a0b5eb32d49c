"""The table: each attack of ours, the same of other libraries, and what is compared.

An accuracy is met if ours leaves at most one image more than the best peer, a median
norm if it is at most 1.02 times the best peer's. A peer that is known to be another
algorithm is shown but not compared with (`others`, with the reason in `note`).

Random starts of PGD move the count by a few images of 256 in either direction, so it
starts at x here. Cheap attacks run on all 256 images at the papers' budgets, expensive
ones on fewer images or with fewer queries; the peers always with the same as ours.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from peers import INF, adv_lib, art, foolbox, torchattacks

from robustjax import attacks, objectives, threats
from robustjax.threats import l1, l2, linf

IMAGES = 256
LINF, L2, L1 = 0.15, 1.5, 12.0
EVERYWHERE = jnp.inf


class Measure(NamedTuple):
    """What counts: images left within `eps`, or the median norm if `eps` is None."""

    norm: Callable[[Any], Any]
    eps: float | None = None


class Row(NamedTuple):
    """One line; `peers` decide, `others` are shown.

    Where chance moves a single run by a few images, the mean over several `starts`
    counts, for ours and the peers alike.
    """

    name: str
    ours: Callable[[], Any]
    measure: Measure
    peers: Mapping[str, Callable]
    others: Mapping[str, Callable] = {}
    images: int = IMAGES
    starts: int = 1
    note: str = ""


def attack(factory, *args, **keywords):
    """Ours, built when its row runs."""
    return lambda: getattr(attacks, factory)(*args, **keywords)


def pixels(delta):
    """How many pixels differ, [B]."""
    changed = np.abs(np.asarray(delta)).max(axis=-1) > 1e-6
    return changed.reshape(len(changed), -1).sum(1)


def anywhere(delta):
    """0: an attack without a norm."""
    return np.zeros(len(delta))


AT_LINF = Measure(threats.linf(LINF).norm, LINF)
AT_L2 = Measure(threats.l2(L2).norm, L2)
NORM_LINF = Measure(threats.linf(1.0).norm)
NORM_L2 = Measure(threats.l2(1.0).norm)
NORM_L1 = Measure(threats.l1(1.0).norm)

STEP = dict(alpha=0.03, eps=LINF)
GRADIENT = [
    Row(
        "FGSM",
        attack("fgsm", linf(LINF)),
        AT_LINF,
        {
            "torchattacks": torchattacks("FGSM", eps=LINF),
            "Foolbox": foolbox("LinfFastGradientAttack", LINF),
            "ART": art("FastGradientMethod", eps=LINF, batch_size=256),
        },
    ),
    Row(
        "BIM, 20 steps",
        attack("bim", linf(LINF), step_size=0.03, num_steps=20),
        AT_LINF,
        {
            "torchattacks": torchattacks("BIM", steps=20, **STEP),
            "Foolbox": foolbox(
                "LinfBasicIterativeAttack", LINF, abs_stepsize=0.03, steps=20
            ),
        },
    ),
    Row(
        "PGD L-inf, 40 steps from x",
        attack(
            "pgd",
            linf(LINF),
            step_size=0.03,
            num_steps=40,
            random_start=None,
        ),
        AT_LINF,
        {
            "torchattacks": torchattacks("PGD", steps=40, random_start=False, **STEP),
            "Foolbox": foolbox(
                "LinfProjectedGradientDescentAttack",
                LINF,
                abs_stepsize=0.03,
                steps=40,
                random_start=False,
            ),
            "ART": art(
                "ProjectedGradientDescentPyTorch",
                **dict(eps=LINF, eps_step=0.03, max_iter=40, num_random_init=0),
                **dict(batch_size=256, verbose=False),
            ),
            "adv-lib": adv_lib(
                "pgd_linf", ε=LINF, absolute_step_size=0.03, steps=40, random_init=False
            ),
        },
    ),
    Row(
        "PGD L2, 40 steps from x",
        attack("pgd", l2(L2), step_size=0.2, num_steps=40, random_start=None),
        AT_L2,
        {
            "torchattacks": torchattacks(
                "PGDL2", eps=L2, alpha=0.2, steps=40, random_start=False
            ),
            "Foolbox": foolbox(
                "L2ProjectedGradientDescentAttack",
                L2,
                abs_stepsize=0.2,
                steps=40,
                random_start=False,
            ),
            "ART": art(
                "ProjectedGradientDescentPyTorch",
                **dict(norm=2, eps=L2, eps_step=0.2, max_iter=40, num_random_init=0),
                **dict(batch_size=256, verbose=False),
            ),
        },
    ),
]

MOMENTUM = [
    Row(
        "MI-FGSM, 10 steps",
        attack("mi_fgsm", linf(LINF), step_size=0.03),
        AT_LINF,
        {"torchattacks": torchattacks("MIFGSM", **STEP)},
        {
            "Foolbox": foolbox(
                "LinfMomentumIterativeFastGradientMethod",
                LINF,
                abs_stepsize=0.03,
                steps=10,
            )
        },
        note="Foolbox accumulates signs",
    ),
    Row(
        "NI-FGSM, 10 steps",
        attack("ni_fgsm", linf(LINF), step_size=0.03),
        AT_LINF,
        {"torchattacks": torchattacks("NIFGSM", **STEP)},
    ),
    Row(
        "SI-NI-FGSM, 10 steps, 5 scales",
        attack("si_ni_fgsm", linf(LINF), step_size=0.03),
        AT_LINF,
        {"torchattacks": torchattacks("SINIFGSM", **STEP)},
    ),
    Row(
        "VMI-FGSM, 10 steps, 5 neighbours",
        attack("vmi_fgsm", linf(LINF), step_size=0.03, num_neighbors=5),
        AT_LINF,
        {"torchattacks": torchattacks("VMIFGSM", **STEP)},
    ),
    Row(
        "DI-FGSM, 10 steps",
        attack("di_fgsm", linf(LINF), step_size=0.03),
        AT_LINF,
        {"torchattacks": torchattacks("DIFGSM", decay=1.0, **STEP)},
        note="torchattacks' TI-FGSM has three channels in its kernel: no row",
    ),
]

APGD = dict(norm="Linf", eps=LINF, steps=100)
AUTO = [
    Row(
        "APGD-CE L-inf",
        attack("apgd", linf(LINF)),
        AT_LINF,
        {
            "torchattacks": torchattacks("APGD", loss="ce", **APGD),
            "adv-lib": adv_lib("apgd", eps=LINF, norm=INF, loss_function="ce"),
        },
        {
            "ART": art(
                "AutoProjectedGradientDescent",
                **dict(eps=LINF, eps_step=2 * LINF, nb_random_init=1, batch_size=256),
                **dict(loss_type="cross_entropy", verbose=False),
            )
        },
        images=128,
        starts=12,
        note="ART decides its step sizes for the whole batch",
    ),
    Row(
        "APGD-DLR L-inf",
        attack("apgd", linf(LINF), objective=objectives.dlr),
        AT_LINF,
        {
            "torchattacks": torchattacks("APGD", loss="dlr", **APGD),
            "adv-lib": adv_lib("apgd", eps=LINF, norm=INF),
        },
        images=128,
        starts=12,
    ),
    Row(
        "APGD-T L-inf, 9 targets",
        attack("apgd_targeted", linf(LINF)),
        AT_LINF,
        {
            "torchattacks": torchattacks("APGDT", **APGD),
            "adv-lib": adv_lib("apgd_targeted", eps=LINF, norm=INF, num_targets=9),
        },
        images=128,
    ),
    Row(
        "APGD-CE L2",
        attack("apgd", l2(L2)),
        AT_L2,
        {
            "torchattacks": torchattacks(
                "APGD", norm="L2", eps=L2, steps=100, loss="ce"
            ),
            "adv-lib": adv_lib("apgd", eps=L2, norm=2, loss_function="ce"),
        },
        images=128,
        starts=12,
    ),
    Row(
        "APGD-CE L1 12, radii 3, 2 and 1",
        attack("apgd", l1(L1), large_eps_phases=True),
        Measure(threats.l1(L1).norm, L1),
        {
            "adv-lib": adv_lib(
                *("apgd",),
                **dict(eps=L1, norm=1, loss_function="ce", use_large_reps=True),
            )
        },
        images=128,
        starts=6,
    ),
    Row(
        "FAB L-inf, 50 steps",
        attack("fab", linf(1.0), num_steps=50),
        NORM_LINF,
        {
            "torchattacks": torchattacks("FAB", norm="Linf", eps=1.0, steps=50),
            "adv-lib": adv_lib("fab", norm=INF, n_iter=50),
        },
        images=128,
    ),
    Row(
        "FAB-T L-inf, 9 targets",
        attack("fab_targeted", linf(LINF), num_steps=50),
        AT_LINF,
        {
            "torchattacks": torchattacks(
                "FAB", norm="Linf", eps=LINF, steps=50, multi_targeted=True
            ),
            "adv-lib": adv_lib(
                "fab", norm=INF, n_iter=50, restarts=9, targeted_restarts=True
            ),
        },
        images=128,
    ),
    Row(
        "FAB L2, 50 steps",
        attack("fab", l2(EVERYWHERE), num_steps=50),
        NORM_L2,
        {
            "torchattacks": torchattacks("FAB", norm="L2", eps=100.0, steps=50),
            "adv-lib": adv_lib("fab", norm=2, n_iter=50),
        },
        images=128,
    ),
    Row(
        "FAB L1, 50 steps",
        attack("fab", l1(EVERYWHERE), num_steps=50),
        NORM_L1,
        {"adv-lib": adv_lib("fab", norm=1, n_iter=50)},
        images=128,
    ),
    Row(
        "Square L-inf, 1000 queries",
        attack("square", linf(LINF), num_queries=1000),
        AT_LINF,
        {
            "torchattacks": torchattacks(
                "Square", eps=LINF, n_queries=1000, resc_schedule=False
            ),
        },
        starts=3,
    ),
    Row(
        "Square L-inf, 500 queries, schedule rescaled",
        attack("square", linf(LINF), num_queries=500, rescale_schedule=True),
        AT_LINF,
        {
            "torchattacks": torchattacks(
                "Square", eps=LINF, n_queries=500, resc_schedule=True
            ),
            "ART": art(
                "SquareAttack", eps=LINF, max_iter=500, batch_size=256, verbose=False
            ),
        },
        images=64,
        starts=16,
    ),
    Row(
        "Square L2, 1000 queries",
        attack("square", l2(L2), num_queries=1000),
        AT_L2,
        {
            "torchattacks": torchattacks(
                "Square", norm="L2", eps=L2, n_queries=1000, resc_schedule=False
            ),
        },
        {
            "ART": art(
                *("SquareAttack",),
                **dict(norm=2, eps=L2, max_iter=1000, batch_size=256, verbose=False),
            )
        },
    ),
    Row(
        "AutoAttack L-inf",
        attack("autoattack", linf(LINF)),
        AT_LINF,
        {"torchattacks": torchattacks("AutoAttack", eps=LINF, norm="Linf")},
        images=64,
        note="torchattacks rescales the schedule of Square",
    ),
]

MINIMUM = [
    Row(
        "CW L2, 6 x 200 steps",
        attack(
            "carlini_wagner",
            l2(EVERYWHERE),
            **dict(num_steps=200, search_steps=6, initial_constant=0.1),
        ),
        NORM_L2,
        {
            "Foolbox": foolbox(
                "L2CarliniWagnerAttack",
                **dict(steps=200, binary_search_steps=6, initial_const=0.1),
            ),
            "adv-lib": adv_lib(
                "carlini_wagner_l2",
                **dict(max_iterations=200, binary_search_steps=6, initial_const=0.1),
            ),
        },
        images=128,
    ),
    Row(
        "CW L2, 1 x 200 steps at c = 20",
        attack(
            "carlini_wagner",
            l2(EVERYWHERE),
            **dict(num_steps=200, search_steps=1, initial_constant=20.0),
        ),
        NORM_L2,
        {"torchattacks": torchattacks("CW", c=20, steps=200)},
    ),
    Row(
        "CW L-inf",
        attack("carlini_wagner_linf", linf(1.0), num_steps=100),
        NORM_LINF,
        {"adv-lib": adv_lib("carlini_wagner_linf", max_iterations=100)},
        images=32,
    ),
    Row(
        "DeepFool L2",
        attack("deepfool", l2(EVERYWHERE)),
        NORM_L2,
        {
            "Foolbox": foolbox("L2DeepFoolAttack"),
            "torchattacks": torchattacks("DeepFool"),
            "adv-lib": adv_lib("df", steps=50),
        },
        {
            "ART": art(
                "DeepFool", max_iter=50, epsilon=0.02, batch_size=64, verbose=False
            )
        },
        images=128,
        note="ART updates by sums over the batch",
    ),
    Row(
        "DeepFool L-inf",
        attack("deepfool", linf(1.0)),
        NORM_LINF,
        {
            "Foolbox": foolbox("LinfDeepFoolAttack"),
            "adv-lib": adv_lib("df", steps=50, norm=INF),
        },
        images=128,
    ),
    Row(
        "DDN, 100 steps",
        attack("ddn", l2(EVERYWHERE)),
        NORM_L2,
        {"Foolbox": foolbox("DDNAttack"), "adv-lib": adv_lib("ddn")},
    ),
    Row(
        "FMN L-inf, 200 steps",
        attack("fmn", linf(1.0), num_steps=200),
        NORM_LINF,
        {
            "Foolbox": foolbox("LInfFMNAttack", steps=200),
            "adv-lib": adv_lib("fmn", norm=INF, steps=200),
        },
    ),
    Row(
        "FMN L2, 200 steps",
        attack("fmn", l2(EVERYWHERE), num_steps=200),
        NORM_L2,
        {
            "Foolbox": foolbox("L2FMNAttack", steps=200),
            "adv-lib": adv_lib("fmn", norm=2, steps=200),
        },
    ),
    Row(
        "FMN L1, 200 steps",
        attack("fmn", l1(EVERYWHERE), num_steps=200),
        NORM_L1,
        {
            "Foolbox": foolbox("L1FMNAttack", steps=200),
            "adv-lib": adv_lib("fmn", norm=1, steps=200),
        },
    ),
    Row(
        "EAD, L1 rule, 5 x 200 steps",
        attack(
            "ead",
            l1(EVERYWHERE),
            **dict(num_steps=200, search_steps=5, initial_constant=0.1),
            **dict(decision=threats.l1(0.0).norm, shrink_only=True),
        ),
        NORM_L1,
        {
            "Foolbox": foolbox(
                *("EADAttack", None),
                **dict(steps=200, binary_search_steps=5, initial_const=0.1),
                decision_rule="L1",
            ),
            "torchattacks": torchattacks(
                *("EADL1",),
                **dict(max_iterations=200, binary_search_steps=5, beta=0.01),
                initial_const=0.1,
            ),
            "ART": art(
                *("ElasticNet",),
                **dict(max_iter=200, binary_search_steps=5, initial_const=0.1),
                **dict(beta=0.01, decision_rule="L1", batch_size=64, verbose=False),
            ),
        },
        images=16,
    ),
]

SCORES = [
    Row(
        "SPSA, 10 steps of 128 samples",
        attack("spsa", linf(LINF), num_steps=10),
        AT_LINF,
        {"torchattacks": torchattacks("SPSA", eps=LINF, nb_iter=10)},
        images=64,
    ),
    Row(
        "Boundary, 1150 queries",
        attack("boundary", l2(EVERYWHERE), num_steps=940),
        NORM_L2,
        {
            "Foolbox": foolbox("BoundaryAttack", steps=1000),
            "ART": art(
                "BoundaryAttack",
                **dict(targeted=False, max_iter=290, num_trial=20, sample_size=1),
                **dict(verbose=False, batch_size=32),
            ),
        },
        images=32,
        note="queries per image: ours 1,140, Foolbox 1,157, ART about 1,120",
    ),
    Row(
        "HopSkipJump L2, 10 steps",
        attack("hop_skip_jump", l2(EVERYWHERE), num_steps=10),
        NORM_L2,
        {
            "Foolbox": foolbox("HopSkipJumpAttack", steps=10),
            "ART": art(
                "HopSkipJump", max_iter=10, batch_size=32, verbose=False, norm=2
            ),
        },
        images=32,
    ),
    Row(
        "HopSkipJump L-inf, 10 steps",
        attack("hop_skip_jump", linf(1.0), num_steps=10),
        NORM_LINF,
        {
            "Foolbox": foolbox("HopSkipJumpAttack", steps=10, constraint="linf"),
            "ART": art(
                "HopSkipJump", max_iter=10, batch_size=32, verbose=False, norm=np.inf
            ),
        },
        images=32,
        starts=3,
    ),
    Row(
        "Pixel, 5 pixels, 20 x 50",
        attack("pixel", num_pixels=5, num_steps=20, population=50),
        Measure(pixels, 5),
        {
            "torchattacks": torchattacks("OnePixel", pixels=5, steps=20, popsize=50),
        },
        images=16,
        note="ART has no budget of pixels but a threshold: no row",
    ),
]

OTHER = [
    Row(
        "JSMA, 10% of the pixels",
        attack("jsma", gamma=0.1),
        Measure(pixels, 0.1 * 784),
        {
            "torchattacks": torchattacks("JSMA", gamma=0.1),
            "ART": art(
                *("SaliencyMapMethod",),
                **dict(theta=1.0, gamma=0.1, batch_size=16, verbose=False),
            ),
        },
        images=16,
        note="the peers choose the target at random or y + 1, ours the second class",
    ),
    Row(
        "Rotation and translation, 5 x 5 x 5",
        attack(
            "rotation_translation",
            **dict(num_angles=5, num_shifts=5, max_degrees=30.0, max_shift=3.0),
        ),
        Measure(anywhere, 1.0),
        {"Foolbox": foolbox("SpatialAttack", None)},
    ),
]

ROWS = [*GRADIENT, *MOMENTUM, *AUTO, *MINIMUM, *SCORES, *OTHER]
