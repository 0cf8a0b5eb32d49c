"""Writes the tables of docs/attacks.md: python docs/make_attacks.py [--check].

Names, summaries, arguments and papers come from the code, comparisons from the table
of tests/parity, costs from running the attacks (`measure_attacks`, kept in
attack_costs.json so that the page can be checked without measuring all of them again).
`--check` writes nothing and exits 1 if page or costs are out of date;
`--measure=pgd,fab` measures only these, `--measure=` nothing.
"""

import argparse
import importlib
import inspect
import json
import re
import sys
import types
from pathlib import Path
from typing import Any

import jax
import measure_attacks

from robustjax import attacks
from robustjax.config import names
from robustjax.types import Attack, IteratedAttack

DOCS = Path(__file__).resolve().parent
TESTS = DOCS.parent / "tests"
PAGE, COSTS = DOCS / "attacks.md", DOCS / "attack_costs.json"
BEGIN, END = (
    f"<!-- {which}: written by docs/make_attacks.py -->" for which in ("begin", "end")
)

GROUPS = {
    "Gradients, a fixed budget": (
        *("fgsm", "r_fgsm", "step_ll", "bim", "pgd", "pgd_targeted", "drift"),
        *("projected_gradient", "adam_pgd"),
        *("apgd", "apgd_target", "apgd_targeted", "feature_collision", "selector"),
    ),
    "AutoAttack": (
        *("autoattack", "autoattack_plus", "autoattack_rand"),
        *("screen", "aa_namid"),
    ),
    "Minimum norm": (
        *("fab", "fab_target", "fab_targeted", "fmn", "ddn", "deepfool"),
        *("carlini_wagner", "carlini_wagner_linf", "carlini_wagner_fixed", "ead"),
        "pgd_minimal",
    ),
    "Transfer and universal": (
        *("mi_fgsm", "ni_fgsm", "si_ni_fgsm", "vmi_fgsm", "di_fgsm", "ti_dim"),
        *("transferable", "universal", "apply_perturbation"),
    ),
    "Black box: scores": ("square", "spsa", "nes", "estimated_gradient"),
    "Black box: decisions": ("boundary", "hop_skip_jump", "towards_other"),
    "Few pixels": ("pixel", "single_pixel", "jsma"),
    "Spatial": ("rotation_translation", "stadv", "wasserstein_pgd"),
    "No model asked": ("uniform_noise", "sign_noise", "gaussian_noise", "grey"),
}
# Public names that are no attack and make none of attacks.
HELPERS = (
    *("broken", "uniform_start", "sign_start", "gaussian_kernel", "resize_and_pad"),
    *("mass_above_one", "universal_perturbation", "Trajectory"),
    *("Placement", "Stage", "StagedAttack", "StageOutcome"),
    *("Candidates", "chosen", "pack_candidates", "unpack_candidates"),
)
# They take attacks or classifiers and give such.
COMBINATORS = (
    *("restarts", "worst_case", "strongest", "each_target", "towards", "masked"),
    *("early_stop", "keep_path", "keep_trajectory", "warm_start", "around"),
    *("unlabelled", "with_surrogate", "against"),
    *("expectation", "oblivious", "transfer", "ensemble", "drawn_source"),
    *("WithPenalty", "PairingPenalty", "mean_penalty", "penalised"),
)
WITHOUT_NORM = {
    "pixel": "pixels",
    "single_pixel": "pixels",
    "jsma": "coordinates",
    "towards_other": "none",
    "rotation_translation": "motion",
    "stadv": "flow",
    "wasserstein_pgd": "transport",
}
TARGETED = {  # where the signature does not say it
    "step_ll": "the least likely class",
    "pgd_targeted": "`choice=`",
    "apgd_target": "the class of `rank=`",
    "apgd_targeted": "wrong classes in turn",
    "fab_target": "the class of `rank=`",
    "fab_targeted": "wrong classes in turn",
    "feature_collision": "no",  # its objective only decides between results
    "rotation_translation": "no",
    "selector": "wrong classes in turn",
}
# What the tests compare with: (shown, file, test).
_LOOP, _STEP = "NumPy, every step", "NumPy, one step"
CHECKED = {
    "fgsm": ("closed form", "gradient", "linf_is_exact_on_a_linear_model"),
    "r_fgsm": (_STEP, "chosen_class", "r_fgsm_is_the_formula"),
    "step_ll": (_STEP, "chosen_class", "step_ll_is_the_formula"),
    "bim": (_LOOP, "gradient", "without_momentum_mi_fgsm_is_bim"),
    "pgd": (_LOOP, "gradient", "every_step_of_a_float64_reference"),
    "pgd_targeted": (_LOOP, "chosen_class", "pgd_descends_the_target_step_by_step"),
    "projected_gradient": (_LOOP, "gradient", "every_step_of_a_float64_reference"),
    "adam_pgd": (_LOOP, "adam_pgd", "the_trajectory_ends_where_numpy_ends"),
    "apgd": (_LOOP, "apgd", "every_step_of_a_float64_reference"),
    "apgd_target": (_LOOP, "apgd", "every_step_of_a_float64_reference"),
    "apgd_targeted": (_LOOP, "apgd", "targets_one_by_one_are_the_targeted_attack"),
    "feature_collision": (
        _STEP,
        "feature_collision",
        "one_step_is_the_sign_of_the_pull",
    ),
    "selector": (
        *(_STEP, "selector"),
        "one_step_is_the_sign_of_the_lead_towards_some_wrong_class",
    ),
    "pgd_minimal": (
        *("closed form", "selector"),
        "the_smallest_radius_of_a_linear_model_is_its_distance",
    ),
    "towards_other": (
        *("closed form", "selector"),
        "the_nearest_other_image_that_is_another_to_the_model",
    ),
    "fab": (_LOOP, "fab", "float64_reference_from_a_fixed_start"),
    "fab_target": (_LOOP, "fab", "float64_reference_from_a_fixed_start"),
    "fab_targeted": (_LOOP, "fab", "all_targets_are_the_single_targets_together"),
    "fmn": (_LOOP, "fmn", "it_is_the_reference"),
    "ddn": (_LOOP, "ddn", "it_is_the_reference"),
    "deepfool": (_LOOP, "deepfool", "float64_reference"),
    "carlini_wagner": (_LOOP, "carlini_wagner", "l2_is_the_reference"),
    "carlini_wagner_linf": (_LOOP, "carlini_wagner", "linf_is_the_reference"),
    "carlini_wagner_fixed": (
        *(_LOOP, "carlini_wagner", "the_fixed_constant_is_the_reference"),
    ),
    "ead": (_LOOP, "ead", "it_is_the_reference"),
    "mi_fgsm": (_LOOP, "gradient", "every_step_of_a_float64_reference"),
    "ni_fgsm": ("NumPy", "momentum", "nesterov_looks_ahead_by_the_momentum"),
    "si_ni_fgsm": (
        *("NumPy", "momentum", "scales_average_the_gradients_of_darker_copies"),
    ),
    "vmi_fgsm": (
        *("NumPy", "momentum", "variance_is_the_neighbours_mean_less_the_gradient"),
    ),
    "di_fgsm": ("its parts", "input_diversity", "the_matrix_resizes"),
    "ti_dim": ("NumPy", "momentum", "smoothing_is_a_convolution_of_each_channel"),
    "transferable": ("`mi_fgsm`", "momentum", "with_everything_off_it_is_mi_fgsm"),
    "universal": (_STEP, "universal", "one_step_follows_the_mean_gradient"),
    "square": (_LOOP, "square", "linf_against_slices_in_numpy"),
    "spsa": ("exact gradients", "spsa", "spsa_is_optax_adam_on_the_estimates"),
    "nes": ("exact gradients", "spsa", "it_differentiates_the_smoothed_function"),
    "estimated_gradient": (
        *("exact gradients", "spsa", "it_differentiates_the_smoothed_function"),
    ),
    "boundary": (_STEP, "boundary", "a_step_against_numpy"),
    "hop_skip_jump": ("its parts", "hop_skip_jump", "the_direction_against_numpy"),
    "pixel": ("its parts", "pixel", "mutants_are_made_of_three_different_individuals"),
    "single_pixel": ("closed form", "pixel", "single_pixels_are_all_tried_once"),
    "jsma": (_LOOP, "jsma", "float64_reference"),
    "rotation_translation": (
        *("closed form", "rotation_translation", "the_worst_of_the_grid_is_returned"),
    ),
    "stadv": ("its parts", "stadv", "reading_between_pixels_is_bilinear"),
    "wasserstein_pgd": ("its projection", "wasserstein", "the_projection"),
    "uniform_noise": ("closed form", "noise", "uniform_noise_fills_the_ball"),
    "sign_noise": ("closed form", "noise", "signs_are_a_corner_of_the_ball"),
    "gaussian_noise": (
        *("closed form", "noise"),
        "gaussian_noise_has_the_scale_where_the_ball_does_not_bind",
    ),
    "grey": ("closed form", "noise", "grey_is_the_clipped_step_to_the_middle"),
}
HEADER = (
    *("attack", "norms", "targeted", "forward / backward", "images held (at once)"),
    *("draws", "compared with", "tested against", "paper"),
)
_PAPER = re.compile(r'"([^"]+)" \(([^()]+?), (\d{4})\)')


