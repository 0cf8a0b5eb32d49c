"""Figure and tables of docs/information.md: python docs/make_information.py [--draw].

Pairs of Gaussian vectors share a known number of nats; information.json keeps what each
bound says of them, and the page is made from it. Every fit is kept as soon as it is
done, so that a run goes on where it was stopped; `--draw` fits nothing.
"""

import argparse
import functools
import json
import math
import sys
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.figure import Figure

from robustjax import information
from robustjax.information import Bound

DOCS = Path(__file__).resolve().parent
KEPT, PICTURE = DOCS / "information.json", DOCS / "information.png"
PAGE = DOCS / "information.md"
BEGIN, END = (
    f"<!-- {which}: written by docs/make_information.py -->"
    for which in ("begin", "end")
)

# Training sees its samples hardly more than once: where information is small and
# dimensions are many, what critics learn by heart is what estimates lack.
SETTINGS = dict(
    num_samples=200_000, held_out=0.05, num_steps=1000, batch_size=256, seed=0
)
# (dimension, correlation of each pair of coordinates): 4 nats at most.
CASES = (
    *((1, 0.0), (1, 0.3), (1, 0.6), (1, 0.9)),
    *((5, 0.0), (5, 0.3), (5, 0.6), (5, 0.89)),
    *((20, 0.0), (20, 0.2), (20, 0.4), (20, 0.574)),
)
GRADED = ("donsker_varadhan", "mine", "smile", "info_nce")
MEASURES = ("kl", "jsd", "gan", "reverse_kl", "hellinger", "chi_squared", "w1")
_MARKERS = {1: "o", 5: "s", 20: "^"}
_SHOWN = {
    "smile": "smile (no bound)",
    "dv": "dv (no bound)",
    "kl": "kl (bounds information)",
    "chi_squared": "chi_squared (no maximum, far above)",
    "w1": "w1 (no maximum, far above)",
}


