"""What is asked of an ONNX file before a library reads it: where its tensors lie, and what it says of itself.

Reads the protocol buffer without onnx. Fields: ModelProto.graph 7, .metadata_props 14, .functions 25;
GraphProto.node 1, .initializer 5, .sparse_initializer 15; FunctionProto.node 7; NodeProto.attribute 5;
AttributeProto.t 5, .g 6, .tensors 10, .graphs 11, .sparse_tensor 22, .sparse_tensors 23; SparseTensorProto.values 1,
.indices 2; TensorProto.external_data 13, .data_location 14; StringStringEntryProto.key 1, .value 2.
"""

from __future__ import annotations

from collections.abc import Iterator

from exitwise.errors import UserError


class BundleError(UserError):
    """A bundle is damaged, altered or of another kind."""


def metadata(model: bytes) -> dict[str, str]:
    """Return what an ONNX model says of itself, by key.

    Raises:
        BundleError: if it is no protocol buffer.
    """
    found = {}
    for number, entry in _fields(model):
        if number == 14:
            parts = {kind: value.decode(errors="replace") for kind, value in _fields(entry)}
            found[parts.get(1, "")] = parts.get(2, "")
    return found


def external_data(model: bytes) -> Iterator[bool]:
    """Return whether each tensor of an ONNX model keeps its data elsewhere.

    Raises:
        BundleError: if it is no protocol buffer.
    """
    for number, value in _fields(model):
        if number == 7:
            yield from _in_graph(value)
        elif number == 25:
            for inner, node in _fields(value):
                if inner == 7:
                    yield from _in_node(node)


def _in_graph(graph: bytes) -> Iterator[bool]:
    for number, value in _fields(graph):
        if number == 1:
            yield from _in_node(value)
        elif number == 5:
            yield _is_external(value)
        elif number == 15:
            yield from _in_sparse(value)


def _in_node(node: bytes) -> Iterator[bool]:
    for number, attribute in _fields(node):
        if number != 5:
            continue
        for kind, value in _fields(attribute):
            if kind in (5, 10):
                yield _is_external(value)
            elif kind in (6, 11):
                yield from _in_graph(value)
            elif kind in (22, 23):
                yield from _in_sparse(value)


def _in_sparse(sparse: bytes) -> Iterator[bool]:
    return (_is_external(value) for number, value in _fields(sparse) if number in (1, 2))


def _is_external(tensor: bytes) -> bool:
    return any(number == 13 or (number == 14 and value != b"\0") for number, value in _fields(tensor))


def _fields(message: bytes) -> Iterator[tuple[int, bytes]]:
    """Return number and content of each field of a protocol buffer message; numbers as their last byte.

    Raises:
        BundleError: if it is none.
    """
    at, end = 0, len(message)
    view = memoryview(message)
    while at < end:
        key, at = _varint(view, at)
        if key >= 2**32:  # of which other readers may drop the upper bits, and see another field
            raise BundleError("an ONNX file is damaged: expected a protocol buffer")
        number, kind = key >> 3, key & 7
        if kind == 0:
            value, at = _varint(view, at)
            yield number, bytes([value & 0x7F])
        elif kind == 2:
            size, at = _varint(view, at)
            if at + size > end:
                raise BundleError("an ONNX file is truncated")
            yield number, bytes(view[at : at + size]) if size < 2**31 else b""
            at += size
        elif kind in (1, 5):
            at += 8 if kind == 1 else 4
        else:
            raise BundleError("an ONNX file is damaged: expected a protocol buffer")


def _varint(view: memoryview, at: int) -> tuple[int, int]:
    value, shift = 0, 0
    while at < len(view) and shift < 64:
        byte = view[at]
        value |= (byte & 0x7F) << shift
        at, shift = at + 1, shift + 7
        if byte < 0x80:
            return value, at
    raise BundleError("an ONNX file is truncated")
