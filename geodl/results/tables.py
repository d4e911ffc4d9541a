"""``geodl mode=table``: launch what yours lacks, then set side by side what was published, what
this project measured (the reference) and what you did.

A table (``configs/table/<name>.yaml``) names its columns (a test set and a metric each) and its
rows (an experiment each, or only a published value). A budget is a list of overrides: what "short"
means, the table says. No torch is imported here.
"""

from __future__ import annotations

import json
import math
import re
import statistics
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from omegaconf import DictConfig, OmegaConf

from geodl.errors import UserError
from geodl.results.evidence import ranked
from geodl.results.reference import entries, factor, over_seeds, reference_dir
from geodl.results.render import drawn, in_terminal, write
from geodl.runs import record
from geodl.runs.compose import composer
from geodl.runs.sweep import launch, summary

# What may be given on the command line beside a table: nothing that changes what is trained.
BESIDE = (
    *("mode", "table", "budget", "paths", "trainer", "workers", "logger", "figures", "stop_code"),
    *("allow", "force", "sweep", "launch", "threads", "seed"),
)
PICTURES = ("bars", "cost", "curve", "heatmap")
# A row's own, or the table's.
_BOTH = ("published_on", "verified", "metric", "seeds", "budgets")
TABLE_KEYS = {
    *("title", "about", "columns", "rows", "source", "evidence", "picture", "claims"),
    *_BOTH,
}
ROW_KEYS = {
    *("name", "section", "series", "x", "experiment", "overrides", "runs", "test", "tests"),
    *("note", "published", "epochs_published"),
    *_BOTH,
}
COLUMN_KEYS = {"name", "test", "metric"}


@dataclass(frozen=True)
class Job:
    """One run of a table: the row's number, the seed, the command's words, the composed config."""

    row: int
    seed: int
    words: tuple[str, ...]
    cfg: DictConfig


# ---- the mode ----


def table(cfg: DictConfig) -> str:
    """Launch what yours lacks, of all seeds or of the one that is given, and write the table's
    files to ``<paths.outputs>/tables``.

    Raises:
        UserError: an unknown key in the table, an override that a table does not take, a seed that
            no row has.
    """
    from hydra.core.hydra_config import HydraConfig

    hydra = HydraConfig.get()
    name = str(hydra.runtime.choices["table"])
    extra = _extra(list(hydra.overrides.task))
    plain = cast("dict[str, Any]", OmegaConf.to_container(cfg.table, resolve=True))
    check(name, plain)
    work = jobs(plain, str(cfg.budget), extra)
    reference = reference_dir(cfg)
    every = not any(word.startswith("seed=") for word in hydra.overrides.task)
    wanted = [job for job in work if every or job.seed == cfg.seed]
    if not (every or wanted):
        seeds = _list(map(str, {job.seed for job in work}))
        raise UserError(f"seed={cfg.seed}: the rows of this table have {seeds}.")
    lacking = [job for job in wanted if yours(job.cfg) is None]
    todo = (wanted if cfg.force else lacking) if cfg.launch else []
    done = len(wanted) - len(lacking)
    sys.stderr.write(
        f"table {name}, budget {cfg.budget}: {len(wanted)} runs, {done} of yours finished"
        f"{_forecast(todo, reference)}\n"
    )
    failed = 0
    if todo:
        chosen = [w for w in hydra.overrides.task if w.startswith(("sweep=", "paths."))]
        words = [*hydra.overrides.hydra, *chosen]
        found: list[dict[str, Any]] = []
        if before := _before(todo, extra):
            begun: list[dict[str, Any]] = []
            launch(before, words, begun)
            failed = summary(begun)
        launch([list(job.words) for job in todo], words, found)
        failed += summary(found)
    if cfg.paths.ledger:  # for the other machines that share it, runs of before included
        for job in work:
            record.to_ledger(record.run_folder(job.cfg), Path(cfg.paths.ledger).expanduser())
    data = collect(name, plain, str(cfg.budget), work, reference, yours)
    folder = Path(cfg.paths.outputs).expanduser() / "tables"
    write(data, folder)
    text = (
        f"{in_terminal(data)}\n{folder / data['file']}.md (.csv .tex .json{' .png' * drawn(data)})"
    )
    if failed:
        sys.stdout.write(f"{text}\n")
        sys.stderr.write(f"geodl: {failed} of {len(todo)} runs failed; the table has the others\n")
        sys.exit(1)
    return text


