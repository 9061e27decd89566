"""Sets that `tools/prepare.py` turns into official files: one module and one line a set.

A reader is called with the folder of the set and returns a `Plan`; it writes nothing.
"""

from __future__ import annotations

from mtvl.registry import Registry

SETS = Registry(
    "set",
    {
        "daquar": "preparing.daquar:read_daquar",
        "coco_mini": "preparing.coco_mini:read_coco_mini",
        "flickr8k": "preparing.flickr8k:read_flickr8k",
        "nlvr1": "preparing.nlvr1:read_nlvr1",
        "msrvtt": "preparing.msrvtt:read_msrvtt",
        "youcook2": "preparing.youcook2:read_youcook2",
    },
)
# Folders of the sets that are called otherwise.
FOLDERS = {"flickr8k": "flickr8k_1k"}
