"""Every file below configs/ composes, and every experiment builds."""

import importlib
import inspect
import json
import re
import shlex
import subprocess
import sys
from dataclasses import asdict, is_dataclass

import pytest
from conftest import icosphere
from omegaconf import OmegaConf

from geodl.cli.listing import describe
from geodl.errors import UserError
from geodl.results.reference import reference_dir
from geodl.runs import record
from geodl.runs.build import SLOTS, build_many, build_task, make
from geodl.runs.compose import compose, composer, config_dir
from geodl.spec import DataSpec, Template

FILES = sorted(p.relative_to(config_dir()) for p in config_dir().rglob("[!_]*.yaml"))
EXPERIMENTS = [
    str(f.relative_to("experiment").with_suffix("")) for f in FILES if f.parts[0] == "experiment"
]
MEMBERS = [(f.parts[0], f.stem) for f in FILES if len(f.parts) == 2]
REFERENCE = sorted((reference_dir() / "runs").glob("*.json"))
SEVERAL = ("augment", "test", "callbacks")


def test_how_many_there_are():
    assert len(FILES) >= 154 and len(EXPERIMENTS) >= 46 and len(MEMBERS) >= 107
    for slot, at_least in (("encoder", 10), ("data", 21), ("task", 4), ("decoder", 5)):
        assert sum(group == slot for group, _ in MEMBERS) >= at_least


@pytest.mark.parametrize(("group", "name"), MEMBERS)
def test_every_member_of_a_group_composes_and_has_a_line(group, name):
    assert describe(config_dir() / group / f"{name}.yaml"), "the listing shows the first comment"
    cfg = compose([f"{group}={name}"])
    OmegaConf.to_container(cfg, resolve=True)
    if group in ("encoder", "task", "features", "data", "optim", "schedule", "decoder"):
        assert name == "none" or make(group, cfg[group])
    if group in SEVERAL and name not in ("none", "clean"):
        assert name in cfg[group]
    if group in ("augment", "callbacks") and name != "none":
        assert len(build_many(group, cfg[group], ("geodl", "lightning.pytorch"))) == 1


def test_configs_that_share_their_choices_are_what_hydra_composes():
    from hydra import compose as one

    jobs = [
        "",
        "seed=1 data.size=tiny encoder=diffusionnet encoder.k_eig=7",
        "seed=2 encoder=diffusionnet data.size='small'",
        "encoder=diffusionnet test=[clean,rotated] test.rotated.perturb=null",
        "augment=[so3,jitter] augment.copies=2 allow=[a,b]",
        "experiment=faces/spiral_l2 ~optim.lr seed=4",
        "experiment=faces/spiral_l2 optim.lr=${epochs} +data.new=3",
        "paths.outputs='a/b' hydra.job.name=x",
    ]
    with composer() as compose:
        for words in [shlex.split(job, posix=False) for job in (*jobs, *jobs)]:
            assert compose(words) == one("run", overrides=words), words
        for mistake in ("data.siz=tiny", "seed=[", "encoder=pointnot", "seed.x=3"):
            with pytest.raises(Exception) as ours:
                compose([mistake, "seed=1"])
            with pytest.raises(type(ours.value)) as hydras:
                one("run", overrides=[mistake, "seed=1"])
            assert str(ours.value) == str(hydras.value)


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_every_experiment_builds(name):
    cfg = compose([f"experiment={name}"])
    pos, face = icosphere(4)
    spec = DataSpec(
        classes=tuple("abcd"),
        parts=tuple("wxyz"),
        label_on="face",
        landmarks=10,
        template=Template(pos.astype("float32"), face),
    )
    task = build_task(cfg, spec)
    assert sum(p.numel() for p in task.parameters()) > 1000 or cfg.epochs == 0
    assert make("data", cfg.data) and describe(config_dir() / "experiment" / f"{name}.yaml")
    assert cfg.epochs >= 0 and record.run_hash(cfg)


# Files that are the same component with other options, and say so.
VARIANTS = {
    "metric/soft",
    "encoder/pointnet_tnets",
    "data/modelnet40",
    *(f"data/{n}" for n in ("scape_r", "shrec19_r", "tosca", "tosca_noniso")),
    "task/reconstruction",  # every weight that there is, where Python has those that are not zero
    "task/matching",
    "task/deformation",
    *(f"test/{n}" for n in ("cropped", "uneven", "simplified_10", "simplified_25", "scan")),
}


@pytest.mark.parametrize(
    ("group", "name"),
    [
        (group, name)
        for group, name in MEMBERS
        if group in SLOTS
        and f"{group}/{name}" not in VARIANTS
        and "_target_: geodl." in (config_dir() / group / f"{name}.yaml").read_text()
    ],
)
def test_values_in_yaml_are_the_defaults_in_python(group, name):
    node = OmegaConf.to_container(compose([f"{group}={name}"])[group], resolve=True)
    node = node[name] if group in SEVERAL else node
    if group == "test":
        node = node["perturb"][0]
    if group == "data":  # the loaders' affair
        assert node.pop("memory") is None
    target = node.pop("_target_")
    module, _, cls = target.rpartition(".")
    defaults = {
        k: p.default
        for k, p in inspect.signature(
            getattr(importlib.import_module(module), cls)
        ).parameters.items()
    }
    for key, value in node.items():
        default = defaults[key]
        if isinstance(default, tuple):
            default = list(default)
        if is_dataclass(default):
            default = {k: v for k, v in asdict(default).items() if k in value}
        if not isinstance(value, list | dict) or not any("_target_" in str(v) for v in value):
            assert value == default, f"{group}/{name}.yaml has {key}: {value}, Python {default}"


