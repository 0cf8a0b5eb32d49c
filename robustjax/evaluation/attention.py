"""Where networks look: key areas of images, and how much of a map lies in them.

The claim of AT+ALP (Goodman et al., 2019) is a larger mean activation of adversarial
images in a key area; how it was measured is not known. Here a map m is an attention map
(`pairing.attention_map`) or Grad-CAM, c the share of each of its cells that a mask of
the image covers, s the map scaled to [0, 1] image by image, and

    key_mean = sum(s c) / sum(c),    key_share = sum(m c) / sum(m)

Scaled by its largest and smallest cell a diffuse map is large everywhere, so key_mean
alone rises without better localisation: read it beside key_share.
"""

import functools
from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from robustjax import _checks, influence, pairing
from robustjax._checks import InputError
from robustjax.evaluation.maps import check_places
from robustjax.types import Array, ModelFn, as_pytree

MapName = Literal["attention", "grad_cam"]
MAPS: tuple[MapName, ...] = ("attention", "grad_cam")


class KeyArea(NamedTuple):
    """Of each image, NaN where there is nothing: no mask, or a map that is 0.

    Attributes:
      mean: key_mean, [B]; 0 for a map without a largest cell.
      share: key_share, [B].
      ratio: key_share over the mask's share of the image, [B]; 1 is no localisation.
    """

    mean: np.ndarray
    share: np.ndarray
    ratio: np.ndarray


def grad_cam(model_fn: ModelFn, x: Array, y: Array, *, layer: str) -> Array:
    """Grad-CAM of classes at a layer, relu(sum_c w_c A_c), [B, h, w].

    w_c is the mean over positions of dz_y / dA_c. See "Grad-CAM: Visual Explanations
    from Deep Networks via Gradient-based Localization" (Selvaraju et al., 2017), eqs.
    (1) and (2).

    Args:
      model_fn: The classifier, unmodified.
      x: [B, H, W, C].
      y: Classes, [B].
      layer: A layer with outputs [B, h, w, C].

    Raises:
      InputError: there is no such layer, or its outputs have no places.

    Example:
      >>> from robustjax.types import ModelOutput
      >>> def model_fn(x, *, capture=(), taps=None):  # logits: means of two channels
      ...     a = x + (taps or {}).get("a", 0)
      ...     return ModelOutput(a.mean(axis=(1, 2)), {"a": a}, {})
      >>> x = jnp.array([[4.0, 0.0], [0.0, 8.0]]).reshape(1, 1, 2, 2)
      >>> grad_cam(model_fn, x, jnp.array([1]), layer="a").tolist()
      [[[0.0, 4.0]]]
    """
    check_places(model_fn, x, layer)
    slope = influence.gradient(model_fn, x, y, layer=layer, output=influence.logit)
    a = influence.captured(model_fn, x, layer)
    slope, a = (v.astype(jnp.promote_types(v.dtype, jnp.float32)) for v in (slope, a))
    weights = slope.mean(axis=(1, 2), keepdims=True)
    return jax.nn.relu((weights * a).sum(axis=3))


def attention_of(model_fn: ModelFn, x: Array, *, layer: str) -> Array:
    """The sum of squares over channels of a layer's output, [B, h, w].

    Raises:
      InputError: there is no such layer, or its outputs have no places.
    """
    check_places(model_fn, x, layer)
    return pairing.attention_map(influence.captured(model_fn, x, layer))