def main() -> int:
    """Rewrites the page, or says whether it is what would be written."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--check", action="store_true")
    parser.add_argument("--measure", help="names, comma-separated; all by default")
    options = parser.parse_args()
    chosen = attack_names()
    if options.measure is not None:
        chosen = tuple(filter(None, options.measure.split(",")))
    check_names()
    kept = json.loads(COSTS.read_text()) if COSTS.exists() else {}
    jax.config.update("jax_disable_most_optimizations", True)  # they compile only
    new = {name: measure_attacks.measure(name) for name in chosen}
    costs = {name: {**kept, **new}[name] for name in attack_names()}
    stored = (
        "{\n" + ",\n".join(f'"{k}": {json.dumps(costs[k])}' for k in costs) + "\n}\n"
    )
    page = written(PAGE.read_text(), tables(costs))
    stale = [
        path.name
        for path, text in ((COSTS, stored), (PAGE, page))
        if not path.exists() or path.read_text() != text
    ]
    if not options.check:
        COSTS.write_text(stored)
        PAGE.write_text(page)
    elif stale:
        changed = [name for name in new if new[name] != kept.get(name)]
        print(f"Out of date: {', '.join(stale)} {changed}: run docs/make_attacks.py.")
        return 1
    return 0


def attack_names() -> tuple[str, ...]:
    """All attacks, in the order of the page."""
    return tuple(name for group in GROUPS.values() for name in group)


def check_names() -> None:
    """Every public name of `robustjax.attacks` has its place here, once."""
    public = {
        name
        for name, value in vars(attacks).items()
        if not name.startswith("_") and not isinstance(value, types.ModuleType)
    }
    listed = [*attack_names(), *COMBINATORS, *HELPERS]
    wrong = public.symmetric_difference(listed)
    wrong |= {name for name in listed if listed.count(name) > 1}
    kinds = (Attack, IteratedAttack, attacks.StagedAttack)
    for name in attack_names():
        if inspect.signature(getattr(attacks, name)).return_annotation not in kinds:
            wrong.add(name)
    for name, (_, file, test) in CHECKED.items():
        if f"def test_{test}(" not in (TESTS / f"attacks/test_{file}.py").read_text():
            wrong.add(name)
    if wrong:
        sys.exit(f"docs/make_attacks.py: not in its place: {', '.join(sorted(wrong))}.")


def written(page: str, text: str) -> str:
    """The page with the text between its markers."""
    before, rest = page.split(BEGIN)
    return f"{before}{BEGIN}\n\n{text}\n{END}{rest.split(END)[1]}"


def tables(costs: dict[str, Any]) -> str:
    """A table per group, AutoAttack's stages, the combinators and the papers."""
    peers, papers, parts = compared(), short_names(), []
    for title, group in GROUPS.items():
        rows = [row(name, costs[name], peers.get(name, {}), papers) for name in group]
        parts.append(f"### {title}\n\n{_markdown(HEADER, rows)}")
        parts.append("\n".join(f"- `{name}`: {summary(name)}" for name in group) + "\n")
        if title == "AutoAttack":
            parts.append(_markdown(("passes by stage", *STAGES), _by_stage(costs)))
    made = [(f"`{name}`", _cell(summary(name))) for name in COMBINATORS]
    parts.append(f"### Combinators\n\n{_markdown(('name', 'what it does'), made)}")
    listed = sorted(f"- {short}: {paper[0]}." for paper, short in papers.items())
    parts.append("### Papers\n\n" + "\n".join(listed) + "\n")
    return "\n".join(parts)


