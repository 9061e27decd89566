"""Where the names of points go, so that none lies over another."""

from __future__ import annotations

import math
from collections.abc import Sequence

Point = tuple[float, float]
Box = tuple[float, float, float, float]  # left, bottom, right, top

DISTANCES = (7.0, 14.0, 24.0, 36.0, 50.0, 66.0, 84.0)  # of a label from its point, in points of 1/72 inch
ANGLES = 16
ROUNDS = 8


def overlap(a: Box, b: Box) -> float:
    """Area that two boxes share."""
    width, height = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    return width * height if width > 0 and height > 0 else 0.0


def place_labels(
    anchors: Sequence[Point], sizes: Sequence[tuple[float, float]], bounds: Box, obstacles: Sequence[Box], *, unit: float = 1.0
) -> list[Box]:  # fmt: skip
    """Boxes of the labels `sizes` beside their `anchors`, within `bounds`; all in pixels, `unit` pixels a point.

    Each label takes the nearest free place of a fixed list around its anchor; labels are moved in turns until none gains,
    for an early label may stand where only a later one can go.
    """
    choices = [_around(a, s, unit) for a, s in zip(anchors, sizes, strict=True)]
    crowd = [sum(math.dist(a, b) for b in anchors) for a in anchors]
    order = sorted(range(len(anchors)), key=lambda i: crowd[i])  # those in the thick of it choose first
    placed: dict[int, Box] = {}
    for _ in range(ROUNDS):
        before = dict(placed)
        for i in order:
            others = [(anchors[j], box) for j, box in placed.items() if j != i]
            costs = [_cost(anchors[i], box, others, anchors, bounds, obstacles, unit) for box in choices[i]]
            placed[i] = choices[i][costs.index(min(costs))]
        if placed == before:
            break
    return [placed[i] for i in range(len(anchors))]


def _around(anchor: Point, size: tuple[float, float], unit: float) -> list[Box]:
    """Candidate boxes at growing distances; the label's edge, not its middle, keeps the distance."""
    found = []
    for distance in DISTANCES:
        for step in range(ANGLES):
            angle = 2 * math.pi * step / ANGLES
            x = anchor[0] + math.cos(angle) * (distance * unit + size[0] / 2)
            y = anchor[1] + math.sin(angle) * (distance * unit + size[1] / 2)
            found.append((x - size[0] / 2, y - size[1] / 2, x + size[0] / 2, y + size[1] / 2))
    return found


def _cost(
    anchor: Point, box: Box, others: Sequence[tuple[Point, Box]], anchors: Sequence[Point], bounds: Box,
    obstacles: Sequence[Box], unit: float,
) -> float:  # fmt: skip
    """Lower is better: no overlap before anything else, then no crossing lines, then a short and unmistakable way."""
    outside = (box[2] - box[0]) * (box[3] - box[1]) - overlap(box, bounds)
    covered = sum(overlap(box, other) for _, other in others) + sum(overlap(box, o) for o in obstacles)
    end = _nearest(anchor, box)
    way = math.dist(anchor, end)
    crossed = sum(
        _crosses(anchor, end, other) or _crosses(start, _nearest(start, other), box) for start, other in others
    )
    crossed += sum(_crosses(anchor, end, o) for o in obstacles if not _contains(o, anchor))
    # A name that stands nearer to another point would be read as that point's.
    mistaken = sum(math.dist(a, _nearest(a, box)) < 1.3 * way for a in anchors if a != anchor)
    is_left = (box[0] + box[2]) / 2 < anchor[0]
    return 1e3 * (outside + covered) / unit**2 + 60 * crossed + 15 * mistaken + way / unit + 2 * is_left


def _nearest(point: Point, box: Box) -> Point:
    return min(max(point[0], box[0]), box[2]), min(max(point[1], box[1]), box[3])


def _contains(box: Box, point: Point) -> bool:
    return box[0] < point[0] < box[2] and box[1] < point[1] < box[3]


def _crosses(start: Point, end: Point, box: Box) -> bool:
    """Whether the way from a point to its label runs through a box."""
    steps = 12
    return any(
        _contains(box, (start[0] + (end[0] - start[0]) * k / steps, start[1] + (end[1] - start[1]) * k / steps))
        for k in range(1, steps)
    )
