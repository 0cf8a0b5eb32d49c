"""report.html, and that a browser makes of it what it should."""

import dataclasses
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from pages import Page, check
from PIL import Image as Pixels

from robustjax.evaluation import (
    compose,
    examples_of,
    page,
    report_html,
    report_markdown,
    summarise,
    weights_by_class,
)
from robustjax.evaluation._blocks import (
    Folded,
    Item,
    Items,
    Picture,
    Section,
    Table,
    Text,
)
from robustjax.evaluation.results import AttackResult, Fooled, Robustness

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser"))), None)
EVIL = "<script>alert('a')</script> & \"b\" | `c` $d$ \x00"
LINF = {"name": "linf", "eps": 8 / 255, "bounds": [0.0, 1.0]}
N = 12


def attack(rng, name, correct, **given):
    number = len(correct)
    start = dict(
        parameters={"name": "pgd", "threat": LINF},
        distance={norm: rng.random(number) for norm in ("linf", "l2", "l1")},
        lowest=0.0,
        highest=1.0,
        mass_above_one=0.0,
        seconds=1.5,
        predicted=np.int32(rng.integers(0, 3, number)),
        confidence=np.float32(rng.random(number)),
    )
    return AttackResult(name=name, correct=np.array(correct), **(start | given))


@pytest.fixture(scope="module")
def result():
    rng = np.random.default_rng(0)
    right = np.arange(N) % 4 != 0
    first, second = right & (np.arange(N) % 3 != 0), right & (np.arange(N) % 5 != 0)
    apgd = {"name": "apgd", "threat": LINF, "rho": 0.75, "view": {"gradient": "exact"}}
    walked = dict(
        losses=np.cumsum(rng.random((N, 30)), 1), shown=rng.random((8, 4, 4, 1))
    )
    walked |= dict(broken_along=rng.random((N, 30)) > 0.9, parameters=apgd)
    free = dict(norm="l2", radii=(0.5, 1.0), counts=False)
    free |= dict(parameters={"name": "ddn", "threat": {"name": "l2", "eps": "inf"}})
    return Robustness(
        index=np.arange(N),
        labels=np.int32(np.arange(N) % 3),
        clean_correct=right,
        clean_seconds=0.25,
        clean_predicted=np.int32(np.where(right, np.arange(N) % 3, 1)),
        clean_confidence=np.float32(rng.random(N)),
        attacks=(
            attack(rng, "PGD-40", first, x_adv=rng.random((N, 4, 4, 1), np.float32)),
            attack(rng, EVIL, second, **walked),
            attack(rng, "DDN", np.zeros(N, bool), **free),
        ),
    )


def indicator(name, value, flagged):
    return dict(
        name=name,
        value=value,
        threshold=0.5,
        flagged=flagged,
        detail=f"{EVIL} of 64 images",
        meaning=f"{EVIL}: take other attacks.",
        source="ours",
    )


