"""What a bundle must be before any of it is run: a folder with a manifest, and the ONNX files that it names.

Knows neither torch nor onnxruntime.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from exitwise.budgets import MOST
from exitwise.deploy.monitor import Reference
from exitwise.errors import UserError
from exitwise.storage.protobuf import BundleError, external_data, metadata

MANIFEST, SINGLE, VERSION = "manifest.json", "single.onnx", 1
_KEYS = {
    "classes",
    "exit_macs",
    "input_shape",
    "num_classes",
    "preprocessing",
    "single",
    "stages",
    "thresholds",
}
_INTERPOLATIONS = ("bilinear", "bicubic", "nearest")

LARGEST = 8192
"""Side of an image that a bundle may ask for."""


_FILES, _SEAL = ("stages", "single"), "exitwise.manifest"


def seal(manifest: dict[str, Any], file: str) -> dict[str, str]:
    """Return what an ONNX file says of itself: its part, and the SHA-256 of all in its manifest but the list of
    files."""
    said = {key: value for key, value in manifest.items() if key not in _FILES}
    return {"exitwise.file": file, _SEAL: hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()}


def stage_file(stage: int) -> str:
    """Return the file of a stage (0-based)."""
    return f"stage_{stage}.onnx"


def is_bundle(path: str | Path) -> bool:
    """Return whether a folder holds a manifest."""
    return (Path(path) / MANIFEST).is_file()


def _is_export(path: Path) -> bool:
    """Return whether a folder holds an export of any format, and nothing that does not belong to it."""
    try:
        manifest = json.loads((path / MANIFEST).read_text())
        entries = [*manifest["stages"], *([manifest["single"]] if "single" in manifest else [])]
        names = {MANIFEST, *(entry["file"] for entry in entries)}
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


def read_bundle(folder: Path) -> tuple[dict[str, Any], dict[str, bytes]]:
    """Return the manifest of a bundle, and the content of each file that it names.

    The manifest's ``reference`` is a :class:`~exitwise.deploy.monitor.Reference` or None.

    Raises:
        BundleError: if the manifest is missing or of another kind, a file is not what it says, or was exported with
            another manifest.
    """
    path = folder / MANIFEST
    manifest = _read_manifest(path)
    entries = {stage_file(k): entry for k, entry in enumerate(manifest["stages"])} | {SINGLE: manifest["single"]}
    contents = {entry.get("file"): _checked(folder, entry) for entry in entries.values()}
    for part, entry in entries.items():
        if seal(manifest, part).items() - metadata(contents[entry["file"]]).items():
            raise BundleError(f"{entry['file']} disagrees with the manifest: it was not exported with {path} as {part}")
    try:
        reference = manifest.get("reference")
        manifest["reference"] = None if reference is None else Reference.from_dict(reference)
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
        raise BundleError(f"expected images, shares, edges and bins in the reference of {path}; {error!r}") from error
    return manifest, contents


def _read_manifest(path: Path) -> dict[str, Any]:
    folder = path.parent
    if path.is_symlink() or not path.is_file():
        found = "a link" if path.is_symlink() else "none"
        raise BundleError(f"expected an exported bundle with {MANIFEST} at {folder}; found {found}")
    try:
        manifest = json.loads(path.read_text())
    except (OSError, ValueError, RecursionError) as error:
        raise BundleError(f"expected JSON at {path}; {error}") from error
    if not isinstance(manifest, dict) or manifest.get("format") != "exitwise-onnx":
        raise BundleError(f"expected a manifest of format exitwise-onnx at {path}; got another")
    if manifest.get("version") != VERSION:
        raise BundleError(f"expected a bundle of version {VERSION} at {folder}; got {manifest.get('version')}")
    missing = sorted(_KEYS - set(manifest))
    if missing:
        raise BundleError(f"expected {missing[0]} in {path}; it is missing")
    entries = [*manifest["stages"], manifest["single"]] if isinstance(manifest["stages"], list) else []
    if len(entries) < 2 or not all(isinstance(entry, dict) for entry in entries):
        raise BundleError(f"expected a file for each stage and a single one in {path}; got something else")
    exits = len(manifest["stages"])
    lengths = {"thresholds": exits - 1, "exit_macs": exits}
    for key, length in lengths.items():
        if not isinstance(manifest[key], list) or len(manifest[key]) != length:
            raise BundleError(f"expected {length} {key} for {exits} stages in {path}; got {manifest[key]!r}")
    if not isinstance(manifest["classes"], list) or len(manifest["classes"]) != manifest["num_classes"]:
        raise BundleError(f"expected {manifest['num_classes']} classes in {path}; got {manifest['classes']!r}")
    _check_values(manifest, path)
    return manifest


def _check_values(manifest: dict[str, Any], path: Path) -> None:
    """Raise BundleError unless every value is of its kind and within its range."""
    shape, wish = manifest["input_shape"], manifest["preprocessing"]
    if not isinstance(wish, dict) or not isinstance(shape, list):
        raise BundleError(f"expected an input_shape and its preprocessing in {path}; got {shape!r} and {wish!r}")
    costs, size, channels = manifest["exit_macs"], wish.get("image_size"), next(iter(shape), None)
    numbers = {key: wish.get(key) for key in ("mean", "std")}
    rules = {
        "thresholds as numbers or null": all(t is None or _is_number(t) for t in manifest["thresholds"]),
        "different names of classes": len({name for name in manifest["classes"] if isinstance(name, str)})
        == len(manifest["classes"]),
        "exit_macs that rise": all(map(_is_number, costs)) and costs[0] >= 0 and costs == sorted(costs),
        "an input_shape of 1 or 3 channels and image_size": len(shape) == 3
        and channels in (1, 3)
        and shape[1:] == [size, size]
        and isinstance(size, int)
        and 0 < size <= LARGEST,
        "a shorter_side from image_size up": isinstance(wish.get("shorter_side"), int)
        and isinstance(size, int)
        and size <= wish["shorter_side"] <= 4 * LARGEST,
        "an interpolation bilinear, bicubic or nearest": wish.get("interpolation") in _INTERPOLATIONS,
        **{
            f"{key} as a number per channel": isinstance(values, list)
            and len(values) == channels
            and all(map(_is_number, values))
            and (key == "mean" or 0 not in values)
            for key, values in numbers.items()
        },
    }
    wrong = [expected for expected, holds in rules.items() if not holds]
    if wrong:
        raise BundleError(f"expected {wrong[0]} in {path}; got something else")


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) <= MOST


def _checked(folder: Path, entry: dict[str, Any]) -> bytes:
    """Return the content of a file that the manifest names, if it is a plain file there and what the manifest says."""
    name = entry.get("file")
    if not isinstance(name, str) or Path(name).name != name or "\\" in name or name in ("", ".", ".."):
        raise BundleError(f"expected the name of a file in {folder}; the manifest has {name!r}")
    path = folder / name
    if path.is_symlink() or not path.is_file():
        raise BundleError(f"expected a file {name} in {folder}; found {'a link' if path.is_symlink() else 'none'}")
    content = path.read_bytes()
    if hashlib.sha256(content).hexdigest() != entry.get("sha256"):
        raise BundleError(f"{path} is not what the manifest says: its SHA-256 differs")
    if any(external_data(content)):
        raise BundleError(f"{path} keeps data in other files; expected all in one")
    return content
