"""Runs from the outside: trained, skipped, resumed, evaluated, refused; on tiny creatures."""

import json
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import FACES_OF_TETRA as FACES
from conftest import TETRA, geodl, write_off
from hydra.core.global_hydra import GlobalHydra

import geodl.runs.evaluate as evaluate_module
import geodl.runs.train as train_module
from geodl.cli.main import run
from geodl.data.loaders import Loaders
from geodl.data.views import Wishes
from geodl.errors import UserError
from geodl.runs import checkpoint, record, sweep
from geodl.runs.compose import compose, composer, config_dir
from geodl.runs.evaluate import evaluate
from geodl.runs.history import EarlyStopping
from geodl.runs.predict import predict
from geodl.runs.prepare import prepare

TINY = ["data.size=tiny", "encoder.points=64", "batch_size=5"]


def composed(*words):
    return compose([*TINY, *words])


def go(*words):
    cfg = composed(*words)
    run(cfg)
    return record.run_folder(cfg)


def weights(folder, name="last.ckpt"):
    return torch.load(folder / name, weights_only=True)["state_dict"]


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def test_a_run_leaves_everything_and_is_skipped_the_second_time(here, capsys):
    folder = go("epochs=2", "test=[clean,remeshed_rotated]")
    for name in (
        "config.yaml",
        "result.json",
        "metrics.csv",
        "last.ckpt",
        "eval/clean.json",
        "eval/clean.csv",
        "eval/remeshed_rotated.json",
        "figures/learning_curves.png",
        "figures/confusion-clean.png",
        "figures/gallery-clean.png",
    ):
        assert (folder / name).stat().st_size > 50, name
    result = json.loads((folder / "result.json").read_text())
    assert result["status"] == "done" and result["epochs"] == 2 and result["parameters"] > 1000
    assert result["protocol"] == "creatures-tiny-v3-seed0" and len(result["split_checksum"]) == 16
    assert set(result["eval"]) == {"clean", "remeshed_rotated"}
    assert result["eval"]["clean"]["shapes"] == 8 and result["peak_memory_mb"] > 50
    assert str(here) not in json.dumps(result), "results carry no path of the machine"
    stamp = (folder / "last.ckpt").stat().st_mtime_ns
    capsys.readouterr()
    go("epochs=2", "test=[clean,remeshed_rotated]")
    assert "skipped, finished before" in capsys.readouterr().out
    assert (folder / "last.ckpt").stat().st_mtime_ns == stamp

    # A new test set is evaluated without training.
    go("epochs=2", "test=[clean,rotated]")
    assert (folder / "last.ckpt").stat().st_mtime_ns == stamp
    result = json.loads((folder / "result.json").read_text())
    assert set(result["eval"]) == {"clean", "remeshed_rotated", "rotated"}

    # A ledger that is named is enough to know that it is finished; a reference is not.
    entry = record.to_ledger(folder, Path("shared/runs"))
    assert entry is not None and entry.stat().st_size < 20_000
    shutil.rmtree("outputs")
    capsys.readouterr()
    go("epochs=2", "paths.ledger=shared/runs")
    assert str(entry) in capsys.readouterr().out and not folder.exists()
    again = go("epochs=2", "paths.reference=shared")
    assert (again / "last.ckpt").is_file()
    out = capsys.readouterr().out
    assert "skipped" not in out
    assert re.search(r"clean: acc \d+.\d\d %, reference .* \(1\): the same numbers", out)

    # force=true trains again, to the same weights.
    before, when = weights(again), (again / "last.ckpt").stat().st_mtime_ns
    assert go("epochs=2", "force=true") == again
    assert "skipped" not in capsys.readouterr().out
    assert same(weights(again), before) and (again / "last.ckpt").stat().st_mtime_ns > when


EACH = {
    "acc": ("data.size=tiny", "encoder.points=64"),
    "iou": (
        *("experiment=implicit/creatures", "data.size=tiny", "encoder.points=32"),
        *("decoder.width=16", "task.cells=16", "test=clean", "task.queries=64"),
    ),
    "error": (
        *("experiment=faces/spiralnet_heads", "data.size=tiny", "batch_size=3", "test=clean"),
        *("encoder.channels=[8,8]", "decoder.channels=[8,8]"),
    ),
    "deformation": (
        *("experiment=deform/solver", "data.vertices=150", "data.train=1", "data.test=1"),
        *("data.poses=2", "test=clean"),
    ),
}


