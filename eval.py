"""Judges a trained classifier: python eval.py --workdir=DIR --suite=quick.

Restores the best checkpoint (by validation), runs the attacks of the suite on the test
split, prints a table and writes DIR/report/report.json and report.md. The flags
`--attack.eps=0.2` and the like change the suite; `--curve=0,0.05,0.1` adds a robustness
curve. On a directory of several seeds it judges each and prints mean and deviation.
"""

from pathlib import Path
from typing import Any

import jax
from absl import flags

from robustjax import build, cli, evaluation, training
from robustjax._checks import InputError

_WORKDIR = flags.DEFINE_string("workdir", None, "Directory of a run of train.py.")
_SUITE = flags.DEFINE_string("suite", "quick", "A name, or the path of a .py file.")
_CHECKPOINT = flags.DEFINE_string("checkpoint", "best", "best, last, or a step.")
_NETWORK = flags.DEFINE_string("network", "model", "Or another classifier of the run.")
_REPORT = flags.DEFINE_string("report", None, "Where to write; or WORKDIR/report.")
_NUM_EXAMPLES = flags.DEFINE_integer("num_examples", None, "The first so many; or all.")
_BATCH_SIZE = flags.DEFINE_integer("batch_size", None, "Images at a time.")
_SAVE = flags.DEFINE_bool("save_adversarial", False, "Keep each attack's x_adv.")
_CURVE = flags.DEFINE_list("curve", None, "Radii of a robustness curve, ascending.")
_STEPS = flags.DEFINE_list("steps", None, "Of a curve over steps, as 10,20,50,100.")
_SURFACES = flags.DEFINE_integer("surfaces", 0, "Loss around the first so many images.")
_DATA_DIR = flags.DEFINE_string("data_dir", None, "Where the data are, if they moved.")
_SEED = flags.DEFINE_integer("seed", 0, "Of the attacks.")
_HEAD = flags.DEFINE_string("head", None, "Another head: linear, wnll, ...")
_TRANSFORM = flags.DEFINE_string("transform", None, "Before the model; or none.")
_SET = flags.DEFINE_multi_string("set", [], "Override: --set=head.num_templates=500.")
_ATTACK = dict(  # overrides of the suite's attacks
    norm=flags.DEFINE_string("attack.norm", None, "linf, l2 or l1."),
    eps=flags.DEFINE_float("attack.eps", None, "Radius; step_size scales with it."),
    step_size=flags.DEFINE_float("attack.step_size", None, "Step size."),
    num_steps=flags.DEFINE_integer("attack.num_steps", None, "Of the suite quick."),
    num_restarts=flags.DEFINE_integer("attack.num_restarts", None, "Of quick too."),
    batch_size=_BATCH_SIZE,
)


def judge(workdir: Path, report: Path) -> tuple[dict[str, float], list[str]]:
    """Evaluates one run and writes its report: accuracies by row, inconsistencies."""
    config: Any = build.read_config(workdir)
    build.override(config, _HEAD.value, _TRANSFORM.value, _SET.value)
    if _DATA_DIR.value is not None:
        config.data.data_dir = _DATA_DIR.value
    given: dict[str, Any] = {name: flag.value for name, flag in _ATTACK.items()}
    block = build.evaluation_with(config.evaluation, **given)
    radii = None if _CURVE.value is None else build.as_radii(_CURVE.value)
    steps = None if _STEPS.value is None else build.as_steps(_STEPS.value)
    attack_at = None if radii is None else build.curve_attack(block)
    mesh = training.data_mesh()
    build.check_suite(_SUITE.value)
    restored = build.restore(
        workdir,
        mesh,
        config=config,
        checkpoint=_CHECKPOINT.value,
        network=_NETWORK.value,
    )
    run, step, classifier, _ = restored
    another = build.another_run(mesh, restored)
    attacks = build.build_suite(_SUITE.value, block, another, classifier)
    chosen: dict[str, Any] = dict(
        key=jax.random.key(_SEED.value),
        batch_size=block["batch_size"],
        num_examples=_NUM_EXAMPLES.value,
        mesh=mesh,
    )
    test, predict = run.splits.test, classifier.logits_fn
    model_of = lambda source: build.restore(Path(source), mesh).classifier.model_fn
    total = _NUM_EXAMPLES.value or len(test)
    areas = build.key_areas(block, test, total, classifier, model_of)
    kept = dict(keep_adversarial=_SAVE.value or areas is not None)
    kept["keep_adversarial"] |= build.looks_at_images(classifier)
    kept |= dict(state_dir=report, log=print)
    result = evaluation.evaluate(predict, test, attacks, **kept, **chosen)
    sizes = dict(batch_size=block["batch_size"], mesh=mesh)
    more = build.diagnostics(classifier, result, test, **sizes)
    if areas is not None:
        more["attention"] = build.attention(classifier, result, test, areas)
    if _SURFACES.value:
        more["surfaces"] = build.surfaces(classifier, test, block, _SURFACES.value)
    if steps is not None:
        more["steps"] = build.step_curves(classifier, test, block, steps, **chosen)
    if radii is not None and attack_at is not None:
        chosen |= dict(source=classifier.source)
        correct = evaluation.robustness_curve(predict, test, attack_at, radii, **chosen)
        more["curve"] = build.as_curve(block, radii, correct, result.labels)
    summary = evaluation.summarise(result)
    if jax.process_index() == 0:
        context = dict(
            workdir=str(workdir),
            checkpoint=step,
            data=repr(test),
            suite=_SUITE.value,
            seed=_SEED.value,
            device=f"{jax.device_count()} x {jax.devices()[0].device_kind}",
            commit=cli.commit(),
            versions=cli.versions(),
            config=build.resolved(config),
        )
        evaluation.write_report(report, summary, context=context, **more)
        if _SAVE.value:
            evaluation.save_adversarial(report / "adversarial", result)
        print(
            f"\n{workdir}, checkpoint of step {step}\n\n{evaluation.table(summary)}\n"
        )
        for line in summary["warnings"]:
            print(f"Warning: {line}")
        print(f"Report: {report / 'report.md'}")
    figures = {row["name"]: row["accuracy"] for row in summary["rows"]}
    return figures, summary["inconsistent"]


def main() -> None:
    """Judges a run, or each seed of one."""
    if _WORKDIR.value is None:
        raise InputError("`--workdir` is missing, e.g. --workdir=runs/digits_pgd.")
    workdir = Path(_WORKDIR.value)
    report = Path(_REPORT.value) if _REPORT.value else workdir / "report"
    seeds = sorted(workdir.glob("seed_*/config.json"))
    if (workdir / "config.json").exists() or not seeds:
        _, failed = judge(workdir, report)
    else:
        results = [judge(path.parent, report / path.parent.name) for path in seeds]
        failed = [line for _, lines in results for line in lines]
        figures = {name: [f[name] for f, _ in results] for name in results[0][0]}
        if jax.process_index() == 0:
            training.write_json(report / "seeds.json", figures)
            print(f"\n{evaluation.seeds_table(figures)}")
    if failed:
        raise evaluation.InconsistentError(" ".join(failed))


if __name__ == "__main__":
    flags.adopt_module_key_flags(cli)  # so that --help shows them
    cli.run(main)
