"""Several models in one report: what differs, and how sure that is.

`compare` reads reports that `eval.py` wrote and tests each pair of models image by
image; `write_comparison` writes `compare.json`, `compare.md`, `compare.html` and
`compare.png`.
"""

import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from robustjax import _files
from robustjax.evaluation._blocks import aligned, markdown
from robustjax.evaluation._compared import (
    Model,
    Run,
    check_comparable,
    data_of,
    in_order,
    read_models,
    suite_of,
)
from robustjax.evaluation._comparison import (
    accuracy_cells,
    comparison_picture,
    comparison_sections,
    sentences,
)
from robustjax.evaluation._verdict import standing
from robustjax.evaluation.html import page
from robustjax.evaluation.outcomes import NOT_COUNTED
from robustjax.evaluation.statistics import (
    Paired,
    compare_paired,
    compare_runs,
    holm,
    mean_and_deviation,
    wilson_interval,
)
from robustjax.training import write_json

_SCHEMA = {"name": "robustjax-comparison", "version": 1}
_TESTED = ("clean", "worst case")


def compare(reports: Sequence[Path | str]) -> dict[str, Any]:
    """Two or more evaluated models, row by row and pair by pair, JSON-able.

    Rows are those that all models have: clean, each attack that all share with all its
    parameters, and the worst case over the shared attacks that count, which is above
    that of a model's own suite if that has more. Pairs are tested on clean images and
    in the worst case by `compare_paired`, and groups of training runs by
    `compare_runs` over their seeds. One Holm correction holds over all tests.

    Args:
      reports: Directories that `eval.py` wrote a report to, or working directories with
        `report/` inside. One with `seed_*` reports is a group of runs, one model.

    Returns:
      `schema`; `data`, `threat`, `num_examples`; `rows`, their names; `limits`, what
      no classifier exceeds in these rows, where there is such a limit; `models`, each
      with name, directory, suite, runs, flags (None if no indicator was measured),
      `own_worst_case` and `rows` (accuracy, interval or deviation over runs);
      `pairs` with the counts, difference, interval, p, p_holm and method, or
      `untested`, why not; and `warnings`, one line each.

    Raises:
      InputError: the reports are missing, damaged or not comparable; see docs.

    Example:
      >>> compare(["runs/nothing", "runs/there"])
      Traceback (most recent call last):
      ...
      robustjax._checks.InputError: There is no directory runs/nothing: ...
    """
    models = read_models(reports)
    warnings = check_comparable(models)
    attacks, dropped = _shared_attacks(models)
    warnings += dropped
    worst, changed = _worst_cases(models, attacks)
    warnings += changed + _own_warnings(models)
    tables = [_table(model, attacks, worst) for model in models]
    names = list(next(iter(tables[0].values())))
    pairs = _pairs(models, tables, [name for name in _TESTED if name in names])
    first = next(iter(models[0].runs.values()))
    return dict(
        schema=dict(_SCHEMA),
        data=data_of(first.content).name,
        threat=first.content["threat"],
        num_examples=len(first.outcomes.index),
        rows=names,
        limits=_limits(first.content["rows"], names),
        models=[
            _described(model, table)
            for model, table in zip(models, tables, strict=True)
        ],
        pairs=pairs,
        warnings=warnings,
    )


def _limits(
    rows: Sequence[Mapping[str, Any]], names: Sequence[str]
) -> dict[str, float]:
    limits = {row["name"]: row["limit"] for row in rows if "limit" in row}
    return {name: limits[name] for name in names if name in limits}


def write_comparison(directory: Path, comparison: Mapping[str, Any]) -> None:
    """Writes `compare.png`, `.html`, `.md` and, last, `compare.json`.

    Each is there whole or not at all.

    Args:
      directory: Created if needed.
      comparison: From `compare`.

    Raises:
      InputError: the directory cannot be written.
    """
    directory = Path(directory)
    sections, picture = comparison_sections(comparison), comparison_picture(comparison)
    pictures = {picture.name: picture}
    text = f"# Comparison\n\n{markdown(sections, pictures)}"
    files = {
        "compare.png": picture.png,
        "compare.html": page("Comparison", sections, pictures).encode(),
        "compare.md": text.encode(),
    }
    for name, written in files.items():
        _files.write(directory / name, lambda file, it=written: file.write(it))
    write_json(directory / "compare.json", comparison)


