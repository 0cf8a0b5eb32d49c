"""One network twice: ours, and the same weights in PyTorch; and its test images."""

import os
import pathlib

import numpy as np

from robustjax import data, models

MODULE = models.small_cnn(stages=((8,), (16,)), dense=64)
WEIGHTS = pathlib.Path(__file__).with_name("mnist_cnn.npz")
NO_DATA = "set TFDS_DATA_DIR to a directory where TFDS prepared mnist"


def params():
    """The stored weights as our parameters."""
    tree = {}
    with np.load(WEIGHTS) as arrays:
        for path, value in arrays.items():
            layer, name = path.split("/")
            tree.setdefault(layer, {})[name] = value
    return tree


def logits_fn():
    """The classifier in JAX, [B, 28, 28, 1] to [B, 10]."""
    return models.logits_fn(models.from_linen(MODULE), params(), {})


def torch_network():
    """The classifier in PyTorch, [B, 1, 28, 28] to [B, 10]."""
    import torch
    from torch import nn

    network = nn.Sequential(
        *(nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(8, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Flatten(), nn.Linear(784, 64), nn.ReLU(), nn.Linear(64, 10)),
    )
    ours = params()
    # Our flattening is (height, width, channel), theirs (channel, height, width).
    dense = ours["dense"]["kernel"].reshape(7, 7, 16, 64).transpose(3, 2, 0, 1)
    weights = {
        0: ours["conv1_1"]["kernel"].transpose(3, 2, 0, 1),
        3: ours["conv2_1"]["kernel"].transpose(3, 2, 0, 1),
        7: dense.reshape(64, 784),
        9: ours["head"]["kernel"].T,
    }
    layers = {0: "conv1_1", 3: "conv2_1", 7: "dense", 9: "head"}
    state = {}
    for index, layer in layers.items():
        state[f"{index}.weight"] = torch.from_numpy(weights[index].copy())
        state[f"{index}.bias"] = torch.from_numpy(ours[layer]["bias"].copy())
    network.load_state_dict(state)
    return network.eval().requires_grad_(False)


def has_data():
    return "TFDS_DATA_DIR" in os.environ


def images(count):
    """The first MNIST test images, float32 [count, 28, 28, 1], and labels, int32."""
    test = data.load("mnist").test
    return np.asarray(data.as_float(test.images[:count])), np.asarray(
        test.labels[:count]
    )
