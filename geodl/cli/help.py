"""``geodl``, ``geodl --help`` and ``geodl --version``: what there is to type; without torch."""

from __future__ import annotations

import re
from pathlib import Path

import geodl
from geodl.cli.listing import GROUPS

SHORT = """geodl {version}: deep learning on 3D shapes. Which architecture, on which task, how
robust, and is the paper's number true?

    geodl [-m] [mode=...] [group=choice ...] [option=value ...]

modes     train (default) | eval | predict | interpolate | fit | sample | prepare | list |
          table | report
examples  geodl task=segmentation encoder=diffusionnet features=hks   train one network
          geodl -m encoder=pointnet,diffusionnet seed=0,1,2            sweep: every combination
          geodl mode=table table=demo seed=0                           compare, trained here
          geodl mode=predict ckpt=<run>/last.ckpt input=mine.ply       your own shapes
          geodl mode=interpolate input=[a.ply,b.ply]                   the way between two
          geodl mode=fit input=mine.ply                                a shape from pictures
          geodl mode=sample ckpt=<run>/last.ckpt words=chair           new shapes
          geodl mode=report                                            one page of all you have
groups    {groups}:
          geodl mode=list shows the choices
files     {configs}
"""


def text(configs: Path, options: bool) -> str:
    """The help; ``options``: with every option that is no group's."""
    groups = ", ".join(GROUPS)
    lines = [SHORT.format(version=geodl.__version__, groups=groups, configs=configs)]
    if options:
        lines.append("options (of groups: see their files; debug=trace shows where a mistake is)")
        found = re.findall(r"^(\w+): (\S+) # (.*)$", (configs / "run.yaml").read_text(), re.M)
        lines += [f"  {f'{key}={value}':<18} {what}" for key, value, what in found]
        lines.append("")
    return "\n".join(lines)
