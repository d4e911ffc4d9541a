"""Search for good options with Optuna: resumable, with pruning, and with pictures of what mattered.

    python scripts/search.py --trials 30 encoder=pointnet epochs=20 \\
        'optim.lr=log(1e-4,1e-2)' 'encoder.dropout=range(0,0.6)' batch_size=8,16,32

Words are those of ``geodl``. One that offers a choice is searched: ``a,b,c``, ``range(low,high)``,
``log(low,high)`` or ``int(low,high)``. Every trial is a run of its own (select=val), so one that
comes again is skipped and a killed one resumed. The study lies in outputs/search/<name>.db; the
same command goes on with it. Needs pip install geodl[search].
"""

from __future__ import annotations

import sys
from pathlib import Path

# profile.py beside this file has the name of a standard module: its folder must not be searched.
sys.path[:] = [p for p in sys.path if Path(p).resolve() != Path(__file__).resolve().parent]

import argparse
import csv
import math
import re
import subprocess
import time
from typing import Any

import optuna
from matplotlib.figure import Figure
from optuna.trial import TrialState

from geodl.runs import record
from geodl.runs.build import task_class
from geodl.runs.compose import compose
from geodl.errors import UserError
from geodl.runs.mistakes import explain
from geodl.runs.sweep import die_along

SPAN = re.compile(r"(range|log|int)\(([^,]+),([^,]+)\)")


class Failed(Exception):
    """A run that ended with an error: the search goes on with another."""


def suggest(trial: optuna.Trial, key: str, space: str) -> Any:
    """A value for an option from its space, as written on the command line."""
    if match := SPAN.fullmatch(space):
        kind, low, high = match.groups()
        if kind == "int":
            return trial.suggest_int(key, int(low), int(high))
        return trial.suggest_float(key, float(low), float(high), log=kind == "log")
    return trial.suggest_categorical(key, space.split(","))


def is_space(word: str) -> bool:
    """Whether a word offers a choice.

    Raises:
        UserError: one between numbers that are none, or in the wrong order.
    """
    value = word.partition("=")[2]
    if (match := SPAN.fullmatch(value)) is None:
        return "," in value and not value.startswith("[")
    kind, *ends = match.groups()
    try:
        low, high = map(int if kind == "int" else float, ends)
    except ValueError:
        raise UserError(f"{word}: {kind}(low,high) takes two numbers.") from None
    if not (0 if kind == "log" else -math.inf) < low < high < math.inf:
        above = ", above 0" if kind == "log" else ""
        raise UserError(f"{word}: {kind}(low,high) takes a number and a higher one{above}.")
    return True


def values(folder: Path, columns: list[str]) -> list[float]:
    """The metric after every epoch so far: the first of these columns that there is."""
    try:
        with (folder / "metrics.csv").open() as stream:
            rows = list(csv.DictReader(stream))
    except FileNotFoundError:
        return []
    metric = next((c for c in columns if rows and c in rows[0]), "")
    return [float(row[metric]) for row in rows if row.get(metric)]


def objective(trial: optuna.Trial, words: list[str], columns: list[str]) -> float:
    """The best value of one run; pruned when it does not compare, and then stopped."""
    chosen = [
        f"{w.partition('=')[0]}={suggest(trial, *w.split('=', 1))}" if is_space(w) else w
        for w in words
    ]
    chosen = ["select=val", "figures=false", *chosen]
    cfg = compose(chosen)
    folder = record.run_folder(cfg)
    trial.set_user_attr("run", folder.name)
    command = [sys.executable, "-m", "geodl", *chosen]
    process = subprocess.Popen(command, preexec_fn=die_along)
    reported = 0
    try:
        while True:
            code = process.poll()
            found = values(folder, columns)
            for epoch in range(reported, len(found)):
                trial.report(found[epoch], epoch)
            if len(found) > reported and code is None and trial.should_prune():
                raise optuna.TrialPruned
            reported = len(found)
            if code is not None:
                break
            time.sleep(0.5)
    finally:
        if process.poll() is None:
            process.terminate()
            process.wait()
    if code:
        raise Failed(f"trial {trial.number} failed: {folder}/result.json says how.")
    if not found:
        raise UserError(
            f"trial {trial.number} has no {columns[0]}: give --metric one of the columns of "
            f"{folder}/metrics.csv."
        )
    better = max if trial.study.direction == optuna.study.StudyDirection.MAXIMIZE else min
    return better(found)