STAGES = ("APGD-CE", "APGD-DLR", "APGD-T", "FAB", "FAB-T", "Square")


def _by_stage(costs: dict[str, Any]) -> list[tuple[str, ...]]:
    def cell(name: str, stage: str) -> str:
        passes = costs[name]["stages"].get(stage)
        return "{:,} / {:,}".format(*passes) if passes else ""

    return [(f"`{n}`", *(cell(n, s) for s in STAGES)) for n in GROUPS["AutoAttack"]]


def row(name: str, cost: dict, peers: dict[str, int], papers: dict) -> tuple[str, ...]:
    """One line; `papers` are their short names."""
    given = measure_attacks.ARGUMENTS.get(name, dict)()
    counts = [f"{v} {k[4:]}" for k, v in given.items() if k.startswith("num_")]
    passes = "{forward:,} / {backward:,}".format(**cost["passes"])
    if name in measure_attacks.DECISIONS:
        passes = f"about {passes}"
    shown = f"{passes} ({', '.join(counts)})" if counts else passes
    compared_with = ", ".join(f"{peer} ({n})" for peer, n in sorted(peers.items()))
    return (
        f"`{name}`" + ("" if name in names.ATTACKS else " ¹"),
        ", ".join(cost["norms"]) or WITHOUT_NORM[name],
        targeted(name),
        shown if cost["passes"]["forward"] else "none",
        f"{cost['held']:.0f} ({cost['largest']:.0f})",
        "yes" if cost["draws"] else "no",
        compared_with or "-",
        CHECKED.get(name, ("its stages" if "stages" in cost else "-",))[0],
        "; ".join(papers[paper] for paper in cited(name)) or "-",
    )


