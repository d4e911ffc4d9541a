"""Every command of the tour, at smoke size; and the search."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from hydra.core.global_hydra import GlobalHydra

from geodl.cli.main import run
from geodl.errors import UserError
from geodl.runs.compose import compose, config_dir

ROOT = config_dir().parent
TOUR = (ROOT / "docs" / "tour.md").read_text()
BLOCKS = re.findall(r"```bash\n(.*?)```", TOUR, re.S)
COMMANDS = [line for block in BLOCKS for line in block.splitlines()]
REFUSED = "geodl experiment=faces/spiralnet_heads test=remeshed"


def small(words):
    """What makes a command run in seconds: tiny data, one epoch, narrow networks."""
    text = " ".join(words)
    more = ["data.size=tiny", "figures=false"]
    if "deform/" in text:
        more[0] = "data.vertices=150"
        more += ["data.train=2", "data.test=1", "data.poses=2"]
    if "matching" in text:  # the tiny data set has one test shape of a kind, so no pairs
        more += ["test=train"]
    if "mode=" not in text:
        untrained = "pca" in text or "matching" in text
        untrained |= "deform/way" in text or "deform/solver" in text
        more += ["epochs=0" if untrained else "epochs=1", "batch_size=8"]
    if "diffusionnet" in text or "matching" in text or "deform/pandas" in text:
        more += ["encoder.width=8", "encoder.blocks=1"]
    elif "creatures/pointnet" in text or "flat_mlp" in text:
        more += ["encoder.points=64"]
    if "matching" in text:
        more += ["task.k=10", "task.zoomout=20"]
    return more


def jobs(words):
    """The members of a sweep, as lists of words."""
    if "-m" not in words:
        return [words]
    found = [[]]
    for word in (w for w in words if w != "-m"):
        key, _, values = word.partition("=")
        found = [[*job, f"{key}={value}"] for job in found for value in values.split(",")]
    return found


def test_how_many_there_are():
    assert len(COMMANDS) == 22 and all(c.startswith("geodl ") for c in COMMANDS)
    assert REFUSED in COMMANDS


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_runs(command, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    GlobalHydra.instance().clear()
    words = shlex.split(command)[1:]
    if "mode=report" in words:
        run(compose(["data.size=tiny", "epochs=1", "encoder.points=64", "figures=false"]))
        run(compose(words))
        assert Path("outputs/report.html").stat().st_size > 1_000_000
        return
    for job in jobs(words):
        cfg = compose([*job, *small(job)])
        if command == REFUSED:
            with pytest.raises(UserError, match="SpiralNet works on the template's own mesh"):
                run(cfg)
            return
        run(cfg)
        if "mode=prepare" not in job:
            assert list(Path("outputs").rglob("result.json"))


def test_pictures_exist_and_are_small():
    for target in re.findall(r"\]\(([^)#]+)\)", TOUR):
        assert (ROOT / "docs" / target).exists(), target


def test_a_search_finds_prunes_and_goes_on(tmp_path):
    def search(*words):
        done = subprocess.run(
            [sys.executable, str(ROOT / "scripts" / "search.py"), *words],
            capture_output=True,
            text=True,
            cwd=tmp_path,
        )
        return done

    words = ["data.size=tiny", "encoder=point_mlp", "epochs=1", "optim.lr=log(1e-5,1e-1)"]
    done = search("--trials", "1", *words)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("complete") == 1 and (tmp_path / "outputs/search/search.db").is_file()
    again = search("--trials", "2", *words)
    assert again.stdout.count("trial ") == 1 and "best: val/acc" in again.stdout, again.stderr
    assert (tmp_path / "outputs/search/search.png").stat().st_size > 5000
    first, second = (s.split("{")[1].split("}")[0] for s in (done.stdout, again.stdout))
    assert first != second, "a restarted search does not draw its trials again"
    other = search("--trials", "3", *words, "seed=1")
    assert other.returncode == 2 and "give this search a name of its own" in other.stderr
    none = search("--trials", "2", "data.size=tiny")
    assert none.returncode == 2 and "no word offers a choice" in none.stderr
