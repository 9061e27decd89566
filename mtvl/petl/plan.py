"""The Plan: what a method adds to a backbone and what it trains, as data that can be printed and compared."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from math import prod

from torch import nn

from mtvl.errors import PlanError
from mtvl.sites import Site

SHARED = "shared"  # name of the one module that serves all tasks
COMMON = "common.adapter"  # where in a backbone the modules stand that several sites use
_NUMBER = re.compile(r"(?<![w\d])\d+")  # of a layer in the name of a common module; a width is written as w768


def is_attribute(name: str) -> bool:
    """True for what a bank of modules by owner (`TaskBank`) has as an attribute of its own: items, type, train, ..."""
    return name in ("current", "by_task", "is_shared", "_active", "_shared") or hasattr(nn.ModuleDict(), name)


def is_taken(name: str) -> bool:
    """True for a name that no task with parts of its own can have."""
    return name == SHARED or is_attribute(name)


def check_owner(name: str) -> None:
    """PlanError when `name` owns parts and cannot: they are kept in modules that have an attribute of that name."""
    if is_attribute(name):
        raise PlanError(
            f"{name!r} cannot name a task with adapters of its own: modules have an attribute of that name; rename the "
            "task, or share its adapters (petl.share=all)"
        )


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


class Holder:
    """What has parts: their number of parameters and their names, `<prefix>.<part>.<owner>.<name>`."""

    parts: tuple[Part, ...]
    prefix: str

    @property
    def count(self) -> int:
        """Number of parameters over all parts and owners."""
        return sum(p.count for p in self.parts)

    def parameters(self) -> list[tuple[str, tuple[int, ...], str]]:
        """(full name, shape, owner) of every parameter."""
        return [
            (f"{self.prefix}.{p.name}.{p.owner}.{name}", shape, p.owner) for p in self.parts for name, shape in p.shapes
        ]


@dataclass(frozen=True)
class Injection(Holder):
    """An adapter at a linear or hook site. Its parameters are named `<site>.adapter.<part>.<owner>.<name>`.

    It may have no parts of its own and use common modules only.
    """

    site: Site
    parts: tuple[Part, ...]

    @property
    def prefix(self) -> str:
        """What the names of all its parameters begin with."""
        return f"{self.site.path}.adapter"


@dataclass(frozen=True)
class Common(Holder):
    """A module that several injections use. Its parameters are named `common.adapter.<name>.<part>.<owner>.<name>`."""

    name: str
    stack: str
    parts: tuple[Part, ...]

    @property
    def prefix(self) -> str:
        """What the names of all its parameters begin with."""
        return f"{COMMON}.{self.name}"


@dataclass(frozen=True)
class Plan:
    """What one method does on one backbone for a set of tasks: injections, modules that they have in common, and what
    is trained of the backbone: whole sites (`unfrozen`) and bias vectors alone (`biases`)."""

    method: str
    options: tuple[tuple[str, object], ...]
    tasks: tuple[str, ...]
    sites: tuple[Site, ...]
    injections: tuple[Injection, ...]
    unfrozen: tuple[Site, ...]
    biases: tuple[Site, ...] = ()
    common: tuple[Common, ...] = ()

    def __post_init__(self) -> None:
        for name in self.tasks:
            if name == SHARED or "." in name or not name:
                raise PlanError(f"{name!r} cannot name a task: it is reserved or contains a dot")
        for owner in {p.owner for holder in self._holders() for p in holder.parts}:
            check_owner(owner)
        for injection in self.injections:
            if not (injection.site.is_linear or injection.site.is_hook):
                raise PlanError(f"{injection.site.path} is a {injection.site.kind} site and cannot hold an adapter")
        whole = {site.path for site in self.unfrozen}
        for site in self.biases:
            if site.path in whole or not site.num_bias:
                raise PlanError(
                    f"{site.path} is trained as a whole, or has no bias, and its bias cannot be added to that"
                )

    @property
    def num_added(self) -> int:
        """Parameters that the method adds."""
        return sum(holder.count for holder in self._holders())

    @property
    def num_trainable(self) -> int:
        """Added plus unfrozen parameters."""
        own = sum(s.num_parameters for s in self.unfrozen) + sum(s.num_bias for s in self.biases)
        return self.num_added + own

    @property
    def num_total(self) -> int:
        """Language model with added tokens, visual embedding and the method's parameters; tied ones once."""
        return sum(s.num_parameters for s in self.sites) + self.num_added

    @property
    def is_task_private(self) -> bool:
        """True when some parameters belong to single tasks."""
        return any(p.owner != SHARED for holder in self._holders() for p in holder.parts)

    def owners(self) -> dict[str, str]:
        """Owner (a task or SHARED) of every added parameter by full name."""
        return {name: owner for name, _, owner in self.added()}

    def added(self) -> list[tuple[str, tuple[int, ...], str]]:
        """(full name, shape, owner) of every added parameter."""
        return [parameter for holder in self._holders() for parameter in holder.parameters()]

    def _holders(self) -> tuple[Holder, ...]:
        return (*self.injections, *self.common)

    def fingerprint(self) -> str:
        """Hash over everything that decides names and shapes of the trained parameters."""
        content = {
            "method": self.method, "options": [list(o) for o in self.options],
            "added": [[n, list(s)] for n, s, _ in self.added()],
            "unfrozen": [s.path for s in self.unfrozen],
        }  # fmt: skip
        if self.biases:
            content["biases"] = [s.path for s in self.biases]
        return hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode()).hexdigest()[:16]

    def table(self) -> str:
        """The plan as text: one row per kind and stack, integers, and the totals."""
        rows: dict[tuple[str, str, str, str], list[int]] = {}

        def count(action: str, stack: str, kind: str, what: str, parameters: int) -> None:
            cell = rows.setdefault((action, stack, kind, what), [0, 0])
            cell[0] += 1
            cell[1] += parameters

        for common in self.common:
            label = _NUMBER.sub("*", common.name)  # modules of single layers that are alike make one row
            count("add", common.stack, "common", f"{label}: {_parts_text(common.parts)}", common.count)
        for injection in self.injections:
            site = injection.site
            count("add", site.stack, site.kind, _parts_text(injection.parts), injection.count)
        for site in self.unfrozen:
            count("train", site.stack, site.kind, "the site's own weights", site.num_parameters)
        for site in self.biases:
            count("train", site.stack, site.kind, "the site's bias", site.num_bias)
        options = " ".join(f"{k}={v}" for k, v in self.options)
        lines = [f"method {self.method} {options}".rstrip(), f"tasks {', '.join(self.tasks)}", ""]
        lines.append(f"{'action':6} {'stack':8} {'kind':15} {'sites':>5} {'parameters':>12}  what")
        for (action, stack, kind, what), (sites, parameters) in rows.items():
            lines.append(f"{action:6} {stack:8} {kind:15} {sites:5d} {parameters:12,d}  {what}")
        percent = 100 * self.num_trainable / self.num_total
        lines += ["", f"trainable {self.num_trainable:,} of {self.num_total:,} ({percent:.4f} %)"]
        lines.append(f"fingerprint {self.fingerprint()}")
        return "\n".join(lines)


def _parts_text(parts: Sequence[Part]) -> str:
    """All parts by name, with the owners of each."""
    return " + ".join(_part_text(name, parts) for name in dict.fromkeys(p.name for p in parts)) or "common modules only"


def _part_text(name: str, parts: Sequence[Part]) -> str:
    """E.g. `down weight 96x768, bias 96 [shared]`."""
    mine = [p for p in parts if p.name == name]
    shapes = ", ".join(f"{n} {'x'.join(map(str, s))}" for n, s in mine[0].shapes)
    return f"{name} ({shapes}) [{', '.join(p.owner for p in mine)}]"
