"""Judges any classifier where one is: in a notebook, with a report in its cell."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from robustjax import _checks, build, evaluation
from robustjax.evaluation import NamedAttack, Robustness
from robustjax.judging import given
from robustjax.judging.context import context_of
from robustjax.judging.evidence import gathered
from robustjax.judging.progress import Bar
from robustjax.judging.subject import Subject, Wanted, check, seconds_of
from robustjax.types import Array, Key, LogitsFn, Threat, as_pytree, is_transductive


@dataclasses.dataclass(frozen=True)
class Report:
    """What an evaluation found, and how it reads.

    Attributes:
      summary: From `evaluation.summarise`.
      given: Keywords of `evaluation.write_report`.
      content: What report.json holds.
      html: For the cell of a notebook.
    """

    summary: Mapping[str, Any]
    given: Mapping[str, Any]
    content: Mapping[str, Any]
    html: str

    @property
    def result(self) -> Robustness:
        """Every image under every attack."""
        return self.given["result"]

    @property
    def clean_accuracy(self) -> float:
        """Accuracy without an attack."""
        return float(self.result.clean_correct.mean())

    @property
    def robust_accuracy(self) -> float:
        """The worst case over all attacks, per image."""
        return float(self.result.worst_case_correct.mean())

    @property
    def flags(self) -> tuple[str, ...]:
        """Names of the failure indicators and tests that were raised."""
        return tuple(self.content["verdict"]["flags"])

    def save(self, directory: str | Path) -> None:
        """Writes report.json, report.md, report.html and the pictures.

        Raises:
          InputError: the directory cannot be written.
        """
        evaluation.write_report(Path(directory), self.summary, **self.given)

    def __str__(self) -> str:
        """The verdict and the table."""
        sentence = self.content["verdict"]["sentence"]
        return f"{sentence}\n\n{evaluation.table(self.summary)}"

    def __repr__(self) -> str:
        """One line."""
        measured = self.content["verdict"]["measured"]
        flags = ", ".join(self.flags) or ("none" if measured else "not measured")
        return (
            f"Report(clean={self.clean_accuracy:.4f}, "
            f"robust={self.robust_accuracy:.4f}, n={len(self.result.labels)}, "
            f"flags: {flags})"
        )

    def _repr_html_(self) -> str:
        return self.html


def evaluate(
    logits_fn: LogitsFn,
    x: Array | np.ndarray,
    y: Array | np.ndarray,
    *,
    threat: Threat,
    suite: str | Path | NamedAttack | Sequence[NamedAttack] = "quick",
    key: Key | None = None,
    step_size: float | None = None,
    num_steps: int = 40,
    num_restarts: int = 5,
    batch_size: int = 512,
    class_names: Sequence[str] | None = None,
    source: LogitsFn | None = None,
    surrogates: Mapping[str, LogitsFn] | None = None,
    features_fn: Any = None,
    source_features_fn: Any = None,
    wanted: Wanted | None = None,
    progress: bool = False,
) -> Report:
    """Judges a classifier as `eval.py` does, and returns the report.

    What was compiled is found again by the next call if the classifier's weights are
    arguments, as those of `models.logits_fn` are. Any other function is compiled anew
    each time, since what it reads may have changed.

    Args:
      logits_fn: Images [B, H, W, C] to logits [B, K], or to draws [S, B, K] of a random
        classifier; `models.logits_fn(...)` of linen and nnx modules. NumPy goes in by
        `jax.pure_callback`; it has no gradient, which only attacks by queries bear. One
        inside of a function with gradients needs `vmap_method="sequential"`.
      x: Images [N, H, W, C], float in [0, 1], or uint8 up to 255.
      y: Labels [N].
      threat: What attacks are held to, such as `threats.linf(8 / 255)`.
      suite: "quick", "standard", "full", the path of a .py file, or attacks.
      key: A typed key; `jax.random.key(0)` if None.
      step_size: Of PGD; a quarter of the radius if None.
      num_steps: Of the suite `quick`.
      num_restarts: Of the suite `quick`.
      batch_size: Images at a time.
      class_names: Of the K classes.
      source: What attacks climb in place of `logits_fn`: the same classifier with
        another gradient (BPDA), or averaged over draws (`attacks.expectation`).
      surrogates: Other classifiers of these classes, by name: PGD on each of them is
        transferred.
      features_fn: All of the classifier but its last layer, for the binarization test;
        `evaluation.features_of(model_fn, layer)`.
      source_features_fn: The same with the gradient that attacks take.
      wanted: What else to look at: failure indicators and pictures, if None.
      progress: Whether to print an estimate of the time and a bar.

    Raises:
      InputError: an argument is out of range, or does not fit.

    Example:
      >>> from robustjax import threats
      >>> x = np.linspace(0, 1, 64, dtype=np.float32).reshape(-1, 1, 1, 1)
      >>> y = (x > 0.5).astype(np.int32).ravel()
      >>> def logits_fn(x):
      ...     return 9 * jax.numpy.concatenate([0.5 - x, x - 0.5], -1)[:, 0, 0]
      >>> wanted = Wanted(indicators=False, pictures=False)
      >>> options = dict(num_steps=2, wanted=wanted)
      >>> evaluate(logits_fn, x, y, threat=threats.linf(0.1), **options)
      Report(clean=1.0000, robust=0.8125, n=64, flags: not measured)
    """
    key = jax.random.key(0) if key is None else key
    wanted, surrogates = wanted or Wanted(), surrogates or {}
    given.check_types(logits_fn, key, surrogates, wanted)
    given.check_functions(source=source, features_fn=features_fn)
    given.check_functions(source_features_fn=source_features_fn)
    _checks.positive_int(batch_size=batch_size)
    logits_fn, source = _afresh(logits_fn), _afresh(source)
    features_fn, source_features_fn = _afresh(features_fn), _afresh(source_features_fn)
    surrogates = {name: _afresh(one) for name, one in surrogates.items()}
    given.check_threat(threat, step_size)
    dataset = given.dataset(logits_fn, x, y, class_names, threat.bounds)
    others = {f"surrogates[{name!r}]": one for name, one in surrogates.items()}
    given.check_others(dict(source=source) | others, dataset)
    suite = str(suite) if isinstance(suite, Path) else suite
    step = float(threat.eps) / 4 if step_size is None else step_size
    block: dict[str, Any] = dict(
        threat=dict(name=threat.name, eps=float(threat.eps), bounds=threat.bounds),
        step_size=step,
        num_steps=num_steps,
        num_restarts=num_restarts,
    )
    by_name = isinstance(suite, str)
    named = [*build.build_suite(suite, block)] if by_name else given.named(suite)
    if source is not None:
        named = [one if one.source is not None else _on(one, source) for one in named]
    for name, surrogate in surrogates.items():
        named.append(_transferred(name, surrogate, block))
    subject = Subject(
        logits_fn=logits_fn,
        source=source,
        dataset=dataset,
        threat=threat,
        step_size=step,
        num_steps=num_steps,
        key=key,
        batch_size=batch_size,
        surrogates=tuple(surrogates.values()),
        features_fn=features_fn,
        source_features_fn=source_features_fn,
    )
    check(wanted, subject)
    given.check_gradient(subject, suite)
    expected = evaluation.estimate(logits_fn, dataset, named, batch_size=batch_size)
    bar = Bar(expected, named, progress, seconds_of(wanted, subject, expected))
    options: dict[str, Any] = dict(key=key, batch_size=batch_size)
    options |= dict(advance=bar.advance, log=bar.write if progress else None)
    try:
        result = evaluation.evaluate(logits_fn, dataset, named, **options)
        looked = gathered(wanted, subject, result, named)
        bar.advance_beside()
    finally:
        bar.close()
    looked["context"] = context_of(
        key,
        data=repr(dataset),
        suite=suite if by_name else "given",
        threat=block["threat"],
        evaluation=block,
        wanted=dataclasses.asdict(wanted),
    )
    summary = evaluation.summarise(result)
    if beyond := evaluation.beyond(result, threat):
        summary["warnings"] += beyond
    else:  # what was asked for, whatever the attacks were held to
        looked["threat"] = block["threat"]
        summary["warnings"] += evaluation.short_of(result, threat)
    if looked.get("curve"):
        summary["warnings"] += evaluation.above_limit(looked["curve"])
    content, pictures = evaluation.compose(summary, **looked)
    html = evaluation.report_html(content, pictures, fragment=True)
    return Report(summary, looked, content, html)


class _Afresh:
    """A function that no compiled code knows yet."""

    def __init__(self, fun: Any):
        self._fun = fun
        self.transductive = is_transductive(fun)

    def __call__(self, *given: Any) -> Any:
        return self._fun(*given)


def _afresh(fun: Any) -> Any:
    """For one evaluation; a `jax.tree_util.Partial` hands its arrays over anyway."""
    if fun is None or isinstance(fun, jax.tree_util.Partial):
        return fun
    return as_pytree(_Afresh(fun))


def _on(named: NamedAttack, source: LogitsFn) -> NamedAttack:
    """The attack on a source, which the report has to say."""
    parameters = dict(named.parameters) | dict(view="the source that was given")
    return dataclasses.replace(named, source=source, parameters=parameters)


def _transferred(name: str, surrogate: LogitsFn, block: dict[str, Any]) -> NamedAttack:
    pgd: dict[str, Any] = dict(name="pgd", threat=block["threat"], num_steps=50)
    pgd |= dict(step_size=block["step_size"], label=f"PGD-50 on {name}", access="black")
    return dataclasses.replace(build.build_attack(pgd), source=surrogate)