def everything(result):
    """All that a report can hold, small."""
    rng = np.random.default_rng(1)
    images = rng.random((N, 4, 4, 1), np.float32)
    pair = np.stack([images[:2], images[2:4]], axis=1)
    maps = rng.random((2, 2, 2, 2))
    offsets = np.linspace(-1, 1, 5)
    weights = {"clean": rng.random((2, 6)), EVIL: rng.random((2, 6))}
    surfaces = dict(
        offsets=offsets,
        loss=rng.random((2, 5, 5)),
        broken=rng.random((2, 5, 5)) > 0.5,
        health=dict(count=2, vanished=0.0, not_finite=0.0, zero_share=0.5),
    )
    test_time = dict(
        base=dict(clean=0.9, worst_case=0.4, interval=[0.2, 0.6], own=0.5),
        transferred=0.6,
        defended=dict(clean=0.9, worst_case=0.3, interval=[0.1, 0.5], adaptive=0.3),
        rows=[dict(name=EVIL, on="defense", base=0.5, defended=0.3)],
        gain=-0.1,
        gain_interval=[-0.3, 0.1],
        majority=None,
        cost=dict(time_ratio=3.0, work_ratio=None),
        flagged=True,
        warning="No better.",
    )
    planted = dict(success=0.5, interval=[0.3, 0.7], random_success=0.0, flagged=True)
    series = [dict(name="loss/total", split="train", step=[1, 2], value=[2.0, 1.0])]
    series += [
        dict(name="accuracy/robust", split="train", step=[1, 2], value=[0.1, 0.5])
    ]
    return dict(
        context=dict(workdir=EVIL, checkpoint=7, seed=0, config={"a": float("inf")}),
        result=result,
        images=images,
        class_names=["zero", EVIL, "two"],
        indicators=[indicator("noise", 0.9, True), indicator("other", None, False)],
        binarization=planted | dict(num_images=64, num_separable=60, detail="30 of 60"),
        test_time=test_time,
        curve=dict(
            eps=[0.0, 0.02, 0.5], accuracy=[0.75, 0.25, 0.0], limit=[None, None, 0.4]
        ),
        steps=dict(
            steps=[1, 5], step_sizes=[0.1], accuracy=[[0.5, 0.25]], loss=[[1, 2]]
        )
        | dict(num_examples=N),
        restarts=dict(restarts=[1, 2], accuracy=[0.5, 0.25], num_examples=N),
        surfaces=surfaces,
        heatmaps=dict(
            layer="relu", names=["clean", EVIL], images=pair, maps=dict(a=maps)
        ),
        maps=dict(layer="relu", names=["clean", EVIL], images=pair, maps=maps),
        weights=weights_by_class(weights, np.arange(6) % 3, [0, 1], 3),
        training=dict(series=series, chosen=2),
    )


@pytest.fixture(scope="module")
def document(result):
    return compose(summarise(result), **everything(result))


def test_a_page_needs_nothing_but_itself(document):
    text = report_html(*document)
    found = check(text)
    assert "alert('a')" in found.text  # as words, not as a script
    assert "\x00" not in text
    pictures = set(document.pictures)
    assert pictures == {
        *("waterfall", "minimum_norms", "confusion", "paths", "curve", "restarts"),
        *("steps", "training", "examples", "surfaces", "heatmaps", "influence_maps"),
        "weights",
    }
    assert len(found.all("img")) == len(pictures)
    assert {image["alt"] for image in found.all("img")} == {
        "".join(c if c.isprintable() else "\ufffd" for c in p.alt)
        for p in document.pictures.values()
    }
    titles = [a["id"] for a in found.all("h2")]
    assert titles[:3] == ["verdict", "accuracy", "failure-indicators"]
    assert len(found.all("nav")) == 1
    assert [a["href"] for a in found.all("a")][1:] == [f"#{name}" for name in titles]


def test_the_verdict_comes_first_and_hides_nothing(document):
    verdict = document.content["verdict"]
    assert verdict["flags"] == ["noise", "binarization", "test_time"]
    assert verdict["adaptive"] == [EVIL]
    assert verdict["measured"] == 1
    worst = document.content["rows"][-1]
    assert verdict["accuracy"] == worst["accuracy"]
    assert verdict["clean"] == document.content["rows"][0]["accuracy"]
    text = Page(report_html(*document)).text
    before = text[: text.index("Accuracy under each attack")]
    low, high = worst["interval"]
    for words in (
        f"{100 * worst['accuracy']:.2f}%",
        f"{100 * low:.2f}%",
        f"{100 * high:.2f}%",
        "each pixel moves by at most 0.03137 (8/255)",
        "do not trust the number",
        "take other attacks",  # what the flag means
        "does not find examples that are there",
        "no better than its static model",
    ):
        assert words in before


def test_what_was_not_looked_at_is_said(result):
    plain = dataclasses.replace(result, attacks=result.attacks[:1])
    content, pictures = compose(summarise(plain), context={})
    assert content["indicators"] is None
    for text in (
        Page(report_html(content, pictures)).text,
        report_markdown(content, pictures),
    ):
        assert "No adaptive attack ran" in text
        assert "measured: nothing here says that the attacks worked." in text
    planted = dict(num_images=64, num_separable=60, detail="30 of 60", flagged=False)
    content, pictures = compose(summarise(plain), context={}, binarization=planted)
    text = report_markdown(content, pictures)
    assert "measured; the binarization test was." in text
    assert "nothing here says" not in text
    alone = dataclasses.replace(result, attacks=())
    content, pictures = compose(summarise(alone), context={})
    assert content["verdict"]["attack"] is None
    assert "No attack that counts ran" in report_markdown(content, pictures)
    assert "No attack was run." in check(report_html(content, pictures)).text


