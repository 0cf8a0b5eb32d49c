"""Heads of a config: what is judged, and in which views attacks may climb it."""

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import pytest

from robustjax import (
    InputError,
    attacks,
    build,
    data,
    evaluation,
    models,
    threats,
    training,
)
from robustjax.config import names
from robustjax.data import Dataset
from robustjax.interpolation import Similarity, interpolate, make_template
from robustjax.types import is_transductive

MODEL = models.from_linen(models.small_cnn(stages=((4,),), dense=8))
SPLITS = data.load("digits")
X, Y = jnp.asarray(SPLITS.test.images[:6]), jnp.asarray(SPLITS.test.labels[:6])
SHORT = {"num_neighbors": 5, "bandwidth_rank": 3}


@pytest.fixture(scope="module")
def weights():
    return MODEL.init(jax.random.key(0), X)


def built(weights, augmentation=(), **head):
    config = ml_collections.ConfigDict(
        {
            "head": {"name": "wnll", "num_templates": 60, "similarity": SHORT, **head},
            "data": {"augment": dict(augmentation)},
        }
    )
    return build.build_classifier(config, SPLITS, MODEL, *weights)


def test_the_judged_classifier_is_the_head_over_drawn_templates(weights):
    classifier = built(weights)
    answer = jax.jit(lambda f, x: f(x))
    logits = answer(classifier.logits_fn, X)
    assert logits.shape == (6, 10)
    np.testing.assert_allclose(jnp.exp(logits).sum(axis=1), 1, atol=1e-5)
    assert not is_transductive(classifier.logits_fn)
    np.testing.assert_array_equal(logits, answer(built(weights).logits_fn, X))
    other = answer(built(weights, seed=1).logits_fn, X)
    assert np.abs(logits - other).max() > 1e-3
    # One image's answer is its own.
    alone = answer(classifier.logits_fn, X[:1])
    np.testing.assert_allclose(alone, logits[:1], atol=1e-4)


def test_templates_are_augmented_where_the_config_says_so(weights):
    crop = {"random_crop": {"padding": 2}}
    plain, augmented = built(weights), built(weights, augmentation=crop)
    untouched = built(weights, augmentation=crop, augment=False)
    assert np.abs(plain.logits_fn(X) - augmented.logits_fn(X)).max() > 1e-3
    np.testing.assert_array_equal(plain.logits_fn(X), untouched.logits_fn(X))


VIEWS = {
    "linear": dict(name="linear"),
    "straight-through": dict(gradient="straight_through"),
    "smooth": dict(gradient=dict(similarity=dict(num_neighbors=None))),
    "released": dict(name="wnll_released"),
    "draws": dict(num_sets=3, average="draws", seed=1),
    "chunks": dict(num_sets=3, disjoint=True),
    "batch": dict(queries="batch"),
    "companions": dict(queries="batch", companions=5),
    "balanced": dict(balanced=True),
    "quartic": dict(similarity=dict(SHORT, kernel="quartic")),
    "nearest": dict(name="nearest_neighbors"),
    "kernel": dict(name="kernel_regression"),
    "float": dict(template_weight=0.5),
}


@pytest.fixture(scope="module")
def plain(weights):
    return built(weights)


@pytest.fixture(scope="module")
def judged(plain):
    return plain.logits_fn(X)


@pytest.mark.parametrize("name", VIEWS)
def test_attacks_run_on_every_view(plain, name):
    attack = attacks.pgd(threats.linf(0.1), step_size=0.05, num_steps=2)
    x_adv = jax.jit(attack)(jax.random.key(1), plain.view(VIEWS[name]), X, Y)
    assert np.isfinite(x_adv).all()


@pytest.mark.parametrize("name", VIEWS)
def test_every_view_answers(weights, plain, judged, name):
    view = plain.view(VIEWS[name])
    logits = view(X)
    assert logits.shape == ((3, 6, 10) if name == "draws" else (6, 10))
    assert np.isfinite(logits).all()
    assert is_transductive(view) == (name == "batch")
    same_values = name in ("straight-through", "smooth")
    assert np.allclose(logits, judged, atol=1e-5) == same_values
    if name == "linear":
        expected = models.logits_fn(MODEL, *weights)(X)
        np.testing.assert_array_equal(logits, expected)
    if name == "released":
        np.testing.assert_allclose(jnp.exp(judged), logits, atol=1e-5)


