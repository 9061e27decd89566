"""Frozen visual features: computed once a picture or video, kept in float16, read through memory maps.

`FeatureStore` holds pictures, `FrameStore` videos. Layout on disk: `FOLDER/ENCODER/SHARD.npy` with `SHARD.json` beside
it, where ENCODER is the fingerprint of the tower (with the sampling rate, for videos).
"""

from mtvl.data.features.pixels import PixelFrames, PixelSource
from mtvl.data.features.store import FeatureStore, FrameStore, Store, Usage, rows_of_span

__all__ = ["FeatureStore", "FrameStore", "PixelFrames", "PixelSource", "Store", "Usage", "rows_of_span"]
