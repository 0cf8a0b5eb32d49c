import dataclasses
import functools
import json
import os
import signal

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from robustjax import InputError, training
from robustjax.training import Diverged, StoppedBySignal
from robustjax.types import AdversarialLoss, LossAux

pytestmark = pytest.mark.usefixtures("compilation_cache")


@dataclasses.dataclass(frozen=True)
class Watched:
    """A stream that calls `at(n)` before it hands out its batch `n`, from 1."""

    stream: object
    at: object

    @property
    def steps_per_epoch(self):
        return self.stream.steps_per_epoch

    def __iter__(self):
        return WatchedIterator(iter(self.stream), self.at)


class WatchedIterator:
    def __init__(self, batches, at):
        self.batches, self.at = batches, at
        self.get_state, self.set_state = batches.get_state, batches.set_state

    def __next__(self):
        self.at(self.get_state()["next_index"] + 1)
        return next(self.batches)


class Crash(Exception):
    pass


def raising(step):
    def at(n):
        if n == step:
            raise Crash

    return at


def signalling(step, number):
    def at(n):
        if n == step:
            os.kill(os.getpid(), number)

    return at


def watched(stage, at):
    return dataclasses.replace(stage, data=Watched(stage.data, at))


def only(name):
    return lambda params: {part: part == name for part in params}


def scripted(values, seen=None):
    """A validation that returns these values one after another."""
    values = iter(values)

    def validate(params, model_state):
        if seen is not None:
            seen.append(jax.tree.map(np.asarray, params))
        return {"validation/robust_accuracy": next(values)}

    return validate


def metrics(workdir):
    return (workdir / "metrics.jsonl").read_bytes()


def test_arrays_of_an_attack_are_arguments_of_the_step(toy, tmp_path):
    seen = []

    def craft(weights, params, model_state, key, batch):
        seen.append(isinstance(weights, jax.core.Tracer))
        return batch.x + weights

    def objective(params, model_state, key, batch, x_adv):
        return toy.loss(params, model_state, key, batch._replace(x=x_adv))

    def state(craft, name):
        loss_fn = AdversarialLoss(craft, objective)
        return toy.train(tmp_path / name, [toy.stage(loss_fn=loss_fn, num_epochs=1)])

    weights = jnp.full((1, 4, 4, 1), 0.01)
    given = state(jax.tree_util.Partial(craft, weights), "argument")
    assert seen == [True]
    closed = state(functools.partial(craft, weights), "closure")
    assert seen == [True, False]
    jax.tree.map(np.testing.assert_array_equal, given.params, closed.params)


# --- resuming -----------------------------------------------------------------------


@pytest.mark.parametrize("step", [1, 3, 4, 6, 8, 12])
def test_a_run_that_crashed_ends_like_one_that_did_not(toy, tmp_path, step):
    options = dict(log_every=2, validate_every=2, average_decay=0.9)
    whole = toy.train(tmp_path / "whole", **options)
    with pytest.raises(Crash):
        toy.train(tmp_path / "cut", [watched(toy.stage(), raising(step))], **options)
    again = toy.train(tmp_path / "cut", **options)
    assert toy.bits(again) == toy.bits(whole)
    assert metrics(tmp_path / "cut") == metrics(tmp_path / "whole")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_between_rows_saves_the_pending_metrics(toy, tmp_path, number):
    options = dict(log_every=5, validate_every=4)
    before = signal.getsignal(number)  # a background job ignores Ctrl-C
    whole = toy.train(tmp_path / "whole", **options)
    stage = watched(toy.stage(), signalling(7, number))
    with pytest.raises(StoppedBySignal, match=r"step 7; saved\. Run again"):
        toy.train(tmp_path / "cut", [stage], **options)
    with_pending = training.Checkpoints(tmp_path / "cut" / "checkpoints").progress(7)
    assert [step for step, _ in with_pending.pending] == [6, 7]
    assert signal.getsignal(number) is before
    again = toy.train(tmp_path / "cut", **options)
    assert toy.bits(again) == toy.bits(whole)
    assert metrics(tmp_path / "cut") == metrics(tmp_path / "whole")


