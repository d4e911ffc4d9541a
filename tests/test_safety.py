"""Nobody is let in, nothing is lost: checkpoints of strangers, names as typed, damage, signals."""

import csv
import json
import os
import shutil
import signal
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import geodl
from hydra.core.global_hydra import GlobalHydra

from geodl import atomic
from geodl.cli.main import run
from geodl.cli.words import prepared
from geodl.data.formats.base import Unreadable
from geodl.errors import UserError
from geodl.results import render
from geodl.results.reference import reference_dir
from geodl.results.report import page
from geodl.runs import checkpoint, mistakes, record
from geodl.runs.build import build, make
from geodl.runs.compose import compose
from geodl.runs.evaluate import evaluate
from geodl.runs.predict import predict
from geodl.runs.sweep import summary
from geodl.tasks.base import NotFinite

TINY = ["data.size=tiny", "encoder.points=64", "batch_size=5", "figures=false"]


def go(*words):
    cfg = compose([*TINY, *words])
    run(cfg)
    return record.run_folder(cfg)


# ---- a stranger's checkpoint ----

TOUCH = {"_target_": "os.system", "command": "touch owned"}
ESCAPED = "${oc.create:{_target_:os.system,_args_:['touch owned']}}"
ATTACKS = {
    "a class of another slot": {
        "encoder": {"_target_": "geodl.tasks.classification.Classification"}
    },
    "a function": {"encoder": {"_target_": "os.system", "command": "touch owned"}},
    "a function of geodl": {"encoder": {"_target_": "geodl.cli.main.main"}},
    "a module": {"encoder": {"_target_": "geodl.encoders.pointnet"}},
    "a builtin": {"encoder": {"_target_": "builtins.eval", "expression": "open('owned','w')"}},
    "subprocess": {"task": {"_target_": "subprocess.Popen", "args": ["touch", "owned"]}},
    "through torch": {"optim": {"_target_": "torch.hub.load", "repo_or_dir": "x", "model": "y"}},
    "through torch.optim's imports": {"optim": {"_target_": "torch.optim.adam.torch.hub.load"}},
    "through lightning": {"encoder": {"_target_": "lightning.pytorch.cli.LightningCLI"}},
    "a private import": {"encoder": {"_target_": "geodl.runs.sweep.subprocess.Popen"}},
    "a package named alike": {"encoder": {"_target_": "geodlx.Encoder"}},
    "dots": {"encoder": {"_target_": "geodl...encoders.pointnet.PointNet"}},
    "no name": {"encoder": {"_target_": ""}},
    "a number": {"encoder": {"_target_": 7}},
    "no class at all": {"encoder": {}},
    "nested": {"encoder": {"pool": TOUCH}},
    "nested in a list": {"encoder": {"pool": [TOUCH]}},
    "nested deep": {"encoder": {"pool": {"a": [{"b": TOUCH}]}}},
    "nested in data": {"data": {"up": TOUCH}},
    "nested in preprocess": {"data": {"preprocess": {"center": TOUCH}}},
    "nested in the losses": {"task": {"label_smoothing": TOUCH}},
    "an interpolation": {"encoder": {"pool": "${oc.env:HOME}"}},
    "an escaped interpolation": {"encoder": {"pool": ESCAPED}},
    "twice escaped": {"encoder": {"pool": "\\" + ESCAPED}},
    "three times escaped": {"encoder": {"pool": "\\\\\\" + ESCAPED}},
    "in an Any option": {"data": {"up": ESCAPED}},
    "in a key": {"encoder": {ESCAPED: 1}},
    "in a list": {"encoder": {"pool": [ESCAPED]}},
    "half an interpolation": {"encoder": {"pool": "${"}},
    "positional": {"encoder": {"_args_": [TOUCH]}},
    "partial": {"encoder": {"_partial_": True}},
    "recursive": {"encoder": {"_recursive_": False}},
    "convert": {"encoder": {"_convert_": "all"}},
    "allow": {"allow": ["os"], "encoder": {"_target_": "os.system", "command": "touch owned"}},
    "an unknown option": {"encoder": {"hook": "os.system"}},
    "seed": {"seed": ESCAPED},
}


