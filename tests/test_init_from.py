"""Runs that begin with other runs' weights, or train on examples of other runs."""

import functools
import json
import shutil
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import pytest
from short_runs import MESH, Killed, trained

from configs import mnist_ensemble_adv
from robustjax import InputError, build, evaluation, models
from robustjax.config import initial

pytestmark = pytest.mark.usefixtures("compilation_cache")

STEPS = 5  # batches of an epoch


def tiny(variant="static", *, sources=(), **changes):
    """A config on digits: an epoch, no validation."""
    config: Any = mnist_ensemble_adv.get_config(variant).unlock()
    config.data.name, config.data.validation = "digits", 0.0
    config.data.batch_size = 240
    config.model = dict(name="small_cnn", stages=((4,), (4,)), dense=8)
    config.train.num_epochs = 1
    if sources:
        config.train.loss.attack.sources = tuple(map(str, sources))
    config.update(changes)
    return config


def same(one, two):
    jax.tree.map(np.testing.assert_array_equal, one, two)


@pytest.fixture(scope="module")
def static(tmp_path_factory):
    """Two runs without a defense, and their last states."""
    root = tmp_path_factory.mktemp("static")
    workdirs = [root / f"seed_{seed}" for seed in (1, 2)]
    states = [
        trained(tiny(seed=seed), workdir)
        for seed, workdir in enumerate(workdirs, start=1)
    ]
    return workdirs, states


def start(config, *, num_classes=10, side=8, channels=1):
    """The first weights of a run of this config, without its sources and with them."""
    networks = build.build_networks(config, num_classes=num_classes)
    x = jnp.zeros((1, side, side, channels))
    fresh = jax.jit(networks.init)(jax.random.key(0), x)
    adopt = build.initial_weights(config, networks, MESH)
    assert adopt is not None
    return fresh, adopt(*fresh)


# --- from another run ----------------------------------------------------------------


def test_fine_tuning_begins_where_the_source_ended(static, tmp_path):
    (source, _), (last, _) = static
    config = tiny(seed=3, init_from=str(source))
    fresh, found = start(config)
    same(found, (last.params, last.model_state))
    assert not np.array_equal(fresh[0]["head"]["kernel"], found[0]["head"]["kernel"])

    calm = config.copy_and_resolve_references()
    calm.train.optimizer = dict(name="sgd", schedule=dict(name="constant", value=1e-30))
    still = trained(calm, tmp_path / "still")
    close = functools.partial(np.testing.assert_allclose, rtol=0, atol=1e-20)
    jax.tree.map(close, still.params, last.params)  # through the whole of training
    assert int(still.step) == STEPS


def test_a_fine_tuned_run_goes_on_without_its_source(static, tmp_path):
    source = shutil.copytree(static[0][0], tmp_path / "source")
    config = tiny(seed=3, init_from=str(source))
    config.train.num_epochs = 2
    whole = trained(config, tmp_path / "whole")
    with pytest.raises(Killed):
        trained(config, tmp_path / "cut", crash=("train", STEPS + 2))
    saved = [path.name for path in (tmp_path / "cut" / "checkpoints").iterdir()]
    assert saved == [str(STEPS)]
    shutil.rmtree(source)
    again = trained(config, tmp_path / "cut")
    same(again.params, whole.params)
    with pytest.raises(InputError, match="no run was started there"):
        trained(config, tmp_path / "new")
    build.restore(tmp_path / "whole", MESH)  # which needs no source either


def test_other_classes_get_a_new_head(static):
    (source, _), (last, _) = static
    fresh, (params, _) = start(tiny(init_from=str(source)), num_classes=3)
    assert params["head"]["kernel"].shape == (8, 3)
    same(params["head"], fresh[0]["head"])
    same(
        {name: params[name] for name in params if name != "head"},
        {name: last.params[name] for name in last.params if name != "head"},
    )


