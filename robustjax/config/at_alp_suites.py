"""The suites of AT+ALP: its paper's radii, transfer, and somebody who knows it."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from robustjax._checks import InputError
from robustjax.config.blocks import Block
from robustjax.config.rows import Blocks, ball, best, restarts, whole_autoattack

_MODEL_FREE = ("grey", "uniform_noise", "sign_noise")
_WEIGHTS = (-10.0, -1.0, -0.1, 0.1, 1.0, 10.0)


def at_alp_paper(evaluation: Block) -> Blocks:
    """White-box PGD of 10 to 200 steps at 0.25 and 0.5, and what needs no model.

    At 0.5 the grey image is legal for every input, so that accuracy above the largest
    class prior only measures how an attack fails. The worst case is that at 0.5. Of PGD
    `evaluation.paper_restarts` (10; the paper's number is not known) restarts. With
    `evaluation.gray` and `evaluation.black`, directories of other runs, the same of 200
    steps from these follows.
    """
    blocks: Blocks = []
    count = evaluation.get("paper_restarts", 10)
    for eps in (0.25, 0.5):
        threat = ball("linf", eps)
        counts = eps == 0.5
        rows: Blocks = [
            restarts(
                dict(
                    name="pgd",
                    threat=threat,
                    num_steps=steps,
                    step_size=eps / 8 if steps == 10 else eps / 32,
                ),
                count,
                at_once=1,
                label=f"PGD-{steps} x {count} at {eps}",
            )
            for steps in (10, 20, 50, 100, 200)
        ]
        last = {k: v for k, v in rows[-1].items() if k != "label"}
        rows += _transferred(evaluation, f"PGD-200 x {count} at {eps}", last)
        rows += [
            dict(name=name, threat=threat, label=f"{name} at {eps}")
            for name in _MODEL_FREE
        ]
        blocks += [row | dict(counts=counts) for row in rows]
    return blocks


def at_alp_transfer(evaluation: Block) -> Blocks:
    """Attackers without the weights, beside one with them.

    `evaluation.gray` are runs of the same network, `evaluation.black` others, names of
    directories with commas between them. Every attack runs on each of them, in a row of
    its own: single steps, PGD of 50 on the cross-entropy and on the margin, momentum,
    input diversity; the iterated ones on all of an access jointly too. Per image the
    worst counts. White-box accuracy above what these leave has failed, and `eval.py`
    says so.
    """
    if not _runs(evaluation, "gray") and not _runs(evaluation, "black"):
        raise InputError(
            "The suite at_alp_transfer needs other runs: --set=evaluation.gray=DIR,DIR "
            "or --set=evaluation.black=DIR."
        )
    rows: Blocks = [
        best(evaluation, "cross-entropy", num_steps=200),
        best(evaluation, "margin", num_steps=200, objective="margin"),
        dict(name="apgd_targeted", threat=evaluation["threat"], label="APGD-T"),
    ]
    for label, attack in _transferable(evaluation).items():
        rows += _transferred(evaluation, label, attack)
    for access in ("gray", "black"):
        runs = _runs(evaluation, access)
        if len(runs) > 1:
            joint: dict[str, Any] = dict(source=list(runs), access=access)
            label = f"{access}, all jointly"
            rows.append(best(evaluation, label, count=1, **joint))
            rows += [
                dict(_transferable(evaluation)[name], label=f"{label}, {name}", **joint)
                for name in ("margin PGD-50", "momentum", "input diversity")
            ]
    return rows


def at_alp_adaptive(evaluation: Block) -> Blocks:
    """The attacks A1 to A6 of somebody who knows what the maps and logits were paired.

    200 steps, plain and with momentum 1, from `evaluation.adaptive_restarts` (10)
    starts each, on

    - A1: cross-entropy and margin (and, without momentum, DLR and the cross-entropy of
      logits times 0.01, 0.1, 10 and 100);
    - A2, A3: the margin plus a weight of -10, -1, -0.1, 0.1, 1 or 10 times the distance
      of attention maps, as the run compares them, or of logits; and logits driven away
      for 100 steps, then 100 of the margin;
    - A4: features and attention map of the last layer, of images of other classes: the
      worst of 10 such images, each from one start;
    - A5: the margin from where another attack ended, restarts a tenth of the radius
      around it: grey, A4's features, and the worst of all examples of
      `at_alp_transfer` from `evaluation.gray` and `evaluation.black`;
    - A6: the same on the runs of `evaluation.gray`, climbed jointly, and what looks at
      logits alone on those of `evaluation.black`; what the judged model minds most
      counts. A row for each of A1 to A5; A2 to A5 with momentum only, which transfers
      better, A1 with and without.

    A run without layers to compare (see `evaluation.layer`) has no A2 and A4; runs of
    `evaluation.gray` compare those that they pair, else those of the judged run, and
    stay out of these rows where they have none of them, as their labels say. Per image
    some 43 runs of 200 steps by the restarts, and with `evaluation.gray` half as many
    again for each of its runs. All wrong classes, AutoAttack, queries, and what needs
    no model stand beside.
    """
    threat = evaluation["threat"]
    layers = evaluation.get("paired_layers") or ()
    know = _Knows(
        evaluation,
        count=evaluation.get("adaptive_restarts", 10),
        layers=tuple(layers),
        layer=evaluation.get("layer") or (layers[-1] if layers else None),
    )
    rows = [*_objectives(know), *_paired(know)]
    rows += [
        _any(know.collision(maps), know.collision(maps, momentum=1.0))
        | dict(label=f"A4 {label}")
        for maps, label in ((False, "features"), (True, "attention maps"))
        if know.layer
    ]
    starts = know.starts()
    if _runs(evaluation, "gray") or _runs(evaluation, "black"):
        starts["transfer"] = _best_transferred(evaluation)
    rows += [
        know.from_start(start, know.margin(), know.margin(momentum=True))
        | dict(label=f"A5 from {label}")
        for label, start in starts.items()
    ]
    for access, at in (("gray", know), ("black", know.of_logits())):
        if _runs(evaluation, access):
            rows += _elsewhere(at, access)
    every = dict(name="pgd_targeted", choice="every", threat=threat, num_steps=100)
    every |= dict(num_targets=None, step_size=evaluation["step_size"])
    return [
        *rows,
        every | dict(label="every wrong class, PGD-100"),
        whole_autoattack(evaluation),
        dict(name="square", threat=threat, num_queries=5000, label="Square, 5,000"),
        *(dict(name=name, threat=threat, label=name) for name in _MODEL_FREE),
    ]


@dataclasses.dataclass(frozen=True)
class _Knows:
    """Blocks of attacks on maps and logits.

    Attributes:
      evaluation: `config.evaluation`.
      count: Restarts.
      layers: Whose maps are compared.
      layer: Whose features collide; None for no such attack.
    """

    evaluation: Block
    count: int
    layers: tuple[str, ...]
    layer: str | None

    @property
    def size(self) -> dict[str, Any]:
        """Radius and step."""
        return {name: self.evaluation[name] for name in ("threat", "step_size")}

    def of_logits(self) -> "_Knows":
        """The same without layers."""
        return dataclasses.replace(self, layers=(), layer=None)

    def margin(self, **options: Any) -> dict[str, Any]:
        """Of the margin."""
        return self.climb("margin", **options)

    def climb(
        self,
        objective: Any,
        *,
        momentum: bool = False,
        num_steps: int = 200,
        **options: Any,
    ) -> dict[str, Any]:
        """One run of PGD, or with momentum, from a random start."""
        given = dict(num_steps=num_steps, iterate="best", random_start="uniform")
        name = "mi_fgsm" if momentum else "pgd"
        return self.size | given | dict(name=name, objective=objective) | options

    def again(self, attack: dict[str, Any]) -> dict[str, Any]:
        """The worst of the restarts."""
        return restarts(attack, self.count, at_once=1)

    def collision(self, maps: bool, *, momentum: float = 0.0) -> dict[str, Any]:
        """A4: features, or attention maps, of 10 images of other classes."""
        block = dict(name="feature_collision", num_steps=200, num_targets=10)
        block |= dict(layer=self.layer, maps=maps, momentum=momentum)
        return self.size | block | dict(random_start="uniform")

    def logits_first(self, *attacks: dict[str, Any]) -> dict[str, Any]:
        """A3: half of the steps away from the clean logits, half of them up."""
        start = dict(name="drift", num_steps=100, **self.size)
        return dict(name="warm_start", start=start, attack=_any(*attacks))

    def starts(self) -> dict[str, dict[str, Any]]:
        """A5: where to start, as far as one model leads there."""
        found = {"grey": dict(name="grey", threat=self.evaluation["threat"])}
        return found | ({"A4": self.collision(False)} if self.layer else {})

    def from_start(
        self, start: Mapping[str, Any], *attacks: dict[str, Any]
    ) -> dict[str, Any]:
        """A5: attacks from there, which is looked for once."""
        then = self.again(_any(*attacks))
        return dict(name="warm_start", start=dict(start), attack=then, jitter=0.1)

    def pairings(self) -> list[tuple[str, dict[str, float]]]:
        """A2 and A3: a label and the weight of each penalty."""
        names = ("attention", "logits") if self.layers else ("logits",)
        return [(name, {name: weight}) for name in names for weight in _WEIGHTS]


def _objectives(know: _Knows) -> Blocks:
    """A1."""
    about = f"200 x {know.count}"
    objectives = {"cross-entropy": "cross_entropy", "margin": "margin"}
    rows = [
        know.again(know.climb(objective)) | dict(label=f"A1 {name}, PGD-{about}")
        for name, objective in {**objectives, "DLR": "dlr"}.items()
    ]
    rows += [
        know.again(know.climb(objective, momentum=True))
        | dict(label=f"A1 {name}, momentum, {about}")
        for name, objective in objectives.items()
    ]
    return rows + [
        know.again(know.climb(dict(name="cross_entropy", scale=scale)))
        | dict(label=f"A1 logits x {scale:g}, PGD-{about}")
        for scale in (0.01, 0.1, 10.0, 100.0)
    ]


def _paired(know: _Knows) -> Blocks:
    """A2 and A3."""
    both = [know.again(know.margin(momentum=momentum)) for momentum in (False, True)]
    numbers = {"attention": "A2 attention", "logits": "A3 logits"}
    rows = [
        _any(*both) | dict(pairing=weights, label=f"{numbers[name]} {weights[name]:+g}")
        for name, weights in know.pairings()
    ]
    half = [know.margin(num_steps=100, momentum=momentum) for momentum in (False, True)]
    first = know.again(know.logits_first(*half)) | dict(label="A3 logits first")
    return [*rows, first]


def _elsewhere(know: _Knows, access: str) -> Blocks:
    """A6: A1 to A5 of the runs of an access, a row for each."""
    runs = list(_runs(know.evaluation, access))
    look = know.evaluation.get("inside")
    paired, shown = runs, runs  # those with layers to compare, and with that of A4
    if look is not None and know.layers:
        paired = [run for run in runs if look((run,)).compares()]
    if look is not None and know.layer:
        shown = [run for run in runs if look((run,)).shows(know.layer)]

    def over(attack: dict[str, Any], chosen: list[str] = runs) -> dict[str, Any]:
        """On all of them jointly; the judged model is asked about what comes of it."""
        return dict(name="transfer", attack=attack, sources=[chosen])

    def again(attack: dict[str, Any], chosen: list[str] = runs) -> dict[str, Any]:
        return know.again(over(attack, chosen))

    climb = know.margin(momentum=True)
    rows = {
        "A1": [
            again(know.climb(objective, momentum=momentum))
            for objective in ("cross_entropy", "margin")
            for momentum in (False, True)
        ]
    }
    for name, number, chosen in (("attention", "A2", paired), ("logits", "A3", runs)):
        rows[number] = [
            again(climb | dict(pairing=weights), chosen)
            for found, weights in know.pairings()
            if found == name and chosen
        ]
    rows["A3"].append(
        again(know.logits_first(know.margin(num_steps=100, momentum=True)))
    )
    if shown:
        rows["A4"] = [
            over(know.collision(maps, momentum=1.0), shown)
            for maps in (False, True)
            if know.layer
        ]
    rows["A5"] = [
        over(know.from_start(start, climb), shown if name == "A4" else runs)
        for name, start in know.starts().items()
        if name != "A4" or shown
    ]
    used = {"A2": paired, "A4": shown}
    return [
        _any(*attacks)
        | dict(access=access, label=f"A6 {access}, {number}" + _left_out(runs, chosen))
        for number, attacks in rows.items()
        if (chosen := used.get(number, runs)) and attacks
    ]


def _left_out(runs: list[str], chosen: list[str]) -> str:
    others = [run for run in runs if run not in chosen]
    return f" without {', '.join(others)}" if others else ""


def _any(*attacks: dict[str, Any]) -> dict[str, Any]:
    """Whatever of these breaks an image."""
    if len(attacks) == 1:
        return attacks[0]
    return dict(name="worst_case", attacks=list(attacks))


def _best_transferred(evaluation: Block) -> dict[str, Any]:
    """The most adversarial of all transferred examples."""
    runs = [_runs(evaluation, access) for access in ("gray", "black")]
    sources: list[Any] = [run for group in runs for run in group]
    sources += [list(group) for group in runs if len(group) > 1]
    attacks = [
        dict(name="transfer", attack=attack, sources=sources)
        for attack in _transferable(evaluation).values()
    ]
    return dict(name="strongest", attacks=attacks)


def _transferable(evaluation: Block) -> dict[str, dict[str, Any]]:
    """Attacks that are run on other models, by their labels."""
    threat, step = evaluation["threat"], evaluation["step_size"]
    iterated: dict[str, Any] = dict(threat=threat, num_steps=50, step_size=step)
    return {
        "PGD-50": dict(name="pgd", **iterated),
        "margin PGD-50": dict(name="pgd", objective="margin", **iterated),
        "momentum": dict(name="mi_fgsm", threat=threat),
        "input diversity": dict(name="di_fgsm", threat=threat),
        "FGSM": dict(name="fgsm", threat=threat),
        "R+FGSM": dict(name="r_fgsm", threat=threat),
        "Step-LL": dict(name="step_ll", threat=threat),
        "R+Step-LL": dict(name="step_ll", threat=threat, random_step=threat["eps"] / 2),
    }


def _runs(evaluation: Block, access: str) -> tuple[str, ...]:
    given = evaluation.get(access) or ()
    if isinstance(given, str):
        given = given.split(",")
    return tuple(str(run) for run in given)


def _transferred(evaluation: Block, label: str, attack: Mapping[str, Any]) -> Blocks:
    """A row for each run of each access."""
    return [
        dict(attack) | dict(source=run, access=access, label=f"{access} {run}, {label}")
        for access in ("gray", "black")
        for run in _runs(evaluation, access)
    ]