def merged(a, b):
    if not (isinstance(a, dict) and isinstance(b, dict)) or "_target_" in b or not b:
        return b
    return {**a, **{k: merged(a.get(k), v) for k, v in b.items()}}


@pytest.fixture(scope="module")
def stored(tmp_path_factory):
    """An untrained checkpoint, as plain data."""
    folder = tmp_path_factory.mktemp("stored")
    before = Path.cwd()
    os.chdir(folder)
    GlobalHydra.instance().clear()
    try:
        found = go("epochs=0").resolve()
    finally:
        os.chdir(before)
    return torch.load(found / "last.ckpt", weights_only=True)


@pytest.mark.parametrize("name", ATTACKS)
def test_a_checkpoint_builds_nothing_but_what_fits_its_slot(name, stored, here):
    config = merged(stored["geodl"]["config"], ATTACKS[name])
    torch.save(stored | {"geodl": {**stored["geodl"], "config": config}}, "evil.ckpt")
    with pytest.raises(UserError):
        evaluate(compose(["mode=eval", "ckpt=evil.ckpt", "figures=false"]))
    assert [p.name for p in Path().iterdir()] == ["evil.ckpt"]


class Evil:
    def __reduce__(self):
        return os.system, ("touch owned",)


def test_code_in_a_pickle_is_not_run(stored, here):
    torch.save(stored | {"extra": Evil()}, "evil.ckpt")
    with pytest.raises(UserError, match="holds more than tensors"):
        checkpoint.load_checkpoint(Path("evil.ckpt"))
    with pytest.raises(UserError, match="holds more than tensors"):
        checkpoint.load_weights("evil.ckpt")
    assert not Path("owned").exists()


@pytest.mark.parametrize(
    "spoil",
    [
        lambda c: c["geodl"].pop("spec"),
        lambda c: c["geodl"].pop("preprocess"),
        lambda c: c.pop("state_dict"),
        lambda c: c["geodl"].update(spec={"classes": 3, "nonsense": 1}),
        lambda c: c["geodl"].update(preprocess={"nonsense": 1}),
        lambda c: c["geodl"].update(format="two"),
        lambda c: c.update(geodl=7),
        lambda c: c["state_dict"].update({"encoder.x": torch.zeros(1)}),
        lambda c: c["state_dict"].update({"encoder.x": "text"}),
        lambda c: c["state_dict"].update({"encoder.x": torch.eye(2).to_sparse()}),
        lambda c: c["geodl"].update(config=c["geodl"]["config"] | {"seed": "x"}),
        lambda c: c["geodl"].update(config=c["geodl"]["config"] | {"encoder": None}),
        lambda c: c["geodl"].update(config=c["geodl"]["config"] | {"optim": []}),
    ],
)
def test_a_checkpoint_that_lacks_something_is_refused(spoil, stored, here):
    np.save("c.npy", np.random.default_rng(0).random((50, 3)))
    copy = {**stored, "geodl": {**stored["geodl"]}, "state_dict": {**stored["state_dict"]}}
    spoil(copy)
    torch.save(copy, "odd.ckpt")
    with pytest.raises(UserError, match=r"odd\.ckpt"):
        predict(compose(["mode=predict", "ckpt=odd.ckpt", "input=c.npy"]))


