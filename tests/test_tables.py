"""Tables: from results to text, and from the command line to results."""

import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf

from geodl.errors import UserError
from geodl.results import evidence, reference, render, tables
from geodl.runs import record
from geodl.runs.compose import compose, config_dir

ROOT = config_dir().parent
RESULTS = ROOT / "docs" / "results"
NAMES = sorted(f.stem for f in (config_dir() / "table").glob("*.yaml"))
WRITTEN = sorted(RESULTS.glob("*.json"))


def read(name):
    return OmegaConf.to_container(OmegaConf.load(config_dir() / "table" / f"{name}.yaml"))


def test_how_many_there_are():
    assert len(NAMES) >= 14 and {json.loads(f.read_text())["name"] for f in WRITTEN} <= set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_every_table_composes_with_every_budget(name):
    plain = read(name)
    tables.check(name, plain)
    for budget in ("smoke", "short", "paper"):
        work = tables.jobs(plain, budget)
        assert work and len({(record.run_hash(j.cfg), j.seed) for j in work}) == len(work)


@pytest.mark.parametrize("file", WRITTEN, ids=lambda f: f.stem)
def test_committed_tables_are_what_the_reference_says(file):
    """Nobody edits them: .md, .csv and .tex are renderings of .json, and .json of the runs."""
    data = json.loads(file.read_text())
    for suffix, rendering in (
        (".md", render.markdown),
        (".csv", render.as_csv),
        (".tex", render.latex),
    ):
        assert file.with_suffix(suffix).read_text() == rendering(data)
    plain = read(data["name"])
    work = tables.jobs(plain, data["budget"])
    again = tables.collect(data["name"], plain, data["budget"], work, RESULTS)
    assert json.loads(json.dumps(again)) == data
    if data.get("picture") and file.with_suffix(".png").exists():
        assert file.with_suffix(".png").stat().st_size < 500_000


def test_pages_have_the_numbers_of_the_reference():
    """README, tour and the list of results: scripts/ledger.py writes them again, unchanged."""
    import runpy

    script = runpy.run_path(str(ROOT / "scripts" / "ledger.py"))
    pages = script["pages"](RESULTS)
    assert len(pages) == 3
    for place, text in pages.items():
        assert place.read_text() == text, place
    assert sum(len(script["NUMBER"].findall(text)) for text in pages.values()) > 20


# ---- from results to text ----

RUNS = Path("reference/runs")

PLAIN = {
    "title": "Small",
    "source": "somebody",
    "metric": "acc",
    "columns": [{"name": "clean"}, {"name": "turned", "test": "rotated"}],
    "seeds": [0, 1],
    "budgets": {"short": ["epochs=2"]},
    "rows": [
        {"name": "a", "experiment": "creatures/pointnet", "published": 90.0, "verified": True},
        {"name": "b", "experiment": "creatures/flat_mlp", "published": 50.0, "epochs_published": 9},
        {"name": "c", "published": {"turned": 77.0}, "verified": True, "published_on": "the moon"},
    ],
}


METRICS = {"acc": {"unit": "%", "better": "more", "headline": True}}
MM = {"acc": {"unit": "mm", "better": "less", "headline": True}}


def fill(reference, work, tests=("clean", "rotated"), value=0.5):
    ledger = reference / "runs"
    ledger.mkdir(parents=True, exist_ok=True)
    for job in work:
        entries = {
            t: {
                "scores": {"acc": value + 0.1 * job.seed},
                "options": record.test_options(job.cfg, t),
                "commit": "0123456789",
                "dirty": False,
            }
            for t in tests
        }
        result = {
            "hash": record.run_hash(job.cfg),
            "seed": job.seed,
            "status": "done",
            "config": {},
            "eval": entries,
            "epochs": 2,
            "parameters": 1234,
            "seconds_per_epoch": 3.0,
            "protocol": "p",
            "metrics": METRICS,
            "commit": "fedcba9876",
            "dirty": False,
            "seconds": 6.0,
            "finished": "2026-01-01T00:00:00Z",
            "train": {},
        }
        (ledger / f"{result['hash']}-s{job.seed}.json").write_text(json.dumps(result))


