"""Runs as train.py makes them, short, which may die at any batch."""

import dataclasses
import json

import jax

from robustjax import build, training

MESH = training.data_mesh(jax.devices()[:1])


def trained(config, workdir, *, crash=None):
    """The final state; `crash` is a stage and a batch at which the program dies."""
    run = build.run(config, MESH, progress_bar=False)
    another = build.another_run(MESH)
    stages = build.build_stages(config, run.splits, run.networks, MESH, another)
    if crash is not None:
        name, last = crash
        stages = [
            dataclasses.replace(stage, data=Deadly(stage.data, last))
            if stage.name == name
            else stage
            for stage in stages
        ]
    state = training.train(
        stages,
        run.init,
        key=run.key,
        workdir=workdir,
        validate=run.validate,
        prepare=run.prepare,
        adopt=build.initial_weights(config, run.networks, MESH, workdir),
        options=run.options,
        mesh=MESH,
    )
    (workdir / "config.json").write_text(json.dumps(build.resolved(config)))
    return state


class Killed(Exception):
    pass


class Deadly:
    """Batches of another stream, until one that nobody gets."""

    def __init__(self, stream, last):
        self._stream, self._last = stream, last
        self.steps_per_epoch = stream.steps_per_epoch

    def __iter__(self):
        return _DeadlyIterator(iter(self._stream), self._last)


class _DeadlyIterator:
    def __init__(self, batches, last):
        self._batches, self._last, self._count = batches, last, 0
        self.get_state, self.set_state = batches.get_state, batches.set_state

    def __iter__(self):
        return self

    def __next__(self):
        self._count += 1
        if self._count > self._last:
            raise Killed
        return next(self._batches)