def test_a_changed_byte_of_a_checkpoint_is_noticed(stored, here):
    torch.save(stored, "a.ckpt")
    whole = Path("a.ckpt").read_bytes()
    rng = np.random.default_rng(0)
    names = sorted(stored["state_dict"], key=lambda n: -stored["state_dict"][n].numel())
    tensor = stored["state_dict"][names[0]].numpy().tobytes()
    places = [whole.index(tensor[:64]) + int(i) for i in rng.integers(0, len(tensor), 8)]
    for place in places:
        data = bytearray(whole)
        data[place] ^= 1
        Path("b.ckpt").write_bytes(data)
        with pytest.raises(
            UserError, match=r"b.ckpt cannot be read: it is damaged.*the checksum of"
        ):
            checkpoint.load_checkpoint(Path("b.ckpt"))


def test_a_checkpoint_that_unpacks_to_more_than_it_is_gets_refused(stored, here):
    torch.save(stored, "a.ckpt")
    with zipfile.ZipFile("a.ckpt") as old, zipfile.ZipFile("bomb.ckpt", "w", 8) as new:
        for name in old.namelist():
            new.writestr(name, old.read(name))
        new.writestr("archive/data/999", bytes(50 << 20))
    with pytest.raises(UserError, match="claims to unpack to"):
        checkpoint.load_checkpoint(Path("bomb.ckpt"))


def test_options_out_of_range_get_a_sentence():
    for words, message in (
        (["encoder.points=-5"], "encoder.points=-5 must be 1 or more"),
        (["encoder.points=0"], "encoder.points=0 must be 1 or more"),
        (["optim.lr=-0.1"], "optim.lr=-0.1 must be 0 or more"),
        (["optim.lr=nan"], "optim.lr=nan must be 0 or more"),
        (["optim.weight_decay=-1"], "optim.weight_decay=-1 must be 0 or more"),
        (["encoder=diffusionnet", "encoder.width=-1"], "encoder.width=-1 must be 1 or more"),
        (["encoder=diffusionnet", "encoder.blocks=0"], "encoder.blocks=0 must be 1 or more"),
        (["encoder=diffusionnet", "encoder.dropout=7"], "dropout probability has to be between"),
        (["features=hks", "features.k=-1"], "features.k=-1 must be 1 or more"),
    ):
        with pytest.raises(UserError, match=message):
            parts = build(compose([*TINY[:1], *words]))
            parts.task.configure_optimizers()


def test_options_are_resolved_once():
    folder = {"_target_": "geodl.data.folder.Folder", "folder": "${oc.env:HOME}"}
    with pytest.raises(UserError, match="holds an interpolation that was not resolved"):
        make("data", folder)


# ---- what leaves: spreadsheets, TeX, the report ----


def test_cells_that_a_spreadsheet_would_run(tmp_path):
    odd = ["=1+1", "+cmd|' /C calc'!A0", "-2+3", "@SUM(A1)", "\tx", "plain", "-3.5", "+0.2", -1.0]
    atomic.write_csv(tmp_path / "a.csv", ["=name"], [{"=name": text} for text in odd])
    with (tmp_path / "a.csv").open() as stream:
        head, *rows = csv.reader(stream)
    assert head == ["'=name"]
    assert [r[0] for r in rows[:5]] == [f"'{t}" for t in odd[:5]]
    assert [r[0] for r in rows[5:]] == ["plain", "-3.5", "+0.2", "-1.0"]


def test_tables_escape_names_for_csv_and_tex():
    data = json.loads((reference_dir() / "human_seg.json").read_text())
    data["title"] = "a\n\\b"
    data["rows"][0]["name"] = r"=50% & a_b #1 $x$ {y} \input{z} ^~"
    assert "'=50% & a_b" in render.as_csv(data) and "\n=50%" not in render.as_csv(data)
    text = render.latex(data)
    escaped = r"=50\% \& a\_b \#1 \$x\$ \{y\} \textbackslash{}input\{z\} \textasciicircum{}"
    assert escaped in text and text.startswith("% a \\b:")


def test_no_name_ends_the_data_of_the_report():
    nasty = ["<!--<script>", "</script><script>alert(1)</script>", "<img src=x onerror=alert(1)>"]
    text = page({"names": nasty, "value": float("nan")})
    start = text.index('id="data"')
    inside = text[text.index(">", start) + 1 : text.index("</script>", start)]
    assert "<" not in inside and json.loads(inside) == {"names": nasty, "value": None}


