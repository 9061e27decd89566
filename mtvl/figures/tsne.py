"""t-SNE: points of many dimensions in a plane, so that near ones stay near."""

from __future__ import annotations

import numpy as np

PERPLEXITY = 30.0  # neighbours that a point has, roughly; fewer where there are few points
STEPS, EARLY_STEPS = 500, 150
EXAGGERATION = 12.0  # of attraction in the early steps, so that groups find together
SMALLEST = 1e-12


def tsne(points: np.ndarray, seed: int) -> np.ndarray:
    """(n, D) -> (n, 2); time and memory grow with n squared. It starts from the main components; `seed` tells apart points
    that coincide.

    *Source:* van der Maaten and Hinton 2008, with the start and the rate of Kobak and Berens 2019.
    """
    count = len(points)
    target = affinities(squared_distances(points), min(PERPLEXITY, (count - 1) / 3))
    centred = points - points.mean(0)
    plane = centred @ np.linalg.svd(centred, full_matrices=False)[2][:2].T
    plane = np.pad(plane, ((0, 0), (0, 2 - plane.shape[1])))
    plane = 1e-4 * plane / max(float(plane[:, 0].std()), SMALLEST)
    plane = plane + np.random.default_rng(seed).normal(scale=1e-8, size=plane.shape)
    rate = max(count / EXAGGERATION / 4, 50.0)
    speed, gains = np.zeros_like(plane), np.ones_like(plane)
    for step in range(STEPS):
        is_early = step < EARLY_STEPS
        slope = gradient(target * EXAGGERATION if is_early else target, plane)
        gains = np.where(np.sign(slope) == np.sign(speed), gains * 0.8, gains + 0.2).clip(min=0.01)
        speed = (0.5 if is_early else 0.8) * speed - rate * gains * slope
        plane = plane + speed
    return np.asarray(plane - plane.mean(0))


def squared_distances(points: np.ndarray) -> np.ndarray:
    """(n, D) -> (n, n)."""
    squares = (points**2).sum(1)
    return np.maximum(squares[:, None] + squares[None] - 2 * points @ points.T, 0.0)


def affinities(distances: np.ndarray, perplexity: float) -> np.ndarray:
    """Squared distances (n, n) -> chances (n, n) of all pairs, summing to 1: normal ones around each point, as wide as makes
    their entropy that of `perplexity` equal neighbours; then the mean of both directions."""
    count = len(distances)
    scaled = distances / max(float(distances.sum()) / (count * (count - 1)), SMALLEST)  # in units of their mean
    scaled = scaled + np.diag(np.full(count, np.inf))
    scaled = scaled - scaled.min(1, keepdims=True)  # else far points have no chance at all
    low, high = np.full((count, 1), 1e-10), np.full((count, 1), 1e10)
    for _ in range(100):  # the precision between them, halved on a scale of powers
        precision = np.sqrt(low * high)
        chances = np.exp(-scaled * precision)
        chances /= chances.sum(1, keepdims=True)
        entropy = -(chances * np.log(np.maximum(chances, SMALLEST))).sum(1, keepdims=True)
        is_wide = entropy > np.log(perplexity)
        low, high = np.where(is_wide, precision, low), np.where(is_wide, high, precision)
    return np.asarray((chances + chances.T) / (2 * count))


def gradient(target: np.ndarray, plane: np.ndarray) -> np.ndarray:
    """Slope (n, 2), at points of the plane (n, 2), of the divergence of their pairs' chances from `target` (n, n)."""
    nearness = 1 / (1 + squared_distances(plane))
    np.fill_diagonal(nearness, 0.0)
    pull = (target - nearness / nearness.sum()) * nearness
    return np.asarray(4 * (pull.sum(1, keepdims=True) * plane - pull @ plane))
