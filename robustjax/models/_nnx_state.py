"""The variables of an nnx module as nested dictionaries of arrays, and back.

Keys are strings throughout, list positions too: checkpoints and masks by path want
one kind.
"""

import dataclasses
import functools
import operator
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx, traverse_util

from robustjax.types import Array, Key, PyTree

_Path = tuple[Any, ...]


@dataclasses.dataclass(frozen=True)
class Structure:
    """What of an nnx module is no array.

    Attributes:
      graphdef: Everything static.
      variables: Abstract variables by path; only their types are used.
    """

    graphdef: nnx.GraphDef
    variables: Mapping[_Path, nnx.Variable]

    @property
    def trained(self) -> list[_Path]:
        """Paths of the parameters."""
        return [p for p, v in self.variables.items() if isinstance(v, nnx.Param)]

    @property
    def carried(self) -> list[_Path]:
        """Paths of all other variables."""
        return [p for p, v in self.variables.items() if not isinstance(v, nnx.Param)]

    def split(self, values: Mapping[_Path, Array]) -> tuple[PyTree, PyTree]:
        """`(params, model_state)` out of values by path."""
        return _nested(values, self.trained), _nested(values, self.carried)

    def join(self, params: PyTree, model_state: PyTree) -> dict[_Path, Array]:
        """Values by path; the inverse of `split`."""
        return {
            path: functools.reduce(operator.getitem, map(str, path), tree)
            for tree, paths in ((params, self.trained), (model_state, self.carried))
            for path in paths
        }

    def merge(self, values: Mapping[_Path, Array]) -> Any:
        """A new module with these values; its variables are its own."""
        state = nnx.from_flat_state(list(values.items()))
        # Variables must belong to the current trace, or updates in train mode fail
        # inside `grad` and `scan`. Made of arrays they do; `copy` asks for it.
        return nnx.merge(self.graphdef, state, copy=True)

    def restarted(self, values: Mapping[_Path, Array], key: Key) -> dict[_Path, Array]:
        """All random streams anew: keys folded from `key`, counters at zero."""
        streams: dict[_Path, Array] = {}
        for index, (path, variable) in enumerate(self.variables.items()):
            shape = values[path].shape if isinstance(variable, nnx.RngState) else ()
            if isinstance(variable, nnx.RngKey):
                stream = jax.random.fold_in(key, index)
                streams[path] = jax.random.split(stream, shape) if shape else stream
            elif isinstance(variable, nnx.RngCount):
                streams[path] = jnp.zeros(shape, values[path].dtype)
        return streams


def structure(build: Callable[[], nnx.Module]) -> Structure:
    """The structure of what `build` returns; no array is computed."""
    graphdef, state = nnx.split(nnx.eval_shape(build))
    return Structure(graphdef, dict(nnx.to_flat_state(state)))


def values_of(module: nnx.Module) -> dict[_Path, Array]:
    """The current values of all variables, by path."""
    flat = nnx.to_flat_state(nnx.state(module))
    return {path: variable.get_value() for path, variable in flat}


def _nested(values: Mapping[_Path, Array], paths: list[_Path]) -> PyTree:
    return traverse_util.unflatten_dict(
        {tuple(map(str, path)): values[path] for path in paths}
    )
