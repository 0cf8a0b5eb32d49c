"""Attacks towards or away from a class of the model's choice, and on drawn sources."""

from attack_cases import AttackCase
from robustjax import attacks


def _targeted(threat, choice):
    return attacks.pgd_targeted(
        threat, step_size=threat.eps / 2 + 1e-9, num_steps=2, choice=choice
    )


def _linear(x):
    """Another model with the shapes of the suite's."""
    return x.reshape(x.shape[0], -1)[:, :4] - x.reshape(x.shape[0], -1)[:, 4:8]


CASES = {
    "r-fgsm": AttackCase(attacks.r_fgsm),
    "step-ll": AttackCase(attacks.step_ll, iterated=False, breaks=False),
    "r-step-ll": AttackCase(
        lambda t: attacks.step_ll(t, random_step=t.eps / 2),
        iterated=False,
        breaks=False,
    ),
    "pgd-targeted-random": AttackCase(
        lambda t: _targeted(t, "random"), iterated=False, breaks=False
    ),
    "pgd-targeted-every": AttackCase(
        lambda t: _targeted(t, "every"), iterated=False, representative=True
    ),
    "unlabelled": AttackCase(
        lambda t: attacks.unlabelled(attacks.fgsm(t)), iterated=False, breaks=False
    ),
    "drift": AttackCase(
        lambda t: attacks.drift(t, step_size=t.eps / 2 + 1e-9, num_steps=2),
        iterated=False,
        breaks=False,
    ),
    "warm-start": AttackCase(
        lambda t: attacks.warm_start(
            attacks.sign_noise(t),
            lambda start: attacks.pgd(
                t, step_size=t.eps / 2 + 1e-9, num_steps=2, random_start=start
            ),
        ),
        iterated=False,
    ),
    "drawn-source": AttackCase(
        lambda t: attacks.drawn_source(
            attacks.unlabelled(attacks.fgsm(t)), [_linear], own=attacks.r_fgsm(t)
        ),
        iterated=False,
        breaks=False,
        least_classes=4,  # those of the source
    ),
}
