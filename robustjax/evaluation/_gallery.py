"""All pictures of a report, each with words for those who do not see it."""

import functools
import io
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from robustjax.evaluation import _image_pictures as images
from robustjax.evaluation import _outcome_pictures as outcomes
from robustjax.evaluation import _pictures as diagnostics
from robustjax.evaluation._blocks import Picture
from robustjax.evaluation._verdict import percent

Sketch = tuple[str, Callable[[io.BytesIO], None], str, str]
"""Name, what draws it, alternative text, caption."""


def gallery(
    content: Mapping[str, Any], arrays: Mapping[str, Any]
) -> dict[str, Picture]:
    """Draws what there is to draw.

    Args:
      content: Of the report.
      arrays: What JSON does not hold: `result`, `examples`, `surfaces`, `maps`,
        `attention`, `heatmaps`, each where it is given, and `names` of classes.
    """
    drawn = {}
    for sketches in (_outcomes, _curves, _shown, _diagnostics):
        for name, draw, alt, caption in sketches(content, arrays):
            buffer = io.BytesIO()
            draw(buffer)
            drawn[name] = Picture(name, buffer.getvalue(), alt, caption)
    return drawn


def _with(draw: Callable[..., None], *given: Any, **options: Any) -> Any:
    return lambda target: draw(target, *given, **options)


def _outcomes(
    content: Mapping[str, Any], arrays: Mapping[str, Any]
) -> Iterator[Sketch]:
    total = content["num_examples"]
    steps = content.get("waterfall") or []
    if len(steps) > 1:
        told = "; ".join(f"{s['attack']} {s['broken']:g}" for s in steps[1:])
        alt = (
            f"Of {total} images {steps[0]['broken']:g} are wrong without an attack. "
            f"Broken by an attack and none before it: {told}. "
            f"{percent(steps[-1]['accuracy'])} are left."
        )
        draw = _with(outcomes.draw_waterfall, steps, total, arrays.get("result"))
        caption = "Attacks in the order run. One that breaks many after AutoAttack"
        yield "waterfall", draw, alt, f"{caption} says that AutoAttack failed."
    rows = [r for r in content["rows"] if "histogram" in r.get("minimum_norm", ())]
    if rows:
        alt = "Histograms of the smallest perturbations found. " + " ".join(
            f"{r['name']}: median {r['minimum_norm']['median_of_correct'] or 'none'}, "
            f"{r['minimum_norm']['histogram']['unbroken']} of {total} unbroken."
            for r in rows
        )
        yield "minimum_norms", _with(outcomes.draw_minimum_norms, rows), alt, ""
    counts = content.get("confusion")
    if counts:
        names = _names(arrays, len(counts))
        right = sum(row[i] for i, row in enumerate(counts))
        off = [
            (n, names[i], names[j])
            for i, row in enumerate(counts)
            for j, n in enumerate(row)
            if i != j and n
        ]
        most = "; ".join(
            f"{a} as {b}: {n}" for n, a, b in sorted(off, reverse=True)[:3]
        )
        alt = (
            f"Predictions on the worst point of each image: {right} of {total} right. "
        )
        alt += f"Most frequent mistakes: {most}." if off else "No mistakes."
        yield "confusion", _with(outcomes.draw_confusion, counts, names), alt, ""
    paths = content.get("paths") or []
    if paths:
        alt = "Losses along the paths of attacks. " + " ".join(
            f"{p['attack']}: median {_short(p['median'][0])} at step {p['steps'][0]}, "
            f"{_short(p['median'][-1])} at step {p['steps'][-1]}"
            + (f", {percent(p['broken'][-1])} broken." if "broken" in p else ".")
            for p in paths
        )
        caption = (
            "Over images that are right without an attack. A loss that still rises at "
            "the end asks for more steps. Lines with ½: checkpoints of APGD, and the "
            "share of images that halved their step there."
        )
        if len(paths) > outcomes.MOST:
            caption += f" The first {outcomes.MOST} of {len(paths)} attacks."
        yield "paths", _with(outcomes.draw_paths, paths), alt, caption


def _curves(content: Mapping[str, Any], arrays: Mapping[str, Any]) -> Iterator[Sketch]:
    total = content["num_examples"]
    if "curve" in content:
        curve = content["curve"]
        chance = content.get("class_prior")
        eps = (content.get("threat") or {}).get("eps")
        eps = float(eps) if eps is not None else None
        pairs = zip(curve["eps"], curve["accuracy"], strict=True)
        told = ", ".join(f"{percent(a)} at {e:.4g}" for e, a in pairs)
        number = curve.get("num_examples") or total
        draw = _with(outcomes.draw_curve, curve, number, chance=chance, eps=eps)
        caption = "It has to fall to 0 or below the dashed line, or the attack failed."
        yield "curve", draw, f"Accuracy against eps: {told}.", caption
    if "restarts" in content:
        one = content["restarts"]
        pairs = zip(one["restarts"], one["accuracy"], strict=True)
        told = ", ".join(f"{percent(a)} after {n}" for n, a in pairs)
        alt = f"Accuracy against restarts: {told}."
        yield "restarts", _with(outcomes.draw_restarts, one), alt, ""
    if "steps" in content:
        one = content["steps"]
        told = "; ".join(
            f"step size {size:.3g}: {percent(row[0])} after {one['steps'][0]} steps, "
            f"{percent(row[-1])} after {one['steps'][-1]}"
            for size, row in zip(one["step_sizes"], one["accuracy"], strict=True)
        )
        alt = f"Accuracy and loss against steps. {told}."
        yield "steps", _with(outcomes.draw_steps, one), alt, ""
    if "training" in content:
        one = content["training"]
        told = ", ".join(f"{s['name']} {s['value'][-1]:.4g}" for s in one["series"])
        alt = f"Training curves; last values: {told}. Judged: step {one.get('chosen')}."
        yield "training", _with(diagnostics.draw_training, one), alt, ""


