"""An entry for RobustBench's leaderboard, from a report.

RobustBench keeps one JSON file per model under `model_info/DATASET/THREAT/NAME.json`,
and its leaderboard is made of them: see "RobustBench: a standardized adversarial
robustness benchmark" (Croce et al., 2021) and the sections "Adding a new model" of the
README and `leaderboard/template.py` of github.com/RobustBench/robustbench, which name
the fields. Accuracies there are percent as text. What a report cannot know, such as the
paper, is null here until somebody fills it in.
"""

import math
import re
from collections.abc import Mapping
from fractions import Fraction
from pathlib import Path
from typing import Any

from robustjax._checks import InputError
from robustjax.evaluation._compared import GIVEN, Data, data_of, report_directories
from robustjax.evaluation._parameters import threat_block
from robustjax.evaluation.schema import read_report
from robustjax.training import write_json

_FOLDERS = {"linf": "Linf", "l2": "L2"}
_TOLD = (
    *("link", "name", "authors", "additional_data", "number_forward_passes"),
    *("venue", "architecture", "reported", "footnote"),
)
_GAPS = ("dataset", "norm", "eps")
"""What may be told where the report does not say it."""
_READ = {
    "additional_data": ("true or false", lambda t: dict(true=True, false=False)[t]),
    "number_forward_passes": ("a whole number", int),
    "eps": ("a number or a fraction such as 8/255", lambda t: float(Fraction(t))),
}


