"""Metrics that torchmetrics does not have, first the conventions of two shape benchmarks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.spatial import KDTree
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.classification import MulticlassConfusionMatrix
from torchmetrics.utilities import dim_zero_cat

from geodl.ops.align import rigid
from geodl.ops.cache import Cache, digest
from geodl.ops.geodesic import Method, area, distances
from geodl.ops.pointing import medoid, nearest_to_center
from geodl.shape import Shape


class Confusion(MulticlassConfusionMatrix):
    """torchmetrics', for labels of many points. Where torch is to be deterministic, its own count
    makes a table of points x classes^2: 8 GB for a molecule of 15,000 vertices with 260 labels."""

    def update(self, preds: Tensor, target: Tensor) -> None:
        """Labels (n) each."""
        n = self.num_classes
        counts = torch.bincount(target * n + preds, minlength=n * n)
        self.confmat += counts.view(n, n)


class PartIoU(Metric):
    """ShapeNetPart's mean IoU.

    The arg-max is restricted to the parts of the shape's true class; a part that is absent from
    both prediction and truth counts as IoU 1; a shape's IoU is the mean over the parts of its
    class. ``instance``: mean over shapes; ``class``: mean over classes of their shapes' means.
    """

    full_state_update = False

    def __init__(self, category_parts: tuple[tuple[int, ...], ...]) -> None:
        super().__init__()
        self.category_parts = category_parts
        n = len(category_parts)
        self.add_state("total", torch.zeros(n), dist_reduce_fx="sum")
        self.add_state("count", torch.zeros(n), dist_reduce_fx="sum")
        self.total: Tensor
        self.count: Tensor

    def restrict(self, logits: Tensor, category: int) -> Tensor:
        """Predicted parts (m) among those of the class."""
        parts = torch.tensor(self.category_parts[category], device=logits.device)
        return parts[logits[:, parts].argmax(1)]

    def update(self, logits: Tensor, label: Tensor, category: int) -> None:
        """One shape: logits (m parts), label (m), its class."""
        predicted = self.restrict(logits, category)
        ious = []
        for part in self.category_parts[category]:
            a, b = predicted == part, label == part
            union = (a | b).sum()
            ious.append((a & b).sum() / union if union > 0 else torch.ones_like(self.total[0]))
        self.total[category] += torch.stack(ious).mean()
        self.count[category] += 1

    def compute(self) -> dict[str, Tensor]:
        seen = self.count > 0
        by_class = self.total[seen] / self.count[seen]
        return {
            "instance_miou": self.total.sum() / self.count.sum(),
            "class_miou": by_class.mean(),
        }


class BodyAccuracy(Metric):
    """The accuracies of the human-body benchmark, all from one prediction per face, or those of
    edges from one per edge.

    face: share of faces whose predicted part is the true one (a face's true part is the majority of
    its three edges' labels, the smallest on a tie). For the edges, the prediction is the arg-max of
    the mean probability of the faces at the edge. hard edge: share of edges whose predicted part is
    the edge's label. soft edge: MeshCNN's measure: a prediction counts if it is among the labels of
    the edge and of the other edges of its faces, edges weigh by area (a third of the faces' area at
    the edge), and the result is the mean over meshes.
    """

    full_state_update = False

    def __init__(self) -> None:
        super().__init__()
        for name in ("face", "faces", "hard", "edges", "soft", "meshes"):
            self.add_state(name, torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")

    def update(
        self,
        logits: Tensor,
        label: Tensor,
        edge_soft: Tensor,
        edge_area: Tensor,
        edge_face: Tensor | None = None,
        edge_label: Tensor | None = None,
    ) -> None:
        """One mesh: logits (f parts) and label (f) of faces, edge_soft (e parts) true where the
        part is allowed, edge_area (e), edge_face (e 2), edge_label (e); without the last two logits
        and label are those of edges."""
        state: Any = self
        if edge_face is None or edge_label is None:
            edge, edge_label = logits.argmax(1), label
        else:
            state.face += (logits.argmax(1) == label).sum()
            state.faces += len(label)
            edge = logits.softmax(1)[edge_face].mean(1).argmax(1)
        state.hard += (edge == edge_label).sum()
        state.edges += len(edge)
        allowed = edge_soft.gather(1, edge[:, None])[:, 0] > 0
        state.soft += (allowed * edge_area).sum() / edge_area.sum()
        state.meshes += 1

    def compute(self) -> dict[str, Tensor]:
        state: Any = self
        edges = {
            "hard_edge_acc": state.hard / state.edges,
            "soft_edge_acc": state.soft / state.meshes,
        }
        return {"face_acc": state.face / state.faces, **edges} if state.faces else edges


class VertexError(Metric):
    """Distances between predicted and true vertices in correspondence, in millimetres.

    Over all vertices of all shapes: mean, standard deviation, median, 90th percentile, and the
    mean at each vertex.
    """

    full_state_update = False

    def __init__(self) -> None:
        super().__init__()
        self.add_state("rows", [], dist_reduce_fx="cat")
        self.rows: list[Tensor]

    def update(self, predicted: Tensor, true: Tensor, unit: float) -> None:
        """(b v 3) each, in the model's coordinates; ``unit``: millimetres per unit."""
        self.rows.append((predicted - true).norm(dim=2) * unit)

    def compute(self) -> dict[str, Tensor]:
        errors = dim_zero_cat(self.rows)
        flat = errors.flatten().sort().values
        at = torch.linspace(0, 1, 101, device=flat.device) * (len(flat) - 1)
        quantiles = flat[at.round().long()]
        return {
            "error": flat.mean(),
            "std": flat.std(correction=0),
            "median": quantiles[50],
            "p90": quantiles[90],
            "quantiles": quantiles,
            "per_vertex": errors.mean(0),
        }


class SurfaceError(Metric):
    """Point-to-triangle distances between predicted surface and scan, in millimetres, means over
    shapes: ``scan_to_mesh`` from the scan's vertices, ``mesh_to_scan`` from the predicted ones,
    ``surface`` the mean of both."""

    full_state_update = False

    def __init__(self) -> None:
        super().__init__()
        for name in ("forth", "back", "shapes"):
            self.add_state(name, torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")

    def update(self, predicted: Surface, scan: Surface, unit: float) -> None:
        """One shape: positions and faces of both, in the model's coordinates."""
        state: Any = self
        state.forth += unit * to_surface(scan[0], predicted).mean()
        state.back += unit * to_surface(predicted[0], scan).mean()
        state.shapes += 1

    def compute(self) -> dict[str, Tensor]:
        state: Any = self
        forth, back = state.forth / state.shapes, state.back / state.shapes
        return {"surface": (forth + back) / 2, "scan_to_mesh": forth, "mesh_to_scan": back}


Surface = tuple[Tensor, Tensor]


def to_surface(points: Tensor, surface: Surface) -> Tensor:
    """Exact distances (n) from points (n 3) to the triangles of a mesh (positions, faces)."""
    import igl

    pos, face = (np.ascontiguousarray(x.detach().cpu().numpy()) for x in surface)
    query = np.ascontiguousarray(points.detach().cpu().numpy(), np.float64)
    squared = igl.point_mesh_squared_distance(query, pos.astype(np.float64), face)[0]
    return torch.from_numpy(np.sqrt(np.asarray(squared, np.float64)))


class MapError(Metric):
    """Geodesic errors and other properties of point-to-point maps, x 100 where they are distances.

    See ``geodl.tasks.matching.Matching`` for the names. Distances from the landmarks of a source
    are computed once and kept in the cache (in half precision: an error of 2.5 is 2.500 +- 0.001).
    """

    full_state_update = False
    LIMIT = 0.25  # end of the curve of correct points
    FAILED = 0.10

    def __init__(
        self,
        method: Method = "dijkstra",
        every: int = 1,
        normalize: Literal["area", "diameter"] = "area",
        cache: Cache | None = None,
    ) -> None:
        super().__init__()
        self.method: Method = method
        self.every, self.normalize, self.cache = every, normalize, cache
        self.add_state("errors", [], dist_reduce_fx="cat")
        self.add_state("pairs", [], dist_reduce_fx="cat")
        self.add_state("rest", [], dist_reduce_fx="cat")
        self.errors: list[Tensor]
        self.pairs: list[Tensor]
        self.rest: list[Tensor]
        self.names: list[str] = []
        self._last: tuple[str, NDArray[Any]] | None = None

    def update(self, found: Tensor, source: Shape, target: Shape) -> None:
        """One pair: found (v target) holds vertices of the source."""
        assert source.landmark is not None and target.landmark is not None
        own = source.landmark[:: self.every].numpy()
        sent = found[target.landmark[:: self.every]].numpy()
        errors, lost = self.measure(own, sent, source)
        values = torch.from_numpy(errors)
        self.errors.append(values)
        self.pairs.append(values.mean()[None])
        self.names.append(f"{source.name}-{target.name}")
        exact = float(np.mean(own == sent))
        cover = len(torch.unique(found)) / len(source.pos)
        self.rest.append(
            torch.tensor(
                [[exact, cover, self._dirichlet(found, source, target), float(lost.sum())]],
                dtype=torch.float64,
            )
        )

    def measure(
        self, own: NDArray[np.int64], sent: NDArray[np.int64], source: Shape
    ) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
        """Distances (t) on the source between where points belong and where they are sent, and
        whether (t) there is no way."""
        rows, inverse = np.unique(own, return_inverse=True)
        table = self._distances(source, rows)
        errors = table[inverse, sent].astype(np.float64)
        finite = table[np.isfinite(table)]
        far = float(finite.max()) if len(finite) else 0.0
        lost = ~np.isfinite(errors)
        errors[lost] = far  # on another component: as far as can be
        return (errors / max(far, 1e-12) if self.normalize == "diameter" else errors), lost

    def _distances(self, shape: Shape, rows: NDArray[np.int64]) -> NDArray[Any]:
        """(rows, v) on the shape, over the root of its area."""
        pos, face = shape.pos.numpy(), shape.face.numpy()
        key = digest(pos, face, rows, self.method)
        if self._last is not None and self._last[0] == key:
            return self._last[1]

        def make() -> dict[str, NDArray[Any]]:
            found = distances(pos, face, rows, self.method) / np.sqrt(area(pos, face))
            return {"distance": found.astype(np.float16)}

        arrays = self.cache.get("geodesic", key, make) if self.cache else make()
        self._last = key, arrays["distance"]
        return self._last[1]

    @staticmethod
    def _dirichlet(found: Tensor, source: Shape, target: Shape) -> float:
        """1/2 trace(X^T L X) for X = the source's positions pulled back, over the target's area:
        one for an isometry, more where neighbours are torn apart."""
        if "lap" not in target.ops:
            return float("nan")
        x = source.pos[found].double()
        energy = 0.5 * (x * torch.sparse.mm(target.ops.lap.double(), x)).sum()
        return float(energy) / area(target.pos.numpy(), target.face.numpy())

    def compute(self) -> dict[str, Tensor]:
        errors, pairs, rest = (
            dim_zero_cat(self.errors),
            dim_zero_cat(self.pairs),
            dim_zero_cat(self.rest),
        )
        limits = torch.linspace(0, self.LIMIT, 101, dtype=torch.float64)
        pck = torch.stack([(errors <= t).double().mean() for t in limits])
        exact, cover, dirichlet, lost = rest.unbind(1)
        return {
            "geodesic": 100 * pairs.mean(),
            "median": 100 * pairs.median(),
            "failed": (pairs > self.FAILED).sum(),
            "exact": exact.mean(),
            "auc": torch.trapezoid(pck, limits) / self.LIMIT,
            "cover": cover.mean(),
            "dirichlet": dirichlet.mean(),
            "unreachable": lost.sum(),
            "pairs": 100 * pairs,
            "pck": pck,
        }


class DeformedError(Metric):
    """Deformed meshes against true ones with the same faces, means over meshes.

    error: distance of a vertex to where it belongs, in millimetres | normals: angle between face
    normals, by area, in degrees | edges: difference of edge lengths, a share of the true length |
    volume: of closed meshes, a share of the true one | crossings: share of the faces that another
    one goes through.
    """

    full_state_update = False
    NAMES = ("error", "normals", "edges", "crossings", "volume")

    def __init__(self) -> None:
        super().__init__()
        for name in (*self.NAMES, "meshes", "closed"):
            self.add_state(name, torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")

    def update(self, predicted: Tensor, true: Tensor, face: Tensor, unit: float) -> None:
        """One mesh: positions (v 3) of both, in the model's coordinates, and faces (f 3)."""
        from geodl.ops.crossing import crossing

        state: Any = self
        found, wanted = (x.detach().cpu().double() for x in (predicted, true))
        face = face.cpu()
        state.error += unit * (found - wanted).norm(dim=1).mean()
        a, b = (_vectors(x, face) for x in (found, wanted))
        sizes = b.norm(dim=1)
        cosine = torch.cosine_similarity(a, b, dim=1).clamp(-1, 1)
        state.normals += torch.rad2deg((cosine.acos() * sizes).sum() / sizes.sum())
        state.edges += _stretched(_lengths(found, face), _lengths(wanted, face))
        state.crossings += crossing(found.numpy(), face.numpy()).mean()
        state.meshes += 1
        if is_closed(face):
            full = volume(wanted, face)
            state.volume += ((volume(found, face) - full) / full).abs()
            state.closed += 1

    def compute(self) -> dict[str, Tensor]:
        state: Any = self
        means = {name: getattr(state, name) / state.meshes for name in self.NAMES[:-1]}
        return means | ({"volume": state.volume / state.closed} if state.closed else {})


class PathError(Metric):
    """Meshes on the way from one to another with the same faces, means over ways and what lies
    between their ends.

    error: distance of a vertex to where it belongs, in millimetres, after rigid alignment, where
    that is known | edges, volume: differences of edge lengths and (of closed meshes) volume from
    those of the ends, which should change evenly, as shares | crossings: share of the faces that
    another one goes through | ends: distance of a vertex of the first and last mesh to where it
    belongs.
    """

    full_state_update = False
    NAMES = ("error", "ends", "edges", "crossings", "volume")

    def __init__(self) -> None:
        super().__init__()
        for name in (*self.NAMES, "meshes", "known", "closed"):
            self.add_state(name, torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")

    def update(
        self,
        path: Tensor,
        ends: tuple[Tensor, Tensor],
        between: Tensor | None,
        shares: Sequence[float],
        face: Tensor,
        unit: float,
    ) -> None:
        """One way: meshes (t v 3) at the start, at the shares of the way and at its end; the true
        ends (v 3), and the true meshes between (t-2 v 3) if they are known."""
        from geodl.ops.crossing import crossing

        state: Any = self
        face, found = face.cpu(), path.detach().cpu().double()
        first, last = (x.detach().cpu().double() for x in ends)
        off = torch.stack([found[0] - first, found[-1] - last])
        state.ends += unit * off.norm(dim=2).mean() * len(shares)
        lengths = [_lengths(x, face) for x in (first, last)]
        sizes = [volume(x, face) for x in (first, last)]
        for i, share in enumerate(shares):
            pos = found[1 + i]
            even = (1 - share) * lengths[0] + share * lengths[1]
            state.edges += _stretched(_lengths(pos, face), even)
            state.crossings += crossing(pos.numpy(), face.numpy()).mean()
            if is_closed(face):
                full = (1 - share) * sizes[0] + share * sizes[1]
                state.volume += ((volume(pos, face) - full) / full).abs()
                state.closed += 1
            if between is not None:
                true = between[i].cpu().double().numpy()
                gap = rigid(pos.numpy(), pos.numpy(), true) - true
                state.error += unit * np.linalg.norm(gap, axis=1).mean()
                state.known += 1
            state.meshes += 1

    def compute(self) -> dict[str, Tensor]:
        state: Any = self
        means = {n: getattr(state, n) / state.meshes for n in ("ends", "edges", "crossings")}
        known = {"error": state.error / state.known} if state.known else {}
        return known | means | ({"volume": state.volume / state.closed} if state.closed else {})


class FieldError(Metric):
    """Surfaces of functions of space against true ones: see ``geodl.tasks.implicit.Implicit``."""

    full_state_update = False

    def __init__(self) -> None:
        super().__init__()
        for name in ("chamfer", "shapes", "normals", "surfaces", "lost"):
            self.add_state(name, torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("iou", [], dist_reduce_fx="cat")
        self.iou: list[Tensor]

    def update(
        self,
        found: NDArray[Any] | None,
        true: NDArray[Any] | None,
        normals: tuple[Any, Any] | None = None,
        inside: tuple[Tensor, Tensor] | None = None,
    ) -> None:
        """One shape: points on its surface (n 3), None if it has none, on the true one (m 3; None:
        not to be compared), the normals at both, which points of space are in each volume (q)."""
        state: Any = self
        if inside is not None:
            ours, theirs = inside
            union = (ours | theirs).sum().clamp(min=1)
            self.iou.append(((ours & theirs).sum() / union).double()[None])
        if true is None:
            return
        state.shapes += 1
        if normals is not None:
            state.surfaces += 1
        if found is None:
            state.lost += 1
            state.chamfer += 1.0
            return
        gap, there, here = _across(found, true)
        state.chamfer += gap
        if normals is not None:
            ours, theirs = normals
            cosines = (ours * theirs[there]).sum(1), (theirs * ours[here]).sum(1)
            state.normals += float(sum(np.abs(c).mean() for c in cosines)) / 2

    def compute(self) -> dict[str, Tensor]:
        state: Any = self
        scores = {"chamfer": 100 * state.chamfer / state.shapes} if state.shapes else {}
        if state.surfaces:
            scores |= {"normals": state.normals / state.surfaces, "lost": state.lost}
        return ({"iou": dim_zero_cat(self.iou).mean()} if len(self.iou) else {}) | scores


def _across(found: NDArray[Any], true: NDArray[Any]) -> tuple[float, NDArray[Any], NDArray[Any]]:
    """Mean distance to the nearest point, over both directions, and which it is of every point of
    the first set and of the second."""
    (forth, there), (back, here) = KDTree(true).query(found), KDTree(found).query(true)
    return float(np.mean(forth) + np.mean(back)) / 2, np.asarray(there), np.asarray(here)


class Pointing(Metric):
    """Shares of the parts of shapes that are pointed at right: ``pointing``, at the medoid of what
    was predicted to be the part; ``pointing_center``, at the element nearest to its centre. A part
    that was not found is missed."""

    full_state_update = False

    def __init__(self) -> None:
        super().__init__()
        for name in ("pointing", "pointing_center", "asked"):
            self.add_state(name, torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")

    def update(
        self,
        pos: NDArray[Any],
        area: NDArray[Any],
        predicted: NDArray[np.integer],
        true: NDArray[np.integer],
    ) -> None:
        """One shape: places (n 3), areas and labels (n) of its elements."""
        state: Any = self
        for part in np.unique(true):
            chosen = predicted == part
            for name, point in (("pointing", medoid), ("pointing_center", nearest_to_center)):
                at = point(pos, area, chosen)
                hit = at is not None and true[at] == part
                setattr(self, name, getattr(self, name) + float(hit))
            state.asked += 1

    def compute(self) -> dict[str, Tensor]:
        state: Any = self
        return {n: getattr(state, n) / state.asked for n in ("pointing", "pointing_center")}


def overlap(ours: Tensor, theirs: Tensor) -> Tensor:
    """Mean IoU of masks (k s s)."""
    union = (ours | theirs).sum((1, 2)).clamp(min=1)
    return ((ours & theirs).sum((1, 2)) / union).mean()


class LooksError(Metric):
    """What a mesh looks like: see ``geodl.tasks.rendering.Rendering``."""

    full_state_update = False

    def __init__(self) -> None:
        super().__init__()
        for name in ("iou", "chamfer", "edges", "shapes"):
            self.add_state(name, torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")

    def update(
        self,
        ours: Tensor,
        theirs: Tensor,
        found: NDArray[Any],
        true: NDArray[Any],
        pos: Tensor,
        face: Tensor,
    ) -> None:
        """One shape: silhouettes (k s s) in the same views, points (n 3) on both surfaces, and the
        mesh that was found."""
        state: Any = self
        state.iou += overlap(ours, theirs)
        state.chamfer += _across(found, true)[0]
        length = _lengths(pos, face).flatten()
        state.edges += float(length.max() / length.median().clamp(min=1e-12))
        state.shapes += 1

    def compute(self) -> dict[str, Tensor]:
        state: Any = self
        iou, chamfer, edges = (
            getattr(state, n) / state.shapes for n in ("iou", "chamfer", "edges")
        )
        return {"iou": iou, "chamfer": 100 * chamfer, "edges": edges}


class CloudSets(Metric):
    """Keeps clouds (b n 3) of as many points each, and the classes (b) of their shapes."""

    full_state_update = False

    def __init__(self) -> None:
        super().__init__()
        self.add_state("clouds", [], dist_reduce_fx="cat")
        self.add_state("classes", [], dist_reduce_fx="cat")
        self.clouds: list[Tensor]
        self.classes: list[Tensor]

    def update(self, clouds: Tensor, classes: Tensor) -> None:
        self.clouds.append(clouds)
        self.classes.append(classes)

    def compute(self) -> tuple[Tensor, Tensor]:
        return dim_zero_cat(self.clouds), dim_zero_cat(self.classes)


AT_ONCE = 1 << 17  # distances between points, few enough for a processor's cache


def cloud_distances(a: Tensor, b: Tensor) -> Tensor:
    """Chamfer distances (k m), squared, both directions added, between clouds (k n 3), (m n 3)."""
    n = b.shape[1]
    found, square = a.new_empty(len(a), len(b)), a.square().sum(2)
    step = max(1, AT_ONCE // (a.shape[1] * n))
    for start in range(0, len(b), step):
        some = b[start : start + step].reshape(-1, 3)
        lengths = some.square().sum(1)
        room = a.new_empty(a.shape[1], len(some))
        for i, cloud in enumerate(a):
            gap = torch.mm(cloud, some.T, out=room).mul_(-2).add_(lengths)
            gap = gap.add_(square[i, :, None]).view(len(cloud), -1, n)
            there, back = gap.amin(2).clamp_(min=0).mean(0), gap.amin(0).clamp_(min=0).mean(1)
            found[i, start : start + step] = there + back
    return found


def compared(samples: Tensor, true: Tensor, classes: Tensor) -> dict[str, float]:
    """Samples (n p 3) against true clouds (n p 3) of the same classes (n), one after the other: see
    ``geodl.tasks.generation.Generation``. Paper: Yang et al.: PointFlow, ICCV 2019, 5.2."""
    across = cloud_distances(samples, true)
    found: dict[str, list[float]] = {"nna": [], "cov": [], "mmd": []}
    for c in classes.unique():
        own = classes == c
        count = int(own.sum())
        between = across[own][:, own]
        inside = [cloud_distances(x[own], x[own]) for x in (samples, true)]
        gap = torch.cat(
            [torch.cat([inside[0], between], 1), torch.cat([between.T, inside[1]], 1)]
        ).fill_diagonal_(torch.inf)
        is_sample = torch.arange(2 * count, device=gap.device) < count
        found["nna"].append(float((is_sample[gap.argmin(1)] == is_sample).float().mean()))
        found["cov"].append(len(between.argmin(1).unique()) / count)
        found["mmd"].append(1000 * float(between.amin(0).mean()))
    agreement = float((classes[across.argmin(1)] == classes).float().mean())
    return {k: float(np.mean(v)) for k, v in found.items()} | {"agreement": agreement}


def _vectors(pos: Tensor, face: Tensor) -> Tensor:
    a, b, c = pos[face].unbind(1)
    return torch.linalg.cross(b - a, c - a)


def _lengths(pos: Tensor, face: Tensor) -> Tensor:
    """Of the sides of all faces (f 3)."""
    corner = pos[face]
    return (corner - corner.roll(1, dims=1)).norm(dim=2)


def _stretched(length: Tensor, true: Tensor) -> Tensor:
    """Mean difference of lengths, as a share of the mean true one: short edges weigh little."""
    return (length - true).abs().mean() / true.mean()


def volume(pos: Tensor, face: Tensor) -> Tensor:
    """Inside a closed mesh."""
    a, b, c = pos[face].unbind(1)
    return (a * torch.linalg.cross(b, c)).sum() / 6


def is_closed(face: Tensor) -> bool:
    """Whether every edge has two faces."""
    sides = torch.cat([face[:, [0, 1]], face[:, [1, 2]], face[:, [2, 0]]]).sort(dim=1).values
    counts = torch.unique(sides, dim=0, return_counts=True)[1]
    return bool((counts == 2).all())
