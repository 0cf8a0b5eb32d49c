"""AutoAttack and other sequences: the bookkeeping, with fakes that break what they
are told to, and once the real thing."""

import functools
import sys
import zipfile
from collections import Counter

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.tree_util import Partial

from robustjax import InputError, attacks, evaluation, threats, training
from robustjax.attacks import Stage, StagedAttack, staged
from robustjax.data import Dataset

KEY_X, KEY_W, KEY_V = jax.random.split(jax.random.key(0), 3)
X = np.asarray(jax.random.uniform(KEY_X, (12, 6, 6, 1)))
HIDDEN, HEAD = jax.random.normal(KEY_W, (36, 8)), jax.random.normal(KEY_V, (8, 4))
LINF = threats.linf(0.05)


def _network(hidden, head, x):
    return jnp.tanh(0.5 * (x.reshape(x.shape[0], -1) - 0.5) @ hidden) @ head


PREDICT = Partial(_network, HIDDEN, HEAD)
Y = np.array(PREDICT(X).argmax(1))
Y[2] = (Y[2] + 1) % 4  # wrong about one


def key():
    return jax.random.key(7)


# --- which stages -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("attack", "classes", "expected"),
    [
        (attacks.autoattack(LINF), 10, "APGD-CE 1, APGD-T 9, FAB-T 9, Square 1"),
        (attacks.autoattack(LINF), 4, "APGD-CE 1, APGD-T 3, FAB-T 3, Square 1"),
        (attacks.autoattack(LINF), 3, "APGD-CE 1, APGD-T 2, FAB-T 2, Square 1"),
        (attacks.autoattack(LINF), 2, "APGD-CE 1, APGD-T 1, FAB-T 1, Square 1"),
        (
            attacks.autoattack(threats.l2(0.5)),
            100,
            "APGD-CE 1, APGD-T 9, FAB-T 9, Square 1",
        ),
        (
            attacks.autoattack(threats.l1(12.0, sparsity=0.3)),
            10,
            "APGD-CE 5, APGD-T 5, FAB-T 9, Square 1",
        ),
        (
            attacks.autoattack_plus(LINF),
            10,
            "APGD-CE 5, APGD-DLR 5, FAB 1, Square 1, APGD-T 9, FAB-T 9",
        ),
        (
            attacks.autoattack_rand(LINF, PREDICT),
            10,
            "APGD-CE 1, APGD-DLR 1",
        ),
        (attacks.screen(LINF), 10, "APGD-CE 1, APGD-T 9"),
        (attacks.aa_namid(LINF), 10, "APGD-CE 1, APGD-T 9, FAB-T 9, Square 1"),
    ],
)
def test_stages_are_those_of_the_version(attack, classes, expected):
    stages = attack.stages(classes)
    assert ", ".join(f"{stage.name} {stage.rounds}" for stage in stages) == expected
    assert attack.stages(classes) is stages  # `jit` knows them again


def test_only_autoattack_is_called_so():
    assert attacks.autoattack(LINF).name == "AutoAttack"
    assert attacks.autoattack_plus(LINF).name == "AutoAttack plus"
    assert attacks.autoattack_rand(LINF, PREDICT).name == "AutoAttack rand"
    for other in (attacks.screen(LINF), attacks.aa_namid(LINF)):
        assert "autoattack" not in other.name.lower()


def test_namids_copy_refuses_l1():
    with pytest.raises(InputError, match=r"`threat.name` must be one of 'linf', 'l2'"):
        attacks.aa_namid(threats.l1(1.0, sparsity=0.3))


def test_fab_of_plus_has_five_starts(monkeypatch):
    made = []
    module = sys.modules[attacks.autoattack.__module__]
    fab = module.fab
    recorded = lambda *args, **options: made.append(options) or fab(*args, **options)
    monkeypatch.setattr(module, "fab", recorded)
    (stage,) = (s for s in attacks.autoattack_plus(LINF).stages(4) if s.name == "FAB")
    stage.attack(jnp.int32(0))
    assert made == [{"num_restarts": 5}]  # rounds of one start would all be the same


# --- bookkeeping, with fakes --------------------------------------------------------


def told(x):
    """A classifier of images by their first pixel: 0 below one half, else 1."""
    return jnp.stack([0.5 - x[:, 0, 0, 0], x[:, 0, 0, 0] - 0.5], axis=1)


