"""Attacks made to transfer."""

from attack_cases import AttackCase
from robustjax.attacks import momentum
from robustjax.attacks.input_diversity import gaussian_kernel, resize_and_pad
from robustjax.attacks.transferable import transferable

CASES = {
    "transferable": AttackCase(
        lambda t: transferable(
            t,
            num_steps=2,
            nesterov=True,
            smoothing_kernel=gaussian_kernel(3, 1.0),
            diversity=resize_and_pad(0.6, 1.2),
            num_scales=2,
            num_neighbors=2,
            random_start=t.sample,
        ),
        breaks=False,  # the gradients are those of other images
        representative=True,
    ),
    "ni-fgsm": AttackCase(lambda t: momentum.ni_fgsm(t, num_steps=3)),
    "si-ni-fgsm": AttackCase(
        lambda t: momentum.si_ni_fgsm(t, num_steps=2, num_scales=2), breaks=False
    ),
    "vmi-fgsm": AttackCase(
        lambda t: momentum.vmi_fgsm(t, num_steps=2, num_neighbors=2), breaks=False
    ),
    "di-fgsm": AttackCase(lambda t: momentum.di_fgsm(t, num_steps=2), breaks=False),
    "ti-dim": AttackCase(
        lambda t: momentum.ti_dim(t, num_steps=2, kernel_size=3), breaks=False
    ),
}
