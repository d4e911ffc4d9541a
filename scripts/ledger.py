"""The project's reference: add finished runs to it, and write what is read from it.

    python scripts/ledger.py add outputs/...   copy finished runs to docs/results/runs
    python scripts/ledger.py                   write docs/results and the README's numbers again

A run whose code is in no commit is refused.
"""

from __future__ import annotations

import json
import re
import sys
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np

from geodl.atomic import atomic
from geodl.cli.listing import entries as listed
from geodl.errors import UserError
from geodl.results import tables
from geodl.results.evidence import at_paper_budget, coverage, seeds, verdicts
from geodl.results.reference import add, entries, factor, in_numbers, over_seeds, reference_dir
from geodl.results.render import in_words, write, written
from geodl.results.report import label
from geodl.runs.compose import config_dir

HEAD = """# Results

## Tables

Each is written from the runs below by `scripts/ledger.py`; `geodl mode=table table=<name>` sets
your own runs beside it.

{tables}

## What could be reproduced, and what not

{coverage}.

Every published number beside which this project has one; of a row that was also run at the paper's
own budget, that number alone. Within the spread: no further away than the seeds' standard deviation
and the rounding of the published number. Hours: one seed at the paper's own epochs, where fewer
were run, on one thread of the machine that the reference was made on, with the network and the
shapes of the row as it was run: at least so many, where the paper's are larger. Systems that geodl
does not have are in the tables alone.

{verdicts}

## All runs

Everything in the reference ([runs/](runs)): mean ± standard deviation (number of seeds); shares in
percent, errors of faces in millimetres, geodesic errors x 100 over the root of the area. Every
number is that of the last epoch, or of the one that a model's `select=` names; the commit is that
of the evaluation, with a star where the code had changes that are in no commit. Written by
`scripts/ledger.py`; do not edit.

"""
COLUMNS = (
    "protocol", "model", "test set", "metrics", "train", "epochs", "parameters", "s / epoch",
    "commit",
)  # fmt: skip


def metrics(group: list[dict[str, Any]], test: str) -> str:
    """Every declared metric of a test set, over the seeds."""
    scores = [r["eval"][test]["scores"] for r in group if test in r["eval"]]
    words: list[str] = []
    for name, m in group[0]["metrics"].items():
        if all(name in s for s in scores):  # a later seed may have been asked for more
            values = [factor(m["unit"]) * s[name] for s in scores]
            words.append(f"{name} {in_numbers(over_seeds(values))}")
    return ", ".join(words)


def trained(group: list[dict[str, Any]]) -> str:
    """The headline metric, or the loss, of the last epoch of training."""
    for name, m in [*group[0]["metrics"].items(), ("loss", {"unit": "", "headline": True})]:
        values = [r["train"].get(f"train/{name}") for r in group]
        if m["headline"] and None not in values:
            return f"{name} {in_numbers(over_seeds([factor(m['unit']) * v for v in values]))}"
    return ""


def head(results: Path) -> str:
    """The title, a link to every table, and what became of published numbers."""
    made = written(results)
    links = [f"- [{t['title']}]({t['file']}.md)" for t in made]
    lines = [
        "| table | row | column | published | ours | verdict | hours |",
        "|---|---|---|---|---|---|---|",
    ]
    for found in verdicts(made):
        table, name = found["table"], f"[{found['table']['title']}]({found['table']['file']}.md)"
        column = found["column"] if len(table["columns"]) > 1 else ""
        hours = "" if found["hours"] is None else f"{found['hours']:.1f}"
        cells = (
            *(name, found["row"]["name"], column, f"{found['published']:g}"),
            *(in_numbers(found["ours"]), found["verdict"], hours),
        )
        lines.append("| " + " | ".join(cells) + " |")
    short = [row for table in made if table["budget"] == "short" for row in table["rows"]]
    paper = [row for table in made if table["budget"] == "paper" for row in table["rows"]]
    rows = [*short, *filter(at_paper_budget, paper)]
    return HEAD.format(tables="\n".join(links), verdicts="\n".join(lines), coverage=coverage(rows))