def cover(masks: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """The share of each cell of a map that a mask covers, [B, h, w].

    Args:
      masks: [B, H, W], of pixels.
      shape: (h, w) of the map, at most (H, W); need not divide them.

    Raises:
      InputError: a map is larger than the masks.

    Example:
      >>> cover(np.array([[[1, 1, 0, 0, 0, 0]]]), (1, 4)).tolist()
      [[[1.0, 0.33..., 0.0, 0.0]]]
    """
    masks = np.asarray(masks, np.float64)
    if masks.ndim != 3:
        raise InputError(f"`masks` must be [B, H, W], got shape {masks.shape}.")
    if not ((masks >= 0) & (masks <= 1)).all():
        raise InputError(
            f"`masks` must be 1 in the key area and 0 elsewhere, got {masks.min():g} "
            f"to {masks.max():g}: compare a segmentation with its label."
        )
    down, across = (
        _overlap(cells, pixels)
        for cells, pixels in zip(shape, masks.shape[1:], strict=True)
    )
    return np.einsum("ih,bhw,jw->bij", down, masks, across)


def _overlap(cells: int, pixels: int) -> np.ndarray:
    """The share of each cell of a line that lies in each pixel, [cells, pixels]."""
    if cells > pixels:
        raise InputError(
            f"`masks` must be no smaller than the maps, got {pixels} pixels for "
            f"{cells} cells."
        )
    edges = np.arange(cells + 1) * pixels / cells
    left = np.maximum(edges[:-1, None], np.arange(pixels)[None])
    right = np.minimum(edges[1:, None], np.arange(1, pixels + 1)[None])
    return np.maximum(right - left, 0) * cells / pixels


def key_area(maps: np.ndarray, masks: np.ndarray) -> KeyArea:
    """How much of maps lies in masks.

    Args:
      maps: Non-negative, [B, h, w].
      masks: Of the images' pixels, [B, H, W]: 1 or True in the key area.

    Raises:
      InputError: the shapes do not fit.

    Example:
      >>> maps = np.array([[[1.0, 0.0], [3.0, 0.0]]])
      >>> found = key_area(maps, np.array([[[0, 0], [1, 0]]]))
      >>> found.mean.tolist(), found.share.tolist(), found.ratio.tolist()
      ([1.0], [0.75], [3.0])
    """
    maps = np.asarray(maps, np.float64)
    if len(maps) != len(masks):
        raise InputError(
            f"`masks` must be one for each of {len(maps)} images, got {len(masks)}."
        )
    c = cover(masks, maps.shape[1:])
    axes = (1, 2)
    low, high = maps.min(axes, keepdims=True), maps.max(axes, keepdims=True)
    scaled = np.where(high > low, (maps - low) / np.where(high > low, high - low, 1), 0)
    with np.errstate(invalid="ignore", divide="ignore"):
        share = (maps * c).sum(axes) / maps.sum(axes)
        return KeyArea(
            (scaled * c).sum(axes) / c.sum(axes),
            np.where(c.sum(axes) > 0, share, np.nan),
            share / c.mean(axes),
        )


def reference_masks(
    maps: np.ndarray, shape: tuple[int, int], *, share: float = 0.25
) -> np.ndarray:
    """Masks of pixels from a reference model's maps of clean images, [B, H, W] bool.

    The largest cells, rounded up to whole ones; where several are equal, the first.

    Args:
      maps: [B, h, w].
      shape: (H, W) of the images.
      share: Of the cells.

    Raises:
      InputError: `share` is not in (0, 1].

    Example:
      >>> reference_masks(np.array([[[1, 2], [4, 3]]]), (2, 4)).astype(int).tolist()
      [[[0, 0, 0, 0], [1, 1, 0, 0]]]
    """
    _checks.positive(share=share)
    _checks.fraction(share=share)
    maps = np.asarray(maps)
    flat = maps.reshape(len(maps), -1)
    kept = np.zeros(flat.shape, bool)
    count = int(np.ceil(share * flat.shape[1]))
    most = np.argsort(-flat, axis=1, kind="stable")[:, :count]
    np.put_along_axis(kept, most, True, axis=1)
    rows, columns = (
        (np.arange(pixels) + 0.5) * cells // pixels
        for pixels, cells in zip(shape, maps.shape[1:], strict=True)
    )
    return kept.reshape(maps.shape)[:, rows.astype(int)][:, :, columns.astype(int)]


def box_masks(boxes: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """Masks of pixels inside boxes, [B, H, W] bool.

    Args:
      boxes: (top, left, bottom, right) of each image, the last two exclusive, [B, 4];
        four times NaN for an image without a box, whose mask is empty.
      shape: (H, W).

    Raises:
      InputError: a box is empty or reaches beyond the image.

    Example:
      >>> box_masks(np.array([[0, 1, 1, 3]]), (2, 3)).astype(int).tolist()
      [[[0, 1, 1], [0, 0, 0]]]
    """
    boxes = np.asarray(boxes)
    if boxes.ndim != 2 or boxes.shape[1] != 4:
        raise InputError(f"`boxes` must be [B, 4], got shape {boxes.shape}.")
    top, left, bottom, right = boxes.T
    whole = (top >= 0) & (left >= 0) & (bottom <= shape[0]) & (right <= shape[1])
    fits = whole & (top < bottom) & (left < right)
    fits |= np.isnan(boxes.astype(float)).all(axis=1)
    if not fits.all():
        raise InputError(
            f"`boxes` must be (top, left, bottom, right) inside {shape}, or NaN for "
            f"none, got {boxes[~fits][0].tolist()}."
        )
    rows, columns = (np.arange(size)[None] for size in shape)
    inside = (rows >= top[:, None]) & (rows < bottom[:, None])
    across = (columns >= left[:, None]) & (columns < right[:, None])
    return inside[:, :, None] & across[:, None, :]


class Subject(NamedTuple):
    """A model, and the images that it is shown.

    Attributes:
      model_fn: The classifier.
      layer: Whose maps.
      images: By name, "clean" and attacks on this model, [N, H, W, C] each.
    """

    model_fn: ModelFn
    layer: str
    images: Mapping[str, np.ndarray]


def attention_of_models(
    subjects: Mapping[str, Subject],
    labels: np.ndarray,
    masks: np.ndarray,
    *,
    maps: Sequence[MapName] = MAPS,
    batch_size: int = 256,
) -> dict[str, Any]:
    """Key areas of several models on the same images, JSON-able but for `pictures`.

    All images with a mask count, whether they are classified correctly or not; for
    `key_share` and `ratio` those of them on which all models have a map that is not 0,
    clean and attacked, so that rows of a kind of map compare.

    Args:
      subjects: By the model's name.
      labels: [N].
      masks: [N, H, W], see `reference_masks` and `box_masks`, or a segmentation.
      maps: Which.
      batch_size: Images at a time.

    Returns:
      `rows`: `model`, `images`, `map`, `count` of the images with a mask, `compared` of
      those whose shares count, and for `key_mean`, `key_share` and `ratio` their mean
      and the half-width of its 95% interval over images; `shares`, the key_share of
      each image by (model, images, map); `pictures`, maps and images of the first four
      for `attention.png`.

    Raises:
      InputError: shapes do not fit, or a layer has no maps.
    """
    masks, labels = np.asarray(masks), np.asarray(labels)
    areas: dict[tuple[str, str, MapName], KeyArea] = {}
    pictures = {}
    for model, subject in subjects.items():
        for name, images in subject.images.items():
            if images.shape[:3] != masks.shape:
                raise InputError(
                    f"`masks` must be {images.shape[:3]} for the images {name!r} of "
                    f"{model!r}, got {masks.shape}."
                )
            for kind in maps:
                found = _maps(kind, subject, images, labels, batch_size)
                areas[model, name, kind] = key_area(found, masks)
                pictures[(model, name, kind)] = (np.asarray(images[:4]), found[:4])
    compared = {
        kind: np.all(
            [np.isfinite(a.share) for w, a in areas.items() if w[2] == kind], 0
        )
        for kind in maps
    }
    rows, shares = [], []
    for (model, name, kind), area in areas.items():
        row = dict(model=model, images=name, map=kind)
        shares.append(row | dict(values=_plain(area.share)))
        rows.append(row | _figures(area, compared[kind]))
    return dict(num_examples=len(labels), rows=rows, shares=shares, pictures=pictures)


def _maps(
    kind: MapName, subject: Subject, images: Any, labels: Any, size: int
) -> np.ndarray:
    held = as_pytree(subject.model_fn)
    parts = [
        np.asarray(
            _one_map(
                kind,
                subject.layer,
                held,
                jnp.asarray(images[i : i + size]),
                jnp.asarray(labels[i : i + size]),
            )
        )
        for i in range(0, len(images), size)
    ]
    return np.concatenate(parts)


@functools.partial(jax.jit, static_argnums=(0, 1))
def _one_map(kind: MapName, layer: str, model_fn: ModelFn, x: Array, y: Array) -> Array:
    if kind == "attention":
        return attention_of(model_fn, x, layer=layer)
    return grad_cam(model_fn, x, y, layer=layer)


def _figures(area: KeyArea, compared: np.ndarray) -> dict[str, Any]:
    masked = np.isfinite(area.mean)
    figures: dict[str, Any] = dict(
        count=int(masked.sum()), compared=int(compared.sum())
    )
    for name, values, kept in (
        ("key_mean", area.mean, masked),
        ("key_share", area.share, compared),
        ("ratio", area.ratio, compared),
    ):
        chosen = values[kept]
        figures[name] = float(chosen.mean()) if chosen.size else None
        half = 1.96 * chosen.std(ddof=1) / len(chosen) ** 0.5 if len(chosen) > 1 else 0
        figures[f"{name}_half_width"] = float(half)
    return figures


def _plain(values: np.ndarray) -> list[float | None]:
    return [float(v) if np.isfinite(v) else None for v in values]
