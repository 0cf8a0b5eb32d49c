"""Trains a classifier: python train.py --config=configs/digits_pgd.py --workdir=DIR.

Running the same command again resumes, exactly. `--config.train.num_epochs=5` and the
like override single values; `--seeds=0,1,2` trains one run per seed, in DIR/seed_0 and
so on, and reports mean and deviation.
"""

import copy
from pathlib import Path

import jax
import ml_collections
from absl import flags
from ml_collections import config_flags

from robustjax import build, cli, evaluation, training
from robustjax._checks import InputError

_CONFIG = config_flags.DEFINE_config_file("config", None, "A file in configs/.")
_WORKDIR = flags.DEFINE_string("workdir", None, "Where everything is kept.")
_SEEDS = flags.DEFINE_list("seeds", None, "One run per seed, e.g. 0,1,2.")
_PROGRESS_BAR = flags.DEFINE_bool("progress_bar", True, "Whether to draw one.")


def train_and_validate(
    config: ml_collections.ConfigDict, workdir: Path, *, progress_bar: bool = True
) -> dict[str, float]:
    """One run from where `workdir` stands to its end; final validation metrics."""
    mesh = training.data_mesh()
    run = build.run(config, mesh, progress_bar=progress_bar)
    another = build.another_run(mesh)
    stages = build.build_stages(config, run.splits, run.networks, mesh, another)
    adopt = build.initial_weights(config, run.networks, mesh, workdir)
    # What does not fit is said before the directory is taken.
    build.check_losses(config, stages, run.init, run.prepare, run.splits.train.images)
    if adopt is not None:
        adopt(*jax.eval_shape(run.init, run.key))
    cli.claim(workdir, build.resolved(config))
    state = training.train(
        stages,
        run.init,
        key=run.key,
        workdir=workdir,
        validate=run.validate,
        prepare=run.prepare,
        adopt=adopt,
        options=run.options,
        mesh=mesh,
    )
    validate = run.validate.get(stages[-1].name)
    if validate is None:
        return {}
    return validate(state.evaluated_params, state.model_state)


def main() -> None:
    """Runs one training or one per seed."""
    config = cli.given_config(_CONFIG.value)
    if _WORKDIR.value is None:
        raise InputError("`--workdir` is missing, e.g. --workdir=runs/digits_pgd.")
    workdir = Path(_WORKDIR.value)
    if _SEEDS.value is None:
        results = [
            train_and_validate(config, workdir, progress_bar=_PROGRESS_BAR.value)
        ]
    else:
        results = []
        for seed in _seeds(_SEEDS.value):
            seeded = copy.deepcopy(config)
            seeded.seed = seed
            results.append(
                train_and_validate(
                    seeded, workdir / f"seed_{seed}", progress_bar=_PROGRESS_BAR.value
                )
            )
    if jax.process_index() > 0:
        return
    figures = {name: [result[name] for result in results] for name in results[0]}
    if _SEEDS.value is not None:
        training.write_json(workdir / "seeds.json", figures)
    if figures:
        print(evaluation.seeds_table(figures))
    print(f"Done: {workdir}. Judge it with: python eval.py --workdir={workdir}")


def _seeds(given: list[str]) -> list[int]:
    numbers = all(seed.isdecimal() for seed in given)
    if not numbers or not given or len(set(given)) < len(given):
        raise InputError(
            f"`--seeds` must be different numbers as in 0,1,2, got {given}."
        )
    return [int(seed) for seed in given]


if __name__ == "__main__":
    flags.adopt_module_key_flags(cli)  # so that --help shows them
    cli.run(main)