def all_runs(reference: Path) -> str:
    """docs/results/README.md."""
    runs: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for file in sorted((reference / "runs").glob("*.json")):
        result = json.loads(file.read_text())
        runs[result["hash"]].append(result)
    lines: list[str] = []
    for group in runs.values():
        first = group[0]
        for test in first["eval"]:
            made = [r for r in group if test in r["eval"]]
            commits = {tables.commit_of(r, r["eval"][test]) for r in made}
            cells = (
                first["protocol"],
                label(first),
                test,
                metrics(made, test),
                trained(made),
                str(first["epochs"]),
                f"{first['parameters']:,}",
                f"{np.mean([r['seconds_per_epoch'] for r in group]):.0f}",
                ", ".join(sorted(commits)),
            )
            lines.append("| " + " | ".join(cells) + " |")
    first = ["| " + " | ".join(COLUMNS) + " |", "|---" * len(COLUMNS) + "|"]
    return head(reference) + "\n".join([*first, *sorted(lines)]) + "\n"


BLOCK = ("<!-- tables: written by scripts/ledger.py -->\n", "<!-- /tables -->")


def readme(text: str, results: Path) -> str:
    """The README with the list of tables, and their numbers, between its two marks."""
    found = [t for t in written(results) if t["budget"] != "smoke"]
    before, rest = text.split(BLOCK[0])
    after = rest.split(BLOCK[1])[1]
    lines = "\n".join(in_words(t, "docs/results") for t in found)
    return f"{before}{BLOCK[0]}{lines}\n{BLOCK[1]}{after}"


NUMBER = re.compile(r"[\d.]+( %| mm)?(<!--(\w{8}) (\w+) (\w+)-->)")


def filled(text: str, reference: Path) -> str:
    """A page with its numbers brought up to date: each is followed by a comment that names a run,
    a test set and a metric; the mean over the seeds."""

    def current(match: re.Match[str]) -> str:
        unit, comment, run, test, metric = match.groups()
        made = entries(reference, run)
        scores = [e["eval"][test]["scores"][metric] for e in made if test in e["eval"]]
        if not scores:
            raise UserError(f"{comment}: the reference has no such number.")
        value = factor(made[0]["metrics"][metric]["unit"]) * float(np.mean(scores))
        return (
            f"{value:.1f}{unit}{comment}" if unit == " %" else f"{value:.2f}{unit or ''}{comment}"
        )

    return NUMBER.sub(current, text)


def pages(reference: Path) -> dict[Path, str]:
    """Every page that has numbers of the reference, as it should be."""
    root = reference.parent.parent
    home, tour = root / "README.md", root / "docs" / "tour.md"
    return {
        reference / "README.md": all_runs(reference),
        home: filled(readme(home.read_text(), reference), reference),
        tour: filled(tour.read_text(), reference),
    }


def write_tables(reference: Path) -> None:
    """Every table that has entries, at the budget "short", and at the paper's where a row was."""
    from omegaconf import OmegaConf

    for name, _ in listed(config_dir(), "table"):
        plain: Any = OmegaConf.to_container(OmegaConf.load(config_dir() / f"table/{name}.yaml"))
        tables.check(name, plain)
        for budget in ("short", "paper"):
            work = tables.jobs(plain, budget)
            data = tables.collect(name, plain, budget, work, reference)
            worth = at_paper_budget if budget == "paper" else seeds
            if any(map(worth, data["rows"])):
                write(data, reference)


def main(words: list[str]) -> None:
    reference = reference_dir()
    if words:
        if words[0] != "add" or len(words) < 2:
            raise UserError("say: python scripts/ledger.py add <run folders, or one around them>.")
        for place in words[1:]:
            for result in sorted(Path(place).rglob("result.json")):
                if entry := add(result.parent, reference):
                    print(entry)
    write_tables(reference)
    for place, text in pages(reference).items():
        with atomic(place) as part:
            part.write_text(text)


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except UserError as error:
        sys.stderr.write(f"ledger: {error}\n")
        sys.exit(2)