def test_gradients_of_views_differ_where_they_say_so(plain):
    def slope(view):
        fun = plain.view(view)
        return jax.jit(jax.grad(lambda z: fun(z)[jnp.arange(6), Y].sum()))(X)

    exact = slope({})
    assert np.abs(exact).max() > 1e-3
    for name in ("straight-through", "smooth"):
        assert np.abs(slope(VIEWS[name]) - exact).max() > 1e-3


def test_a_config_without_a_head_is_the_model(weights):
    config = ml_collections.ConfigDict({"data": {"augment": {}}})
    classifier = build.build_classifier(config, SPLITS, MODEL, *weights)
    assert (classifier.has_head, classifier.has_transform) == (False, False)
    expected = models.logits_fn(MODEL, *weights)(X)
    np.testing.assert_array_equal(classifier.logits_fn(X), expected)
    evaluated = {"threat": {"name": "linf", "eps": 0.1}, "step_size": 0.02}
    with pytest.raises(InputError, match="wnll_adaptive judges a head or a transform"):
        build.build_suite("wnll_adaptive", evaluated, None, classifier)


EVALUATION = {
    "threat": {"name": "linf", "eps": 0.1},
    "step_size": 0.025,
    "num_steps": 3,
    "num_restarts": 2,
}


def test_suites_look_into_the_classifier(weights):
    classifier = built(weights)
    adaptive = build.build_suite("wnll_adaptive", EVALUATION, None, classifier)
    assert len({attack.name for attack in adaptive}) == len(adaptive) == 18
    by_name = {attack.name: attack for attack in adaptive}
    assert by_name["Square, 1,000 queries"].source is None
    linear = by_name["linear head, AutoAttack"]
    assert linear.parameters["view"] == {"name": "linear"}
    assert linear.source is not None
    np.testing.assert_array_equal(
        linear.source(X), models.logits_fn(MODEL, *weights)(X)
    )
    paper = build.build_suite("wnll_paper", EVALUATION, None, classifier)
    view = {"gradient": "straight_through"}
    assert [attack.parameters["view"] for attack in paper] == [view] * 3
    assert all(attack.parameters["perturb_templates"] for attack in paper)
    assert [attack.counts for attack in paper] == [True, True, False]
    plain = build.build_suite("wnll_paper", EVALUATION)
    assert [attack.source for attack in plain] == [None] * 3


def test_the_papers_attack_moves_templates_and_queries_together(weights):
    """One step of it, against the gradient of its loss by hand."""
    classifier = built(weights, template_weight="released_floor")
    block = dict(
        name="fgsm",
        threat=EVALUATION["threat"],
        view=dict(gradient="straight_through"),
        perturb_templates=True,
    )
    attack = build.build_attack(block, None, classifier)
    assert attack.source is None
    x_adv = attack.attack(jax.random.key(0), classifier.logits_fn, X, Y)
    rows = classifier._rows(classifier._head)[0]
    images = jnp.concatenate([jnp.asarray(SPLITS.train.images[rows]), X])
    params, state = weights

    def forward(z):
        output = MODEL.apply(params, state, z, capture=("features",))
        return output.features["features"], output.logits

    features, _ = forward(images)
    labels = jnp.asarray(SPLITS.train.labels[rows])
    template = make_template(features[:60], labels, Similarity(5, 3))
    scores = interpolate(features[60:], template, 10, template_weight="released_floor")
    residual = jax.nn.softmax(scores) - jax.nn.one_hot(Y, 10)
    slope = jax.grad(lambda z: (forward(z)[1] * residual).sum())(X)
    expected = jnp.clip(X + 0.1 * jnp.sign(slope), 0, 1)
    np.testing.assert_allclose(x_adv, expected, atol=1e-6)