# ---- names as they are typed ----

NAMES = ["a b.off", "épo=1, v2.off", "[x].off", "{y}.off", "a#b.off", "~home.off", "it's.off"]
NAMES += [
    'say "hi".off',
    "50%.off",
    "a,b.off",
    "$x.off",
    "(1).off",
    "a&b;c.off",
    "日本.off",
    "a\\b.off",
]


def parsed(word):
    """What Hydra makes of a word: key and value."""
    from hydra.core.override_parser.overrides_parser import OverridesParser

    (override,) = OverridesParser.create().parse_overrides([word])
    return override.key_or_group, override.value()


@pytest.mark.parametrize("name", NAMES)
def test_odd_names_reach_hydra_as_typed(name, here):
    Path(name).touch()
    for key in (
        "input",
        "ckpt",
        "data.folder",
        "weights",
        "init",
        "paths.outputs",
        "output",
        "code",
        "mask",
    ):
        (word,) = prepared([f"{key}={name}"])
        assert parsed(word) == (key, str(here / name) if name[0] == "~" else name)
        assert prepared([word]) == [word], "a job of a sweep gets its words a second time"
    (word,) = prepared([f"input=[{name},{name}]"])
    assert parsed(word)[1] == [name, name]


def test_words_that_need_no_quotes_stay(here):
    words = ["seed=0,1", "encoder.width=[1,2]", "input=a.off", "paths.archives=null", "input='a b'"]
    words += ["ckpt=${paths.outputs}/x", "-m", "+hydra.x=1", "+encoder.mine=1", "~augment"]
    assert prepared(words) == words
    assert prepared(["-m", "data.folder=a x,b"])[1] == "data.folder='a x','b'"
    assert prepared(["data.folder=a x,b"]) == ["data.folder='a x,b'"]


@pytest.mark.parametrize("word", ["+foo=1", "++seed=1", "+paths.mine=x", "+table.x=1", "+seed=3"])
def test_an_option_that_is_added_is_refused(word):
    with pytest.raises(UserError, match="adds an option, and there is no such one"):
        prepared([word])


def test_predictions_do_not_overwrite_one_another(stored, here):
    rng = np.random.default_rng(0)
    for name in ("one/a.npy", "two/a.npy", "two/a b.npy", "two/a-b.npy", "épo=1, v2.npy"):
        Path(name).parent.mkdir(exist_ok=True)
        np.save(name, rng.random((50, 3)))
    for run_name in ("x", "y"):
        Path(run_name, "same").mkdir(parents=True)
        torch.save(stored | {"extra": run_name}, f"{run_name}/same/last.ckpt")

    def ask(ckpt, name, *words):
        (word,) = prepared([f"input={name}"])
        text = predict(compose(["mode=predict", f"ckpt={ckpt}/same/last.ckpt", word, *words]))
        return text.splitlines()[-1]

    asked = [("x", "one/a.npy"), ("x", "two/a.npy"), ("y", "one/a.npy"), ("x", "two")]
    asked.append(("x", "épo=1, v2.npy"))
    places = [ask(*a) for a in asked]
    assert len(set(places)) == 5 and places[0] == "outputs/predict/same-last/a.npy"
    assert places[1] == "outputs/predict/same-last/a.npy-2"
    assert [ask(*a) for a in asked] == places, "the same question goes to the same place"
    rows = json.loads(Path(places[3], "predictions.json").read_text())
    assert [r["file"] for r in rows] == ["a b.npy", "a-b.npy", "a.npy"]
    assert len(list(Path(places[3]).glob("*.png"))) == 3
    with pytest.raises(UserError, match="output=two holds other files"):
        ask("x", "one/a.npy", "output=two")
    with pytest.raises(UserError, match=r"input=\[\] has no file"):
        predict(compose(["mode=predict", "ckpt=x/same/last.ckpt", "input=[]"]))
    text = predict(
        compose(["mode=predict", "ckpt=x/same/last.ckpt", "input=[one/a.npy,two/a.npy]"])
    )
    assert "one/a.npy: " in text and "two/a.npy: " in text
    ask("x", "one/a.npy", "output=mine")
    with pytest.raises(UserError, match="output=mine holds other files, or the predictions"):
        ask("x", "two/a.npy", "output=mine")


