import dataclasses

import numpy as np
import pytest

from robustjax import InputError
from robustjax.evaluation import (
    AttackResult,
    Robustness,
    load_outcomes,
    save_outcomes,
    summarise,
)

N = 40


def attack(name, correct, counts=True):
    return AttackResult(
        name=name,
        parameters={},
        correct=correct,
        distance={"linf": np.zeros(N)},
        lowest=0.0,
        highest=1.0,
        mass_above_one=0.0,
        seconds=0.1,
        counts=counts,
    )


@pytest.fixture
def result():
    rng = np.random.default_rng(0)
    names = ("PGD-40", "a/b: ü \N{GREEK SMALL LETTER EPSILON} = 8/255", "clean")
    attacks = [attack(n, rng.random(N) < 0.7, n != "clean") for n in names]
    return Robustness(
        index=rng.permutation(1000)[:N],
        labels=rng.integers(0, 10, N).astype(np.int32),
        clean_correct=rng.random(N) < 0.9,
        clean_seconds=0.1,
        attacks=tuple(attacks),
    )


def test_what_is_saved_comes_back(result, tmp_path):
    path = save_outcomes(tmp_path / "new" / "report", result)
    assert [p.name for p in path.parent.iterdir()] == ["outcomes.npz"]
    found = load_outcomes(path.parent)
    np.testing.assert_array_equal(found.index, result.index)
    np.testing.assert_array_equal(found.labels, result.labels)
    np.testing.assert_array_equal(found.clean, result.clean_correct)
    np.testing.assert_array_equal(found.worst_case, result.worst_case_correct)
    assert list(found.attacks) == [a.name for a in result.attacks]
    for one in result.attacks:
        np.testing.assert_array_equal(found.attacks[one.name], one.correct)
    assert found.counted == tuple(a.name for a in result.attacks if a.counts)
    assert found.draws == 1


def test_rows_are_those_of_the_report(result, tmp_path):
    save_outcomes(tmp_path, result)
    rows = load_outcomes(tmp_path).rows()
    told = {row["name"]: row["accuracy"] for row in summarise(result)["rows"]}
    assert list(rows) == list(told)
    for name, correct in rows.items():
        assert correct.mean() == pytest.approx(told[name])


def test_shares_of_a_random_classifier_come_back(result, tmp_path):
    shares = np.linspace(0, 1, N, dtype=np.float32)
    random = attack("PGD", shares)
    given = dict(clean_correct=shares[::-1], attacks=(random,), draws=9)
    save_outcomes(tmp_path, dataclasses.replace(result, **given))
    found = load_outcomes(tmp_path)
    assert found.draws == 9
    np.testing.assert_array_equal(found.attacks["PGD"], shares)
    assert found.clean.dtype == np.float32


def test_no_attack_is_fine(result, tmp_path):
    save_outcomes(tmp_path, dataclasses.replace(result, attacks=()))
    found = load_outcomes(tmp_path)
    assert found.attacks == {}
    np.testing.assert_array_equal(found.worst_case, found.clean)


def test_attacks_of_one_name_are_numbered(result, tmp_path):
    first, second, third = result.attacks
    twice = dataclasses.replace(second, name=first.name)
    again = dataclasses.replace(third, name=first.name)
    save_outcomes(tmp_path, dataclasses.replace(result, attacks=(first, twice, again)))
    found = load_outcomes(tmp_path)
    assert list(found.attacks) == ["PGD-40", "PGD-40 (2)", "PGD-40 (3)"]
    assert found.counted == ("PGD-40", "PGD-40 (2)")
    np.testing.assert_array_equal(found.attacks["PGD-40 (2)"], second.correct)


def test_a_missing_file_says_what_to_do(tmp_path):
    with pytest.raises(InputError, match=r"has no outcomes\.npz.*eval\.py"):
        load_outcomes(tmp_path)


def test_a_directory_that_cannot_be_written(result, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="Cannot write"):
        save_outcomes(tmp_path / "file" / "report", result)


def test_an_interrupted_write_leaves_the_old_file(result, tmp_path, monkeypatch):
    path = save_outcomes(tmp_path, result)
    before = path.read_bytes()

    def full(file, **arrays):
        file.write(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np, "savez_compressed", full)
    with pytest.raises(InputError, match="No space left"):
        save_outcomes(tmp_path, dataclasses.replace(result, attacks=()))
    assert path.read_bytes() == before


def refused(directory):
    with pytest.raises(InputError, match=r"damaged|cannot be read") as caught:
        load_outcomes(directory)
    assert len(str(caught.value).splitlines()) == 1
    return True


def test_a_file_cut_short_is_one_line(result, tmp_path):
    path = save_outcomes(tmp_path, result)
    whole = path.read_bytes()
    for cut in range(0, len(whole), len(whole) // 20):
        path.write_bytes(whole[:cut])
        assert refused(tmp_path)
    path.write_bytes(b"not an archive")
    assert refused(tmp_path)


def test_a_changed_byte_is_seen_or_harmless(result, tmp_path):
    path = save_outcomes(tmp_path, result)
    whole, before = path.read_bytes(), load_outcomes(tmp_path)
    seen = 0
    for place in range(0, len(whole), 11):
        path.write_bytes(
            whole[:place] + bytes([whole[place] ^ 0x55]) + whole[place + 1 :]
        )
        try:
            found = load_outcomes(tmp_path)
        except InputError:
            seen += 1
        else:
            np.testing.assert_equal(
                dataclasses.asdict(found), dataclasses.asdict(before)
            )
    assert seen > len(whole) // 11 // 2


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (dict(clean=np.ones(N - 1, bool)), "'clean' is bool"),
        (dict(clean=np.full(N, 1.5)), "outside"),
        (dict(clean=np.full(N, np.nan)), "outside"),
        (dict(index=np.zeros(N, np.int64)), "twice"),
        (dict(names=np.array(["a", "a", "b"])), "twice"),
        (dict(labels=np.zeros(3, np.int32)), "lengths"),
        (dict(labels=np.zeros(N, np.float32)), "dtypes"),
        (dict(attack_0=np.array([object()] * N)), "damaged"),
    ],
)
def test_arrays_that_make_no_sense_are_damage(result, tmp_path, change, reason):
    path = save_outcomes(tmp_path, result)
    with np.load(path) as file:
        content = {name: file[name] for name in file.files}
    np.savez(path, **(content | change))
    with pytest.raises(InputError, match=reason):
        load_outcomes(tmp_path)


@pytest.mark.parametrize("missing", ["index", "draws", "attack_1", "names"])
def test_missing_arrays_are_damage(result, tmp_path, missing):
    path = save_outcomes(tmp_path, result)
    with np.load(path) as file:
        content = {name: file[name] for name in file.files}
    del content[missing]
    np.savez(path, **content)
    with pytest.raises(InputError, match="damaged"):
        load_outcomes(tmp_path)
