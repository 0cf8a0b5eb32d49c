"""Blocks to attacks, blocks inside blocks included, and how a report shows them."""

import dataclasses
import inspect
from collections.abc import Callable, Mapping
from typing import Any, Protocol

from robustjax import attacks, objectives, threats
from robustjax._checks import InputError, one_of
from robustjax.config import names
from robustjax.config.blocks import Block, call, check_block, lookup, make, rest
from robustjax.config.critics import Critics
from robustjax.types import Attack, LogitsFn, Objective, Threat

_LOOKS_INSIDE = ("feature_collision", "towards_other")
_ARRAYS = ("features_fn", "images", "labels")  # which no report shows
_ASKED = ("layer", "maps")  # of the classifier, for these
BESIDE = ("information", "pairing")  # an attack's objective


class Inside(Protocol):
    """What attacks that look inside ask of a classifier, or of several jointly."""

    def guides(self, changes: Block, /) -> dict[str, Any]:
        """What a feature collision needs."""
        ...

    def penalised(self, attack: Attack, kind: str, changes: Block, /) -> Attack:
        """The attack with "information" or "pairing" beside its objective."""
        ...


Another = Callable[[str], LogitsFn]
"""Working directory of a run to the classifier that it left.

One with a method `inside(sources) -> Inside` lets attacks look into surrogates too.
"""


class Views(Inside, Protocol):
    """What may be asked of the classifier under attack: `classifiers.Classifier`."""

    has_head: bool
    has_transform: bool
    random_view: Mapping[str, Any] | None
    paired_layers: tuple[str, ...]

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

    def perturbing(self, attack: Attack, changes: Block, /) -> Attack:
        """The attack on templates and queries together."""
        ...


def build_threat(block: Block) -> Threat:
    """The threat of a block such as `dict(name="linf", eps=8 / 255)`."""
    return make("threat", names.THREATS, block)


