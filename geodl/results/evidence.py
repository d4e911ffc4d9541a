"""What numbers say: which rows of a table are told apart, and whether a published one came out."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

LEVEL = 0.05  # of both tests
RESAMPLES = 9999
BEST, EVEN = "●", "○"


def ranked(rows: Sequence[Mapping[str, Any]]) -> None:
    """Add ``mark`` to the cells of rows that have sisters (of the same section, data and unit): the
    best mean, and those that are not told apart from it. Takes ``each`` (numbers of the shapes, by
    what they are the numbers of) out of the cells."""
    sisters: dict[Any, list[dict[str, Any]]] = {}
    for row in rows:
        for column, cell in row["cells"].items():
            if cell.get("n"):
                key = column, row.get("section"), str(row.get("protocol")), cell["unit"]
                sisters.setdefault(key, []).append(cell)
    for cells in sisters.values():
        sign = 1 if cells[0]["better"] == "more" else -1
        best = max(cells, key=lambda cell: sign * cell["mean"])
        for cell in cells if len(cells) > 1 else ():
            if cell is best:
                cell["mark"] = BEST
            elif told_apart(best, cell) is False:
                cell["mark"] = EVEN
        for cell in cells:
            cell.pop("each", None)


def told_apart(a: Mapping[str, Any], b: Mapping[str, Any]) -> bool | None:
    """Whether two cells differ by more than chance: over seeds by Welch's t-test (Student's where
    one has a single seed, which is taken to spread like the other); with one seed each, by a paired
    test over the same shapes (random signs of differences; McNemar's test, where a shape is right
    or wrong). None where there is neither."""
    from scipy import stats

    if a["mean"] == b["mean"]:
        return False
    if a["n"] > 1 or b["n"] > 1:
        if not (a["std"] or b["std"]):
            return True
        alike = a["n"] == 1 or b["n"] == 1  # then the one spread is known alone
        found: Any = stats.ttest_ind_from_stats(
            *(a["mean"], a["std"] or 0.0, a["n"], b["mean"], b["std"] or 0.0, b["n"]),
            equal_var=alike,
        )
        return bool(found.pvalue < LEVEL)
    ours, theirs = (x.get("each") or {} for x in (a, b))
    if not ours or ours.keys() != theirs.keys():
        return None
    ((_, first),), ((_, second),) = ours.items(), theirs.items()
    gap = np.array(first) - np.array(second)
    if len(np.unique(np.abs(gap[gap != 0]))) == 1:
        wins, losses = int((gap > 0).sum()), int((gap < 0).sum())
        return bool(stats.binomtest(wins, wins + losses).pvalue < LEVEL)
    test = stats.permutation_test(
        (gap,), np.mean, permutation_type="samples", n_resamples=RESAMPLES, rng=0, vectorized=True
    )
    return bool(test.pvalue < LEVEL)


def verdicts(tables: Sequence[Mapping[str, Any]]) -> Iterator[dict[str, Any]]:
    """Every published number beside which this project has one, or could have: table, row, column,
    ``published``, ``ours`` (a cell), ``verdict`` in words, ``hours`` of one thread that the paper's
    own epochs would take, where fewer were run. A row that ran for them is judged by that alone."""
    paper = [t for t in tables if t["budget"] == "paper"]
    done = {(t["name"], _what(row)) for t in paper for row in t["rows"] if at_paper_budget(row)}
    for table in tables:
        given = [(c, n) for r in table["rows"] for c, n in r["cells"].items() if "published" in n]
        for row in table["rows"]:
            if ((table["name"], _what(row)) in done) != (table["budget"] == "paper"):
                continue
            for column, cell in row["cells"].items():
                if "published" not in cell or not (row.get("experiment") or cell.get("n")):
                    continue
                ran, whole = row.get("epochs"), row.get("epochs_published")
                digits = max(_decimals(n["published"]) for c, n in given if c == column)
                hours = None
                if whole and isinstance(ran, int) and 0 < ran < whole:
                    hours = whole * row["seconds_per_epoch"] / 3600
                yield {
                    "table": table,
                    "row": row,
                    "column": column,
                    "published": cell["published"],
                    "ours": cell,
                    "verdict": _verdict(cell, digits, ran, whole),
                    "hours": hours,
                }


def _verdict(cell: Mapping[str, Any], digits: int, ran: Any, whole: Any) -> str:
    if not cell.get("n"):
        return "not run"
    if "elsewhere" in cell:
        return f"not comparable: published for {cell['elsewhere']}"
    if not cell["verified"]:
        return "not compared: the published number was not read in the paper itself"
    gap = cell["mean"] - cell["published"]
    spread = (cell["std"] or 0.0) + 0.5 * 10.0**-digits  # published numbers are rounded
    where = "within the spread" if abs(gap) <= spread else "above" if gap > 0 else "below"
    words = where if where == "within the spread" else f"{where} by {abs(gap):.2f}"
    words += "" if cell["n"] > 1 else ", one seed"
    if whole and isinstance(ran, int) and 0 < ran < whole:
        words += f", after {ran} of {whole} epochs"
    return words


def _decimals(value: float) -> int:
    """That a number is written with: one of 2.7."""
    text = f"{value:g}"
    return len(text.split(".")[1]) if "." in text else 0


def at_paper_budget(row: Mapping[str, Any]) -> bool:
    """Whether a row ran for as many epochs as its paper says."""
    ran, whole = row.get("epochs"), row.get("epochs_published")
    return bool(whole) and isinstance(ran, int) and ran >= whole


def seeds(row: Mapping[str, Any]) -> int:
    """How many seeds stand behind a row; 0 for a row that was not run."""
    return max((cell.get("n", 0) for cell in row["cells"].values()), default=0)


def coverage(rows: Sequence[Mapping[str, Any]]) -> str:
    """How many of the rows that train something have three seeds, and ran for the paper's epochs,
    in words; nothing where none trains."""
    trained = [row for row in rows if seeds(row) and row.get("epochs") != 0]
    if not trained:
        return ""
    three = sum(seeds(row) >= 3 for row in trained)
    known = {_what(row): False for row in trained if row.get("epochs_published")}
    known |= {_what(row): True for row in trained if at_paper_budget(row)}
    words = f"{three} of {len(trained)} trained rows have three seeds or more"
    if known:  # at any budget
        words += f"; {sum(known.values())} of {len(known)} ran for the paper's epochs"
    return words


def _what(row: Mapping[str, Any]) -> tuple[Any, ...]:
    """What a row is of a table, whatever its budget."""
    return row.get("section"), row["name"], row.get("experiment")