def test_an_attack_on_a_view_is_judged_by_the_classifier(weights):
    classifier = built(weights)
    block = dict(name="fgsm", threat=EVALUATION["threat"], view=dict(name="linear"))
    subset = SPLITS.test.take(slice(6))
    result = evaluation.evaluate(
        classifier.logits_fn,
        subset,
        [
            build.build_attack(block, None, classifier),
            build.build_attack(
                dict(name="screen", threat=EVALUATION["threat"], view=block["view"]),
                None,
                classifier,
            ),
        ],
        key=jax.random.key(0),
        keep_adversarial=True,
    )
    linear = models.logits_fn(MODEL, *weights)
    attack = attacks.fgsm(threats.linf(0.1))
    expected = attack(jax.random.key(0), linear, X, Y)
    np.testing.assert_allclose(result.attacks[0].x_adv, expected, atol=1e-6)
    for found in result.attacks:
        answers = classifier.logits_fn(jnp.asarray(found.x_adv)).argmax(axis=1)
        np.testing.assert_array_equal(found.correct, answers == Y)


def test_every_restart_on_a_view_is_judged(weights):
    classifier = built(weights)
    pgd = dict(name="pgd", threat=EVALUATION["threat"], step_size=0.05, num_steps=2)
    block = dict(name="restarts", attack=pgd, num_restarts=3, view=dict(name="linear"))
    named = build.build_attack(block, None, classifier)
    assert named.repeats == 3
    assert named.parameters["num_restarts"] == 3
    assert named.parameters["attack"]["num_steps"] == 2
    subset = SPLITS.test.take(slice(40))
    result = evaluation.evaluate(
        classifier.logits_fn,
        subset,
        [named],
        key=jax.random.key(0),
        keep_adversarial=True,
    ).attacks[0]
    x, y = jnp.asarray(subset.images), jnp.asarray(subset.labels)
    each = jax.vmap(jax.random.fold_in, (None, 0))
    keys = each(jax.random.key(0), subset.index.astype(np.uint32))
    right, run = np.ones(40, bool), jax.jit(named.attack)
    for number in range(3):
        folded = jax.vmap(jax.random.fold_in, (0, None))(jax.random.clone(keys), number)
        x_adv = run(folded, named.source, x, y)
        right &= np.asarray(classifier.logits_fn(x_adv).argmax(axis=1) == y)
    np.testing.assert_array_equal(result.correct, right)
    again = classifier.logits_fn(jnp.asarray(result.x_adv)).argmax(axis=1) == y
    np.testing.assert_array_equal(again, right)
    assert result.distance["linf"].max() <= 0.1 + 1e-6


def test_attacks_among_queries_see_no_padding(weights):
    """40 images in batches of 30: blocks of 20 for what looks at whole batches."""
    classifier = built(weights)
    block = dict(name="fgsm", threat=EVALUATION["threat"], view=dict(queries="batch"))
    joint = dict(block, view=dict(gradient="exact"), perturb_templates=True)
    attacks = [build.build_attack(b, None, classifier) for b in (block, joint)]
    run = lambda size: evaluation.evaluate(
        classifier.logits_fn,
        SPLITS.test.take(slice(40)),
        attacks,
        key=jax.random.key(0),
        batch_size=size,
        keep_adversarial=True,
        mesh=training.data_mesh(jax.devices()[:1]),
    )
    for ragged, even in zip(run(30).attacks, run(20).attacks, strict=True):
        np.testing.assert_array_equal(ragged.x_adv, even.x_adv)


def test_judges_must_all_be_right(weights):
    classifier = built(weights)
    block = dict(name="fgsm", threat=EVALUATION["threat"])
    others = [dict(seed=seed) for seed in (1, 2)]
    screen = dict(name="screen", threat=EVALUATION["threat"])
    result = evaluation.evaluate(
        classifier.logits_fn,
        SPLITS.test.take(slice(64)),
        [
            build.build_attack(one | dict(judges=judges), None, classifier)
            for one in (block, screen)
            for judges in ((), others)
        ],
        key=jax.random.key(0),
        keep_adversarial=True,
    )
    judges = [classifier.logits_fn, *map(classifier.view, others)]
    for alone, among in (result.attacks[:2], result.attacks[2:]):
        np.testing.assert_array_equal(alone.x_adv, among.x_adv)
        answers = [f(jnp.asarray(among.x_adv)).argmax(axis=1) for f in judges]
        right = np.all(np.stack(answers) == result.labels, axis=0)
        np.testing.assert_array_equal(among.correct, right)
    assert result.attacks[1].parameters["judges"] == others


