"""Existing linear morphable models: a mean shape and a basis, from the files that people have."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from geodl.errors import UserError

Model = tuple[NDArray[np.float64], NDArray[np.float64]]


def read_morphable(path: Path) -> Model:
    """Mean (v 3) and basis (k v 3) of a linear model, in the file's own unit.

    ``.npz`` with ``mean`` (v 3) and ``basis`` (k v 3), ICT-FaceKit's folder (FaceXModel: identity
    modes, then expressions), Basel's ``.h5`` (components times their standard deviations), FLAME's
    ``.pkl`` (shape, then expression directions).

    Raises:
        UserError: missing, of another kind, or sizes that do not fit each other.
    """
    if not path.exists():
        raise UserError(f"{path} does not exist: give a morphable model's file or folder.")
    try:
        if path.is_dir():
            mean, basis = _ict(path)
        elif path.suffix == ".npz":
            with np.load(path, allow_pickle=False) as file:
                mean, basis = file["mean"], file["basis"]
        elif path.suffix == ".h5":
            mean, basis = _basel(path)
        elif path.suffix == ".pkl":
            mean, basis = _flame(path)
        else:
            raise UserError(
                f"{path} is no morphable model that geodl reads: use .npz (mean, basis), "
                "ICT-FaceKit's folder, Basel's .h5 or FLAME's .pkl."
            )
    except (KeyError, ValueError, OSError, EOFError, AttributeError, IndexError) as error:
        raise UserError(f"{path} cannot be read as a morphable model ({error}).") from error
    mean = np.asarray(mean, np.float64).reshape(-1, 3)
    basis = np.asarray(basis, np.float64)
    if basis.ndim == 2:
        basis = basis.reshape(len(basis), -1, 3)
    if basis.ndim != 3 or basis.shape[1:] != mean.shape:
        raise UserError(
            f"{path} has a mean of {len(mean)} vertices, but a basis of shape {basis.shape}: "
            f"expected (k, {len(mean)}, 3)."
        )
    return mean, basis


def read_vertices(path: Path) -> NDArray[np.float64]:
    """The vertex lines (v 3) of an .obj; its faces are not looked at."""
    with path.open() as stream:
        rows = [line.split()[1:4] for line in stream if line.startswith("v ")]
    return np.array(rows, np.float64)


def ict_modes(folder: Path) -> tuple[list[Path], list[Path]]:
    """Files of the identity modes and of the expressions, in order."""
    identities = sorted(folder.glob("identity*.obj"))
    expressions = [
        f
        for f in sorted(folder.glob("*.obj"))
        if f not in identities and f.name != "generic_neutral_mesh.obj"
    ]
    return identities, expressions


def _ict(folder: Path) -> tuple[Any, Any]:
    inner = folder / "FaceXModel" if (folder / "FaceXModel").is_dir() else folder
    mean = read_vertices(inner / "generic_neutral_mesh.obj")
    identities, expressions = ict_modes(inner)
    return mean, np.stack([read_vertices(f) - mean for f in [*identities, *expressions]])


def _basel(path: Path) -> tuple[Any, Any]:
    import h5py

    with h5py.File(path, "r") as file:
        model: Any = file["shape/model"]
        mean = np.asarray(model["mean"])
        basis = np.asarray(model["pcaBasis"]) * np.sqrt(np.asarray(model["pcaVariance"]))
    return mean, basis.T.reshape(basis.shape[1], -1, 3)


# ---- FLAME's pickle, without running what it says ----


class _Chumpy:
    """Stands in for chumpy's arrays in FLAME's file: keeps their state, runs nothing."""

    def __setstate__(self, state: Any) -> None:
        self.state = state

    @property
    def array(self) -> NDArray[Any]:
        return np.asarray(self.state["x"] if isinstance(self.state, dict) else self.state)


class _Sparse:
    """Stands in for the joint regressor, which is not read."""

    def __setstate__(self, state: Any) -> None:
        pass


class _ArraysOnly(pickle.Unpickler):
    """Loads arrays and plain containers; anything else that a pickle names is refused."""

    NUMPY = ("_reconstruct", "ndarray", "dtype", "scalar")

    def find_class(self, module: str, name: str) -> Any:
        root = module.split(".")[0]
        if root == "numpy" and name in self.NUMPY:
            if name == "_reconstruct":
                return np.ndarray.__reduce__(np.empty(0))[0]
            if name == "scalar":
                return np.float64(0).__reduce__()[0]
            return getattr(np, name)
        if root == "chumpy" and name in ("Ch", "array"):
            return _Chumpy
        if root == "scipy" and name in ("csc_matrix", "csr_matrix"):
            return _Sparse
        if (module, name) == ("_codecs", "encode"):
            import codecs

            return codecs.encode
        if (module, name) in (("copyreg", "_reconstructor"), ("copy_reg", "_reconstructor")):
            return _reconstructor
        if root in ("builtins", "__builtin__") and name == "object":
            return object
        raise UserError(
            f"the pickle names {module}.{name}, which is no array: it is refused, because loading "
            "it could run code; save mean and basis as .npz instead."
        )


def _reconstructor(kind: Any, base: Any, state: Any) -> Any:
    if kind in (_Chumpy, _Sparse):
        return kind()
    raise UserError("the pickle makes objects that are no arrays: it is refused.")


def _flame(path: Path) -> tuple[Any, Any]:
    with path.open("rb") as stream:
        try:
            content = _ArraysOnly(stream, encoding="latin1").load()
        except UserError as error:
            raise UserError(f"{path}: {error}") from None
        except (pickle.UnpicklingError, TypeError) as error:
            raise UserError(f"{path} cannot be read as a pickle of arrays ({error}).") from error

    def plain(value: Any) -> NDArray[Any]:
        return value.array if isinstance(value, _Chumpy) else np.asarray(value)

    mean = plain(content["v_template"])
    return mean, np.moveaxis(plain(content["shapedirs"]), -1, 0)
