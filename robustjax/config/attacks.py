"""Blocks to threats and attacks, and the suites of attacks that `eval.py` runs."""

import inspect
import runpy
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from robustjax import attacks
from robustjax._checks import InputError, one_of, positive_int
from robustjax.config import names
from robustjax.config.attack_blocks import (
    BESIDE,
    Another,
    Builder,
    Views,
    build_threat,
    plain,
)
from robustjax.config.blocks import Block
from robustjax.evaluation import NamedAttack
from robustjax.types import Array, Attack


def build_attack(
    block: Block, another: Another | None = None, views: Views | None = None
) -> NamedAttack:
    """The attack of a block, with all its parameters, defaults included.

    Beside the attack's own keywords a block may have `label`, its name in the report;
    `radii`, which makes it a minimum-norm attack without a limit, judged at these radii
    and not counted in the worst case; `counts=False` for one that is held to no radius
    of the threat model; `view`, what changes in the classifier that it climbs;
    `perturb_templates=True`, which moves the templates of that view too; `judges`,
    views that must be right beside the classifier, e.g. of other templates;
    `information`, the weights of what critics say, see `Critics.penalised`; `pairing`,
    those of `attacks.PairingPenalty`; `layer` and `maps` of a feature collision;
    `source`, another run that the attack climbs (or several, jointly), an attack that
    does not see this one; and `access`, "gray" or "black", for what the attacker knows.

    Args:
      block: The name and keywords; blocks inside blocks for `attack` and `attacks`.
      another: Finds the models that `sources` of a transfer attack names.
      views: The classifier under attack, which `view` and feature collisions need.

    Raises:
      InputError: a name, a keyword or a value is wrong.
    """
    given = dict(block)
    label, access = given.pop("label", None), given.pop("access", None)
    view, joint = given.pop("view", None), given.pop("perturb_templates", False)
    judges, surrogate = given.pop("judges", ()), given.pop("source", None)
    beside = {k: given.pop(k) for k in BESIDE if k in given}
    if access is not None:
        one_of(("white", "gray", "black"), access=access)
    if len(beside) > 1:
        raise InputError("An attack takes one of `information` and `pairing`.")
    if views is not None and view is None and not joint:
        view = views.random_view  # other random draws than those that judge
    if views is None and (view is not None or joint or judges or beside):
        raise InputError(
            f"The attack {label or given.get('name')!r} looks into the classifier: "
            "only eval.py runs it."
        )
    radii = _radii(given.pop("radii", ()))
    counts = given.pop("counts", not radii)
    repeats = 1
    elsewhere = surrogate is not None or (view is not None and not joint)
    if elsewhere and given.get("name") == "restarts":
        # Each restart is judged: which of them is the worst, the source cannot tell.
        repeats, given = given.get("num_restarts", 0), dict(given["attack"])
        positive_int(num_restarts=repeats)
    builder = Builder(another, views, penalised=bool(beside))
    attack, parameters = builder.attack(given)
    norm = parameters["threat"]["name"] if radii and "threat" in parameters else None
    if radii and norm is None:
        raise InputError(
            "`radii` needs a `threat` in the same block, whose norm it is."
        )
    name = label or parameters["name"]
    if repeats > 1:
        parameters = {"name": "restarts", "num_restarts": repeats, "attack": parameters}
    marks = dict(view=view, source=surrogate, access=access, **beside)
    marks |= dict(judges=judges or None, perturb_templates=joint or None)
    parameters |= {k: plain(v) for k, v in marks.items() if v is not None}
    source, others = None, ()
    if views is not None:
        if view is not None and not joint:
            source = views.view(view)
        if joint:
            attack = views.perturbing(attack, view or {})
        for kind, changes in beside.items():
            attack = views.penalised(attack, kind, changes)
        others = tuple(views.judge(judge) for judge in judges)
    if surrogate is not None:
        source = builder.found("source", surrogate)
    return NamedAttack(
        *(name, attack, parameters, counts, norm, radii),
        source=source,
        judges=others,
        repeats=repeats,
    )


