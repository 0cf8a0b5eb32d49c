"""Blocks to threats and attacks, and the suites of attacks that `eval.py` runs."""

import inspect
import runpy
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from robustjax import attacks, objectives, threats
from robustjax._checks import InputError, one_of, positive_int
from robustjax.config import names
from robustjax.config.blocks import Block, call, lookup, make, rest
from robustjax.config.critics import Critics
from robustjax.evaluation import NamedAttack
from robustjax.types import Array, Attack, LogitsFn, Objective, Threat

_LOOKS_INSIDE = ("feature_collision", "towards_other")
_ARRAYS = ("features_fn", "images", "labels")  # which no report shows

Another = Callable[[str], LogitsFn]
"""Working directory of a run to the classifier that it left."""


class Views(Protocol):
    """What may be asked of the classifier under attack: `classifiers.Classifier`."""

    has_head: bool
    has_transform: bool
    random_view: Mapping[str, Any] | None

    @property
    def critics(self) -> Critics | None:
        """The run's critics, if it has any."""
        ...

    @property
    def defense(self) -> str | None:
        """The test-time defense's name, if there is one."""
        ...

    @property
    def chooses(self) -> str | None:
        """The policy by which it chooses among candidates of classes, if it does."""
        ...

    def view(self, changes: Block, /) -> LogitsFn:
        """The classifier with these changes."""
        ...

    def judge(self, changes: Block, /) -> LogitsFn:
        """The same as a judge."""
        ...

    def guides(self) -> dict[str, Any]:
        """What a feature collision needs."""
        ...

    def perturbing(self, attack: Attack, changes: Block, /) -> Attack:
        """The attack on templates and queries together."""
        ...

    def penalised(self, attack: Attack, changes: Block, /) -> Attack:
        """The attack with what critics say beside its objective."""
        ...


