"""The Plan: what a method adds to a backbone and what it trains, as data that can be printed and compared."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from math import prod

from mtvl.errors import PlanError
from mtvl.sites import Site

SHARED = "shared"  # name of the one module that serves all tasks


@dataclass(frozen=True)
class Part:
    """One separately shared piece of an adapter, e.g. its down-projection. `owner` is a task or SHARED."""

    name: str
    owner: str
    shapes: tuple[tuple[str, tuple[int, ...]], ...]

    @property
    def count(self) -> int:
        """Number of parameters."""
        return sum(prod(shape) for _, shape in self.shapes)


@dataclass(frozen=True)
class Injection:
    """An adapter at a linear site. Its parameters are named `<site>.adapter.<part>.<owner>.<name>`."""

    site: Site
    parts: tuple[Part, ...]

    @property
    def count(self) -> int:
        """Number of parameters over all parts and owners."""
        return sum(p.count for p in self.parts)

    def parameters(self) -> list[tuple[str, tuple[int, ...], str]]:
        """(full name, shape, owner) of every parameter."""
        return [
            (f"{self.site.path}.adapter.{p.name}.{p.owner}.{name}", shape, p.owner)
            for p in self.parts
            for name, shape in p.shapes
        ]


@dataclass(frozen=True)
class Plan:
    """Injections and unfrozen sites of one method on one backbone for a set of tasks."""

    method: str
    options: tuple[tuple[str, object], ...]
    tasks: tuple[str, ...]
    sites: tuple[Site, ...]
    injections: tuple[Injection, ...]
    unfrozen: tuple[Site, ...]

    def __post_init__(self) -> None:
        for name in self.tasks:
            if name == SHARED or "." in name or not name:
                raise PlanError(f"{name!r} cannot name a task: it is reserved or contains a dot")
        for injection in self.injections:
            if not injection.site.is_linear:
                raise PlanError(f"{injection.site.path} is a {injection.site.kind} site and cannot hold an adapter")

    @property
    def num_added(self) -> int:
        """Parameters that the method adds."""
        return sum(i.count for i in self.injections)

    @property
    def num_trainable(self) -> int:
        """Added plus unfrozen parameters."""
        return self.num_added + sum(s.num_parameters for s in self.unfrozen)

    @property
    def num_total(self) -> int:
        """Language model with added tokens, visual embedding and the method's parameters; tied ones once."""
        return sum(s.num_parameters for s in self.sites) + self.num_added

    @property
    def is_task_private(self) -> bool:
        """True when some parameters belong to single tasks."""
        return any(p.owner != SHARED for i in self.injections for p in i.parts)

    def owners(self) -> dict[str, str]:
        """Owner (a task or SHARED) of every added parameter by full name."""
        return {name: owner for i in self.injections for name, _, owner in i.parameters()}

    def fingerprint(self) -> str:
        """Hash over everything that decides names and shapes of the trained parameters."""
        content = {
            "method": self.method, "options": [list(o) for o in self.options],
            "added": [[n, list(s)] for i in self.injections for n, s, _ in i.parameters()],
            "unfrozen": [s.path for s in self.unfrozen],
        }  # fmt: skip
        return hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode()).hexdigest()[:16]

    def table(self) -> str:
        """The plan as text: one row per kind and stack, integers, and the totals."""
        rows: dict[tuple[str, str, str, str], list[int]] = {}
        for injection in self.injections:
            site = injection.site
            parts = " + ".join(
                _part_text(name, injection.parts) for name in dict.fromkeys(p.name for p in injection.parts)
            )
            cell = rows.setdefault(("add", site.stack, site.kind, parts), [0, 0])
            cell[0] += 1
            cell[1] += injection.count
        for site in self.unfrozen:
            cell = rows.setdefault(("train", site.stack, site.kind, "the site's own weights"), [0, 0])
            cell[0] += 1
            cell[1] += site.num_parameters
        options = " ".join(f"{k}={v}" for k, v in self.options)
        lines = [f"method {self.method} {options}".rstrip(), f"tasks {', '.join(self.tasks)}", ""]
        lines.append(f"{'action':6} {'stack':8} {'kind':15} {'sites':>5} {'parameters':>12}  what")
        for (action, stack, kind, what), (sites, count) in rows.items():
            lines.append(f"{action:6} {stack:8} {kind:15} {sites:5d} {count:12,d}  {what}")
        percent = 100 * self.num_trainable / self.num_total
        lines += ["", f"trainable {self.num_trainable:,} of {self.num_total:,} ({percent:.4f} %)"]
        lines.append(f"fingerprint {self.fingerprint()}")
        return "\n".join(lines)


def _part_text(name: str, parts: Sequence[Part]) -> str:
    """E.g. `down weight 96x768, bias 96 [shared]`."""
    mine = [p for p in parts if p.name == name]
    shapes = ", ".join(f"{n} {'x'.join(map(str, s))}" for n, s in mine[0].shapes)
    return f"{name} ({shapes}) [{', '.join(p.owner for p in mine)}]"
