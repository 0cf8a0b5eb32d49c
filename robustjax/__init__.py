"""Train, attack and honestly judge adversarially robust image classifiers in JAX."""

from robustjax._checks import InputError as InputError
