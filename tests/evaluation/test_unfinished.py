"""A killed evaluation goes on where it was, and only there."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from robustjax import InputError, attacks, evaluation, threats
from robustjax.data import Dataset
from robustjax.evaluation import NamedAttack

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
        NamedAttack("staged", staged),
        NamedAttack("fgsm", attacks.fgsm(THREAT)),
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
        batch_size=8,
        state_dir=state_dir,
        advance=advance,
        **options,
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
    from robustjax.evaluation import unfinished

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


def test_what_cannot_be_kept_is_said(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="Cannot keep unfinished work in"):
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
    result, _ = judge(None, model=nan, attacks=suite()[2:])
    holds = DATA.images[:, 0, 0, 0] > 0.5
    assert result.num_nan == holds.sum() > 0
    assert not result.clean_correct[holds].any()
