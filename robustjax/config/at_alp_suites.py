"""The suites of AT+ALP: its paper's radii, transfer, and somebody who knows it."""

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
    class prior only measures how an attack fails. The worst case is that at 0.5. With
    `evaluation.gray` and `evaluation.black`, directories of other runs, the same of 200
    steps from these follows.
    """
    blocks: Blocks = []
    for eps in (0.25, 0.5):
        threat = ball("linf", eps)
        counts = eps == 0.5
        rows: Blocks = [
            dict(
                name="pgd",
                threat=threat,
                num_steps=steps,
                step_size=eps / 8 if steps == 10 else eps / 32,
                label=f"PGD-{steps} at {eps}",
            )
            for steps in (10, 20, 50, 100, 200)
        ]
        last = {k: v for k, v in rows[-1].items() if k != "label"}
        rows += _transferred(evaluation, f"PGD-200 at {eps}", last)
        rows += [
            dict(name=name, threat=threat, label=f"{name} at {eps}")
            for name in _MODEL_FREE
        ]
        blocks += [row | dict(counts=counts) for row in rows]
    return blocks


def at_alp_transfer(evaluation: Block) -> Blocks:
    """Attackers without the weights, beside one with them.

    `evaluation.gray` are runs of the same network, `evaluation.black` others, names of
    directories with commas between them. Every attack runs on each of them; per image
    the one that the judged model minds most counts. A white-box row that leaves more
    than these has failed, and `eval.py` says so.
    """
    threat, step = evaluation["threat"], evaluation["step_size"]
    iterated: dict[str, Any] = dict(threat=threat, num_steps=50, step_size=step)
    attacks = {
        "PGD-50": dict(name="pgd", **iterated),
        "momentum": dict(name="mi_fgsm", threat=threat),
        "input diversity": dict(name="di_fgsm", threat=threat),
        "FGSM": dict(name="fgsm", threat=threat),
        "R+FGSM": dict(name="r_fgsm", threat=threat),
        "Step-LL": dict(name="step_ll", threat=threat),
        "R+Step-LL": dict(name="step_ll", threat=threat, random_step=threat["eps"] / 2),
    }
    if not _runs(evaluation, "gray") and not _runs(evaluation, "black"):
        raise InputError(
            "The suite at_alp_transfer needs other runs: --set=evaluation.gray=DIR,DIR "
            "or --set=evaluation.black=DIR."
        )
    rows: Blocks = [
        best(evaluation, "cross-entropy", num_steps=200),
        best(evaluation, "margin", num_steps=200, objective="margin"),
        dict(name="apgd_targeted", threat=threat, label="APGD-T"),
    ]
    for label, attack in attacks.items():
        rows += _transferred(evaluation, label, attack)
    for access in ("gray", "black"):
        runs = _runs(evaluation, access)
        if len(runs) > 1:
            joint: dict[str, Any] = dict(source=list(runs), access=access)
            label = f"{access}, all jointly"
            rows.append(best(evaluation, label, count=1, **joint))
    return rows


def at_alp_adaptive(evaluation: Block) -> Blocks:
    """The attacks A1 to A6 of somebody who knows what the maps and logits were paired.

    200 steps, `evaluation.adaptive_restarts` of them (10): objectives; these with the
    distances of attention maps or logits raised and lowered; logits driven away first;
    features and maps of other classes; starts from grey and from those; with
    `evaluation.gray`, from surrogates. All wrong classes, AutoAttack, queries beside.
    """
    threat, step = evaluation["threat"], evaluation["step_size"]
    count = evaluation.get("adaptive_restarts", 10)
    layers = evaluation.get("paired_layers") or ()
    layer = evaluation.get("layer") or (layers[-1] if layers else None)
    size: dict[str, Any] = dict(threat=threat, step_size=step)
    collision: dict[str, Any] = dict(name="feature_collision", num_steps=200, **size)
    collision |= dict(num_targets=10, random_start="uniform")

    def climb(label: str, objective: Any = "cross_entropy", **options: Any) -> Any:
        options = dict(count=count, num_steps=200) | options
        return best(evaluation, label, objective=objective, **options)

    def from_start(label: str, start: Mapping[str, Any]) -> dict[str, Any]:
        attack = dict(name="pgd", num_steps=200, iterate="best", objective="margin")
        return dict(name="warm_start", start=start, attack=attack | size, label=label)

    half = dict(name="drift", num_steps=100, **size)
    rows: Blocks = [
        climb("A1 cross-entropy"),
        climb("A1 margin", "margin"),
        climb("A1 DLR", "dlr"),
        restarts(
            dict(name="mi_fgsm", num_steps=200, random_start="uniform", **size)
            | dict(iterate="best"),
            count,
            at_once=1,
            label=f"A1 momentum, 200 x {count}",
        ),
    ]
    rows += [
        climb(
            f"A1 logits x {scale:g}", dict(name="cross_entropy", scale=scale), count=1
        )
        for scale in (0.01, 0.1, 10.0, 100.0)
    ]
    for name, label in (("attention", "A2 attention"), ("logits", "A3 logits")):
        if name == "attention" and not layers:
            continue
        rows += [
            climb(f"{label} {weight:+g}", "margin", pairing={name: weight})
            for weight in _WEIGHTS
        ]
    rows.append(from_start("A3 logits first", half))
    starts: dict[str, Any] = {"A5 from grey": dict(name="grey", threat=threat)}
    if layer:
        rows += [
            collision | dict(layer=layer, maps=maps, label=f"A4 {label}")
            for maps, label in ((False, "features"), (True, "attention maps"))
        ]
        starts["A5 from A4"] = collision | dict(layer=layer, maps=False)
    gray = _runs(evaluation, "gray")
    if gray:
        mi_fgsm = dict(name="mi_fgsm", threat=threat)
        starts["A5 from transfer"] = dict(
            name="transfer", attack=mi_fgsm, sources=list(gray)
        )
        jointly: dict[str, Any] = dict(source=list(gray), access="gray", count=1)
        rows += [
            climb("A6 surrogates, cross-entropy", **jointly),
            climb("A6 surrogates, margin", "margin", **jointly),
        ]
    rows += [from_start(label, start) for label, start in starts.items()]
    every = dict(name="pgd_targeted", choice="every", num_targets=99, num_steps=100)
    return [
        *rows,
        every | size | dict(label="every wrong class, PGD-100"),
        whole_autoattack(evaluation),
        dict(name="square", threat=threat, num_queries=5000, label="Square, 5,000"),
        *(dict(name=name, threat=threat, label=name) for name in _MODEL_FREE),
    ]


def _runs(evaluation: Block, access: str) -> tuple[str, ...]:
    given = evaluation.get(access) or ()
    if isinstance(given, str):
        given = given.split(",")
    return tuple(str(run) for run in given)


def _transferred(evaluation: Block, label: str, attack: Mapping[str, Any]) -> Blocks:
    """The worst over the runs of each access, per image."""
    return [
        dict(
            name="transfer",
            attack=dict(attack),
            sources=list(_runs(evaluation, access)),
            access=access,
            label=f"{access}, {label}",
        )
        for access in ("gray", "black")
        if _runs(evaluation, access)
    ]