def two_stages(toy, at=None):
    first = toy.stage(
        "critic", num_epochs=2, trainable=only("critic"), optimizer=optax.sgd(0.3)
    )
    second = toy.stage("model", num_epochs=2, trainable=only("model"))
    return [first, second if at is None else watched(second, at)]


@pytest.mark.parametrize("step", [1, 2, 5])
def test_two_stages_resume_at_their_boundary_and_inside(toy, tmp_path, step):
    whole = toy.train(tmp_path / "whole", two_stages(toy), average_decay=0.9)
    stages = two_stages(toy, raising(step))
    with pytest.raises(Crash):
        toy.train(tmp_path / "cut", stages, average_decay=0.9)
    again = toy.train(tmp_path / "cut", two_stages(toy), average_decay=0.9)
    assert toy.bits(again) == toy.bits(whole)
    assert metrics(tmp_path / "cut") == metrics(tmp_path / "whole")


def test_a_signal_in_the_last_step_of_a_stage_is_heard_in_the_next(toy, tmp_path):
    whole = toy.train(tmp_path / "whole", two_stages(toy))
    first, second = two_stages(toy)
    stages = [watched(first, signalling(6, signal.SIGTERM)), second]
    with pytest.raises(StoppedBySignal):
        toy.train(tmp_path / "cut", stages)
    assert toy.bits(toy.train(tmp_path / "cut", two_stages(toy))) == toy.bits(whole)
    assert metrics(tmp_path / "cut") == metrics(tmp_path / "whole")


def test_running_a_finished_run_again_changes_nothing(toy, tmp_path):
    done, rows = toy.train(tmp_path), metrics(tmp_path)
    with pytest.raises(Crash):  # the check works: this batch is never asked for below
        toy.train(tmp_path / "other", [watched(toy.stage(), raising(1))])
    again = toy.train(tmp_path, [watched(toy.stage(), raising(1))])
    assert toy.bits(again) == toy.bits(done)
    assert metrics(tmp_path) == rows


def test_a_torn_line_of_metrics_is_dropped(toy, tmp_path):
    toy.train(tmp_path / "whole")
    with pytest.raises(Crash):
        toy.train(tmp_path / "cut", [watched(toy.stage(), raising(8))])
    with (tmp_path / "cut" / "metrics.jsonl").open("ab") as file:
        file.write(b'{"step": 7, "los\xff')
    toy.train(tmp_path / "cut")
    assert metrics(tmp_path / "cut") == metrics(tmp_path / "whole")


def test_the_seed_decides_the_run_and_nothing_else_does(toy, tmp_path):
    first, second, other = (
        toy.train(tmp_path / name, seed=seed)
        for name, seed in (("first", 0), ("second", 0), ("other", 1))
    )
    assert toy.bits(first) == toy.bits(second)
    assert metrics(tmp_path / "first") == metrics(tmp_path / "second")
    assert toy.bits(first.params) != toy.bits(other.params)


# --- stages -------------------------------------------------------------------------


def test_what_a_stage_does_not_train_stays_to_the_bit(toy, tmp_path):
    seen = []
    stages = [
        toy.stage(
            "critic",
            num_epochs=2,
            trainable=only("critic"),
            optimizer=training.adamw(training.constant(0.1), weight_decay=0.1),
        )
    ]
    validate = scripted([0.1, 0.2], seen)
    state = toy.train(tmp_path, stages, validate=validate, average_decay=0.5)
    key = jax.random.split(jax.random.fold_in(jax.random.key(0), 0))[0]
    begin, _ = jax.jit(toy.init)(key)
    for params in (state.params, state.average, *seen):
        assert toy.bits(params["model"]) == toy.bits(begin["model"])
        assert toy.bits(params["critic"]) != toy.bits(begin["critic"])


