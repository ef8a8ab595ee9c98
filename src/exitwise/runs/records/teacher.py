"""teacher.json: the run that all exits learned from."""

from __future__ import annotations

from typing import Any, NamedTuple

from exitwise.storage.record import Record


class TeacherRecord(NamedTuple):
    """Which network taught: folder of its run, name of its checkpoint there, SHA-256 of the tensors in that."""

    run: str
    checkpoint: str
    sha256: str


def _decode(content: dict[str, Any], version: int) -> TeacherRecord:
    record = TeacherRecord(content["run"], content["checkpoint"], content["sha256"])
    if not all(isinstance(value, str) for value in record):
        raise ValueError("something else")
    return record


TEACHER: Record[TeacherRecord] = Record(
    "teacher.json",
    "exitwise/teacher",
    TeacherRecord._asdict,
    _decode,
    expected="run, checkpoint and sha256 of a teacher",
)
