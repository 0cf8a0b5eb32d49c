"""What a report says of a run beside its accuracies."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from robustjax import data, evaluation, interpolation
from robustjax._checks import InputError
from robustjax.config.classifiers import Classifier
from robustjax.evaluation.maps import check_places
from robustjax.interpolation import Template
from robustjax.types import Array

_SHOWN, _ATTACKS_SHOWN = 4, 2  # images and attacks in pictures of the inside
_LAST_MAPS = ("stage4", "stage3", "stage2", "stage1")


def looks_at_images(classifier: Classifier) -> bool:
    """Whether `diagnostics` needs the adversarial images of an evaluation."""
    return classifier.critics is not None or classifier.bare is not None


def diagnostics(
    classifier: Classifier,
    result: evaluation.Robustness,
    test: data.Dataset,
    *,
    layer: str | None = None,
    **options: Any,
) -> dict[str, Any]:
    """Keywords of `evaluation.write_report`.

    Args:
      classifier: That of the run.
      result: Of `evaluate`, with `keep_adversarial` where `looks_at_images`.
      test: What it was evaluated on.
      layer: Whose maps are shown; by default the last stage that has places.
      **options: `batch_size` and `mesh`.
    """
    found: dict[str, Any] = {}
    if classifier.critics is not None and classifier.critics.probes:
        found["information"] = evaluation.information_of(
            result, test, classifier.logits_fn, **classifier.critics.probes, **options
        )
    if classifier.bare is not None:
        found["defended"] = evaluation.beside_bare(
            result, test, classifier.bare, **options
        )
        found |= _protocol(classifier, result, test, **options)
    if classifier.neurons is not None:
        found["neurons"] = evaluation.neuron_shifts(
            result, test, **classifier.neurons, **options
        )
    shown = _shown(result, test)
    images = np.stack(list(shown.values()), axis=1)
    labels = jnp.asarray(test.labels[: len(images)])
    rows = lambda maps: np.stack(maps, axis=1)
    if classifier.maps_of:
        of = dict(layer=classifier.maps_of)
        maps = [
            evaluation.influence_maps(classifier.model_fn, jnp.asarray(x), labels, **of)
            for x in shown.values()
        ]
        found["maps"] = dict(of, names=list(shown), images=images, maps=rows(maps))
    looked = layer or _last_maps(classifier, images[:, 0])
    if looked:
        maps = {"attention": [], "grad_cam": []}
        for x in map(jnp.asarray, shown.values()):
            given = (classifier.model_fn, x)
            maps["attention"].append(evaluation.attention_of(*given, layer=looked))
            maps["grad_cam"].append(evaluation.grad_cam(*given, labels, layer=looked))
        maps = {kind: rows(values) for kind, values in maps.items()}
        found["heatmaps"] = dict(
            layer=looked, names=list(shown), images=images, maps=maps
        )
    template = _template(classifier)
    if template is not None:
        weights = {name: _weights(classifier, template, x) for name, x in shown.items()}
        found["weights"] = evaluation.weights_by_class(
            weights, np.asarray(template.labels), labels.tolist(), test.num_classes
        )
    return found


def check_layer(classifier: Classifier, test: data.Dataset, layer: str | None) -> None:
    """Says before any attack that a layer whose maps will be shown has none.

    Args:
      classifier: That of the run, with its `evaluation.influence_maps`.
      test: What it will be evaluated on.
      layer: Of `diagnostics`.

    Raises:
      InputError: there is no such layer, or its outputs have no places.
    """
    image = data.as_float(jnp.asarray(test.images[:1]))
    for name, shown in (("layer", layer), ("influence_maps", classifier.maps_of)):
        if shown:
            argument = f"evaluation.{name}"
            check_places(classifier.model_fn, image, shown, argument=argument)


def features_fn(classifier: Classifier) -> Any:
    """All of a plain classifier but its last layer; None behind a transform or head."""
    if classifier.has_transform or classifier.has_head:
        return None
    layer = classifier.feature_layer
    return evaluation.features_of(classifier.model_fn, layer)


def _protocol(
    classifier: Classifier,
    result: evaluation.Robustness,
    test: data.Dataset,
    **options: Any,
) -> dict[str, Any]:
    """The protocol for test-time defenses, where the model alone was attacked too."""
    counted = {a.name: a.parameters.get("view") for a in result.attacks if a.counts}
    bare = [
        name
        for name, view in counted.items()
        if view and view.get("transform", 0) is None
    ]
    if not bare or len(bare) == len(counted) or classifier.bare is None:
        return {}
    judged = (result, test, classifier.logits_fn, classifier.bare)
    found = evaluation.summarise_test_time(*judged, on_base=bare, **options)
    return {"test_time": found}


def _shown(result: evaluation.Robustness, test: data.Dataset) -> dict[str, np.ndarray]:
    """The first images, clean and under the first attacks, float [M, H, W, C]."""
    count = min(_SHOWN, len(result.index))
    found = {"clean": np.asarray(data.as_float(jnp.asarray(test.images[:count])))}
    for attack in result.attacks[:_ATTACKS_SHOWN]:
        if attack.shown is not None:
            found[attack.name] = np.asarray(attack.shown[:count])
    return found


def _last_maps(classifier: Classifier, x: np.ndarray) -> str | None:
    """The last stage of the network whose output has more than one place."""
    for name in _LAST_MAPS:
        ask = lambda x, name=name: classifier.model_fn(x, capture=(name,))
        try:
            shape = jax.eval_shape(ask, jnp.asarray(x)).features[name].shape
        except InputError:
            continue
        if len(shape) == 4 and shape[1] * shape[2] > 1:
            return name
    return None


def _template(classifier: Classifier) -> Template | None:
    """That of an interpolating head which has one set."""
    if not classifier.has_head:
        return None
    leaf = lambda node: isinstance(node, Template)
    leaves = jax.tree.leaves(classifier.logits_fn, is_leaf=leaf)
    found = [one for one in leaves if leaf(one)]
    return found[0] if len(found) == 1 and found[0].features.ndim == 2 else None


def _weights(classifier: Classifier, template: Template, x: np.ndarray) -> np.ndarray:
    """Of templates for queries, [Q, T], as the graph has them; most are 0."""
    layer, similarity = classifier.feature_layer, template.similarity
    queries: Array = classifier.model_fn(jnp.asarray(x), capture=(layer,)).features[
        layer
    ]
    queries = queries.reshape(len(x), -1).astype(template.features.dtype)
    most = len(template.features)
    count = min(similarity.num_neighbors or most, most)
    rank = min(similarity.bandwidth_rank, count)
    near = interpolation.nearest(queries, template.features, count)
    square = near.square_distance
    bandwidth = square[:, rank - 1 : rank]
    if similarity.bandwidth is not None:
        bandwidth = jnp.float32(similarity.bandwidth) ** 2
    weights = interpolation.weights(square, bandwidth, similarity.kernel)
    found = np.zeros((len(x), len(template.features)), np.float32)
    np.put_along_axis(found, np.asarray(near.index), np.asarray(weights), axis=1)
    return found
