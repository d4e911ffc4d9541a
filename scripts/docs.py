"""The documentation site: README, tour, design, results and, from the docstrings, the API.

    python scripts/docs.py      (make docs; the site lies in build/site)

Pages are gathered in build/docs, where links between them are those of a site. A broken link, or a
module that cannot be read, fails the build.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

# profile.py beside this file has the name of a standard module: its folder must not be searched.
sys.path[:] = [p for p in sys.path if Path(p).resolve() != Path(__file__).resolve().parent]

ROOT = Path(__file__).resolve().parent.parent
PAGES = ROOT / "build" / "docs"
FILES = re.compile(r"\]\((?:\.\./)*((?:configs|scripts|geodl|tests)/[^)]*|LICENSE)\)")


def gather() -> None:
    """All pages, with the links of the repository made those of the site."""
    shutil.rmtree(PAGES, ignore_errors=True)
    shutil.copytree(ROOT / "docs", PAGES, ignore=shutil.ignore_patterns("runs", "*.csv", "*.tex"))
    home = (ROOT / "README.md").read_text().replace("](docs/", "](")
    (PAGES / "index.md").write_text(home.replace("](CONTRIBUTING.md", "](contributing.md"))
    for name in ("CONTRIBUTING", "CHANGELOG"):
        shutil.copy(ROOT / f"{name}.md", PAGES / f"{name.lower()}.md")
    for page in PAGES.rglob("*.md"):
        text = FILES.sub(r"](index.md)", page.read_text()) if page.parent == PAGES else ""
        text = text or page.read_text()
        page.write_text(text.replace("[runs/](runs)", "runs/").replace("](docs/", "]("))


def reference() -> None:
    """One page for every package of the API."""
    package = ROOT / "geodl"
    parts = [p.name for p in sorted(package.iterdir()) if (p / "__init__.py").is_file()]
    pages = {"geodl": sorted(package.glob("[a-z]*.py"))}
    pages |= {f"geodl.{name}": sorted((package / name).glob("[a-z]*.py")) for name in parts}
    (PAGES / "api").mkdir()
    for name, modules in pages.items():
        lines = [f"# {name}", ""]
        for module in modules:
            lines += [f"## {name}.{module.stem}", "", f"::: {name}.{module.stem}", ""]
            lines += ["    options:", "      heading_level: 3", ""]
        (PAGES / "api" / f"{name}.md").write_text("\n".join(lines))


if __name__ == "__main__":
    gather()
    reference()
    os.environ["NO_MKDOCS_2_WARNING"] = "1"
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet"]
    sys.exit(subprocess.run(command, cwd=ROOT).returncode)
