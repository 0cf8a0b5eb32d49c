"""Minima of total variation by an independent solver: writes total_variation.npz.

python tests/transforms/golden/make_total_variation.py, with the `parity` extra:
CLARABEL through cvxpy, an interior-point method in float64. Images are 8x8x3: steps, a
slope and noise. The objective is written down once more here, from its definition.
"""

import itertools
import pathlib
import warnings

import cvxpy
import numpy as np

WEIGHTS = (0.03, 0.2)
TARGET = pathlib.Path(__file__).with_name("total_variation.npz")


def images() -> tuple[np.ndarray, np.ndarray]:
    """Two images and a mask for each, True where kept."""
    rng = np.random.default_rng(0)
    rows, columns = np.mgrid[:8, :8] / 8
    smooth = np.stack([rows, 0.5 * columns + 0.25, (rows > columns) * 1.0], axis=-1)
    smooth = np.clip(smooth + 0.05 * rng.normal(size=smooth.shape), 0, 1)
    return np.stack([smooth, rng.random((8, 8, 3))]), rng.random((2, 8, 8, 3)) < 0.5


def total_variation(z: list[cvxpy.Variable], penalty: str):
    """The sum over channels of row and column, pixel or absolute differences."""
    total = 0
    for channel in z:
        down, right = cvxpy.diff(channel, axis=0), cvxpy.diff(channel, axis=1)
        if penalty == "rows_columns":
            total += cvxpy.sum(cvxpy.norm(down, 2, axis=1))
            total += cvxpy.sum(cvxpy.norm(right, 2, axis=0))
        elif penalty == "anisotropic":
            total += cvxpy.sum(cvxpy.abs(down)) + cvxpy.sum(cvxpy.abs(right))
        else:
            edge = np.zeros((1, 8))
            both = [
                cvxpy.vec(cvxpy.vstack([down, edge]), order="C"),
                cvxpy.vec(cvxpy.hstack([right, edge.T]), order="C"),
            ]
            total += cvxpy.sum(cvxpy.norm(cvxpy.vstack(both), 2, axis=0))
    return total


def minimum(x, mask, weight, data_term, penalty):
    """The least objective of one image, and where it is taken."""
    z = [cvxpy.Variable((8, 8)) for _ in range(3)]
    errors = [
        cvxpy.multiply(mask[:, :, k], z[k] - x[:, :, k]).flatten(order="C")
        for k in range(3)
    ]
    error = cvxpy.hstack(errors)
    data = cvxpy.norm(error, 2) if data_term == "norm" else cvxpy.sum_squares(error) / 2
    problem = cvxpy.Problem(cvxpy.Minimize(data + weight * total_variation(z, penalty)))
    for tolerance in (1e-10, 1e-9, 1e-8):  # the last digits are not to be had always
        with warnings.catch_warnings(action="ignore"):
            problem.solve(
                solver=cvxpy.CLARABEL,
                tol_gap_abs=tolerance,
                tol_gap_rel=tolerance,
                tol_feas=tolerance,
            )
        if problem.status == "optimal":
            break
    else:
        raise SystemExit(f"{weight} {data_term} {penalty}: {problem.status}")
    return problem.value, np.stack([channel.value for channel in z], axis=-1)


def main():
    """Solves all combinations and stores objectives and minimisers."""
    x, mask = images()
    stored = {"x": x, "mask": mask, "weights": np.array(WEIGHTS)}
    for masked, data_term, penalty in itertools.product(
        (False, True),
        ("norm", "squared"),
        ("rows_columns", "isotropic", "anisotropic"),
    ):
        kept = mask if masked else np.ones_like(mask)
        solved = [
            [minimum(x[i], kept[i], weight, data_term, penalty) for i in range(2)]
            for weight in WEIGHTS
        ]
        name = f"{'mask' if masked else 'full'}_{data_term}_{penalty}"
        stored[f"{name}_objective"] = np.array([[s[0] for s in row] for row in solved])
        if data_term == "squared" and not masked:
            stored[f"{name}_image"] = np.array([[s[1] for s in row] for row in solved])
        print(name, stored[f"{name}_objective"].round(6).tolist())
    np.savez_compressed(TARGET, **stored)


if __name__ == "__main__":
    main()