def summary(name: str) -> str:
    """The first line of the docstring."""
    return (inspect.getdoc(getattr(attacks, name)) or "").splitlines()[0]


def cited(name: str) -> list[tuple[str, ...]]:
    """(title, authors, year) in the factory's docstring, or else in its module's."""
    factory = getattr(attacks, PART_OF.get(name, name))
    module = importlib.import_module(factory.__module__)
    for doc in (factory.__doc__, None if name in OF_OTHERS else module.__doc__):
        text = " ".join((doc or "").split())
        found: list[tuple[str, str, str]] = _PAPER.findall(text)
        if found:
            full = ((TITLES.get(t, t), a, y) for t, a, y in found)
            return list(dict.fromkeys(full))
    return []


TITLES = {
    "Ensemble Adversarial Training": (
        "Ensemble Adversarial Training: Attacks and Defenses"
    ),
    "Fast is better than free": (
        "Fast is better than free: Revisiting adversarial training"
    ),
}
PART_OF = {"apgd_target": "apgd_targeted"}
# The papers of their modules are about others.
OF_OTHERS = ("aa_namid", "apply_perturbation", "single_pixel", "projected_gradient")


def short_names() -> dict[tuple[str, ...], str]:
    """All papers, as "authors, year"; letters tell two of a year apart."""
    papers = sorted({paper for name in attack_names() for paper in cited(name)})
    found = {}
    for title, authors, year in papers:
        same = [t for t, a, y in papers if (a, y) == (authors, year)]
        letter = chr(ord("a") + same.index(title)) if len(same) > 1 else ""
        found[title, authors, year] = f"{authors}, {year}{letter}"
    return found


def targeted(name: str) -> str:
    """How the attack is told a class to reach."""
    parameters = inspect.signature(getattr(attacks, name)).parameters
    if name in TARGETED:
        return TARGETED[name]
    if "target" in parameters:
        return "`target=`"
    return "`objective=`" if "objective" in parameters else "no"


def compared() -> dict[str, dict[str, int]]:
    """Attack to peers that it must match in tests/parity, with the number of rows."""
    peers: Any = types.ModuleType("peers")
    peers.INF = float("inf")
    for library in ("adv_lib", "art", "foolbox", "torchattacks"):
        setattr(peers, library, lambda *args, **kwargs: None)
    sys.modules["peers"] = peers
    sys.path.insert(0, str(TESTS / "parity"))
    comparison = importlib.import_module("comparison")
    found: dict[str, dict[str, int]] = {}
    for line in comparison.ROWS:
        factory = inspect.getclosurevars(line.ours).nonlocals["factory"]
        counts = found.setdefault(factory, {})
        for peer in line.peers:
            counts[peer] = counts.get(peer, 0) + 1
    return found


def _markdown(header: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    lines = [header, ("---",) * len(header), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


if __name__ == "__main__":
    sys.exit(main())