@dataclasses.dataclass(frozen=True)
class Builder:
    """Makes attacks of blocks.

    Attributes:
      another: Finds other runs, that `sources` name.
      views: The classifier that is climbed, if attacks may look inside.
      penalised: Whether objectives are climbed together with a penalty.
    """

    another: Another | None = None
    views: Inside | None = None
    penalised: bool = False

    def attack(self, block: Block, begin: Any = None) -> tuple[Attack, dict[str, Any]]:
        """An attack and its parameters.

        Args:
          block: Of an attack, or of one of those inside of it.
          begin: A start in place of the block's, and of those of blocks inside.
        """
        check_block("attack", block)
        given = dict(block)
        beside = {k: given.pop(k) for k in BESIDE if k in given}
        if beside:
            return self._beside(given, beside, begin)
        name = given.pop("name", None)
        factory = lookup("attack", names.ATTACKS, name)
        if factory is attacks.warm_start:
            return self._warm_start(given)
        asked = {}
        if name in _LOOKS_INSIDE:
            asked = {k: given.pop(k) for k in _ASKED if k in given}
            given |= self._guides(name, asked)
        arguments, shown = dict(given), given | asked
        elsewhere = self._elsewhere(given)
        for inside, builder in (("attack", elsewhere), ("own", self)):
            if inside in given:
                found = builder.attack(given[inside], begin)
                arguments[inside], shown[inside] = found
                begin = None
        if "attacks" in given:
            inner = [self.attack(one, begin) for one in given["attacks"]]
            begin = None
            arguments["attacks"] = [attack for attack, _ in inner]
            shown["attacks"] = [parameters for _, parameters in inner]
        if "threat" in given:
            own = given["threat"]
            arguments["threat"] = build_threat(own)
            shown["threat"] = _described(names.THREATS[own["name"]], own)
        if "objective" in given:
            arguments["objective"] = _objective(given["objective"])
        if self.penalised and not {"attack", "attacks"} & set(given):
            climbed = arguments.get("objective", objectives.cross_entropy)
            arguments["objective"] = attacks.WithPenalty(climbed)
        if "random_start" in given:
            start = given["random_start"]
            start = {"name": start} if isinstance(start, str) else dict(start)
            shown["random_start"] = start
            arguments["random_start"] = _start(start, arguments.get("threat"))
        if begin is not None:
            arguments["random_start"] = begin
        if "sources" in given:
            arguments["sources"] = [
                self.found("sources", workdir) for workdir in given["sources"]
            ]
        for inside in _ARRAYS:
            shown.pop(inside, None)
        attack = call(f"attack {name}", factory, arguments)
        return attack, {"name": name, **_described(factory, shown)}

    def found(self, name: str, workdir: Any) -> LogitsFn:
        """What another run left; several of them, jointly.

        Raises:
          InputError: this is no place to attack from other runs.
        """
        if self.another is None:
            raise InputError(
                f"`{name}` is of other runs: only eval.py attacks from them."
            )
        if isinstance(workdir, (list, tuple)):
            return attacks.ensemble([self.another(one) for one in workdir])
        return self.another(workdir)

    def _beside(
        self, given: Block, beside: dict[str, Block], begin: Any
    ) -> tuple[Attack, dict[str, Any]]:
        if self.views is None:
            raise InputError(
                f"The attack {given.get('name')!r} looks into the classifier: only "
                "eval.py runs it."
            )
        if len(beside) > 1 or self.penalised:
            raise InputError("An attack takes one of `information` and `pairing`.")
        inner = dataclasses.replace(self, penalised=True)
        attack, shown = inner.attack(given, begin)
        ((kind, changes),) = beside.items()
        return self.views.penalised(attack, kind, changes), shown | plain(beside)

    def _elsewhere(self, given: Block) -> "Builder":
        """Of what runs on `sources`, where there is one of them, maybe of several."""
        sources, look = (
            given.get("sources") or (),
            getattr(self.another, "inside", None),
        )
        if not sources:
            return self
        views = None
        if look is not None and len(sources) == 1:
            several = isinstance(sources[0], (list, tuple))
            views = look(tuple(sources[0]) if several else (sources[0],))
        return dataclasses.replace(self, views=views)

    def _warm_start(self, given: Block) -> tuple[Attack, dict[str, Any]]:
        if not {"start", "attack"} <= set(given) <= {"start", "attack", "jitter"}:
            raise InputError(
                "The block of warm_start must have the blocks `start` and `attack`, "
                f"and may have `jitter`, a share of the radius; got {sorted(given)}."
            )
        plain = dataclasses.replace(self, penalised=False)
        begun, start = plain.attack(given["start"])
        then, shown = given["attack"], self.attack(given["attack"])[1]
        noise, jitter = given.get("jitter", 0.0), None
        if noise:
            jitter = attacks.around(build_threat(_threat_of(then)), noise)
        attack = attacks.warm_start(
            begun, lambda start: self.attack(then, start)[0], jitter=jitter
        )
        own = dict(name="warm_start", start=start, attack=shown, jitter=noise)
        return attack, own

    def _guides(self, name: str, asked: Block) -> dict[str, Any]:
        if self.views is None:
            raise InputError(
                f"The attack {name!r} looks into the classifier: only eval.py runs it."
            )
        accepted = inspect.signature(names.ATTACKS[name]).parameters
        guides = self.views.guides(asked)
        return {name: guides[name] for name in guides if name in accepted}


def _threat_of(block: Block) -> Block:
    """The threat of a block, or of the first inside of it."""
    if "threat" in block:
        return block["threat"]
    inside = block.get("attack") or next(iter(block.get("attacks") or ()), None)
    if inside is None:
        raise InputError("`jitter` needs a `threat` in the block `attack`.")
    return _threat_of(inside)


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
    if set(block) - {"name", "clean"}:
        raise InputError(
            "`random_start` 'uniform' may have `clean`, the share of images that start "
            f"where they are, got {sorted(block)}."
        )
    if "clean" in block:
        return threats.sometimes_clean(threat.sample, block["clean"])
    return threat.sample


def _described(factory: Callable[..., Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """All parameters of a call in JSON-able form, defaults filled in."""
    described = dict(given)
    for name, parameter in inspect.signature(factory).parameters.items():
        if name not in described and parameter.default is not inspect.Parameter.empty:
            described[name] = parameter.default
    return {name: plain(value) for name, value in described.items()}


def plain(value: Any) -> Any:
    """A parameter as reports show it: functions by their names."""
    if isinstance(value, Mapping):
        return {name: plain(item) for name, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if isinstance(value, float) and value == float("inf"):
        return "inf"  # which JSON does not know
    if not callable(value):
        return value
    known: dict[Any, str] = {v: k for k, v in names.OBJECTIVES.items()}
    own = "uniform" if value is attacks.uniform_start else value.__name__
    return known.get(value, own.strip("_"))
