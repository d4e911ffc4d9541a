"""Copy the results of finished runs to the ledger: python scripts/ledger.py [outputs] [ledger]."""

from __future__ import annotations

import sys
from pathlib import Path

from geodl.record import to_ledger

if __name__ == "__main__":
    words = sys.argv[1:]
    outputs = Path(words[0] if words else "outputs")
    ledger = Path(words[1] if len(words) > 1 else "docs/results/runs")
    for result in sorted(outputs.rglob("result.json")):
        if entry := to_ledger(result.parent, ledger):
            print(entry)
