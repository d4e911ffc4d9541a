"""``geodl mode=list``: what there is, one line each, read from the YAML files' first comments."""

from __future__ import annotations

from pathlib import Path

GROUPS = (
    "encoder",
    "decoder",
    "features",
    "task",
    "data",
    "augment",
    "test",
    "optim",
    "schedule",
    "experiment",
    "metric",
    "table",
    "sweep",
)


def describe(path: Path) -> str:
    """The first comment line of a config that is no directive."""
    for line in path.read_text().splitlines():
        if line.startswith("#") and not line.startswith("# @package"):
            return line.lstrip("# ").strip()
        if line and not line.startswith("#"):
            break
    return ""


def entries(folder: Path, group: str) -> list[tuple[str, str]]:
    """(name, description) of every config of a group, folders included."""
    root = folder / group
    files = sorted(p for p in root.rglob("*.yaml") if not p.name.startswith("_"))
    return [(str(p.relative_to(root).with_suffix("")), describe(p)) for p in files]


def show(folder: Path) -> str:
    """The whole listing as text."""
    lines: list[str] = []
    for group in GROUPS:
        rows = entries(folder, group)
        width = max((len(name) for name, _ in rows), default=0)
        lines += [f"{group}=", *(f"  {name:<{width}}  {text}".rstrip() for name, text in rows), ""]
    return "\n".join(lines)
