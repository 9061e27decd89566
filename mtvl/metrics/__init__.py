"""Scorers: predictions and official annotation fields in, a `Result` out. Nothing here knows a model or a task.

Every entry is a function ``(predictions, references, **options) -> Result`` over mappings keyed by uid, except
`retrieval`, which takes a similarity matrix.
"""

from __future__ import annotations

from mtvl.registry import Registry

METRICS = Registry(
    "metric",
    {
        "vqa": "mtvl.metrics.vqa:score_vqa",
        "gqa": "mtvl.metrics.gqa:score_gqa",
        "nlvr2": "mtvl.metrics.nlvr2:score_nlvr2",
        "captions": "mtvl.metrics.captions:score_captions",
        "answers": "mtvl.metrics.answers:score_answers",
        "labels": "mtvl.metrics.labels:score_labels",
        "qa": "mtvl.metrics.qa:score_qa",
        "retrieval": "mtvl.metrics.retrieval:score_retrieval",
        "ranked_lists": "mtvl.metrics.retrieval:score_ranked_lists",
    },
)
