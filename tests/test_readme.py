"""What the README tells people to type."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import icosphere

from geodl.runs.build import build_task
from geodl.runs.compose import compose, config_dir
from geodl.spec import DataSpec, Template

ROOT = config_dir().parent
README = (ROOT / "README.md").read_text()
COMMANDS = [
    line for block in re.findall(r"```bash\n(.*?)```", README, re.S) for line in block.splitlines()
]
GEODL = [shlex.split(c)[1:] for c in COMMANDS if c.startswith("geodl ")]
COMPOSED = [words for words in GEODL if "mode=list" not in words]


def test_how_many_there_are():
    assert len(COMMANDS) == 16 and len(GEODL) == 14


@pytest.mark.parametrize("words", COMPOSED, ids=" ".join)
def test_every_command_composes(words, tmp_path):
    words = [w for w in words if w != "-m"]
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
