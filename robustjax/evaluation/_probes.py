"""What failure indicators measure of a classifier on a subset of its images."""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from robustjax import _checks, threats
from robustjax.data import Dataset, as_float
from robustjax.evaluation import _climbs
from robustjax.evaluation._batching import block_size, rows_of
from robustjax.evaluation._climbs import Path
from robustjax.evaluation._judging import num_climbed, num_draws
from robustjax.evaluation._precision import in_bfloat16
from robustjax.training import sharding
from robustjax.types import Array, Key, LogitsFn, Threat, is_transductive

SCALES = (0.01, 0.1, 10.0, 100.0)
STARTS = 5
_FACTORS = (0.5, 0.75, 1.0, 2.0, 4.0)


@dataclasses.dataclass(frozen=True)
class Subject:
    """A classifier, the images it is looked at on, and how attacks walk.

    Attributes:
      judge: The classifier that is judged, a pytree.
      climbed: What attacks climb, a pytree; the same, if `judge is climbed`.
      threat: Ball and box.
      x: [n, H, W, C], float32.
      y: [n].
      index: What keys fold in, [n].
      key: Not one that the evaluation used.
      step_size: Of PGD at the radius of the threat.
      num_steps: Of PGD.
      size: Images at a time.
      mesh: Devices.
    """

    judge: LogitsFn
    climbed: LogitsFn
    threat: Threat
    x: np.ndarray
    y: np.ndarray
    index: np.ndarray
    key: Key
    step_size: float
    num_steps: int
    size: int
    mesh: Mesh

    def over(self, run: Callable[..., Any], *more: np.ndarray) -> Any:
        """`run(x, y, index, *more)` block by block, joined on the host."""
        blocks = rows_of((self.x, self.y, self.index, *more), self.size, self.mesh)
        parts = [sharding.to_host(run(*block)) for block in blocks]
        return jax.tree.map(lambda *rows: np.concatenate(rows)[: len(self.x)], *parts)

    def take(self, rows: np.ndarray) -> "Subject":
        """The same on some of the images."""
        part = dict(x=self.x[rows], y=self.y[rows], index=self.index[rows])
        return dataclasses.replace(self, **part)

    def fresh(self, number: int) -> Key:
        """A key of its own for each purpose."""
        return jax.random.fold_in(self.key, number)

    @property
    def radius(self) -> float:
        """Of the threat."""
        return float(self.threat.eps)

    @property
    def box(self) -> float:
        """From the lowest pixel to the highest."""
        low, high = self.threat.bounds
        return high - low


def subject(
    judge: LogitsFn,
    climbed: LogitsFn,
    threat: Threat,
    dataset: Dataset,
    rows: np.ndarray,
    *,
    batch_size: int,
    mesh: Mesh | None,
    **walk: Any,
) -> Subject:
    """Of these rows of a data set; `walk` is `key`, `step_size` and `num_steps`.

    Raises:
      InputError: the threat has a radius for each image.
    """
    mesh = mesh or sharding.data_mesh()
    if np.ndim(threat.eps):
        raise _checks.InputError(
            "`threat` must have one radius for all images, got one of shape "
            f"{np.shape(threat.eps)}."
        )
    if not isinstance(threat.eps, float):  # programs are looked up by the threat
        threat = threat.with_eps(float(threat.eps))
    return Subject(
        judge,
        climbed,
        threat,
        x=np.asarray(as_float(jnp.asarray(dataset.images[rows]))),
        y=dataset.labels[rows],
        index=dataset.index[rows].astype(np.uint32),
        size=block_size((judge, climbed), batch_size, len(rows), mesh),
        mesh=mesh,
        **walk,
    )