@pytest.mark.parametrize("words", EACH.values(), ids=EACH)
def test_the_numbers_of_all_shapes_are_kept_in_the_order_of_the_test_set(here, words):
    """Their mean is the metric, and the worst ones are those of the lists."""
    cfg = compose([*words, "epochs=1"])
    run(cfg)
    folder = record.run_folder(cfg)
    entry = json.loads((folder / "result.json").read_text())["eval"]["clean"]
    metric, values = entry["each"]["metric"], [float(v) for v in entry["each"]["values"].split()]
    assert len(values) == entry["shapes"]
    assert sum(values) / len(values) == pytest.approx(entry["scores"][metric], rel=1e-3)
    alone = "deform/solver" not in " ".join(words)
    assert ("shapes" in entry["each"]) == alone, "what a test may pair: no two of one person"
    rows = (folder / "eval" / "clean-each.csv").read_text().splitlines()
    assert rows[0] == f"shape,{metric}" and len(rows) == 1 + len(values)
    assert [float(r.split(",")[-1]) for r in rows[1:]] == pytest.approx(values, rel=1e-3, abs=1e-6)


def test_training_is_deterministic_and_seeds_differ(here):
    a = weights(go("epochs=2", "figures=false", "augment=[so3,jitter]"))
    shutil.rmtree("outputs")
    b = weights(go("epochs=2", "figures=false", "augment=[so3,jitter]"))
    c = weights(go("epochs=2", "figures=false", "augment=[so3,jitter]", "seed=1"))
    assert same(a, b) and not same(a, c)


def test_a_resumed_run_equals_an_unbroken_one_bit_for_bit(here, monkeypatch):
    words = (
        "epochs=4",
        "figures=false",
        "augment=[so3,scale]",
        "schedule=cosine",
        "select=val",
        "encoder.dropout=0.3",
    )
    whole = go(*words)
    unbroken = weights(whole), weights(whole, "best.ckpt"), (whole / "metrics.csv").read_text()
    shutil.rmtree("outputs")

    from geodl.runs.history import History

    original = History.on_train_epoch_end

    def dies(self, trainer, module):
        original(self, trainer, module)
        if trainer.current_epoch == 1:
            raise RuntimeError("power cut")

    monkeypatch.setattr(History, "on_train_epoch_end", dies)
    with pytest.raises(RuntimeError, match="power cut"):
        go(*words)
    folder = record.run_folder(composed(*words))
    result = json.loads((folder / "result.json").read_text())
    assert result["status"] == "failed" and "power cut" in result["traceback"]
    # metrics of an epoch that the checkpoint does not know are cut off again
    (folder / "metrics.csv").write_text((folder / "metrics.csv").read_text() + "9,9,9\n")
    monkeypatch.setattr(History, "on_train_epoch_end", original)
    assert go(*words) == folder
    assert same(weights(folder), unbroken[0]) and same(weights(folder, "best.ckpt"), unbroken[1])

    def without_seconds(text):
        rows = [line.split(",") for line in text.splitlines()]
        drop = rows[0].index("seconds")
        return [r[:drop] + r[drop + 1 :] for r in rows]

    assert without_seconds((folder / "metrics.csv").read_text()) == without_seconds(unbroken[2])