COUNT = 20
NUMBERS = np.zeros((COUNT, 2, 2, 1), np.float32)
NUMBERS[:, 0, 1, 0] = np.arange(COUNT) / 32  # who it is
ZEROS = np.zeros(COUNT, np.int32)
WIDE = threats.linf(0.6)


def breaking(chosen, seen=None, per_round=False, shapes=None):
    """A stage's attack that breaks the chosen images, and notes whom it is run on.

    `shapes` gets the shape of each trace.
    """

    def attack_of(turn):
        def attack(key, logits_fn, x, y):
            if shapes is not None:
                shapes.append(x.shape)
            who = jnp.round(32 * x[:, 0, 1, 0]).astype(int)
            if seen is not None:
                jax.debug.callback(lambda w: seen.append(np.array(w)), who)
            hit = jnp.isin(who, jnp.asarray(chosen))
            if per_round:  # one of the chosen in each round
                hit = who == jnp.asarray(chosen)[turn]
            moved = x.at[:, 0, 0, 0].set(0.6)
            return jnp.where(hit.reshape(-1, 1, 1, 1), moved, x)

        return attack

    return attack_of


def sequence(*stages, threat=WIDE):
    return StagedAttack("fake", threat, lambda num_classes: stages)


def run(attack, count=COUNT, **options):
    return attack.run(key(), told, NUMBERS[:count], ZEROS[:count], **options)


def quietly(outcome):
    return [(s.name, s.attacked, s.broken, s.accuracy) for s in outcome.stages]


def test_a_stage_sees_only_the_survivors_of_those_before():
    seen = [], [], []
    attack = sequence(
        Stage("a", breaking([1, 2, 3], seen[0])),
        Stage("b", breaking([3, 5, 7, 9], seen[1], per_round=True), 4),
        Stage("c", breaking([], seen[2])),
    )
    lines = []
    outcome = run(attack, batch_size=8, log=lines.append)
    jax.effects_barrier()
    assert quietly(outcome) == [
        ("a", 20, 3, 17 / 20),
        ("b", 17, 3, 14 / 20),
        ("c", 14, 0, 14 / 20),
    ]
    assert [line.split(",")[0] for line in lines] == [
        "a: 85.00%",
        "b: 70.00%",
        "c: 70.00%",
    ]
    broken = np.isin(np.arange(COUNT), [1, 2, 3, 5, 7, 9])
    np.testing.assert_array_equal(outcome.correct, ~broken)
    np.testing.assert_array_equal(outcome.x_adv[~broken], NUMBERS[~broken])
    assert (outcome.x_adv[broken, 0, 0, 0] == np.float32(0.6)).all()
    assert set(np.concatenate(seen[2])) == set(np.flatnonzero(~broken))
    # Rounds: 17 survivors in the 1st and 2nd (3 is gone), 16 in the 3rd, ...
    sizes = [len(who) for who in seen[1]]
    assert sizes == [8, 8, 1, 8, 8, 1, 8, 8, 8, 8]


def test_a_stage_compiles_once_per_power_of_two_and_then_never():
    shapes = []
    attack = sequence(
        Stage("a", breaking([1], shapes=shapes)),
        Stage("b", breaking([2], shapes=shapes)),
    )
    for count in (20, 19, 18, 17, 16):
        run(attack, count, batch_size=16)
    assert set(Counter(shapes).values()) == {2}  # each shape once per stage
    assert len(shapes) <= 2 * 5  # 1, 2, 4, 8, 16
    before = len(shapes)
    for count in (20, 17):
        run(attack, count, batch_size=16)
    assert len(shapes) == before


@pytest.mark.parametrize("count", [1, 3, COUNT])
def test_any_number_of_images_and_any_batch(count):
    attack = sequence(Stage("a", breaking([0, 2])))
    for batch_size in (1, 7, 999):
        outcome = run(attack, count, batch_size=batch_size)
        expected = ~np.isin(np.arange(count), [0, 2])
        np.testing.assert_array_equal(outcome.correct, expected)


