"""What the README tells people to type."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from conftest import icosphere, write_off

from geodl.cli.words import prepared
from geodl.data.files import write_ply
from geodl.runs.build import build_task
from geodl.runs.compose import compose, config_dir
from geodl.spec import DataSpec, Template

ROOT = config_dir().parent
README = (ROOT / "README.md").read_text()
COMMANDS = [
    line for block in re.findall(r"```bash\n(.*?)```", README, re.S) for line in block.splitlines()
]
GEODL = [shlex.split(c)[1:] for c in COMMANDS if c.startswith("geodl ")]
# Those that need no download and no hours.
HERE = [
    c
    for c in COMMANDS
    if c.startswith("geodl ")
    and not re.search(r"human_seg/|princeton|modelnet|order_invariance|robustness|faust_r", c)
]
COMPOSED = [w for w in GEODL if not {"mode=list", "mode=predict", "mode=interpolate"} & set(w)]


def test_how_many_there_are():
    assert len(COMMANDS) >= 19 and len(GEODL) >= 16 and len(HERE) >= 10


@pytest.mark.parametrize("words", COMPOSED, ids=" ".join)
def test_every_command_composes(words, tmp_path):
    words = prepared([w for w in words if w != "-m"])
    pos, face = icosphere(3)
    for w in words:  # of a sweep, every member
        key, _, values = w.partition("=")
        for value in values.split(","):
            others = [o.split(",")[0] for o in words if o != w]
            cfg = compose([*others, f"{key}={value}"])
            spec = DataSpec(
                classes=("a", "b"),
                parts=("c", "d"),
                label_on="face",
                landmarks=10,
                template=Template(pos.astype("float32"), face),
            )
            assert build_task(cfg, spec)


def small(command):
    """The same command on tiny data, for one epoch."""
    if re.search(r"mode=(list|table|report|predict|interpolate)", command):
        return command
    more = ["epochs=1", "figures=false", "batch_size=4"]
    sized = any(word in command for word in ("folder", "registered", "deform/"))
    more += [] if sized else ["data.size=tiny"]
    if "encoder=diffusionnet" in command and "," not in command:
        more += ["encoder.width=8", "encoder.blocks=1"]
    if "encoder=pointnet" in command:
        more += ["encoder.points=32"]
    return f"{command.replace('seed=0,1,2', 'seed=0')} {' '.join(more)}"


def test_the_commands_run_as_written(tmp_path):
    """In the environment that the README names, one after the other, in a folder of the user's."""
    pos, face = icosphere(2)
    rng = np.random.default_rng(0)
    for i in range(12):
        moved = pos * (1 + 0.2 * rng.random(3))
        write_off(tmp_path / f"my_shapes/{'ab'[i % 2]}/{i}.off", moved, face)
        write_off(tmp_path / f"my_faces/{i:02d}.off", 100 * moved, face)
        write_off(tmp_path / f"{'ab'[i % 2]}.off", moved, face)
    write_ply(tmp_path / "new.ply", pos, face, np.full((len(pos), 3), 200, np.uint8))
    matching = "task=matching features=hks features.k=32 encoder=diffusionnet encoder.width=8"
    matching += " encoder.blocks=1 encoder.k_eig=32 task.k=10 data.size=tiny test=train epochs=0"
    lines = [f"source {shlex.quote(sys.prefix)}/bin/activate", f"geodl {matching} figures=false"]
    lines.append("ln -s outputs/matching/creatures/diffusionnet/* my_matching")
    for command in HERE:
        if "my_run" in command:  # of the command before it
            lines.append("ln -s outputs/classification/folder/pointnet/* my_run")
        lines.append(small(command))
    done = subprocess.run(
        ["bash", "-e", "-c", "\n".join(lines)],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        env={k: v for k, v in os.environ.items() if k != "VIRTUAL_ENV"},
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert (tmp_path / "outputs/report.html").is_file()
    assert len(list(tmp_path.glob("outputs/predict/*/*/predictions.json"))) == 2


def test_make_targets_exist():
    makefile = (ROOT / "Makefile").read_text()
    for command in COMMANDS:
        if command.startswith("make "):
            assert re.search(rf"^{command.split()[1]}:", makefile, re.M)
    for target in ("setup", "demo", "test", "lint", "type", "clean"):
        assert re.search(rf"^{target}:", makefile, re.M)


def test_the_library_example_runs(tmp_path):
    (code,) = re.findall(r"```python\n(.*?)```", README, re.S)
    code += "assert logits.shape == (4, 8)\n"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path, timeout=300
    )
    assert done.returncode == 0, done.stderr


def test_links_and_pictures_exist():
    for target in re.findall(r"\]\(([^)#]+)\)", README):
        if "://" not in target:
            assert (ROOT / target).exists(), target
    for picture in Path(ROOT / "docs/images").glob("*"):
        assert picture.stat().st_size < 300_000, picture
