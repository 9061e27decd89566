"""Readers of the benchmarks' official files: one module a format, plain rows out.

A reader is a class with `roles` (role -> is it required) whose first entry is the file that holds the rows, and
`read(files, root)` that maps role -> files to rows. `files` hold absolute paths below `root`.
"""

from __future__ import annotations

from mtvl.registry import Registry

FORMATS = Registry(
    "data format",
    {
        "vqa_official": "mtvl.data.formats.vqa_official:VQAOfficial",
        "vqa_karpathy": "mtvl.data.formats.vqa_karpathy:VQAKarpathy",
        "gqa_official": "mtvl.data.formats.gqa_official:GQAOfficial",
        "gqa_vl_adapter": "mtvl.data.formats.gqa_vl_adapter:GQAVLAdapter",
        "nlvr2_official": "mtvl.data.formats.nlvr2_official:NLVR2Official",
        "nlvr2_vl_adapter": "mtvl.data.formats.nlvr2_vl_adapter:NLVR2VLAdapter",
        "snli_ve": "mtvl.data.formats.snli_ve:SNLIVE",
        "coco_karpathy": "mtvl.data.formats.coco_karpathy:COCOKarpathy",
        "coco_captions": "mtvl.data.formats.coco_captions:COCOCaptions",
        "vg_regions": "mtvl.data.formats.vg_regions:VGRegions",
        "value_qa": "mtvl.data.formats.value_qa:ValueQA",
        "value_captions": "mtvl.data.formats.value_captions:ValueCaptions",
        "msrvtt_qa": "mtvl.data.formats.msrvtt_qa:MSRVTTQA",
        "blip_captions": "mtvl.data.formats.paired_captions:PairedCaptions",
        "video_captions": "mtvl.data.formats.paired_captions:VideoCaptions",
        "blip_vqa": "mtvl.data.formats.blip_vqa:BlipVQA",
        "own_table": "mtvl.data.formats.own_table:OwnTable",
    },
)
