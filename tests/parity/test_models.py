"""Loaded weights give PyTorch's logits, with random BatchNorm statistics."""

import jax
import numpy as np
import pytest

torch = pytest.importorskip("torch")

import torch_networks  # noqa: E402

from robustjax import models  # noqa: E402

MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2471, 0.2435, 0.2616)
NETWORKS = {
    "resnet18": (lambda: torch_networks.ResNet18(), models.resnet18()),
    "resnet18 normalised": (
        lambda: torch_networks.Normalised(torch_networks.ResNet18(), MEAN, STD),
        models.resnet18(normalise=(MEAN, STD)),
    ),
    "preact_resnet18 bare": (
        lambda: torch_networks.ResNet18(preact=True),
        models.preact_resnet18(final_norm=False, activated_shortcut=False),
    ),
    "preact_resnet18 norm": (
        lambda: torch_networks.ResNet18(preact=True, last_norm=True),
        models.preact_resnet18(activated_shortcut=False),
    ),
    "preact_resnet18 full": (
        lambda: torch_networks.ResNet18(True, last_norm=True, activated=True),
        models.preact_resnet18(),
    ),
    "wide_resnet28_10": (
        lambda: torch_networks.WideResNet(28),
        models.wide_resnet28_10(),
    ),
    "wide_resnet34_10": (
        lambda: torch.nn.DataParallel(torch_networks.WideResNet(34, sub_block=True)),
        models.wide_resnet34_10(),
    ),
}


def randomise(network):
    """BatchNorm as after training: other statistics, scales and offsets everywhere."""
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.normal_(0.0, 0.2)
            module.running_var.uniform_(0.5, 2.0)
            module.weight.data.uniform_(0.5, 1.5)
            module.bias.data.normal_(0.0, 0.2)


@pytest.mark.parametrize("name", NETWORKS)
def test_logits_are_equal(name):
    build, module = NETWORKS[name]
    torch.manual_seed(0)
    network = build().eval()
    randomise(network)
    x = np.random.default_rng(0).random((2, 32, 32, 3), np.float32)
    with torch.no_grad():
        expected = network(torch.from_numpy(x).permute(0, 3, 1, 2)).numpy()
    variables = models.from_pytorch(network.state_dict(), module)
    f = models.logits_fn(models.from_linen(module), *variables)
    logits = jax.jit(f)(x)
    assert np.abs(expected).max() > 0.1
    np.testing.assert_allclose(logits, expected, rtol=1e-4, atol=1e-4)
