"""Ours is at least as strong as the same attack of other libraries, see comparison.py.

Each library's result is judged by the network that it attacked, in PyTorch or JAX:
minimum-norm attacks end so close to the boundary that rounding decides.
"""

import inspect
import time

import jax
import mnist_cnn
import numpy as np
import pytest

torch = pytest.importorskip("torch")
for _library in ("adv_lib", "art", "foolbox", "torchattacks"):
    pytest.importorskip(_library)

import comparison  # noqa: E402
import peers  # noqa: E402

from robustjax.types import IteratedAttack  # noqa: E402

pytestmark = pytest.mark.skipif(not mnist_cnn.has_data(), reason=mnist_cnn.NO_DATA)
OUTSIDE = 1e-5  # rounding of a radius or a pixel bound


@pytest.fixture(scope="module")
def task():
    x, y = mnist_cnn.images(comparison.IMAGES)
    images = torch.from_numpy(np.array(x.transpose(0, 3, 1, 2)))
    labels = torch.from_numpy(y.astype(np.int64))
    return peers.Task(mnist_cnn.torch_network(), images, labels)


def nhwc(images):
    return np.asarray(images.detach().permute(0, 2, 3, 1))


def test_networks_are_the_same(task):
    logits = jax.jit(mnist_cnn.logits_fn())(nhwc(task.x))
    np.testing.assert_allclose(logits, task.network(task.x), rtol=1e-5, atol=1e-5)


def run_ours(build, x, y, starts):
    """([(images, whether misclassified)] of the starts, seconds, of compilation)."""
    attack, f, key = build(), mnist_cnn.logits_fn(), jax.random.key(0)
    jitted = isinstance(attack, IteratedAttack) or inspect.isfunction(attack)
    start = time.perf_counter()
    run = jax.jit(attack).lower(key, f, x, y).compile() if jitted else attack
    compiled = time.perf_counter() - start
    start = time.perf_counter()
    results = []
    for start_key in jax.random.split(key, starts):
        x_adv = jax.block_until_ready(run(start_key, f, x, y))
        results.append((np.asarray(x_adv), np.asarray(f(x_adv).argmax(1)) != y))
    return results, time.perf_counter() - start, compiled


def run_peer(attack, task, starts):
    """([(images, whether misclassified)] of the starts, seconds)."""
    start, results = time.perf_counter(), []
    for seed in range(starts):
        torch.manual_seed(seed)
        np.random.seed(seed)  # noqa: NPY002  (ART's)
        x_adv = attack(task, seed).detach().float()
        is_broken = (task.network(x_adv).argmax(1) != task.y).numpy()
        results.append((nhwc(x_adv), is_broken))
    return results, time.perf_counter() - start


def score(measure, results, x, clean_broken):
    """Images left, or the median norm, in the mean over runs.

    Outside the box is no adversarial image.
    """
    scores = []
    for x_adv, is_broken in results:
        inside = (x_adv >= -OUTSIDE) & (x_adv <= 1 + OUTSIDE)
        valid = is_broken & inside.reshape(len(x), -1).all(1)
        distance = np.where(valid, np.asarray(measure.norm(x_adv - x)), np.inf)
        distance = np.where(clean_broken, 0.0, distance)
        if measure.eps is None:
            scores.append(np.median(distance))
        else:
            scores.append((distance > measure.eps + OUTSIDE).sum())
    return float(np.mean(scores))


@pytest.mark.parametrize("row", comparison.ROWS, ids=lambda row: row.name)
def test_at_least_as_strong(row, task, table, request):
    count = min(row.images, request.config.option.images)
    task = task._replace(x=task.x[:count], y=task.y[:count])
    x, y = nhwc(task.x), task.y.numpy().astype(np.int32)
    clean_broken = (task.network(task.x).argmax(1) != task.y).numpy()
    results, seconds, compiled = run_ours(row.ours, x, y, row.starts)
    ours = score(row.measure, results, x, clean_broken)
    scores, text = {}, []
    for name, attack in {**row.peers, **row.others}.items():
        results, peer_seconds = run_peer(attack, task, row.starts)
        value = score(row.measure, results, x, clean_broken)
        if name in row.peers:
            scores[name] = value
        mark = "" if name in row.peers else "*"
        text.append(f"{name}{mark} {value:.4g} ({peer_seconds:.1f} s)")
    best = min(scores.values())
    counts = row.measure.eps is not None
    met = ours <= (best + 1 if counts else 1.02 * best)
    kind = "left" if counts else "median"
    starts = f", mean of {row.starts} runs" if row.starts > 1 else ""
    name = row.name + starts + (f" ({row.note})" if row.note else "")
    table.append(
        (
            *(name, str(count), f"{ours:.4g} {kind}", ", ".join(text)),
            *("met" if met else "MISSED", f"{seconds:.1f} (+ {compiled:.1f})"),
        )
    )
    print(*table[-1], sep=" | ", flush=True)
    assert met, f"{row.name}: {ours:.4g} against {scores}"
