"""What is asked of an ONNX file before a library reads it: where its tensors lie, and what it says of itself; and the
data of tensors that lie elsewhere, put into it.

Reads the protocol buffer without onnx. Fields: ModelProto.graph 7, .metadata_props 14, .functions 25;
GraphProto.node 1, .initializer 5, .sparse_initializer 15; FunctionProto.node 7; NodeProto.attribute 5;
AttributeProto.t 5, .g 6, .tensors 10, .graphs 11, .sparse_tensor 22, .sparse_tensors 23; SparseTensorProto.values 1,
.indices 2; TensorProto.dims 1, .data_type 2, .name 8, .raw_data 9, .external_data 13, .data_location 14;
StringStringEntryProto.key 1, .value 2.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import NamedTuple

from exitwise.errors import UserError


class BundleError(UserError):
    """A bundle is damaged, altered or of another kind."""


class External(NamedTuple):
    """A tensor whose data lies in another file, or that says so.

    Attributes:
        initializer: whether it is one of a graph's, and not an attribute or a sparse tensor.
        inner: whether it is within a branch; those of the main graph alone can be given to who runs it.
        name, type, shape: as TensorProto has them.
        location: the other file.
        offset, length: of the data there, in bytes; -1 where it does not say.
    """

    initializer: bool
    inner: bool
    name: str
    type: int
    shape: tuple[int, ...]
    location: str
    offset: int
    length: int


def metadata(model: bytes) -> dict[str, str]:
    """Return what an ONNX model says of itself, by key.

    Raises:
        BundleError: if it is no protocol buffer.
    """
    return dict(_entry(value) for number, value in _messages(model) if number == 14)


def external_data(model: bytes) -> Iterator[External]:
    """Return the tensors of an ONNX model that keep their data elsewhere.

    Raises:
        BundleError: if it is no protocol buffer.
    """
    for number, value in _messages(model):
        if number == 7:
            yield from _in_graph(value, inner=False)
        elif number == 25:
            for inner, node in _messages(value):
                if inner == 7:
                    yield from _in_node(node)


def with_data(model: bytes, data: Mapping[str, bytes]) -> bytes:
    """Return an ONNX model that holds the data of those initializers within branches which keep it elsewhere.

    Args:
        data: of each, by name, as TensorProto's raw data.

    Raises:
        BundleError: if it is no protocol buffer, or would be larger than one can be.
    """

    def graph(content: bytes, inner: bool) -> bytes:
        return _mapped(content, {1: node, **({5: tensor} if inner else {})})

    def node(content: bytes) -> bytes:
        return _mapped(content, {5: lambda attribute: _mapped(attribute, {6: lambda value: graph(value, inner=True)})})

    def tensor(content: bytes) -> bytes:
        found = next(_external(content), None)
        if found is None:
            return content
        kept = b"".join(field for number, field, _ in _spans(content) if number not in (13, 14))
        return kept + _field(9, data[found.name])

    whole = _mapped(model, {7: lambda value: graph(value, inner=False)})
    if len(whole) >= _LARGEST:
        raise BundleError(
            f"expected an ONNX model of less than 2 GiB with the weights of its branches; got {len(whole)}"
        )
    return whole


_LARGEST = 2**31


def _mapped(message: bytes, change: Mapping[int, Callable[[bytes], bytes]]) -> bytes:
    """Return a message whose fields of some numbers are changed."""
    return b"".join(
        _field(number, change[number](value)) if number in change and isinstance(value, bytes) else field
        for number, field, value in _spans(message)
    )


def _field(number: int, content: bytes) -> bytes:
    """Return a field that has a length."""
    return _encoded(number << 3 | 2) + _encoded(len(content)) + content


def _encoded(number: int) -> bytes:
    found = bytearray()
    while number > 0x7F:
        found.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes([*found, number])


def _in_graph(graph: bytes, inner: bool = True) -> Iterator[External]:
    for number, value in _messages(graph):
        if number == 1:
            yield from _in_node(value)
        elif number == 5:
            yield from _external(value, initializer=True, inner=inner)
        elif number == 15:
            yield from _in_sparse(value)


def _in_node(node: bytes) -> Iterator[External]:
    for number, attribute in _messages(node):
        if number != 5:
            continue
        for kind, value in _messages(attribute):
            if kind in (5, 10):
                yield from _external(value)
            elif kind in (6, 11):
                yield from _in_graph(value)
            elif kind in (22, 23):
                yield from _in_sparse(value)


def _in_sparse(sparse: bytes) -> Iterator[External]:
    for number, value in _messages(sparse):
        if number in (1, 2):
            yield from _external(value)


def _external(tensor: bytes, initializer: bool = False, inner: bool = True) -> Iterator[External]:
    """Return a tensor if it keeps its data elsewhere."""
    shape: list[int] = []
    name, kind, elsewhere = "", 0, False
    said: dict[str, str] = {}
    for number, value in _fields(tensor):
        if number == 13:
            elsewhere = True
            said.update([_entry(value)] if isinstance(value, bytes) else [])
        elif number == 14:
            elsewhere = elsewhere or value != 0
        elif number == 1:
            shape += _numbers(value) if isinstance(value, bytes) else [value]
        elif number == 2 and isinstance(value, int):
            kind = value
        elif number == 8 and isinstance(value, bytes):
            name = value.decode(errors="replace")
    if elsewhere:
        where = (int(text) if (text := said.get(key, "")).isdecimal() else -1 for key in ("offset", "length"))
        yield External(initializer, inner, name, kind, tuple(shape), said.get("location", ""), *where)


def _entry(message: bytes) -> tuple[str, str]:
    """Return key and value."""
    parts = {number: value.decode(errors="replace") for number, value in _messages(message)}
    return parts.get(1, ""), parts.get(2, "")


def _numbers(packed: bytes) -> Iterator[int]:
    view, at = memoryview(packed), 0
    while at < len(view):
        number, at = _varint(view, at)
        yield number


def _messages(message: bytes) -> Iterator[tuple[int, bytes]]:
    """Return number and content of each field that has a length."""
    return ((number, value) for number, value in _fields(message) if isinstance(value, bytes))


def _fields(message: bytes) -> Iterator[tuple[int, bytes | int]]:
    """Return number and content of each field of a protocol buffer message, those of fixed size left out.

    Raises:
        BundleError: if it is none.
    """
    return ((number, value) for number, _, value in _spans(message) if value is not None)


def _spans(message: bytes) -> Iterator[tuple[int, bytes, bytes | int | None]]:
    """Return number, whole and content of each field of a protocol buffer message; None: of those of fixed size."""
    at, end = 0, len(message)
    view = memoryview(message)
    while at < end:
        start = at
        key, at = _varint(view, at)
        if key >= 2**32:  # of which other readers may drop the upper bits, and see another field
            raise BundleError("an ONNX file is damaged: expected a protocol buffer")
        number, kind = key >> 3, key & 7
        value: bytes | int | None = None
        if kind == 0:
            value, at = _varint(view, at)
        elif kind == 2:
            size, at = _varint(view, at)
            if at + size > end:
                raise BundleError("an ONNX file is truncated")
            value = bytes(view[at : at + size]) if size < _LARGEST else b""
            at += size
        elif kind in (1, 5):
            at += 8 if kind == 1 else 4
        else:
            raise BundleError("an ONNX file is damaged: expected a protocol buffer")
        yield number, bytes(view[start:at]), value


def _varint(view: memoryview, at: int) -> tuple[int, int]:
    value, shift = 0, 0
    while at < len(view) and shift < 64:
        byte = view[at]
        value |= (byte & 0x7F) << shift
        at, shift = at + 1, shift + 7
        if byte < 0x80:
            return value, at
    raise BundleError("an ONNX file is truncated")