def test_an_answer_does_not_depend_on_the_file_name(stored, here):
    torch.save(stored, "a.ckpt")
    pos = np.random.default_rng(0).random((500, 3))
    answers = []
    for name in ("one", "another name"):
        np.save(f"{name}.npy", pos)
        (word,) = prepared([f"input={name}.npy"])
        place = predict(compose(["mode=predict", "ckpt=a.ckpt", word])).splitlines()[-1]
        (row,) = json.loads(Path(place, "predictions.json").read_text())
        answers.append(row["probabilities"])
    assert answers[0] == answers[1]


# ---- records ----


def test_damaged_results_are_named_and_made_again(here, caplog, capsys):
    folder = go("epochs=1")
    good = (folder / "result.json").read_text()
    ledger = Path("shared")
    headless = json.loads(good)
    headless["eval"]["clean"]["scores"] = {"loss": 1.0}
    endless = json.dumps(headless).replace("1.0", "NaN").replace('"loss"', '"acc"')
    odd = [endless, json.dumps(headless), "[" * 99999]
    odd += ["{", "[]", "null", '{"status": "done"}', '"done"', "\0"]
    for text in odd:
        (folder / "result.json").write_text(text)
        caplog.clear()
        assert record.read_result(folder) is None or text == "null"
        assert record.to_ledger(folder, ledger) is None
        if text != "null":
            assert "result.json" in caplog.text and "taken as absent" in caplog.text
    stamp = (folder / "metrics.csv").read_text()
    go("epochs=1")
    again = json.loads((folder / "result.json").read_text())
    before = json.loads(good)
    assert again["eval"]["clean"]["scores"] == before["eval"]["clean"]["scores"]
    assert (folder / "metrics.csv").read_text() == stamp, "not trained again: last.ckpt was good"
    ledger.mkdir()
    (ledger / f"{folder.name}.json").write_text('{"status": "done", "eval": 3}')
    capsys.readouterr()
    go("epochs=1", "paths.ledger=shared")
    assert "skipped" in capsys.readouterr().out


