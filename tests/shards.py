"""Shards for tests, as WebDataset writes them."""

import io
import json
import tarfile
from pathlib import Path


def add(tar, name, content):
    member = tarfile.TarInfo(name)
    member.size = len(content)
    tar.addfile(member, io.BytesIO(content))


def make_shard(path: Path, samples) -> Path:
    """A tar of (name, content of an image, label): a label that is a mapping goes into a JSON file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for name, content, label in samples:
            add(tar, name, content)
            is_text = isinstance(label, (str, int))
            key, text = name.split(".")[0], str(label) if is_text else json.dumps(label)
            add(tar, f"{key}.{'cls' if is_text else 'json'}", text.encode())
    return path


def shards_of_folder(folder: Path, out: Path, most: int) -> Path:
    """The images of a folder per class as shards of at most so many, classes in turn."""
    classes = sorted(each.name for each in folder.iterdir())
    files = sorted(folder.glob("*/*"), key=lambda path: (path.name, path.parent.name))
    samples = [
        (f"{path.parent.name}_{path.name}", path.read_bytes(), classes.index(path.parent.name)) for path in files
    ]
    for number in range(0, len(samples), most):
        make_shard(out / f"all-{number // most:04d}.tar", samples[number : number + most])
    return out