def path(
    of: Subject,
    number: int = 0,
    *,
    eps: float | None = None,
    scale: float = 1.0,
    start: np.ndarray | None = None,
    climbed: LogitsFn | None = None,
) -> Path:
    """PGD with the draws of that number; its step grows with the radius.

    Args:
      of: The classifier and its images.
      number: Of the random start.
      eps: Radius, by default that of the threat.
      scale: Of the logits.
      start: Where to start in place of a draw, [n, H, W, C].
      climbed: Another classifier to climb.
    """
    radius = of.radius if eps is None else eps
    share = radius / of.radius if of.radius else 1.0
    step = jnp.float32(of.step_size * share)
    model = of.climbed if climbed is None else climbed
    walk = functools.partial(_climbs.climb, of.threat, of.num_steps, model, of.judge)
    return _walked(of, walk, number, jnp.float32(radius), step, scale, start)


def _walked(of: Subject, walk: Any, number: int, eps: Array, step: Array, scale, start):
    key = of.fresh(number)

    def run(x: Array, y: Array, index: Array, *begin: Array) -> Path:
        first = begin[0] if begin else _climbs.drawn(of.threat, key, x, index, eps)
        return walk(x, y, first, eps, step, jnp.float32(scale))

    return of.over(run, *(() if start is None else (start,)))


def one_step(of: Subject) -> Path:
    """FGSM from the image itself."""
    walk = functools.partial(_climbs.climb, of.threat, 1, of.climbed, of.judge)
    eps = jnp.float32(of.radius)
    return _walked(of, walk, 0, eps, eps, 1.0, of.x)


def unbounded(of: Subject) -> Path:
    """PGD that may go anywhere in the box, by signs, twice across it in its steps."""
    whole = of.threat
    if whole.name != "linf":
        whole = threats.linf(of.box, bounds=of.threat.bounds)
    share = min(1.0, 2 / of.num_steps)  # of the box; `path` stretches it by the radius
    walker = dataclasses.replace(
        of, threat=whole, step_size=share * (float(whole.eps) or of.box)
    )
    return path(walker, eps=of.box)


def radii(of: Subject) -> list[float]:
    """Ascending, of a curve; the last one half of the box, under L-inf."""
    found = [factor * of.radius for factor in _FACTORS]
    if of.threat.name != "linf":
        return found
    return [eps for eps in found if eps < of.box / 2] + [of.box / 2]


def logits(of: Subject) -> np.ndarray:
    """Of the images, [n, K] or [n, S, K]."""
    return of.over(lambda x, *_: _climbs.answers(of.judge, x))


def own_scale(logits: np.ndarray, y: np.ndarray) -> float:
    """What brings the median margin of logits to 1."""
    flat = logits.mean(axis=1) if logits.ndim == 3 else logits
    rows, others = np.arange(len(y)), np.array(flat, np.float64)
    others[rows, y] = -np.inf
    margins = np.abs(flat[rows, y] - others.max(axis=1))
    middle = float(np.median(margins[np.isfinite(margins)], axis=None)) if len(y) else 0
    return 1 / middle if np.isfinite(middle) and middle > 0 else 1.0


def company_share(of: Subject) -> np.ndarray:
    """Whether logits change with the other images of the batch, [n] bool.

    Two of three images are replaced by negatives with noise on them, in turn; shapes
    and places stay as they are. Then the images change places, where the classifier
    has no draws, which may belong to places.
    """
    low, high = of.threat.bounds

    def beside(x: Array, keep: int) -> tuple[Array, Array, Array]:
        rows = jnp.concatenate([x, x]) if len(x) == 1 else x
        noise = of.box * jax.random.uniform(of.fresh(103), rows.shape, minval=-1.0)
        company = jnp.clip(low + high - rows + 0.25 * noise, low, high)
        stays = jnp.arange(len(rows)) % 3 == keep
        mixed = jnp.where(stays.reshape(-1, *(1,) * (x.ndim - 1)), rows, company)
        one, other = (_climbs.answers(of.judge, z) for z in (rows, mixed))
        return one[: len(x)], other[: len(x)], stays[: len(x)]

    changed = np.zeros(len(of.x), bool)
    for keep in range(3):
        run = lambda x, *_, keep=keep: beside(x, keep)
        one, other, stayed = of.over(run)
        changed |= _checks.differing_rows(one, other) & stayed
    before = logits(of)
    if before.ndim == 2:
        places = np.roll(np.arange(len(of.x)), 1)
        after = logits(of.take(places))[np.argsort(places)]
        changed |= _checks.differing_rows(before, after)
    return changed


