"""What a report says of a run beside its accuracies."""

from typing import Any

import jax.numpy as jnp
import numpy as np

from robustjax import data, evaluation
from robustjax.config.classifiers import Classifier

_SHOWN, _ATTACKS_SHOWN = 4, 2  # images and attacks in a picture of influence


def looks_at_images(classifier: Classifier) -> bool:
    """Whether `diagnostics` needs the adversarial images of an evaluation."""
    drawn = bool(classifier.maps_of)
    return drawn or classifier.critics is not None or classifier.bare is not None


def diagnostics(
    classifier: Classifier,
    result: evaluation.Robustness,
    test: data.Dataset,
    **options: Any,
) -> dict[str, Any]:
    """Keywords of `evaluation.write_report`.

    Args:
      classifier: That of the run.
      result: Of `evaluate`, with `keep_adversarial` where `looks_at_images`.
      test: What it was evaluated on.
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
    if classifier.neurons is not None:
        found["neurons"] = evaluation.neuron_shifts(
            result, test, **classifier.neurons, **options
        )
    layer = classifier.maps_of
    if layer:
        found["maps"] = _maps(classifier, result, test, layer)
    return found


def _maps(
    classifier: Classifier,
    result: evaluation.Robustness,
    test: data.Dataset,
    layer: str,
) -> dict[str, Any]:
    """Influence over the first images, clean and under the first attacks."""
    count = min(_SHOWN, len(result.index))
    labels = jnp.asarray(test.labels[:count])
    found: dict[str, Any] = {"clean": test.images[:count]}
    for attack in result.attacks[:_ATTACKS_SHOWN]:
        if attack.x_adv is not None:
            found[attack.name] = attack.x_adv[:count]
    images = [np.asarray(data.as_float(jnp.asarray(x))) for x in found.values()]
    maps = [
        evaluation.influence_maps(
            classifier.model_fn, jnp.asarray(x), labels, layer=layer
        )
        for x in images
    ]
    rows = lambda parts: np.stack(parts, axis=1)
    return dict(layer=layer, names=list(found), images=rows(images), maps=rows(maps))
