"""Every config builds, is locked, and says how to run it."""

import importlib
from pathlib import Path

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import pytest

import configs
from configs import at_alp, digits_pgd, flowers17, namid
from robustjax import InputError, build, data, training
from robustjax.config import at_alp_suites
from robustjax.data import Dataset, Splits
from robustjax.types import Batch

SHAPES = {
    "digits": (8, 8, 1),
    "mnist": (28, 28, 1),
    "cifar10": (32, 32, 3),
    "tiny_imagenet10": (64, 64, 3),
    "oxford_flowers17": (128, 128, 3),
}
TRAIN = {
    "digits": 1080,
    "mnist": 59_000,
    "cifar10": 49_000,
    "tiny_imagenet10": 4500,
    "oxford_flowers17": 680,
}
FOLDER = Path(configs.__file__).parent
NAMES = [
    path.stem
    for path in sorted(FOLDER.glob("*.py"))
    if "def get_config" in path.read_text()
]


def fake(name, **_):
    """As many zeros as there are images."""

    def split(count):
        labels = np.arange(count, dtype=np.int32) % 10
        images = np.broadcast_to(np.uint8(0), (count, *SHAPES[name]))  # no memory
        return Dataset(images, labels, np.arange(count), tuple("0123456789"), name)

    return Splits(train=split(TRAIN[name]), validation=split(20), test=split(20))


def test_there_are_configs():
    assert {"digits_pgd", "cifar10_pgd_resnet18"} <= set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_a_config_is_locked_and_says_how_to_run_it(name):
    module = importlib.import_module(f"configs.{name}")
    config = module.get_config()
    assert isinstance(config, ml_collections.ConfigDict)
    assert config.is_locked
    assert config.train.is_locked
    with pytest.raises(AttributeError):
        config.train.misspelt = 1
    assert f"python train.py --config=configs/{name}.py" in module.__doc__
    assert build.resolved(config) == build.resolved(module.get_config())
    assert isinstance(build.paired(config)["layers"], tuple)  # asked of any run


# As another of the same networks, with other numbers: the cheap test covers them.
LIKE_ANOTHER = [name for name in NAMES if name.startswith("cifar10_namid_resnet18_")]
LIKE_ANOTHER += ["tiny_imagenet10_namid", "cifar10_pgd_vgg19"]
LIKE_ANOTHER += [name for name in NAMES if name.startswith("flowers17_")]
LIKE_ANOTHER += [
    f"cifar10_{name}_resnet18" for name in ("mpgd", "alp", "attention", "denoise")
]
LIKE_ANOTHER.remove("flowers17_at_alp_small")
SLOW = [
    pytest.param(name, marks=pytest.mark.slow if name in LIKE_ANOTHER else ())
    for name in NAMES
]


@pytest.mark.parametrize("variant", namid.VARIANTS)
@pytest.mark.parametrize("name", ["digits_namid", "cifar10_namid_resnet18_released"])
def test_every_variant_of_namid_builds(name, variant, monkeypatch):
    config = importlib.import_module(f"configs.{name}").get_config(variant)
    monkeypatch.setattr(data, "load", fake)
    mesh = training.data_mesh(jax.devices()[:1])
    run = build.run(config, mesh, progress_bar=False)
    stages = build.build_stages(config, run.splits, run.networks, mesh)
    assert [stage.name for stage in stages] == list(config.stages)
    wanted = {"reference", "standard"}
    if variant != "wmim":
        wanted = {"reference", "natural", "adversarial"}
    assert set(config.networks) == set(config.adopt) == wanted


@pytest.mark.parametrize("name", ["mnist_namid", "cifar10_namid_resnet20"])
def test_light_runs_of_namid_are_shorter_and_otherwise_the_same(name):
    get_config = importlib.import_module(f"configs.{name}").get_config
    for variant, whole in (("light", "namid"), ("trades,light", "trades")):
        light, config = get_config(variant), get_config(whole)
        assert light.train.num_epochs < config.train.num_epochs
        assert light.train.loss.base.name == config.train.loss.base.name
        assert light.stages == config.stages