def robustbench_entry(
    content: Mapping[str, Any], about: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """The fields of an entry: from the report, or null.

    `autoattack_acc` is AutoAttack `standard` on the classifier itself at the report's
    threat model; `external` the worst case over all attacks that count, where that is
    lower, as RobustBench has for evaluations beyond AutoAttack; `unreliable` whether an
    indicator was flagged or AutoAttack warned, null if no indicator was measured.
    `reported` is what the authors' paper says, and so never from here.

    Args:
      content: A report.json.
      about: What the report does not know: link, name, authors, additional_data,
        number_forward_passes, venue, architecture, reported, footnote; and dataset,
        norm, eps if they are not in it.

    Raises:
      InputError: `about` has other fields or contradicts the report, AutoAttack was not
        run, the classifier is random, or the data set or threat model is not known.

    Example:
      >>> threat = {"name": "linf", "eps": 8 / 255}
      >>> rows = [
      ...     {"name": "clean", "accuracy": 0.84},
      ...     {"name": "worst case", "accuracy": 0.5},
      ...     {"name": "AutoAttack", "accuracy": 0.5,
      ...      "parameters": {"name": "autoattack", "threat": threat}},
      ... ]
      >>> data = "Dataset('cifar10/3.0.2', 10000 images 32x32x3 uint8, 10 classes)"
      >>> entry = robustbench_entry(
      ...     {"data": data, "threat": threat, "rows": rows, "num_examples": 10000}
      ... )
      >>> [entry[name] for name in ("dataset", "eps", "clean_acc", "autoattack_acc")]
      ['cifar10', '8/255', '84.00', '50.00']
    """
    about = _told(about or {})
    if content.get("draws", 1) > 1:
        raise InputError(
            "RobustBench takes classifiers with one answer only, and the report is of "
            f"a random one ({content['draws']} draws)."
        )
    threat = _threat(content, about)
    rows = {row["name"]: row for row in content["rows"]}
    attack = _autoattack(content, threat)
    worst = rows["worst case"]["accuracy"]
    footnotes = [about["footnote"]] if about.get("footnote") else []
    entry = dict(
        link=None,
        name=None,
        authors=None,
        additional_data=None,
        number_forward_passes=_passes(content),
        dataset=_dataset(content, about),
        venue=None,
        architecture=_architecture(content),
        eps=_eps_text(float(threat["eps"])),
        clean_acc=_percent(rows["clean"]["accuracy"]),
        reported=None,
        autoattack_acc=_percent(attack["accuracy"]),
    )
    if worst < attack["accuracy"]:
        entry["external"] = _percent(worst)
        footnotes.append(
            f"{_percent(worst)}% robust accuracy is the worst case over the attacks of "
            f"the suite {content.get('suite')} of robustjax."
        )
    data, measured = data_of(dict(content)), content["num_examples"]
    if _known_name(data) is None:
        footnotes.append(f"Measured on {measured} images.")
    elif int(data.images) > measured:
        footnotes.append(f"Measured on {measured} of {data.images} test images.")
    entry["footnote"] = " ".join(footnotes) or None
    entry["unreliable"] = _unreliable(content, attack["name"])
    given = {k: v for k, v in about.items() if k in _TOLD and k != "footnote"}
    return entry | given


def export_robustbench(
    report: Path | str,
    *,
    about: Mapping[str, Any] | None = None,
    directory: Path | str | None = None,
) -> Path:
    """Writes `model_info/DATASET/THREAT/NAME.json`, whole or not at all.

    Args:
      report: Directory of a report, or a working directory that has one; NAME is that
        of the latter.
      about: See `robustbench_entry`.
      directory: What `model_info` is made in; the report's directory by default.

    Returns:
      The path of the file.

    Raises:
      InputError: there is no report, it is of several seeds, or see
        `robustbench_entry`.

    Example:
      >>> export_robustbench("runs/nothing")
      Traceback (most recent call last):
      ...
      robustjax._checks.InputError: There is no directory runs/nothing: ...
    """
    given = Path(report)
    found = report_directories(given)
    if "" not in found:
        raise InputError(
            f"{given} has reports of {len(found)} seeds, and an entry is one model: "
            f"name one of them, e.g. {next(iter(found.values()))}."
        )
    place = found[""]
    content = read_report(place)
    entry = robustbench_entry(content, about)
    norm = _FOLDERS[_threat(content, _told(about or {}))["name"]]
    root = place if directory is None else Path(directory)
    name = _file_name(content, place)
    path = root / "model_info" / entry["dataset"] / norm / f"{name}.json"
    write_json(path, entry)
    return path


def _told(about: Mapping[str, Any]) -> dict[str, Any]:
    """What is told, with numbers and truth values that came as text."""
    unknown = sorted(set(about) - {*_TOLD, *_GAPS})
    if unknown:
        raise InputError(
            f"`about` has {unknown[0]!r}, which is measured or no field of an entry: "
            f"give {', '.join((*_TOLD, *_GAPS))}."
        )
    found = dict(about)
    for field, (meant, read) in _READ.items():
        if isinstance(found.get(field), str):
            try:
                found[field] = read(found[field])
            except (KeyError, ValueError, ZeroDivisionError) as error:
                raise InputError(
                    f"`about` {field} must be {meant}, got {found[field]!r}."
                ) from error
    return found


def _threat(content: Mapping[str, Any], about: Mapping[str, Any]) -> dict[str, Any]:
    threat = dict(content.get("threat") or {})
    for field, key in (("norm", "name"), ("eps", "eps")):
        told = about.get(field)
        known = threat.get(key)
        if told is not None and known is not None and not _equal(told, known):
            raise InputError(
                f"`{field}` {told!r} contradicts the report, which was made at "
                f"{threat[key]!r}: leave it out."
            )
        if told is not None and known is None:
            threat[key] = told
        if threat.get(key) is None:
            raise InputError(f"The report names no threat model: give `{field}`.")
    if threat["name"] not in _FOLDERS:
        raise InputError(
            f"RobustBench has leaderboards for linf and l2, the report is of "
            f"{threat['name']!r}: evaluate with --attack.norm=linf or l2."
        )
    if list(threat.get("bounds") or (0.0, 1.0)) != [0.0, 1.0]:
        raise InputError(
            f"RobustBench has pixels in [0, 1], the report's threat model "
            f"{threat['bounds']}: evaluate in these bounds."
        )
    return threat


def _equal(told: Any, known: Any) -> bool:
    if isinstance(known, float):
        return math.isclose(float(told), known, rel_tol=1e-6)
    return told == known


def _autoattack(
    content: Mapping[str, Any], threat: Mapping[str, Any]
) -> Mapping[str, Any]:
    """The row of AutoAttack `standard` on the classifier itself."""
    for row in content["rows"]:
        parameters = row.get("parameters") or {}
        own = not {"view", "source", "judges"} & {k for k, v in parameters.items() if v}
        used = threat_block(parameters) or {}
        same = used.get("name") == threat["name"] and math.isclose(
            float(used.get("eps", -1)), float(threat["eps"]), rel_tol=1e-6
        )
        whole = parameters.get("name") == "autoattack"
        if whole and own and same and row.get("counts", True):
            return row
    raise InputError(
        f"The report has no AutoAttack at {threat['name']} eps {threat['eps']:g}, "
        "which RobustBench asks for: run eval.py with --suite=standard first."
    )


def _dataset(content: Mapping[str, Any], about: Mapping[str, Any]) -> str:
    """Its name without a version, such as TFDS gives one."""
    known = _known_name(data_of(dict(content)))
    told = about.get("dataset")
    if told is not None and known not in (None, told):
        raise InputError(
            f"`dataset` {told!r} contradicts the report, which is on {known!r}: leave "
            "it out."
        )
    if told is None and known is None:
        raise InputError("The report names no data set: give `dataset`.")
    return str(known or told)


def _known_name(data: Data) -> str | None:
    nameless = data.size == "?" or data.name == GIVEN
    return None if nameless else data.name.split("/")[0]


def _passes(content: Mapping[str, Any]) -> int | None:
    """1 for a network and nothing else; what stands before or after it is not known."""
    config = content.get("config")
    if config is None or config.get("transform"):
        return None
    head = config.get("head") or {}
    return 1 if head.get("name", "linear") == "linear" else None


def _architecture(content: Mapping[str, Any]) -> str | None:
    """The network by the name and the settings that the config has for it."""
    block = dict((content.get("config") or {}).get("model") or {})
    name = block.pop("name", None)
    settings = ", ".join(f"{k}={v}" for k, v in sorted(block.items()) if k != "dtype")
    return f"{name} ({settings})" if name and settings else name


def _unreliable(content: Mapping[str, Any], attack: str) -> bool | None:
    verdict = content.get("verdict") or {}
    warned = any(w.startswith(f"{attack}:") for w in content.get("warnings") or ())
    if warned or verdict.get("flags"):
        return True
    return False if verdict.get("measured") else None


def _file_name(content: Mapping[str, Any], place: Path) -> str:
    """The working directory's, fit for a file."""
    workdir = Path(content.get("workdir") or place.resolve().parent)
    name = re.sub(r"[^A-Za-z0-9._-]+", "_", workdir.resolve().name).strip("._")
    return name or "model"


def _percent(share: float) -> str:
    return f"{100 * share:.2f}"


def _eps_text(eps: float) -> str:
    """A fraction of 255 where it is a whole one, as RobustBench writes it."""
    scaled = round(255 * eps)
    whole = abs(255 * eps - scaled) < 1e-6 and 0 < scaled < 255
    return f"{scaled}/255" if whole else f"{eps:g}"
