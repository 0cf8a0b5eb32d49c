"""Reports as eval.py writes them, of made-up outcomes."""

import dataclasses
import json

import numpy as np

from robustjax.evaluation import AttackResult, Robustness, save_outcomes, summarise
from robustjax.evaluation._verdict import verdict_of

THREAT = {"name": "linf", "eps": 0.1}
N = 120


def attack(name, correct, counts=True, **parameters):
    return AttackResult(
        name=name,
        parameters={"name": "pgd", "threat": THREAT, **parameters},
        correct=correct,
        distance={"linf": np.full(len(correct), 0.1)},
        lowest=0.0,
        highest=1.0,
        mass_above_one=0.0,
        seconds=1.0,
        counts=counts,
    )


def result(seed=0, accuracies=(("PGD-40", 0.8), ("AutoAttack", 0.7)), total=N):
    """Outcomes of attacks by name and the share of images that survive each."""
    rng = np.random.default_rng(seed)
    clean = rng.random(total) < 0.95
    attacks = [attack(name, clean & (rng.random(total) < a)) for name, a in accuracies]
    return Robustness(
        index=np.arange(100, 100 + total),
        labels=(np.arange(total) % 10).astype(np.int32),
        clean_correct=clean,
        clean_seconds=0.1,
        attacks=tuple(attacks),
    )


def shuffled(outcome, seed=0):
    """The same images in another order."""
    order = np.random.default_rng(seed).permutation(len(outcome.index))
    return dataclasses.replace(
        outcome,
        index=outcome.index[order],
        labels=outcome.labels[order],
        clean_correct=outcome.clean_correct[order],
        attacks=tuple(
            dataclasses.replace(a, correct=a.correct[order]) for a in outcome.attacks
        ),
    )


def indicator(name, flagged):
    about = dict(value=0.5, threshold=0.1, detail="", meaning="", source="ours")
    return dict(name=name, flagged=flagged, **about)


def write(directory, outcome, **context):
    """report.json and outcomes.npz; returns what is in the former."""
    content = dict(
        schema={"name": "robustjax-report", "version": 1},
        workdir=str(directory.parent),
        checkpoint=7,
        data=f"Dataset('digits', {N} images 8x8x1 float32, 10 classes)",
        threat=THREAT,
        suite="standard",
        seed=0,
        device="1 x cpu",
        commit="abc",
        versions={"jax": "0"},
        config={"seed": 0, "model": {"name": "small_cnn"}, "data": {"name": "digits"}},
        **summarise(outcome),
    )
    content |= dict(waterfall=[], paths=[], confusion=None, pictures=[])
    content |= dict(indicators=None) | context
    content["verdict"] = verdict_of(
        content,
        threat=content["threat"],
        indicators=content["indicators"],
        adaptive=(),
    )
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "report.json").write_text(json.dumps(content))
    save_outcomes(directory, outcome)
    return content
