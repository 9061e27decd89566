"""Parity with published implementations: one checker file per family of recorded cases, one line here."""

from __future__ import annotations

from mtvl.registry import Registry

# A checker is `check(case: Case, report: Report) -> None`; it raises NotYet for what the project cannot run yet.
FAMILIES = Registry("family of parity cases", {
    "blip": "parity.blip:check", "uniadapter": "parity.uniadapter:check", "unitrans": "parity.unitrans:check",
    "vl_adapter": "parity.vl_adapter:check",
})  # fmt: skip

# Families and kinds that are recorded but have no checker yet: skipped, unlike what nobody knows.
PLANNED = {
    "cm_adapter": ("adapter_unit", "counts", "model"),
}  # fmt: skip
