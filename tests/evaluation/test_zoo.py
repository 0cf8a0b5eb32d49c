"""Planted failures are noticed, sound models raise nothing; the pages say so."""

import importlib
import json
import sys
from pathlib import Path

import pytest
import zoo

from robustjax.evaluation._thresholds import RULES

DOCS = Path(__file__).resolve().parents[2] / "docs"
CHEAP = dict(subset=40, num_draws=256, num_queries=100, num_directions=20)


@pytest.fixture(scope="module")
def pages():
    sys.path.insert(0, str(DOCS))
    try:
        return importlib.import_module("make_indicators")
    finally:
        sys.path.remove(str(DOCS))


def test_the_pages_are_what_the_script_writes(pages):
    page, table = pages.PAGE.read_text(), pages.ZOO.read_text()
    assert pages.written(page, pages.rules()) == page
    kept = json.loads(pages.KEPT.read_text())
    assert pages.written(table, pages.tables(kept)) == table


def test_the_page_says_that_every_plant_is_caught(pages):
    kept = json.loads(pages.KEPT.read_text())
    known = {rule.name: rule.threshold for rule in RULES}
    assert list(kept) == [*zoo.PLANTS, *zoo.SOUND]
    for name, one in kept.items():
        assert {i["name"]: i["threshold"] for i in one["indicators"]} == known
        flags = {i["name"] for i in one["indicators"] if i["flagged"]}
        if name in zoo.SOUND:
            assert not flags, name
        else:
            assert tuple(one["named"]) == zoo.PLANTS[name].named
            assert flags & set(one["named"]), name


def flags(found):
    return {name for name, one in found.items() if one.flagged}


def test_some_plants_and_a_sound_model(compile_fully, monkeypatch):
    quick = dict(num_steps=100)
    monkeypatch.setattr(zoo, "base", lambda: zoo.sound("standard", **quick))
    images = zoo.images(60)
    _, found = zoo.judge(zoo.sound("pgd", **quick), images, **CHEAP)
    assert not flags(found)
    for name in (
        "quantised input without gradient",
        "logits times 1e4",
        "memorised evaluation noise",
    ):
        plant = zoo.PLANTS[name]
        options = CHEAP | dict(only=plant.named)
        _, found = zoo.judge(plant.build(images), images, **options)
        assert flags(found), name


@pytest.mark.slow
@pytest.mark.parametrize("name", [*zoo.PLANTS, *zoo.SOUND])
def test_the_table_is_what_is_measured(name, pages, compile_fully):
    """Values are of a machine and its rounding, flags are not."""
    kept, found = json.loads(pages.KEPT.read_text())[name], zoo.measured(name)
    assert found["named"] == kept["named"]
    raised = lambda one: {i["name"] for i in one["indicators"] if i["flagged"]}
    assert raised(found) == raised(kept)
    assert bool(raised(found)) == (name in zoo.PLANTS)
    for figure in ("clean", "robust"):
        assert found[figure] == pytest.approx(kept[figure], abs=0.05)


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("name", zoo.SOUND)
def test_sound_models_raise_nothing(name, seed, compile_fully):
    _, found = zoo.judge(zoo.sound(name, seed), zoo.images(), **zoo.LIGHT)
    assert not flags(found)
