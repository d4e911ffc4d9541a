"""The command line before Hydra parses it: paths are quoted, ``+new=`` is refused."""

from __future__ import annotations

import re
from pathlib import Path

from geodl.errors import UserError

PATHS = re.compile(
    r"(input|output|ckpt|weights|init|code|mask|data\.(folder|template)|decoder\.model|paths\.\w+)="
)
# What Hydra takes as it is, and for a text: 2026 would be a number, true a truth value.
PLAIN = re.compile(r"null|[./]*[A-Za-z_][\w./:-]*[./][\w./:-]*", re.ASCII)
SIMPLE = re.compile(r"[./]*[A-Za-z_][\w./:-]*", re.ASCII)
# Groups whose members are checked against the class that they build.
OPEN = (
    *("hydra", "task", "data", "features", "encoder", "decoder", "augment", "optim", "schedule"),
    *("test", "trainer", "callbacks", "logger"),
)


def prepared(words: list[str]) -> list[str]:
    """The words as Hydra takes them.

    Raises:
        UserError: an option that does not exist is added, a word is no text.
    """
    for word in words:
        try:
            word.encode()
        except UnicodeEncodeError:
            raise UserError(f"{word!r} has a name that is no UTF-8: rename the file.") from None
        key = re.split(r"[=@.]", word.lstrip("+"), maxsplit=1)[0]
        if word.startswith("+") and not (key in OPEN and re.match(r"\++\w+[./]", word)):
            raise UserError(
                f"{word} adds an option, and there is no such one: leave the + out to change an "
                "option (geodl --help has them all)."
            )
    sweeping = "-m" in words or "--multirun" in words
    return [_quoted(word, sweeping) if PATHS.match(word) else word for word in words]


def _quoted(word: str, sweeping: bool) -> str:
    key, _, value = word.partition("=")
    if value.startswith("~") and not _is_home(value):
        value = str(Path.cwd() / value)
    there = _exists(value)
    if not value or (PLAIN.fullmatch(value) and not there) or (there and SIMPLE.fullmatch(value)):
        return word
    if not there:  # no file of that very name: words of Hydra, or a list
        if value[0] in "'\"" or "${" in value:
            return word
        if value.startswith("[") and value.endswith("]"):
            return f"{key}=[{','.join(map(_quote, _files(value[1:-1])))}]"
        if sweeping and "," in value:
            return f"{key}={','.join(map(_quote, _files(value)))}"
    return f"{key}={_quote(value)}"


def _exists(value: str) -> bool:
    try:
        return bool(value.strip()) and Path(value).exists()
    except (OSError, ValueError):  # too long for a name, or with a zero byte
        return False


def _is_home(value: str) -> bool:
    """Whether a name that begins with ~ means somebody's home, and not a file called so."""
    try:
        return not Path(value).exists() and bool(Path(value).expanduser())
    except RuntimeError:  # nobody is called so
        return False


def _files(text: str) -> list[str]:
    """Names between commas, which may have commas themselves if such files exist."""
    parts = text.split(",") if text.strip() else []
    names: list[str] = []
    while parts:
        longest = next(
            (n for n in range(len(parts), 1, -1) if _exists(",".join(parts[:n]).strip())), 1
        )
        names.append(",".join(parts[:longest]).strip())
        del parts[:longest]
    return names


def _quote(name: str) -> str:
    """A name in Hydra's quotes, as it is."""
    if len(name) > 1 and name[0] in "'\"" and name[-1] == name[0]:
        return name
    inside = re.sub(r"(\\*)'", r"\1\1\\'", name)
    inside = re.sub(r"(\\+)$", r"\1\1", inside).replace("${", "\\${")
    return f"'{inside}'"
