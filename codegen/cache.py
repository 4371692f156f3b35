"""Content-addressed files on disk: written whole or not at all, checked when read, safe for several processes."""
from __future__ import annotations

import hashlib
import logging
import os
import tempfile
from collections.abc import Callable
from pathlib import Path

from filelock import FileLock

log = logging.getLogger(__name__)


def digest(*parts: str) -> str:
    """Hexadecimal SHA-256 of ``parts``, each delimited."""
    h = hashlib.sha256()
    for part in parts:
        data = part.encode()
        h.update(len(data).to_bytes(8, "little"))
        h.update(data)
    return h.hexdigest()


class DamagedEntry(ValueError):
    """An entry is not what was written; it is to be made again."""


class DiskCache:
    """Files under ``folder`` by key. An entry is its bytes followed by their SHA-256; an entry that fails the check is
    rebuilt with a warning."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def path(self, key: str, suffix: str) -> Path:
        return self.folder / key[:2] / f"{key}{suffix}"

    def _sound(self, path: Path) -> bool:
        """Whether the file is the one that was written."""
        check = path.with_name(path.name + ".sha256")
        try:
            return check.read_text() == hashlib.sha256(path.read_bytes()).hexdigest()
        except OSError:
            return False

    def read(self, key: str, suffix: str) -> bytes | None:
        """What is kept for ``key``; None if nothing is. Raises DamagedEntry for what fails the check."""
        path = self.path(key, suffix)
        if not path.exists():
            return None
        if not self._sound(path):
            with FileLock(str(path) + ".lock"):  # another process may be between writing it and its check
                if not self._sound(path):
                    raise DamagedEntry(f"cache entry {path} is damaged")
        return path.read_bytes()

    def drop(self, key: str, suffix: str) -> None:
        """Forget what is kept for ``key``."""
        path = self.path(key, suffix)
        if path.parent.exists():
            with FileLock(str(path) + ".lock"):
                path.unlink(missing_ok=True)

    def get(self, key: str, suffix: str, build: Callable[[Path], None]) -> Path:
        """The file for ``key``; if there is none or it is damaged, ``build(path)`` writes it first.

        Two processes that ask at once: one builds, the other waits for it. Whatever ``build`` raises is passed on and
        leaves no entry.
        """
        path = self.path(key, suffix)
        if self._sound(path):
            return path
        path.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(str(path) + ".lock"):
            if self._sound(path):
                return path
            if path.exists():
                log.warning("cache entry %s is damaged: building it again", path)
            handle, name = tempfile.mkstemp(dir=path.parent, suffix=suffix)
            os.close(handle)
            fresh = Path(name)
            try:
                build(fresh)
                check = path.with_name(path.name + ".sha256")
                check_fresh = fresh.with_name(fresh.name + ".sha256")
                check_fresh.write_text(hashlib.sha256(fresh.read_bytes()).hexdigest())
                os.replace(fresh, path)
                os.replace(check_fresh, check)
            finally:
                fresh.unlink(missing_ok=True)
        return path
