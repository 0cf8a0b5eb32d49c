"""Judges a trained classifier: python eval.py --workdir=DIR --suite=quick.

Restores the best checkpoint (by validation), says how long it will take, runs the
attacks of the suite on the test split, looks for signs that they failed, prints a table
and writes DIR/report/report.html, report.md and report.json. A killed call goes on
where it was. On a directory of several seeds it judges each and prints mean and
deviation; `--compare=DIR,DIR` puts several runs side by side, `--export=robustbench`
writes an entry of that leader board.
"""

from pathlib import Path

import jax
from absl import flags

from robustjax import cli, evaluation, training
from robustjax._checks import InputError
from robustjax.judging import Judged, Options, Wanted, judge

_WORKDIR = flags.DEFINE_string("workdir", None, "Directory of a run of train.py.")
_SUITE = flags.DEFINE_string("suite", "quick", "quick, standard, full, or a .py file.")
_CHECKPOINT = flags.DEFINE_string("checkpoint", "best", "best, last, or a step.")
_NETWORK = flags.DEFINE_string("network", "model", "Or another classifier of the run.")
_REPORT = flags.DEFINE_string("report", None, "Where to write; or WORKDIR/report.")
_NUM_EXAMPLES = flags.DEFINE_integer("num_examples", None, "The first so many; or all.")
_BATCH_SIZE = flags.DEFINE_integer("batch_size", None, "Images at a time.")
_SAVE = flags.DEFINE_bool("save_adversarial", False, "Keep each attack's x_adv.")
_CURVE = flags.DEFINE_list("curve", None, "Radii of a robustness curve, ascending.")
_STEPS = flags.DEFINE_list("steps", None, "Of a curve over steps, as 10,20,50,100.")
_SURFACES = flags.DEFINE_integer("surfaces", 0, "Loss around the first so many images.")
_INDICATORS = flags.DEFINE_bool("indicators", True, "Look for attacks that failed.")
_PICTURES = flags.DEFINE_bool("pictures", True, "Curves and surfaces of a few images.")
_BINARIZATION = flags.DEFINE_integer("binarization", 0, "Images of that test.")
_COMPARE = flags.DEFINE_list("compare", None, "Directories of runs, side by side.")
_EXPORT = flags.DEFINE_enum("export", None, ["robustbench"], "Of a report: an entry.")
_ABOUT = flags.DEFINE_multi_string("about", [], "Of the entry: --about=venue=ICML.")
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


def options() -> Options:
    """What the flags say."""
    return Options(
        suite=_SUITE.value,
        checkpoint=_CHECKPOINT.value,
        network=_NETWORK.value,
        num_examples=_NUM_EXAMPLES.value,
        attack={name: flag.value for name, flag in _ATTACK.items()},
        save_adversarial=_SAVE.value,
        curve=_CURVE.value,
        steps=_STEPS.value,
        surfaces=_SURFACES.value,
        data_dir=_DATA_DIR.value,
        seed=_SEED.value,
        head=_HEAD.value,
        transform=_TRANSFORM.value,
        changes=_SET.value,
        wanted=Wanted(
            indicators=_INDICATORS.value,
            pictures=_PICTURES.value,
            binarization=_BINARIZATION.value,
        ),
    )


def judged(workdir: Path, report: Path) -> list[Judged]:
    """Evaluates a run, or each seed of one."""
    seeds = sorted(workdir.glob("seed_*/config.json"))
    if (workdir / "config.json").exists() or not seeds:
        return [judge(workdir, report, options())]
    runs = [path.parent for path in seeds]
    results = []
    for run in runs:
        one = judge(run, report / run.name, options(), keep_state=True)
        results.append(one)
        jax.clear_caches()  # programs of another classifier are of no use to the next
    for one in results:
        one.forget()
    names = results[0].accuracies
    figures = {name: [one.accuracies[name] for one in results] for name in names}
    if jax.process_index() == 0:
        training.write_json(report / "seeds.json", figures)
        print(f"\n{evaluation.seeds_table(figures)}")
    return results


def compared(runs: list[Path], report: Path) -> None:
    """Puts the reports of several runs side by side."""
    comparison = evaluation.compare(runs)
    evaluation.write_comparison(report, comparison)
    print("\n".join(evaluation.comparison_lines(comparison)))
    print(f"Comparison: {report / 'compare.html'}")


def _check_flags() -> None:
    """Raises where flags ask for two things at once."""
    alone = [name for name in ("compare", "export") if flags.FLAGS[name].present]
    work = [name for name in ("suite", "curve", "steps") if flags.FLAGS[name].present]
    if alone and (work or len(alone) > 1):
        raise InputError(
            f"`--{alone[0]}` reads reports that are there and runs no attack: leave "
            f"out --{(work + alone[1:])[0]}, or run eval.py twice."
        )
    wrong = [text for text in _ABOUT.value if "=" not in text]
    if wrong or (_ABOUT.value and not flags.FLAGS["export"].present):
        raise InputError(
            "`--about` must be FIELD=VALUE of an entry, beside --export=robustbench; "
            f"got {(wrong or _ABOUT.value)[0]!r}."
        )


def main() -> None:
    """Judges a run, compares several, or exports what was found."""
    _check_flags()
    if _COMPARE.value is not None:
        runs = [Path(run) for run in _COMPARE.value]
        compared(runs, Path(_REPORT.value or runs[0].parent / "compared"))
        return
    if _WORKDIR.value is None:
        raise InputError("`--workdir` is missing, e.g. --workdir=runs/digits_pgd.")
    workdir = Path(_WORKDIR.value)
    report = Path(_REPORT.value) if _REPORT.value else workdir / "report"
    if _EXPORT.value is not None:
        pairs = [text.partition("=") for text in _ABOUT.value]
        about = {name: value for name, _, value in pairs}
        print(evaluation.export_robustbench(report, about=about))
        return
    results = judged(workdir, report)
    failed = [line for one in results for line in one.inconsistent]
    if failed:
        raise evaluation.InconsistentError(" ".join(failed))


if __name__ == "__main__":
    flags.adopt_module_key_flags(cli)  # so that --help shows them
    cli.run(main)