def build_suite(
    suite: str,
    evaluation: Block,
    another: Another | None = None,
    views: Views | None = None,
) -> list[NamedAttack]:
    """The attacks of a suite: by name, or the path of a Python file.

    Such a file has a function `get_config()`, or `get_config(evaluation)`, that returns
    the attacks' blocks as a list.

    Args:
      suite: A name in `names.SUITES`, or a path that ends in ".py".
      evaluation: `config.evaluation`: threat, step_size, num_steps, num_restarts.
      another: As in `build_attack`.
      views: As in `build_attack`.

    Raises:
      InputError: there is no such suite, or one of its blocks is wrong.
    """
    check_suite(suite)
    if views is not None:
        about = dict(has_head=views.has_head, has_transform=views.has_transform)
        about |= dict(defense=views.defense, chooses=views.chooses)
        about |= dict(paired_layers=views.paired_layers)
        about |= dict(inside=getattr(another, "inside", None))
        critics = views.critics
        about |= dict(critics=() if critics is None else critics.roles)
        about |= dict(has_reference=critics is not None and critics.has_reference)
        evaluation = {**evaluation, **about}
    if suite.endswith(".py"):
        blocks = _own_suite(Path(suite), evaluation)
    else:
        blocks = names.SUITES[suite](evaluation)
    return [build_attack(block, another, views) for block in blocks]


def check_suite(suite: str) -> None:
    """Raises unless there is such a suite: what can be said before anything is loaded.

    Raises:
      InputError: there is none.
    """
    if suite.endswith(".py"):
        if not Path(suite).is_file():
            raise InputError(f"`suite` {suite} does not exist.")
    elif suite not in names.SUITES:
        raise InputError(
            f"`suite` must be one of {', '.join(names.SUITES)}, or the path of a "
            f".py file with `get_config()`; got {suite!r}."
        )


def curve_attack(block: Block) -> Callable[[Array], Attack]:
    """Radius (traced) to the PGD attack of `config.evaluation`, steps in proportion."""
    threat = build_threat(block["threat"])
    if threat.eps == 0:
        raise InputError("`--curve` needs `eps` above 0, to which the steps relate.")
    share = block["step_size"] / threat.eps

    def attack_at(eps: Array) -> Attack:
        return attacks.pgd(
            threat.with_eps(eps), step_size=eps * share, num_steps=block["num_steps"]
        )

    return attack_at


def _own_suite(path: Path, evaluation: Block) -> Sequence[Block]:
    try:
        content = runpy.run_path(str(path))
        get_config: Any = content.get("get_config")
        if not callable(get_config):
            raise InputError(f"`suite` {path} has no function get_config().")
        takes_evaluation = bool(inspect.signature(get_config).parameters)
        blocks: Any = get_config(evaluation) if takes_evaluation else get_config()
    except InputError:
        raise
    except (Exception, SystemExit) as error:  # a program: anything may go wrong in it
        reason = " ".join(str(error).split())
        raise InputError(f"`suite` {path}: {type(error).__name__}: {reason}") from error
    valid = isinstance(blocks, (list, tuple)) and blocks
    if not valid or not all(isinstance(block, Mapping) for block in blocks):
        got = repr(blocks)
        raise InputError(
            f"`suite` {path}: get_config() must return a list of attack blocks such as "
            f"dict(name='fgsm', threat=...), got "
            f"{got if len(got) <= 60 else type(blocks).__name__}."
        )
    return blocks


def _radii(given: Any) -> tuple[float, ...]:
    numbers = isinstance(given, (list, tuple)) and all(
        isinstance(eps, (int, float)) and 0 <= eps < float("inf") for eps in given
    )
    if not numbers:
        raise InputError(f"`radii` must be numbers such as (0.5,), got {given!r}.")
    return tuple(given)