def comparison_lines(comparison: Mapping[str, Any]) -> list[str]:
    """What a comparison shows, for a terminal: sentences, accuracies, warnings.

    Args:
      comparison: From `compare`.

    Example:
      >>> row = dict(accuracy=0.5, interval=[0.4, 0.6])
      >>> model = dict(name="a", rows={"clean": row}, own_worst_case=row)
      >>> found = dict(rows=["clean"], models=[model], pairs=[], warnings=["Hm."])
      >>> print("\\n".join(comparison_lines(found)))
      | row                         | a                     |
      | --------------------------- | --------------------- |
      | clean                       | 50.00% (40.00..60.00) |
      | worst case of its own suite | 50.00% (40.00..60.00) |
      <BLANKLINE>
      Warning: Hm.
    """
    lines = [*aligned(accuracy_cells(comparison)).splitlines(), ""]
    lines += sentences(comparison)
    return lines + [f"Warning: {line}" for line in comparison["warnings"]]


def _shared_attacks(models: Sequence[Model]) -> tuple[list[str], list[str]]:
    """Attacks that all runs have with the same parameters, and a line on the others."""
    runs = [run for model in models for run in model.runs.values()]
    everywhere = [
        name
        for name in runs[0].outcomes.attacks
        if all(name in run.outcomes.attacks for run in runs)
    ]
    told = [n for n in everywhere if all(_is_told(n, run) for run in runs)]
    kept = [n for n in told if all(_same_attack(n, runs[0], r) for r in runs)]
    lines = [
        f"{name}: parameters differ, so the row is left out."
        for name in told
        if name not in kept
    ]
    lines += [
        f"{name}: nothing tells that it is the same attack, so the row is left out: "
        f"give its `parameters`, NamedAttack({name!r}, attack, {{...}})."
        for name in everywhere
        if name not in told
    ]
    return kept, lines


def _is_told(name: str, run: Run) -> bool:
    """Whether a report knows more of an attack than what it climbed."""
    return bool(set(_parameters(run)[_shown(run, name)]) - {"view"})


def _same_attack(name: str, first: Run, other: Run) -> bool:
    counted = [name in run.outcomes.counted for run in (first, other)]
    parameters = [_parameters(run)[_shown(run, name)] for run in (first, other)]
    return counted[0] == counted[1] and parameters[0] == parameters[1]


def _parameters(run: Run) -> dict[str, dict[str, Any]]:
    return {row["name"]: row.get("parameters", {}) for row in run.content["rows"]}


def _shown(run: Run, name: str) -> str:
    return name if name in run.outcomes.counted else name + NOT_COUNTED


def _worst_cases(
    models: Sequence[Model], attacks: Sequence[str]
) -> tuple[dict[Path, np.ndarray] | None, list[str]]:
    """Per-image worst cases over the shared attacks, by report; None if unknown.

    Those of random classifiers are known of their own suites alone: the adversary's
    choice among attacks needs draws that reports do not keep.
    """
    runs = [run for model in models for run in model.runs.values()]
    shared = {name for name in attacks if name in runs[0].outcomes.counted}
    if all(set(run.outcomes.counted) == shared for run in runs):
        return {run.directory: run.outcomes.worst_case for run in runs}, []
    if any(run.outcomes.draws > 1 for run in runs):
        return None, [
            "The worst case over shared attacks is not known of a random classifier: "
            "evaluate all with one suite."
        ]
    if not shared:
        return None, [
            "No attack that counts is shared: there is no worst case to pair."
        ]
    found = {
        run.directory: np.all(
            [run.outcomes.clean, *(run.outcomes.attacks[name] for name in shared)],
            axis=0,
        )
        for run in runs
    }
    listed = "; ".join(name for name in attacks if name in shared)
    line = f"The worst case is over the shared attacks that count only: {listed}."
    return found, [line]


