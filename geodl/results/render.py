"""A table as Markdown, CSV, LaTeX and picture; read from its .json alone."""

from __future__ import annotations

import csv
import io
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

from geodl.atomic import atomic
from geodl.atomic import cell as safe_cell
from geodl.results.evidence import BEST, EVEN, LEVEL, coverage
from geodl.results.reference import in_numbers
from geodl.runs import record


def write(data: Mapping[str, Any], folder: Path) -> None:
    """<name>.json, .md, .csv, .tex and, if the table has one, .png."""
    folder.mkdir(parents=True, exist_ok=True)
    stem = folder / str(data["file"])
    record.write_json(stem.with_suffix(".json"), data)
    for suffix, text in ((".md", markdown(data)), (".csv", as_csv(data)), (".tex", latex(data))):
        with atomic(stem.with_suffix(suffix)) as part:
            part.write_text(text)
    if drawn(data):
        from geodl.viz import tables

        getattr(tables, str(data["picture"]))(data, stem.with_suffix(".png"))


def drawn(data: Mapping[str, Any]) -> bool:
    """Whether there is a picture: a table that asks for one, and has numbers."""
    filled = any(c.get("n") or "yours" in c for r in data["rows"] for c in r["cells"].values())
    return bool(data.get("picture")) and filled


def written(folder: Path) -> list[dict[str, Any]]:
    """The tables of a folder, as they were written."""
    found = [json.loads(file.read_text()) for file in sorted(folder.glob("*.json"))]
    return [t for t in found if isinstance(t, dict) and {"columns", "rows", "file"} <= t.keys()]


def _published(cell: Mapping[str, Any]) -> str:
    if "published" not in cell:
        return ""
    text = f"{cell['published']:g}" + (" †" if "elsewhere" in cell else "")
    return text if cell["verified"] else f"({text})"


