"""Attacks that see the predicted class alone."""

from attack_cases import AttackCase
from robustjax.attacks.boundary import boundary
from robustjax.attacks.hop_skip_jump import hop_skip_jump

CASES = {
    "boundary": AttackCase(
        lambda t: boundary(t, num_steps=4, check_every=2, num_start_draws=10),
        threats=("l2",),
    ),
    "hop-skip-jump": AttackCase(
        lambda t: hop_skip_jump(
            t, num_steps=2, initial_samples=6, num_start_draws=10, chunk_size=4
        ),
        threats=("linf", "l2"),
        representative=True,
    ),
}