def collected(tmp_path, monkeypatch, **given):
    monkeypatch.chdir(tmp_path)
    work = tables.jobs(PLAIN, "short")
    fill(RUNS.parent, [j for j in work if j.row == 0], **given)
    return tables.collect("small", PLAIN, "short", work, RUNS.parent)


def test_means_spreads_and_differences(tmp_path, monkeypatch):
    data = collected(tmp_path, monkeypatch)
    a, b, _ = data["rows"]
    cell = a["cells"]["clean"]
    assert cell == {
        "unit": "%",
        "better": "more",
        "mean": pytest.approx(55.0),
        "std": pytest.approx(7.0711, abs=1e-4),
        "n": 2,
        "published": 90.0,
        "verified": True,
        "difference": pytest.approx(-35.0),
    }
    assert "difference" not in b["cells"]["clean"] and not b["runs"] and len(a["runs"]) == 2
    text = render.markdown(data)
    rows = [line for line in text.splitlines() if line.startswith("| ")]
    assert "| 55.00 ± 7.07 (2) | 90 | -35.00 |" in rows[1]
    assert "| (50) |" in rows[2], "not verified: in parentheses, no difference"
    assert "77 †" in rows[3] and "† the moon" in text
    assert "1,234" in rows[1] and "01234567 |" in rows[1] and "| 2 |" in rows[1]
    assert render.latex(data).count("\\\\") == 4 and "$\\pm$" in render.latex(data)
    assert len(render.as_csv(data).splitlines()) == 1 + 4


def test_rows_are_told_apart_by_seeds_or_by_shapes():
    def cell(mean, std=None, n=1, each=None):
        return {"mean": mean, "std": std, "n": n, "each": each and {"the same": each}, "unit": "%"}

    apart = evidence.told_apart
    assert apart(cell(90, 1, 3), cell(80, 1, 3)) and apart(cell(90, 1, 3), cell(89, 1, 3)) is False
    # Welch's p of 2 against a standard error of 1.155 with two degrees of freedom or so is .2.
    assert apart(cell(90, 2, 3), cell(88, 0.1, 3)) is False
    assert apart(cell(90, 2, 3), cell(88, 0.1, 30)) is False and apart(
        cell(90, 2, 30), cell(88, 0.1, 30)
    )
    # One seed is taken to spread as the other does: 4.3 of its standard errors are just enough.
    assert apart(cell(90.1), cell(80, 2, 3)) and apart(cell(88), cell(80, 2, 3)) is False
    assert apart(cell(90), cell(10)) is None
    # McNemar: of six shapes on which they differ, all for one: p = .031; of five: .063.
    right = [1.0] * 20
    six, five = ([0.0] * k + [1.0] * (20 - k) for k in (6, 5))
    assert apart(cell(100, each=right), cell(70, each=six))
    assert apart(cell(100, each=right), cell(75, each=five)) is False
    assert apart(cell(100, each=right), cell(0) | {"each": {"others": six}}) is None
    noise = [0.1 * (-1) ** i * (i % 7) for i in range(40)]
    assert apart(cell(1, each=[1 + x for x in noise]), cell(0, each=noise[::-1]))
    assert apart(cell(1, each=noise), cell(0, each=noise[::-1])) is False


