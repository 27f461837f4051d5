"""Files of others: what can be said about them before, and must still hold after, reading."""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, cast

from massrecon.errors import ImportFileError, reason
from massrecon.provenance import file_sha256

GZIP = b"\x1f\x8b"

Stamp = tuple[int, int, int]


@dataclass(frozen=True)
class SourceFile:
    """A file that must not change while it is read.

    Attributes:
        path: The file.
        sha256: Checksum of its bytes when it was opened.
        stamp: Size [bytes], time of the last change [ns] and file number at that time.
    """

    path: Path
    sha256: str
    stamp: Stamp

    @classmethod
    def open(cls, path: str | Path) -> SourceFile:
        """Checks that a file is there, readable and not empty, and takes its checksum.

        Raises:
            ImportFileError: If it is not.
        """
        path = Path(path)
        if path.is_dir():
            raise ImportFileError(f"'{path}' is a folder: pass one of the files in it.")
        if path.exists() and not path.is_file():
            raise ImportFileError(f"'{path}' is not an ordinary file: copy its content to one.")
        stamp, sha256 = _stamp(path), _checksum(path)
        if stamp[0] == 0:
            raise ImportFileError(f"'{path}' is empty: fetch or make it again.")
        return cls(path, sha256, stamp)

    @property
    def size(self) -> int:
        """Size [bytes]."""
        return self.stamp[0]

    @property
    def is_compressed(self) -> bool:
        """Whether it is compressed with gzip."""
        with self.path.open("rb") as file:
            return file.read(len(GZIP)) == GZIP

    def check(self, *, content: bool = False) -> None:
        """Checks that the file is still the one that was opened.

        Args:
            content: Whether to take the checksum again: sure, but reads the file once more.

        Raises:
            ImportFileError: If the file has changed.
        """
        if _stamp(self.path) != self.stamp or (content and _checksum(self.path) != self.sha256):
            raise ImportFileError(
                f"'{self.path}' changed while it was read: wait until it is finished, then start "
                "again."
            )

    def to_dict(self) -> dict[str, Any]:
        """Describes the file for the provenance."""
        return {"file": self.path.name, "sha256": self.sha256, "bytes": self.size}


def _stamp(path: Path) -> Stamp:
    try:
        status = path.stat()
    except OSError as error:
        raise unreadable(path, error) from error
    return status.st_size, status.st_mtime_ns, status.st_ino


def _checksum(path: Path) -> str:
    try:
        return file_sha256(path)
    except OSError as error:
        raise unreadable(path, error) from error


def unreadable(path: Path, error: OSError) -> ImportFileError:
    """Builds the error for a file that the system does not let us read."""
    return ImportFileError(
        f"'{path}' cannot be read ({reason(error)}): check its path and permissions."
    )


@contextmanager
def opened(path: Path) -> Iterator[BinaryIO]:
    """Opens a plain or gzip-compressed file; its errors name the path.

    Raises:
        ImportFileError: If it cannot be read, or the compressed data is damaged.
    """
    try:
        with path.open("rb") as file:
            compressed = file.read(2) == GZIP
            file.seek(0)
            yield cast(BinaryIO, gzip.open(file)) if compressed else file  # noqa: SIM115  closed with the file below it
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise ImportFileError(
            f"'{path}' is truncated or damaged (its compressed data says: {error}): fetch or make "
            "it again."
        ) from error
    except OSError as error:
        raise unreadable(path, error) from error