@pytest.mark.parametrize("variant", at_alp.VARIANTS)
def test_every_variant_of_at_alp_builds(variant, monkeypatch):
    monkeypatch.setattr(data, "load", fake)
    mesh = training.data_mesh(jax.devices()[:1])
    for name, more in (
        ("digits_at_alp", ""),
        ("cifar10_at_alp_resnet20", ""),
        ("flowers17_at_alp_small", ""),
        ("flowers17_at_alp_small", ",cnn"),
        ("mnist_at_alp", ""),
        ("mnist_at_alp", ",light"),
    ):
        module = importlib.import_module(f"configs.{name}")
        config = module.get_config(f"{variant}{more}")
        run = build.run(config, mesh, progress_bar=False)
        stages = build.build_stages(config, run.splits, run.networks, mesh)
        assert [stage.name for stage in stages] == list(config.stages)
        weights = dict(at_alp=(0.5, 1.0), alp=(0.5, 0), attention=(0, 1.0), mpgd=(0, 0))
        for stage in config.stages if variant in weights else ():
            loss = config[stage].loss
            assert (loss.logit_weight, loss.attention_weight) == weights[variant]


@pytest.mark.parametrize(
    ("name", "variant", "message"),
    [
        ("digits_at_alp", "both", ":at_alp, :alp"),
        ("mnist_at_alp", "alp,heavy", ":at_alp, :alp"),
        ("mnist_namid", "trades,heavy", "got :trades,heavy"),
        ("cifar10_namid_resnet20", "heavy,light", "got :heavy"),
        ("flowers17_at_alp_small", "alp,large", "RADIUS"),
        ("flowers17_alp_resnet50", "0.3", ":0.25 or :0.5"),
        ("mnist_ensemble_adv", "all", ":static"),
        ("cifar10_denoise_resnet18", "blur", "`op` must be one of"),
        ("cifar10_denoise_resnet18", "mean,all", "`config` .* got 'all'"),
    ],
)
def test_a_variant_that_does_not_exist(name, variant, message, monkeypatch):
    monkeypatch.setattr(data, "load", fake)
    module = importlib.import_module(f"configs.{name}")
    with pytest.raises(InputError, match=message):
        build.run(module.get_config(variant), training.data_mesh(jax.devices()[:1]))


@pytest.mark.parametrize("name", SLOW)
def test_a_config_builds_and_its_step_has_the_right_shapes(name, monkeypatch):
    config = importlib.import_module(f"configs.{name}").get_config()
    monkeypatch.setattr(data, "load", fake)
    mesh = training.data_mesh(jax.devices()[:4])  # 500 + 1,000 rows divide by 4
    run = build.run(config, mesh, progress_bar=False)
    another = None
    if name == "mnist_ensemble_adv":  # other runs, of as many classes
        another = lambda source: lambda x: jnp.zeros((len(x), 10))
    stages = build.build_stages(config, run.splits, run.networks, mesh, another)
    assert [stage.name for stage in stages] == list(config.stages)
    assert config.stages[-1] in run.validate
    assert build.build_suite("quick", config.evaluation)

    for stage in stages:
        params = jax.eval_shape(run.init, jax.random.key(0))[0]
        trainable = None if stage.trainable is None else stage.trainable(params)
        step = training.make_train_step(
            stage.loss_fn, stage.optimizer, prepare=run.prepare, trainable=trainable
        )

        def first(key, batch, stage=stage, step=step):
            init_key, key = jax.random.split(key)
            params, model_state = run.init(init_key)
            state = training.create_state(params, model_state, stage.optimizer, key)
            return step(state, batch), state

        size, shape = config.data.batch_size, SHAPES[config.data.name]
        rows = config[stage.name].get("data")
        if rows is not None:
            size = rows.get("batch_size") or rows.num_templates + rows.num_queries
        batch = Batch(
            jax.ShapeDtypeStruct((size, *shape), np.uint8),
            jax.ShapeDtypeStruct((size,), np.int32),
        )
        (after, metrics), before = jax.eval_shape(first, jax.random.key(0), batch)
        assert jax.tree.map(lambda a: (a.shape, a.dtype), after) == jax.tree.map(
            lambda a: (a.shape, a.dtype), before
        )
        assert {"loss/total", "grad/norm"} <= set(metrics)
        assert {metric.shape for metric in metrics.values()} == {()}