def test_components_of_a_slot_have_names_of_their_own():
    """Runs are named by them."""
    for slot in SLOTS:
        targets = set()
        for group, name in MEMBERS:
            text = (config_dir() / group / f"{name}.yaml").read_text() if group == slot else ""
            targets |= set(re.findall(r"_target_: (geodl\.\S+)", text))
        names = [t.rsplit(".", 1)[-1] for t in targets]
        assert len(names) == len(set(names)), slot


@pytest.mark.parametrize("file", REFERENCE, ids=lambda f: f.stem)
def test_reference_entries_are_named_by_their_configs(file):
    entry = json.loads(file.read_text())
    assert file.stem == f"{record.hash_of(entry['config'])}-s{entry['seed']}"
    assert record.headline(entry, next(iter(entry["eval"].values()))["scores"])
    for evaluation in entry["eval"].values():
        assert len(evaluation["commit"]) == 40 and evaluation["dirty"] in (True, False)


def test_no_reference_entry_is_lost():
    assert len(REFERENCE) >= 103


# ---- identity ----


def test_what_does_not_train_is_not_hashed(tmp_path):
    base = record.run_hash(compose([]))
    for same in (
        "seed=3",
        "force=true",
        "figures=false",
        "workers=2",
        "test=remeshed",
        "logger=wandb",
        "trainer.devices=2",
        "trainer=gpu",
        "trainer=ddp",
        "data.memory=2",
        "paths.outputs=/x",
        "debug=trace",
    ):
        assert record.run_hash(compose(same.split())) == base, same
    for other in (
        "epochs=31",
        "batch_size=8",
        "encoder.dropout=0.1",
        "optim.lr=0.01",
        "augment=so3",
        "augment=[so3,scale]",
        "features=normals",
        "data.size=tiny",
        "select=val",
        "trainer.precision=bf16-mixed",
        "encoder=point_mlp",
        "schedule=cosine",
    ):
        assert record.run_hash(compose([other])) != base, other
    (tmp_path / "w.pth").write_bytes(b"1")
    first = record.run_hash(compose([f"weights={tmp_path}/w.pth"]))
    (tmp_path / "v.pth").write_bytes(b"1")
    assert first == record.run_hash(compose([f"weights={tmp_path}/v.pth"])) != base
    (tmp_path / "w.pth").write_bytes(b"2")
    assert first != record.run_hash(compose([f"weights={tmp_path}/w.pth"]))


def test_the_hash_does_not_depend_on_the_place(monkeypatch, tmp_path):
    base = record.run_hash(compose([]))
    monkeypatch.setenv("GEODL_DATA", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    assert record.run_hash(compose([])) == base


def test_a_new_option_that_is_off_keeps_the_hash():
    cfg = compose([])
    base = record.run_hash(cfg)
    OmegaConf.set_struct(cfg, False)
    cfg.decoder = None
    cfg.task.something = {}
    assert record.run_hash(cfg) == base


def test_folder_names_come_from_the_classes():
    folder = record.run_folder(compose(["data=human_seg", "task=segmentation", "seed=7"]))
    assert folder.parts[:4] == ("outputs", "segmentation", "humanseg", "pointnet")
    assert folder.name.endswith("-s7")


# ---- what may be built ----


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ("os.system", "outside geodl, torch.optim"),
        ("torch.hub.load", "outside geodl"),
        ("torch.utils.cpp_extension.load_inline", "outside geodl"),
        ("geodl.nn.mlp.mlp", "is no Encoder"),
        ("geodl.tasks.base.Task", "is no Encoder"),
        ("geodl.encoders.nowhere.Net", "does not exist"),
    ],
)
def test_only_classes_of_the_slot_can_be_built(target, message):
    with pytest.raises(UserError, match=message):
        make("encoder", {"_target_": target})


def test_nested_targets_are_checked_too():
    nested = {"_target_": "geodl.features.Concat", "parts": [{"_target_": "os.system"}]}
    with pytest.raises(UserError, match=r"features.parts\[0\]._target_=os.system"):
        make("features", nested)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"widht": 3}, r"encoder.widht: DiffusionNet has no such option; it has .*width"),
        ({"width": "wide"}, r"encoder.width=wide is not of type int"),
        ({"diffusion": "fast"}, r"encoder.diffusion=fast is not known: choose one of spectral"),
    ],
)
def test_options_are_checked_by_name_and_type(options, message):
    target = "geodl.encoders.diffusionnet.DiffusionNet"
    with pytest.raises(UserError, match=message):
        make("encoder", {"_target_": target, **options})


# ---- without torch ----


@pytest.mark.parametrize(
    ("words", "code"), [(["mode=list"], 0), (["encoder=pointnett"], 2), (["seed=abc"], 2)]
)
def test_light_commands_import_no_torch(words, code, tmp_path):
    probe = (
        f"import sys; sys.argv[1:] = {words!r}\n"
        "from geodl.cli.main import main\n"
        "try: main(); code = 0\n"
        "except SystemExit as e: code = e.code or 0\n"
        "heavy = [m for m in ('torch', 'lightning', 'scipy', 'matplotlib') if m in sys.modules]\n"
        "assert not heavy, heavy\n"
        "sys.exit(code)"
    )
    done = subprocess.run(
        [sys.executable, "-c", probe], capture_output=True, text=True, cwd=tmp_path
    )
    assert done.returncode == code, done.stderr
    assert list(tmp_path.iterdir()) == [], "nothing is left in the working directory"
    if code:
        assert done.stderr.count("\n") == 1 and done.stderr.startswith("geodl: ")
    else:
        for word in ("diffusionnet", "princeton", "segmentation", "human_seg/diffusionnet_hks"):
            assert word in done.stdout
