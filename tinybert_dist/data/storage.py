"""Where raw bytes lie: local files and whatever fsspec opens by URL. Messages never show credentials."""

import io
import re
from pathlib import Path
from typing import Any, BinaryIO

import fsspec

from tinybert_dist.config import UserError, redact

URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")


def is_url(path: str | Path) -> bool:
    """Whether fsspec opens it (s3://, https://, memory:// ...)."""
    return URL.match(str(path)) is not None


def shown(path: str | Path) -> str:
    """The path as messages and names may hold it: a URL without credentials and query."""
    return redact(str(path)).partition("?")[0] if is_url(path) else str(path)


def filesystem_of(url: str) -> tuple[Any, str]:
    """The fsspec file system of a URL, and the path in it. Raises UserError if there is none installed."""
    try:
        return fsspec.core.url_to_fs(url)
    except (ImportError, ValueError) as error:
        raise UserError(
            f"{shown(url)}: {redact(str(error))}. Check the protocol, and install the package it needs."
        ) from None


def open_stored(path: str | Path, seekable: bool = False) -> BinaryIO:
    """Opens the bytes as they are stored. Raises UserError when that fails.

    `seekable`: of a web server too, which then must answer requests for ranges; not all do.
    """
    if is_url(path):
        return io.BufferedReader(_Remote(str(path), seekable))
    try:
        return open(path, "rb")
    except OSError as error:
        raise UserError(f"{path}: {error.strerror or error}. Check the path and its permissions.") from error


def unreadable(url: str, error: Exception) -> UserError:
    """What to tell the user of a URL that cannot be found or opened."""
    reason = "nothing is there" if isinstance(error, FileNotFoundError) else described(error)
    return UserError(f"{shown(url)}: {reason}. Check the address and the credentials of this machine.")


def described(error: Exception) -> str:
    """Kind and text of a backend's error without credentials."""
    text = re.sub(r"(://[^\s?'\"]+)\?[^\s'\"]*", r"\1", redact(str(error)))
    return f"{type(error).__name__}: {text}"


class _Remote(io.RawIOBase):
    """A file behind a URL; whatever its backend raises while reading becomes a ConnectionError."""

    def __init__(self, url: str, seekable: bool) -> None:
        self._url = url
        file_system, path = filesystem_of(url)
        # block_size 0: one stream from the beginning
        options = {"block_size": 0} if url.startswith("http") and not seekable else {}
        try:
            self._file = file_system.open(path, "rb", **options)
        except Exception as error:  # each backend has its own
            raise unreadable(url, error) from None

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return bool(self._file.seekable())

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        return self._file.seek(offset, whence)

    def tell(self) -> int:
        return self._file.tell()

    def readinto(self, buffer: Any) -> int:
        try:
            data = self._file.read(len(buffer))
        except Exception as error:  # each backend has its own
            raise ConnectionError(f"{shown(self._url)}: {described(error)}") from None
        buffer[: len(data)] = data
        return len(data)

    def close(self) -> None:
        if not self.closed:
            self._file.close()
        super().close()
