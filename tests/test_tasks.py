import pytest
import torch
from conftest import labelled_on
from test_encoders import ENCODERS

from geodl.carry import sampled
from geodl.encoders.base import Encoding
from geodl.errors import UserError
from geodl.metrics import BodyAccuracy, Confusion, PartIoU
from geodl.runs.build import build_task
from geodl.runs.compose import compose
from geodl.shape import ShapeBatch
from geodl.spec import DataSpec, Points
from geodl.tasks.base import Prediction
from geodl.tasks.classification import balanced, mean_recall

SPEC = DataSpec(
    classes=tuple("abcdefgh"),
    parts=("body", "head", "leg", "arm", "wing", "tail", "fin", "feeler"),
    label_on="vertex",
)


def task(*overrides, spec=SPEC):
    return build_task(compose(list(overrides)), spec)


def element_encoders():
    """(name, options of a small one, points) for every encoder that labels elements of any mesh."""
    found = []
    for name, (cls, options) in ENCODERS.items():
        if "vertex" not in cls.outputs or cls.registered or not cls.learns:
            continue
        words = [f"encoder={name}", *(f"encoder.{k}={options[k]}" for k in cls.small)]
        words = [w.replace("=None", "=null") for w in words if not w.startswith("encoder.points=")]
        if "points" not in options:
            found.append((words, None))
        else:
            found += [([*words, f"encoder.points={n or 'null'}"], n) for n in (None, 100)]
    return found


@pytest.mark.parametrize(("words", "points"), element_encoders())
@pytest.mark.parametrize("on", ["vertex", "face", "edge"])
def test_every_encoder_learns_every_kind_of_label(words, points, on, shapes):
    spec = DataSpec(parts=SPEC.parts, label_on=on)
    model = task("task=segmentation", *words, spec=spec)
    picked = [labelled_on(s, on) for s in shapes[:3]]
    if points:
        assert model.needs.find(Points)
        picked = [sampled(s, points, on, None) for s in picked]
    batch = ShapeBatch.pack(picked)
    prediction = model.predict(batch)
    assert prediction.output.shape == (len(batch.label), 8)
    sum(model.losses(prediction, batch).values()).backward()
    result = model.evaluate([batch])
    assert 0 <= result.scores["acc"] <= 1 and result.shapes == 3
    assert len(result.details["per_class"]) == 8


def test_how_many_encoders_label_elements():
    assert len(element_encoders()) >= 7


def test_impossible_pairs_are_refused_in_one_sentence():
    for words, message in (
        (("task=segmentation", "encoder=flat_mlp"), "FlatMLP gives one answer per whole"),
        (("task=classification",), "needs one class per shape"),
    ):
        spec = SPEC if "segmentation" in words[0] else DataSpec(parts=("a",), label_on="face")
        with pytest.raises(UserError, match=message) as error:
            task(*words, spec=spec)
        assert str(error.value).count("\n") == 0
    with pytest.raises(UserError, match="needs labels on vertices"):
        task("task=segmentation", spec=DataSpec(classes=("a", "b")))


def test_part_iou_by_hand():
    metric = PartIoU(((0, 1), (2, 3, 4)))
    logits = torch.tensor([[0.1, 0.2, 9, 0, 0], [0.3, 0.2, 9, 0, 0], [0.0, 1, 9, 0, 0]])
    metric.update(logits, torch.tensor([1, 1, 1]), 0)  # predicted 1 0 1 in spite of part 2's logits
    metric.update(torch.eye(5)[[2, 2]], torch.tensor([2, 2]), 1)  # parts 3, 4 absent from both: 1
    scores = metric.compute()
    shape = (2 / 3 + 0.0) / 2
    assert scores["instance_miou"] == pytest.approx((shape + 1) / 2)
    assert scores["class_miou"] == pytest.approx((shape + 1) / 2)