def test_the_best_of_a_section_and_its_equals_are_marked(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    work = tables.jobs(PLAIN, "short")
    for row, value in ((0, 0.5), (1, 0.51)):
        fill(RUNS.parent, [j for j in work if j.row == row], value=value)
    data = tables.collect("small", PLAIN, "short", work, RUNS.parent)
    marks = [r["cells"]["clean"].get("mark") for r in data["rows"][:2]]
    assert marks == ["○", "●"]
    text = render.markdown(data)
    assert "55.00 ± 7.07 (2) ○" in text and "56.00 ± 7.07 (2) ●" in text
    assert "0 of 2 trained rows have three seeds or more; 0 of 1 ran for the paper" in text

    def again(change, plain=PLAIN):
        for file in RUNS.iterdir():
            file.write_text(json.dumps(json.loads(file.read_text()) | change))
        data = tables.collect("small", plain, "short", work, RUNS.parent)
        return [r["cells"]["clean"].get("mark") for r in data["rows"][:2]]

    assert again({"metrics": MM}) == ["●", "○"]  # less is better
    # In each section, what its metric says, whatever the last row's says.
    rows = [row | {"section": row["name"]} for row in PLAIN["rows"]]
    assert again({}, PLAIN | {"rows": rows}) == [None, None]
    hash_ = record.run_hash(work[0].cfg)
    for file in RUNS.glob(f"{hash_}-*"):  # of other data
        file.write_text(json.dumps(json.loads(file.read_text()) | {"protocol": "q"}))
    assert again({}) == [None, None]


def test_rows_of_one_seed_are_told_apart_over_the_same_shapes(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    plain = PLAIN | {"seeds": [0]}
    work = tables.jobs(plain, "short")
    each = {0: "1 " * 20, 1: "0 0 0 0 0 0 " + "1 " * 14}

    def marks(shapes=("a", "a"), second=None):
        for row in (0, 1):
            numbers = [float(x) for x in each[row].split()]
            value = second if row and second else sum(numbers) / len(numbers)
            jobs = [j for j in work if j.row == row]
            fill(RUNS.parent, jobs, value=value)
            for job in jobs:
                file = RUNS / f"{record.run_hash(job.cfg)}-s0.json"
                entry = json.loads(file.read_text())
                entry["eval"]["clean"]["each"] = {
                    "metric": "acc",
                    "values": each[row].strip(),
                    "shapes": shapes[row],
                }
                file.write_text(json.dumps(entry))
        data = tables.collect("small", plain, "short", work, RUNS.parent)
        assert all("each" not in c for r in data["rows"] for c in r["cells"].values())
        return [r["cells"]["clean"].get("mark") for r in data["rows"][:2]]

    assert marks() == ["●", None]
    each[1] = "0 0 0 0 0 " + "1 " * 15  # one fewer: p = .063
    assert marks() == ["●", "○"]
    assert marks(("a", "b")) == ["●", None]  # other shapes
    assert marks(second=0.74) == ["●", None]  # no mean over shapes


def test_what_became_of_published_numbers(tmp_path, monkeypatch):
    data = collected(tmp_path, monkeypatch)
    a, b = evidence.verdicts([data])
    assert a["verdict"] == "below by 35.00" and a["hours"] is None
    assert b["verdict"] == "not run" and b["row"]["name"] == "b"
    row = {"epochs": 2, "epochs_published": 200, "seconds_per_epoch": 36.0, "name": "x"}
    cell = {"mean": 2.53, "std": None, "n": 1, "published": 2.5, "verified": True}

    def table(*rows, budget="short"):
        return {"name": "t", "budget": budget, "rows": rows}

    def verdict(**change):
        (found,) = evidence.verdicts([table(row | {"cells": {"y": cell | change}})])
        return found["verdict"]

    short = table(row | {"cells": {"y": cell}})
    (found,) = evidence.verdicts([short])
    assert found["hours"] == pytest.approx(2.0)
    assert found["verdict"] == "within the spread, one seed, after 2 of 200 epochs"
    assert verdict(mean=2.56).startswith("above by 0.06")
    other = row | {"cells": {"y": cell | {"published": 91.0, "mean": 91.4}}}
    _, found = evidence.verdicts([table(row | {"cells": {"y": cell}}, other)])
    assert found["verdict"].startswith("above by 0.40"), "rounded as the finest of its column"
    assert verdict(mean=2.56, std=0.02, n=3).startswith("within the spread, after")
    assert verdict(elsewhere="the moon") == "not comparable: published for the moon"
    assert verdict(verified=False).startswith("not compared")
    longer = row | {"epochs": 200, "cells": {"y": cell | {"mean": 2.5}}}
    (found,) = evidence.verdicts([short, table(longer, budget="paper")])
    assert found["verdict"] == "within the spread, one seed" and found["hours"] is None
    (found,) = evidence.verdicts([short, table(row | {"cells": {"y": cell}}, budget="paper")])
    assert found["table"] is short, "the paper's epochs were not run"
    rows = [row | {"cells": {"y": cell | {"n": 1}}}, longer | {"cells": {"y": cell | {"n": 1}}}]
    words = "0 of 2 trained rows have three seeds or more; 1 of 1 ran"
    assert evidence.coverage(rows).startswith(words), "at any budget, counted once"


def test_results_of_other_test_options_do_not_count(tmp_path, monkeypatch):
    data = collected(tmp_path, monkeypatch)
    assert data["rows"][0]["cells"]["turned"]["n"] == 2
    for file in RUNS.iterdir():
        entry = json.loads(file.read_text())
        entry["eval"]["rotated"]["options"]["perturb"][0]["seed"] = 5
        file.write_text(json.dumps(entry))
    work = tables.jobs(PLAIN, "short")
    data = tables.collect("small", PLAIN, "short", work, RUNS.parent)
    assert "turned" not in data["rows"][0]["cells"] and data["rows"][0]["cells"]["clean"]["n"] == 2


def test_a_heatmap_says_what_every_test_costs(tmp_path, monkeypatch):
    collected(tmp_path, monkeypatch)
    for file in RUNS.iterdir():
        entry = json.loads(file.read_text())
        entry["eval"]["rotated"]["scores"]["acc"] -= 0.2
        file.write_text(json.dumps(entry))
    plain = {**PLAIN, "picture": "heatmap"}
    for metrics, change, worse in ((METRICS, "-20.0", 0.4), (MM, "x0.64", 0.0)):
        for file in RUNS.iterdir():
            file.write_text(json.dumps(json.loads(file.read_text()) | {"metrics": metrics}))
        work = tables.jobs(plain, "short")
        data = tables.collect("small", plain, "short", work, RUNS.parent)
        cells = data["rows"][0]["cells"]
        assert "change" not in cells["clean"] and cells["turned"]["change"] == change
        assert cells["turned"]["worse"] == worse
        assert f"| a | {change} |" in render.markdown(data)


def test_claims_take_their_numbers_from_cells(tmp_path, monkeypatch):
    plain = PLAIN | {"claims": ["It has {/a/clean} and {/a/turned}."]}
    collected(tmp_path, monkeypatch)
    work = tables.jobs(plain, "short")
    data = tables.collect("small", plain, "short", work, RUNS.parent)
    assert data["claims"] == ["It has 55.0 and 55.0."]
    with pytest.raises(UserError, match=r"claim asks for \{/b/clean\}, which has no number"):
        tables.collect("small", plain | {"claims": ["{/b/clean}"]}, "short", work, RUNS.parent)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"colums": []}, "table/small.yaml: colums is not known"),
        ({"rows": [{"nmae": "a"}]}, r"rows\[0\].nmae is not known"),
        ({"rows": []}, "table/small.yaml has no rows"),
        ({"columns": [{"name": "a", "mtric": "acc"}]}, r"columns\[0\].mtric is not known"),
        ({"picture": "bar"}, "picture: bar is not known: choose bars, cost, curve, heatmap"),
        ({"rows": [{"published": {"trned": 1.0}}]}, "published: trned is not known"),
        ({"rows": [{"tests": ["noisy"]}]}, "tests: noisy is not known: choose clean, rotated"),
    ],
)
def test_keys_are_checked(change, message):
    with pytest.raises(UserError, match=message):
        tables.check("small", PLAIN | change)


