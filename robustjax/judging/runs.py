"""Judges what train.py left in a working directory."""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax

from robustjax import build, evaluation, training
from robustjax._checks import non_negative
from robustjax.judging.context import context_of
from robustjax.judging.evidence import gathered, surfaces
from robustjax.judging.progress import Bar
from robustjax.judging.subject import Subject, Wanted, check, seconds_of


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """How a run is judged; None is what its config says.

    Attributes:
      suite: A name, or the path of a .py file.
      checkpoint: "best", "last", or a step.
      network: Which of the run's classifiers.
      num_examples: Only the first that many; None for all.
      attack: Overrides of `config.evaluation`, see `build.evaluation_with`.
      save_adversarial: Whether the images of each attack are kept.
      curve: Radii of a robustness curve, ascending, as given.
      steps: Numbers of steps of a curve, as given.
      surfaces: The loss around that many images.
      data_dir: Where the data are, if they moved.
      seed: Of the attacks.
      head: Another head.
      transform: Another transform, or "none".
      changes: "block.name=value" of the config.
      wanted: What else is looked at.
    """

    suite: str = "quick"
    checkpoint: str = "best"
    network: str = "model"
    num_examples: int | None = None
    attack: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    save_adversarial: bool = False
    curve: Sequence[str] | None = None
    steps: Sequence[str] | None = None
    surfaces: int = 0
    data_dir: str | None = None
    seed: int = 0
    head: str | None = None
    transform: str | None = None
    changes: Sequence[str] = ()
    wanted: Wanted = dataclasses.field(default_factory=Wanted)

    def __post_init__(self):
        """Raises an InputError if a number is out of range."""
        non_negative(surfaces=self.surfaces)


class Judged(NamedTuple):
    """What came out.

    Attributes:
      accuracies: By row of the table.
      inconsistent: Where attackers who know less did more, one line each.
      forget: Removes from disk what was kept to go on with; does nothing twice.
    """

    accuracies: dict[str, float]
    inconsistent: list[str]
    forget: Callable[[], None]


def judge(
    workdir: Path, report: Path, options: Options, *, keep_state: bool = False
) -> Judged:
    """Evaluates one run and writes its report.

    Prints an estimate of the time, a progress bar, and the table. A killed call goes on
    at the last block of images that it finished.

    Args:
      workdir: Of a run of train.py.
      report: Where to write.
      options: What to run.
      keep_state: Whether finished blocks stay on disk, from which the same call has
        its result soon: one of several runs is done, the others not.

    Raises:
      InputError: there is no such run, or something does not fit.
    """
    ready = _ready(workdir, options)
    unfinished = report.parent / f"{report.resolve().name}.unfinished"
    result, more = _measured(ready, options, unfinished)
    more["training"] = ready.history
    summary = evaluation.summarise(result)
    summary["warnings"] += evaluation.beyond(result, ready.subject.threat)
    if more.get("curve"):
        summary["warnings"] += evaluation.above_limit(more["curve"])
    if jax.process_index() == 0:
        context = context_of(
            ready.subject.key,
            workdir=str(workdir),
            checkpoint=ready.restored.step,
            data=repr(ready.subject.dataset),
            suite=options.suite,
            seed=options.seed,
            threat=dict(ready.block["threat"]),
            evaluation=dict(ready.block),
            wanted=dataclasses.asdict(options.wanted),
            config=build.resolved(ready.config),
        )
        evaluation.write_report(report, summary, context=context, **more)
        if options.save_adversarial:
            evaluation.save_adversarial(report / "adversarial", result)
        where = f"{workdir}, checkpoint of step {ready.restored.step}"
        flags, test = more.get("indicators") or (), more.get("binarization")
        _tell(where, summary, flags, test, report)
    accuracies = {row["name"]: row["accuracy"] for row in summary["rows"]}
    own = dataclasses.replace(result, attacks=())  # the arrays are not needed
    forget = functools.partial(_forget, unfinished, own)
    if not keep_state:
        forget()
    return Judged(accuracies, summary["inconsistent"], forget)


class _Ready(NamedTuple):
    """All that can be wrong has been looked at.

    Attributes:
      config: Of the run, with what was overridden.
      block: `config.evaluation`, likewise.
      restored: The run.
      attacks: Of the suite.
      subject: The classifier and its images.
      curve: Radii and the attack at one of them, or None.
      steps: Of a curve over steps, or None.
      areas: Key areas, or None.
      history: Curves of the training.
    """

    config: Any
    block: Any
    restored: Any
    attacks: Sequence[evaluation.NamedAttack]
    subject: Subject
    curve: tuple[Any, Any] | None
    steps: Any
    areas: Any
    history: Any