def build_threat(block: Block) -> Threat:
    """The threat of a block such as `dict(name="linf", eps=8 / 255)`."""
    return make("threat", names.THREATS, block)


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
    `information`, the weights of what critics say, see `Critics.penalised`; and
    `source`, another run that the attack climbs, a black-box attack on this one.

    Args:
      block: The name and keywords; blocks inside blocks for `attack` and `attacks`.
      another: Finds the models that `sources` of a transfer attack names.
      views: The classifier under attack, which `view` and feature collisions need.

    Raises:
      InputError: a name, a keyword or a value is wrong.
    """
    given = dict(block)
    label = given.pop("label", None)
    view, joint = given.pop("view", None), given.pop("perturb_templates", False)
    judges, critics = given.pop("judges", ()), given.pop("information", None)
    surrogate = given.pop("source", None)
    if views is not None and view is None and not joint:
        view = views.random_view  # other random draws than those that judge
    inside = view is not None or joint or judges or critics is not None
    inside = inside or given.get("name") in _LOOKS_INSIDE
    if views is None and inside:
        raise InputError(
            f"The attack {label or given.get('name')!r} looks into the classifier: "
            "only eval.py runs it."
        )
    radii = _radii(given.pop("radii", ()))
    counts = given.pop("counts", not radii)
    if given.get("name") in _LOOKS_INSIDE and views is not None:
        accepted = inspect.signature(names.ATTACKS[given["name"]]).parameters
        guides = views.guides()
        given |= {name: guides[name] for name in guides if name in accepted}
    repeats = 1
    elsewhere = surrogate is not None or (view is not None and not joint)
    if elsewhere and given.get("name") == "restarts":
        # Each restart is judged: which of them is the worst, the source cannot tell.
        repeats, given = given.get("num_restarts", 0), dict(given["attack"])
        positive_int(num_restarts=repeats)
    attack, parameters = _attack(given, another, penalised=critics is not None)
    norm = parameters["threat"]["name"] if radii and "threat" in parameters else None
    if radii and norm is None:
        raise InputError(
            "`radii` needs a `threat` in the same block, whose norm it is."
        )
    name = label or parameters["name"]
    source = None
    if repeats > 1:
        parameters = {"name": "restarts", "num_restarts": repeats, "attack": parameters}
    if views is not None and view is not None:
        parameters["view"] = _plain(view)
        if not joint:
            source = views.view(view)
    if views is not None and joint:
        attack = views.perturbing(attack, view or {})
        parameters["perturb_templates"] = True
    if views is not None and critics is not None:
        attack = views.penalised(attack, critics)
        parameters["information"] = _plain(critics)
    if surrogate is not None:
        parameters["source"] = surrogate
        source = _found("source", another)(surrogate)
    others = ()
    if views is not None and judges:
        parameters["judges"] = _plain(judges)
        others = tuple(views.judge(judge) for judge in judges)
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
        about |= dict(critics=() if views.critics is None else views.critics.roles)
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
    except Exception as error:  # a suite is a program: anything may go wrong in it
        reason = " ".join(str(error).split())
        raise InputError(f"`suite` {path}: {type(error).__name__}: {reason}") from error
    valid = isinstance(blocks, (list, tuple)) and blocks
    if not valid or not all(isinstance(block, Mapping) for block in blocks):
        raise InputError(
            f"`suite` {path}: get_config() must return a list of attack blocks such as "
            f"dict(name='fgsm', threat=...), got {type(blocks).__name__}."
        )
    return blocks


def _radii(given: Any) -> tuple[float, ...]:
    numbers = isinstance(given, (list, tuple)) and all(
        isinstance(eps, (int, float)) and 0 <= eps < float("inf") for eps in given
    )
    if not numbers:
        raise InputError(f"`radii` must be numbers such as (0.5,), got {given!r}.")
    return tuple(given)


def _attack(
    given: dict[str, Any], another: Another | None, *, penalised: bool = False
) -> tuple[Attack, dict[str, Any]]:
    given = dict(given)
    name = given.pop("name", None)
    factory = lookup("attack", names.ATTACKS, name)
    arguments, shown = dict(given), dict(given)
    for inside in ("attack", "own"):
        if inside in given:
            inner = _attack(given[inside], another, penalised=penalised)
            arguments[inside], shown[inside] = inner
    if "attacks" in given:
        inner = [
            _attack(block, another, penalised=penalised) for block in given["attacks"]
        ]
        arguments["attacks"] = [attack for attack, _ in inner]
        shown["attacks"] = [parameters for _, parameters in inner]
    if "threat" in given:
        block = given["threat"]
        arguments["threat"] = build_threat(block)
        shown["threat"] = _described(names.THREATS[block["name"]], block)
    if "objective" in given:
        arguments["objective"] = _objective(given["objective"])
    if penalised and "attack" not in given:
        own = arguments.get("objective", objectives.cross_entropy)
        arguments["objective"] = attacks.WithPenalty(own)
    if "random_start" in given:
        start = given["random_start"]
        start = {"name": start} if isinstance(start, str) else dict(start)
        shown["random_start"] = start
        arguments["random_start"] = _start(start, arguments.get("threat"))
    if "sources" in given:
        find = _found("sources", another)
        arguments["sources"] = [find(workdir) for workdir in given["sources"]]
    for inside in _ARRAYS:
        shown.pop(inside, None)
    attack = call(f"attack {name}", factory, arguments)
    return attack, {"name": name, **_described(factory, shown)}


def _found(name: str, another: Another | None) -> Another:
    if another is None:
        raise InputError(f"`{name}` is of other runs: only eval.py attacks from them.")
    return another


def _objective(given: Any) -> Objective:
    """By name, or by a block of a name and a scale of the logits."""
    if isinstance(given, str):
        return lookup("objective", names.OBJECTIVES, given)
    fun = lookup("objective", names.OBJECTIVES, given.get("name"))
    return call("objective", objectives.scaled, rest(given), objective=fun)


def _start(block: dict[str, Any], threat: Threat | None):
    name = block.get("name")
    one_of(names.STARTS, random_start=name)
    if name == "none":
        return None
    if name == "gaussian":
        return call("random_start", threats.gaussian_start, rest(block))
    if threat is None:
        raise InputError("`random_start` 'uniform' needs a `threat` in the same block.")
    return threat.sample


def _described(factory: Callable[..., Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """All parameters of a call in JSON-able form, defaults filled in."""
    described = dict(given)
    for name, parameter in inspect.signature(factory).parameters.items():
        if name not in described and parameter.default is not inspect.Parameter.empty:
            described[name] = parameter.default
    return {name: _plain(value) for name, value in described.items()}


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {name: _plain(item) for name, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, float) and value == float("inf"):
        return "inf"  # which JSON does not know
    if not callable(value):
        return value
    known: dict[Any, str] = {v: k for k, v in names.OBJECTIVES.items()}
    own = "uniform" if value is attacks.uniform_start else value.__name__
    return known.get(value, own.strip("_"))
