"""What a bundle must be before any of it is run: a folder with a manifest, the files that it names, and a calibration.

Knows neither torch nor onnxruntime.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from exitwise.deploy.calibration import CALIBRATION, Calibration
from exitwise.deploy.manifest import MANIFEST, Manifest, read_json_object, read_manifest
from exitwise.deploy.monitor import Reference
from exitwise.errors import UserError
from exitwise.exiting.measures import Measure, measure_from_json
from exitwise.exiting.policy import ExitPolicy
from exitwise.storage.files import write_json
from exitwise.storage.protobuf import BundleError, External, external_data, metadata, with_data

SINGLE = "single.onnx"
_FILES, _SEAL, _OF = ("stages", "single", "data"), "exitwise.manifest", "manifest"

STORED = {1: "f4", 2: "u1", 3: "i1", 4: "u2", 5: "i2", 6: "i4", 7: "i8", 9: "?", 10: "f2", 11: "f8", 12: "u4", 13: "u8"}
"""Types of tensors that a data file may hold: as TensorProto counts them, and as NumPy calls them."""


class Weight(NamedTuple):
    """A tensor in a data file: as an array mapped from it, and its type, as TensorProto counts types."""

    array: npt.NDArray[Any]
    type: int


class Graph(NamedTuple):
    """An ONNX file of a bundle: its name and content, inputs and outputs in order (None: not said), and weights by
    name: of the main graph, and of the branches within it."""

    file: str
    content: bytes
    inputs: list[str] | None
    outputs: list[str] | None
    weights: dict[str, Weight]
    inner: dict[str, Weight]

    @property
    def to_run(self) -> bytes:
        """The model with the weights of its branches in it: those of the main graph alone can be handed over."""
        data = {name: each.array.tobytes() for name, each in self.inner.items()}
        return with_data(self.content, data) if data else self.content


class Bundle(NamedTuple):
    """A bundle that is what it says.

    Attributes:
        manifest: of either version.
        stages: a graph each.
        single: the graph for single images, if there is one.
        read_by: the measure that is within the single graph; None: it has its thresholds within, too.
        calibration: thresholds and what belongs to them.
        tokenizer: content of the tokenizer's file, if the bundle takes texts.
    """

    manifest: Manifest
    stages: list[Graph]
    single: Graph | None
    read_by: Measure | None
    calibration: Calibration
    tokenizer: bytes | None = None


def seal(manifest: dict[str, Any], file: str) -> dict[str, str]:
    """Return what an ONNX file says of itself: its part, and the SHA-256 of all in its manifest but the lists of
    files."""
    said = {key: value for key, value in manifest.items() if key not in _FILES}
    return {"exitwise.file": file, _SEAL: _digest_of(said)}


def _digest_of(content: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def sha256_of(path: Path) -> str:
    """Return the SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def stage_file(stage: int) -> str:
    """Return the file of a stage (0-based)."""
    return f"stage_{stage}.onnx"


def is_bundle(path: str | Path) -> bool:
    """Return whether a folder holds a manifest."""
    return (Path(path) / MANIFEST).is_file()


def _is_export(path: Path) -> bool:
    """Return whether a folder holds an export of any format, and nothing that does not belong to it."""
    try:
        manifest = json.loads((path / MANIFEST).read_text(encoding="utf-8"))
        entries = [*manifest["stages"], *([manifest["single"]] if manifest.get("single") else [])]
        entries += [*manifest.get("data", []), *([manifest["tokenizer"]] if manifest.get("tokenizer") else [])]
        names = {MANIFEST, CALIBRATION.file, *(entry["file"] for entry in entries)}
        return str(manifest["format"]).startswith("exitwise-") and {each.name for each in path.iterdir()} <= names
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return False