def test_only_the_model_begins_elsewhere(static):
    (source, _), (last, _) = static
    config = tiny(init_from=str(source))
    with config.unlocked():
        config.networks = dict(reference=dict(config.model))
    fresh, (params, state) = start(config)
    assert set(params) == set(state) == {"model", "reference"}
    same(params["model"], last.params)
    same(params["reference"], fresh[0]["reference"])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(dense=12), r"another network: 'dense/bias' of shape \(12,\) has one of "),
        (dict(stages=((4,),)), "another network: .* Take the same config.model"),
        (dict(stages=((4,), (4,), (4,))), "another network: .* has none there"),
    ],
)
def test_another_network_is_one_line(static, change, message):
    config = tiny(init_from=str(static[0][0]))
    config.model.update(change)
    with pytest.raises(InputError, match=f"`init_from` .* is {message}") as error:
        start(config)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(normalise=((0.5,), (0.25,))), "normalise is None, here .*0.25"),
        (dict(kernel_size=3, normalise=None, dtype="float32"), None),
        (dict(dtype="bfloat16"), None),
    ],
)
def test_another_function_of_the_same_weights_is_one_line(static, change, message):
    config = tiny(init_from=str(static[0][0]))
    config.model.update(change)
    if message is None:
        same(start(config)[1][0], static[1][0].params)
        return
    with pytest.raises(InputError, match=rf"another network: its model\.{message}"):
        start(config)


def test_another_stride_is_another_function():
    check = initial._check_same_function
    block = dict(SMALL, widths=[4, 8])  # as config.json has it
    check(dict(SMALL, stem_stride=1, buffer=1, denoise=DENOISED), block, "runs/a")
    with pytest.raises(InputError, match="stem_stride is 1, here 2"):
        check(dict(SMALL, stem_stride=2), block, "runs/a")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("nowhere", None, "nowhere has no config.json: no run was started there"),
        ("no.npz", None, r"`init_from` .*no\.npz does not exist"),
        ("no.pth", None, r"`init_from` .*no\.pth does not exist"),
        ("bad.npz", b"not a zip", r"`init_from` .*bad\.npz cannot be read: "),
        ("bad.pth", b"no pickle", r"`init_from` .*bad\.pth (needs torch|cannot be)"),
    ],
)
def test_what_cannot_be_read_is_one_line(tmp_path, name, content, message):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=message) as error:
        start(tiny(init_from=str(tmp_path / name)))
    assert "\n" not in str(error.value)


# --- from a file ---------------------------------------------------------------------

SMALL = dict(name="small_resnet", depths=(1, 1), widths=(4, 8))
DENOISED = dict(op="gaussian", after=("stage2",))


def state_dict(num_classes):
    """What torchvision calls the entries of `SMALL`, at random."""
    rng = np.random.default_rng(0)
    convolutions = {
        "conv1": (4, 3, 3, 3),
        "layer1.0.conv1": (4, 4, 3, 3),
        "layer1.0.conv2": (4, 4, 3, 3),
        "layer2.0.conv1": (8, 4, 3, 3),
        "layer2.0.conv2": (8, 8, 3, 3),
        "layer2.0.downsample.0": (8, 4, 1, 1),
    }
    found = {}
    for name, shape in convolutions.items():
        norm = name.replace("conv", "bn").replace("downsample.0", "downsample.1")
        found[f"{name}.weight"] = rng.normal(size=shape).astype(np.float32)
        for entry in ("weight", "bias", "running_mean", "running_var"):
            found[f"{norm}.{entry}"] = rng.random(shape[0]).astype(np.float32)
        found[f"{norm}.num_batches_tracked"] = np.array(7)
    found["fc.weight"] = rng.normal(size=(num_classes, 8)).astype(np.float32)
    found["fc.bias"] = rng.normal(size=num_classes).astype(np.float32)
    return found


def from_file(path, content, num_classes, **changes):
    np.savez(path, **content)
    config = ml_collections.ConfigDict(dict(init_from=str(path), model=SMALL | changes))
    return start(config, num_classes=num_classes, channels=3)