@pytest.mark.parametrize(
    ("size", "devices", "count", "expected"),
    [
        (64, 1, 33, [32, 1]),
        (64, 1, 48, [32, 16]),
        (64, 1, 49, [49]),
        (64, 1, 100, [64, 32, 4]),
        (300, 1, 300, [300]),
        (8, 1, 5, [5]),
        (64, 8, 33, [33]),
        (256, 8, 130, [128, 2]),
    ],
)
def test_batches_are_split_rather_than_padded_to_the_double(
    size, devices, count, expected
):
    blocks = list(staged._blocks(size, devices, np.arange(2 * count) % 2 == 1))
    assert [len(block) for block in blocks] == expected
    np.testing.assert_array_equal(np.concatenate(blocks), 1 + 2 * np.arange(count))


def test_without_survivors_nothing_runs():
    seen = []
    everyone = Stage("a", breaking(list(range(COUNT))))
    outcome = run(sequence(everyone, Stage("b", breaking([1], seen))))
    assert quietly(outcome)[1] == ("b", 0, 0, 0.0)
    assert not outcome.correct.any()
    all_wrong = sequence(Stage("b", breaking([1], seen))).run(
        key(), told, NUMBERS, ZEROS + 1
    )
    jax.effects_barrier()
    assert not seen
    assert not all_wrong.clean_correct.any()
    np.testing.assert_array_equal(all_wrong.x_adv, NUMBERS)


@pytest.mark.parametrize(
    ("threat", "value"),
    [(threats.linf(0.59), 0.6), (threats.linf(1.0), 1.1), (WIDE, jnp.nan)],
    ids=["ball", "box", "nan"],
)
def test_a_point_that_breaks_the_rules_breaks_nothing(threat, value):
    def cheat(turn):
        return lambda key, logits_fn, x, y: x.at[:, 0, 0, 0].set(value)

    wide = lambda x: jnp.nan_to_num(told(x))
    attack = sequence(Stage("cheat", cheat), threat=threat)
    outcome = attack.run(key(), wide, NUMBERS, ZEROS)
    assert outcome.correct.all()
    np.testing.assert_array_equal(outcome.x_adv, NUMBERS)


# --- a run that is killed -----------------------------------------------------------


class Killed(Exception):
    pass


def killed_after(monkeypatch, batches):
    """Lets so many batches pass, as a signal would; every one is written down."""
    monkeypatch.setattr("robustjax.attacks._progress._SECONDS_BETWEEN_WRITES", -1.0)
    inner, left = staged._attacked, [batches]

    def attacked(*arguments):
        if not left[0]:
            raise Killed
        left[0] -= 1
        return inner(*arguments)

    monkeypatch.setattr(staged, "_attacked", attacked)


THREE = (
    Stage("a", breaking([1, 2, 3])),
    Stage("b", breaking([3, 5, 7, 9], per_round=True), 4),
    Stage("c", breaking([11])),
)


@pytest.mark.parametrize("batches", [1, 2, 5, 9, 13])
def test_a_killed_run_goes_on_where_it_was(batches, tmp_path, monkeypatch):
    path = tmp_path / "deep" / "state.npz"
    whole = run(sequence(*THREE), batch_size=8)
    with monkeypatch.context() as patch:
        killed_after(patch, batches)
        with pytest.raises(Killed):
            run(sequence(*THREE), batch_size=8, state_file=path)
    assert path.exists()
    passes = []
    inner = staged._attacked
    monkeypatch.setattr(staged, "_attacked", lambda *a: passes.append(1) or inner(*a))
    shares = np.zeros(3)
    again = run(
        sequence(*THREE),
        batch_size=8,
        state_file=path,
        advance=lambda stage, share: np.add.at(shares, stage, share),
    )
    np.testing.assert_allclose(shares, 1)
    assert quietly(again) == quietly(whole)
    np.testing.assert_array_equal(again.correct, whole.correct)
    np.testing.assert_array_equal(again.x_adv, whole.x_adv)
    assert not list(tmp_path.rglob("*.npz*"))
    passes_of_all = 3 + (3 + 3 + 2 + 2) + 2
    # What is left of a round is packed anew, never done again.
    assert len(passes) <= passes_of_all - batches