def test_a_transform_keeps_a_batch_transductive(weights):
    config = ml_collections.ConfigDict(
        {
            "head": {"name": "wnll", "num_templates": 60, "similarity": SHORT},
            "transform": {"name": "total_variation", "p_drop": 0.2, "max_steps": 10},
            "data": {"augment": {}},
            "evaluation": {"draws": 4},
        }
    )
    classifier = build.build_classifier(config, SPLITS, MODEL, *weights)
    assert (classifier.has_head, classifier.has_transform) == (True, True)
    assert not is_transductive(classifier.logits_fn)
    assert is_transductive(classifier.view(dict(queries="batch")))
    assert classifier.view(dict(samples=2))(X).shape == (2, 6, 10)
    answers = np.asarray(classifier.logits_fn(X))
    assert answers.shape == (4, 6, 10)
    past = classifier.view(dict(transform=None))
    seen = classifier.view(dict(samples=1))
    # Masks differ by draw, and attacks see others than those that judge.
    for one, other in ((past(X), answers[0]), (answers[0], answers[1])):
        assert np.abs(one - other).max() > 1e-3
    assert np.abs(seen(X)[None] - answers).max(axis=(1, 2)).min() > 1e-3
    fgsm = dict(name="fgsm", threat=EVALUATION["threat"])
    assert build.build_attack(fgsm, None, classifier).source is not None
    # The judged masks are an image's own, whatever is beside it.
    alone = classifier.logits_fn(X[2:4])
    np.testing.assert_allclose(alone, answers[:, 2:4], atol=1e-4)


def test_a_transform_without_a_mask_is_not_random(weights):
    config = ml_collections.ConfigDict(
        {
            "transform": {"name": "total_variation", "p_drop": 0, "max_steps": 10},
            "data": {"augment": {}},
        }
    )
    classifier = build.build_classifier(config, SPLITS, MODEL, *weights)
    assert (classifier.random_view, classifier.source) == (None, None)
    assert classifier.logits_fn(X).shape == (6, 10)


def test_templates_drawn_anew_are_judged_by_expected_accuracy(weights):
    classifier = built(weights, average="draws", num_sets=4)
    assert classifier.random_view == {}
    single = built(weights, average="draws")
    assert (single.random_view, single.source) == (None, None)
    np.testing.assert_array_equal(single.view({})(X), single.logits_fn(X))
    judged, seen = (np.asarray(f(X)) for f in (classifier.logits_fn, classifier.source))
    assert judged.shape == seen.shape == (4, 6, 10)
    assert np.abs(judged[:, None] - seen[None]).max(axis=(2, 3)).min() > 1e-3
    asked = classifier.view(dict(seed=0))
    np.testing.assert_array_equal(asked(X), judged)  # by name, the judge's own
    blocks = [
        dict(name="apgd", threat=EVALUATION["threat"], num_steps=5),
        dict(name="square", threat=EVALUATION["threat"], num_queries=20),
        dict(name="fgsm", threat=EVALUATION["threat"], view=dict(name="linear")),
    ]
    result = evaluation.evaluate(
        classifier.logits_fn,
        SPLITS.test.take(slice(24)),
        [build.build_attack(block, None, classifier) for block in blocks],
        key=jax.random.key(0),
        mesh=training.data_mesh(jax.devices()[:1]),
    )
    assert result.draws == 4
    for attack in result.attacks:
        # Of four draws two judge.
        assert set(np.unique(attack.correct)) <= {0.0, 0.5, 1.0}
        assert attack.correct.mean() <= result.clean_correct.mean()


def test_a_transductive_classifier_is_never_padded(weights):
    classifier = built(weights, queries="batch")
    judge = lambda size, *attacks: evaluation.evaluate(
        classifier.logits_fn,
        SPLITS.test.take(slice(24)),
        list(attacks),
        key=jax.random.key(0),
        batch_size=size,
    )
    assert judge(8).clean_correct.shape == (24,)
    with pytest.raises(InputError, match=r"`batch_size` must divide the 24.*got 16"):
        judge(16)
    staged = build.build_attack(dict(name="screen", threat=EVALUATION["threat"]))
    with pytest.raises(InputError, match=r"'screen' leaves broken images out.*single"):
        judge(24, staged)


