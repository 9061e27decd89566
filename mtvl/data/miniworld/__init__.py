"""The embedded data: small synthetic pictures with the four benchmarks in their official file formats."""

from mtvl.data.miniworld.write import ensure_miniworld

__all__ = ["ensure_miniworld"]