def test_another_runs_progress_is_refused(tmp_path, monkeypatch):
    path = tmp_path / "state.npz"
    classifier = Partial(lambda w, x: w * told(x), jnp.ones(()))
    start = dict(attack=sequence(*THREE), key=key(), f=classifier, x=NUMBERS)

    def go(attack, key, f, x):
        return attack.run(key, f, x, ZEROS, batch_size=8, state_file=path)

    with monkeypatch.context() as patch:
        killed_after(patch, 2)
        with pytest.raises(Killed):
            go(**start)
    content = path.read_bytes()
    for other in (
        dict(attack=sequence(*THREE[:2])),
        dict(attack=sequence(*THREE, threat=threats.linf(0.7))),
        dict(key=jax.random.key(8)),
        dict(f=Partial(classifier.func, 2 * jnp.ones(()))),
        # Closures show by their answers, though these get the same right.
        dict(f=lambda x: -told(x)),
        dict(f=lambda x: 2 * told(x)),
        dict(x=NUMBERS + np.float32(0.01)),
    ):
        with pytest.raises(InputError, match="belongs to another run") as error:
            go(**{**start, **other})
        assert "\n" not in str(error.value)
        assert path.read_bytes() == content
    go(**start)
    assert not path.exists()


@pytest.mark.parametrize(
    "content", [b"", b"no archive", b"PK\x03\x04 but not for long", "cut", "flipped"]
)
def test_a_damaged_file_is_refused(content, tmp_path, monkeypatch):
    path = tmp_path / "state.npz"
    if isinstance(content, str):
        with monkeypatch.context() as patch:
            killed_after(patch, 2)
            with pytest.raises(Killed):
                run(sequence(*THREE), state_file=path, batch_size=8)
        good = path.read_bytes()
        with zipfile.ZipFile(path) as archive:  # in the pixels
            at = archive.getinfo("x_adv.npy").header_offset + 300
        flipped = good[:at] + bytes([good[at] ^ 255]) + good[at + 1 :]
        content = good[:-200] if content == "cut" else flipped
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"cannot be read .* Delete it") as error:
        run(sequence(*THREE), state_file=path)
    assert "\n" not in str(error.value)


def test_a_random_classifier_keeps_its_progress_too(tmp_path):
    noisy = lambda keys, x: (
        told(x) + 0.01 * jax.vmap(lambda k: jax.random.normal(k, (2,)))(keys)
    )
    climbed = attacks.expectation(noisy, jax.random.key(1), 2)
    attack = StagedAttack("fake", WIDE, lambda _: THREE, climbed)
    outcome = run(attack, state_file=tmp_path / "state.npz")
    assert quietly(outcome) == quietly(run(sequence(*THREE)))


# --- what it warns of ---------------------------------------------------------------


def warned(f, x=X[:5], y=None, attacked=None, threat=LINF, stages=()):
    y = np.asarray(f(jnp.asarray(x)).argmax(1)) if y is None else y
    attack = StagedAttack("none", threat, lambda num_classes: stages, attacked)
    placement = attacks.Placement(8, *attacks.Placement()[1:])  # pads 5 to 8
    return list(attack.run(key(), f, x, y, placement=placement).warnings)


def test_a_sound_classifier_is_not_warned_of():
    assert warned(PREDICT) == []
    assert warned(PREDICT, 2 * X - 1, threat=threats.linf(0.1, bounds=(-1, 1))) == []


@pytest.mark.filterwarnings("ignore:.*probabilities")
def test_doubtful_classifiers_are_warned_of():
    (line,) = warned(lambda x: jax.nn.softmax(PREDICT(x)))
    assert "probabilities" in line
    (line,) = warned(lambda x: PREDICT(x) - PREDICT(x).mean(0, keepdims=True))
    assert "other images of its batch" in line
    (line,) = warned(PREDICT, 2 * X[:5])
    assert "outside [0, 1]" in line
    (line,) = warned(lambda x: PREDICT(x)[:, :3])
    assert "With 3 classes" in line
    dead = lambda x: jnp.where(x[:, :1, 0, 0] == X[1, 0, 0, 0], 1.0, PREDICT(x))
    (line,) = warned(dead)
    assert "zero for 20.0% of the first 5 images" in line  # padding does not count


def test_two_calls_that_differ_are_random():
    draws = np.random.default_rng(0)

    def judge(x):
        shape = jax.ShapeDtypeStruct((x.shape[0], 4), jnp.float32)
        draw = lambda _: draws.normal(size=shape.shape).astype(np.float32)
        return 100 * PREDICT(x) + 1e-3 * jax.pure_callback(draw, shape, x)

    def traced_once(x):
        return PREDICT(x) + 1e-3 * draws.normal(size=(1, 4)).astype(np.float32)

    for random in (judge, traced_once):
        line, *_ = warned(random, attacked=PREDICT)
        assert "is random" in line
        assert "`rand`" in line