def _before(todo: Sequence[Job], extra: Sequence[str]) -> list[list[str]]:
    """The words of the runs that jobs start from (``init``) and that are not there yet."""
    found: dict[str, list[str]] = {}
    for job in todo:
        start = record.start_of(job.cfg)
        if start is not None and record.weights_of(start) is None:
            words = [*str(job.cfg.init).split(), *extra, f"seed={job.seed}"]
            found[record.run_name(start)] = words
    return list(found.values())


def yours(cfg: DictConfig) -> dict[str, Any] | None:
    """The result of a finished run of this user that has all test sets of a config."""
    done = record.finished(cfg)
    return None if done is None or record.missing_tests(cfg, done[1]) else done[1]


def _forecast(todo: Sequence[Job], reference: Path) -> str:
    """How long the training of these jobs took when the reference was made."""
    known = [entries(reference, record.run_hash(job.cfg)) for job in todo]
    seconds = [statistics.fmean(e["seconds"] for e in found) for found in known if found]
    if not seconds:
        return ""
    some = "" if len(seconds) == len(todo) else f" {len(seconds)} of"
    minutes = max(1, round(sum(seconds) / 60))
    return f"; the reference's training of{some} the {len(todo)} others took {minutes} min"


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
        if key not in ("mode", "table", "budget", "launch", "seed"):
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
    with composer() as compose:
        for i, row in enumerate(plain["rows"]):
            if not row.get("experiment"):
                continue
            tests = list(dict.fromkeys(c["test"] for c in columns(plain, row)))
            words = [f"experiment={row['experiment']}", *shortened(plain, row, budget)]
            words += [*row.get("overrides", ()), f"test=[{','.join(tests)}]", *extra]
            for seed in row.get("seeds", plain.get("seeds", [0])):
                run = (*words, f"seed={seed}")
                found.append(Job(i, int(seed), run, compose(run)))
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
    rest = {k: row.get(k, plain.get(k)) for k in ("metric",)}
    rest["test"] = row.get("test", "clean")
    filled = [{**rest, **column} for column in plain["columns"]]
    return [c for c in filled if own is None or c["test"] in own]


# ---- from results to a table ----


def collect(
    name: str,
    plain: Mapping[str, Any],
    budget: str,
    work: Sequence[Job],
    reference: Path,
    own: Callable[[DictConfig], dict[str, Any] | None] = lambda cfg: None,
) -> dict[str, Any]:
    """The table as plain data: published values, the reference's entries, and what ``own`` finds
    for every job."""
    found: list[tuple[list[Any], list[Any]]] = []
    for i, row in enumerate(plain["rows"]):
        mine = [job for job in work if job.row == i]
        files = [(run, None) for run in row.get("runs", ())]
        files += [(record.run_name(job.cfg), job.cfg) for job in mine]
        theirs = [(reference / "runs" / f"{run}.json", cfg) for run, cfg in files]
        results = [(json.loads(f.read_text()), cfg) for f, cfg in theirs if f.is_file()]
        ours = [(r, job.cfg) for job in mine if (r := own(job.cfg)) is not None]
        found.append((results, ours))
    meant: dict[str, Mapping[str, Any]] = {}
    for result, _ in (r for pair in found for results in pair for r in results):
        meant |= result["metrics"]
    rows: list[dict[str, Any]] = []
    for i, (row, results) in enumerate(zip(plain["rows"], found, strict=True)):
        rows.append(_row(plain, row, meant, *results))
        if budget in (row.get("budgets") or {}):
            rows[-1]["budget"] = row["budgets"][budget] or []
        if mine := [job for job in work if job.row == i]:
            words = [w for w in mine[0].words if not w.startswith(("seed=", "paths."))]
            seeds = ",".join(str(job.seed) for job in mine)
            rows[-1]["command"] = " ".join([*words, f"seed={seeds}"])
    ranked(rows)
    short = budget == "short"
    claims = [_claim(name, str(c), rows) for c in plain.get("claims", ())] if short else []
    kept = ("about", "source", "evidence", "picture")
    return {
        "name": name,
        "title": plain["title"] if short else f"{plain['title']} (budget {budget})",
        "file": name if short else f"{name}-{budget}",
        "budget": budget,
        "overrides": (plain.get("budgets") or {}).get(budget) or [],
        **{k: plain[k] for k in kept if plain.get(k)},
        **({"claims": claims} if claims else {}),
        "columns": [str(c["name"]) for c in plain["columns"]],
        "rows": rows,
    }