def test_the_variant_of_a_config_is_chosen_after_a_colon():
    module = importlib.import_module("configs.cifar10_pgd_resnet18")
    paper, fast = module.get_config(), module.get_config("one_cycle")
    assert (paper.train.num_epochs, fast.train.num_epochs) == (100, 30)
    with pytest.raises(ValueError, match="got :other"):
        module.get_config("other")


def test_images_of_17_flowers_are_resized_to_256_and_cut_to_224():
    for eps in (0.25, 0.5):
        config = flowers17.resnet50("at_alp", str(eps))
        assert (config.data.image_size, config.data.crop) == (256, 224)
        assert config.data.augment.random_resized_crop.size == 224
        evaluated = config.evaluation
        assert evaluated.step_size == pytest.approx(eps / 32)
        assert evaluated.num_steps > 10
        assert evaluated.num_restarts == 10
        validated = config.validation_attack
        assert (validated.num_steps, validated.step_size) == (10, eps / 8)
    blocks = at_alp_suites.at_alp_paper(evaluated)
    held = [b["attack"] | b for b in blocks if b["name"] == "restarts"]
    assert {b["num_restarts"] for b in held} == {10}
    for block in held:
        climb, size = block["attack"], block["attack"]["threat"]["eps"]
        share = 8 if climb["num_steps"] == 10 else 32
        assert climb["step_size"] == size / share


def test_what_looks_at_training_images_sees_them_as_the_test_is():
    config = digits_pgd.get_config().unlock()
    config.data.image_size, config.data.crop = 8, 6
    with pytest.raises(InputError, match=r"`data\.crop` 6 .*random_resized_crop"):
        build.load_data(config)
    config.data.augment = dict(random_resized_crop=dict(size=6))
    run = build.run(config, training.data_mesh(), progress_bar=False)
    assert run.splits.train.images.shape[1:] == (8, 8, 1)
    prepared = run.prepare(jax.random.key(0), jnp.asarray(run.splits.train.images[:2]))
    assert prepared.shape == run.splits.test.images[:2].shape == (2, 6, 6, 1)
    params, model_state = run.init(jax.random.key(0))
    weights = run.networks.model, params, model_state
    classifier = build.build_classifier(config, run.splits, *weights)
    found = classifier.guides(dict(layer="relu1_1"))
    assert found["images"].shape[1:] == (6, 6, 1)
    assert classifier.logits_fn(prepared).shape == (2, 10)


def test_denoising_after_every_block_and_clean_starts():
    module = importlib.import_module("configs.cifar10_denoise_resnet18")
    config = module.get_config("dot_product,blocks")
    assert config.model.denoise.to_dict() == dict(op="dot_product", after="blocks")
    assert module.get_config().model.denoise.after == "stages"
    started = config.train.loss.attack.random_start.to_dict()
    assert started == dict(name="uniform", clean=0.2)
    model = build.build_model(config.model, num_classes=10)
    x = jnp.zeros((1, 32, 32, 3))
    params, _ = jax.eval_shape(model.init, jax.random.key(0), x)
    added = [name for stage in params.values() for name in stage if "denoise" in name]
    assert len(added) == 8  # two residual blocks in each of four stages
