"""State dicts in PyTorch's names and layouts, written here by hand, without torch."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from robustjax import InputError, models

X = jax.random.uniform(jax.random.key(0), (2, 8, 8, 3))
MEAN, STD = (0.5, 0.25, 0.125), (0.25, 0.5, 1.0)


def variables(module, seed=0):
    """Random values in every leaf, the running statistics included."""
    model = models.from_linen(module)
    key = jax.eval_shape(lambda: jax.random.key(0))
    tree = jax.eval_shape(model.init, key, X)
    rng = np.random.default_rng(seed)
    fill = lambda leaf: rng.uniform(0.5, 1.5, leaf.shape).astype(np.float32) * 0.1
    return jax.tree.map(fill, tree)


def written(tree, names):
    """Our tree as a state dict: `names` rewrites "stage1/block1/conv1"."""
    params, model_state = tree
    state_dict = {}
    for collection in (params, model_state["batch_stats"]):
        for path, leaf in jax.tree_util.tree_flatten_with_path(collection)[0]:
            *layers, kind = [entry.key for entry in path]
            layer = "/".join(layers)
            for ours, theirs in names:
                layer = re.sub(ours, theirs, layer)
            if leaf.ndim == 4:  # [H, W, in, out] -> [out, in, H, W]
                leaf = np.moveaxis(leaf, (2, 3), (1, 0))
            elif leaf.ndim == 2:
                leaf = leaf.T
            leaf_name = {"mean": "running_mean", "var": "running_var", "bias": "bias"}
            state_dict[f"{layer}.{leaf_name.get(kind, 'weight')}"] = leaf
            if kind == "mean":
                state_dict[f"{layer}.num_batches_tracked"] = np.array(7)
    return state_dict


def block(pattern):
    return (r"stage(\d)/block(\d)/", lambda m: pattern(m[1], int(m[2]) - 1))


NARROW = [
    block(lambda i, j: f"layer{i}.{j}."),
    ("^stem/conv$", "conv1"),
    ("^stem/norm$", "bn1"),
    ("^head$", "linear"),
    ("shortcut_norm$", "shortcut.1"),
    ("shortcut$", "shortcut.0"),
    (r"\.norm(\d)$", r".bn\1"),
    ("^norm$", "bn"),
]
VISION = [
    *(rule for rule in NARROW if "shortcut" not in rule[0] and rule[0] != "^head$"),
    ("^head$", "fc"),
    ("shortcut_norm$", "downsample.1"),
    ("shortcut$", "downsample.0"),
]
WIDE = [
    block(lambda i, j: f"block{i}.layer.{j}."),
    ("^stem/conv$", "conv1"),
    ("^norm$", "bn1"),
    ("^head$", "fc"),
    ("shortcut$", "convShortcut"),
    (r"\.norm(\d)$", r".bn\1"),
]


def same(one, two):
    jax.tree.map(np.testing.assert_array_equal, one, two)
    assert jax.tree.structure(one) == jax.tree.structure(two)


@pytest.mark.parametrize(
    ("module", "names"),
    [
        (models.resnet20(), NARROW),
        (models.resnet20(), VISION),
        (models.resnet20(normalise=(MEAN, STD)), NARROW),
        (models.resnet18(num_classes=7), NARROW),
        (models.preact_resnet18(), NARROW),
        (models.preact_resnet18(final_norm=False), NARROW),
        (models.wide_resnet28_10(), WIDE),
    ],
    ids=["narrow", "vision", "normalised", "18", "preact", "preact-bare", "wide"],
)
def test_what_was_written_is_read(module, names):
    tree = variables(module)
    same(models.from_pytorch(written(tree, names), module), tree)


@pytest.fixture(scope="module")
def narrow():
    """(module, tree, state dict) of a ResNet-20."""
    module = models.resnet20()
    tree = variables(module)
    return module, tree, written(tree, NARROW)


def test_prefixes_and_what_is_never_called_are_dropped(narrow):
    module, tree, state_dict = narrow
    wrapped = {f"module.model.{name}": value for name, value in state_dict.items()}
    wrapped["module.sub_block1.layer.0.conv1.weight"] = np.ones((16, 16, 3, 3))
    same(models.from_pytorch(wrapped, module), tree)


def test_tensors_are_detached_moved_and_widened(narrow):
    class Tensor:
        """What is used of a bfloat16 tensor on a GPU that requires a gradient."""

        def __init__(self, value, done=()):
            self.value, self.done, self.shape = value, done, value.shape

        def __getattr__(self, name):
            if name not in ("detach", "cpu", "float"):
                raise AttributeError(name)
            return lambda: Tensor(self.value, (*self.done, name))

        def numpy(self):
            assert set(self.done) == {"detach", "cpu", "float"}
            return self.value

    module, tree, state_dict = narrow
    tensors = {name: Tensor(value) for name, value in state_dict.items()}
    loaded = models.from_pytorch(tensors, module)
    same(loaded, tree)
    leaves = jax.tree.leaves(loaded)
    assert all(leaf.dtype == jnp.float32 for leaf in leaves)


def test_loaded_weights_run(narrow):
    module, _, state_dict = narrow
    model = models.from_linen(module)
    f = models.logits_fn(model, *models.from_pytorch(state_dict, module))
    assert jax.jit(f)(X).shape == (2, 10)


def test_normalisation_is_compared(narrow):
    module, tree, state_dict = narrow
    buffers = {
        "mu": np.reshape(MEAN, (1, 3, 1, 1)),
        "sigma": np.reshape(STD, (1, 3, 1, 1)),
    }
    own = models.resnet20(normalise=(MEAN, STD))
    same(models.from_pytorch({**state_dict, **buffers}, own), tree)
    renamed = {"normalize.mean": buffers["mu"], "normalize.std": buffers["sigma"]}
    same(models.from_pytorch({**state_dict, **renamed}, own), tree)
    plain = {"mean": np.zeros(3), "std": np.ones(3)}
    same(models.from_pytorch({**state_dict, **plain}, module), tree)
    hint = re.escape(f"build it with normalise={(MEAN, STD)}")
    for other in (module, models.resnet20(normalise=(STD, MEAN))):
        with pytest.raises(InputError, match=hint):
            models.from_pytorch({**state_dict, **buffers}, other)
    with pytest.raises(InputError, match="one mean and one std"):
        models.from_pytorch({**state_dict, "mu": buffers["mu"]}, own)


def changed(old, entries):
    new = {**old, **{name.replace("__", "."): v for name, v in entries.items()}}
    return {name: value for name, value in new.items() if value is not None}


def test_shortcut_and_last_norm_of_preactivation_are_options():
    def logits(module):
        model = models.from_linen(module)
        return model.apply(*variables(models.preact_resnet18()), X).logits

    plain = logits(models.preact_resnet18())
    bare = logits(models.preact_resnet18(activated_shortcut=False))
    assert float(jnp.abs(plain - bare).max()) > 1e-3
    assert not models.preact_resnet18(final_norm=False).final_norm


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(layer2__0__conv1__weight=None), "has no 'layer2.0.conv1.weight'"),
        (dict(bn1__running_var=None), "has no 'bn1.running_var'"),
        (dict(extra__weight=np.ones(3)), "holds 'extra.weight', for which"),
        (
            dict(linear__weight=np.ones((10, 65))),
            r"'linear.weight' of shape \(10, 65\), but `module` needs \(10, 64\)",
        ),
        (
            dict(layer3__0__conv1__weight=np.ones((64, 32, 1, 1))),
            r"of shape \(64, 32, 1, 1\), but `module` needs \(64, 32, 3, 3\)",
        ),
        (dict(module__conv1__weight=np.ones(3)), "'conv1.weight' twice"),
        (dict(state_dict={}), "pass its entry 'state_dict'"),
    ],
)
def test_one_line_names_what_is_wrong(narrow, change, message):
    module, _, state_dict = narrow
    with pytest.raises(InputError, match=message) as error:
        models.from_pytorch(changed(state_dict, change), module)
    assert "\n" not in str(error.value)


def test_wrong_architectures_are_refused(narrow):
    _, _, state_dict = narrow
    for module in (models.resnet32(), models.resnet18(), models.wide_resnet28_10()):
        with pytest.raises(InputError, match="`module` needs"):
            models.from_pytorch(state_dict, module)
    with pytest.raises(InputError, match="buffer=1"):
        models.from_pytorch(state_dict, models.resnet20(buffer=1))
    with pytest.raises(InputError, match=r"residual networks.*SmallCNN"):
        models.from_pytorch(state_dict, models.small_cnn())
    with pytest.raises(InputError, match=r"must be a mapping.*list"):
        models.from_pytorch([1.0], models.resnet20())
    grey = {**state_dict, "conv1.weight": np.ones((16, 1, 3, 3), np.float32)}
    with pytest.raises(InputError, match="normalises 3 channels"):
        models.from_pytorch(grey, models.resnet20(normalise=(MEAN, STD)))
    params, _ = models.from_pytorch(grey, models.resnet20())
    assert params["stem"]["conv"]["kernel"].shape == (3, 3, 1, 16)
