"""What a report.json holds, and how one is read.

The schema has a name and a version. Its version rises with every change after which a
reader of the old form would misread the new one; a report of another version is not
guessed at.
"""

import json
from pathlib import Path
from typing import Any

from robustjax._checks import InputError

NAME, VERSION = "robustjax-report", 1
_ROUNDING = 1e-5

_NUMBER: dict[str, Any] = {"type": "number"}
_COUNT: dict[str, Any] = {"type": "integer", "minimum": 0}
_SHARE: dict[str, Any] = {"type": "number", "minimum": 0, "maximum": 1}
_TEXT: dict[str, Any] = {"type": "string"}
_NAME: dict[str, Any] = {"type": ["string", "null"]}
_SHARES: dict[str, Any] = {"type": "array", "items": _SHARE}
_INTERVAL = _SHARES | {"minItems": 2, "maxItems": 2}
_TEXTS: dict[str, Any] = {"type": "array", "items": _TEXT}


def _object(required: dict[str, Any], **optional: Any) -> dict[str, Any]:
    """A schema of an object; what else is in it is not looked at."""
    properties = {**required, **optional}
    return {"type": "object", "required": list(required), "properties": properties}


def _list(item: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {"type": "array", "items": item, **more}


_ROW = _object(
    {
        "name": _TEXT,
        "accuracy": _SHARE,
        "correct": {"type": "number", "minimum": 0},
        "interval": _INTERVAL,
        "seconds": {"type": "number", "minimum": 0},
    },
    parameters={"type": "object"},
    counts={"type": "boolean"},
    limit=_SHARE,
    largest_distance={"type": "object", "additionalProperties": _NUMBER},
    pixel_range=_list(_NUMBER, minItems=2, maxItems=2),
    stages=_list(
        _object({"name": _TEXT, "attacked": _COUNT, "broken": _COUNT})
        | {"additionalProperties": True}
    ),
    minimum_norm=_object({"norm": _TEXT, "eps": _list(_NUMBER), "accuracy": _SHARES}),
)
_INDICATOR = _object(
    {
        "name": _TEXT,
        "value": {"type": ["number", "null"]},
        "threshold": {"type": ["number", "null"]},
        "flagged": {"type": "boolean"},
        "detail": _TEXT,
        "meaning": _TEXT,
        "source": _TEXT,
    }
)
_VERDICT = _object(
    {
        "accuracy": _SHARE,
        "interval": _INTERVAL,
        "clean": _SHARE,
        "attack": _NAME,
        "flags": _TEXTS,
        "adaptive": _TEXTS,
        "measured": _COUNT,
        "sentence": _TEXT,
    }
)
_THREAT = _object(
    {"name": _TEXT, "eps": {"type": ["number", "null"], "minimum": 0}},
    bounds={"type": ["array", "null"], "items": _NUMBER, "minItems": 2, "maxItems": 2},
) | {"type": ["object", "null"]}
_LEFT = _object({"attack": _TEXT, "broken": _NUMBER, "accuracy": _SHARE})
_STEPS = {"type": "array", "items": {"type": "integer"}}
_PATH = _object({"attack": _TEXT, "steps": _STEPS, "median": {"type": "array"}})

SCHEMA: dict[str, Any] = {
    "$schema": "https://json-schema.org/draft/2020-12/schema",
    "title": f"{NAME}, version {VERSION}",
    **_object(
        {
            "schema": _object({"name": {"const": NAME}, "version": {"const": VERSION}}),
            "num_examples": {"type": "integer", "minimum": 1},
            "draws": {"type": "integer", "minimum": 1},
            "rows": _list(_ROW, minItems=2),
            "warnings": _TEXTS,
            "inconsistent": _TEXTS,
            "access": {"type": "object", "additionalProperties": _SHARE},
            "threat": _THREAT,
            "verdict": _VERDICT,
            "indicators": {"type": ["array", "null"], "items": _INDICATOR},
            "waterfall": _list(_LEFT),
            "paths": _list(_PATH),
            "confusion": {"type": ["array", "null"], "items": _list(_COUNT)},
            "pictures": _list(_object({"name": _TEXT, "alt": _TEXT, "caption": _TEXT})),
        },
        config={"type": "object"},
        versions={"type": "object", "additionalProperties": _TEXT},
        device=_TEXT,
        commit=_TEXT,
        precision={"type": ["string", "object"]},
        seed={"type": "integer"},
        access_elsewhere={"type": "object", "additionalProperties": {"type": "object"}},
        curve=_object({"eps": _list(_NUMBER), "accuracy": _SHARES}),
        binarization={"type": "object"},
        test_time={"type": "object"},
        training={"type": "object"},
    ),
}


def check_report(content: Any, where: str) -> None:
    """Raises unless `content` is a report of this version.

    Args:
      content: Of a report.json.
      where: Names it in the message.

    Raises:
      InputError: it is not; one line says what is wrong, and where.
    """
    from jsonschema import Draft202012Validator, exceptions  # slow to import

    found = content.get("schema") if isinstance(content, dict) else None
    about = found if isinstance(found, dict) else {}
    if (about.get("name"), about.get("version")) != (NAME, VERSION):
        given = (
            "none" if found is None else f"{about.get('name')} {about.get('version')!r}"
        )
        raise InputError(
            f"`report` {where} is of another schema version ({given}); this robustjax "
            f"reads {NAME} {VERSION}: run eval.py on its workdir again."
        )
    checker = Draft202012Validator(SCHEMA)
    error = exceptions.best_match(checker.iter_errors(content))
    if error is not None:
        path = ".".join(map(str, error.absolute_path)) or "the top"
        said = " ".join(error.message.split())
        said = said if len(said) <= 120 else said[:117] + "..."
    else:
        path, said = _contradiction(content)
    if said:
        raise InputError(
            f"`report` {where} is not a whole report: at {path}, {said}. Run eval.py "
            "on its workdir again."
        )


def _contradiction(content: dict[str, Any]) -> tuple[str, str]:
    """Where numbers that are there twice differ, and how; nothing if none do."""
    total = content["num_examples"]
    for number, row in enumerate(content["rows"]):
        accuracy, (low, high) = row["accuracy"], row["interval"]
        if abs(accuracy - row["correct"] / total) > _ROUNDING:
            said = f"accuracy {accuracy:.6g} is not {row['correct']:.6g} of {total}"
            return f"rows.{number}", said
        if not low - _ROUNDING <= accuracy <= high + _ROUNDING:
            return f"rows.{number}", f"{accuracy:.6g} is not in {row['interval']}"
    told, last = content["verdict"]["accuracy"], content["rows"][-1]["accuracy"]
    if abs(told - last) > _ROUNDING:
        return "verdict", f"accuracy {told:.6g} is not that of the rows, {last:.6g}"
    return "", ""


def read_report(directory: str | Path) -> dict[str, Any]:
    """The content of a directory's report.json, checked against the schema.

    Args:
      directory: Of the report, or the path of the file itself.

    Raises:
      InputError: there is none, it is not JSON, it is of another schema version, or a
        field is missing or of another type.

    Example:
      >>> import pathlib, tempfile
      >>> folder = pathlib.Path(tempfile.mkdtemp())
      >>> _ = (folder / "report.json").write_text('{"rows": []}')
      >>> read_report(folder)
      Traceback (most recent call last):
      ...
      robustjax._checks.InputError: `report` ... is of another schema version (none)...
    """
    if not isinstance(directory, str | Path):
        raise InputError(f"`directory` must be a path, got {directory!r}.")
    path = Path(directory)
    path = path if path.suffix == ".json" else path / "report.json"
    try:
        text = path.read_text(encoding="utf-8")
        content = json.loads(text, parse_constant=_no_constant)
    except FileNotFoundError:
        raise InputError(
            f"`report` {path} does not exist: run eval.py on the workdir first."
        ) from None
    except OSError as error:
        raise InputError(
            f"`report` {path} cannot be read: {error.strerror}."
        ) from error
    except (ValueError, RecursionError) as error:  # bad bytes, bad JSON, or NaN
        line = getattr(error, "lineno", None)
        at = "" if line is None else f" (line {line})"
        raise InputError(
            f"`report` {path} is not JSON{at}: run eval.py on its workdir again."
        ) from error
    check_report(content, str(path))
    return content


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON.")
