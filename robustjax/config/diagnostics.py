"""What a report says of a run beside its accuracies."""

from typing import Any

from robustjax import data, evaluation
from robustjax.config.classifiers import Classifier


def looks_at_images(classifier: Classifier) -> bool:
    """Whether `diagnostics` needs the adversarial images of an evaluation."""
    return classifier.critics is not None or classifier.bare is not None


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
    return found