def test_the_selected_checkpoint_moves_on_with_a_new_optimizer(toy, tmp_path):
    metric, seen = "validation/robust_accuracy", []
    first = toy.stage("first", num_epochs=3, selection=metric)
    second = toy.stage("second", num_epochs=2, trainable=only("critic"))
    values = [0.2, 0.9, 0.5, 0.1, 0.1]
    state = toy.train(tmp_path, [first, second], validate=scripted(values, seen))
    assert toy.bits(state.params["model"]) == toy.bits(seen[1]["model"])
    assert toy.bits(seen[1]["model"]) != toy.bits(seen[2]["model"])
    counts = [
        int(leaf)
        for path, leaf in jax.tree_util.tree_leaves_with_path(state.opt_state)
        if "count" in jax.tree_util.keystr(path)
    ]
    assert set(counts) == {2 * toy.steps_per_epoch}
    assert int(state.step) == 5 * toy.steps_per_epoch


@pytest.mark.parametrize("values", [[0.0, -1.0, -2.0], [0.5, 0.5, 0.1]])
def test_selection_knows_zero_and_takes_the_later_of_equals(toy, tmp_path, values):
    metric = "validation/robust_accuracy"
    stage = toy.stage(num_epochs=3, selection=metric)
    toy.train(tmp_path, [stage], validate=scripted(values), keep_last=1)
    best = max(range(3), key=lambda i: (values[i], i)) + 1
    assert int(toy.load(tmp_path, checkpoint="best").step) == 3 * best


def test_a_later_stage_has_its_own_best(toy, tmp_path):
    stages = [toy.stage("first", num_epochs=2), toy.stage("second", num_epochs=2)]
    toy.train(tmp_path, stages, validate=scripted([0.9, 0.8, 0.3, 0.2]), keep_last=1)
    assert int(toy.load(tmp_path, stages, checkpoint="best").step) == 9


@pytest.mark.parametrize(
    ("changes", "word"),
    [({"num_epochs": 0}, "`num_epochs`"), ({"selection": "x"}, "data.validation")],
)
def test_stages_are_checked_before_anything_is_written(toy, tmp_path, changes, word):
    with pytest.raises(InputError, match=word):
        toy.train(tmp_path / "run", [toy.stage(**changes)], validate=None)
    assert not (tmp_path / "run").exists()


def test_no_stage_and_an_unknown_metric_are_refused(toy, tmp_path):
    with pytest.raises(InputError, match="`stages`"):
        toy.train(tmp_path, [])
    with pytest.raises(InputError, match="validation/robust_accuracy"):
        toy.train(tmp_path, [toy.stage(selection="accuracy")])


def test_without_validation_the_last_is_the_best(toy, tmp_path):
    toy.train(tmp_path, validate=None)
    assert int(toy.load(tmp_path, checkpoint="best").step) == 12


# --- checkpoints of a run -----------------------------------------------------------


def test_the_last_few_and_the_best_are_kept(toy, tmp_path):
    stage = toy.stage(num_epochs=6)
    validate = scripted([0.1, 0.9, 0.3, 0.2, 0.4, 0.1])
    last = toy.train(tmp_path, [stage], validate=validate, keep_last=2)
    checkpoints = training.Checkpoints(tmp_path / "checkpoints", read_only=True)
    assert checkpoints.steps() == [6, 15, 18]
    assert int(toy.load(tmp_path, checkpoint="best").step) == 6
    assert int(toy.load(tmp_path, checkpoint="15").step) == 15
    assert toy.bits(toy.load(tmp_path, checkpoint="last")) == toy.bits(last)


@pytest.mark.parametrize("checkpoint", ["newest", "7", "-1", ""])
def test_a_checkpoint_that_is_not_there_is_refused(toy, tmp_path, checkpoint):
    toy.train(tmp_path, [toy.stage(num_epochs=1)])
    with pytest.raises(InputError, match="checkpoint"):
        toy.load(tmp_path, checkpoint=checkpoint)
    with pytest.raises(InputError, match="no checkpoints"):
        toy.load(tmp_path / "elsewhere")


