"""What a stored feature belongs to: a picture or video as it is on disk now. A replaced file gets another key."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from hashlib import blake2b

from mtvl.data.features.stored import is_stored, stored_file
from mtvl.data.shards import is_member, member_key
from mtvl.errors import DataError

STORED = ""  # key of a path that names stored features: nothing is computed for it


def item_keys(paths: Sequence[str], noun: str = "pictures") -> dict[str, str]:
    """path -> key: absolute path, size and modification time; for a folder of frames those of all its files, for a
    piece of a webdataset shard those of the shard.

    Raises DataError when some are missing.
    """
    keys, lost = {}, []
    for path in paths:
        try:
            keys[path] = _stored_key(path) if is_stored(path) else _key(path)
        except OSError:
            lost.append(path)
    if lost:
        raise DataError(f"{len(lost)} of {len(paths)} {noun} are missing, the first is {lost[0]}; "
                        f"check data.root and the task's folder of {noun}")  # fmt: skip
    return keys


def folder_name(identity: str) -> str:
    """`identity` itself where it is a safe name, else its hash."""
    if re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,63}", identity):
        return identity
    return blake2b(identity.encode(), digest_size=16).hexdigest()


def _stored_key(path: str) -> str:
    if is_member(path):
        member_key(path)
    else:
        os.stat(stored_file(path))
    return STORED


def _key(path: str) -> str:
    if is_member(path):
        return member_key(path)
    stat = os.stat(path)
    if os.path.isdir(path):
        with os.scandir(path) as entries:
            listing = sorted((e.name, e.stat().st_size, e.stat().st_mtime_ns) for e in entries)
        digest = blake2b(repr(listing).encode(), digest_size=16).hexdigest()
        return f"{os.path.abspath(path)}|{len(listing)}|{digest}"
    return f"{os.path.abspath(path)}|{stat.st_size}|{stat.st_mtime_ns}"