def test_body_accuracies_by_hand():
    metric = BodyAccuracy()
    logits = torch.tensor([[4.0, 0.0], [0.0, 2.0]])  # faces: part 0 (surely), part 1
    edge_face = torch.tensor([[0, 0], [0, 1], [1, 1]])
    edge_label = torch.tensor([0, 1, 1])
    soft = torch.tensor([[1.0, 0], [1, 1], [0, 1]])
    area = torch.tensor([1.0, 2.0, 1.0])
    metric.update(logits, torch.tensor([0, 0]), soft, area, edge_face, edge_label)
    scores = {k: float(v) for k, v in metric.compute().items()}
    # The middle edge: mean of (.98, .02) and (.12, .88) is part 0: wrong by its label, allowed.
    assert scores == pytest.approx({"face_acc": 0.5, "hard_edge_acc": 2 / 3, "soft_edge_acc": 1.0})
    metric.reset()
    metric.update(torch.tensor([[0.0, 1], [1, 0], [0, 1]]), edge_label, soft, area)  # per edge
    scores = {k: float(v) for k, v in metric.compute().items()}
    assert scores == pytest.approx({"hard_edge_acc": 1 / 3, "soft_edge_acc": 0.75})


def test_balanced_weights_and_mean_recall():
    weight = balanced([torch.tensor([0, 0, 0, 1])], 3)
    torch.testing.assert_close(weight, torch.tensor([4 / 6, 2.0, 0.0]))
    confusion = torch.tensor([[3, 1, 0], [0, 2, 0], [0, 0, 0]])
    assert mean_recall(confusion) == pytest.approx((0.75 + 1) / 2)


def test_a_part_that_occurs_once_counts_and_one_that_does_not_does_not():
    model = task("task=segmentation", "encoder=point_mlp")
    meters = model.make_meters()
    for name in ("confusion", "acc"):
        meters[name].update(torch.tensor([0, 0, 0, 0]), torch.tensor([0, 0, 0, 1]))
    assert model.scores(meters)["miou"] == pytest.approx((3 / 4 + 0) / 2)


def test_class_weights_are_fitted_and_stored(shapes):
    model = task("task=segmentation", "task.class_weights=balanced", "encoder=point_mlp")
    batch = ShapeBatch.pack(shapes)
    model.fit([batch])
    assert "weight" in model.state_dict() and model.weight.max() > 1
    assert "weight" not in task("task=segmentation", "encoder=point_mlp").state_dict()


@pytest.mark.parametrize("votes", [2, 4])
def test_voting_averages_over_rotations(shapes, votes):
    model = task(f"task.votes={votes}", "encoder.points=null").eval()
    batch = ShapeBatch.pack(shapes[:2])
    voted = model.predict_eval(batch).output.exp()
    torch.testing.assert_close(voted.sum(1), torch.ones(2))
    from geodl.augment import axis_rotation

    single = [
        model.predict(batch.rotated(axis_rotation("y", 2 * torch.pi * i / votes))).output.softmax(1)
        for i in range(votes)
    ]
    torch.testing.assert_close(voted, torch.stack(single).mean(0), atol=1e-6, rtol=1e-6)
    turned = batch.rotated(axis_rotation("y", 2 * torch.pi / votes))
    torch.testing.assert_close(model.predict_eval(turned).output.exp(), voted, atol=1e-4, rtol=1e-3)
    assert not torch.allclose(model.predict(turned).output, model.predict(batch).output, atol=1e-4)


def test_label_smoothing_and_encoder_losses_enter_the_loss(shapes):
    batch = ShapeBatch.pack(shapes)
    model = task("encoder=pointnet_tnets", "encoder.points=null", "task.label_smoothing=0.5")
    losses = model.losses(model.predict(batch), batch)
    assert set(losses) == {"cross_entropy", "orthogonality"}
    logits = torch.eye(8)[batch.category] * 50
    assert model.losses(Prediction(logits), batch)["cross_entropy"] > 5


def test_an_encoding_that_is_missing_is_an_error():
    with pytest.raises(ValueError, match="nothing at 'face'"):
        Encoding().at("face")


def test_weights_that_do_not_fit_are_refused_key_by_key(tmp_path):
    model = task("encoder=flat_mlp", "encoder.points=64")
    other = task("encoder=flat_mlp", "encoder.points=32").state_dict()
    with pytest.raises(UserError, match=r"encoder.layers.0.weight has shape \(512, 96\)"):
        model.load_strict(other, tmp_path / "w.pth")
    state = model.state_dict()
    state.pop("head.bias")
    with pytest.raises(UserError, match="it lacks head.bias"):
        model.load_strict(state, tmp_path / "w.pth")
    model.load_strict({**state, "head.bias": torch.zeros(8)}, tmp_path / "w.pth")


