"""A user's mistake in one sentence: what is checked before anything runs, and what Hydra says."""

from __future__ import annotations

import difflib
import errno
import re
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

from geodl.errors import UserError
from geodl.runs.compose import config_dir

MODES = (
    *("train", "eval", "predict", "interpolate", "fit", "sample", "prepare", "list", "table"),
    "report",
)


def validate(cfg: Any) -> None:
    """Scalars that pass composition whatever they are."""

    def integer(key: str, low: int) -> None:
        value = cfg[key]
        if not isinstance(value, int) or isinstance(value, bool) or not low <= value < 2**63:
            raise UserError(f"{key}={value} must be a whole number of {low} or more.")

    if cfg.mode not in MODES:
        raise UserError(f"mode={cfg.mode} is not known{near(str(cfg.mode), MODES)}.")
    for key, low in (
        ("seed", 0),
        ("epochs", 0),
        ("batch_size", 1),
        ("workers", 0),
        ("threads", 1),
        ("stop_code", 0),
        ("times", 3),
        ("count", 1),
    ):
        integer(key, low)
    if cfg.up not in ("y", "z"):
        raise UserError(f"up={cfg.up} is not known: choose y or z.")
    if cfg.select not in ("last", "val", "test"):
        raise UserError(f"select={cfg.select} is not known: choose last, val or test.")
    if cfg.select != "last" and not cfg.epochs:
        raise UserError(f"select={cfg.select} chooses an epoch, and with epochs=0 there is none.")
    for key in ("force", "figures", "launch"):
        if not isinstance(cfg[key], bool):
            raise UserError(f"{key}={cfg[key]} must be true or false.")
    if (cfg.mode == "table") != bool(cfg.get("table")):
        raise UserError(
            "mode=table and table=<name> go together: geodl mode=list shows the tables, and "
            "budget=smoke | short | paper says how long the runs are."
        )
    if cfg.mode == "predict" and not cfg.input:
        raise UserError("mode=predict needs ckpt=<a .ckpt file> and input=<a file or folder>.")
    if cfg.mode == "interpolate" and (
        not isinstance(cfg.input, Sequence) or isinstance(cfg.input, str) or len(cfg.input) != 2
    ):
        raise UserError("mode=interpolate needs two meshes: give input=[a.ply,b.ply].")
    if cfg.mode == "fit" and not cfg.input:
        raise UserError("mode=fit needs input=<a mesh, or a folder of silhouettes>.")
    if cfg.mode == "sample" and not cfg.ckpt:
        raise UserError("mode=sample needs ckpt=<a .ckpt file> of a run of task=generation.")
    if cfg.words and cfg.mode not in ("sample", "predict"):
        raise UserError("words= is for mode=sample and mode=predict.")
    if cfg.mode == "eval" and not (cfg.ckpt or cfg.weights):
        raise UserError(
            "mode=eval needs ckpt=<a .ckpt file>, or experiment=... and weights=<file>."
        )
    if cfg.ckpt and cfg.mode == "train":
        raise UserError("ckpt= is for mode=eval and mode=predict: to go on from it, give init=.")
    if cfg.ckpt:
        _refuse_overrides(("seed",) if cfg.mode == "sample" else ())
    count = cfg.trainer.devices
    if not isinstance(count, int) or isinstance(count, bool) or count < 1:
        raise UserError(f"trainer.devices={count} must be a whole number of 1 or more.")
    nodes = cfg.trainer.get("num_nodes", 1)
    if not isinstance(nodes, int) or isinstance(nodes, bool) or nodes < 1:
        raise UserError(f"trainer.num_nodes={nodes} must be a whole number of 1 or more.")
    if count > 1 and not str(cfg.trainer.get("strategy", "")).startswith("ddp"):
        raise UserError(f"trainer.devices={count} takes several processes: give trainer=ddp.")
    if cfg.batch_size % (processes := count * nodes):
        raise UserError(
            f"batch_size={cfg.batch_size} is that of all {processes} devices together: choose a "
            "multiple of their number."
        )
    if cfg.trainer.precision not in ("32-true", "bf16-mixed"):
        raise UserError(f"trainer.precision={cfg.trainer.precision}: choose 32-true or bf16-mixed.")
    if cfg.mode != "predict" and (cfg.code or cfg.mask or cfg.amount != 1):
        raise UserError("code=, mask= and amount= are for mode=predict.")
    if not isinstance(cfg.amount, (int, float)) or isinstance(cfg.amount, bool):
        raise UserError(f"amount={cfg.amount} must be a number: 0.5 is half-way, 1.5 beyond.")
    memory = cfg.data.get("memory")
    if not (memory is None or (isinstance(memory, (int, float)) and memory >= 0)):
        raise UserError(f"data.memory={memory} must be a number of GB, or null.")
    copies = cfg.augment.copies
    if not isinstance(copies, int) or isinstance(copies, bool) or copies < 0:
        raise UserError(f"augment.copies={copies} must be a whole number of 0 or more.")