def test_a_killed_sweep_goes_on_where_it_was(tmp_path):
    words = ["-m", *TINY, "epochs=6", "figures=false", "seed=0,1,2"]
    sweep = subprocess.Popen(
        [sys.executable, "-m", "geodl", *words],
        cwd=tmp_path,
        start_new_session=True,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    limit = time.time() + 240
    while time.time() < limit:  # until run 3 has two epochs
        files = list(tmp_path.glob("outputs/*/*/*/*-s2/metrics.csv"))
        if files and len(files[0].read_text().splitlines()) >= 3:
            break
        time.sleep(0.02)
    os.killpg(sweep.pid, signal.SIGKILL)
    sweep.wait()
    third = files[0].parent
    assert record.read_result(third)["status"] == "running"
    assert not list(third.glob("*.json.*")) and (third / "last.ckpt").is_file()
    done = geodl(*words, cwd=tmp_path)
    assert "0 done, 2 skipped, 1 resumed, 0 failed" in done.stdout
    again = "import sys; from geodl.runs.sweep import sweep; sweep(sys.argv[1:])"
    again += "; print('torch' in sys.modules)"
    quick = subprocess.run(
        [sys.executable, "-c", again, *words], cwd=tmp_path, capture_output=True, text=True
    )
    assert "0 done, 3 skipped" in quick.stdout and quick.stdout.endswith("False\n")
    broken = weights(third)
    shutil.rmtree(third)
    geodl(*words[1:-1], "seed=2", cwd=tmp_path)
    assert same(weights(third), broken)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["outputs"]


def test_two_processes_train_what_one_does_and_the_other_way_round(tmp_path):
    words = [*TINY[:1], "encoder=diffusionnet", "encoder.width=8", "encoder.blocks=2"]
    words += ["encoder.k_eig=8", "encoder.dropout=0", "batch_size=6", "epochs=5", "select=val"]
    words += ["figures=false", "optim.lr=0.01"]
    two = ["trainer=ddp", "trainer.accelerator=cpu"]
    geodl(*words, "paths.outputs=one", cwd=tmp_path)
    geodl(*words, *two, "paths.outputs=two", cwd=tmp_path)
    (one,) = tmp_path.glob("one/*/*/*/*/last.ckpt")
    (both,) = tmp_path.glob("two/*/*/*/*/last.ckpt")
    rows = [[float(x) for x in line.split(",")[:-1]] for line in _lines(one.parent)[1:]]
    others = [[float(x) for x in line.split(",")[:-1]] for line in _lines(both.parent)[1:]]
    assert len(rows) == 5 and np.allclose(rows, others, rtol=1e-3), "training and val, every epoch"
    a, b = weights(one.parent, "best.ckpt"), weights(both.parent, "best.ckpt")
    assert all(torch.allclose(a[k], b[k], rtol=1e-2, atol=1e-4) for k in a)
    assert sorted(p.name for p in one.parent.iterdir()) == sorted(
        p.name for p in both.parent.iterdir()
    )
    # One that was killed goes on in one process.
    command = [sys.executable, "-m", "geodl", *words, *two, "paths.outputs=third"]
    env = os.environ | {"PYTHONUNBUFFERED": "1"}
    process = subprocess.Popen(
        command, cwd=tmp_path, env=env, start_new_session=True, stderr=subprocess.PIPE, text=True
    )
    assert process.stderr is not None
    assert any(line.startswith("epoch 2/5") for line in process.stderr)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    done = geodl(*words, "paths.outputs=third", cwd=tmp_path)
    (third,) = tmp_path.glob("third/*/*/*/*/last.ckpt")
    assert "resuming" in done.stderr and len(_lines(third.parent)) == 6
    c = weights(third.parent, "best.ckpt")
    assert all(torch.allclose(a[k], c[k], rtol=1e-2, atol=1e-4) for k in a)


def test_memory_is_counted_in_megabytes():
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    if sys.platform == "linux":  # in kilobytes there
        assert record.peak_memory_mb() == pytest.approx(peak / 1024, rel=1e-4)


def _lines(folder):
    return (folder / "metrics.csv").read_text().splitlines()


def test_a_failing_job_keeps_its_traceback_and_the_sweep_goes_on(tmp_path):
    words = ["-m", *TINY, "epochs=2", "figures=false", "optim.lr=1e20,0.001"]
    done = geodl(*words, cwd=tmp_path, code=1)
    assert "1 done, 0 skipped, 0 resumed, 1 failed" in done.stdout
    results = [json.loads(p.read_text()) for p in tmp_path.glob("outputs/*/*/*/*/result.json")]
    assert sorted(r["status"] for r in results) == ["diverged", "done"]
    assert any("NotFinite" in r.get("traceback", "") for r in results)


def test_evaluating_a_checkpoint_gives_the_numbers_of_training(here, capsys):
    folder = go("epochs=2", "figures=false", "test=[clean,train]")
    trained = json.loads((folder / "result.json").read_text())["eval"]
    for file in (folder / "eval").iterdir():
        file.unlink()
    evaluate(compose([f"ckpt={folder / 'last.ckpt'}", "mode=eval", "test=[clean,train]"]))
    for name in ("clean", "train"):
        again = json.loads((folder / "eval" / f"{name}-last.json").read_text())
        assert again["scores"] == trained[name]["scores"]
        assert len(again["confusion"]) == 8
    # The same weights with their experiment, as if they came from elsewhere.
    torch.save(weights(folder), here / "w.pth")
    evaluate(composed("epochs=2", "mode=eval", f"weights={here}/w.pth"))
    (other,) = Path("outputs").rglob("eval/clean-weights.json")
    assert json.loads(other.read_text())["scores"] == trained["clean"]["scores"]


@pytest.mark.parametrize("words", [["encoder.points=null"], ["encoder=diffusionnet"]], ids=str)
@pytest.mark.parametrize("task", ["classification", "segmentation"])
def test_every_named_test_set_is_evaluated(here, task, words):
    every = (f.stem for f in (config_dir() / "test").glob("*.yaml"))
    names = sorted(n for n in every if n not in ("ways", "transfer"))  # of persons
    assert len(names) == 17
    small = ["encoder.width=16", "encoder.dropout=0"] if "diff" in words[0] else []
    cfg = compose(
        [*words, *small, f"task={task}", "data.size=tiny", "epochs=1", "figures=false"]
        + [f"test=[{','.join(names)}]"]
    )
    run(cfg)
    result = record.read_result(record.run_folder(cfg))
    assert set(result["eval"]) == set(names)
    for entry in result["eval"].values():
        assert 0 <= entry["scores"]["acc"] <= 1 and np.isfinite(entry["scores"]["loss"])


def test_training_accuracy_is_what_evaluation_measures(here):
    """Without dropout, augmentation and BatchNorm, a frozen network scores the same both ways."""
    cfg = compose(
        ["encoder=diffusionnet", "encoder.width=16", "encoder.blocks=1", "encoder.dropout=0"]
        + ["data.size=tiny", "optim.lr=0", "epochs=1", "figures=false", "test=train"]
    )
    run(cfg)
    result = record.read_result(record.run_folder(cfg))
    evaluated = result["eval"]["train"]["scores"]
    assert result["train"]["train/acc"] == pytest.approx(evaluated["acc"], abs=1e-6)
    assert result["train"]["train/class_acc"] == pytest.approx(evaluated["class_acc"], abs=1e-6)
    assert result["train"]["train/loss"] == pytest.approx(evaluated["loss"], rel=1e-4)


def test_fine_tuning_takes_what_fits(here, caplog):
    folder = go("epochs=1", "figures=false")
    cfg = composed("task=segmentation", "epochs=0", "figures=false", f"init={folder}/last.ckpt")
    run(cfg)
    tuned, source = weights(record.run_folder(cfg)), weights(folder)
    assert torch.equal(tuned["encoder.early.0.0.weight"], source["encoder.early.0.0.weight"])
    assert tuned["head.weight"].shape != source["head.weight"].shape
    torch.save({"elsewhere.weight": torch.zeros(3)}, "other.pth")
    with pytest.raises(UserError, match="has no tensor of this model"):
        go("init=other.pth", "epochs=1")


# ---- predict ----


def test_a_run_can_begin_where_another_one_ended(here, caplog):
    tokens = "features=none encoder=transformer encoder.count=8 encoder.k=8 encoder.width=16"
    first = f"task=masked {tokens} {' '.join(TINY)} epochs=1"
    words = [*tokens.split(), f"init='{first}'", "epochs=0"]
    with pytest.raises(UserError, match="not there yet: geodl task=masked .* seed=0"):
        go(*words)
    learned = weights(go(*first.split()))
    folder = go(*words)
    assert "init: " in caplog.text and "fresh: head.bias, head.weight" in caplog.text
    began = weights(folder)
    assert torch.equal(
        began["encoder.embed.first.0.weight"], learned["encoder.embed.first.0.weight"]
    )
    assert not list(here.glob("**/figures/*.part"))
    other = composed(*tokens.split(), f"init='{first} encoder.depth=2'", "epochs=0")
    assert record.run_hash(other) != record.run_hash(composed(*words))
    (image,) = here.glob("outputs/masked/**/gallery-clean.png")
    assert image.stat().st_size > 5000


@pytest.mark.parametrize("suffix", [".obj", ".off", ".npy"])
def test_classifying_a_file_of_ones_own(here, suffix, shapes, capsys):
    folder = go("epochs=1", "figures=false")
    pos, face = shapes[2].pos.numpy() * 7 + 3, shapes[2].face.numpy()
    file = here / f"mine{suffix}"
    np.save(file, pos) if suffix == ".npy" else write_off(file, pos, face)
    text = predict(compose(["mode=predict", f"ckpt={folder}/last.ckpt", f"input={file}"]))
    out = Path(f"outputs/predict/{folder.name}-last/mine{suffix}")
    (row,) = json.loads((out / "predictions.json").read_text())
    assert row["label"] in text and sum(row["probabilities"].values()) == pytest.approx(1, abs=1e-4)
    assert (out / "mine.png").stat().st_size > 1000
    head, line = (out / "predictions.csv").read_text().splitlines()
    assert head.startswith("file,label,probability,p(") and line.count(",") == head.count(",")


@pytest.mark.parametrize("encoder", ["pointnet", "diffusionnet"])
def test_segmenting_a_folder_of_ones_own(here, encoder, shapes):
    size = [] if encoder == "pointnet" else ["~encoder.points", "encoder.width=16"]
    words = [w for w in TINY if "points" not in w or not size]
    cfg = compose(
        [
            *words,
            "task=segmentation",
            f"encoder={encoder}",
            "epochs=1",
            "figures=false",
            *[s for s in size if "~" not in s],
        ]
    )
    run(cfg)
    folder = record.run_folder(cfg)
    (here / "in").mkdir()
    for i, shape in enumerate(shapes[:2]):
        pos, face = shape.pos.numpy(), shape.face.numpy()
        if i:  # repaired inside, answered for the file as it is
            pos, face = np.concatenate([pos, [[9, 9, 9]]]), np.concatenate([face, face[:3]])
        write_off(here / f"in/shape{i}.obj", pos, face)
    predict(compose(["mode=predict", f"ckpt={folder}/last.ckpt", f"input={here}/in"]))
    out = Path(f"outputs/predict/{folder.name}-last/in")
    import trimesh

    for i, shape in enumerate(shapes[:2]):
        labels = np.loadtxt(out / f"shape{i}.csv", dtype=int)
        assert len(labels) == len(shape.pos) + i and labels.max() < 8
        mesh = trimesh.load(out / f"shape{i}.ply", process=False)
        assert len(mesh.vertices) == len(labels)
        colors = {tuple(c) for c in mesh.visual.vertex_colors[:, :3].tolist()}
        assert len(colors) == len(set(labels))
    assert len(json.loads((out / "predictions.json").read_text())) == 2


def test_matching_two_files_of_ones_own(here, shapes):
    words = ["task=matching", "data.size=tiny", "features=hks", "features.k=32", "task.k=10"]
    words += ["encoder=diffusionnet", "encoder.width=8", "encoder.blocks=1", "encoder.k_eig=32"]
    cfg = compose([*words, "epochs=0", "figures=false", "test=train"])
    run(cfg)
    for name, shape in zip("ab", shapes, strict=False):
        write_off(here / f"{name}.off", shape.pos.numpy(), shape.face.numpy())
    asked = ["mode=predict", f"ckpt={record.run_folder(cfg)}/last.ckpt"]
    text = predict(compose([*asked, f"input=[{here}/a.off,{here}/b.off]"]))
    out = Path(f"outputs/predict/{record.run_folder(cfg).name}-last/a.off-b.off")
    found = np.loadtxt(out / "a-b.csv", dtype=int)
    assert len(found) == len(shapes[1].pos) and found.max() < len(shapes[0].pos)
    assert "a.off to b.off: a-b.csv" in text and (out / "a-b.png").stat().st_size > 5000
    import trimesh

    a, b = (
        trimesh.load(out / f"a-b-{n}.ply", process=False).visual.vertex_colors
        for n in ("source", "target")
    )
    assert np.array_equal(b, a[found]), "the source's colours, carried over"
    with pytest.raises(UserError, match=r"takes 2 shapes at once \(source, target\), but .* 1"):
        predict(compose([*asked, f"input={here}/a.off"]))


def test_two_files_are_matched_without_training_or_data(here, shapes, capsys):
    pos, face = shapes[0].pos.numpy(), shapes[0].face.numpy()
    order = np.random.default_rng(0).permutation(len(pos))
    write_off(here / "a.off", pos, face)
    write_off(here / "b.off", 30 * pos[order] + 4, np.argsort(order)[face])
    words = ["mode=predict", "task=matching", "encoder=identity", "features=wks", "task.k=20"]
    cfg = compose([*words, "features.k=64", "data=faust_r", "input=[a.off,b.off]"])
    run(cfg)
    (found,) = here.glob("outputs/predict/**/a-b.csv")
    assert (np.loadtxt(found, int) == order).mean() > 0.7
    with pytest.raises(UserError, match="this model has to learn first"):
        run(compose(["mode=predict", "input=a.off"]))


def test_loggers_and_early_stopping(here):
    folder = go(
        "epochs=3",
        "figures=false",
        "logger=tensorboard",
        "callbacks=early_stopping",
        "callbacks.early_stopping.patience=1",
        "optim.lr=0",
        "encoder.dropout=0",
    )
    result = json.loads((folder / "result.json").read_text())
    assert result["epochs"] == 2, "val/acc did not rise once"
    assert list(Path("outputs/tensorboard").rglob("events.*"))
    trainer, stopping = SimpleNamespace(should_stop=False), EarlyStopping(patience=1)
    stopping.load_state_dict({"best": 0.5, "waited": 1})
    stopping.on_train_start(trainer, None)
    assert trainer.should_stop, "what had stopped does not go on when it is resumed"
    go("epochs=1", "figures=false", "logger=wandb")
    assert list(Path("outputs/wandb").glob("offline-run-*")), "offline unless asked otherwise"


# ---- mistakes: one sentence, exit code 2, nothing half-written ----


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["encoder=pointnett"], "encoder=pointnett does not exist: did you mean pointnet?"),
        (["sede=1"], "sede is not an option: did you mean seed?"),
        (["encoder.dropuot=1"], "encoder.dropuot is not an option: did you mean encoder.dropout?"),
        (
            ["data=princeton", "data.size=tiny"],
            "data.size is not an option here, but one of data=creatures, heads",
        ),
        (["mode=trian"], "mode=trian is not known: did you mean train?"),
        (["seed=abc"], "seed=abc must be a whole number"),
        (["epochs=-1"], "epochs=-1 must be a whole number of 0 or more"),
        (["experiment=human_seg/nothing"], "experiment=human_seg/nothing does not exist"),
        (["=3"], "cannot be understood"),
        (["select=best"], "choose last, val or test"),
        (["select=val", "epochs=0"], "with epochs=0 there is none"),
        (["mode=eval"], "mode=eval needs ckpt="),
        (["mode=predict", "ckpt=x.ckpt"], "needs ckpt=<a .ckpt file> and input="),
        (
            ["mode=eval", "ckpt=x.ckpt", "encoder=diffusionnet"],
            "encoder=diffusionnet cannot be given",
        ),
        (["mode=eval", "ckpt=x.ckpt", "encoder.points=3"], "encoder.points=3 cannot be given"),
        (["weights=nowhere.pth"], "nowhere.pth does not exist"),
    ],
)
def test_mistakes_in_words(words, message, tmp_path):
    import re

    done = geodl(*words, cwd=tmp_path, code=2)
    assert re.search(re.escape(message).replace(r"\|", "|"), done.stderr), done.stderr
    assert done.stderr.count("\n") == 1 and "Traceback" not in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_an_option_that_an_experiment_chose_is_named_as_its(tmp_path):
    words = ["experiment=creatures/diffusionnet", "encoder=pointnet"]
    said = geodl(*words, cwd=tmp_path, code=2).stderr
    assert "encoder.width: PointNet has no such option" in said
    assert "(experiment=creatures/diffusionnet sets encoder.width; ~encoder.width leaves" in said
    said = geodl(*words, "~encoder.width", "+encoder.x=1", cwd=tmp_path, code=2).stderr
    assert "encoder.x: PointNet has no such option" in said and "experiment=" not in said


