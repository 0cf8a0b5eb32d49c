"""Stricter than users need: what broadcasts by accident or reuses a key fails here.

Set before anything touches a device. Doctests of a whole run see it too.
"""

import gc
import importlib
import itertools
import os

import hypothesis
import jax
import pytest
from jax.experimental.compilation_cache import (
    compilation_cache as compilation_cache_module,
)

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
    jax.config.update("jax_enable_compilation_cache", False)  # no keys for nothing


def share_contexts(programs=200):
    """Lets that many programs be written in one MLIR context, not each in its own.

    To make a context is a third of the cost of a small program. It keeps what was
    written in it, hence a new one now and then. The name is private to jax: where it
    is gone, tests only take longer.
    """
    try:
        mlir = importlib.import_module("jax._src.interpreters.mlir")
        make = mlir.make_ir_context
    except (ImportError, AttributeError):
        return
    calls, shared = itertools.count(), []

    def made():
        if next(calls) % programs == 0:
            shared[:] = [make()]
        return shared[0]

    mlir.make_ir_context = made


if QUICK:
    share_contexts()

# Compilation makes first examples slow, and seeds from the clock make CI a lottery.
hypothesis.settings.register_profile(
    "ci", deadline=None, derandomize=True, max_examples=40
)
hypothesis.settings.load_profile("ci")


def pytest_collection_finish():
    """What is imported by now stays: the collector need not look at it again.

    Tracing makes many objects and few cycles, so that it may also look less often.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 20, 20)


@pytest.fixture(scope="module")
def compile_fully():
    """For modules whose programs run longer than they compile."""
    jax.config.update("jax_disable_most_optimizations", False)
    yield
    jax.config.update("jax_disable_most_optimizations", QUICK)


@pytest.fixture(scope="module")
def compilation_cache(tmp_path_factory):
    """For modules that train or judge the same again: compiled once, not once a run."""
    chosen = {
        "jax_enable_compilation_cache": True,
        "jax_compilation_cache_dir": str(tmp_path_factory.mktemp("compiled")),
        "jax_persistent_cache_min_compile_time_secs": 0.0,
        "jax_persistent_cache_min_entry_size_bytes": -1,
    }
    before = {name: getattr(jax.config, name) for name in chosen}
    for name, value in chosen.items():
        jax.config.update(name, value)
    compilation_cache_module.reset_cache()
    yield
    for name, value in before.items():
        jax.config.update(name, value)
    compilation_cache_module.reset_cache()
