"""Blocks of neuron-level inverse perturbation that several configs share."""

from collections.abc import Mapping
from typing import Any

from robustjax import InputError


def training_loss(training: str, attack: Mapping[str, Any]) -> dict[str, Any]:
    """The loss of a variant, "standard" or "adversarial"."""
    if training == "standard":
        return dict(name="standard", label_smoothing=0.0)
    if training == "adversarial":
        return dict(name="adversarial", attack=dict(attack), clean_weight=0.0)
    raise InputError(f"`config` ends in :standard or :adversarial, got :{training}.")


def nip(layer: str, *, size: float, front: int, tail: int) -> dict[str, Any]:
    """The block `transform`.

    Entries are typed, so that `--set=transform.rule=gain` replaces them; the rest of
    the keywords of `transforms.nip` have their defaults.
    """
    return dict(
        name="nip",
        layer=layer,
        measure="activation_x_gradient",
        output="logit",
        front=front,
        tail=tail,
        size=size,
        policy="candidates",
        rule="proto",
        form="universal",
        benign_per_class=400,
        seed=0,
    )


def controls(layer: str, block: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """What NIP has to beat, as blocks `transform` by name, of the same size."""
    size, sets = block["size"], dict(front=block["front"], tail=block["tail"])
    plain = dict(class_weight=1.0, front_weight=0.0, tail_weight=0.0)
    return {
        "none": {},
        "candidates, proto": dict(block),
        "candidates, gain": block | dict(rule="gain"),
        "candidates, conf": block | dict(rule="conf"),
        "candidates, avg": block | dict(rule="avg"),
        "predicted": block | dict(policy="predicted"),
        "pooled": block | dict(policy="pooled", form="per_sample"),
        "dictionary by pixels": block | dict(policy="dictionary"),
        "random sets, proto": block | dict(neurons="random"),
        "random sets, gain": block | dict(neurons="random", rule="gain"),
        "random directions, proto": block | dict(direction="random"),
        "cross-entropy, proto": block | plain,
        "cross-entropy, gain": block | plain | dict(rule="gain"),
        "Gaussian noise, 16 votes": dict(name="noise_voting", size=size),
        "hedge": dict(name="hedge", size=size),
        "anti-adversary": dict(name="anti_adversary", size=size),
        "nearest class mean": dict(name="nearest_class_mean", layer=layer, **sets),
        "nearest neighbor, pixels": dict(name="nearest_neighbor"),
    }