def test_a_traceback_on_request(tmp_path):
    assert "Traceback" in geodl("seed=abc", "debug=trace", cwd=tmp_path, code=2).stderr


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["task=segmentation", "encoder=flat_mlp"], "FlatMLP gives one answer per whole"),
        (["data=human_seg", "paths.archives=null"], "data set human_seg is not in"),
        (["select=val", "data=folder", "data.folder=mine"], "has no val split|select=val"),
        (["features=hks", "features.k=9999"], "9999 eigenpairs"),
        (["encoder=diffusionnet", "augment=jitter"], "augment.copies=n"),
        (["trainer=gpu"], "there is none here"),
        (["~encoder.points"], "points is missing: give points=1024, or points=null"),
        (["+optim.betas=[0.9]"], "optim.betas="),
        (["+trainer.max_step=3"], "trainer.max_step is no option.*did you mean max_steps"),
        (["+trainer.max_time=soon"], "trainer= cannot be built"),
    ],
)
def test_mistakes_in_combination(words, message, here):
    import re

    if torch.cuda.is_available() and "trainer=gpu" in words:
        pytest.skip("there is a GPU")
    for i in range(4):
        write_off(here / f"mine/{'ab'[i % 2]}/{i}.off", TETRA, FACES)
    base = [w for w in TINY if w.split("=")[0] not in ("data.size", "encoder.points")]
    size = ["data.size=tiny"] if not any(w.startswith("data=") for w in words) else []
    cfg = compose([*base, *size, *words, "epochs=1", f"paths.data={here}/data"])
    with pytest.raises(UserError) as error:
        run(cfg)
    assert re.search(message, str(error.value)), error.value
    assert not list(here.rglob("*.part")) and not list(here.rglob("*.ckpt"))


