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
    config: Any = build.read_config(workdir)
    build.override(config, options.head, options.transform, options.changes)
    if options.data_dir is not None:
        config.data.data_dir = options.data_dir
    block = build.evaluation_with(config.evaluation, **options.attack)
    radii = None if options.curve is None else build.as_radii(options.curve)
    steps = None if options.steps is None else build.as_steps(options.steps, block)
    attack_at = None if radii is None else build.curve_attack(block)
    mesh = training.data_mesh()
    build.check_suite(options.suite)
    restored = build.restore(
        workdir,
        mesh,
        config=config,
        checkpoint=options.checkpoint,
        network=options.network,
    )
    run, step, classifier, _ = restored
    another = build.another_run(mesh, restored)
    attacks = build.build_suite(options.suite, block, another, classifier)
    chosen: dict[str, Any] = dict(
        key=jax.random.key(options.seed),
        batch_size=block["batch_size"],
        num_examples=options.num_examples,
        mesh=mesh,
    )
    test, predict = run.splits.test, classifier.logits_fn
    model_of = lambda source: build.restore(Path(source), mesh).classifier.model_fn
    total = options.num_examples or len(test)
    areas = build.key_areas(block, test, total, classifier, model_of)
    keep = options.save_adversarial or build.looks_at_images(classifier)
    layer = block.get("layer")
    build.check_layer(classifier, test, layer)
    subject = Subject(
        logits_fn=predict,
        source=classifier.source,
        dataset=test,
        threat=build.build_threat(block["threat"]),
        step_size=block["step_size"],
        num_steps=block["num_steps"],
        features_fn=build.features_fn(classifier),
        **chosen,
    )
    check(options.wanted, subject, options.surfaces)
    training_curves = evaluation.training_history(workdir, step)
    first = jax.process_index() == 0
    sizes = dict(batch_size=block["batch_size"], num_examples=options.num_examples)
    unfinished = report.parent / f"{report.resolve().name}.unfinished"
    expected = evaluation.estimate(predict, test, attacks, mesh=mesh, **sizes)
    beside = seconds_of(options.wanted, subject, expected)
    evaluation.begin(unfinished)
    bar = Bar(expected, attacks, shown=None if first else False, beside=beside)
    kept = dict(state_dir=unfinished, keep_state=True, keep_adversarial=keep)
    kept |= dict(log=bar.write, advance=bar.advance)
    sizes = dict(batch_size=block["batch_size"], mesh=mesh)
    try:
        result = evaluation.evaluate(predict, test, attacks, **kept, **chosen)
        more = build.diagnostics(classifier, result, test, layer=layer, **sizes)
        more["training"] = training_curves
        if areas is not None:
            more["attention"] = build.attention(classifier, result, test, areas)
        if steps is not None:
            more["steps"] = build.step_curves(classifier, test, block, steps, **chosen)
        if radii is not None and attack_at is not None:
            correct = evaluation.robustness_curve(
                *(predict, test, attack_at, radii), source=classifier.source, **chosen
            )
            more["curve"] = build.as_curve(block, radii, correct, result.labels)
        if options.surfaces:
            more["surfaces"] = surfaces(subject, options.surfaces)
        more |= gathered(options.wanted, subject, result, known=more)
        bar.advance_beside()
    finally:
        bar.close()
        evaluation.end_if_empty(unfinished)
    summary = evaluation.summarise(result)
    if more.get("curve"):
        summary["warnings"] += evaluation.above_limit(more["curve"])
    if first:
        context = context_of(
            chosen["key"],
            workdir=str(workdir),
            checkpoint=step,
            data=repr(test),
            suite=options.suite,
            seed=options.seed,
            threat=dict(block["threat"]),
            evaluation=dict(block),
            wanted=dataclasses.asdict(options.wanted),
            config=build.resolved(config),
        )
        evaluation.write_report(report, summary, context=context, **more)
        if options.save_adversarial:
            evaluation.save_adversarial(report / "adversarial", result)
        table = evaluation.table(summary)
        print(f"\n{workdir}, checkpoint of step {step}\n\n{table}\n")
        for line in summary["warnings"]:
            print(f"Warning: {line}")
        for flag in more.get("indicators") or ():
            if flag.flagged:
                print(f"Flag {flag.name}: {flag.detail} {flag.meaning}")
        print(f"Report: {report / 'report.html'}, report.md, report.json")
    accuracies = {row["name"]: row["accuracy"] for row in summary["rows"]}
    own = dataclasses.replace(result, attacks=())  # the arrays are not needed
    forget = functools.partial(_forget, unfinished, own)
    if not keep_state:
        forget()
    return Judged(accuracies, summary["inconsistent"], forget)


def _forget(unfinished: Path, result: evaluation.Robustness) -> None:
    evaluation.forget(unfinished, result)
    evaluation.end_if_empty(unfinished)