def check_out(folder: Path, overwrite: bool) -> None:
    """Raise UserError if something is at ``folder``, unless it is an export that may be replaced."""
    if not (folder.exists() or folder.is_symlink()):
        return
    if not overwrite:
        raise UserError(f"expected nothing at {folder}; something is there (--overwrite replaces an export)")
    if folder.is_symlink() or not _is_export(folder):
        raise UserError(f"expected an export to replace, or nothing, at {folder}; something else is there")


def read_bundle(folder: Path) -> Bundle:
    """Return a bundle, its graphs read and its data files mapped.

    Raises:
        BundleError: if the manifest is missing or of another kind, a file is not what it says, was exported with
            another manifest, or keeps data where the manifest names none.
    """
    path = folder / MANIFEST
    file = _plain_file(folder, MANIFEST)
    if file is None:
        found = "a link" if path.is_symlink() else "none"
        raise BundleError(f"expected an exported bundle with {MANIFEST} at {folder}; found {found}")
    manifest = read_manifest(path, file)
    content = manifest.content
    data = {entry.get("file"): _mapped(folder, entry) for entry in content.get("data", [])}
    stages = [_graph(folder, content, stage_file(k), entry, data) for k, entry in enumerate(content["stages"])]
    single = content["single"] and _graph(folder, content, SINGLE, content["single"], data)
    if manifest.version == 1:
        return Bundle(manifest, stages, single, None, _calibration_v1(content, path))
    calibration = read_sealed(folder, manifest)
    try:
        read_by = measure_from_json(content["single"]) if single else None
    except (KeyError, TypeError, ValueError) as error:
        raise BundleError(f"expected the measure of {SINGLE} in {path}; {error}") from error
    return Bundle(manifest, stages, single, read_by, calibration, _tokenizer(folder, content.get("tokenizer")))


def _tokenizer(folder: Path, entry: dict[str, Any] | None) -> bytes | None:
    if entry is None:
        return None
    content = _named(folder, entry).read_bytes()
    _check_digest(content, folder, entry)
    return content


def _calibration_v1(content: dict[str, Any], path: Path) -> Calibration:
    """Return the thresholds; the measure is within the graphs."""
    calibration = Calibration.of(ExitPolicy(content["thresholds"]), content["exit_macs"])
    try:
        reference = content.get("reference")
        return replace(calibration, reference=None if reference is None else Reference.from_dict(reference))
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
        raise BundleError(f"expected images, shares, edges and bins in the reference of {path}; {error!r}") from error


def write_sealed(folder: Path, manifest: dict[str, Any], calibration: Calibration) -> None:
    """Write the calibration of a bundle, sealed with its manifest."""
    said = {**CALIBRATION.to_json(calibration), _OF: _digest_of(manifest)}
    write_json(folder / CALIBRATION.file, {**said, "sha256": _digest_of(json.loads(json.dumps(said)))})


def read_sealed(folder: Path, manifest: Manifest) -> Calibration:
    """Return the calibration of a bundle.

    Raises:
        BundleError: if it is missing, damaged, altered, or of another bundle.
    """
    path = folder / CALIBRATION.file
    file = _plain_file(folder, CALIBRATION.file)
    if file is None:
        raise BundleError(f"expected {CALIBRATION.file} in {folder}; found {'a link' if path.is_symlink() else 'none'}")
    content = read_json_object(file, "a calibration")
    if content.pop("sha256", None) != _digest_of(content):
        raise BundleError(f"{path} is not what was written: it disagrees with its own SHA-256")
    if content.pop(_OF, None) != _digest_of(manifest.content):
        raise BundleError(f"{path} disagrees with the manifest: it was made for another bundle, or one of them changed")
    try:
        calibration = CALIBRATION.parse(content, path)
    except UserError as error:
        raise BundleError(str(error)) from error
    costs, table = manifest.content["exit_macs"], calibration.table
    rules = {
        f"{manifest.exits - 1} thresholds": calibration.policy.exits == manifest.exits,
        "the manifest's exit_macs": list(calibration.exit_macs) == costs,
        f"{manifest.exits - 1} thresholds in its table": all(len(t.thresholds) == manifest.exits - 1 for t in table),
        "budgets that rise": [t.budget for t in table] == sorted(t.budget for t in table),
    }
    wrong = [expected for expected, holds in rules.items() if not holds]
    if wrong:
        raise BundleError(f"expected {wrong[0]} in {path}; got something else")
    return calibration


