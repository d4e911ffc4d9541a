"""``geodl mode=table``: launch what a table lacks, then write it from the ledger alone.

A table (``configs/table/<name>.yaml``) names its columns (a test set and a metric each) and its
rows (an experiment each, or only a published value). A budget is a list of overrides: what "short"
means, the table says. No torch is imported here.
"""

from __future__ import annotations

import csv
import io
import json
import math
import statistics
import sys
from collections.abc import Generator, Iterable, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from omegaconf import DictConfig, OmegaConf

from geodl import record
from geodl.data.files import atomic
from geodl.errors import UserError

# What may be given on the command line beside a table: nothing that changes what is trained.
BESIDE = (
    *("mode", "table", "budget", "paths", "trainer", "workers", "logger", "figures"),
    *("allow", "force", "sweep"),
)
PICTURES = ("bars", "curve", "heatmap")
# A row's own, or the table's.
_BOTH = ("published_on", "verified", "metric", "unit", "seeds", "budgets")
TABLE_KEYS = {
    *("title", "about", "columns", "rows", "source", "evidence", "picture", "claims"),
    *_BOTH,
}
ROW_KEYS = {
    *("name", "section", "series", "x", "experiment", "overrides", "runs", "test", "tests"),
    *("note", "published", "epochs_published"),
    *_BOTH,
}
COLUMN_KEYS = {"name", "test", "metric", "unit"}


@dataclass(frozen=True)
class Job:
    """One run of a table: the row's number, the seed, the command's words, the composed config."""

    row: int
    seed: int
    words: tuple[str, ...]
    cfg: DictConfig


# ---- the mode ----


def table(cfg: DictConfig) -> str:
    """Launch what is missing, copy what is finished to the ledger, write the table's files.

    Raises:
        UserError: an unknown key in the table, an override that a table does not take.
    """
    from hydra.core.hydra_config import HydraConfig

    hydra = HydraConfig.get()
    name = str(hydra.runtime.choices["table"])
    extra = _extra(list(hydra.overrides.task))
    plain = cast("dict[str, Any]", OmegaConf.to_container(cfg.table, resolve=True))
    check(name, plain)
    work = jobs(plain, str(cfg.budget), extra)
    ledger = Path(cfg.paths.ledger).expanduser()
    _collect_finished(work, ledger)
    todo = [job for job in work if cfg.force or not _complete(job.cfg)]
    sys.stderr.write(
        f"table {name}, budget {cfg.budget}: {len(work)} runs, {len(work) - len(todo)} finished\n"
    )
    failed = 0
    if todo:
        from geodl.run import launch, summary

        chosen = [w for w in hydra.overrides.task if w.startswith(("sweep=", "paths."))]
        words = [*hydra.overrides.hydra, *chosen]
        entries = launch([list(job.words) for job in todo], words, Path(cfg.paths.outputs))
        failed = summary(entries)
        _collect_finished(todo, ledger)
    data = collect(name, plain, str(cfg.budget), work, ledger)
    folder = ledger.parent
    write(data, folder)
    text = f"{markdown(data)}\n{folder / data['file']}.md"
    if failed:
        sys.stdout.write(f"{text}\n")
        sys.stderr.write(f"geodl: {failed} of {len(todo)} runs failed; the table has the others\n")
        sys.exit(1)
    return text


def _extra(words: Sequence[str]) -> list[str]:
    """The words of the command line that every run takes over."""
    taken: list[str] = []
    for word in words:
        key, dot, _ = word.lstrip("+~").partition("=")[0].partition(".")
        if word == "debug=trace":
            continue
        if key.split("/")[0] not in BESIDE or (key == "trainer" and dot):
            raise UserError(
                f"{word} cannot be given with mode=table: a row's runs are its experiment's, "
                "shortened by budget=smoke, short or paper."
            )
        if key not in ("mode", "table", "budget"):
            taken.append(word)
    return taken


