"""``mode=prepare``: data at hand, shapes checked, geometry computed; the cache shown or freed."""

from __future__ import annotations

from omegaconf import DictConfig

from geodl.errors import UserError
from geodl.ops.cache import Cache
from geodl.runs.build import Parts, build_data, build_task, paths


def prepare(cfg: DictConfig) -> str:
    """Get the data, check every shape, compute what the composed model needs; show the cache."""
    cache = Cache(paths(cfg).cache)
    lines: list[str] = []
    if cfg.clean:
        known = {f.split("/")[1] for f in cache.size()} | {"old", "all"}
        if cfg.clean not in known:
            raise UserError(
                f"clean={cfg.clean} is not in the cache: choose one of {', '.join(sorted(known))}."
            )
        freed = cache.clean(str(cfg.clean))
        lines.append(f"freed {freed / 1e6:.1f} MB")
    else:
        data = build_data(cfg)
        data.all_splits()
        report = Parts(cfg, data, build_task(cfg, data.spec)).loaders().prepare()
        lines.append(f"{data.spec.protocol}: {report}")
        lines += [f"  mended {name}: {what}" for name, what in report.mended.items()]
        lines += [f"  dropped {name}: {why}" for name, why in report.dropped.items()]
    total = 0
    for family, (files, size) in sorted(cache.size().items()):
        lines.append(f"cache {family}: {files} files, {size / 1e6:.1f} MB")
        total += size
    lines.append(
        f"cache {cache.folder}: {total / 1e6:.1f} MB (mode=prepare clean=<family|old|all>)"
    )
    return "\n".join(lines)
