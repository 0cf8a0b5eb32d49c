"""PyTorch networks in the names, and with the forward passes, of released code."""

import torch
import torch.nn.functional as F
from torch import nn


def conv3(width_in, width, stride=1):
    return nn.Conv2d(width_in, width, 3, stride, 1, bias=False)


def conv1(width_in, width, stride):
    return nn.Conv2d(width_in, width, 1, stride, bias=False)


class Basic(nn.Module):
    def __init__(self, width_in, width, stride):
        super().__init__()
        self.conv1, self.bn1 = conv3(width_in, width, stride), nn.BatchNorm2d(width)
        self.conv2, self.bn2 = conv3(width, width), nn.BatchNorm2d(width)
        self.shortcut = nn.Sequential()
        if stride != 1 or width_in != width:
            self.shortcut = nn.Sequential(
                conv1(width_in, width, stride), nn.BatchNorm2d(width)
            )

    def forward(self, x):
        out = F.relu(self.bn1(self.conv1(x)))
        return F.relu(self.bn2(self.conv2(out)) + self.shortcut(x))


class PreAct(nn.Module):
    """`activated`: whether the shortcut's convolution comes after BatchNorm, ReLU."""

    def __init__(self, width_in, width, stride, activated):
        super().__init__()
        self.activated = activated
        self.bn1, self.conv1 = nn.BatchNorm2d(width_in), conv3(width_in, width, stride)
        self.bn2, self.conv2 = nn.BatchNorm2d(width), conv3(width, width)
        if stride != 1 or width_in != width:
            self.shortcut = nn.Sequential(conv1(width_in, width, stride))

    def forward(self, x):
        out = F.relu(self.bn1(x))
        if hasattr(self, "shortcut"):
            x = self.shortcut(out if self.activated else x)
        return x + self.conv2(F.relu(self.bn2(self.conv1(out))))


class ResNet18(nn.Module):
    """Post-activation, or pre-activation with or without the last BatchNorm."""

    def __init__(self, preact=False, last_norm=False, activated=False):
        super().__init__()
        self.conv1, width_in = conv3(3, 64), 64
        if not preact:
            self.bn1 = nn.BatchNorm2d(64)
        for i, width in enumerate((64, 128, 256, 512), 1):
            blocks = []
            for stride in (1 if i == 1 else 2, 1):
                extra = (activated,) if preact else ()
                kind = PreAct if preact else Basic
                blocks.append(kind(width_in, width, stride, *extra))
                width_in = width
            setattr(self, f"layer{i}", nn.Sequential(*blocks))
        if last_norm:
            self.bn = nn.BatchNorm2d(512)
        self.linear = nn.Linear(512, 10)

    def forward(self, x):
        x = self.conv1(x)
        if hasattr(self, "bn1"):
            x = F.relu(self.bn1(x))
        for stage in (self.layer1, self.layer2, self.layer3, self.layer4):
            x = stage(x)
        if hasattr(self, "bn"):
            x = F.relu(self.bn(x))
        return self.linear(x.mean((2, 3)))


class WideBlock(nn.Module):
    def __init__(self, width_in, width, stride):
        super().__init__()
        self.bn1, self.conv1 = nn.BatchNorm2d(width_in), conv3(width_in, width, stride)
        self.bn2, self.conv2 = nn.BatchNorm2d(width), conv3(width, width)
        self.convShortcut = None
        if width_in != width:
            self.convShortcut = conv1(width_in, width, stride)

    def forward(self, x):
        active = F.relu(self.bn1(x))
        shortcut = x if self.convShortcut is None else self.convShortcut(active)
        return shortcut + self.conv2(F.relu(self.bn2(self.conv1(active))))


class WideGroup(nn.Module):
    def __init__(self, depth, width_in, width, stride):
        super().__init__()
        self.layer = nn.Sequential(
            WideBlock(width_in, width, stride),
            *(WideBlock(width, width, 1) for _ in range(depth - 1)),
        )

    def forward(self, x):
        return self.layer(x)


class WideResNet(nn.Module):
    """`sub_block`: with the group that some released files store and never call."""

    def __init__(self, depth, widen=10, sub_block=False):
        super().__init__()
        count, widths = (depth - 4) // 6, (16, 16 * widen, 32 * widen, 64 * widen)
        self.conv1 = conv3(3, 16)
        for i in (1, 2, 3):
            group = WideGroup(count, widths[i - 1], widths[i], 1 if i == 1 else 2)
            setattr(self, f"block{i}", group)
        if sub_block:
            self.sub_block1 = WideGroup(count, widths[0], widths[1], 1)
        self.bn1, self.fc = nn.BatchNorm2d(widths[3]), nn.Linear(widths[3], 10)

    def forward(self, x):
        x = self.block3(self.block2(self.block1(self.conv1(x))))
        return self.fc(F.relu(self.bn1(x)).mean((2, 3)))


class Normalised(nn.Module):
    """A network behind its normalisation, kept in buffers."""

    def __init__(self, model, mean, std):
        super().__init__()
        self.model = model
        self.register_buffer("mu", torch.tensor(mean).reshape(1, 3, 1, 1))
        self.register_buffer("sigma", torch.tensor(std).reshape(1, 3, 1, 1))

    def forward(self, x):
        return self.model((x - self.mu) / self.sigma)