# With a checkpoint, the config is the checkpoint's; only these may be given beside it.
BESIDE_CKPT = (
    *("mode", "ckpt", "input", "output", "category", "test", "trainer", "paths", "debug"),
    *("figures", "workers", "threads", "batch_size", "allow", "stop_code"),
    *("times", "up", "metric", "code", "mask", "amount", "words", "count"),
)


def _refuse_overrides(but: tuple[str, ...] = ()) -> None:
    from hydra.core.hydra_config import HydraConfig

    if not HydraConfig.initialized():
        return
    for override in HydraConfig.get().overrides.task:
        key = re.split(r"[.=@]", override.lstrip("+~"), maxsplit=1)[0]
        if key.split("/")[0] not in (*BESIDE_CKPT, *but):
            raise UserError(
                f"{override} cannot be given together with ckpt=: the checkpoint has its own "
                f"{key}; leave it out, or train again with it."
            )


def near(word: str, known: Any) -> str:
    close = difflib.get_close_matches(word, list(known), 1, 0.6)
    choices = ", ".join(sorted(known))
    return (
        f": did you mean {close[0]}? (one of {choices})" if close else f": choose one of {choices}"
    )


def explain(error: BaseException) -> str | None:
    """One sentence for a user's mistake; None for a fault of ours."""
    import hydra
    from hydra.errors import HydraException, MissingConfigException
    from omegaconf.errors import OmegaConfBaseException

    if isinstance(error, UserError):
        return str(error)
    chain: list[BaseException] = []
    seen: BaseException | None = error
    while seen is not None and len(chain) < 8:
        chain.append(seen)
        seen = seen.__cause__ or seen.__context__
    for link in chain:
        if isinstance(link, UserError):
            return str(link)
    for link in chain:
        if isinstance(link, OSError) and link.errno in DISK:
            return _of_disk(link)
    if not isinstance(error, (HydraException, OmegaConfBaseException)):
        inside = traceback.extract_tb(error.__traceback__)
        home = str(Path(hydra.__file__).parent)
        if inside and inside[-1].filename.startswith(home):  # a word that it did not foresee
            return f"the command line cannot be understood: {' '.join(str(error).split())}."
        return None
    if isinstance(error, MissingConfigException):
        missing = str(error.missing_cfg_file or "")
        if missing.startswith("hydra/launcher/"):
            return f"the launcher {missing[15:]} is not there: pip install geodl[launchers]."
        group, _, name = missing.partition("/")
        options: list[str] = []
        if group:
            folder = config_dir() / group
            found = folder.rglob("[!_]*.yaml")
            options = sorted(str(p.relative_to(folder).with_suffix("")) for p in found)
        if options:
            return f"{group or 'config'}={name} does not exist{near(name, options)}."
        return f"{group or 'config'}={name} does not exist: see geodl mode=list."
    texts = [" ".join(str(link).split()) for link in chain]
    for text in texts:
        if match := re.search(r"Key '([^']+)' (?:is )?not in (?:struct|')", text):
            key = match.group(1)
            full = re.search(r"full_key: (\S+)", text)
            where = full.group(1) if full else key
            rest = _suggest(where) or "; the listing in configs/ has them all."
            return f"{where} is not an option{rest}"
        if match := re.search(r"Could not override '([^']+)'", text):
            return f"{match.group(1)} is not an option{_suggest(match.group(1)) or '.'}"
        if match := re.search(r"Could not find '([^']+)'", text):
            return f"{match.group(1)} does not exist: see geodl mode=list."
    return next((t for t in texts if t), type(error).__name__).split(" full_key:")[0]