@pytest.mark.parametrize("how", ["byte", "state", "NaN", "weight"])
def test_a_damaged_last_checkpoint_is_left_aside(how, here, caplog):
    go("epochs=2", "select=val", "encoder.dropout=0.2")
    (folder,) = Path("outputs/classification/creatures/pointnet").iterdir()
    want = torch.load(folder / "last.ckpt", weights_only=True)["state_dict"]
    (folder / "result.json").unlink()
    if how == "byte":
        data = bytearray((folder / "last.ckpt").read_bytes())
        data[len(data) // 2] ^= 1
        (folder / "last.ckpt").write_bytes(data)
    else:
        saved = torch.load(folder / "last.ckpt", weights_only=True)
        if how == "state":
            del saved["optimizer_states"]
        elif how == "NaN":
            saved["state_dict"]["head.weight"][0, 0] = torch.nan
        else:
            del saved["state_dict"]["head.weight"]
        torch.save(saved, folder / "last.ckpt")
    go("epochs=2", "select=val", "encoder.dropout=0.2")
    assert "last.ckpt" in caplog.text and "It is left aside." in caplog.text
    assert f"resuming {folder / 'best.ckpt'}" in caplog.text
    found = torch.load(folder / "last.ckpt", weights_only=True)["state_dict"]
    assert all(torch.equal(found[k], want[k]) for k in want), "bit for bit, from the best epoch on"


def test_weights_that_are_not_finite_are_never_done(here, caplog):
    folder = go("epochs=1")
    state = checkpoint.load_weights(str(folder / "last.ckpt"))
    state["head.weight"][0, 0] = torch.nan
    torch.save(state, "nan.pth")
    with pytest.raises(NotFinite, match=r"not finite \(head.weight\)"):
        go("epochs=0", "weights=nan.pth")
    statuses = [json.loads(p.read_text())["status"] for p in Path("outputs").rglob("result.json")]
    assert sorted(statuses) == ["diverged", "done"]


def test_a_divergence_in_the_last_step_is_noticed_and_remembered(here, caplog, monkeypatch):
    from geodl.tasks.classification import Classification

    plain = Classification.training_step

    def spoil(self, batch, batch_idx):
        loss = plain(self, batch, batch_idx)
        last = batch_idx == self.trainer.num_training_batches - 1 and self.current_epoch == 1
        return loss + (self.head.weight.sum() * torch.inf if last else 0)

    monkeypatch.setattr(Classification, "training_step", spoil)
    with pytest.raises(NotFinite, match=r"diverged: .* at the end of epoch 2; lower optim.lr"):
        go("epochs=3", "select=val")
    (folder,) = Path("outputs/classification/creatures/pointnet").iterdir()
    assert json.loads((folder / "result.json").read_text())["status"] == "diverged"
    for name in ("last.ckpt", "best.ckpt"):
        saved = checkpoint.load_checkpoint(folder / name)
        assert checkpoint.not_finite(saved["state_dict"]) is None and saved["epoch"] == 0
    caplog.clear()
    with pytest.raises(NotFinite):
        go("epochs=3", "select=val")
    assert "this run diverged before, and going on will do so again" in caplog.text


def test_a_skipped_run_tells_of_its_logger_and_of_other_versions(here, caplog):
    folder = go("epochs=0")
    result = json.loads((folder / "result.json").read_text())
    result["versions"]["torch"] = "1.0"
    record.write_json(folder / "result.json", result)
    go("epochs=0", "logger=tensorboard")
    assert "TensorBoardLogger logs nothing: the run is finished" in caplog.text
    assert f"made with torch 1.0 (here {torch.__version__})" in caplog.text


def test_a_later_version_of_a_component_is_another_run(monkeypatch, here):
    cfg = compose([*TINY, "augment=so3"])
    before = record.run_hash(cfg)
    real = record.later_version
    for module in ("encoders.pointnet", "tasks.base", "ops", "augment", "data.creatures"):
        with monkeypatch.context() as patch:
            patch.setattr(
                record, "later_version", lambda m, only=module: 9 if m == only else real(m)
            )
            assert record.run_hash(cfg) != before, module
    assert record.run_hash(cfg) == before


def test_what_a_disk_refuses_is_a_sentence():
    full = OSError(28, "No space left on device", "outputs/x/last.ckpt")
    said = mistakes.explain(full)
    assert said and said.startswith("outputs/x/last.ckpt: No space left on device (make room")
    wrapped = RuntimeError("in a writer")
    wrapped.__cause__ = full
    assert mistakes.explain(wrapped) == said
    gone = FileNotFoundError(2, "No such file or directory", "outputs/x/.result.json.1.part")
    assert "was its folder removed" in str(mistakes.explain(gone))
    assert mistakes.explain(RuntimeError("ours")) is None
    assert mistakes.explain(Unreadable("x")) is None


def test_a_mistake_found_after_composition_leaves_no_run_folder(tmp_path):
    said = geodl("data=folder", "data.folder=nowhere", cwd=tmp_path, code=2).stderr
    assert "nowhere" in said
    said = geodl(*TINY, "select=val", "task=segmentation", "encoder=flat_mlp", cwd=tmp_path, code=2)
    geodl(*TINY, "optim.lr=-1", cwd=tmp_path, code=2)
    assert list(tmp_path.iterdir()) == []


def test_the_test_split_stays_closed_until_it_is_evaluated(here, monkeypatch):
    from geodl.data.creatures import Creatures
    from geodl.runs import train

    read, plain, evaluate_run = [], Creatures.read, train.evaluate_run
    monkeypatch.setattr(Creatures, "read", lambda self, i: read.append(i.name) or plain(self, i))
    monkeypatch.setattr(train, "evaluate_run", lambda *a: read.append("now") or evaluate_run(*a))
    go("epochs=1", "test=[clean,rotated,simplified]")
    test = {n for n in read[read.index("now") :] if n != "now"}
    before = set(read[: read.index("now")])
    assert len(test) == 8 and len(before) == 24 and not test & before


def test_a_folder_that_vanishes_is_said(here, monkeypatch):
    from geodl.runs.history import History

    plain = History.on_train_epoch_end

    def gone(self, trainer, module):
        plain(self, trainer, module)
        if trainer.current_epoch == 1:
            shutil.rmtree(self.folder)

    monkeypatch.setattr(History, "on_train_epoch_end", gone)
    with pytest.raises(FileNotFoundError) as error:
        go("epochs=4")
    said = str(mistakes.explain(error.value))
    assert "pointnet" in said and "was its folder removed" in said


# ---- sweeps and signals ----


def test_the_summary_keeps_failures_apart_and_names_pictures_where_they_are(tmp_path, capsys):
    (tmp_path / "a/figures").mkdir(parents=True)
    entries = [
        {"job": "seed=0", "status": "failed"},
        {"job": "seed=1", "status": "done", "where": str(tmp_path / "a"), "eval": {"clean": 0.5}},
        {"job": "seed=2", "status": "stopped"},
        {"job": "seed=3", "status": "skipped", "where": str(tmp_path / "b"), "eval": {}},
    ]
    assert summary(entries) == 1
    out = capsys.readouterr().out
    assert out.index("seed=1") < out.index("seed=2") < out.index("seed=0"), "failures stand last"
    assert f"pictures:\n  {tmp_path}/a/figures\nresults:\n  {tmp_path}/b\n" in out
    assert "1 done, 1 skipped, 0 resumed, 1 stopped, 1 failed" in out


def stopped(words, cwd, when):
    """A command that is asked to stop once ``when`` is in its output; code and output."""
    env = os.environ | {"PYTHONUNBUFFERED": "1"}
    command = [sys.executable, "-m", "geodl", *words]
    with (cwd / "log").open("w") as log:
        process = subprocess.Popen(command, cwd=cwd, stdout=log, stderr=log, env=env)
    for _ in range(600):
        time.sleep(0.1)
        if when in (cwd / "log").read_text():
            break
    process.send_signal(signal.SIGTERM)
    return process.wait(timeout=60), (cwd / "log").read_text()


def test_sigterm_writes_what_it_can_and_says_how_to_go_on(tmp_path):
    words = [*TINY, "epochs=2000"]
    code, text = stopped(words, tmp_path, "epoch    2/2000")
    assert code == 143 and "stopped (SIGTERM); the same command goes on from here" in text
    assert "Traceback" not in text
    (result,) = tmp_path.glob("outputs/*/*/*/*/result.json")
    assert json.loads(result.read_text())["status"] == "interrupted"
    assert checkpoint.load_checkpoint(result.parent / "last.ckpt")["epoch"] >= 0
    code, text = stopped([*words, "stop_code=99"], tmp_path, "epoch")
    assert code == 99 and "resuming" in text


def test_sigterm_ends_a_sweep_with_its_summary(tmp_path):
    words = ["-m", *TINY, "epochs=1,2000"]
    code, text = stopped(words, tmp_path, "epoch    2/2000")
    assert code == 143 and "1 done, 0 skipped, 0 resumed, 1 stopped, 0 failed" in text
