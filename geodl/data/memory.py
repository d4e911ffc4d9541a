"""Shapes that stay in memory, up to a limit."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

from torch import Tensor

from geodl.shape import Shape

MACHINE, CONTAINER = Path("/proc/meminfo"), Path("/sys/fs/cgroup")


class Memory:
    """What was loaded stays until the limit is reached; the rest is read again whenever it is
    asked for. (Throwing out the oldest would help nobody: an epoch comes by everything once.)

    Shapes have an owner, and go with it.
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self._kept: WeakKeyDictionary[Any, dict[Hashable, Shape]] = WeakKeyDictionary()
        self._sizes: WeakKeyDictionary[Any, int] = WeakKeyDictionary()

    def get(self, owner: Any, key: Hashable, make: Callable[[], Shape]) -> Shape:
        """An owner's shape under a key, made where it is not kept."""
        mine = self._kept.setdefault(owner, {})
        if key in mine:
            return mine[key]
        shape = make()
        size = sum(_bytes(value) for _, _, value in shape.tensors())
        if self.used + size <= self.limit:
            mine[key] = shape
            self._sizes[owner] = self._sizes.get(owner, 0) + size
        return shape

    @property
    def used(self) -> int:
        """Bytes that are kept."""
        return sum(self._sizes.values())

    def __reduce__(self) -> Any:  # another process begins with nothing
        return Memory, (self.limit,)


def _bytes(value: Tensor) -> int:
    if value.is_sparse:
        return _bytes(value.indices()) + _bytes(value.values())
    return value.numel() * value.element_size()


def available() -> int:
    """Bytes of memory that are free here: of the machine, and of the container's share of it."""
    free = [64 << 30]
    machine = _numbers(MACHINE)
    if "MemAvailable:" in machine:
        free.append(machine["MemAvailable:"] * 1024)
    try:
        most, used = (int((CONTAINER / f"memory.{x}").read_text()) for x in ("max", "current"))
    except (OSError, ValueError):  # no container, or one without a limit ("max")
        return min(free)
    read = _numbers(CONTAINER / "memory.stat").get("inactive_file", 0)  # given up when asked for
    return min(*free, max(0, most - used + read))


def _numbers(file: Path) -> dict[str, int]:
    """The first two words of every line."""
    try:
        lines = [line.split() for line in file.read_text().splitlines()]
    except OSError:
        return {}
    return {line[0]: int(line[1]) for line in lines if len(line) > 1}