@pytest.mark.parametrize(
    ("when", "tests", "acc"),
    [
        ("2026-01-01T00:00:00Z", {"clean", "rotated"}, 0.9),  # the same training, evaluated again
        ("2026-01-02T00:00:00Z", {"clean"}, 0.9),  # a later one: nothing of the old one stays
        ("2025-12-31T00:00:00Z", {"clean", "rotated"}, 0.5),  # an older one
    ],
)
def test_an_entry_of_the_ledger_is_of_one_training(tmp_path, monkeypatch, when, tests, acc):
    monkeypatch.chdir(tmp_path)
    job = tables.jobs(PLAIN, "short", [f"paths.ledger={RUNS}"])[0]
    fill(RUNS.parent, [job])
    folder = record.run_folder(job.cfg)
    folder.mkdir(parents=True)
    (entry,) = RUNS.iterdir()
    small = json.loads(entry.read_text()) | {"finished": when}
    del small["eval"]["rotated"]
    small["eval"]["clean"]["scores"]["acc"] = 0.9
    (folder / "result.json").write_text(json.dumps(small))
    assert record.finished(job.cfg)[0] == entry, "the ledger has what is asked for"
    record.to_ledger(folder, RUNS)
    kept = json.loads(entry.read_text())["eval"]
    assert set(kept) == tests and kept["clean"]["scores"]["acc"] == acc


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"dirty": True}, "was trained by code that is in no commit"),
        ({"dirty": None, "commit": None}, "was trained by code that is in no commit"),
        (
            {"eval": {"clean": {"dirty": True, "scores": {"acc": 0}}}},
            r"was evaluated \(clean\) by code",
        ),
    ],
)
def test_code_in_no_commit_gives_the_reference_no_number(tmp_path, change, message):
    good = {"status": "done", "dirty": False, "commit": "0" * 40, "finished": "2026-01-01"}
    good |= {"config": {}, "metrics": {"acc": {"headline": True}}}
    good["eval"] = {"clean": {"dirty": False, "scores": {"acc": 0.5}}}
    run = tmp_path / "0123abcd-s0"
    run.mkdir()
    (run / "result.json").write_text(json.dumps(good | change))
    with pytest.raises(UserError, match=message):
        reference.add(run, tmp_path / "results")
    assert not (tmp_path / "results").exists()
    (run / "result.json").write_text(json.dumps(good))
    assert reference.add(run, tmp_path / "results").is_file()