def useless_gradients(of: Subject) -> dict[str, np.ndarray] | None:
    """Not finite, zero, or zero in most pixels, each [n] bool; None: no gradient.

    The last only where logits change with those pixels.
    """
    try:
        found = of.over(lambda x, y, _: _climbs.health(of.climbed, x, y))
    except (ValueError, TypeError, NotImplementedError) as error:
        if isinstance(error, _checks.InputError):
            raise
        return None
    mostly = (found.zero_share > 0.5) & (found.largest > 0)
    if mostly.any():  # pixels that nobody looks at, as beyond a crop, hide nothing
        far = jnp.float32(min(of.radius or of.box, of.box / 4))
        middle = jnp.float32(sum(of.threat.bounds) / 2)
        look = lambda x, y, _: _climbs.beside_zeros(of.climbed, x, y, far, middle)
        mostly &= _checks.differing_rows(*of.over(look))
    return dict(infinite=~found.finite, zero=found.largest == 0, mostly=mostly)


def instability(of: Subject, num_draws: int, radius: float) -> np.ndarray:
    """See `_climbs.instability`, [n]."""
    run = functools.partial(
        _climbs.instability, num_draws, of.threat.bounds, of.climbed, of.fresh(100)
    )
    return of.over(lambda x, y, index: run(x, y, index, jnp.float32(radius)))


def stands_noise(of: Subject, num_draws: int) -> np.ndarray:
    """See `_climbs.stands_noise`, [n] bool."""
    run = functools.partial(_climbs.stands_noise, of.threat, num_draws, of.judge)
    return of.over(functools.partial(run, of.fresh(101)))


def under_square(of: Subject, num_queries: int) -> np.ndarray:
    """See `_climbs.under_square`, [n]."""
    run = functools.partial(_climbs.under_square, of.threat, num_queries, of.judge)
    return of.over(functools.partial(run, of.fresh(102)))


def verdicts(of: Subject, x_adv: np.ndarray) -> dict[str, np.ndarray]:
    """Right on x and on x_adv, [n], by precision of products."""

    def robust(judge: LogitsFn) -> np.ndarray:
        def run(x: Array, y: Array, _: Array, moved: Array) -> Array:
            return jnp.minimum(*(1.0 * _climbs.right(judge, z, y) for z in (x, moved)))

        return of.over(run, x_adv)

    with jax.default_matmul_precision("highest"):
        found = dict(float32=robust(of.judge))
    if jax.default_backend() != "cpu":  # where it changes nothing
        found["default"] = robust(of.judge)
    with jax.default_matmul_precision("highest"):
        found["bfloat16"] = robust(in_bfloat16(of.judge))
    return found


def has_draws(of: Subject) -> tuple[int, int]:
    """How many draws judge, and how many are climbed; 1 without any."""
    one = jnp.asarray(of.x[:1])
    return num_draws(of.judge, one), num_climbed(of.climbed, one)


def can_be_queried(of: Subject) -> bool:
    """Whether draws of noise may be asked side by side."""
    return not is_transductive(of.judge)


def subset_rows(total: int, count: int) -> np.ndarray:
    """Positions spread over a set, as some are stored class by class."""
    if count >= total:
        return np.arange(total)
    return np.unique(np.linspace(0, total - 1, count).round().astype(int))


def right(of: Subject, walk: Path, exact: bool) -> np.ndarray:
    """Right after a run, anywhere on its way where that can be said, [n]."""
    if not exact or of.climbed is not of.judge:
        return walk.correct
    return walk.correct & ~walk.broken.any(axis=1)


def worst(rows: Sequence[np.ndarray], exact: bool) -> np.ndarray:
    """The least of shares by image; of random verdicts the row of the least mean."""
    if exact:
        return np.min([np.asarray(row, float) for row in rows], axis=0)
    return np.asarray(min(rows, key=np.mean), float)