def test_indicators_that_were_quiet_are_no_proof(result):
    quiet = [indicator("noise", 0.1, False)]
    content, pictures = compose(summarise(result), context={}, indicators=quiet)
    assert content["verdict"]["flags"] == []
    text = check(report_html(content, pictures)).text
    assert "None of 1 failure indicators raised a flag." in text
    assert "no flag is no proof" in text


def test_fragments_of_several_reports_share_a_notebook(result, document):
    other, pictures = compose(summarise(result), context={})
    both = report_html(*document, fragment=True) + report_html(
        other, pictures, fragment=True
    )
    found = check(both, fragment=True)
    assert not found.tags & {"html", "body", "head", "main", "nav"}
    for style in re.findall("<style>(.*?)</style>", both, re.S):
        for rule in re.findall(r"([^{}]+)\{", re.sub(r"@media[^{]+\{", "", style)):
            assert all(part.strip().startswith(".rj") for part in rule.split(",")), rule


def test_blocks_of_all_kinds_are_escaped():
    blocks = [
        Text(EVIL, strong=True),
        Table(EVIL, [(EVIL, "n"), (EVIL, "-1.5e-3"), ("x" * 40, EVIL)]),
        Items([Item(EVIL, EVIL, code=True, more=[EVIL])]),
        Folded(EVIL, [Text(EVIL)]),
    ]
    sections = [Section(EVIL, blocks), Section(EVIL, blocks), Section("main", [])]
    found = check(page(EVIL, sections, {}))
    assert "script" not in found.tags
    assert found.text.count("alert('a')") == 2 * 11 + 2 + 2  # contents, titles


def test_pictures_do_not_leak_into_pyplot(result):
    import matplotlib
    from matplotlib import pyplot

    before, settings = pyplot.get_fignums(), dict(matplotlib.rcParams)
    compose(summarise(result), context={}, result=result)
    assert pyplot.get_fignums() == before
    assert dict(matplotlib.rcParams) == settings


def test_examples_show_what_broke_and_say_so(result):
    images = np.random.default_rng(2).random((N, 4, 4, 1), np.float32)
    found = examples_of(result, images[:8], ["a", "b", "c"])
    first, second = result.attacks[:2]
    strongest = min(first, second, key=lambda a: a.correct.mean())
    fallen = [i for i in range(8) if not (first.correct[i] and second.correct[i])]
    fallen.sort(key=lambda i: not result.clean_correct[i])
    stand = [i for i in range(8) if i not in fallen]
    assert [w["broken"] for w in found["words"]] == [True] * 4 + [False] * 2
    np.testing.assert_array_equal(found["clean"], images[fallen[:4] + stand[:2]])
    kept = strongest.shown if strongest.x_adv is None else strongest.x_adv
    rows = [i for i in fallen[:4] if not strongest.correct[i]]
    places = [fallen.index(i) for i in rows]
    np.testing.assert_array_equal(found["adversarial"][places], kept[rows])
    assert found["words"][0]["clean"].startswith("label ")
    none = dataclasses.replace(result.attacks[0], x_adv=None)
    assert examples_of(dataclasses.replace(result, attacks=(none,)), images) is None


