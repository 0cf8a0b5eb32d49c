"""Other libraries' attacks as functions `(task, seed) -> x_adv`, images [B, C, H, W].

torchattacks seeds itself where it takes a `seed`; the others draw from the generators
of PyTorch and NumPy, which the caller seeds.

adv-lib imports torchvision and visdom for a perceptual distance and for plots that
no attack here uses; where they are missing, empty modules take their place, so that the
environment stays small.
"""

import importlib
import inspect
import math
import sys
from typing import Any, NamedTuple
from unittest import mock

for _name in ("torchvision", "visdom"):
    try:
        importlib.import_module(_name)
    except ImportError:
        sys.modules[_name] = mock.MagicMock()

import adv_lib.attacks as _adv_lib  # noqa: E402
import art.attacks.evasion as _art  # noqa: E402
import foolbox as _foolbox  # noqa: E402
import torch  # noqa: E402
import torchattacks as _torchattacks  # noqa: E402
from art.estimators.classification import PyTorchClassifier  # noqa: E402

INF = math.inf


class Task(NamedTuple):
    """What is attacked."""

    network: Any
    x: torch.Tensor
    y: torch.Tensor


def torchattacks(name, **arguments):
    kind = getattr(_torchattacks, name)
    seeded = "seed" in inspect.signature(kind.__init__).parameters

    def run(task, seed=0):
        extra = {"seed": seed} if seeded else {}
        return kind(task.network, **arguments, **extra)(task.x, task.y)

    return run


def foolbox(name, eps=None, **arguments):
    """`eps` None for minimum norms."""

    def run(task, seed=0):
        model = _foolbox.PyTorchModel(task.network, bounds=(0, 1), device="cpu")
        attack = getattr(_foolbox.attacks, name)(**arguments)
        return attack(model, task.x, task.y, epsilons=eps)[1]

    return run


def adv_lib(name, **arguments):
    def run(task, seed=0):
        attack = getattr(_adv_lib, name)
        return attack(task.network, task.x, task.y, **arguments)

    return run


class _Single(torch.nn.Module):
    """ART computes some images in double precision."""

    def __init__(self, network):
        super().__init__()
        self.network = network

    def forward(self, x):
        return self.network(x.float())


def art(name, **arguments):
    def run(task, seed=0):
        classifier = PyTorchClassifier(
            _Single(task.network),
            loss=torch.nn.CrossEntropyLoss(),
            input_shape=tuple(task.x.shape[1:]),
            nb_classes=10,
            clip_values=(0.0, 1.0),
            device_type="cpu",
        )
        attack = getattr(_art, name)(classifier, **arguments)
        return torch.from_numpy(attack.generate(task.x.numpy(), y=task.y.numpy()))

    return run