def check(name: str, plain: Mapping[str, Any]) -> None:
    """Raises UserError where a table says something that nothing reads, or lacks something."""

    def known(where: str, given: Iterable[str], choices: Iterable[str]) -> None:
        for key in given:
            if key not in choices:
                raise UserError(
                    f"table/{name}.yaml: {where}{key} is not known: choose {_list(choices)}."
                )

    known("", plain, TABLE_KEYS)
    for key in ("title", "columns", "rows"):
        if not plain.get(key):
            raise UserError(f"table/{name}.yaml has no {key}: see table/order_invariance.yaml.")
    known("picture: ", [plain["picture"]] if "picture" in plain else [], PICTURES)
    titles, tests = [str(c.get("name")) for c in plain["columns"]], {"clean"}
    for i, column in enumerate(plain["columns"]):
        known(f"columns[{i}].", column, COLUMN_KEYS)
        tests |= {column["test"]} if "test" in column else set()
    for i, row in enumerate(plain["rows"]):
        known(f"rows[{i}].", row, ROW_KEYS)
        known(f"rows[{i}].tests: ", row.get("tests", ()), tests)
        if isinstance(given := row.get("published"), Mapping):
            known(f"rows[{i}].published: ", given, titles)


def _list(words: Iterable[str]) -> str:
    return ", ".join(sorted(words))


# ---- what there is to run ----


def jobs(plain: Mapping[str, Any], budget: str, extra: Sequence[str] = ()) -> list[Job]:
    """Every run of a table, composed."""
    found: list[Job] = []
    with _hydra() as compose:
        for i, row in enumerate(plain["rows"]):
            if not row.get("experiment"):
                continue
            tests = list(dict.fromkeys(c["test"] for c in columns(plain, row)))
            words = [f"experiment={row['experiment']}", *shortened(plain, row, budget)]
            words += [*row.get("overrides", ()), f"test=[{','.join(tests)}]", *extra]
            for seed in row.get("seeds", plain.get("seeds", [0])):
                run = (*words, f"seed={seed}")
                found.append(Job(i, int(seed), run, compose("run", overrides=list(run))))
    return found


def shortened(plain: Mapping[str, Any], row: Mapping[str, Any], budget: str) -> list[str]:
    """The overrides of a budget; a row's own take the place of the table's.

    Raises:
        UserError: neither has it.
    """
    for place in (row, plain):
        if budget in (place.get("budgets") or {}):
            return list(place["budgets"][budget] or [])
    known = _list({*(plain.get("budgets") or {}), *(row.get("budgets") or {})})
    raise UserError(f"budget={budget}: this table has {known}.")