@pytest.mark.parametrize("prefix", ["", "module."])
def test_a_state_dict_of_other_classes_gives_all_but_the_head(tmp_path, prefix):
    content = state_dict(1000)
    renamed = {prefix + name: value for name, value in content.items()}
    fresh, (params, state) = from_file(tmp_path / "w.npz", renamed, 17)
    same(params["head"], fresh[0]["head"])
    kernel = params["stage2"]["block1"]["shortcut"]["kernel"]
    expected = content["layer2.0.downsample.0.weight"].transpose(2, 3, 1, 0)
    np.testing.assert_array_equal(kernel, expected)
    module = models.small_resnet(depths=(1, 1), widths=(4, 8), num_classes=1000)
    wanted, statistics = models.from_pytorch(content, module)
    for name in ("stem", "stage1", "stage2"):
        same(params[name], wanted[name])
    same(state, statistics)


def test_a_state_dict_of_the_same_classes_gives_its_head(tmp_path):
    content = state_dict(5)
    _, (params, _) = from_file(tmp_path / "w.npz", content, 5)
    np.testing.assert_array_equal(params["head"]["kernel"], content["fc.weight"].T)
    np.testing.assert_array_equal(params["head"]["bias"], content["fc.bias"])


def test_buffers_and_denoising_blocks_start_anew(tmp_path):
    content = state_dict(5)
    options = dict(buffer=1, denoise=DENOISED)
    fresh, (params, state) = from_file(tmp_path / "w.npz", content, 5, **options)
    same(params["buffer"], fresh[0]["buffer"])
    same(params["stage2"]["denoise"], fresh[0]["stage2"]["denoise"])
    np.testing.assert_array_equal(params["head"]["bias"], content["fc.bias"])
    bias = params["stage2"]["block1"]["norm2"]["bias"]
    np.testing.assert_array_equal(bias, content["layer2.0.bn2.bias"])
    mean = state["batch_stats"]["stage2"]["block1"]["norm2"]["mean"]
    np.testing.assert_array_equal(mean, content["layer2.0.bn2.running_mean"])


def test_a_state_dict_of_another_network_is_one_line(tmp_path):
    content = state_dict(5)
    for changes, wrong, message in (
        (dict(depths=(1, 2)), {}, "has no 'layer2.1"),
        (dict(), dict(extra=np.zeros(3)), "holds 'extra', for which"),
        (dict(), {"fc.weight": np.array(None)}, "cannot be read: ValueError"),
    ):
        with pytest.raises(InputError, match=message) as error:
            from_file(tmp_path / "w.npz", content | wrong, 5, **changes)
        assert "\n" not in str(error.value)


# --- on examples of other runs -------------------------------------------------------


@pytest.mark.parametrize(
    "variant", ["ensemble", pytest.param("at_alp", marks=pytest.mark.slow)]
)
def test_static_runs_are_needed_for_training_and_not_afterwards(
    static, tmp_path, variant
):
    sources = [shutil.copytree(w, tmp_path / w.name) for w in static[0]]
    config, workdir = tiny(variant, sources=sources), tmp_path / "run"
    state = trained(config, workdir)
    assert int(state.step) == STEPS
    rows = [json.loads(line) for line in (workdir / "metrics.jsonl").open()]
    assert {"accuracy/clean", "accuracy/robust"} <= set(rows[-1])
    for source in sources:
        shutil.rmtree(source)
    restored = build.restore(workdir, MESH)
    attack = build.build_attack(
        dict(name="fgsm", threat=dict(name="linf", eps=0.1)), views=restored.classifier
    )
    result = evaluation.evaluate(
        restored.logits_fn,
        restored.run.splits.test,
        [attack],
        key=jax.random.key(0),
        num_examples=32,
        batch_size=32,
        mesh=MESH,
    )
    assert result.clean_correct.shape == (32,)
    with pytest.raises(InputError, match="no run was started there"):
        trained(config, tmp_path / "again")


def test_without_its_sources_a_loss_is_described_but_not_computed(static):
    config = tiny("ensemble", sources=static[0])
    run = build.run(config, MESH)
    (stage,) = build.build_stages(config, run.splits, run.networks, MESH)
    batch = next(iter(stage.data))
    x = jnp.asarray(batch.x, jnp.float32) / 16
    weights = run.init(jax.random.key(0))
    with pytest.raises(InputError, match="is not loaded: only train"):
        stage.loss_fn(*weights, jax.random.key(1), batch._replace(x=x))
