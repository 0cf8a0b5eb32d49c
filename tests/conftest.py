"""Stricter than users need: what broadcasts by accident or reuses a key fails here.

Set before anything touches a device. Doctests of a whole run see it too.
"""

import os

import hypothesis
import jax
import pytest

# The older code generator of XLA for CPU compiles small programs twice as fast. Those
# that tests start are compiled as users compile, and so are the tests themselves with
# `XLA_FLAGS= pytest`.
FLAGS = os.environ.get("XLA_FLAGS")
os.environ.setdefault("XLA_FLAGS", "--xla_cpu_use_fusion_emitters=false")

jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_debug_key_reuse", True)
# Steps that overlap on 8 virtual devices of one or two cores can starve each other's
# collectives until XLA aborts the process.
jax.config.update("jax_cpu_enable_async_dispatch", False)

if FLAGS is None:
    jax.devices()  # reads the flags, once for all
    del os.environ["XLA_FLAGS"]

# Compilation makes first examples slow, and seeds from the clock make CI a lottery.
hypothesis.settings.register_profile("ci", deadline=None, derandomize=True)
hypothesis.settings.load_profile("ci")


@pytest.fixture(scope="module")
def compile_quickly():
    """For modules of many small programs, whose time is all LLVM's."""
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)
