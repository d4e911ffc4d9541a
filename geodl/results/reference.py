"""The project's own results: what its tables were made of, and what a run is compared with.

They never stand for a run of yours: nothing here decides what is trained.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from geodl.errors import UserError
from geodl.runs import record


def reference_dir(cfg: DictConfig | None = None) -> Path:
    """``paths.reference``, or the results that come with geodl: tables, and runs/ with an entry for
    every run."""
    if cfg is not None and cfg.paths.reference:
        return Path(cfg.paths.reference).expanduser()
    package = Path(__file__).resolve().parent.parent
    inside = package / "reference"
    return inside if inside.is_dir() else package.parent / "docs" / "results"


def entries(folder: Path, hash8: str) -> list[dict[str, Any]]:
    """The reference runs of one configuration, by seed."""
    files = sorted((folder / "runs").glob(f"{hash8}-s*.json"))
    found = [record.read_entry(file) for file in files]
    return [entry for entry in found if entry is not None]


def add(run: Path, folder: Path) -> Path | None:
    """Copy a finished run to the reference; None if it is not finished.

    Raises:
        UserError: the code that trained or evaluated it is in no commit.
    """
    result = record.read_result(run)
    if result is None or result.get("status") != "done":
        return None
    evaluated = [(f"evaluated ({test})", entry) for test, entry in result["eval"].items()]
    for what, made in [("trained", result), *evaluated]:
        if made.get("dirty") is not False:
            raise UserError(
                f"{run} was {what} by code that is in no commit: commit it, and run it again with "
                "force=true."
            )
    return record.to_ledger(run, folder / "runs")


def factor(unit: str) -> float:
    """From a score to the number that is shown."""
    return 100.0 if unit == "%" else 1.0


def over_seeds(values: Sequence[float]) -> dict[str, Any]:
    """mean, std and n of some values, none of them rounded; nothing of none."""
    if not values:
        return {}
    spread = statistics.stdev(values) if len(values) > 1 else None
    return {"mean": statistics.fmean(values), "std": spread, "n": len(values)}


def in_numbers(found: Mapping[str, Any]) -> str:
    """``over_seeds`` as text, mean ± standard deviation (number of seeds): the one place where
    results are rounded."""
    if not found.get("n"):
        return ""
    spread = f" ± {found['std']:.2f}" if found["std"] is not None else ""
    return f"{found['mean']:.2f}{spread} ({found['n']})"


def compared(cfg: DictConfig) -> str:
    """How far a finished run is from the reference of its configuration, a line for every test set
    that both have; nothing where there is none."""
    result = record.read_result(record.run_folder(cfg))
    known = entries(reference_dir(cfg), record.run_hash(cfg))
    lines: list[str] = []
    for test, entry in (result or {}).get("eval", {}).items():
        options = entry["options"]
        if alike := [e for e in known if e["eval"].get(test, {}).get("options") == options]:
            lines.append(_compared(test, result or {}, entry["scores"], alike))
    return "".join(f"{line}\n" for line in lines)


def _compared(
    test: str, result: Mapping[str, Any], scores: Mapping[str, float], known: Sequence[Any]
) -> str:
    name = record.headline(result, scores)
    unit = str(result["metrics"][name]["unit"])
    of = [e["eval"][test]["scores"] for e in known]
    values = [factor(unit) * s[name] for s in of if name in s]
    mine = factor(unit) * scores[name]
    same = any(e["seed"] == result["seed"] and s == scores for e, s in zip(known, of, strict=True))
    if same:
        far = "the same numbers as the reference's seed"
    else:
        far = f"{mine - statistics.fmean(values):+.2f}"
    return f"{test}: {name} {mine:.2f} {unit}, reference {in_numbers(over_seeds(values))}: {far}"