@pytest.mark.parametrize(("hits", "expected"), [([], 0), ([4], 1)])
def test_square_should_not_find_what_gradients_did_not(hits, expected):
    stages = Stage("APGD-CE", breaking([1, 2])), Stage("Square", breaking(hits))
    found = [line for line in run(sequence(*stages)).warnings if "Square" in line]
    assert len(found) == expected
    assert all("5.0 points" in line for line in found)


# --- what it refuses ----------------------------------------------------------------


@pytest.mark.parametrize(
    "call",
    [
        lambda run: jax.jit(run)(X, HIDDEN),
        lambda run: jax.jit(lambda: run(X, HIDDEN))(),
        lambda run: jax.jit(lambda hidden: run(X, hidden))(HIDDEN),
        lambda run: jax.vmap(lambda hidden: run(X, hidden))(HIDDEN[None]),
        lambda run: jax.grad(lambda hidden: run(X, hidden).sum())(HIDDEN),
        lambda run: jax.grad(lambda x: run(x, HIDDEN).sum())(X),
    ],
)
@pytest.mark.parametrize("pytree", [True, False])
def test_inside_of_a_transformation_it_is_refused(call, pytree):
    attack = attacks.screen(LINF)

    def attacked(x, hidden):
        f = Partial(_network, hidden, HEAD)
        return attack(key(), f if pytree else lambda z: f(z), x, Y)

    with pytest.raises(InputError, match="`screen` runs on the host") as error:
        call(attacked)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda a: a.run(key(), PREDICT, X[:0], Y[:0]), "`x` must hold at least one"),
        (
            lambda a: a.run(key(), PREDICT, X, np.eye(4)[Y]),
            "`y` must be integer labels",
        ),
        (lambda a: a.run(key(), PREDICT, X, Y + 1), "`y` must hold labels in"),
        (lambda a: a.run(key(), PREDICT, X, Y, batch_size=0), "`batch_size`"),
        (
            lambda a: a.run(jax.random.split(key(), 3), PREDICT, X, Y),
            "`key` must be one key or one per image",
        ),
        (
            lambda a: a.run(
                key(),
                attacks.expectation(lambda k, x: PREDICT(x), jax.random.key(1), 2),
                *(X, Y),
            ),
            "`logits_fn` must return .* to judge",
        ),
        (
            lambda _: attacks.screen(threats.linf(jnp.float32(0.1))).run(
                key(), PREDICT, X, Y
            ),
            "`threat.eps` must be a Python number",
        ),
    ],
)
def test_bad_input_is_one_line(call, message):
    with pytest.raises(InputError, match=message) as error:
        call(attacks.screen(LINF))
    assert "\n" not in str(error.value)


# --- the real thing -----------------------------------------------------------------


def small(threat, num_classes=4):
    """The stages of `standard`, in a fiftieth of its budget."""
    apgd = Stage("APGD-CE", lambda turn: attacks.apgd(threat, num_steps=4))
    towards = lambda turn: attacks.fab_target(threat, rank=2 + turn, num_steps=3)
    square = Stage("Square", lambda turn: attacks.square(threat, num_queries=3))
    return square, Stage("FAB-T", towards, 2), apgd


SMALL = StagedAttack("small", LINF, functools.cache(lambda n: small(LINF)))


@functools.cache
def reference():
    return SMALL.run(key(), PREDICT, X, Y)


def agrees(outcome, rows=slice(None)):
    np.testing.assert_array_equal(outcome.correct, reference().correct[rows])
    np.testing.assert_allclose(outcome.x_adv, reference().x_adv[rows], atol=1e-5)


def test_results_do_not_depend_on_batches_order_or_padding():
    found = reference()
    assert 0 < found.correct.sum() < found.clean_correct.sum() == 11
    assert sum(stage.broken for stage in found.stages[1:])  # not all by the first
    agrees(SMALL.run(key(), PREDICT, X, Y, batch_size=5))
    order = np.random.default_rng(0).permutation(12)
    agrees(SMALL.run(key(), PREDICT, X[order], Y[order], index=order), order)
    few = np.array([3, 8, 9])
    agrees(SMALL.run(key(), PREDICT, X[few], Y[few], index=few), few)
    each = jax.vmap(jax.random.fold_in, (None, 0))(key(), jnp.asarray(order))
    agrees(SMALL.run(each, PREDICT, X[order], Y[order]), order)
    np.testing.assert_array_equal(SMALL(key(), PREDICT, X, Y), found.x_adv)