def test_the_average_is_judged_and_saved(toy, tmp_path):
    seen = []
    validate = scripted([0.1, 0.2, 0.3, 0.4], seen)
    state = toy.train(tmp_path, validate=validate, average_decay=0.9)
    assert toy.bits(seen[-1]) == toy.bits(state.average) != toy.bits(state.params)
    loaded = toy.load(tmp_path, average=True, checkpoint="last")
    assert toy.bits(loaded.evaluated_params) == toy.bits(state.average)


def test_a_loss_that_is_not_finite_stops_the_run(toy, tmp_path):
    def loss(params, model_state, key, batch):
        value, aux = toy.loss(params, model_state, key, batch)
        return value / (aux.model_state["count"] != 8), aux

    with pytest.raises(Diverged) as caught:
        toy.train(tmp_path, [toy.stage(loss_fn=loss)], log_every=5)
    message = str(caught.value)
    assert "\n" not in message
    assert "at step 8 " in message
    assert "Last good checkpoint: step 6" in message
    assert int(toy.load(tmp_path, checkpoint="last").step) == 6
    steps = [json.loads(line)["step"] for line in metrics(tmp_path).splitlines()]
    assert max(steps) == 6


def test_diverging_before_any_checkpoint_says_so(toy, tmp_path):
    def loss(params, model_state, key, batch):
        del key, batch
        return jnp.nan * params["model"]["b"].sum(), LossAux(model_state, {})

    with pytest.raises(Diverged, match=r"at step 1 .* none"):
        toy.train(tmp_path, [toy.stage(loss_fn=loss)])


def test_a_directory_that_cannot_be_written_is_refused(toy):
    with pytest.raises(InputError, match="Cannot write"):
        toy.train("/dev/null/run")


# --- the machine --------------------------------------------------------------------


def test_a_run_traces_once_and_donates_its_state(toy, tmp_path):
    traces, seen = [], []

    def loss(params, model_state, key, batch):
        traces.append(1)
        return toy.loss(params, model_state, key, batch)

    def validate(params, model_state):
        seen.append(params)
        return toy.validate(params, model_state)

    stage = toy.stage(loss_fn=loss)
    with pytest.raises(Crash):
        toy.train(tmp_path, [watched(stage, raising(8))], validate=validate)
    assert len(traces) == 1
    toy.train(tmp_path, [stage], validate=validate)
    assert len(traces) == 2  # one per process
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(seen[0]))


def test_no_step_waits_for_the_device(toy, tmp_path, monkeypatch):
    array = type(jnp.zeros(()))
    fetched, counts = [], []
    original = array._value

    def counting(self):
        fetched.append(self.shape)
        return original.fget(self)

    monkeypatch.setattr(array, "_value", property(counting))
    stage = watched(toy.stage(), lambda n: counts.append(len(fetched)))
    toy.train(tmp_path, [stage], log_every=100, validate_every=4)
    assert len(counts) == 12
    assert len(set(counts)) == 1
    assert len(fetched) > counts[-1]  # the row at the end


def test_the_batch_must_divide_the_devices(toy, tmp_path):
    mesh = training.data_mesh(jax.devices()[:3])
    with pytest.raises(InputError, match=r"multiple of the 3 devices, got 16\. .* 15"):
        toy.train(tmp_path, mesh=mesh)


def test_the_loop_on_eight_devices_writes_the_same_metrics(toy, tmp_path):
    toy.train(tmp_path / "one")
    toy.train(tmp_path / "eight", mesh=training.data_mesh())
    one, eight = (
        [json.loads(line) for line in metrics(tmp_path / name).splitlines()]
        for name in ("one", "eight")
    )
    for a, b in zip(one, eight, strict=True):
        assert a.keys() == b.keys()
        for name in a:
            assert a[name] == (
                b[name]
                if isinstance(a[name], str)
                else pytest.approx(b[name], abs=1e-5)
            )
