"""What lies in a user's folder: which files count, which folders are splits, which are classes.

Nothing here imports torch: a run's name is made from what lies in the folder.
"""

from __future__ import annotations

import os
import re
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from geodl.errors import UserError

SPLITS = {
    "train": re.compile(r"(train|training|trn)([ _-]?(set|data|split))?", re.IGNORECASE),
    "val": re.compile(r"(val|valid|validation|dev)([ _-]?(set|data|split))?", re.IGNORECASE),
    "test": re.compile(r"(test|testing|tst)([ _-]?(set|data|split))?", re.IGNORECASE),
}
SYSTEM = (
    *("__MACOSX", "Thumbs.db", "desktop.ini", "__pycache__", "@eaDir"),
    *("$RECYCLE.BIN", "System Volume Information"),
)


def files_of(folder: Path) -> list[Path]:
    """All files below a folder, sorted, links followed; hidden files and folders, and what
    operating systems leave behind, do not exist.

    Raises:
        UserError: a folder inside may not be read, a name is no UTF-8.
    """
    found: list[Path] = []

    def refused(error: OSError) -> None:
        raise UserError(f"{error.filename} cannot be read: {error.strerror}.") from error

    for top, folders, files in os.walk(folder, onerror=refused, followlinks=True):
        above = {Path(top).resolve(), *Path(top).resolve().parents}
        folders[:] = [d for d in folders if _visible(d) and Path(top, d).resolve() not in above]
        found += [path for f in files if _visible(f) and (path := Path(top, f)).is_file()]
    for path in found:
        try:
            str(path).encode()
        except UnicodeEncodeError:
            raise UserError(f"{str(path)!r} has a name that is no UTF-8: rename it.") from None
    return sorted(found)


def _visible(name: str) -> bool:
    return not name.startswith(".") and name not in SYSTEM


def split_name(folder: str) -> str | None:
    """Which split a folder's name means: "Training" is "train"."""
    name = re.sub(r"^\d+[ _-]*", "", folder.strip())
    return next((s for s, words in SPLITS.items() if words.fullmatch(name)), None)


@dataclass
class Layout:
    """Files by split, each with the name of its class or None; split "all" if the folder has none.

    outside: files that lie outside of the splits that the folder has.
    """

    root: Path
    splits: dict[str, list[tuple[Path, str | None]]]
    outside: list[Path] = field(default_factory=list)

    @property
    def fixed(self) -> bool:
        return "all" not in self.splits

    @property
    def files(self) -> list[Path]:
        return [file for members in self.splits.values() for file, _ in members]


def layout(root: Path, files: list[Path]) -> Layout:
    """``{train,val,test}/class/...``, ``class/{train,val,test}/...``, ``class/...`` or files alone;
    a folder around all of this is stepped into.

    Raises:
        UserError: there are split folders, but not train and test, or two for one split.
    """
    while len(tops := {f.relative_to(root).parts[:-1][:1] for f in files}) == 1:
        (only,) = tops
        deeper = {f.relative_to(root).parts[1:-1][:1] for f in files}
        if not only or split_name(only[0]) or () in deeper:
            break
        root /= only[0]
    folders = {f: f.relative_to(root).parts[:-1] for f in files}
    first = {p[0] for p in folders.values() if p and split_name(p[0])}
    if first:
        return _with_splits(root, folders, first, at=0)
    second = {p[:2] for p in folders.values() if len(p) > 1 and split_name(p[1])}
    if second and len({p[0] for p in second}) > len({p[0] for p in folders.values() if p}) / 2:
        return _with_splits(root, folders, {p[1] for p in second}, at=1)
    return Layout(root, {"all": [(f, p[0] if p else None) for f, p in folders.items()]})


def _with_splits(
    root: Path, folders: dict[Path, tuple[str, ...]], names: set[str], at: int
) -> Layout:
    """The splits are folders of depth ``at``; the class is the folder above or below."""
    meant = Counter(str(split_name(n)) for n in names)
    twice = next((s for s, n in meant.items() if n > 1), None)
    if twice:
        both = ", ".join(sorted(n for n in names if split_name(n) == twice))
        raise UserError(f"{root} has several folders for the split {twice} ({both}): keep one.")
    if lacking := [s for s in ("train", "test") if s not in meant]:
        raise UserError(
            f"{root} has the split folders {', '.join(sorted(names))}, but none for "
            f"{' or '.join(lacking)}: add it, or take the split folders away to have the split "
            "drawn; a class of such a name needs another one."
        )
    found = Layout(root, {s: [] for s in ("train", "val", "test") if s in meant})
    for file, parts in folders.items():
        split = split_name(parts[at]) if len(parts) > at else None
        if split is None:
            found.outside.append(file)
            continue
        other = parts[at + 1 : at + 2] if at == 0 else parts[:1]
        found.splits[split].append((file, other[0] if other else None))
    return found


def counted(files: list[Path], root: Path, most: int = 3) -> str:
    """Files in words, by suffix: "2 .mtl (a.mtl, b.mtl), 1 .md (README.md)"."""
    kinds: dict[str, list[Path]] = {}
    for file in files:
        kinds.setdefault(file.suffix.lower() or "without a suffix", []).append(file)
    words: list[str] = []
    for kind, members in sorted(kinds.items()):
        names = [str(f.relative_to(root)) for f in members[:most]]
        more = ", ..." if len(members) > most else ""
        words.append(f"{len(members)} {kind} ({', '.join(names)}{more})")
    return ", ".join(words)


def ranges(numbers: list[int]) -> str:
    """Sorted whole numbers in words: "1, 3-6"."""
    words: list[str] = []
    start = 0
    for i in range(1, len(numbers) + 1):
        if i == len(numbers) or numbers[i] != numbers[i - 1] + 1:
            a, b = numbers[start], numbers[i - 1]
            words.append(str(a) if a == b else f"{a}-{b}")
            start = i
    return ", ".join(words)