def draw(study: optuna.Study, metric: str, path: Path) -> None:
    """Value of every trial with the best so far, and how much each option mattered."""
    done = [t for t in study.trials if t.state == TrialState.COMPLETE]
    pruned = [t for t in study.trials if t.state == TrialState.PRUNED and t.intermediate_values]
    figure = Figure(figsize=(10, 3.6))
    left, right = figure.subplots(1, 2)
    left.plot([t.number for t in done], [t.value for t in done], "o", label="finished")
    if pruned:
        last = [t.intermediate_values[max(t.intermediate_values)] for t in pruned]
        left.plot([t.number for t in pruned], last, "x", color="gray", label="pruned")
    best, line = None, []
    maximise = study.direction == optuna.study.StudyDirection.MAXIMIZE
    for trial in done:
        value = float(trial.value or 0.0)
        best = value if best is None else max(best, value) if maximise else min(best, value)
        line.append(best)
    left.step([t.number for t in done], line, where="post", color="tab:red", label="best so far")
    left.set_xlabel("trial")
    left.set_ylabel(metric)
    left.legend(frameon=False)
    names: dict[str, float] = {}
    if len({t.value for t in done}) > 3:
        evaluator = optuna.importance.PedAnovaImportanceEvaluator()
        names = optuna.importance.get_param_importances(study, evaluator=evaluator)
    right.barh(list(names)[::-1], list(names.values())[::-1])
    right.set_xlabel("importance" if names else "importance: needs four finished trials")
    figure.tight_layout()
    figure.savefig(path, dpi=110, facecolor="white")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("words", nargs="+", help="words of geodl; those that offer a choice vary")
    parser.add_argument("--trials", type=int, default=20, help="in all, with those before")
    parser.add_argument("--metric", help="a column of metrics.csv; default: val, the headline one")
    parser.add_argument("--name", default="search", help="of the study")
    parser.add_argument("--seed", type=int, default=0, help="of the sampler")
    given = parser.parse_args()
    if not any(map(is_space, given.words)):
        raise UserError("no word offers a choice: write optim.lr=log(1e-4,1e-2), for example.")
    fixed = [w for w in given.words if not is_space(w)]
    metrics = task_class(compose(fixed)).metrics
    columns = [f"val/{name}" for name, m in metrics.items() if m.headline]
    columns = [given.metric] if given.metric else columns
    place = Path("outputs/search")
    place.mkdir(parents=True, exist_ok=True)
    known = metrics.get(columns[0].split("/")[-1])
    direction = "maximize" if known and known.better == "more" else "minimize"
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(
        study_name=given.name,
        storage=f"sqlite:///{place / given.name}.db",
        pruner=optuna.pruners.MedianPruner(n_startup_trials=4, n_warmup_steps=2),
        direction=direction,
        load_if_exists=True,
    )
    about = {"words": sorted(given.words), "metric": columns[0]}
    for key, value in about.items():
        if study.user_attrs.setdefault(key, value) != value:
            raise UserError(
                f"{place / given.name}.db searched with {key} {study.user_attrs[key]}: give this "
                "search a name of its own, --name."
            )
        study.set_user_attr(key, value)
    for trial in study.get_trials(states=(TrialState.RUNNING,)):  # killed: its run will resume
        study.enqueue_trial(trial.params, skip_if_exists=False)
        study.tell(trial.number, state=TrialState.FAIL)
    failures = 0
    while True:
        over = study.get_trials(states=(TrialState.COMPLETE, TrialState.PRUNED))
        if len(over) >= given.trials:
            break
        # A restarted search must not draw the trials of its first start again.
        study.sampler = optuna.samplers.TPESampler(seed=given.seed + len(study.trials))
        study.optimize(lambda t: objective(t, given.words, columns), n_trials=1, catch=(Failed,))
        last = study.trials[-1]
        failures = failures + 1 if last.state == TrialState.FAIL else 0
        if failures == 3:
            raise UserError("three trials in a row failed: the result.json of their runs say how.")
        draw(study, columns[0], place / f"{given.name}.png")
        print(f"trial {last.number}: {last.state.name.lower()}, {last.params}, {last.value}")
    best = study.best_trial
    print(f"best: {columns[0]} {best.value:.4f} with {best.params} ({best.user_attrs['run']})")
    print(place / f"{given.name}.png")


if __name__ == "__main__":
    try:
        main()
    except Exception as error:
        sentence = explain(error)
        if sentence is None:
            raise
        sys.stderr.write(f"search: {sentence}\n")
        sys.exit(2)