def test_an_option_may_be_a_pair(here):
    assert (go("epochs=1", "figures=false", "+optim.betas=[0.8,0.9]") / "last.ckpt").is_file()


def test_what_fails_half_way_leaves_nothing(tmp_path):
    place = tmp_path / "answers"
    with pytest.raises(ValueError, match="half"), record.whole(place, "rows.json") as part:
        (part / "rows.json").write_text("[]")
        raise ValueError("half-way")
    assert list(tmp_path.iterdir()) == []
    (place / "old").mkdir(parents=True)
    with record.whole(place, "rows.json") as part:
        (part / "rows.json").write_text("[]")
        (part / "views").mkdir()
    assert {f.name for f in place.iterdir()} == {"old", "rows.json", "views"}
    assert list(tmp_path.iterdir()) == [place]


def test_slurm_is_asked_for_what_the_jobs_take():
    pytest.importorskip("hydra_plugins.hydra_submitit_launcher")
    with composer():
        for words, asked in (([], (1, 0)), (["trainer=gpu", "workers=4"], (5, 1))):
            cfg = sweep._master(["sweep=slurm", *words])
            sweep._ask(cfg)
            launcher = cfg.hydra.launcher
            assert (launcher.cpus_per_task, launcher.gpus_per_node) == asked


def test_weights_of_another_size_are_refused(here):
    words = ("encoder=flat_mlp", "epochs=1", "figures=false")
    folder = go(*words)
    with pytest.raises(UserError, match=r"shape \(512, 192\), expected \(512, 384\)"):
        go(*words, "encoder.points=128", f"weights={folder}/last.ckpt")