def test_examples_are_looked_for_in_the_whole_set(result):
    rng = np.random.default_rng(3)
    clean, moved = rng.random((2, 3, 4, 4, 1), np.float32)
    right = np.ones(N, bool)
    right[[9, 10, 11]] = False
    fooled = Fooled(np.array([9, 10, 11]), clean, moved)
    still = dict(linf=np.zeros(N), l2=np.zeros(N), l1=np.zeros(N))
    shown = rng.random((2, 8, 4, 4, 1), np.float32)
    stops = attack(rng, "stops", right, shown=shown[0], fooled=fooled, distance=still)
    walks = attack(rng, "walks", np.ones(N, bool), shown=shown[1])
    whole = dict(clean_correct=np.arange(N) != 9, attacks=(walks, stops))
    images = rng.random((8, 4, 4, 1), np.float32)
    found = examples_of(dataclasses.replace(result, **whole), images)
    # 9 was wrong before; of those that stand the picture is of who moved them.
    np.testing.assert_array_equal(found["clean"][:3], clean[[1, 2, 0]])
    np.testing.assert_array_equal(found["adversarial"][:3], moved[[1, 2, 0]])
    np.testing.assert_array_equal(found["clean"][3:], images[:3])
    np.testing.assert_array_equal(found["adversarial"][3:], shown[1][:3])
    assert [w["adversarial"].split("\n")[0] for w in found["words"]] == (
        ["stops"] * 3 + ["walks"] * 3
    )


def test_the_code_of_the_docs_runs(capsys):
    guide = Path(__file__).resolve().parents[2] / "docs" / "report.md"
    if not guide.exists():
        pytest.skip("not a checkout")
    (block,) = re.findall(r"```python\n(.*?)```", guide.read_text(), re.S)
    names = {}
    exec(block, names)
    assert "stay classified correctly in the worst case" in capsys.readouterr().out
    check((names["directory"] / "report.html").read_text())
    about = guide.read_text()
    drawn = {*re.findall(r"`([a-z_]+)`", "".join(re.findall(r"^\| `.*", about, re.M)))}
    known = re.findall(r"`(\w+)`", compose.__doc__[compose.__doc__.index("by name:") :])
    assert set(known) <= drawn


# --- in a browser -------------------------------------------------------------------


@pytest.fixture(scope="module")
def written(document, tmp_path_factory):
    path = tmp_path_factory.mktemp("page") / "report.html"
    path.write_text(report_html(*document))
    return path


def browse(tmp_path, page, *options):
    if CHROMIUM is None:
        pytest.skip("no chromium here: apt-get install chromium to see the page drawn")
    line = [CHROMIUM, "--headless=new", "--no-sandbox", "--disable-gpu"]
    line += ["--enable-logging=stderr", "--v=0", f"--user-data-dir={tmp_path / 'user'}"]
    line += ["--hide-scrollbars", "--force-device-scale-factor=1"]
    done = subprocess.run(
        [*line, *options, page.as_uri()], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert "CONSOLE" not in done.stderr, done.stderr
    return done.stdout


@pytest.mark.parametrize("width", [390, 1280])
def test_a_browser_draws_it_on_any_width(tmp_path, written, width):
    picture = tmp_path / "shot.png"
    size = (f"--window-size={width},900", f"--screenshot={picture}")
    browse(tmp_path, written, *size)
    shot = np.asarray(Pixels.open(picture).convert("L"), float)
    assert shot.shape == (900, width)
    assert shot.std() > 10  # something is drawn
    assert (shot[:, -4:] > 200).all()  # and nothing runs over the margin


def test_a_browser_prints_it(tmp_path, written):
    paper = tmp_path / "page.pdf"
    browse(tmp_path, written, f"--print-to-pdf={paper}", "--no-pdf-header-footer")
    content = paper.read_bytes()
    assert content.startswith(b"%PDF")
    pages = len(re.findall(rb"/Type\s*/Page\b", content))
    assert 3 <= pages <= 25


def test_a_browser_reads_what_was_written(tmp_path, written):
    seen = Page(browse(tmp_path, written, "--dump-dom"))
    assert "script" not in seen.tags
    assert len(seen.all("img")) == len(Page(written.read_text()).all("img"))


def test_a_picture_has_its_size_from_its_own_header(document):
    picture = document.pictures["curve"]
    assert isinstance(picture, Picture)
    sizes = {(i["width"], i["height"]) for i in Page(report_html(*document)).all("img")}
    width, height = np.frombuffer(picture.png[16:24], ">u4")
    assert (str(width), str(height)) in sizes
    assert len(picture.png) < 100_000
