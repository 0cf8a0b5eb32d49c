"""A killed evaluation goes on where it was, and only there."""

import functools
import json
import os
import socket
import subprocess
import sys
import weakref
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from robustjax import InputError, attacks, evaluation, threats, training
from robustjax._digest import digest
from robustjax.data import Dataset
from robustjax.evaluation import NamedAttack, _running, unfinished
from robustjax.evaluation._breakdown import confusion
from robustjax.evaluation.results import Fooled

THREAT = threats.linf(0.2)
ROWS = np.random.default_rng(0)
DATA = Dataset(
    ROWS.random((10, 2, 2, 1), np.float32),
    ROWS.integers(0, 3, 10).astype(np.int32),
    np.arange(10),
    ("a", "b", "c"),
)
WEIGHTS = jnp.asarray(ROWS.normal(size=(4, 3)), jnp.float32)


def linear(weights, x):
    return x.reshape(len(x), -1) @ weights


MODEL = jax.tree_util.Partial(linear, WEIGHTS)


class Killed(Exception):
    """What a signal does, more politely."""


def suite(num_steps=2):
    pgd = attacks.pgd(THREAT, step_size=0.1, num_steps=num_steps)
    stages = (attacks.Stage("one step", lambda _: attacks.fgsm(THREAT)),)
    staged = attacks.StagedAttack("staged", THREAT, lambda _: stages)
    return [
        NamedAttack("pgd", pgd, {"num_steps": num_steps}),
        NamedAttack("staged", staged, {"num_steps": 1}),
        NamedAttack("fgsm", attacks.fgsm(THREAT), {"num_steps": 1}),
    ]


def judge(state_dir, model=MODEL, attacks=None, stop_at=None, seed=0, **options):
    """The result, and the position and share of everything that was done."""
    seen = []

    def advance(position, share):
        seen.append((position, share))
        if len(seen) == stop_at:
            raise Killed

    result = evaluation.evaluate(
        model,
        DATA,
        suite() if attacks is None else attacks,
        key=jax.random.key(seed),
        state_dir=state_dir,
        advance=advance,
        **dict(batch_size=8) | options,
    )
    return result, seen


def outcomes(result):
    return [
        np.concatenate([a.correct, a.predicted, a.distance["linf"]]).tolist()
        for a in result.attacks
    ]


@pytest.fixture
def counted(monkeypatch):
    """How many blocks were computed since, in a list."""
    computed, timed = [], unfinished._timed
    monkeypatch.setattr(
        unfinished, "_timed", lambda *given: (computed.append(1), timed(*given))[1]
    )
    return computed


def test_a_killed_evaluation_goes_on_at_its_last_block(tmp_path, counted):
    whole, seen = judge(None)
    assert sum(share for _, share in seen) == pytest.approx(4)
    assert [position for position, _ in seen] == [-1, -1, 0, 0, 1, 2, 2]
    counted.clear()
    for stop_at, computed in ((3, 3), (6, 4), (7, 3)):
        # The clean pass has two blocks and is not kept; the staged attack none here.
        with pytest.raises(Killed):
            judge(tmp_path, stop_at=stop_at)
        assert len(counted) == computed
        counted.clear()
    again, _ = judge(tmp_path)
    assert len(counted) == 2
    assert outcomes(again) == outcomes(whole)
    assert [s.broken for s in again.attacks[1].stages] == [
        s.broken for s in whole.attacks[1].stages
    ]
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "other",
    [
        dict(seed=1),
        dict(attacks=suite(num_steps=3)),
        dict(model=jax.tree_util.Partial(linear, WEIGHTS + 0.01)),
    ],
    ids=["key", "attack", "weights"],
)
def test_other_work_starts_again(tmp_path, counted, other):
    only = dict(attacks=suite()[:1], keep_state=True)
    judge(tmp_path, **only)
    counted.clear()
    other = only | {k: v[:1] if k == "attacks" else v for k, v in other.items()}
    counted.clear()
    judge(tmp_path, **only)
    assert len(counted) == 2  # the clean pass
    counted.clear()
    result, _ = judge(tmp_path, **other)
    assert len(counted) == 4
    assert outcomes(result) == outcomes(judge(None, **other)[0])