def test_checkpoints_that_cannot_be_used(here):
    folder = go("epochs=1", "figures=false")
    content = torch.load(folder / "last.ckpt", weights_only=True)
    content["geodl"]["format"] = 99
    torch.save(content, "newer.ckpt")
    torch.save({"state_dict": {}}, "other.ckpt")
    Path("cut.ckpt").write_bytes((folder / "last.ckpt").read_bytes()[:2000])
    for name, message in (
        ("newer.ckpt", r"newer.ckpt has format 99, .*upgrade"),
        ("other.ckpt", "no checkpoint of geodl"),
        ("cut.ckpt", "damaged, cut off"),
        ("none.ckpt", "does not exist"),
    ):
        with pytest.raises(UserError, match=message):
            evaluate(compose([f"ckpt={name}", "mode=eval"]))


def test_a_place_that_cannot_be_written_to(here):
    Path("file").write_text("in the way")
    with pytest.raises(UserError, match=r"cannot be written to .*paths.outputs"):
        go("epochs=1", "paths.outputs=file")


def test_nan_stops_with_names_and_keeps_the_epoch_before(here, monkeypatch):
    from geodl.tasks.classification import Classification

    original = Classification.losses

    def losses(self, prediction, batch):
        found = original(self, prediction, batch)
        if self.training and self.current_epoch == 1:
            found["cross_entropy"] = found["cross_entropy"] * float("nan")
        return found

    monkeypatch.setattr(Classification, "losses", losses)
    with pytest.raises(UserError, match=r"loss is nan at step 3 \(epoch 1\) for \w+-00\d, "):
        go("epochs=3", "figures=false")
    folder = record.run_folder(composed("epochs=3", "figures=false"))
    assert torch.load(folder / "last.ckpt", weights_only=True)["epoch"] == 0
    assert record.read_result(folder)["status"] == "diverged"


