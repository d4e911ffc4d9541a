"""Copy results of finished runs to the ledger, list it, and bring the README's numbers up to date.

python scripts/ledger.py [outputs [ledger]]
"""

from __future__ import annotations

import json
import sys
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np

from geodl.data.files import atomic
from geodl.record import to_ledger
from geodl.report import label
from geodl.tables import in_words, written

HEAD = """# Results

## Tables

Each is written from the ledger by `geodl mode=table table=<name>`, with what was published beside
it.

{tables}

## All runs

Everything in the ledger ([runs/](runs)): mean and standard deviation over seeds; accuracies in
percent, errors of faces in millimetres, geodesic errors x 100 over the root of the area. Every
number is that of the last epoch, or of the one that a model's `select=` names. Written by
`scripts/ledger.py`; do not edit.

"""
COLUMNS = (
    "protocol", "model", "test set", "metrics", "train", "seeds", "epochs", "parameters",
    "s / epoch", "commit",
)  # fmt: skip
PERCENT = ("acc", "class_acc", "miou", "face_acc", "hard_edge_acc", "soft_edge_acc")
PLAIN = ("error", "median", "p90", "surface", "geodesic", "failed", "auc")


def number(values: list[float], factor: float = 1.0) -> str:
    spread = f" ± {factor * np.std(values, ddof=1):.2f}" if len(values) > 1 else ""
    return f"{factor * np.mean(values):.2f}{spread}"


def metrics(scores: list[dict[str, float]]) -> str:
    kinds = [(m, 100.0) for m in PERCENT] + [(m, 1.0) for m in PLAIN]
    return ", ".join(f"{m} {number([s[m] for s in scores], f)}" for m, f in kinds if m in scores[0])


def trained(group: list[dict[str, Any]]) -> str:
    for key, factor in (("train/acc", 100.0), ("train/error", 1.0), ("train/loss", 1.0)):
        if all(key in r["train"] for r in group):
            return f"{key[6:]} {number([r['train'][key] for r in group], factor)}"
    return ""


def head(results: Path) -> str:
    """The title, with a link to every table."""
    tables = [f"- [{t['title']}]({t['file']}.md)" for t in written(results)]
    return HEAD.format(tables="\n".join(tables))


def table(ledger: Path) -> str:
    runs: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for file in sorted(ledger.glob("*.json")):
        result = json.loads(file.read_text())
        runs[result["hash"]].append(result)
    lines: list[str] = []
    for group in runs.values():
        first = group[0]
        for test in first["eval"]:
            scores = [r["eval"][test]["scores"] for r in group if test in r["eval"]]
            cells = (
                first["protocol"],
                label(first),
                test,
                metrics(scores),
                trained(group),
                str(len(scores)),
                str(first["epochs"]),
                f"{first['parameters']:,}",
                f"{np.mean([r['seconds_per_epoch'] for r in group]):.0f}",
                ", ".join(sorted({str(r["commit"])[:8] for r in group})),
            )
            lines.append("| " + " | ".join(cells) + " |")
    first = ["| " + " | ".join(COLUMNS) + " |", "|---" * len(COLUMNS) + "|"]
    return head(ledger.parent) + "\n".join([*first, *sorted(lines)]) + "\n"


BLOCK = ("<!-- tables: written by scripts/ledger.py -->\n", "<!-- /tables -->")


def readme(text: str, results: Path) -> str:
    """The README with the list of tables, and their numbers, between its two marks."""
    found = [t for t in written(results) if t["budget"] != "smoke"]
    before, rest = text.split(BLOCK[0])
    after = rest.split(BLOCK[1])[1]
    lines = "\n".join(in_words(t, "docs/results") for t in found)
    return f"{before}{BLOCK[0]}{lines}\n{BLOCK[1]}{after}"


if __name__ == "__main__":
    words = sys.argv[1:]
    outputs = Path(words[0] if words else "outputs")
    ledger = Path(words[1] if len(words) > 1 else "docs/results/runs")
    for result in sorted(outputs.rglob("result.json")):
        if entry := to_ledger(result.parent, ledger):
            print(entry)
    texts = {ledger.parent / "README.md": table(ledger)}
    page = Path("README.md")
    if page.is_file() and BLOCK[0] in page.read_text():
        texts[page] = readme(page.read_text(), ledger.parent)
    for place, text in texts.items():
        with atomic(place) as part:
            part.write_text(text)
