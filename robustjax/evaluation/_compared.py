"""Reports that are to be compared: where they are, and whether they may be."""

import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from robustjax._checks import InputError
from robustjax.evaluation._verdict import radius_of, threat_in_words
from robustjax.evaluation.outcomes import (
    NOT_COUNTED,
    Outcomes,
    distinct,
    load_outcomes,
)
from robustjax.evaluation.schema import read_report

_DATA = re.compile(r"Dataset\('(.*)', (\d+) images (\S+) \w+, (\d+) classes\)")


GIVEN = "images given"  # the name of a data set that has none


class Run(NamedTuple):
    """One evaluated run: its report and what became of each image."""

    directory: Path
    content: dict[str, Any]
    outcomes: Outcomes


class Model(NamedTuple):
    """What one point of a comparison is.

    Attributes:
      name: In tables.
      given: The directory as the user named it.
      runs: By seed ("seed_0", ...), or one under the empty name.
    """

    name: str
    given: Path
    runs: dict[str, Run]

    @property
    def grouped(self) -> bool:
        """Whether it is several training runs."""
        return "" not in self.runs


def read_models(reports: Sequence[Path | str]) -> list[Model]:
    """The models behind directories of reports, or working directories that have some.

    Raises:
      InputError: there are fewer than two, one is there twice, has no report, a damaged
        one or one of another schema version.
    """
    listed = isinstance(reports, Sequence) and not isinstance(reports, str)
    if not listed or not all(isinstance(report, str | Path) for report in reports):
        raise InputError(
            f"`reports` must be a list of directories, got {reports!r}: "
            "compare(['runs/a', 'runs/b'])."
        )
    paths = [Path(report) for report in reports]
    if len(paths) < 2:
        raise InputError(
            f"`compare` needs two directories or more, got {len(paths)}: "
            "--compare=runs/a,runs/b."
        )
    found = [report_directories(path) for path in paths]
    places = [next(iter(directories.values())).resolve() for directories in found]
    for place, path in zip(places, paths, strict=True):
        if places.count(place) > 1:
            raise InputError(f"`compare` got {path} twice: name each model once.")
    return [
        Model(name, path, {seed: _read(at, path) for seed, at in directories.items()})
        for name, path, directories in zip(_names(paths), paths, found, strict=True)
    ]


def check_comparable(models: Sequence[Model]) -> list[str]:
    """What makes a comparison doubtful, a line each.

    Raises:
      InputError: the reports are of different data sets, image sizes, threat models or
        images.
    """
    every = [(model, run) for model in models for run in model.runs.values()]
    first_model, first = every[0]
    for model, run in every[1:]:
        names = first_model.name, model.name
        _check_data(names, first, run)
        _check_threat(names, first, run)
        _check_images(names, first.outcomes, run.outcomes)
    doubts = []
    if first.content["threat"] is None:
        doubts.append(
            "Reports name no one threat model: rows say what each attack did."
        )
    suites = {model.name: suite_of(model) for model in models}
    if len(set(suites.values())) > 1:
        listed = ", ".join(f"{name}: {suite}" for name, suite in suites.items())
        doubts.append(f"Suites differ ({listed}): only attacks that all share count.")
    return doubts


class Data(NamedTuple):
    """What a report says about its data set; "?" is not told."""

    name: str
    images: str
    size: str
    classes: str


def data_of(content: dict[str, Any]) -> Data:
    """The data set of a report."""
    match = _DATA.fullmatch(str(content.get("data", "?")))
    return Data(*match.groups()) if match else Data(str(content.get("data")), *"???")


def suite_of(model: Model) -> str:
    """The suite of all its runs, or the several there are."""
    suites = {str(run.content.get("suite")) for run in model.runs.values()}
    return " and ".join(sorted(suites))


def in_order(outcomes: Outcomes, correct: np.ndarray) -> np.ndarray:
    """Per-image values by the position of the image in its split."""
    return correct[np.argsort(outcomes.index)]


def report_directories(path: Path) -> dict[str, Path]:
    """Where the reports behind a directory are: one, or one for each seed."""
    if (path / "report.json").is_file():
        return {"": path}
    # eval.py writes a group's reports to the former; the latter may be older.
    groups = [_of_seeds(path / "report"), _of_seeds(path)]
    places = (path / "report", path)
    trained = {seed.name for place in places for seed in place.glob("seed_*")}
    for by_seed in groups:
        if by_seed and set(by_seed) == trained:
            return by_seed
    if any(groups):
        missing = sorted(trained - set(max(groups, key=len)))[0]
        raise InputError(
            f"{path} has no report of {missing}: run python eval.py "
            f"--workdir={path} --suite=standard first."
        )
    if (path / "report" / "report.json").is_file():
        return {"": path / "report"}
    workdir = path.parent if path.name == "report" else path
    if not workdir.is_dir():
        raise InputError(f"There is no directory {workdir}: name that of a run.")
    raise InputError(
        f"{path} has no report: run python eval.py --workdir={workdir} "
        "--suite=standard first."
    )


