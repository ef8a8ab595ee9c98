"""A bundle that someone changed on purpose, made valid again: every digest in it computed anew.

Needs onnx. Whose bundle it is decides what is true: seal only what you changed yourself.
"""

from __future__ import annotations

import shutil
from pathlib import Path

from exitwise.catalogue.extras import needing_extras
from exitwise.deploy.bundle import SINGLE, is_bundle, read_bundle, seal, sha256_of, stage_file, write_sealed
from exitwise.deploy.calibration import CALIBRATION
from exitwise.deploy.manifest import MANIFEST, read_json_object, read_manifest
from exitwise.errors import UserError
from exitwise.storage.files import write_json
from exitwise.storage.protobuf import BundleError


def seal_bundle(folder: Path) -> int:
    """Write every digest of a bundle of version 2 anew, where it lies, and return the number of its files.

    Raises:
        UserError: if onnx is missing, there is no bundle of version 2, or what is there is still none when it is sealed
            (:class:`BundleError`); nothing is changed then.
    """
    if not is_bundle(folder):
        raise UserError(f"expected a bundle with {MANIFEST} at {folder}; found none")
    with needing_extras("sealing a bundle"):
        import onnx
    temporary = folder.with_name(f".{folder.name}.sealed")
    try:
        shutil.copytree(folder, temporary)
        manifest = read_manifest(temporary / MANIFEST, temporary / MANIFEST)
        if manifest.version == 1:
            raise UserError(f"expected a bundle of version 2 at {folder}; got version 1: export it again")
        content = manifest.content
        calibration = CALIBRATION.parse(
            read_json_object(temporary / CALIBRATION.file, "a calibration"), temporary / CALIBRATION.file
        )
        others = [*content["data"], *([content["tokenizer"]] if content.get("tokenizer") else [])]
        for entry in others:  # the tokenizer's is part of what the graphs are sealed with
            entry["sha256"] = sha256_of(temporary / str(entry["file"]))
        parts = {stage_file(k): entry for k, entry in enumerate(content["stages"])}
        parts |= {SINGLE: content["single"]} if content["single"] else {}
        for part, entry in parts.items():
            path = temporary / str(entry["file"])
            graph = onnx.load(path, load_external_data=False)
            onnx.helper.set_model_props(graph, seal(content, part))
            onnx.save(graph, path)
            entry["inputs"] = [each.name for each in graph.graph.input]
            entry["outputs"] = [each.name for each in graph.graph.output]
        for entry in parts.values():
            entry["sha256"] = sha256_of(temporary / str(entry["file"]))
        write_json(temporary / MANIFEST, content)
        write_sealed(temporary, content, calibration)
        read_bundle(temporary)
        for name in [MANIFEST, CALIBRATION.file, *(entry["file"] for entry in parts.values())]:
            shutil.move(temporary / name, folder / name)
    except (OSError, KeyError, TypeError) as error:
        raise BundleError(f"expected a bundle to seal at {folder}; {error}") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return 2 + len(parts) + len(others)