def columns(plain: Mapping[str, Any], row: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The columns that a row fills, with the row's own metric where the column has none."""
    own = row.get("tests")
    rest = {k: row.get(k, plain.get(k)) for k in ("metric", "unit")}
    rest["test"] = row.get("test", "clean")
    filled = [{**rest, **column} for column in plain["columns"]]
    return [c for c in filled if own is None or c["test"] in own]


@contextmanager
def _hydra() -> Generator[Any]:
    """Hydra's ``compose``, in the session of the command line or in one of its own."""
    from hydra import compose, initialize_config_dir
    from hydra.core.global_hydra import GlobalHydra

    from geodl.run import config_dir

    if GlobalHydra.instance().is_initialized():
        yield compose
        return
    with initialize_config_dir(str(config_dir()), version_base="1.3"):
        yield compose


def _complete(cfg: DictConfig) -> bool:
    done = record.finished(cfg)
    return done is not None and not record.missing_tests(cfg, done[1])


def _collect_finished(work: Iterable[Job], ledger: Path) -> None:
    for job in work:
        record.to_ledger(record.run_folder(job.cfg), ledger)


# ---- from the ledger to a table ----


def collect(
    name: str, plain: Mapping[str, Any], budget: str, work: Sequence[Job], ledger: Path
) -> dict[str, Any]:
    """The table as plain data, from the ledger's entries and the published values alone."""
    rows: list[dict[str, Any]] = []
    for i, row in enumerate(plain["rows"]):
        mine = [job for job in work if job.row == i]
        files = [(ledger / f"{run}.json", None) for run in row.get("runs", ())]
        files += [(ledger / record.ledger_entry(job.cfg).name, job.cfg) for job in mine]
        results = [(json.loads(f.read_text()), cfg) for f, cfg in files if f.is_file()]
        rows.append(_row(plain, row, results))
        if mine:
            words = [w for w in mine[0].words if not w.startswith(("seed=", "paths."))]
            seeds = ",".join(str(job.seed) for job in mine)
            rows[-1]["command"] = " ".join([*words, f"seed={seeds}"])
    short = budget == "short"
    kept = ("about", "source", "evidence", "picture", *(["claims"] if short else []))
    return {
        "name": name,
        "title": plain["title"] if short else f"{plain['title']} (budget {budget})",
        "file": name if short else f"{name}-{budget}",
        "budget": budget,
        "overrides": (plain.get("budgets") or {}).get(budget) or [],
        **{k: plain[k] for k in kept if plain.get(k)},
        "columns": [str(c["name"]) for c in plain["columns"]],
        "rows": rows,
    }


def _row(
    plain: Mapping[str, Any], row: Mapping[str, Any], results: Sequence[tuple[Any, Any]]
) -> dict[str, Any]:
    cells: dict[str, Any] = {}
    given = row.get("published")
    if given is not None and not isinstance(given, Mapping):
        given = {str(plain["columns"][0]["name"]): given}
    verified = bool(row.get("verified", plain.get("verified", False)))
    elsewhere = row.get("published_on", plain.get("published_on"))
    for column in columns(plain, row):
        test, title = column["test"], str(column["name"])
        scores = [
            result["eval"][test]["scores"]
            for result, cfg in results
            if test in result.get("eval", {})
            and (cfg is None or test not in record.missing_tests(cfg, result))
        ]
        for known in (s for s in scores if column["metric"] not in s):
            raise UserError(
                f"{row['name']} has no metric {column['metric']}: choose {_list(known)}."
            )
        values = [float(s[column["metric"]]) for s in scores]
        factor = 100.0 if column.get("unit") == "%" else 1.0
        cell: dict[str, Any] = {"unit": column.get("unit")}
        if values:
            spread = statistics.stdev(values) if len(values) > 1 else None
            cell |= {
                "mean": round(factor * statistics.fmean(values), 4),
                "std": None if spread is None else round(factor * spread, 4),
                "n": len(values),
            }
        if given and title in given:
            cell |= {"published": float(given[title]), "verified": verified}
            if elsewhere:
                cell["elsewhere"] = elsewhere
            elif verified and values:
                cell["difference"] = round(cell["mean"] - cell["published"], 4)
        if len(cell) > 1:
            cells[title] = cell
    if plain.get("picture") == "heatmap":
        _compare(cells, str(plain["columns"][0]["name"]))
    first = [r for r, _ in results]
    kept = ("name", "section", "series", "x", "experiment", "epochs_published", "note")
    return {
        **{k: row[k] for k in kept if row.get(k) is not None},
        "cells": cells,
        "epochs": _one(r["epochs"] for r in first),
        "parameters": _one(r["parameters"] for r in first),
        "seconds_per_epoch": (
            round(statistics.fmean(r["seconds_per_epoch"] for r in first), 1) if first else None
        ),
        "device": _one(r.get("device") for r in first),
        "protocol": _one(r["protocol"] for r in first),
        "commit": sorted({str(r["commit"])[:8] for r in first}),
        "runs": sorted(f"{r['hash']}-s{r['seed']}" for r in first),
    }


def _compare(cells: dict[str, Any], standard: str) -> None:
    """Add to every other cell ``change`` against the standard column, in points of a percentage or
    as the factor of an error, and ``worse``, how much worse that is: 0 to 1 (50 points, factor 8).
    """
    before = cells.get(standard, {}).get("mean")
    for name, cell in cells.items():
        mean = cell.get("mean")
        if name == standard or before is None or mean is None:
            continue
        if cell["unit"] == "%":
            cell["change"] = f"{round(mean - before, 1) + 0.0:+.1f}"
            harm = (before - mean) / 50.0
        else:
            cell["change"] = f"x{mean / max(before, 1e-9):.2f}"
            harm = math.log2(max(mean, 1e-9) / max(before, 1e-9)) / 3.0
        cell["worse"] = round(min(1.0, max(0.0, harm)), 3)


def _one(values: Iterable[Any]) -> Any:
    """The value that all share, the list of different ones, or None."""
    found = list(dict.fromkeys(values))
    return None if not found else found[0] if len(found) == 1 else found


# ---- files ----


def write(data: Mapping[str, Any], folder: Path) -> None:
    """<name>.json, .md, .csv, .tex and, if the table has one, .png."""
    folder.mkdir(parents=True, exist_ok=True)
    stem = folder / str(data["file"])
    record.write_json(stem.with_suffix(".json"), data)
    for suffix, text in ((".md", markdown(data)), (".csv", as_csv(data)), (".tex", latex(data))):
        with atomic(stem.with_suffix(suffix)) as part:
            part.write_text(text)
    if _drawn(data):
        from geodl import viz

        getattr(viz, f"table_{data['picture']}")(data, stem.with_suffix(".png"))


def _drawn(data: Mapping[str, Any]) -> bool:
    """Whether there is a picture: a table that asks for one, and has numbers."""
    filled = any(c.get("n") for r in data["rows"] for c in r["cells"].values())
    return bool(data.get("picture")) and filled


def written(folder: Path) -> list[dict[str, Any]]:
    """The tables of a folder, as they were written."""
    found = [json.loads(file.read_text()) for file in sorted(folder.glob("*.json"))]
    return [t for t in found if isinstance(t, dict) and {"columns", "rows", "file"} <= t.keys()]


def number(cell: Mapping[str, Any]) -> str:
    """Ours: mean ± standard deviation (number of seeds)."""
    if not cell.get("n"):
        return ""
    spread = f" ± {cell['std']:.2f}" if cell["std"] is not None else ""
    return f"{cell['mean']:.2f}{spread} ({cell['n']})"


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
    short = len(data["columns"]) == 1
    head = ["section"] if sections else []
    head.append("")
    for c in data["columns"]:
        head.append("ours" if short else c)
        head += ["published" if short else f"{c}, published"] if c in with_published else []
        head += ["difference" if short else f"{c}, difference"] if c in with_gap else []
    head += ["epochs / published", "parameters", "s / epoch", "protocol", "commit"]
    for r in rows:
        cells = [r.get("section", "")] if sections else []
        cells.append(r["name"])
        for c in data["columns"]:
            cell = r["cells"].get(c, {})
            cells.append(number(cell))
            cells += [_published(cell)] if c in with_published else []
            gap = cell.get("difference")
            cells += ["" if gap is None else f"{gap:+.2f}"] if c in with_gap else []
        ran, whole = _plain(r["epochs"]), _plain(r.get("epochs_published"))
        count = r["parameters"]
        cells += [
            f"{ran} / {whole}" if ran and whole else ran,
            f"{count:,}" if isinstance(count, int) else _plain(count),
            _plain(r["seconds_per_epoch"]),
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
    lines.append("Ours: mean ± standard deviation over seeds (number of seeds).")
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
    if _drawn(data):
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
    keys = ("mean", "std", "n", "published", "verified", "difference", "unit", "change")
    rest = ("epochs", "parameters", "seconds_per_epoch", "protocol", "commit", "runs")
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(["section", "row", "column", *keys, *rest])
    for r in data["rows"]:
        for column, cell in r["cells"].items():
            values = [cell.get(k) for k in keys] + [_plain(r.get(k)) for k in rest]
            blank = ["" if v is None else v for v in values]
            writer.writerow([r.get("section", ""), r["name"], column, *blank])
    return stream.getvalue()


def latex(data: Mapping[str, Any]) -> str:
    """A tabular of the booktabs package."""
    head, rows = grid(data)
    head, rows = head[:-2], [row[:-2] for row in rows]  # without protocol and commit

    def line(cells: Sequence[str]) -> str:
        text = " & ".join(cells)
        for plain, escaped in (("%", r"\%"), ("_", r"\_"), ("±", r"$\pm$"), ("†", r"$\dagger$")):
            text = text.replace(plain, escaped)
        return f"{text} \\\\"

    body = [line(row) for row in rows]
    align = "l" * (2 if head[0] == "section" else 1)
    align += "r" * (len(head) - len(align))
    return "\n".join(
        [
            f"% {data['title']}: geodl mode=table table={data['name']} budget={data['budget']}",
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
        f"{row} {number(cell)} {cell['unit'] or ''}".rstrip()
        for row, cell in cells
        if cell.get("n")
    ]
    short = data.get("picture") != "heatmap" and len(ours) < 8
    text = f": {'; '.join(ours)}" if short and ours else ""
    return f"- [{data['title']}]({folder}/{data['file']}.md){text}"