def _claim(table: str, text: str, rows: Sequence[Mapping[str, Any]]) -> str:
    """A claim with its numbers: ``{section/row/column}`` is what that cell of the reference costs
    against the standard column, or its value where there is nothing to compare with."""

    def number(match: re.Match[str]) -> str:
        section, name, column = match.groups()
        for row in rows:
            if row["name"] == name and section in row.get("section", ""):
                cell = row["cells"].get(column, {})
                if "change" in cell:
                    return str(cell["change"]).removeprefix("x")
                if "mean" in cell:
                    return f"{cell['mean']:.{1 if cell['unit'] == '%' else 2}f}"
        raise UserError(f"table/{table}.yaml: a claim asks for {match[0]}, which has no number.")

    return re.sub(r"\{([^/{}]*)/([^/{}]+)/([^/{}]+)\}", number, text)


Found = Sequence[tuple[Mapping[str, Any], DictConfig | None]]


def _row(
    plain: Mapping[str, Any],
    row: Mapping[str, Any],
    meant: Mapping[str, Mapping[str, Any]],
    theirs: Found,
    ours: Found,
) -> dict[str, Any]:
    cells: dict[str, Any] = {}
    given = row.get("published")
    if given is not None and not isinstance(given, Mapping):
        given = {str(plain["columns"][0]["name"]): given}
    verified = bool(row.get("verified", plain.get("verified", False)))
    elsewhere = row.get("published_on", plain.get("published_on"))
    commits: set[str] = set()
    for column in columns(plain, row):
        test, title, metric = column["test"], str(column["name"]), column["metric"]
        means = meant.get(metric, {})
        unit = means.get("unit")
        cell: dict[str, Any] = {"unit": unit, "better": means.get("better", "more")}
        cell |= _statistics(str(row["name"]), theirs, test, metric, unit)
        if each := _each(theirs, test, metric):
            cell["each"] = each
        if mine := _statistics(str(row["name"]), ours, test, metric, unit):
            cell["yours"] = mine
        if given and title in given:
            cell |= {"published": float(given[title]), "verified": verified}
            if elsewhere:
                cell["elsewhere"] = elsewhere
            elif verified and "mean" in cell:
                cell["difference"] = cell["mean"] - cell["published"]
        if len(cell) > 2:
            cells[title] = cell
        commits |= {commit_of(r, e) for r, e in _evaluations(theirs, test)}
    if plain.get("picture") == "heatmap":
        _compare(cells, str(plain["columns"][0]["name"]))
    first = [r for r, _ in theirs or ours]
    memory = [m for r in first if (m := r.get("peak_memory_mb"))]
    kept = ("name", "section", "series", "x", "experiment", "epochs_published", "note")
    return {
        **{k: row[k] for k in kept if row.get(k) is not None},
        "cells": cells,
        "epochs": _one(r["epochs"] for r in first),
        "parameters": _one(r["parameters"] for r in first),
        "seconds_per_epoch": (_seconds([r["seconds_per_epoch"] for r in first]) if first else None),
        "peak_memory_mb": round(statistics.fmean(memory)) if memory else None,
        "device": _one(r.get("device") for r in first),
        "protocol": _one(r["protocol"] for r in first),
        "commit": sorted(commits),
        "runs": sorted(f"{r['hash']}-s{r['seed']}" for r, _ in theirs),
    }