def test_half_a_file_is_none(tmp_path):
    only = functools.partial(judge, tmp_path, attacks=suite()[:1], keep_state=True)
    whole, _ = only()
    (tmp_path / "mine.txt").write_text("")
    for path in tmp_path.glob("*.npz"):
        path.write_bytes(path.read_bytes()[:100])
    assert outcomes(only()[0]) == outcomes(whole)
    evaluation.forget(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def test_other_devices_cut_other_blocks(tmp_path):
    one = training.data_mesh(jax.devices()[:1])
    only = dict(attacks=suite()[:1], batch_size=3, keep_state=True)
    judge(tmp_path, mesh=one, **only)
    on_eight, _ = judge(tmp_path, **only)  # of blocks of 8
    assert outcomes(on_eight) == outcomes(judge(None, **only)[0])


@pytest.mark.parametrize("now", [np.float32([1, 2, 3]), np.int32([1, 2])])
def test_a_block_of_another_shape_or_type_is_none(tmp_path, now):
    kept = unfinished.Unfinished(tmp_path, "work")
    kept.block("name", 0, lambda _: np.float32([1, 2]), np.zeros(2), "mark")
    found, _ = kept.block("name", 0, lambda _: now, np.zeros(2), "mark")
    np.testing.assert_array_equal(found, now)


def shift(amount):
    return lambda key, logits_fn, x, y: jnp.clip(x + amount, 0, 1)


@pytest.mark.parametrize(
    ("names", "parameters"),
    [(("mine", "mine"), {}), (("up", "down"), {"size": 0.3})],
    ids=["no parameters", "another name"],
)
def test_functions_are_not_mistaken_for_each_other(tmp_path, names, parameters):
    pair = [
        [NamedAttack(name, shift(amount), parameters)]
        for name, amount in zip(names, (0.3, -0.3), strict=True)
    ]
    judge(tmp_path, attacks=pair[0], keep_state=True)
    found, _ = judge(tmp_path, attacks=pair[1], keep_state=True)
    assert outcomes(found) == outcomes(judge(None, attacks=pair[1])[0])


def test_what_starts_again_is_said(tmp_path):
    lines = []
    judge(tmp_path, attacks=[NamedAttack("mine", shift(0.1))], log=lines.append)
    assert lines == ["mine has no `parameters`: if it is killed, it starts again."]


def test_parameters_are_told_apart_by_name():
    assert digest({"steps": 20}) != digest({"restarts": 20})
    assert digest({"steps": None}) != digest({})
    assert digest(["1", "2"]) != digest(["12"])


def other_stages():
    stages = (attacks.Stage("no step", lambda _: shift(0.0)),)
    staged = attacks.StagedAttack("staged", THREAT, lambda _: stages)
    return NamedAttack("staged", staged, {"num_steps": 0})


def test_a_quick_look_leaves_what_another_evaluation_has_done(tmp_path, counted):
    with pytest.raises(Killed):
        judge(tmp_path, stop_at=6)  # all but the last block
    files = sorted(tmp_path.iterdir())
    judge(tmp_path, attacks=[suite()[0], other_stages()])
    judge(tmp_path, seed=1)
    assert sorted(tmp_path.iterdir()) == files
    counted.clear()
    again, _ = judge(tmp_path)
    assert len(counted) == 3  # the clean pass and that block
    assert outcomes(again) == outcomes(judge(None)[0])
    assert not list(tmp_path.iterdir())


def test_an_evaluation_is_forgotten_alone(tmp_path):
    only = dict(attacks=suite()[:2], keep_state=True)
    one, other = (judge(tmp_path, seed=seed, **only)[0] for seed in (0, 1))
    files = sorted(tmp_path.iterdir())
    gone, _ = judge(tmp_path, seed=2, attacks=suite()[:1])
    for nothing in (gone, judge(None, **only)[0]):
        evaluation.forget(tmp_path, nothing)
    assert sorted(tmp_path.iterdir()) == files
    evaluation.forget(tmp_path, one)
    left = sorted(tmp_path.iterdir())
    assert len(left) == len(files) // 2 == 3
    assert all(path.name.startswith(other.state) for path in left)
    evaluation.forget(tmp_path)
    assert not list(tmp_path.iterdir())


def test_few_images_are_held_for_the_eye():
    result, _ = judge(None, batch_size=3, mesh=training.data_mesh(jax.devices()[:1]))
    for attack in result.attacks:
        assert attack.shown.shape == (8, 2, 2, 1)
        assert attack.shown.base is None  # no view of more
        rows, clean, adversarial = attack.fooled
        broken = (attack.correct < 0.5) & (attack.distance["linf"] > 0)
        assert rows.tolist() == np.flatnonzero(broken)[:8].tolist()
        np.testing.assert_array_equal(clean, DATA.images[rows])
        spread = np.abs(adversarial - clean).max(axis=(1, 2, 3), initial=0)
        np.testing.assert_allclose(spread, attack.distance["linf"][rows], atol=1e-6)

    held = []

    def blocks():
        said = _running.Answer(*[np.zeros(4)] * 4)
        for number in range(6):
            shown = np.full((4, 2, 2, 1), number)
            fooled = Fooled(np.array([1, 3, -1, -1]), shown, shown + 0.5)
            held.extend(map(weakref.ref, (shown, fooled.adversarial)))
            yield _running.Found(said, *[np.zeros(4)] * 6, shown, fooled, *[None] * 3)

    joined = _running.joined(blocks(), 22)
    assert joined.fooled.rows.tolist() == [1, 3, 5, 7, 9, 11, 13, 15]
    assert joined.fooled.clean[:, 0, 0, 0].tolist() == [0, 0, 1, 1, 2, 2, 3, 3]
    assert _running.joined(blocks(), 11).fooled.rows.tolist() == [1, 3, 5, 7, 9]
    assert joined.shown[:, 0, 0, 0].tolist() == [0] * 4 + [1] * 4
    assert len(joined.linf) == 22
    assert not any(block() is not None for block in held)


def test_staged_attacks_are_judged_block_by_block(monkeypatch):
    sizes, measure = [], _running.found
    monkeypatch.setattr(
        _running,
        "found",
        lambda said, x_adv, *rest: (
            sizes.append(len(x_adv)),
            measure(said, x_adv, *rest),
        )[1],
    )
    one = training.data_mesh(jax.devices()[:1])
    result, _ = judge(
        None, attacks=suite()[1:2], batch_size=4, mesh=one, keep_adversarial=True
    )
    assert sizes == [4]  # compiled once
    (staged,) = result.attacks
    assert staged.x_adv.shape == DATA.images.shape
    moved = np.abs(staged.x_adv - DATA.images).reshape(10, -1).max(1)
    np.testing.assert_allclose(staged.distance["linf"], moved, atol=1e-6)


@pytest.mark.slow
def test_two_processes_go_on_from_the_disk_of_the_first(tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    script = Path(__file__).with_name("one_of_two.py")
    processes = [
        subprocess.Popen(
            [sys.executable, script, address, str(index), tmp_path],
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | {"JAX_PLATFORMS": "cpu"},
        )
        for index in range(2)
    ]
    said = [process.communicate(timeout=300)[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0]
    first, second = (json.loads(line.splitlines()[-1]) for line in said)
    assert first == second
    counts, found, left = first
    # Two blocks clean, which are not kept; of the attacks what was not there before.
    assert counts == [4, 2, 4, 2]
    assert found == outcomes(judge(None, batch_size=8)[0])
    assert not left
    assert not (tmp_path / "1").exists()


def test_what_cannot_be_kept_is_said(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=r"Cannot write .*unfinished\.npz: "):
        judge(tmp_path / "file", attacks=suite()[:1])


def test_paths_cost_nothing_and_end_broken():
    result, _ = judge(None)
    pgd, staged, fgsm = result.attacks
    assert pgd.losses.shape == pgd.broken_along.shape == (10, 2)
    assert fgsm.losses.shape == (10, 1)
    assert staged.losses is None
    # The first iterate of FGSM is x itself.
    right = MODEL(jnp.asarray(DATA.images)).argmax(1) == DATA.labels
    assert (fgsm.broken_along[:, 0] == ~np.asarray(right)).all()
    assert (np.diff(pgd.broken_along.astype(int)) >= 0).all()
    assert pgd.shown.shape == (8, 2, 2, 1)
    assert (result.clean_predicted == np.asarray(MODEL(DATA.images).argmax(1))).all()
    for attack in result.attacks:
        assert ((attack.predicted == DATA.labels) == attack.correct).all()
        assert ((attack.confidence > 1 / 3) & (attack.confidence <= 1)).all()


def test_nan_logits_are_counted():
    nan = jax.tree_util.Partial(
        lambda w, x: jnp.where(x[:, :1, 0, 0] > 0.5, jnp.nan, linear(w, x)), WEIGHTS
    )
    result, _ = judge(None, model=nan, attacks=suite()[2:], keep_adversarial=True)
    holds = DATA.images[:, 0, 0, 0] > 0.5
    assert result.num_nan == holds.sum() > 0
    assert not result.clean_correct[holds].any()
    (fgsm,) = result.attacks
    answers = [(result.clean_predicted, result.clean_confidence, holds)]
    nan_there = np.isnan(np.asarray(nan(jnp.asarray(fgsm.x_adv)))).any(1)
    answers += [(fgsm.predicted, fgsm.confidence, nan_there)]
    for predicted, confidence, unknown in answers:
        assert ((predicted == -1) == unknown).all()
        assert ((confidence == 0) == unknown).all()
    at_worst = np.where(result.clean_correct, nan_there, holds)
    assert np.sum(confusion(result)) == 10 - at_worst.sum()


def test_a_function_that_hides_its_gradient_is_other_work(tmp_path):
    """Its answers are those of the other; blocks of that are not its own."""
    plain = lambda x: linear(WEIGHTS, x)
    masked = lambda x: linear(WEIGHTS, jax.lax.stop_gradient(x))
    labels = np.asarray(plain(DATA.images).argmax(axis=1), np.int32)
    data = Dataset(DATA.images, labels, DATA.index, DATA.class_names)
    fgsm = attacks.fgsm(THREAT)

    def judged(fun, source=None):
        rows = [NamedAttack("fgsm", fgsm, {"eps": 0.2}, source=source)]
        found = evaluation.evaluate(
            fun, data, rows, key=jax.random.key(0), state_dir=tmp_path, keep_state=True
        )
        return found.worst_case_correct.mean()

    broken = judged(plain)
    assert broken < 1
    assert judged(masked) == 1
    assert judged(masked, source=plain) == broken
    assert judged(plain, source=masked) == 1
    assert len(list(tmp_path.iterdir())) == 4
    assert judged(plain) == broken
    assert len(list(tmp_path.iterdir())) == 4
