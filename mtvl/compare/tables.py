"""From records to one table: means and deviations over seeds, ranks, and the paper's figures beside ours."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from mtvl.compare.recipe import Comparison, MethodLine
from mtvl.compare.record import average_of
from mtvl.report import format_seconds, table


def spread(values: Sequence[float]) -> dict[str, Any]:
    """Mean, sample standard deviation (None for a single value) and the values."""
    deviation = statistics.stdev(values) if len(values) > 1 else None
    return {"mean": statistics.fmean(values), "std": deviation, "values": list(values)}


def ranks(values: Mapping[str, float | None]) -> dict[str, float]:
    """Rank of each known value, 1 for the highest; equal values share the mean of their ranks."""
    known = {
        k: round(v, 6) for k, v in values.items() if v is not None
    }  # sums of equal scores may differ in a last bit
    above = {k: sum(other > v for other in known.values()) for k, v in known.items()}
    equal = {k: sum(other == v for other in known.values()) for k, v in known.items()}
    return {k: above[k] + (equal[k] + 1) / 2 for k in known}


def rank_agreement(ours: Mapping[str, float], paper: Mapping[str, float]) -> float | None:
    """Spearman's rank correlation over the methods in both; None below three methods or where all are equal."""
    both = [k for k in ours if k in paper]
    a, b = (ranks({k: source[k] for k in both}) for source in (ours, paper))
    if len(both) < 3 or len(set(a.values())) == 1 or len(set(b.values())) == 1:
        return None
    return statistics.correlation([a[k] for k in both], [b[k] for k in both])


def summarise(comparison: Comparison, records: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The comparison as plain values: one row a method that has records, in the order of the recipe."""
    rows = []
    for line in comparison.config.methods:
        own = sorted((r for r in records if r["method"] == line.name), key=lambda r: r["seed"])
        if own:
            rows.append(_row(line, own, comparison.tasks))
    by_average = ranks({r["name"]: r["average"]["mean"] for r in rows})
    by_paper = ranks({r["name"]: r["paper"]["average"] for r in rows})
    for row in rows:
        row["rank"], row["paper"]["rank"] = by_average[row["name"]], by_paper.get(row["name"])
    agreement = rank_agreement(
        {r["name"]: r["average"]["mean"] for r in rows},
        {r["name"]: r["paper"]["average"] for r in rows if r["paper"]["average"] is not None},
    )
    budgets = [r["budget"] for r in records]
    return {
        "title": comparison.config.title, "paper": comparison.config.paper, "recipe": comparison.file.name,
        "tasks": list(comparison.tasks), "metrics": dict(records[0]["metrics"]),
        "num_examples": {t: sorted({r["num_examples"][t] for r in records}) for t in comparison.tasks},
        "steps": sorted({b["steps"] for b in budgets}), "global_batch": sorted({b["global_batch"] for b in budgets}),
        "overrides": list(comparison.overrides), "commits": sorted({r["commit"] for r in records}),
        "minutes": round(sum(b["train_seconds"] + b["evaluate_seconds"] for b in budgets) / 60, 1),
        "missing": [line.name for line in comparison.config.methods if line.name not in by_average],
        "rank_correlation": agreement, "rows": rows,
    }  # fmt: skip


def _row(line: MethodLine, records: Sequence[Mapping[str, Any]], tasks: Sequence[str]) -> dict[str, Any]:
    identity, memory = records[0]["identity"], [r["peak_memory_bytes"] for r in records]
    paper = dict(zip(tasks, line.paper.scores, strict=False))
    return {
        "name": line.name, "label": line.label or line.name, "seeds": [r["seed"] for r in records],
        "petl": identity["petl.name"], "share": identity.get("petl.share"), "lr": identity["optim.lr"],
        "trainable": records[0]["trainable"], "total": records[0]["total"],
        "trained_percent": records[0]["trained_percent"],
        "scores": {t: spread([r["scores"][t] for r in records]) for t in tasks},
        "average": spread([r["average"] for r in records]),
        "seconds_per_step": statistics.median(r["seconds_per_step"] for r in records),
        "peak_memory_bytes": None if None in memory else max(memory),
        "paper": {"trained_percent": line.paper.trained, "scores": paper, "average": average_of(paper) if paper else None},
    }  # fmt: skip


def markdown(summary: Mapping[str, Any]) -> str:
    """The table, the paper's rows, and how to read them."""
    tasks, rows = summary["tasks"], summary["rows"]
    header = ["method", "lr", "trained %", *tasks, "average", "rank", "seeds", "s a step", "peak MiB"]
    has_paper = any(r["paper"]["trained_percent"] is not None or r["paper"]["scores"] for r in rows)
    cells = []
    for row in rows:
        memory = row["peak_memory_bytes"]
        cells.append([
            row["label"], f"{row['lr']:g}", f"{row['trained_percent']:.2f}", *(_spread(row["scores"][t]) for t in tasks),
            _spread(row["average"]), _rank(row["rank"]), str(len(row["seeds"])), f"{row['seconds_per_step']:.3f}",
            "-" if memory is None else f"{memory / 2**20:,.0f}",
            *([_number(row["paper"]["trained_percent"], 2), _number(row["paper"]["average"], 1), _rank(row["paper"]["rank"])]
              if has_paper else []),
        ])  # fmt: skip
    if has_paper:
        header += ["paper: trained %", "paper: average", "paper: rank"]
    parts = [f"# {summary['title'] or 'Comparison of methods'}", table(cells, header, markdown=True)]
    published = [
        [r["label"], *(_number(r["paper"]["scores"][t], 1) for t in tasks), _number(r["paper"]["average"], 1)]
        for r in rows if r["paper"]["scores"]
    ]  # fmt: skip
    if published:
        name = summary["paper"] or "the paper"
        parts += [f"As published ({name}):", table(published, ["method", *tasks, "average"], markdown=True)]
    return "\n\n".join([*parts, _notes(summary)])


def _notes(summary: Mapping[str, Any]) -> str:
    """Budget, metrics and what is missing, one line each."""

    def one(values: Sequence[Any]) -> str:
        return " or ".join(f"{v:,}" for v in values)

    metrics = ", ".join(f"{t} {summary['metrics'][t]} ({one(summary['num_examples'][t])})" for t in summary["tasks"])
    lines = [
        f"* {one(summary['steps'])} steps of {one(summary['global_batch'])}; all runs together "
        f"{format_seconds(60 * summary['minutes'])} of training and evaluation; recipe {summary['recipe']}"
        + (f" with {' '.join(summary['overrides'])}" if summary["overrides"] else "")
        + f"; commit {', '.join(summary['commits'])}.",
        f"* Metrics (items): {metrics}. Average: mean of these, CIDEr x 100. ± is the standard deviation over seeds.",
        "* Time is the median of the steps, memory the peak of the first process while training.",
    ]
    if any(len(v) > 1 for v in summary["num_examples"].values()):
        lines.append("* **The runs were scored on different numbers of items: their rows cannot be compared.**")
    if summary["rank_correlation"] is not None:
        lines.append(f"* Rank correlation with the paper (Spearman): {summary['rank_correlation']:.2f}.")
    if summary["missing"]:
        lines.append(f"* Not run yet: {', '.join(summary['missing'])}.")
    return "\n".join(lines)


def _spread(value: Mapping[str, Any]) -> str:
    return f"{value['mean']:.2f}" + ("" if value["std"] is None else f" ± {value['std']:.2f}")


def _number(value: float | None, digits: int) -> str:
    return "-" if value is None else f"{value:.{digits}f}"


def _rank(value: float | None) -> str:
    return "-" if value is None else f"{value:g}"