def test_confusion_counts_as_torchmetrics_without_its_table():
    import resource

    from torchmetrics.classification import MulticlassConfusionMatrix

    target, predicted = torch.randint(0, 7, (2, 500))
    ours, theirs = Confusion(7), MulticlassConfusionMatrix(7)
    for metric in (ours, theirs):
        metric.update(predicted, target)
        metric.update(target, target)
    assert torch.equal(ours.compute(), theirs.compute())

    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    was = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True)
    try:
        many = torch.randint(0, 260, (15_000,))
        large = Confusion(260)
        large.update(many, many)
    finally:
        torch.use_deterministic_algorithms(was)
    assert large.compute().diagonal().sum() == 15_000
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert grown < 1e6, "less than a gigabyte"


SMALL_TOKENS = (
    *("features=none", "encoder=transformer", "encoder.points=null", "encoder.count=10"),
    *("encoder.k=8", "encoder.width=16", "encoder.depth=2", "encoder.heads=2"),
)


def test_masked_patches_are_drawn_from_the_visible_ones_alone(shapes, monkeypatch):
    model = task("task=masked", "task.depth=1", *SMALL_TOKENS).eval()
    batch = ShapeBatch.pack(shapes[:3])
    found = model.rebuilt(batch)
    assert found["drawn"].shape == found["true"].shape == (3, 6, 8, 3)
    mask = model._mask(batch, 10)
    assert mask.sum(1).tolist() == [6, 6, 6]
    alone = model._mask(ShapeBatch.pack(shapes[1:2]), 10)  # a mask belongs to a shape's name
    assert torch.equal(mask[1], alone[0]) and not torch.equal(mask[0], mask[1])
    whole = model.encoder.patches

    def other(x, batch):
        rows, centres = whole(x, batch)
        rows[mask.flatten()] = 7.0
        return rows, centres

    monkeypatch.setattr(model.encoder, "patches", other)
    torch.testing.assert_close(model.rebuilt(batch)["drawn"], found["drawn"])
    monkeypatch.undo()
    result = model.evaluate([batch])
    gap = torch.cdist(found["drawn"], found["true"]).square()
    wanted = 1000 * (gap.amin(3).mean() + gap.amin(2).mean())
    assert result.scores["chamfer"] == pytest.approx(float(wanted.detach()), rel=1e-4)
    model.train()
    assert not torch.equal(model._mask(batch, 10), model._mask(batch, 10))
    sum(model.losses(model.predict(batch), batch).values()).backward()
    unused = [n for n, p in model.named_parameters() if p.requires_grad and p.grad is None]
    assert not unused


def test_masking_needs_patches():
    with pytest.raises(UserError, match="only encoder=transformer has"):
        task("task=masked", "encoder=pointnet")
    with pytest.raises(UserError, match="leaves none"):
        task("task=masked", "task.ratio=0.05", *SMALL_TOKENS)


def test_a_probe_fits_its_classifier_and_nothing_else(shapes):
    from geodl.tasks.probe import logistic

    torch.manual_seed(0)
    x, y = torch.randn(60, 5), torch.randint(0, 3, (60,))
    weight, bias = (t.requires_grad_() for t in logistic(x, y, 3, 0.1))
    loss = torch.nn.functional.cross_entropy(x @ weight.T + bias, y) + 0.05 * weight.square().sum()
    assert all(g.abs().max() < 1e-4 for g in torch.autograd.grad(loss, [weight, bias]))

    spec = DataSpec(classes=tuple("abcd"))
    labelled = [s.replace(category=torch.tensor(i % 4)) for i, s in enumerate(shapes)]
    batch = ShapeBatch.pack(labelled)
    for words, rows in (((), 4), (("task.shots=1", "task.draws=3"), 12)):
        model = task("task=probe", *words, *SMALL_TOKENS, spec=spec)
        before = {k: v.clone() for k, v in model.encoder.state_dict().items()}
        model.fit([batch])
        assert all(torch.equal(v, before[k]) for k, v in model.encoder.state_dict().items())
        assert model.head.out_features == rows
        assert not any(p.requires_grad for p in model.parameters())
        scores = model.evaluate([batch]).scores
        assert (scores["acc"] == 1.0) == (rows == 4)  # eight shapes, seen
        assert ("acc_std" in scores) == (rows == 12)