def _graph(
    folder: Path, manifest: dict[str, Any], part: str, entry: dict[str, Any], data: dict[str, npt.NDArray[np.uint8]]
) -> Graph:
    """Return an ONNX file of a bundle, if it was exported as this part, with this manifest."""
    content = _named(folder, entry).read_bytes()
    _check_digest(content, folder, entry)
    file = entry["file"]
    weights: dict[bool, dict[str, Weight]] = {False: {}, True: {}}
    for tensor in external_data(content):
        if tensor.location not in data or not tensor.initializer:
            raise BundleError(f"{folder / file} keeps data in other files; expected all in it and the manifest's data")
        weights[tensor.inner][tensor.name] = _weight(data[tensor.location], tensor, folder / file)
    if seal(manifest, part).items() - metadata(content).items():
        raise BundleError(f"{file} disagrees with the manifest: it was not exported with {folder / MANIFEST} as {part}")
    return Graph(file, content, entry.get("inputs"), entry.get("outputs"), weights[False], weights[True])


def _weight(data: npt.NDArray[np.uint8], tensor: External, path: Path) -> Weight:
    kind = STORED.get(tensor.type)
    if kind is not None:
        size = np.dtype(kind).itemsize
        length = size * int(np.prod(tensor.shape, dtype=object))
        end = tensor.offset + length
        if tensor.offset >= 0 and tensor.offset % size == 0 and tensor.length == length and end <= len(data):
            return Weight(data[tensor.offset : end].view(kind).reshape(tensor.shape), tensor.type)
    raise BundleError(f"{path} says that {tensor.name!r} lies in {tensor.location}, where there is no such tensor")


def _mapped(folder: Path, entry: dict[str, Any]) -> npt.NDArray[np.uint8]:
    """Return a data file as bytes in memory, read as they are needed."""
    file = _named(folder, entry)
    content = np.memmap(file, np.uint8, "r") if file.stat().st_size else np.zeros(0, np.uint8)
    _check_digest(content, folder, entry)
    return content


def _named(folder: Path, entry: dict[str, Any]) -> Path:
    """Return where a file that the manifest names lies, if it is a plain file there."""
    name = entry.get("file")
    if not isinstance(name, str) or Path(name).name != name or "\\" in name or name in ("", ".", ".."):
        raise BundleError(f"expected the name of a file in {folder}; the manifest has {name!r}")
    file = _plain_file(folder, name)
    if file is None:
        found = "a link" if (folder / name).is_symlink() else "none"
        raise BundleError(f"expected a file {name} in {folder}; found {found}")
    return file


def _check_digest(content: Any, folder: Path, entry: dict[str, Any]) -> None:
    if hashlib.sha256(content).hexdigest() != entry.get("sha256"):
        raise BundleError(f"{folder / entry['file']} is not what the manifest says: its SHA-256 differs")


def _plain_file(folder: Path, name: str) -> Path | None:
    """Return where a file of a bundle lies; None if there is none.

    A link is followed within the bundle, and into the store of a hub's cache (``blobs`` beside the ``snapshots`` that
    the bundle lies in); one that leads elsewhere is none.
    """
    path = folder / name
    try:
        file = path.resolve(strict=True)
    except (OSError, RuntimeError):  # a link to nothing, or to itself
        return None
    if path.is_symlink():
        home = folder.resolve()
        stores = [home, *(each.parent / "blobs" for each in home.parents if each.name == "snapshots")]
        if not any(file.is_relative_to(store.resolve()) for store in stores):
            return None
    return file if file.is_file() else None