@pytest.mark.parametrize(
    ("head", "message"),
    [
        (dict(name="wnl"), r"`head name` must be one of.*'wnl'"),
        (dict(num_templates=5), r"drew no template of class"),
        (dict(num_templates=2000), r"must be at most 1200.*2000"),
        (dict(similarity=dict(kernel="cubic")), r"`kernel` name|`kernel name` must be"),
        (dict(similarity=dict(neighbors=3)), r"neighbors.*num_neighbors"),
        (dict(templates=3), r"The block of head does not fit.*templates"),
        (dict(gradient="none"), r"`gradient` must be one of.*'none'"),
        (dict(seed="abc"), r"`head\.seed` must be an integer.*'abc'"),
        (dict(balanced="maybe"), r"`head\.balanced` must be one of.*'maybe'"),
        (dict(companions=3), r"`head\.companions` 3 needs `head\.queries` 'batch'"),
        (dict(solver=dict(method="lu")), r"`method` must be one of.*'lu'"),
    ],
)
def test_a_wrong_head_is_one_line(weights, head, message):
    with pytest.raises(InputError, match=message) as caught:
        _ = built(weights, **head).logits_fn
    assert "\n" not in str(caught.value)


def test_views_need_the_classifier():
    with pytest.raises(InputError, match=r"only eval\.py"):
        build.build_attack(
            dict(name="fgsm", threat=EVALUATION["threat"], view=dict(name="linear"))
        )
    with pytest.raises(InputError, match=r"only eval\.py"):
        build.build_attack(dict(name="feature_collision", step_size=0.1))


def test_overrides_of_eval():
    config = ml_collections.ConfigDict({"head": {"name": "wnll", "seed": 3}})
    build.override(config, "wnll", None, ["head.seed=4", "head.name=linear"])
    assert config.head.to_dict() == {"name": "linear", "seed": 4}
    build.override(config, "kernel_regression", "none", ["head.similarity.kernel=a"])
    assert config.head.to_dict() == {
        "name": "kernel_regression",
        "similarity": {"kernel": "a"},
    }
    assert not config.transform
    for wrong in ("head", "head=3", "tail.name=3", "head.seed="):
        with pytest.raises(InputError, match=r"`--set` must be block\.name=value"):
            build.override(config, None, None, [wrong])
    config.evaluation = {"num_steps": 40, "threat": {"eps": 0.1}}
    config.data = {"name": "digits"}
    build.override(config, None, None, ["evaluation.layer=features", "data.name=mnist"])
    for wrong in ("evaluation.num_stepz=3", "data.imagesize=9"):
        with pytest.raises(InputError, match=r"`--set` knows no .*, only .*n"):
            build.override(config, None, None, [wrong])
    build.override(config, None, None, ["evaluation.mine=3"], any_evaluation=True)
    config.head.template_weight = "paper"
    build.override(config, None, None, ["head.template_weight=0.5"])
    assert config.head.template_weight == 0.5
    with pytest.raises(
        InputError, match=r"evaluation.threat.eps leaves .* --attack.eps"
    ):
        build.override(config, None, None, ["evaluation.threat.eps=0.2"])


def test_every_head_of_the_table_is_public():
    for name, head in names.HEADS.items():
        assert head.__name__ == name
    assert isinstance(SPLITS.train, Dataset)


def test_adaptive_attacks_are_sane(weights):
    """Everything falls in a large ball, and queries find no more than gradients do."""
    classifier = built(weights, num_templates=500)
    threat = lambda eps: dict(name="linf", eps=eps)
    climb = lambda eps: dict(
        name="pgd",
        threat=threat(eps),
        step_size=eps / 4,
        num_steps=20,
        iterate="best",
        objective="margin",
        view={"gradient": {"similarity": {"num_neighbors": None}}},
        label=f"PGD at {eps}",
    )
    square = dict(name="square", threat=threat(0.1), num_queries=50)
    result = evaluation.evaluate(
        classifier.logits_fn,
        SPLITS.test.take(slice(24)),
        [
            build.build_attack(b, None, classifier)
            for b in (climb(1.0), climb(0.1), square)
        ],
        key=jax.random.key(0),
        mesh=training.data_mesh(jax.devices()[:1]),
    )
    large, white, black = (attack.correct.sum() for attack in result.attacks)
    assert result.clean_correct.mean() > 0.3
    assert (large, white <= black) == (0, True)
    assert white < result.clean_correct.sum()