def main() -> int:
    """Fits what is missing, then draws and writes the tables."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--draw", action="store_true", help="fit nothing")
    options = parser.parse_args()
    rows = kept()
    for name, dimension, correlation in [] if options.draw else wanted():
        if (name, dimension, correlation) in rows:
            continue
        rows[name, dimension, correlation] = row = fit(name, dimension, correlation)
        print(json.dumps(row), flush=True)
        keep(rows)
    draw(rows)
    PAGE.write_text(written(PAGE.read_text(), tables(rows)))
    return 0


def wanted() -> list[tuple[str, int, float]]:
    """All fits: f-divergences, which cannot be compared with the truth, at one
    dimension only."""
    found = [(name, *case) for name in (*GRADED, "dv") for case in CASES]
    return found + [(name, *c) for name in MEASURES for c in CASES if c[0] == 5]


def kept() -> dict[tuple[str, int, float], dict[str, Any]]:
    """The fits so far."""
    if not KEPT.exists():
        return {}
    stored = json.loads(KEPT.read_text())
    if stored["settings"] != SETTINGS:
        sys.exit(f"{KEPT.name} was made with other settings: remove it first.")
    return {(r["bound"], r["dimension"], r["correlation"]): r for r in stored["fits"]}


def keep(rows: dict[tuple[str, int, float], dict[str, Any]]) -> None:
    """Writes information.json, a fit per line, in the order of `wanted`."""
    lines = ",\n".join(json.dumps(rows[each]) for each in wanted() if each in rows)
    text = f'{{"settings": {json.dumps(SETTINGS)},\n"fits": [\n{lines}\n]}}\n'
    partial = KEPT.with_suffix(".partial.json")
    partial.write_text(text)
    partial.replace(KEPT)


def gaussians(
    dimension: int, correlation: float, count: int, seed: int = 0
) -> tuple[jax.Array, jax.Array, float]:
    """Pairs of vectors [count, dimension], and what they share in nats."""
    rng = np.random.default_rng(seed)
    x, noise = rng.normal(size=(2, count, dimension)).astype(np.float32)
    z = correlation * x + (1 - correlation**2) ** 0.5 * noise
    truth = -dimension / 2 * math.log1p(-(correlation**2))
    return jnp.asarray(x), jnp.asarray(z), truth


@functools.cache
def bound_of(name: str) -> Bound:
    """With its defaults; one object, so that its fits are compiled once per shape."""
    if name in MEASURES:
        return information.f_divergence(name)
    return getattr(information, name)()


def fit(name: str, dimension: int, correlation: float) -> dict[str, Any]:
    """The estimate of one case by one bound; None where it is not finite."""
    seed = SETTINGS["seed"]
    x, z, truth = gaussians(dimension, correlation, SETTINGS["num_samples"], seed)
    found = information.estimate_mutual_information(
        jax.random.key(seed),
        *(x, z),
        bound=bound_of(name),
        **{k: SETTINGS[k] for k in ("held_out", "num_steps", "batch_size")},
    )
    numbers = dict(
        truth=truth,
        estimate=float(found.information),
        standard_error=float(found.standard_error),
    )
    return dict(bound=name, dimension=dimension, correlation=correlation) | {
        k: round(v, 4) if math.isfinite(v) else None for k, v in numbers.items()
    }


def written(page: str, text: str) -> str:
    """The page with the text between its markers."""
    before, rest = page.split(BEGIN)
    return f"{before}{BEGIN}\n\n{text}\n{END}{rest.split(END)[1]}"


def tables(rows: dict[tuple[str, int, float], dict[str, Any]]) -> str:
    """The estimates of information, then those of f-divergences."""
    shown = [case for case in CASES if case[1] != 0.3]
    return "\n".join(
        _table(rows, names, cases)
        for names, cases in (
            ((*GRADED, "dv"), shown),
            (MEASURES, [case for case in CASES if case[0] == 5]),
        )
    )


def _table(rows: dict, names: tuple[str, ...], cases: list[tuple[int, float]]) -> str:
    truths = [rows[(names[0], *case)]["truth"] for case in cases]
    lines = [
        ("dimension", *(f"{dimension}" for dimension, _ in cases)),
        ("---",) * (len(cases) + 1),
        ("truth", *(f"{truth:.2f}" for truth in truths)),
    ]
    for name in names:
        cells = [_cell(rows[(name, *case)]["estimate"]) for case in cases]
        lines.append((f"`{name}`", *cells))
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


def _cell(value: float | None) -> str:
    if value is None:
        return "not finite"
    return f"{round(value, 2) + 0:.2f}" if abs(value) < 100 else f"{value:.3g}"


def draw(rows: dict[tuple[str, int, float], dict[str, Any]]) -> None:
    """Estimates against truths: bounds left, f-divergences right."""
    figure = Figure(figsize=(11, 4.8), layout="constrained")
    left, right = figure.subplots(1, 2)
    left.set_ylim(-0.3, 4.8)
    right.set_ylim(-1.6, 4.8)
    for axes, names in ((left, (*GRADED, "dv")), (right, MEASURES)):
        for number, name in enumerate(names):
            aside = 0.04 * (number - (len(names) - 1) / 2)  # or they hide each other
            _draw_bound(axes, name, f"C{number}", aside, rows)
        truths = np.linspace(0, 4.2)
        axes.plot(truths, truths, color="black", linewidth=0.8)
        axes.set(xlabel="mutual information (nats)", xlim=(-0.2, 4.4))
        axes.legend(fontsize="small")
    width = np.maximum(0.1 * truths, 0.05)
    left.fill_between(truths, truths - width, truths + width, color="0.9")
    left.set(
        ylabel="estimate (nats)",
        title="circles: 1 dimension, squares: 5, triangles: 20",
    )
    right.set(
        ylabel="estimate (nats for kl alone)",
        title="f-divergences, 5 dimensions",
    )
    figure.savefig(PICTURE, dpi=100)


def _draw_bound(axes: Any, name: str, color: str, aside: float, rows: dict) -> None:
    axes.plot([], [], "o", color=color, label=_SHOWN.get(name, name), ms=5)
    low, high = axes.get_ylim()
    for (which, dimension, _), row in rows.items():
        at, estimate = row["truth"] + aside, row["estimate"]
        if which != name or estimate is None:
            continue
        marker = _MARKERS[dimension]
        if low < estimate < high:
            axes.plot(at, estimate, marker, color=color, ms=5)
        elif estimate < low:
            axes.text(at, low, f"{estimate:.0f} ↓", color=color, ha="center")


if __name__ == "__main__":
    sys.exit(main())