def test_yours_stand_beside_the_reference(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    work = tables.jobs(PLAIN, "short", [f"paths.ledger={tmp_path}/own/runs"])
    fill(RUNS.parent, [j for j in work if j.row == 0])
    fill(tmp_path / "own", [j for j in work if j.row == 0 and j.seed == 1], value=0.7)
    data = tables.collect("small", PLAIN, "short", work, RUNS.parent, tables.yours)
    cell = data["rows"][0]["cells"]["clean"]
    assert cell["mean"] == pytest.approx(55) and cell["yours"]["mean"] == pytest.approx(80)
    rows = render.markdown(data).splitlines()
    head = next(line for line in rows if line.startswith("|  | "))
    assert head.startswith("|  | clean | clean, yours | clean, published | clean, difference |")
    assert any("| 55.00 ± 7.07 (2) | 80.00 (1) | 90 | -35.00 |" in line for line in rows)
    assert any(
        line.startswith(",a,clean,55.0") and ",80.0,,1," in line
        for line in render.as_csv(data).splitlines()
    )


def test_a_metric_that_no_result_has_is_named(tmp_path, monkeypatch):
    collected(tmp_path, monkeypatch)
    work = tables.jobs(PLAIN, "short")
    with pytest.raises(UserError, match="a has no metric mious: choose acc"):
        tables.collect("x", PLAIN | {"metric": "mious"}, "short", work, RUNS.parent)


def test_claims_and_titles_belong_to_a_budget(tmp_path, monkeypatch):
    plain = PLAIN | {"claims": ["So it is."], "budgets": {"short": ["epochs=2"], "smoke": []}}
    collected(tmp_path, monkeypatch)
    for budget, title, claimed in (("short", "Small", 1), ("smoke", "Small (budget smoke)", 0)):
        data = tables.collect("small", plain, budget, tables.jobs(plain, budget), RUNS.parent)
        text = render.markdown(data)
        assert text.startswith(f"# {title}\n") and text.count("So it is.") == claimed
        assert ("epochs=2 test=[clean,rotated] seed=0,1`" in text) == (budget == "short")


def test_a_launcher_that_gives_up_takes_nothing_from_the_other_jobs(tmp_path, monkeypatch):
    from geodl.runs.sweep import board as _board

    def job():
        with Path(os.environ["GEODL_SWEEP"]).open("a") as stream:
            stream.write('{"job": "a", "status": "done"}\n')

    monkeypatch.setenv("GEODL_SWEEP", "")
    (tmp_path / ".hydra").mkdir()
    for _ in range(2):  # what a killed sweep with this number left behind is not read
        entries: list[dict[str, str]] = []
        with _board(tmp_path, entries):
            job()
            raise RuntimeError("out of time")
        assert sorted(e["status"] for e in entries) == ["done", "failed"]
        (tmp_path / ".hydra" / f"sweep-{os.getpid()}.jsonl").write_text("{}\n")
    with pytest.raises(RuntimeError), _board(tmp_path, []):
        raise RuntimeError("before any job")


# ---- from the command line ----

TABLE = """title: Tiny
metric: acc
picture: bars
columns:
  - {name: accuracy}
seeds: [0]
budgets:
  smoke: [data.size=tiny, encoder.points=32, epochs=4, batch_size=4]
rows:
  - {name: points, experiment: creatures/pointnet}
  - {name: one vector, experiment: creatures/flat_mlp, published: 24.2}
"""


def command(config, *words):
    code = (
        "import sys, geodl.cli.main as r, geodl.runs.compose as c; from pathlib import Path; "
        f"r.config_dir = c.config_dir = lambda: Path({str(config)!r}); r.main()"
    )
    return [sys.executable, "-c", code, "mode=table", "table=tiny", "budget=smoke", *words]


@pytest.fixture
def config(tmp_path):
    import shutil

    shutil.copytree(config_dir(), tmp_path / "configs")
    (tmp_path / "configs" / "table" / "tiny.yaml").write_text(TABLE)
    (tmp_path / "work").mkdir()
    return tmp_path / "configs"


def go(config, *words, code=0):
    work = config.parent / "work"
    done = subprocess.run(
        command(config, "figures=false", *words), capture_output=True, text=True, cwd=work
    )
    assert done.returncode == code, done.stderr + done.stdout
    return work, done


def scores(work):
    found = {}
    for file in sorted(work.glob("outputs/*/*/*/*/result.json")):
        entry = json.loads(file.read_text())
        found[file.parent.name] = (entry["eval"]["clean"]["scores"], entry["train"])
    return found


@pytest.mark.parametrize(
    "words",
    [  # options that only the chosen launcher has
        ["sweep=local", "hydra.launcher.n_jobs=2"],
        ["sweep=processes", "hydra.launcher.timeout_min=9"],
    ],
    ids=lambda words: words[0],
)
def test_a_table_is_launched_written_and_then_skipped(config, words):
    work, done = go(config, *words)
    assert "2 done, 0 skipped, 0 resumed, 0 failed" in done.stdout
    assert re.search(r"│ points +│", done.stdout) and re.search(r"│ +\(24.2\) │", done.stdout)
    for suffix in ("md", "csv", "json", "tex", "png"):
        assert (work / f"outputs/tables/tiny-smoke.{suffix}").stat().st_size > 100
    before = scores(work)
    _, again = go(config, *words)
    assert "2 runs, 2 of yours finished" in again.stderr and " done" not in again.stdout
    assert scores(work) == before
    assert sorted(p.name for p in work.iterdir()) == ["outputs"]
    assert (work / "outputs/.hydra/submitit").is_dir() == (words[0] == "sweep=processes")


def test_words_that_change_the_training_are_refused(config):
    _, done = go(config, "epochs=3", code=2)
    assert "epochs=3 cannot be given with mode=table" in done.stderr
    _, done = go(config, "mode=train", code=2)
    assert "mode=table and table=<name> go together" in done.stderr


def test_a_table_killed_at_random_moments_ends_with_the_same_numbers(config, tmp_path):
    work, _ = go(config)
    unbroken = scores(work)
    work.rename(tmp_path / "unbroken")
    work.mkdir()
    rng = random.Random(0)
    kills = 0
    for _ in range(int(os.environ.get("GEODL_KILLS", "2"))):
        process = subprocess.Popen(
            command(config, "figures=false"),
            cwd=work,
            start_new_session=True,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        time.sleep(rng.uniform(2.0, 10.0))
        if process.poll() is None:
            os.kill(process.pid, signal.SIGKILL)  # the table alone: its job must not outlive it
            kills += 1
        process.wait()
    assert kills
    go(config)
    assert scores(work) == unbroken
    assert not [p for p in work.rglob("*") if re.search(r"\.part$", p.name)]


def test_every_job_takes_a_gpu_of_its_own(tmp_path, monkeypatch):
    from geodl.runs.sweep import gpu as _device

    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,7")
    cfg = compose(["trainer=gpu", f"paths.outputs={tmp_path}"])
    with _device(cfg) as first, _device(cfg) as second:
        assert [first["CUDA_VISIBLE_DEVICES"], second["CUDA_VISIBLE_DEVICES"]] == ["4", "7"]
    with _device(cfg) as again:
        assert again == {"CUDA_VISIBLE_DEVICES": "4"}
    with _device(compose([f"paths.outputs={tmp_path}"])) as none:
        assert none == {}
