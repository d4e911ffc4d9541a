"""Content-addressed cache of geometry: the same arrays and parameters are computed once.

One file per (family, key): safetensors with a checksum of itself, written beside its place and
moved there, so a reader sees a whole file or none. A file that cannot be read, or of which a byte
has changed, is computed again, and that is said.
"""

from __future__ import annotations

import hashlib
import importlib
import logging
import re
import zlib
from collections.abc import Callable
from dataclasses import astuple, replace
from pathlib import Path
from typing import Any

import numpy as np
import scipy.sparse as sp
from filelock import FileLock
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load, save

from geodl.atomic import atomic
from geodl.errors import UserError
from geodl.ops import VERSION
from geodl.ops.geometry import Geometry
from geodl.spec import Need

log = logging.getLogger(__name__)
PLACE = f"v{VERSION}.1"  # of the results, and of the files' own format

Arrays = dict[str, NDArray[Any]]


def digest(*parts: Any) -> str:
    """blake2b of arrays (type, shape and bytes) and of the text of everything else."""
    state = hashlib.blake2b(digest_size=20)
    for part in parts:
        if isinstance(part, np.ndarray):
            state.update(f"{part.dtype}{part.shape}".encode())
            state.update(np.ascontiguousarray(part).tobytes())
        else:
            state.update(repr(part).encode())
        state.update(b"\0")
    return state.hexdigest()


def compute(need: Need, geometry: Geometry) -> Arrays:
    """Answer one request: float64 inside, float32 (and int32 indices) in the result.

    A matrix becomes three arrays, row by row: ``name.index`` (2 nnz), ``name.value`` (nnz) and
    ``name.shape`` (2). A shape in other units is measured in its own size, and the result turned
    back: the tolerances inside are absolute, those of the authors' code for shapes of size one.
    Truth is told in the model's own coordinates.
    """
    module, function = need.function.split(":")
    unit = 1.0 if need.of_truth else geometry.unit
    if unit != 1:
        geometry = replace(geometry, pos=geometry.pos / unit)
        need = replace(need, **{name: getattr(need, name) / unit for name in need.lengths})
    result = getattr(importlib.import_module(module), function)(geometry, *astuple(need))
    arrays: Arrays = {}
    for name, field in need.fields.items():
        value = result[name] if unit == 1 or not field.scale else result[name] * unit**field.scale
        if field.kind == "matrix":
            coo = sp.csr_matrix(value).sorted_indices().tocoo()
            arrays[f"{name}.index"] = np.stack([coo.row, coo.col]).astype(np.int32)
            arrays[f"{name}.value"] = coo.data.astype(np.float32)
            arrays[f"{name}.shape"] = np.array(coo.shape, np.int32)
        else:
            number = np.int32 if field.kind == "index" else np.float32
            arrays[name] = np.ascontiguousarray(value, number)
    return arrays


CHECKSUM = re.compile(rb'"crc32":"([0-9a-f]{8})"')


def _packed(arrays: Arrays) -> bytes:
    """Arrays as a safetensors file whose header has the checksum of the rest."""
    blank = {"crc32": "0" * 8}
    data = save({k: np.ascontiguousarray(v) for k, v in arrays.items()}, metadata=blank)
    start = CHECKSUM.search(data)
    assert start is not None
    at = start.start(1)
    return data[:at] + b"%08x" % zlib.crc32(data) + data[at + 8 :]


def _unpacked(data: bytes) -> Arrays:
    """The arrays of such a file.

    Raises:
        ValueError: it is not as it was written.
    """
    found = CHECKSUM.search(data, 0, 65536)
    if found is None:
        raise ValueError("it has no checksum")
    at = found.start(1)
    crc = zlib.crc32(memoryview(data)[at + 8 :], zlib.crc32(b"0" * 8, zlib.crc32(data[:at])))
    if b"%08x" % crc != found[1]:
        raise ValueError("its checksum differs")
    return load(data)


class Cache:
    """Files below one folder; ``hits`` and ``misses`` count since creation."""

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder).expanduser()
        self.hits = 0
        self.misses = 0

    def need(self, need: Need, geometry: Geometry) -> Arrays:
        """The arrays of one request for one shape, from the cache or computed now."""
        key = digest(
            geometry.pos.astype(np.float32),
            geometry.face.astype(np.int32),
            geometry.backend,
            astuple(need),
        )
        return self.get(need.family, key, lambda: compute(need, geometry))

    def get(self, family: str, key: str, make: Callable[[], Arrays]) -> Arrays:
        """The arrays stored under (family, key), made by ``make`` on a miss."""
        path = self.folder / PLACE / family / key[:2] / f"{key}.safetensors"
        arrays = self._read(path)
        if arrays is not None:
            self.hits += 1
            return arrays
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(
                f"{path.parent} cannot be written to ({error.strerror}): set paths.cache or "
                "GEODL_CACHE to a folder of yours."
            ) from error
        with FileLock(path.with_suffix(".lock")):
            arrays = self._read(path)  # another process may have made it while this one waited
            for part in path.parent.glob(f".{path.name}.*.part"):  # of one that was killed
                part.unlink()
            if arrays is None:
                arrays = make()
                self.misses += 1
                with atomic(path) as part:
                    part.write_bytes(_packed(arrays))
            else:
                self.hits += 1
        path.with_suffix(".lock").unlink(missing_ok=True)
        return arrays

    @staticmethod
    def _read(path: Path) -> Arrays | None:
        try:
            return _unpacked(path.read_bytes())
        except FileNotFoundError:
            return None
        except (SafetensorError, OSError, ValueError) as error:
            log.warning("cache file %s cannot be read (%s): computing it again", path, error)
            return None

    def size(self) -> dict[str, tuple[int, int]]:
        """Family -> (files, bytes) on disk, every version of the operators."""
        sizes: dict[str, tuple[int, int]] = {}
        for path in self.folder.glob("v*/*/*/*.safetensors"):
            family = f"{path.parts[-4]}/{path.parts[-3]}"
            files, size = sizes.get(family, (0, 0))
            sizes[family] = (files + 1, size + path.stat().st_size)
        return sizes

    def clean(self, what: str) -> int:
        """Remove a family ("spectrum"), the files of old versions ("old") or "all"; bytes freed."""
        freed = 0
        for path in self.folder.glob("v*/*/*/*.safetensors"):
            version, family = path.parts[-4], path.parts[-3]
            if what in ("all", family) or (what == "old" and version != PLACE):
                freed += path.stat().st_size
                path.unlink(missing_ok=True)
        return freed
