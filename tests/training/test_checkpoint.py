import json
import shutil
import time

import jax
import jax.numpy as jnp
import pytest

from robustjax import InputError, training
from robustjax.training import Checkpoints, Progress, create_state, write_json

pytestmark = pytest.mark.usefixtures("compilation_cache")


@pytest.fixture(scope="module")
def finished(toy, tmp_path_factory):
    """A run with checkpoints 6 and 9."""
    workdir = tmp_path_factory.mktemp("finished")
    toy.train(workdir, [toy.stage(num_epochs=3)])
    return workdir


def half(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def remove(path):
    shutil.rmtree(path) if path.is_dir() else path.unlink()


def empty(path):
    remove(path)
    path.mkdir()


def largest(directory):
    files = (path for path in directory.rglob("*") if path.is_file())
    return max(files, key=lambda path: path.stat().st_size)


@pytest.mark.parametrize(
    ("damage", "name"),
    [
        (half, "_CHECKPOINT_METADATA"),
        (half, "metrics/metrics"),
        (half, "progress/metadata"),
        (remove, "progress/metadata"),
        (remove, "progress"),
        (half, "state/_METADATA"),
        (remove, "state/_METADATA"),
        (half, "state/_sharding"),
        (half, "state/array_metadatas/process_0"),
        (half, "state/manifest.ocdbt"),
        (remove, "state/manifest.ocdbt"),
        (half, "state/d"),
        (remove, "state/d"),
        (remove, "state"),
        (empty, ""),
    ],
)
def test_a_damaged_checkpoint_is_named_and_the_one_before_loads(
    toy, finished, tmp_path, capfd, damage, name
):
    workdir = shutil.copytree(finished, tmp_path / "run")
    newest = workdir / "checkpoints" / "9"
    damage(largest(newest / name) if name == "state/d" else newest / name)
    stages = [toy.stage(num_epochs=3)]
    for use in (toy.train, toy.load):
        with pytest.raises(InputError, match=r"step 9 .*is damaged") as caught:
            use(workdir, stages)
        assert "\n" not in str(caught.value)
        assert f"Step 6 is there too: remove {newest}" in str(caught.value)
    assert int(toy.load(workdir, stages, checkpoint="6").step) == 6
    assert capfd.readouterr().err == ""

    remove(newest)  # as the message says
    assert int(toy.train(workdir, stages).step) == 9
    whole, again = (finished / "metrics.jsonl", workdir / "metrics.jsonl")
    assert again.read_bytes() == whole.read_bytes()


def test_what_a_kill_leaves_of_an_old_checkpoint_does_no_harm(toy, finished, tmp_path):
    workdir = shutil.copytree(finished, tmp_path / "run")
    remove(workdir / "checkpoints" / "9")
    for name, kept in (("3", "state"), ("9.orbax-checkpoint-tmp", "metrics")):
        rest = workdir / "checkpoints" / name / kept
        shutil.copytree(workdir / "checkpoints" / "6" / kept, rest)
    assert int(toy.train(workdir, [toy.stage(num_epochs=3)]).step) == 9
    found = {path.name for path in (workdir / "checkpoints").iterdir()}
    assert {"6", "9"} <= found
    assert not [name for name in found if "tmp" in name]


def test_reading_leaves_what_another_process_is_writing(toy, finished, tmp_path):
    workdir = shutil.copytree(finished, tmp_path / "run")
    unfinished = workdir / "checkpoints" / "12.orbax-checkpoint-tmp"
    unfinished.mkdir()
    assert int(toy.load(workdir, checkpoint="last").step) == 9
    assert unfinished.exists()


def test_another_architecture_is_refused(toy, finished):
    def wider(key):
        params, model_state = toy.init(key)
        return {**params, "model": {**params["model"], "b": jnp.zeros(3)}}, model_state

    with pytest.raises(InputError, match=r"model/b is \(2,\) there and \(3,\)"):
        training.load([toy.stage()], wider, workdir=finished)


def test_the_state_may_be_given_away_as_soon_as_saving_began(toy, tmp_path):
    params = {"w": jnp.arange(200_000.0)}
    optimizer = training.sgd(training.constant(0.1))
    state = create_state(params, {}, optimizer, jax.random.key(3), step=7)
    before = toy.bits(state)
    checkpoints = Checkpoints(tmp_path)
    progress = Progress(stage=1, data={"next_index": 5}, pending=((6, {"a": 0.1}),))
    checkpoints.save(state, progress)
    like = jax.tree.map(
        lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=a.sharding), state
    )
    jax.jit(lambda s: jax.tree.map(lambda a: a, s), donate_argnums=0)(
        jax.tree.map(lambda a: a, state.params)
    )
    jax.tree.map(lambda a: a.delete(), state.params)
    checkpoints.wait()
    assert checkpoints.progress(7) == progress
    assert toy.bits(checkpoints.restore(7, like)) == before
    checkpoints.close()


def test_json_is_replaced_whole_or_not_at_all(tmp_path):
    path = tmp_path / "new" / "a.json"
    write_json(path, {"b": 1, "a": [0.1]})
    assert json.loads(path.read_text()) == {"a": [0.1], "b": 1}
    with pytest.raises(TypeError):
        write_json(path, {"a": object()})
    assert json.loads(path.read_text()) == {"a": [0.1], "b": 1}
    with pytest.raises(InputError, match="Cannot write"):
        write_json(path / "below" / "a.json", {})


def _free(directory):
    return shutil.disk_usage(directory).free


def _wait_for(path):
    end = time.monotonic() + 60
    while not path.exists() and time.monotonic() < end:
        time.sleep(0.01)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_full_disk_leaves_the_checkpoint_before(toy, small_disk, capfd):
    small_disk = small_disk("3m")
    workdir = small_disk / "run"

    def init(key):
        params, model_state = toy.init(key)
        return {**params, "rest": jnp.sin(jnp.arange(50_000.0))}, model_state

    def validate(params, model_state):
        full.append(1)
        if len(full) == 2:
            _wait_for(workdir / "checkpoints" / "3")  # saved beside the training
            (small_disk / "ballast").write_bytes(bytes(_free(small_disk) - 100_000))
        return toy.validate(params, model_state)

    def run(num_epochs):
        return training.train(
            [toy.stage(num_epochs=num_epochs)],
            init,
            key=jax.random.key(0),
            workdir=workdir,
            validate=validate,
            options=training.LoopOptions(progress_bar=False),
        )

    full = []
    with pytest.raises(InputError, match=r"Could not save .* is step 3"):
        run(4)
    assert capfd.readouterr().err == ""
    assert int(training.load([toy.stage()], init, workdir=workdir).step) == 3

    (small_disk / "ballast").unlink()
    full = [1, 1]
    assert int(run(4).step) == 12