def grid(data: Mapping[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Head and rows of the table as text."""
    rows = data["rows"]
    sections = any("section" in r for r in rows)
    blocks: list[list[str]] = []
    with_published = [
        c for c in data["columns"] if any("published" in r["cells"].get(c, {}) for r in rows)
    ]
    with_gap = [
        c for c in with_published if any("difference" in r["cells"].get(c, {}) for r in rows)
    ]
    with_yours = [c for c in data["columns"] if any("yours" in r["cells"].get(c, {}) for r in rows)]
    short = len(data["columns"]) == 1
    head = ["section"] if sections else []
    head.append("")
    for c in data["columns"]:
        head.append("reference" if short else c)
        head += ["yours" if short else f"{c}, yours"] if c in with_yours else []
        head += ["published" if short else f"{c}, published"] if c in with_published else []
        head += ["difference" if short else f"{c}, difference"] if c in with_gap else []
    head += ["epochs / published", "parameters", "s / epoch", "peak MB", "protocol", "commit"]
    for r in rows:
        cells = [r.get("section", "")] if sections else []
        cells.append(r["name"])
        for c in data["columns"]:
            cell = r["cells"].get(c, {})
            cells.append(f"{in_numbers(cell)} {cell.get('mark', '')}".rstrip())
            cells += [in_numbers(cell.get("yours", {}))] if c in with_yours else []
            cells += [_published(cell)] if c in with_published else []
            gap = cell.get("difference")
            cells += ["" if gap is None else f"{gap:+.2f}"] if c in with_gap else []
        ran, whole = _plain(r["epochs"]), _plain(r.get("epochs_published"))
        count = r["parameters"]
        cells += [
            f"{ran} / {whole}" if ran and whole else ran,
            f"{count:,}" if isinstance(count, int) else _plain(count),
            _plain(r["seconds_per_epoch"]),
            _plain(r.get("peak_memory_mb")),
            _plain(r["protocol"]),
            ", ".join(r["commit"]),
        ]
        blocks.append(cells)
    return head, blocks


def _plain(value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(map(str, cast("list[Any]", value)))
    return "" if value is None else str(value)


def notes(data: Mapping[str, Any]) -> list[str]:
    """What stands below a table."""
    words = f": {' '.join(data['overrides'])}" if data["overrides"] else ""
    lines = [f"Budget {data['budget']}{words}."]
    lines += [
        f"{r['name']}: instead {' '.join(r['budget']) or 'its experiment as it stands'}."
        for r in data["rows"]
        if r.get("budget", data["overrides"]) != data["overrides"]
    ]
    lines.append(
        "Reference: what this project measured, mean ± standard deviation over seeds (number of "
        "seeds), one thread per job, at the commits named."
    )
    marks = {c.get("mark") for r in data["rows"] for c in r["cells"].values()}
    if BEST in marks:
        even = f"; {EVEN} not told apart from it (p > {LEVEL})" if EVEN in marks else ""
        lines.append(
            f"{BEST} the best mean of its section and data{even}: by a t-test over seeds; rows of "
            "one seed each by a paired test over shapes where those are stored, else not at all."
        )
    if counted := coverage(data["rows"]):
        lines.append(f"{counted}.")
    if any("yours" in c for r in data["rows"] for c in r["cells"].values()):
        lines.append("Yours: the same of your finished runs.")
    if any("*" in c for r in data["rows"] for c in r.get("commit", ())):
        lines.append("*: the code had changes that are in no commit.")
    published = [c for r in data["rows"] for c in r["cells"].values() if "published" in c]
    if published:
        evidence = f" ({str(data['evidence']).replace('_', ' ')})" if data.get("evidence") else ""
        lines.append(f"Published: {data.get('source', 'see the rows')}{evidence}.")
    if not all(c["verified"] for c in published):
        lines.append("In parentheses: not read in the paper itself, so no difference is taken.")
    if elsewhere := sorted({c["elsewhere"] for c in published if "elsewhere" in c}):
        lines.append(f"† {'; '.join(elsewhere)}: not comparable number by number.")
    lines += [f"{r['name']}: {r['note']}." for r in data["rows"] if r.get("note")]
    return lines


def markdown(data: Mapping[str, Any]) -> str:
    head, rows = grid(data)
    lines = [f"# {data['title']}", ""]
    if data.get("about"):
        lines += [str(data["about"]).strip(), ""]
    lines += ["| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
    lines += ["| " + " | ".join(row) + " |" for row in rows]
    lines += ["", *(f"- {line}" for line in notes(data)), ""]
    if data.get("picture") == "heatmap":
        lines += [*_changes(data), ""]
    if drawn(data):
        lines += [f"![{data['title']}]({data['file']}.png)", ""]
    for claim in data.get("claims", ()):
        lines += [str(claim).strip(), ""]
    lines += ["## Commands", ""]
    for r in data["rows"]:
        if "command" in r:
            many = "-m " if "," in r["command"].rsplit("seed=", 1)[1] else ""
            lines.append(f"- {_where(r)}{r['name']}: `geodl {many}{r['command']}`")
    lines += [
        "",
        f"Written by `geodl mode=table table={data['name']} budget={data['budget']}`; do not edit.",
    ]
    return "\n".join(lines) + "\n"


def in_terminal(data: Mapping[str, Any]) -> str:
    """The numbers of a table, with what stands below them, for a screen. A heat map shows means
    alone: the file has the rest."""
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    head, rows = grid(data)
    head, rows = head[:-6], [row[:-6] for row in rows]  # epochs to commit are in the file
    if data.get("picture") == "heatmap":
        rows = [[word.split(" ")[0] if i > 1 else word for i, word in enumerate(r)] for r in rows]
    shown = Table(title=escape(str(data["title"])), title_justify="left")
    by_section = head[0] == "section"
    for i, word in enumerate(head[by_section:]):
        shown.add_column(escape(word), justify="right" if i else "left", ratio=None if i else 3)
    section = ""
    for row in rows:
        if by_section and row[0] != section:
            section = row[0]
            shown.add_section()
            shown.add_row(f"[bold]{escape(section)}")
        shown.add_row(*map(escape, row[by_section:]))
    console = Console(width=None if sys.stdout.isatty() else 160, file=io.StringIO())
    console.print(shown)
    text = cast(io.StringIO, console.file).getvalue()
    return text + "".join(f"- {line}\n" for line in notes(data))


def _where(row: Mapping[str, Any]) -> str:
    """The section of a row, without its unit."""
    return f"{str(row['section']).split(',')[0]}: " if "section" in row else ""


def _changes(data: Mapping[str, Any]) -> list[str]:
    """A second table: what every test costs against the first column."""
    standard, *others = data["columns"]
    lines = [
        f"Change against {standard}: points of a percentage, factors of an error.",
        "",
        "| section |  | " + " | ".join(others) + " |",
        "|---" * (len(others) + 2) + "|",
    ]
    for r in data["rows"]:
        cells = [r["cells"].get(c, {}).get("change", "") for c in others]
        if any(cells):
            lines.append(f"| {r.get('section', '')} | {r['name']} | " + " | ".join(cells) + " |")
    return lines


def as_csv(data: Mapping[str, Any]) -> str:
    """One line for every cell: row, column, mean, std, n, published, verified, difference, ..."""
    stream = io.StringIO()
    keys = ("mean", "std", "n", "mark", "published", "verified", "difference", "unit", "change")
    own = ("mean", "std", "n")
    rest = (
        "epochs",
        "parameters",
        "seconds_per_epoch",
        "peak_memory_mb",
        "protocol",
        "commit",
        "runs",
    )
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(["section", "row", "column", *keys, *(f"yours {k}" for k in own), *rest])
    for r in data["rows"]:
        for column, cell in r["cells"].items():
            yours = cell.get("yours", {})
            values = [cell.get(k) for k in keys] + [yours.get(k) for k in own]
            values += [_plain(r.get(k)) for k in rest]
            blank = ["" if v is None else v for v in values]
            names = [r.get("section", ""), r["name"], column]
            writer.writerow([safe_cell(v) for v in (*names, *blank)])
    return stream.getvalue()


TEX = str.maketrans(
    {
        **{c: f"\\{c}" for c in "%_&#${}"},
        "\\": r"\textbackslash{}",
        "^": r"\textasciicircum{}",
        "~": r"\textasciitilde{}",
        "±": r"$\pm$",
        "†": r"$\dagger$",
        BEST: r"$\bullet$",
        EVEN: r"$\circ$",
        "<": r"\textless{}",
        ">": r"\textgreater{}",
    }
)


def latex(data: Mapping[str, Any]) -> str:
    """A tabular of the booktabs package."""
    head, rows = grid(data)
    head, rows = head[:-2], [row[:-2] for row in rows]  # without protocol and commit

    def line(cells: Sequence[str]) -> str:
        return f"{' & '.join(c.translate(TEX) for c in cells)} \\\\"

    body = [line(row) for row in rows]
    align = "l" * (2 if head[0] == "section" else 1)
    align += "r" * (len(head) - len(align))
    title = " ".join(str(data["title"]).split())
    return "\n".join(
        [
            f"% {title}: geodl mode=table table={data['name']} budget={data['budget']}",
            f"\\begin{{tabular}}{{{align}}}",
            "\\toprule",
            line(head),
            "\\midrule",
            *body,
            "\\bottomrule",
            "\\end{tabular}",
            "",
        ]
    )


def in_words(data: Mapping[str, Any], folder: str) -> str:
    """A table as one item of a list: a link, and ours in the first column."""
    name = data["columns"][0]
    cells = [(r["name"], r["cells"].get(name, {})) for r in data["rows"]]
    ours = [
        f"{row} {in_numbers(cell)} {cell['unit'] or ''}".rstrip()
        for row, cell in cells
        if cell.get("n")
    ]
    short = data.get("picture") != "heatmap" and len(ours) < 8
    text = f": {'; '.join(ours)}" if short and ours else ""
    return f"- [{data['title']}]({folder}/{data['file']}.md){text}"
