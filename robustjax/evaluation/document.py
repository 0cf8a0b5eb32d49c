"""A report before it is written: its content, JSON-able, and its pictures."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from robustjax.evaluation import _gallery, schema
from robustjax.evaluation._blocks import Picture, markdown
from robustjax.evaluation._outcome_sections import sections_of
from robustjax.evaluation._verdict import adaptive_rows, threat_of, verdict_of
from robustjax.evaluation.history import examples_of
from robustjax.evaluation.results import Robustness

_HEAD = ("workdir", "checkpoint", "data", "suite", "device", "commit", "seed")


class Document(NamedTuple):
    """A report.

    Attributes:
      content: Of report.json.
      pictures: By name.
    """

    content: dict[str, Any]
    pictures: dict[str, Picture]


def compose(
    summary: Mapping[str, Any],
    *,
    context: Mapping[str, Any],
    result: Robustness | None = None,
    images: np.ndarray | None = None,
    class_names: Sequence[str] | None = None,
    threat: Mapping[str, Any] | None = None,
    adaptive: Sequence[str] | None = None,
    indicators: Sequence[Any] | None = None,
    binarization: Mapping[str, Any] | None = None,
    test_time: Mapping[str, Any] | None = None,
    curve: Mapping[str, Any] | None = None,
    steps: Mapping[str, Any] | None = None,
    restarts: Mapping[str, Any] | None = None,
    surfaces: Mapping[str, Any] | None = None,
    heatmaps: Mapping[str, Any] | None = None,
    attention: Mapping[str, Any] | None = None,
    information: Mapping[str, Any] | None = None,
    defended: Mapping[str, Any] | None = None,
    neurons: Mapping[str, Any] | None = None,
    maps: Mapping[str, Any] | None = None,
    weights: Mapping[str, Any] | None = None,
    training: Mapping[str, Any] | None = None,
) -> Document:
    """A report of what is given: numbers, the verdict on them, pictures.

    Args:
      summary: From `summarise`.
      context: What else a reader needs: config, checkpoint, versions, device, commit.
      result: What `summary` is of: shows which attack broke which images, examples.
      images: The first clean images, float [S, H, W, C], for examples beside `result`.
      class_names: Of the K classes.
      threat: Block of the threat model, `name`, `eps`, `bounds`; by default that which
        all attacks that count have, and where they name none or several that of the
        context.
      adaptive: Names of attacks that know the defense; by default those that climb
        another view of the classifier than the one judged, but not the model without
        its transform.
      indicators: `Indicator`s, or dicts of their fields. None is "not measured".
      binarization: Summary of the binarization test.
      test_time: Of the protocol for test-time defenses.
      curve: `eps` and `accuracy` of a robustness curve, and perhaps `limit`, for each
        radius None or what no classifier exceeds there, and `num_examples`, if these
        are the first few.
      steps: From `step_curves`.
      restarts: `restarts`, ascending counts, `accuracy` [R] after as many, and
        `num_examples`.
      surfaces: `offsets`, `loss` and `broken` of a `loss_surface` as arrays, and
        `health` of gradients (`count`, and shares of images `vanished`, `not_finite`
        and of derivatives `zero_share`).
      heatmaps: Where the network looks: `layer`, `names` of columns (clean, attacks),
        `images` [R, M, H, W, C], `maps` by kind (`attention` from `attention_of`,
        `grad_cam`), each [R, M, h, w].
      attention: From `attention_of_models`, and `masks`, which they are in words.
      information: From `information_of`.
      defended: From `beside_bare`.
      neurons: From `neuron_shifts`.
      maps: `layer`, `names` of columns, `images` [R, M, H, W, C] and their `maps`
        [R, M, h, w] from `influence_maps`.
      weights: From `weights_by_class`.
      training: From `training_history`.

    Returns:
      Content that fits `schema.SCHEMA`, and pictures by name: `waterfall`, `curve`,
      `steps`, `restarts`, `paths`, `minimum_norms`, `confusion`, `examples`,
      `surfaces`, `heatmaps`, `attention`, `key_share`, `influence_maps`,
      `information`, `information_radar`, `neurons`, `weights`, `training`, each where
      there is something to show.

    Raises:
      InputError: what is given makes no report.
    """
    whole = dict(draws=1, warnings=[], inconsistent=[], access={})
    whole |= dict(waterfall=[], paths=[], confusion=None)
    content: dict[str, Any] = {**whole, **context, **summary}
    content["schema"] = dict(name=schema.NAME, version=schema.VERSION)
    content.setdefault("precision", _precision())
    threat = threat or threat_of(summary["rows"], context)
    judged = None if indicators is None else [_as_dict(one) for one in indicators]
    known = adaptive_rows(summary["rows"]) if adaptive is None else adaptive
    content |= dict(threat=threat, indicators=judged)
    parts = dict(
        binarization=binarization,
        test_time=test_time,
        curve=curve,
        steps=steps,
        restarts=restarts,
        gradients=None if surfaces is None else surfaces["health"],
        attention=_without(attention, "pictures"),
        heatmaps=_without(heatmaps, "images", "maps"),
        information=information,
        defended=defended,
        neurons=neurons,
        maps=_without(maps, "images", "maps"),
        weights=weights,
        training=training,
        class_names=None if class_names is None else list(class_names),
    )
    content |= {name: part for name, part in parts.items() if part is not None}
    content["verdict"] = verdict_of(
        content, threat=threat, indicators=judged, adaptive=known
    )
    content = plain(content | dict(pictures=[]))
    schema.check_report(content, str(context.get("workdir", "of these numbers")))
    shown = None
    if result is not None and images is not None:
        shown = examples_of(result, images, class_names)
    arrays = dict(result=result, examples=shown, surfaces=surfaces, maps=maps)
    arrays |= dict(attention=attention, heatmaps=heatmaps, names=class_names)
    pictures = _gallery.gallery(content, arrays)
    content["pictures"] = [
        dict(name=p.name, alt=p.alt, caption=p.caption) for p in pictures.values()
    ]
    return Document(content, pictures)


def report_markdown(content: Mapping[str, Any], pictures: Mapping[str, Picture]) -> str:
    """A report as Markdown; pictures are files beside it, NAME.png."""
    lines = ["# Robustness report", ""]
    lines += [f"- {name}: {content[name]}" for name in _HEAD if name in content]
    return "\n".join([*lines, "", markdown(sections_of(content), pictures)])


def plain(value: Any) -> Any:
    """What JSON knows: lists for arrays, None for numbers that are not finite.

    Example:
      >>> plain({"a": np.float32(0.5), "b": (1, float("nan"))})
      {'a': 0.5, 'b': [1, None]}
    """
    if isinstance(value, Mapping):
        return {str(name): plain(inside) for name, inside in value.items()}
    if isinstance(value, (np.ndarray, np.generic, jax.Array)):
        value = np.asarray(value).tolist()
    if isinstance(value, (list, tuple, set, frozenset)):
        return [plain(inside) for inside in value]
    if isinstance(value, float):
        return value if np.isfinite(value) else None
    return value if isinstance(value, (str, bool, int)) or value is None else str(value)


def _as_dict(indicator: Any) -> dict[str, Any]:
    return dict(indicator if isinstance(indicator, Mapping) else indicator._asdict())


def _without(part: Mapping[str, Any] | None, *names: str) -> dict[str, Any] | None:
    """The part that JSON holds."""
    if part is None:
        return None
    return {name: value for name, value in part.items() if name not in names}


def _precision() -> str:
    matmul = jax.config.jax_default_matmul_precision or "default"  # pyright: ignore
    wide = "on" if jax.config.jax_enable_x64 else "off"  # pyright: ignore
    return f"matmul {matmul}, x64 {wide}"
