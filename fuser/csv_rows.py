"""Rows of data as CSV."""
from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from typing import Any


def rows_to_csv(rows: Sequence[Mapping[str, Any]]) -> str:
    """One line for each row below a line of its keys; empty without rows, which all have the same keys."""
    out = io.StringIO()
    if rows:
        writer = csv.DictWriter(out, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    return out.getvalue()
