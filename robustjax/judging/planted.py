"""The binarization test of what a suite attacked with."""

from collections.abc import Sequence
from typing import Any

from robustjax import evaluation, objectives
from robustjax._checks import InputError
from robustjax.attacks import StagedAttack, pgd
from robustjax.evaluation import AttackResult, NamedAttack, Robustness
from robustjax.judging.subject import Subject
from robustjax.types import Attack


def binarized(
    subject: Subject,
    result: Robustness,
    attacks: Sequence[NamedAttack],
    count: int,
    sizes: dict[str, Any],
) -> dict[str, Any]:
    """What `compose` takes as `binarization`.

    Args:
      subject: The classifier.
      result: Of `evaluate`.
      attacks: What it ran.
      count: Images.
      sizes: `batch_size` and `mesh`.

    Raises:
      InputError: the test cannot be run.
    """
    tested = _under_test(subject, result, attacks)
    return _binarized(subject, count, sizes, *tested)


def _under_test(
    subject: Subject, result: Robustness, attacks: Sequence[NamedAttack]
) -> list[NamedAttack]:
    """What the binarization test is of, and what stands in where that cannot be.

    The suite's strongest attack with its own settings; a staged one, such as
    AutoAttack, or one on another classifier or beyond the threat, has PGD on the margin
    in its place.
    """
    margin = NamedAttack(f"PGD-{subject.num_steps} on the margin", _on_margin(subject))

    def fits(row: AttackResult, named: NamedAttack) -> bool:
        own = named.source is None or named.source is subject.source
        compiles = not isinstance(named.attack, StagedAttack)
        return own and compiles and not evaluation.strays(row, subject.threat)

    ran = [(r, n) for r, n in zip(result.attacks, attacks, strict=True) if r.counts]
    if not ran:
        return [margin]
    strongest = min(ran, key=lambda one: (one[0].correct.mean(), not fits(*one)))
    return [strongest[1], margin] if fits(*strongest) else [margin]


def _on_margin(subject: Subject) -> Attack:
    return pgd(
        subject.threat,
        step_size=subject.step_size,
        num_steps=subject.num_steps,
        objective=objectives.margin,
    )


def _binarized(
    subject: Subject,
    count: int,
    sizes: dict[str, Any],
    tested: NamedAttack,
    *instead: NamedAttack,
) -> dict[str, Any]:
    """The test of an attack, or of another where it wants more classes than two."""
    features_fn, source = subject.features_fn, subject.source_features_fn
    if features_fn is None:
        features_fn, source = subject.logits_fn, subject.source
    try:
        found = evaluation.binarization(
            features_fn,
            subject.dataset,
            subject.threat,
            tested.attack,
            key=subject.key,
            num_images=count,
            source=source,
            **sizes,
        )
    except InputError:
        if not instead:
            raise
        return _binarized(subject, count, sizes, *instead)
    return dict(attack=tested.name, **evaluation.summarise_binarization(found))
