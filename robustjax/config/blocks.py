"""Blocks of a config: a name, looked up in a table, and the keywords to call it."""

import inspect
from collections.abc import Callable, Mapping
from typing import Any

from ml_collections import ConfigDict

from robustjax._checks import InputError, one_of

Block = Mapping[str, Any]


def make(kind: str, table: Mapping[str, Callable], block: Block, **fixed: Any) -> Any:
    """What the block's name stands for, called with the rest of the block."""
    check_block(kind, block)
    return call(kind, lookup(kind, table, block.get("name")), rest(block), **fixed)


def check_block(kind: str, block: object) -> None:
    """Raises unless it is a block."""
    if not isinstance(block, (Mapping, ConfigDict)):
        raise InputError(
            f"`{kind}` must be a block such as dict(name=...), got {block!r}."
        )


def lookup(kind: str, table: Mapping[str, Any], name: object) -> Any:
    """The entry of a table; another name is the user's mistake."""
    one_of(table, **{f"{kind} name": name})
    return table[name]  # pyright: ignore[reportArgumentType]


def rest(block: Block) -> dict[str, Any]:
    """A block without its name."""
    return {k: v for k, v in dict(block).items() if k != "name"}


def call(kind: str, factory: Callable[..., Any], given: Block, **fixed: Any) -> Any:
    """The factory's result; a keyword that it does not have is the user's mistake."""
    arguments = {**dict(given), **fixed}
    signature = inspect.signature(factory)
    try:
        signature.bind(**arguments)
    except TypeError as error:
        accepted = ", ".join(name for name in signature.parameters if name not in fixed)
        raise InputError(
            f"The block of {kind} does not fit: {error}. It takes: {accepted}."
        ) from error
    return factory(**arguments)