def _ready(workdir: Path, options: Options) -> _Ready:
    """Restores the run and builds what is to be run on it."""
    config: Any = build.read_config(workdir)
    build.override(
        *(config, options.head, options.transform, options.changes),
        any_evaluation=options.suite.endswith(".py"),
    )
    if options.data_dir is not None:
        config.data.data_dir = options.data_dir
    block = build.evaluation_with(config.evaluation, **options.attack)
    curve = None
    if options.curve is not None:
        curve = build.as_radii(options.curve, block), build.curve_attack(block)
    steps = None if options.steps is None else build.as_steps(options.steps, block)
    build.check_suite(options.suite)
    mesh = training.data_mesh()
    restored = build.restore(
        workdir,
        mesh,
        config=config,
        checkpoint=options.checkpoint,
        network=options.network,
    )
    test, classifier = restored.run.splits.test, restored.classifier
    another = build.another_run(mesh, restored)
    attacks = build.build_suite(options.suite, block, another, classifier)
    total = options.num_examples or len(test)
    areas = build.key_areas(block, test, total, classifier, another.model_fn)
    build.check_layer(classifier, test, block.get("layer"))
    subject = Subject(
        logits_fn=classifier.logits_fn,
        source=classifier.source,
        dataset=test,
        threat=build.build_threat(block["threat"]),
        step_size=block["step_size"],
        num_steps=block["num_steps"],
        features_fn=build.features_fn(classifier),
        key=jax.random.key(options.seed),
        batch_size=block["batch_size"],
        num_examples=options.num_examples,
        mesh=mesh,
    )
    check(options.wanted, subject, options.surfaces)
    history = evaluation.training_history(workdir, restored.step)
    looked = curve, steps, areas, history
    return _Ready(config, block, restored, attacks, subject, *looked)


def _measured(
    ready: _Ready, options: Options, unfinished: Path
) -> tuple[evaluation.Robustness, dict[str, Any]]:
    """Runs the attacks and what is looked at beside, with a bar that says how far."""
    subject, classifier = ready.subject, ready.restored.classifier
    predict, test = subject.logits_fn, subject.dataset
    sizes: dict[str, Any] = dict(batch_size=subject.batch_size, mesh=subject.mesh)
    chosen = dict(sizes, key=subject.key, num_examples=subject.num_examples)
    expected = evaluation.estimate(
        predict, test, ready.attacks, num_examples=subject.num_examples, **sizes
    )
    beside = seconds_of(options.wanted, subject, expected)
    evaluation.begin(unfinished)
    shown = None if jax.process_index() == 0 else False
    bar = Bar(expected, ready.attacks, shown=shown, beside=beside)
    kept: dict[str, Any] = dict(state_dir=unfinished, keep_state=True)
    keep = options.save_adversarial or build.looks_at_images(classifier)
    kept |= dict(keep_adversarial=keep, log=bar.write, advance=bar.advance)
    try:
        result = evaluation.evaluate(predict, test, ready.attacks, **kept, **chosen)
        layer = ready.block.get("layer")
        more = build.diagnostics(classifier, result, test, layer=layer, **sizes)
        if ready.areas is not None:
            more["attention"] = build.attention(classifier, result, test, ready.areas)
        if ready.steps is not None:
            more["steps"] = build.step_curves(
                classifier, test, ready.block, ready.steps, **chosen
            )
        if ready.curve is not None:
            radii, attack_at = ready.curve
            correct = evaluation.robustness_curve(
                *(predict, test, attack_at, radii), source=subject.source, **chosen
            )
            more["curve"] = build.as_curve(ready.block, radii, correct, result.labels)
        if options.surfaces:
            more["surfaces"] = surfaces(subject, options.surfaces)
        more |= gathered(options.wanted, subject, result, ready.attacks, more)
        bar.advance_beside()
    finally:
        bar.close()
        evaluation.end_if_empty(unfinished)
    return result, more


def _tell(
    where: str,
    summary: dict[str, Any],
    flags: Sequence[evaluation.Indicator],
    test: Mapping[str, Any] | None,
    report: Path,
) -> None:
    """Prints the table, what to mind, and where the report is."""
    print(f"\n{where}\n\n{evaluation.table(summary)}\n")
    for line in summary["warnings"]:
        print(f"Warning: {line}")
    for flag in flags:
        if flag.flagged:
            print(f"Flag {flag.name}: {flag.detail} {flag.meaning}")
    if test and test["flagged"]:
        print(f"Flag binarization: {test['detail']} by {test['attack']}.")
    print(f"Report: {report / 'report.html'}, report.md, report.json")


def _forget(unfinished: Path, result: evaluation.Robustness) -> None:
    evaluation.forget(unfinished, result)
    evaluation.end_if_empty(unfinished)