def _of_seeds(place: Path) -> dict[str, Path]:
    """Where the reports of a group's runs are, by seed."""
    found = sorted(place.glob("seed_*/report.json"))
    found += sorted(place.glob("seed_*/report/report.json"))
    return {file.relative_to(place).parts[0]: file.parent for file in found}


def _read(directory: Path, given: Path) -> Run:
    content = read_report(directory)
    _number(content["rows"][1:-1])
    run = Run(directory, content, load_outcomes(directory))
    if not _of_one_evaluation(content["rows"], run.outcomes):
        raise InputError(
            f"{directory} has a report.json and an outcomes.npz of different "
            f"evaluations: run python eval.py --workdir={given} again."
        )
    return run


def _of_one_evaluation(rows: Sequence[dict[str, Any]], outcomes: Outcomes) -> bool:
    """Whether rows of a report say what became of these images."""
    known = outcomes.rows()
    if [row["name"] for row in rows] != list(known):
        return False
    counts = [float(known[row["name"]].sum()) for row in rows]
    told = [float(row["correct"]) for row in rows]
    # A draw of a random classifier is more than that, rounding of shares is less.
    return bool(np.allclose(told, counts, rtol=1e-5, atol=1e-3))


def _number(rows: Sequence[dict[str, Any]]) -> None:
    """Tells apart attacks of one name as `save_outcomes` does."""
    names = [row["name"].removesuffix(NOT_COUNTED) for row in rows]
    for row, name in zip(rows, distinct(names), strict=True):
        row["name"] = name + NOT_COUNTED * row["name"].endswith(NOT_COUNTED)


def _names(paths: Sequence[Path]) -> list[str]:
    """The shortest ends of paths that tell them apart."""
    whole = [
        path.parts[:-1] if path.name == "report" else path.parts
        for path in (path.resolve() for path in paths)
    ]
    for length in range(1, max(map(len, whole)) + 1):
        names = ["/".join(parts[-length:]) for parts in whole]
        if len(set(names)) == len(names):
            return names
    return [str(path) for path in paths]


def _check_data(names: tuple[str, str], first: Run, other: Run) -> None:
    one, two = data_of(first.content), data_of(other.content)
    kinds = {"data sets": "name", "image sizes": "size", "class counts": "classes"}
    for kind, field in kinds.items():
        mine, yours = getattr(one, field), getattr(two, field)
        if mine != yours:
            raise InputError(
                f"`compare` got reports of different {kind}: {names[0]} is on {mine}, "
                f"{names[1]} on {yours}. Compare runs on the same data."
            )


def _check_threat(names: tuple[str, str], first: Run, other: Run) -> None:
    one, two = first.content["threat"], other.content["threat"]
    same = (one is None) == (two is None)
    if one is not None and two is not None:
        same = one.get("name") == two.get("name")
        same &= _same_bounds(one, two)
        same &= math.isclose(radius_of(one), radius_of(two), rel_tol=1e-6)
    if not same:
        raise InputError(
            f"`compare` got reports of different threat models: {names[0]}: "
            f"{_named(one)}; {names[1]}: {_named(two)}. Give --attack.norm and "
            "--attack.eps to eval.py."
        )


def _named(threat: dict[str, Any] | None) -> str:
    name = "" if threat is None else f"{threat.get('name')}, "
    return name + threat_in_words(threat)


def _same_bounds(one: dict[str, Any], two: dict[str, Any]) -> bool:
    default = [0.0, 1.0]
    return list(one.get("bounds") or default) == list(two.get("bounds") or default)


def _check_images(names: tuple[str, str], first: Outcomes, other: Outcomes) -> None:
    one, two = np.sort(first.index), np.sort(other.index)
    if len(one) != len(two):
        raise InputError(
            f"`compare` got reports of different images: {names[0]} was judged on "
            f"{len(one)}, {names[1]} on {len(two)}. Evaluate both with "
            f"--num_examples={min(len(one), len(two))}."
        )
    same = np.array_equal(one, two)
    if same:
        labels = in_order(first, first.labels), in_order(other, other.labels)
        same = np.array_equal(*labels)
    if first.images and other.images:  # not before the lengths, which say more
        same &= first.images == other.images
    if not same:
        raise InputError(
            f"`compare` got reports of different images: {names[0]} and {names[1]} "
            "were judged on other splits, cuts, sizes or pixels. Evaluate both on "
            "the same."
        )