def test_two_processes_do_not_train_one_run(here, monkeypatch):
    from filelock import FileLock

    folder = record.run_folder(composed("epochs=1"))
    folder.mkdir(parents=True)
    (folder / ".last.ckpt.1.part").touch()
    lock = FileLock(folder / ".lock", is_singleton=False)
    lock.acquire()

    def info(text, *values):
        if "trained by another process: waiting" in text:
            assert not (folder / "result.json").exists()
            lock.release()

    monkeypatch.setattr(train_module.log, "info", info)
    go("epochs=1")
    assert record.read_result(folder)["status"] == "done"
    assert not list(folder.glob(".*.part")), "what a killed process left is cleared away"


def test_a_failing_evaluation_keeps_its_traceback_and_the_training(here, monkeypatch):
    def fail(*args):
        raise RuntimeError("no evaluation today")

    with monkeypatch.context() as patch:
        patch.setattr(evaluate_module, "_table", fail)
        with pytest.raises(RuntimeError, match="today"):
            go("epochs=1")
    folder = record.run_folder(composed("epochs=1"))
    result = record.read_result(folder)
    assert result["status"] == "done" and "no evaluation today" in result["traceback"]
    before = weights(folder)
    go("epochs=1", "test=[clean,rotated]")
    result = record.read_result(folder)
    assert set(result["eval"]) == {"clean", "rotated"} and "traceback" not in result
    assert same(weights(folder), before)


