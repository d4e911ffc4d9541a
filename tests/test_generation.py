import json
import math

import numpy as np
import pytest
import torch
import trimesh
from conftest import geodl
from test_tasks import task

from geodl.data.creatures import SPECIES, described
from geodl.errors import UserError
from geodl.metrics import Pointing, cloud_distances, compared
from geodl.ops.pointing import areas, medoid, nearest_to_center
from geodl.spec import DataSpec
from geodl.tasks.generation import AVERAGED, CodeFlow

WORDS = DataSpec(classes=("ant", "bird"), words=(("6 legs",), ("2 legs", "2 wings")))


def model(*words, spec=WORDS):
    return task(
        *("task=generation", "encoder=pointnet", "decoder=occupancy", "task.latent=4"),
        *("task.field=density", "encoder.points=32", "task.points=16", "task.width=16", *words),
        spec=spec,
    )


def filled(found, shapes=40):
    """With codes of two classes, at 3 and -3."""
    torch.manual_seed(0)
    found.bank_class = torch.arange(shapes) % 2
    found.bank = 3.0 - 6.0 * found.bank_class[:, None] + 0.1 * torch.randn(shapes, 4)
    found.bank_cloud = torch.randn(shapes, 16, 3).half()
    return found


# ---- metrics ----


def test_distances_between_clouds_are_chamfer():
    torch.manual_seed(0)
    a, b = torch.randn(3, 20, 3), torch.randn(4, 20, 3)
    gap = (a[:, None, :, None] - b[None, :, None]).square().sum(-1)
    true = gap.amin(3).mean(2) + gap.amin(2).mean(2)
    assert torch.allclose(cloud_distances(a, b), true, atol=1e-5)


def spread(n, seed):
    """Clouds in n places of a circle, another order every time."""
    rng = np.random.default_rng(seed)
    angle = torch.from_numpy(rng.permutation(n) * 2 * math.pi / n).float()
    place = torch.stack([angle.cos(), angle.sin(), 0 * angle], 1)[:, None]
    return place + 0.02 * torch.from_numpy(rng.standard_normal((n, 10, 3))).float()


def test_perfect_samples_cannot_be_told_and_cover_everything():
    found = compared(spread(20, 0), spread(20, 1), torch.zeros(20, dtype=torch.long))
    assert found["cov"] == 1 and found["nna"] < 0.3 and found["agreement"] == 1


def test_samples_of_one_place_are_told_and_cover_little():
    one = spread(20, 0)[:1].expand(20, -1, -1) + 0.001 * torch.randn(20, 10, 3)
    found = compared(one, spread(20, 1), torch.zeros(20, dtype=torch.long))
    assert found["cov"] == 1 / 20 and found["nna"] > 0.9


def test_samples_elsewhere_are_of_no_use():
    found = compared(spread(20, 0) + 5, spread(20, 1), torch.zeros(20, dtype=torch.long))
    near = compared(spread(20, 0), spread(20, 1), torch.zeros(20, dtype=torch.long))
    assert found["nna"] == 1 and found["mmd"] > 100 * near["mmd"]


def test_samples_of_the_wrong_class_are_told():
    true = torch.cat([spread(10, 0), spread(10, 1) + 5])
    classes = torch.arange(20) // 10
    found = compared(true.roll(10, 0) + 0.001, true, classes)
    assert found["agreement"] == 0 and found["nna"] == 1


# ---- words ----


def test_animals_are_described_by_their_limbs():
    assert described(SPECIES["ant"]) == ("6 legs", "2 feelers")
    assert described(SPECIES["biped"]) == ("2 arms", "2 legs", "upright")
    assert described(SPECIES["snake"]) == ()


def test_what_is_said_is_the_mean_of_the_words():
    found = model()
    assert found.vocabulary == ["2 legs", "2 wings", "6 legs", "ant", "bird"]
    assert found.spoken(["ant", "6 legs"]).tolist() == [[0, 0, 0.5, 0.5, 0]]
    with pytest.raises(UserError, match="knows 2 legs, 2 wings, 6 legs, ant, bird"):
        found.spoken(["ant", "wheels"])


def test_training_says_some_words_or_nothing():
    found = model()
    rows = found._some_words(torch.ones(400, dtype=torch.long))
    assert (rows[:, [2, 3]] == 0).all()  # nothing of ants
    silent = (rows.sum(1) == 0).float().mean()
    assert 0.04 < silent < 0.18
    assert len(torch.unique(rows, dim=0)) >= 6


# ---- the flow ----


def test_a_trained_flow_draws_what_words_ask_for():
    found = filled(model())
    optimizer = torch.optim.Adam(found.flow.parameters(), 3e-3)
    batch = type("Batch", (list,), {"names": []})([0] * 16)
    for _ in range(400):
        optimizer.zero_grad()
        found.losses(found.predict(batch), batch)["flow"].backward()
        optimizer.step()
        found.on_train_batch_end(None, None, 0)
    found.eval()
    for words, sign in ((["ant"], 1), (["bird"], -1), (["2 wings"], -1), (["6 legs"], 1)):
        drawn = found.sampled(found.spoken(words).expand(50, -1))
        assert (sign * drawn.mean(1) > 2).float().mean() > 0.9, words
    other = filled(model("task.ask=another")).eval()
    other.average.load_state_dict(found.average.state_dict())
    codes = other.codes_of(torch.zeros(50, dtype=torch.long), 0)
    assert (codes.mean(1) < -2).float().mean() > 0.9


def test_the_average_of_weights_warms_up():
    found = model()
    with torch.no_grad():
        for p in found.flow.parameters():
            p.fill_(1.0)
    for _ in range(200):
        found.on_train_batch_end(None, None, 0)
    assert AVERAGED**200 > 0.8  # what the first weights would be of it
    assert all((p - 1).abs().max() < 0.01 for p in found.average.parameters())


