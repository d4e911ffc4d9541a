"""Files that are whole or not there; tables of them that are safe to open."""

from __future__ import annotations

import contextlib
import csv
import os
from collections.abc import Generator, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any


@contextlib.contextmanager
def atomic(path: Path) -> Generator[Path]:
    """A path to write to; it takes its place only if all went well."""
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        yield part
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def write_csv(path: Path, columns: Sequence[str], rows: Iterable[Mapping[str, Any]]) -> None:
    """Rows by column; what a row has beside them is left out."""
    with atomic(path) as part, part.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow([cell(c) for c in columns])
        writer.writerows([cell(row.get(c, "")) for c in columns] for row in rows)


def cell(value: Any) -> Any:
    """Text as a spreadsheet shows it: what would be run as a formula begins with an apostrophe."""
    if isinstance(value, str) and value[:1] in ("=", "+", "-", "@", "\t", "\r"):
        try:
            float(value)
        except ValueError:
            return f"'{value}"
    return value