def test_test_sets_that_change_meshes_refuse_clouds_before_training(here):
    for name in ("cat", "dog"):
        (here / "shapes" / name).mkdir(parents=True)
        for i in range(4):
            points = np.random.default_rng(i).standard_normal((80, 3))
            np.save(here / "shapes" / name / f"{i}.npy", points)
    words = ["data=folder", "data.folder=shapes", "encoder=pointnet", "encoder.points=64"]
    with pytest.raises(UserError, match=r"Remesh changes a mesh, but .* is a point cloud"):
        run(compose([*words, "epochs=1", "test=[clean,remeshed]"]))
    assert not list(here.rglob("last.ckpt"))


@pytest.mark.parametrize(
    ("pos", "face", "message"),
    [
        (TETRA * [np.nan, 1, 1], FACES, "NaN or infinite vertices"),
        (TETRA, np.array([[0, 1, 9]]), "out of range|cannot be read"),
        (TETRA, FACES[:0], "zero faces"),
    ],
)
def test_predict_names_what_is_wrong_with_a_mesh(here, pos, face, message):
    folder = go("epochs=1", "figures=false")
    write_off(here / "bad.off", pos, face)
    with pytest.raises(UserError, match=message) as error:
        predict(compose(["mode=predict", f"ckpt={folder}/last.ckpt", "input=bad.off"]))
    assert "bad.off" in str(error.value)
    assert not list(Path("outputs").rglob("predict/bad/*"))


def test_prepare_reports_and_cleans(here):
    text = prepare(composed("mode=prepare", "features=hks", "features.k=32", "paths.cache=c"))
    assert "32 shapes: 0 cache hits" in text.replace("64 computed", "64 computed")
    assert "spectrum: 32 files" in text
    again = prepare(composed("mode=prepare", "features=hks", "features.k=32", "paths.cache=c"))
    assert " 0 computed" in again
    assert "freed" in prepare(composed("mode=prepare", "clean=all", "paths.cache=c"))
    assert not list(Path("c").rglob("*.safetensors"))
    with pytest.raises(UserError, match="clean=spectra is not in the cache"):
        prepare(composed("mode=prepare", "clean=spectra", "paths.cache=c"))


def test_help_and_version_train_nothing(tmp_path):
    for words, found in (
        ([], "geodl mode=list shows the choices"),
        (["--help"], "batch_size=16 "),
        (["--version"], "geodl 0."),
    ):
        assert found in geodl(*words, cwd=tmp_path).stdout
    assert not list(tmp_path.iterdir())


def test_progress_without_a_terminal_is_aligned(tmp_path):
    done = geodl(*TINY, "epochs=11", "figures=false", cwd=tmp_path)
    lines = [line for line in done.stderr.splitlines() if line.startswith("epoch ")]
    assert len(lines) == 11 and len(set(map(len, lines))) == 1
    assert re.match(r"epoch  1/11  train/loss .* train/acc .* val/acc .* s .*0:\d\d left", lines[0])
    assert "0:00 left" in lines[-1]


def test_short_trainings_are_evaluated_with_statistics_of_their_own(here):
    """BatchNorm's initial statistics made four epochs look like chance."""
    folder = go("epochs=6", "figures=false", "batch_size=4", "test=[clean,train]")
    scores = {t: e["scores"]["acc"] for t, e in record.read_result(folder)["eval"].items()}
    assert scores["train"] > 0.6 and scores["clean"] > 0.3, scores


def test_the_number_of_threads_is_said_and_makes_another_run(here):
    one, two = record.run_hash(composed()), record.run_hash(composed("threads=2"))
    assert one == record.run_hash(composed("threads=1")) != two
    folder = go("epochs=1", "figures=false", "threads=2")
    assert record.read_result(folder)["threads"] == 2
    torch.set_num_threads(1)
