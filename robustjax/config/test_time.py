"""Test-time defenses of a run: built from their block, fitted, and kept on disk."""

import dataclasses
import functools
import hashlib
import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial

from robustjax import data, influence, models, transforms
from robustjax._checks import InputError, positive_int
from robustjax.attacks import expectation
from robustjax.config import names
from robustjax.config.blocks import Block, lookup, make
from robustjax.types import (
    Array,
    Batch,
    Defended,
    Defense,
    Key,
    LogitsFn,
    Model,
    ModelFn,
    PyTree,
)

_PER_CLASS = 400  # benign images, as in NIP's scripts
_OWN = ("benign_per_class", "seed")
# What changes nothing in a state: other views of a defense share it.
_NOT_FITTED = (
    *("answer", "choice_gradient", "clip_gradient", "temperature", "softness"),
    "num_votes",
)


def is_test_time(block: Block) -> bool:
    """Whether a block `transform` is a test-time defense, and no input transform."""
    return block.get("name") in names.DEFENSES


def choice_of(block: Block) -> str | None:
    """The policy of `nip` by which candidates of all classes compete, if they do."""
    policy = block.get("policy", "candidates")
    if block.get("name") != "nip" or policy not in ("candidates", "dictionary"):
        return None
    averaged = policy == "candidates" and block.get("rule") == "avg"
    return None if averaged else policy


def build_defense(block: Block, num_classes: int) -> Defense:
    """The defense of a block, its measure and output by name.

    Raises:
      InputError: a name, a keyword or a value is wrong.
    """
    given = {k: v for k, v in dict(block).items() if k not in _OWN}
    text = json.dumps(given, sort_keys=True)
    return _built(text, num_classes)


@functools.cache
def _built(text: str, num_classes: int) -> Defense:
    """One object per block, so that code compiled for it is found again."""
    given = json.loads(text)
    for key, table in (("measure", names.MEASURES), ("output", names.OUTPUTS)):
        if key in given:
            given[key] = lookup(key, table, given[key])
    if given["name"] == "nearest_neighbor":
        given["num_classes"] = num_classes
    return make("transform", names.DEFENSES, given)


class FittedDefenses:
    """The defenses of one classifier, each fitted once to benign training images."""

    def __init__(
        self,
        train: data.Dataset,
        model: Model,
        params: PyTree,
        model_state: PyTree,
        directory: Path | None = None,
    ):
        """Of these weights.

        Args:
          train: The benign images.
          model: The model.
          params: Its parameters.
          model_state: Its BatchNorm statistics.
          directory: Where states are kept; None keeps none.
        """
        self._train, self._directory = train, directory
        self._model_fn: Any = models.model_fn(model, params, model_state)
        self._states: dict[str, PyTree] = {}

    def state(self, block: Block) -> PyTree:
        """What the defense has learnt: from memory, from disk, or now.

        Raises:
          InputError: it cannot be fitted, or its file cannot be read.
        """
        fitted = {k: v for k, v in dict(block).items() if k not in _NOT_FITTED}
        text = json.dumps(fitted, sort_keys=True)
        if text not in self._states:
            self._states[text] = self._stored(text, fitted)
        return self._states[text]

    def neurons(self, block: Block) -> dict[str, Any] | None:
        """What `evaluation.neuron_shifts` needs, where the defense knows neurons.

        The sets are those of the influence, also where the defense itself has random
        ones: what is shown as front and tail is always what the words mean.
        """
        state = self.state(block) if is_test_time(block) else None
        if not isinstance(state, transforms.NIPState):
            return None
        sets = ("layer", "front", "tail", "tail_order")
        own = transforms.NIPOptions(**{k: block[k] for k in sets if k in block})
        masks = influence.front_and_tail(
            state.influence, own.front, own.tail, tail_order=own.tail_order
        )
        return dict(
            model_fn=self._model_fn,
            layer=own.layer,
            masks=masks,
            class_influence=state.influence,
            deviation=state.deviation,
        )

    def logits_fn(self, block: Block, *, draw: int, samples: int) -> LogitsFn:
        """The defended classifier; draws [S, B, K] of a random one.

        Args:
          block: The defense.
          draw: Others for those that judge than for those that attack.
          samples: Draws of a random defense.
        """
        defense = build_defense(block, self._train.num_classes)
        known = (self.state(block), self._model_fn)
        if not defense.random:
            return Partial(_Answer(defense.apply), *known)
        key = jax.random.fold_in(jax.random.key(block.get("seed", 0)), draw)
        average = "logits" if samples == 1 else "objective"
        run = Partial(_RandomAnswer(defense.apply), *known)
        return expectation(run, key, samples, average=average)

    def _stored(self, text: str, block: Block) -> PyTree:
        defense = build_defense(block, self._train.num_classes)
        batch = self._benign(block)
        key = jax.random.key(block.get("seed", 0))
        if self._directory is None:
            return _single(defense.fit(key, self._model_fn, batch))
        weights = transforms.digest(self._model_fn)
        mark = hashlib.sha256(f"{text} {weights}".encode()).hexdigest()[:12]
        path = self._directory / f"{block['name']}-{mark}.npz"
        if path.exists():
            fit = lambda key, batch: defense.fit(key, self._model_fn, batch)
            like = jax.eval_shape(fit, key, batch)
            return transforms.load_state(path, like, self._model_fn)
        state = _single(defense.fit(key, self._model_fn, batch))
        if jax.process_index() == 0 and jax.tree.leaves(state):
            transforms.save_state(path, state, self._model_fn)
        return state

    def _benign(self, block: Block) -> Batch:
        """The first so many training images of each class, as they are."""
        most = block.get("benign_per_class", _PER_CLASS)
        positive_int(**{"transform.benign_per_class": most})
        labels = self._train.labels
        rows = [
            np.flatnonzero(labels == c)[:most] for c in range(self._train.num_classes)
        ]
        chosen = self._train.take(np.sort(np.concatenate(rows)))
        x = data.as_float(jnp.asarray(chosen.images))
        return Batch(x, jnp.asarray(chosen.labels))


def check_head(head: str) -> None:
    """Raises unless a test-time defense can stand before this head."""
    if head != "linear":
        raise InputError(
            f"A test-time defense in `transform` looks into the model and takes its "
            f"linear head, got the head {head!r}: add --head=linear."
        )


def _single(state: PyTree) -> PyTree:
    """Off the mesh that the weights are on."""
    return jax.tree.map(lambda a: jnp.asarray(np.asarray(a)), state)


@dataclasses.dataclass(frozen=True)
class _Answer:
    apply: Defended

    def __call__(self, state: PyTree, model_fn: ModelFn, x: Array) -> Array:
        return self.apply(state, jax.random.key(0), model_fn, x)


@dataclasses.dataclass(frozen=True)
class _RandomAnswer:
    apply: Defended

    def __call__(self, state: PyTree, model_fn: ModelFn, keys: Key, x: Array) -> Array:
        return self.apply(state, keys, model_fn, x)
