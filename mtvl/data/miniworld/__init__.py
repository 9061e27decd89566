"""The embedded data: small synthetic pictures and videos with eight benchmarks in their official file formats."""

from mtvl.data.miniworld.write import ensure_miniworld

__all__ = ["ensure_miniworld"]