def test_only_the_flow_learns():
    found = model()
    learning = {n.split(".")[0] for n, p in found.named_parameters() if p.requires_grad}
    assert learning == {"flow"}


@pytest.mark.parametrize("draw", ["gaussian", "decoded"])
def test_codes_without_a_flow_are_of_their_class(draw):
    found = filled(model(f"task.draw={draw}"))
    classes = torch.tensor([0] * 30 + [1] * 10)
    codes = found.codes_of(classes, 0)
    assert (codes[:30].mean(1) > 2).all() and (codes[30:].mean(1) < -2).all()
    inside = (codes[:, None] == found.bank).all(2).any(1)
    assert inside.all() if draw == "decoded" else not inside.any()


def test_training_shapes_as_samples_are_themselves():
    found = filled(model("task.draw=training"))
    clouds, lost = found.clouds_of(torch.tensor([0, 0, 1]), 0)
    assert lost == 0 and (clouds[2] == found.bank_cloud.float()).all(2).all(1).any()


def test_a_flow_hears_time_and_words():
    torch.manual_seed(0)
    flow = CodeFlow(4, 3, 16, 2)
    for p in flow.parameters():
        p.data += 0.1 * torch.randn_like(p)
    z, t, said = torch.randn(2, 4), torch.rand(2), torch.eye(2, 3)
    answer = flow(z, t, said)
    assert not torch.allclose(answer, flow(z, 1 - t, said))
    assert not torch.allclose(answer, flow(z, t, said.roll(1, 1)))
    assert torch.allclose(answer[1:], flow(z[1:], t[1:], said[1:]), atol=1e-6)


def test_generation_is_trained_measured_and_sampled(tmp_path):
    field = ["encoder=pointnet", "decoder=occupancy", "task.field=density", "encoder.points=64"]
    first = [*field, "task=implicit", "data.size=tiny", "epochs=1", "batch_size=4", "test=clean"]
    geodl(*first, cwd=tmp_path)
    own = [*field, "task=generation", "data.size=tiny", "epochs=2", "batch_size=4"]
    own += ["task.points=32", "task.rounds=1", "task.euler=5", "task.width=16"]
    said = geodl(*own, cwd=tmp_path, code=2)
    assert "init=" in said.stderr
    start = f"init={' '.join(first[:-1])}"
    folder = tmp_path / geodl(*own, start, cwd=tmp_path).stdout.splitlines()[-1]
    scores = json.loads((folder / "result.json").read_text())["eval"]["clean"]["scores"]
    assert {"nna", "cov", "mmd", "agreement"} <= scores.keys()
    assert (folder / "figures" / "gallery-clean.png").is_file()
    ask = ["mode=sample", f"ckpt={folder}/last.ckpt", "output=o", "count=3"]
    geodl(*ask, "words=[4 legs,1 tail]", cwd=tmp_path)
    rows = json.loads((tmp_path / "o" / "samples.json").read_text())
    assert [row["words"] for row in rows] == ["4 legs, 1 tail"] * 3
    assert len(trimesh.load(tmp_path / "o" / rows[0]["file"], process=False).vertices) == 2048
    said = geodl(*ask[:2], "words=wheels", cwd=tmp_path, code=2)
    assert "this model knows" in said.stderr
    again = geodl(*ask[:2], "output=o2", "count=3", "seed=1", cwd=tmp_path)
    assert "3 shapes" in again.stdout
    scenes = np.load(folder / "eval" / "clean-shapes.npz").files
    assert not any("worst" in name for name in scenes)
    plain = geodl(*own, "task.draw=gaussian", "epochs=0", start, cwd=tmp_path).stdout
    said = geodl("mode=sample", f"ckpt={plain.splitlines()[-1]}/last.ckpt", cwd=tmp_path, code=2)
    assert "task.draw=gaussian" in said.stderr
    said = geodl("mode=predict", ask[1], "input=o/000.ply", cwd=tmp_path, code=2)
    assert "mode=sample" in said.stderr


# ---- pointing ----


def test_the_medoid_is_in_the_larger_piece_and_the_center_is_between():
    line = np.concatenate([np.linspace(0, 1, 21), np.linspace(5, 6, 11)])
    pos = np.stack([line, 0 * line, 0 * line], 1)
    every = np.concatenate([pos, [[2.3, 0, 0]]])  # between both
    chosen = np.arange(33) < 32
    area = np.ones(33)
    assert medoid(every, area, chosen) == 10
    assert nearest_to_center(every, area, chosen) == 32
    area[21:] = 4  # the shorter piece is larger
    assert medoid(every, area, chosen) == 26
    assert medoid(every, area, np.zeros(33, bool)) is None


def test_areas_of_elements_add_up(shapes):
    whole = areas(shapes[0], "face").sum()
    assert abs(areas(shapes[0], "vertex").sum() / whole - 1) < 1e-6
    assert (areas(shapes[0], "edge") == 1).all()


def test_pointing_counts_parts_of_shapes():
    pos = np.eye(4, 3) * 10
    meter = Pointing()
    meter.update(pos, np.ones(4), np.array([0, 0, 1, 1]), np.array([0, 0, 1, 2]))
    found = {k: float(v) for k, v in meter.compute().items()}
    assert found["pointing"] == pytest.approx(2 / 3)  # part 2 was not found


def test_a_segmentation_points_at_its_parts_alone():
    found = task("task=segmentation")
    found.point_at(["leg", "head"])
    assert found.words == ("leg", "head")
    with pytest.raises(UserError, match="knows body, head"):
        found.point_at(["nose"])
    with pytest.raises(UserError, match="needs a model of task=segmentation"):
        task("task=classification").point_at(["leg"])
