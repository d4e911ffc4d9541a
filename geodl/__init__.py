"""geodl: deep learning on 3D shapes, as experiments one can repeat.

The names below are loaded on first use, so that ``import geodl`` costs no torch.
"""

from __future__ import annotations

import importlib
from typing import Any

__version__ = "0.1.0"

_LAZY = {
    "Shape": "geodl.shape",
    "ShapeBatch": "geodl.shape",
    "Operators": "geodl.shape",
    "GroupBatch": "geodl.shape",
    "DataSpec": "geodl.spec",
    "Needs": "geodl.spec",
    "UserError": "geodl.errors",
    "compose": "geodl.runs.compose",
    "build": "geodl.runs.build",
}
__all__ = list(_LAZY)  # pyright: ignore[reportUnsupportedDunderAll]


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(importlib.import_module(_LAZY[name]), name)
    raise AttributeError(f"module 'geodl' has no attribute {name!r}")