def _evaluations(results: Found, test: str) -> list[tuple[Mapping[str, Any], Mapping[str, Any]]]:
    """Results with their evaluation of a test set, where it has the options that are asked for."""
    return [
        (r, r["eval"][test])
        for r, cfg in results
        if test in r.get("eval", {}) and (cfg is None or test not in record.missing_tests(cfg, r))
    ]


def commit_of(result: Mapping[str, Any], evaluation: Mapping[str, Any]) -> str:
    """The commit of an evaluation; a star where it, or the training, was of code in no commit."""
    dirty = result.get("dirty") or evaluation.get("dirty")
    return f"{str(evaluation['commit'])[:8]}{'*' if dirty else ''}"


def _statistics(
    name: str, results: Found, test: str, metric: str, unit: str | None
) -> dict[str, Any]:
    """mean, std and n of a metric over the seeds; nothing where there are none, or where a task's
    metric says nothing of this run (errors, where the truth is not known)."""
    scores = [e["scores"] for _, e in _evaluations(results, test)]
    for known in (s for s in scores if metric not in s and unit is None):
        raise UserError(f"{name} has no metric {metric}: choose {_list(known)}.")
    scores = [s for s in scores if metric in s]
    return over_seeds([factor(unit or "") * float(s[metric]) for s in scores])


def _each(results: Found, test: str, metric: str) -> dict[str, list[float]]:
    """A metric of every shape, by the shapes it is of; nothing where shapes are not independent,
    there are several seeds, or the score is another mean than that over shapes."""
    known = [(e.get("each", {}), e["scores"]) for _, e in _evaluations(results, test)]
    each, scores = known[0] if len(known) == 1 else ({}, {})
    if each.get("metric") != metric or not each.get("shapes"):
        return {}
    values = [float(value) for value in each["values"].split()]
    if not math.isclose(sum(values) / len(values), scores[metric], rel_tol=1e-3):
        return {}
    return {each["shapes"]: values}


def _compare(cells: dict[str, Any], standard: str) -> None:
    """Add to every other cell ``change`` against the standard column, in points of a percentage or
    as the factor of an error, and ``worse``, how much worse that is: 0 to 1 (50 points, factor 8).
    Both numbers are the reference's, or both yours.
    """
    first = cells.get(standard, {})
    for name, cell in cells.items():
        pairs = (first, cell), (first.get("yours", {}), cell.get("yours", {}))
        both = next(((a["mean"], b["mean"]) for a, b in pairs if "mean" in a and "mean" in b), None)
        if name == standard or both is None:
            continue
        before, mean = both
        if cell["unit"] == "%":
            cell["change"] = f"{mean - before:+.1f}".replace("-0.0", "+0.0")
            harm = (before - mean) / 50.0
        else:
            cell["change"] = f"x{mean / max(before, 1e-9):.2f}"
            harm = math.log2(max(mean, 1e-9) / max(before, 1e-9)) / 3.0
        cell["worse"] = round(min(1.0, max(0.0, harm)), 3)


def _seconds(values: Sequence[float]) -> float:
    """Their mean: tenths, thousandths below one."""
    mean = statistics.fmean(values)
    return round(mean, 1 if mean >= 1 else 3)


def _one(values: Iterable[Any]) -> Any:
    """The value that all share, the list of different ones, or None."""
    found = list(dict.fromkeys(values))
    return None if not found else found[0] if len(found) == 1 else found
