"""What `eval.py` changes in the config of a run before it judges it."""

import ast
from collections.abc import Collection, Sequence
from typing import Any

from ml_collections import ConfigDict

from robustjax._checks import InputError

# What some suite or section reads of `config.evaluation`, beside what is in it anyway.
_EVALUATION = (
    *("layer", "masks", "reference", "reference_layer", "beside", "gray", "black"),
    *("surrogate", "adaptive_restarts", "paper_restarts", "grid_restarts"),
    *("best_restarts", "wnll_paper", "draws", "bank", "influence_maps"),
)


def override(
    config: Any,
    head: str | None,
    transform: str | None,
    changes: Sequence[str],
    *,
    any_evaluation: bool = False,
) -> None:
    """Changes a config in place.

    Args:
      config: Of a run.
      head: Another head by name, with its defaults; None keeps the block as it is, and
        so does the name that it has.
      transform: The same for the transform; "none" takes it away.
      changes: "block.name=value" each, values as in Python, else words.
      any_evaluation: Takes any name in `evaluation`, which a suite of one's own may
        read.

    Raises:
      InputError: a change does not fit.

    Example:
      >>> config = ConfigDict({"evaluation": {"batch_size": 512}})
      >>> override(config, "wnll", None,
      ...     ["head.num_templates=500", "head.similarity.kernel=quartic"])
      >>> config.head.num_templates, config.head.similarity.kernel
      (500, 'quartic')
    """
    config.unlock()
    for block, name in (("head", head), ("transform", transform)):
        if name is not None and (config.get(block) or {}).get("name") != name:
            config[block] = ConfigDict({} if name == "none" else {"name": name})
    for change in changes:
        path, _, text = change.partition("=")
        first, *rest = path.split(".")
        if not text or not rest or not isinstance(config.get(first), ConfigDict):
            raise InputError(
                "`--set` must be block.name=value of a block that is there, as in "
                f"head.num_templates=500; got {change!r}."
            )
        try:
            value = ast.literal_eval(text)
        except (ValueError, SyntaxError):
            value = text
        if first == "data" or (first == "evaluation" and not any_evaluation):
            more = _EVALUATION if first == "evaluation" else ()
            _check_known(first, rest[0], {*config[first], *more})
        if (first, rest[0]) == ("evaluation", "threat"):
            raise InputError(
                f"`--set` {path} leaves the step size behind: take --attack.eps, "
                "which scales it, and --attack.norm."
            )
        inside = config[first]
        for part in rest[:-1]:
            if not isinstance(inside.get(part), ConfigDict):
                inside[part] = ConfigDict()
            inside = inside[part]
        with inside.ignore_type():  # a weight may be a name or a number
            inside[rest[-1]] = value


def _check_known(block: str, name: str, known: Collection[str]) -> None:
    if name not in known:
        raise InputError(
            f"`--set` knows no {block}.{name}, only {', '.join(sorted(known))}."
        )


def evaluation_with(
    evaluation: Any,
    *,
    norm: str | None = None,
    eps: float | None = None,
    **others: Any,
) -> dict[str, Any]:
    """`config.evaluation` with what is not None in place of its own.

    Args:
      evaluation: The block.
      norm: Of the threat.
      eps: Of the threat; step_size scales with it.
      **others: Entries of the block.

    Example:
      >>> threat = {"name": "linf", "eps": 0.1}
      >>> block = ConfigDict({"threat": threat, "step_size": 0.05})
      >>> evaluation_with(block, eps=0.2)
      {'step_size': 0.1, 'threat': {'eps': 0.2, 'name': 'linf'}}
    """
    result = evaluation.to_dict()
    if norm is not None:
        result["threat"]["name"] = norm
    if eps is not None:
        old = result["threat"]["eps"]
        result["threat"]["eps"] = eps
        result["step_size"] *= eps / old if old else 1.0
    return result | {k: v for k, v in others.items() if v is not None}
