"""The weights inside an ONNX file, without the packages `onnx` and `onnxruntime`.

An ONNX file is a protobuf message, of which weights and their names need four message types and eleven fields. The package
`onnx` would read them too, and bring protobuf and a table of operators in place of a hundred lines; `onnxruntime` runs graphs
and does not give weights.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from mtvl.errors import CheckpointError

# Numbers of fields, from onnx.proto.
_MODEL_GRAPH, _GRAPH_NODE, _GRAPH_INITIALIZER = 7, 1, 5
_INPUT, _OUTPUT, _OPERATOR = 1, 2, 4
_DIMS, _TYPE, _FLOATS, _NAME, _RAW, _EXTERNAL = 1, 2, 4, 8, 9, 13
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
_DTYPES = {1: np.float32, 6: np.int32, 7: np.int64, 9: np.bool_, 10: np.float16, 11: np.float64}
_FLOAT32 = 1

Field = tuple[int, "int | memoryview"]


class Node(NamedTuple):
    """One operation of a graph, with the names of what goes in and comes out."""

    operator: str
    inputs: list[str]
    outputs: list[str]


def read_weights(file: Path) -> dict[str, torch.Tensor]:
    """All weights of an ONNX model as copies, by name; CheckpointError for what is no such file, or a part of one.

    Exporters turn the weights of linear maps round and name them by numbers ("onnx::MatMul_1966"). The graph says what they
    are: a product whose result a bias NAME.bias is added to is given back as NAME.weight, turned as torch has it.
    """
    try:
        found, nodes = _graph(memoryview(file.read_bytes()))
    except (OSError, ValueError, IndexError, UnicodeDecodeError) as error:
        raise CheckpointError(
            f"{file}: expected an ONNX model with its weights inside, found something else or a part of one "
            f"({type(error).__name__}: {error}); install its package again"
        ) from None
    if not found:
        raise CheckpointError(f"{file}: expected an ONNX model with its weights inside, found no weights")
    return _named(found, nodes)


def _named(found: dict[str, torch.Tensor], nodes: list[Node]) -> dict[str, torch.Tensor]:
    """The weights with those of linear maps under the names of their biases."""
    added = {name: node for node in nodes if node.operator == "Add" for name in node.inputs}
    result = dict(found)
    for node in nodes:
        if node.operator != "MatMul" or node.inputs[-1] not in found or node.outputs[0] not in added:
            continue
        biases = [n for n in added[node.outputs[0]].inputs if n in found and n.endswith(".bias")]
        if biases:
            result.pop(node.inputs[-1], None)
            result[biases[0].removesuffix("bias") + "weight"] = found[node.inputs[-1]].T.contiguous()
    return result


def _varint(view: memoryview, place: int) -> tuple[int, int]:
    """A number of seven bits a byte, the lowest first, and the place behind it."""
    value = shift = 0
    while True:
        byte = view[place]
        place += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, place
        shift += 7
        if shift > 63:
            raise ValueError("a number of more than ten bytes")


def _fields(view: memoryview) -> Iterator[Field]:
    """Number and value of each field of a message, in order."""
    place = 0
    while place < len(view):
        key, place = _varint(view, place)
        wire = key & 7
        if wire == _VARINT:
            value, place = _varint(view, place)
            yield key >> 3, value
            continue
        if wire == _BYTES:
            size, place = _varint(view, place)
        elif wire in (_FIXED64, _FIXED32):
            size = 8 if wire == _FIXED64 else 4
        else:
            raise ValueError(f"wire type {wire}")
        if place + size > len(view):
            raise ValueError(f"a field of {size} bytes where {len(view) - place} are left")
        yield key >> 3, view[place : place + size]
        place += size


def _graph(view: memoryview) -> tuple[dict[str, torch.Tensor], list[Node]]:
    """Weights and operations of a model."""
    tensors: dict[str, torch.Tensor] = {}
    nodes = []
    for graph in _messages(view, _MODEL_GRAPH):
        tensors.update(_tensor(raw) for raw in _messages(graph, _GRAPH_INITIALIZER))
        for raw in _messages(graph, _GRAPH_NODE):
            inputs, outputs, operator = (_texts(raw, number) for number in (_INPUT, _OUTPUT, _OPERATOR))
            nodes.append(Node("".join(operator), inputs, outputs))
    return tensors, nodes


def _texts(view: memoryview, number: int) -> list[str]:
    return [bytes(value).decode() for value in _messages(view, number)]


def _messages(view: memoryview, number: int) -> Iterator[memoryview]:
    return (value for field, value in _fields(view) if field == number and isinstance(value, memoryview))


def _tensor(view: memoryview) -> tuple[str, torch.Tensor]:
    """Name and copy of one TensorProto."""
    name, kind, dims = "", 0, []
    raw: bytes | None = None
    for number, value in _fields(view):
        if number == _DIMS:
            dims += [value] if isinstance(value, int) else list(_packed(value))
        elif number == _TYPE and isinstance(value, int):
            kind = value
        elif number == _NAME and isinstance(value, memoryview):
            name = bytes(value).decode()
        elif number in (_RAW, _FLOATS) and isinstance(value, memoryview):
            raw = (raw or b"") + bytes(value)
            if number == _FLOATS and kind not in (0, _FLOAT32):
                raise ValueError(f"{name}: numbers of type {kind} among floats")
        elif number == _EXTERNAL:
            raise ValueError("its weights stand in another file")
    if kind not in _DTYPES:
        raise ValueError(f"{name}: numbers of type {kind}")
    values = np.frombuffer(bytearray(raw or b""), dtype=np.dtype(_DTYPES[kind]).newbyteorder("<"))
    if len(values) != math.prod(dims):
        raise ValueError(f"{name}: {len(values)} numbers for a tensor of {dims}")
    return name, torch.from_numpy(values.reshape(dims))


def _packed(view: memoryview) -> Iterator[int]:
    place = 0
    while place < len(view):
        value, place = _varint(view, place)
        yield value