DISK = {
    *(errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.ENOENT),
    *(errno.EIO, errno.ENAMETOOLONG, errno.EFBIG, errno.ENOTDIR, errno.ESTALE),
}


def _of_disk(error: OSError) -> str:
    """What a disk refused, and what to do."""
    where = f"{error.filename}: " if error.filename else ""
    advice = {
        errno.ENOENT: "it was there before: was its folder removed or renamed meanwhile?",
        errno.ENOSPC: "make room, then give the same command again: finished epochs are kept",
        errno.EDQUOT: "make room, then give the same command again: finished epochs are kept",
    }.get(int(error.errno or 0), "choose another place (paths.outputs, paths.cache, paths.data)")
    return f"{where}{error.strerror} ({advice})."


def with_source(sentence: str) -> str:
    """A sentence about an option that the experiment chose, not the user, says so."""
    from hydra.core.hydra_config import HydraConfig

    option = re.match(r"([a-z]+\.[a-z_.]+)[:=]", sentence)
    if option is None or not HydraConfig.initialized():
        return sentence
    hydra = HydraConfig.get()
    name = hydra.runtime.choices.get("experiment")
    given = [re.split(r"[=@]", w.lstrip("+~"))[0] for w in hydra.overrides.task]
    if not name or option[1] in given or option[1] not in _options_of(f"experiment/{name}"):
        return sentence
    return f"{sentence} (experiment={name} sets {option[1]}; ~{option[1]} leaves it out)"


def _options_of(config: str) -> set[str]:
    """The options that a config file sets, those of the files it begins with included."""
    import yaml

    plain: dict[str, Any] = yaml.safe_load((config_dir() / f"{config}.yaml").read_text()) or {}
    found: set[str] = set()
    for word in plain.pop("defaults", []):
        if isinstance(word, str) and word.startswith("/"):
            found |= _options_of(word[1:])
    for key, value in plain.items():
        inner = cast("dict[str, Any]", value) if isinstance(value, dict) else {}
        found |= {key, *(f"{key}.{k}" for k in inner)}
    return found


def _suggest(key: str) -> str:
    """Whose option it is, or the closest key of the default config."""
    try:
        import yaml

        *parents, last = key.split(".")
        known: set[str] = set()
        if parents:
            owners: list[str] = []
            for path in sorted((config_dir() / parents[0]).glob("[!_]*.yaml")):
                options = set(cast("dict[str, Any]", yaml.safe_load(path.read_text()) or {}))
                owners += [path.stem] if last in options and len(parents) == 1 else []
                known |= options
            if owners:
                more = ", ..." if len(owners) > 4 else ""
                return f" here, but one of {parents[0]}={', '.join(owners[:4])}{more}"
        else:
            known = set(yaml.safe_load((config_dir() / "run.yaml").read_text()))
            known |= {p.name for p in config_dir().iterdir() if p.is_dir()}
        close = difflib.get_close_matches(last, [str(k) for k in known], 1, 0.6)
        return f": did you mean {'.'.join([*parents, close[0]])}?" if close else ""
    except OSError:
        return ""
