"""A network as an entry of a larger tree of weights."""

from collections.abc import Mapping, Sequence

from robustjax._checks import InputError
from robustjax.types import Array, Key, Mode, Model, ModelOutput, PyTree


def part(model: Model, name: str) -> Model:
    """The model whose params and state are the entry `name` of larger ones.

    Auxiliary networks of a loss are entries of its `params`: a loss made for this model
    leaves the others alone, and what it hands back holds their state too.

    Args:
      model: Whose weights are one entry.
      name: Its name.

    Raises:
      InputError: at the call, there is no such entry.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from robustjax import models
      >>> model = part(models.from_linen(models.small_cnn()), "reference")
      >>> params, state = model.init(jax.random.key(0), jnp.zeros((1, 8, 8, 1)))
      >>> list(params), list(state)
      (['reference'], ['reference'])
    """

    def init(key: Key, x: Array) -> tuple[PyTree, PyTree]:
        params, state = model.init(key, x)
        return {name: params}, {name: state}

    def apply(
        params: PyTree,
        model_state: PyTree,
        x: Array,
        *,
        mode: Mode = "eval",
        capture: Sequence[str] = (),
        taps: Mapping[str, Array] | None = None,
        key: Key | None = None,
    ) -> ModelOutput:
        for tree, argument in ((params, "params"), (model_state, "model_state")):
            if not isinstance(tree, Mapping) or name not in tree:
                known = list(tree) if isinstance(tree, Mapping) else type(tree).__name__
                raise InputError(f"`{argument}` must have {name!r}, got {known}.")
        out = model.apply(
            *(params[name], model_state[name], x),
            mode=mode,
            capture=capture,
            taps=taps,
            key=key,
        )
        return out._replace(model_state={**model_state, name: out.model_state})

    return Model(init, apply)