@pytest.mark.parametrize("devices", [1, 8])
def test_results_do_not_depend_on_devices(devices):
    dataset = Dataset(X, Y.astype(np.int32), np.arange(12), tuple("abcd"))
    mesh = training.data_mesh(jax.devices()[:devices])
    named = evaluation.NamedAttack("small", SMALL)
    result = evaluation.evaluate(
        PREDICT, dataset, [named], key=key(), mesh=mesh, keep_adversarial=True
    )
    (found,) = result.attacks
    np.testing.assert_array_equal(found.correct, reference().correct)
    np.testing.assert_allclose(found.x_adv, reference().x_adv, atol=1e-5)
    assert [stage.broken for stage in found.stages] == [
        stage.broken for stage in reference().stages
    ]


def real(attack, f, x, y):
    outcome = attack.run(key(), f, x, y)
    delta = jnp.asarray(outcome.x_adv) - x
    assert (attack.threat.norm(delta) <= attack.threat.eps * (1 + 1e-5) + 1e-6).all()
    assert outcome.x_adv.min() >= 0
    assert outcome.x_adv.max() <= 1
    wrong = np.asarray(f(jnp.asarray(outcome.x_adv)).argmax(1)) != y
    np.testing.assert_array_equal(outcome.correct, ~wrong)
    return outcome


def linear(x):
    return (x.reshape(x.shape[0], -1) - 0.5) @ HIDDEN[:, :4]


def test_autoattack_breaks_what_can_be_broken_of_a_linear_classifier():
    eps = 0.01
    # Away from the bounds of the box, the least margin is known in closed form.
    inner = np.clip(X, 0.1, 0.9)
    y = np.asarray(linear(inner).argmax(1))
    logits, weights = np.asarray(linear(inner)), np.asarray(HIDDEN[:, :4])
    margin = np.full(12, np.inf)
    for label in range(4):
        for other in set(range(4)) - {label}:
            slope = np.abs(weights[:, label] - weights[:, other]).sum()
            gap = logits[:, label] - logits[:, other] - eps * slope
            margin = np.where(y == label, np.minimum(margin, gap), margin)
    clear = np.abs(margin) > 1e-3
    outcome = real(attacks.screen(threats.linf(eps)), linear, inner, y)
    np.testing.assert_array_equal(outcome.correct[clear], (margin > 0)[clear])
    assert 0 < outcome.correct.sum() < 12


@pytest.mark.slow
@pytest.mark.parametrize("num_classes", [2, 3, 4])
@pytest.mark.parametrize(
    "threat",
    [LINF, threats.l2(0.3), threats.l1(1.5, sparsity=0.3)],
    ids=lambda t: t.name,
)
def test_autoattack_runs_on_few_classes_and_all_norms(threat, num_classes):
    f = Partial(lambda f, x: f(x)[:, :num_classes], PREDICT)
    y = np.asarray(f(X).argmax(1))
    outcome = real(attacks.autoattack(threat), f, X[:6], y[:6])
    assert any("classes" in line for line in outcome.warnings) == (num_classes < 4)
    assert (
        outcome.correct.sum()
        <= real(attacks.screen(threat), f, X[:6], y[:6]).correct.sum()
    )


@pytest.mark.slow
def test_rand_climbs_the_expectation():
    noisy = Partial(
        lambda f, keys, x: f(
            x + 0.05 * jax.vmap(lambda k: jax.random.normal(k, x.shape[1:]))(keys)
        ),
        PREDICT,
    )
    climbed = attacks.expectation(noisy, jax.random.key(1), 5)
    judge = attacks.expectation(noisy, jax.random.key(2), 50, average="probabilities")
    y = np.asarray(judge(X).argmax(1))
    attack = attacks.autoattack_rand(threats.linf(0.15), climbed)
    outcome = attack.run(key(), judge, X, y)
    assert outcome.correct.sum() < 12
    assert outcome.warnings == ()
