"""Shapes that stay in memory, up to a limit."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

from torch import Tensor

from geodl.shape import Shape


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
    for file, word in (("/proc/meminfo", "MemAvailable:"), ("/sys/fs/cgroup/memory.max", "")):
        try:
            words = Path(file).read_text().split()
        except OSError:
            continue
        if word in words:
            free.append(int(words[words.index(word) + 1]) * 1024)
        elif len(words) == 1 and words[0].isdecimal():
            free.append(int(words[0]))
    return min(free)
