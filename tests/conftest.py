"""Stricter than users need: what broadcasts by accident or reuses a key fails here.

Set before anything touches a device. Doctests of a whole run see it too.
"""

import os

import hypothesis
import jax
import pytest

jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_debug_key_reuse", True)
# Steps that overlap on 8 virtual devices of one or two cores can starve each other's
# collectives until XLA aborts the process.
jax.config.update("jax_cpu_enable_async_dispatch", False)

# Most of the time of small programs is compilation: the older code generator of XLA for
# CPU and few passes take a fifth of it. Programs that tests start are compiled as users
# compile them, and so is everything by `XLA_FLAGS= pytest`.
QUICK = "XLA_FLAGS" not in os.environ
if QUICK:
    os.environ["XLA_FLAGS"] = "--xla_cpu_use_fusion_emitters=false"
    jax.devices()  # reads the flags, once for all
    del os.environ["XLA_FLAGS"]
    jax.config.update("jax_disable_most_optimizations", True)

# Compilation makes first examples slow, and seeds from the clock make CI a lottery.
hypothesis.settings.register_profile(
    "ci", deadline=None, derandomize=True, max_examples=40
)
hypothesis.settings.load_profile("ci")


@pytest.fixture(scope="module")
def compile_fully():
    """For modules whose programs run longer than they compile."""
    jax.config.update("jax_disable_most_optimizations", False)
    yield
    jax.config.update("jax_disable_most_optimizations", QUICK)