def _own_warnings(models: Sequence[Model]) -> list[str]:
    found = []
    for model in models:
        for seed, run in model.runs.items():
            name = f"{model.name} {seed}".strip()
            state, why = standing(run.content)
            found += [f"{name}: {why}"] if state in ("failed", "flagged") else []
            found += [f"{name}: {line}" for line in run.content.get("warnings") or ()]
    return found


def _table(
    model: Model, attacks: Sequence[str], worst: Mapping[Path, np.ndarray] | None
) -> dict[str, dict[str, np.ndarray]]:
    """Whether each run of a model is right, by seed and row, images in one order."""
    found = {}
    for seed, run in model.runs.items():
        rows = {"clean": run.outcomes.clean}
        rows |= {_shown(run, name): run.outcomes.attacks[name] for name in attacks}
        if worst is not None:
            rows["worst case"] = worst[run.directory]
        found[seed] = {n: in_order(run.outcomes, right) for n, right in rows.items()}
    return found


def _described(model: Model, table: Mapping[str, Mapping]) -> dict[str, Any]:
    runs = list(model.runs.values())
    flags = [_flags(run.content) for run in runs]
    known = [one for one in flags if one is not None]
    own = {seed: {"": run.outcomes.worst_case} for seed, run in model.runs.items()}
    return dict(
        name=model.name,
        directory=str(model.given),
        workdirs=[run.content.get("workdir") for run in runs],
        checkpoints=[run.content.get("checkpoint") for run in runs],
        commits=sorted({str(run.content.get("commit")) for run in runs}),
        suite=suite_of(model),
        runs=len(runs) if model.grouped else None,
        draws=max(run.outcomes.draws for run in runs),
        flags=sorted(set(itertools.chain(*known))) if len(known) == len(runs) else None,
        own_worst_case=_row(own, ""),
        rows={name: _row(table, name) for name in next(iter(table.values()))},
    )


def _flags(content: Mapping[str, Any]) -> list[str] | None:
    """Names of the indicators that were flagged; None where none was measured."""
    verdict = content["verdict"]
    return verdict["flags"] if verdict["measured"] else None


def _row(table: Mapping[str, Mapping[str, np.ndarray]], name: str) -> dict[str, Any]:
    values = {seed: float(rows[name].mean()) for seed, rows in table.items()}
    if "" not in table:
        mean, deviation = mean_and_deviation(list(values.values()))
        known = deviation if len(values) > 1 else None  # of one run there is none
        return dict(accuracy=mean, deviation=known, by_run=values, interval=None)
    correct = table[""][name]
    low, high = wilson_interval(float(correct.sum()), len(correct))
    return dict(accuracy=values[""], interval=[low, high])


def _pairs(
    models: Sequence[Model],
    tables: Sequence[Mapping[str, Mapping[str, np.ndarray]]],
    rows: Sequence[str],
) -> list[dict[str, Any]]:
    """Every pair on every row that is tested, with Holm's p over all of them."""
    found = []
    for row in rows:
        for (one, left), (two, right) in itertools.combinations(
            zip(models, tables, strict=True), 2
        ):
            about = dict(row=row, first=one.name, second=two.name)
            tested, why = _tested(left, right, row)
            if tested is None:
                gap = _row(left, row)["accuracy"] - _row(right, row)["accuracy"]
                found.append(dict(about, difference=gap, p=None, untested=why))
            else:
                numbers = tested._asdict() | dict(interval=list(tested.interval))
                found.append(about | numbers)
    known = [pair for pair in found if pair["p"] is not None]
    for pair, p in zip(known, holm([pair["p"] for pair in known]), strict=True):
        pair["p_holm"] = p
    return found


def _tested(left: Mapping, right: Mapping, row: str) -> tuple[Paired | None, str]:
    if "" in left and "" in right:
        return compare_paired(left[""][row], right[""][row]), ""
    if "" in left or "" in right:
        return None, "one is a single run, whose spread over training is not known"
    means = [
        {s: float(rows[row].mean()) for s, rows in t.items()} for t in (left, right)
    ]
    return compare_runs(*means), "a single run each, or no spread over runs"