def _shown(content: Mapping[str, Any], arrays: Mapping[str, Any]) -> Iterator[Sketch]:
    if arrays.get("examples") is not None:
        one = arrays["examples"]
        told = "; ".join(
            f"{w['clean']}, under {w['adversarial']}".replace("\n", " ")
            for w in one["words"]
        )
        alt = f"{len(one['clean'])} images, clean, adversarial, difference: {told}."
        caption = (
            "Titles in red: broken, looked for in the whole set, so no sample of it. "
            "The difference is amplified around grey."
        )
        yield "examples", _with(images.draw_examples, one), alt, caption
    if arrays.get("surfaces") is not None:
        one = arrays["surfaces"]
        wrong = (one["broken"].mean(axis=(1, 2)) * 100).round().astype(int).tolist()
        alt = (
            f"The loss over a plane through each of {len(one['loss'])} images; the "
            f"share of the plane that is misclassified, in percent: {wrong}."
        )
        caption = "White lines: where the prediction changes. +: the image itself."
        yield "surfaces", _with(images.draw_surfaces, one), alt, caption
    if arrays.get("heatmaps") is not None:
        one = arrays["heatmaps"]
        alt = (
            f"Maps of the layer {one['layer']} over {len(one['images'])} images, for "
            f"{', '.join(one['names'])}: {', '.join(one['maps'])}."
        )
        yield "heatmaps", _with(images.draw_heatmaps, one), alt, ""
    if arrays.get("maps") is not None:
        one = arrays["maps"]
        alt = (
            f"Where influence of the layer {one['layer']} sits in {len(one['images'])} "
            f"images, for {', '.join(one['names'])}."
        )
        yield "influence_maps", _with(images.draw_influence_maps, one), alt, ""
    if "weights" in content:
        one = content["weights"]
        size = len(one["by_class"][0][0])
        told = "; ".join(
            f"{name} {percent(_own_weight(one, m))}"
            for m, name in enumerate(one["names"])
        )
        alt = f"Template weight by class. Mean weight of the label's class: {told}."
        draw = _with(images.draw_weights, one, _names(arrays, size))
        yield "weights", draw, alt, "Grey: the class of the label."


def _own_weight(weights: Mapping[str, Any], condition: int) -> float:
    pairs = zip(weights["by_class"], weights["labels"], strict=True)
    own = [table[condition][label] for table, label in pairs]
    return sum(own) / len(own)


def _diagnostics(
    content: Mapping[str, Any], arrays: Mapping[str, Any]
) -> Iterator[Sketch]:
    if arrays.get("attention") is not None:
        one = arrays["attention"]
        told = "; ".join(
            f"{r['model']}, {r['images']}, {r['map']}: {_short(r['key_share'])}"
            for r in one["rows"]
        )
        alt = "Maps over the first images, clean and adversarial."
        yield "attention", _with(images.draw_attention, one), alt, ""
        alt = f"Histograms of the share of maps in key areas; means: {told}."
        yield "key_share", _with(diagnostics.draw_shares, one), alt, ""
    if "information" in content:
        one = content["information"]
        told = "; ".join(map(functools.partial(_estimates, one), one["attacks"]))
        alt = f"Means of estimated information by attack. {told}."
        yield "information", _with(diagnostics.draw_information, one), alt, ""
        if diagnostics.has_radar(one):
            draw = _with(diagnostics.draw_radar, one)
            yield "information_radar", draw, f"The same means on axes. {told}.", ""
    if "neurons" in content:
        one = content["neurons"]
        told = "; ".join(
            f"{a['name']}: front {_short(a['groups']['all']['front'])}, "
            f"tail {_short(a['groups']['all']['tail'])}"
            for a in one["attacks"]
        )
        alt = (
            f"Mean shifts of neurons of the layer {one['layer']} by influence. {told}."
        )
        yield "neurons", _with(diagnostics.draw_neurons, one), alt, ""


def _estimates(information: Mapping[str, Any], attack: Mapping[str, Any]) -> str:
    row = attack["groups"]["all"]
    told = (f"{q} {_short(row[q]['mean'])}" for q in information["quantities"])
    return f"{attack['name']}: {', '.join(told)}"


def _names(arrays: Mapping[str, Any], size: int) -> list[str]:
    given = list(arrays.get("names") or [])
    return given[:size] if len(given) >= size else [str(k) for k in range(size)]


def _short(value: float | None) -> str:
    return "none" if value is None else f"{value:.3g}"
