"""Where things that are worth keeping between processes lie on a user's machine."""

from __future__ import annotations

import os
from pathlib import Path


def user_cache_folder() -> Path:
    """``rooffuse`` in ``$XDG_CACHE_HOME``, or in ``~/.cache`` where that isn't set or isn't an absolute path.

    Source: XDG Base Directory Specification 0.8, https://specifications.freedesktop.org/basedir-spec/latest/ (relative
    paths are invalid and to be ignored). Written out here because it is all of it on Linux, and whoever installs
    without dependencies beside a torch of their own should need nothing for it.
    """
    base = os.environ.get("XDG_CACHE_HOME", "").strip()
    return (Path(base) if os.path.isabs(base) else Path.home() / ".cache") / "rooffuse"
