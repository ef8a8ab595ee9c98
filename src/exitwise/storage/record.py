"""One kind of JSON file: it states its schema and version, and files of old versions stay readable."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, Generic, TypeVar

from exitwise.errors import UserError
from exitwise.storage.files import read_json, write_json

T = TypeVar("T")
_KEYS = ("schema", "version")


class Record(Generic[T]):
    """A kind of record.

    Args:
        file: its name in the run folder.
        schema: what it is, such as ``exitwise/calibration``.
        version: the one that is written. A file without a version is of version 1.
        encode: from a value to plain JSON.
        decode: from plain JSON of any version up to ``version`` to a value.
        expected: what to say that was expected where :attr:`decode` fails, such as "thresholds of exits".
        again: what to say that makes it anew; empty for nothing.
    """

    def __init__(
        self,
        file: str,
        schema: str,
        encode: Callable[[T], dict[str, Any]],
        decode: Callable[[dict[str, Any], int], T],
        *,
        expected: str,
        version: int = 1,
        again: str = "",
    ) -> None:
        self.file = file
        self.schema = schema
        self.version = version
        self.encode = encode
        self.decode = decode
        self.expected = expected
        self.again = again

    def called(self, name: str | None) -> Record[T]:
        """Return the kind with a name in that of its file, such as ``calibration-fast.json``; None: itself.

        Raises:
            UserError: for a name that is more than letters, digits, ``_``, ``-`` and ``.`` between them.
        """
        if name is None:
            return self
        if not re.fullmatch(r"\w([\w.-]*\w)?", name, re.ASCII):
            raise UserError(f"expected a name of letters, digits, _, - and . between them; got {name!r}")
        named = copy.copy(self)
        named.file = f"-{name}.".join(self.file.rsplit(".", 1))
        return named

    def path(self, folder: Path) -> Path:
        """Return where it lies in a run folder."""
        return folder / self.file

    def exists(self, folder: Path) -> bool:
        """Return whether it is there."""
        return self.path(folder).is_file()

    def write(self, folder: Path, value: T) -> None:
        """Write it, whole or not at all."""
        write_json(self.path(folder), self.to_json(value))

    def to_json(self, value: T) -> dict[str, Any]:
        """Return it as plain JSON, which states schema and version."""
        return {"schema": self.schema, "version": self.version, **self.encode(value)}

    def read(self, folder: Path) -> T:
        """Return what was written.

        Raises:
            UserError: if the file is missing, damaged, of another schema, or of a later version than this program's.
        """
        path = self.path(folder)
        return self.parse(read_json(path), path, self.again.format(run=folder))

    def parse(self, content: Any, path: Path, again: str = "") -> T:
        """Return what plain JSON says, which was read at ``path``; ``again`` is a command that makes it anew.

        Raises:
            UserError: if it is damaged, of another schema, or of a later version than this program's.
        """
        try:
            schema, version = content.get("schema", self.schema), content.get("version", 1)
            if schema != self.schema:
                raise UserError(f"expected {self.schema} in {path}; got {schema}")
            known = isinstance(version, int) and 1 <= version <= self.version
            if not known and "schema" not in content:
                raise UserError(f"expected {self.schema} in {path}; it is something else")
            if not known:
                raise UserError(f"expected version 1 to {self.version} of {self.schema} in {path}; got {version!r}")
            return self.decode({key: value for key, value in content.items() if key not in _KEYS}, version)
        except (AttributeError, KeyError, TypeError, ValueError, OverflowError) as error:
            if isinstance(error, UserError):
                raise
            raise UserError(f"expected {self.expected} in {path}; {error!r}{again and f': {again} again'}") from error
