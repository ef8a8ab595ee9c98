"""The weights of ONNX graphs in data files beside them, each stored once.

A graph's tensors become references before the graph is ever serialized, so that its size has no limit.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from exitwise.deploy.bundle import STORED

LEAST_BYTES = 1024
"""Of a tensor that leaves its graph; what is smaller may be a shape that a reader wants to see."""

ALIGNED = 64
"""Bytes that a tensor's place is a multiple of."""


class _Place(NamedTuple):
    file: str
    offset: int
    length: int


class WeightFiles:
    """Data files in a folder, for graphs one after the other: a tensor that is in one already is not written again."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.files: list[Path] = []
        self._places: dict[tuple[int, bytes], _Place] = {}

    def move_out(self, model: Any, file: str) -> Any:
        """Return an ``onnx_ir`` model as onnx's ModelProto, whose large weights lie in ``file`` or one before."""
        import onnx_ir as ir

        path = self.folder / file
        with path.open("wb") as out:
            for value in model.graph.initializers.values():
                tensor = value.const_value
                if tensor is None or int(tensor.dtype) not in STORED or tensor.nbytes < LEAST_BYTES:
                    continue
                place = self._place(tensor, out, file)
                value.const_value = ir.ExternalTensor(
                    place.file, place.offset, place.length, tensor.dtype, shape=tensor.shape, name=tensor.name
                )
        if path.stat().st_size:
            self.files.append(path)
        else:
            path.unlink()
        return ir.to_proto(model)

    def _place(self, tensor: Any, out: BinaryIO, file: str) -> _Place:
        content = tensor.tobytes()
        key = int(tensor.dtype), hashlib.sha256(content).digest()
        if key not in self._places:
            out.write(bytes(-out.tell() % ALIGNED))
            self._places[key] = _Place(file, out.tell(), len(content))
            out.write(content)
        return self._places[key]
