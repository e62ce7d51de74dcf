"""Checks of what a trained model writes and returns beside predictions, and of its files."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any

import anndata
import numpy as np
import pandas as pd

from ._case import refused, require, require_equal, scratch
from ._invariance import changed
from ._screen import HELD_OUT_CONTEXT

if TYPE_CHECKING:
    from anndata import AnnData

    from ._case import Case


def check_annotate(case: Case) -> None:
    """`annotate` writes the documented keys, with the latent representations that the model returns; all survive a file."""
    adata, name = case.screen.adata(), case.cls.__name__
    before = adata.copy()
    case.trained.annotate(adata)
    latents = _returned_latents(case, before)
    wanted = {"obs": [], "layers": [f"{name}_predicted"], "obsm": sorted(latents), "uns": [name]}
    for attribute, keys in wanted.items():
        new = sorted(key for key in getattr(adata, attribute) if key not in getattr(before, attribute))
        require(new == keys, f"annotate wrote {new} into {attribute}; wanted: {keys}")
    for key, (rows, z) in latents.items():
        require_equal(adata.obsm[key][rows], z, f"obsm[{key!r}] and what the model returns", tolerance=1e-5)
    finite = np.isfinite(adata.layers[f"{name}_predicted"])
    predictable = case.screen.is_predictable
    require(bool(finite[predictable].all()), "predicted rows have values that are not finite")
    require(not finite[~predictable].any(), "cells whose label cannot be predicted have predicted rows; wanted: NaN")
    with scratch() as folder:
        adata.write_h5ad(folder / "annotated.h5ad")
        read = anndata.read_h5ad(folder / "annotated.h5ad")
    for attribute in ("layers", "obsm"):
        for key in wanted[attribute]:
            found, written = getattr(read, attribute)[key], getattr(adata, attribute)[key]
            require_equal(found, written, f"{attribute}[{key!r}] on file and in memory")
    require(read.uns[name]["model"] == name, f"uns[{name!r}]['model'] on file is {read.uns[name]['model']!r}")


def _returned_latents(case: Case, adata: AnnData) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Rows and values of every latent representation that the public methods return, by the key that it should get."""
    name, model = case.cls.__name__, case.trained
    if not case.cls.tags.latent:
        return {}
    plain = model.get_latent_representation(adata)
    found = {f"X_{name}": (np.arange(adata.n_obs), plain)}
    if hasattr(model, "get_latents"):
        rows = np.flatnonzero(case.screen.is_predictable)
        for kind, z in model.get_latents(adata, indices=rows).items():
            if z.shape != plain[rows].shape or not np.allclose(z, plain[rows], atol=1e-5):
                found[f"X_{name}_{kind}"] = rows, z
    return found


def check_annotate_leakage(case: Case) -> None:
    """The expression of a perturbed cell is no input of its predicted row."""
    layers = []
    for adata in (case.screen.adata(), changed(case.screen.adata(), ~case.screen.is_control)):
        case.trained.annotate(adata, latent=False)
        layers.append(adata.layers[f"{case.cls.__name__}_predicted"])
    require_equal(layers[1], layers[0], "predicted rows before and after the expression of perturbed cells is changed")


def check_annotate_without_control(case: Case) -> None:
    """Cells of a context without control cells get NaN and one warning, the others a prediction."""
    screen = case.screen
    kept = screen.is_predictable & ~(screen.is_control & (screen.contexts == HELD_OUT_CONTEXT))
    adata = screen.adata()[kept].copy()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        case.trained.annotate(adata, latent=False)
    named = [warning for warning in caught if HELD_OUT_CONTEXT in str(warning.message)]
    require(len(named) == 1, f"a context without control cells gave {len(named)} warnings that name it; wanted: 1")
    empty = np.isnan(adata.layers[f"{case.cls.__name__}_predicted"])
    without = (adata.obs["line"] == HELD_OUT_CONTEXT).to_numpy()
    require(bool(empty[without].all()), "cells of a context without control cells have predicted rows; wanted: NaN")
    require(not empty[~without].any(), "cells of contexts with control cells have NaN in their predicted rows")


def check_latent_representation(case: Case) -> None:
    """There is one finite latent vector per cell, or an error, as the tag says."""
    adata = case.screen.adata()
    if not case.cls.tags.latent:
        with refused(ValueError, "get_latent_representation, against the tag", mention="latent"):
            case.trained.get_latent_representation(adata)
        return
    found = np.asarray(case.trained.get_latent_representation(adata))
    require(
        found.ndim == 2 and len(found) == adata.n_obs and found.dtype == np.float32,
        f"latent representations have shape {found.shape}, {found.dtype}; wanted: {adata.n_obs} rows, 2 axes, float32",
    )
    require(bool(np.isfinite(found).all()), "latent representations are not finite")
    some = case.trained.get_latent_representation(adata, indices=[5, 2], batch_size=1)
    require_equal(some, found[[5, 2]], "latent representations of two cells alone and among all", tolerance=1e-5)


def check_perturbation_embedding(case: Case) -> None:
    """There is one finite vector per trained perturbation, by name, or an error, as the tag says."""
    if not case.cls.tags.perturbation_embedding:
        with refused(ValueError, "get_perturbation_embedding, against the tag", mention="perturbation_embedding"):
            case.trained.get_perturbation_embedding()
        return
    found = case.trained.get_perturbation_embedding()
    require(isinstance(found, pd.DataFrame), f"the perturbation embedding is a {type(found).__name__}, not a DataFrame")
    names = {str(name).split("@")[0] for name in found.index}
    missing = sorted({label for label, _ in case.screen.trained if "+" not in label} - names)
    require(not missing, f"the index of the perturbation embedding lacks {missing}; it has {sorted(names)}")
    require(found.index.is_unique, "the index of the perturbation embedding has repeats")
    require(bool(np.isfinite(found.to_numpy(float)).all()), "the perturbation embedding is not finite")


def check_files(case: Case) -> None:
    """A saved model predicts the same when read back: without data, with saved data, with given data, and by prefix."""
    with scratch() as folder:
        case.trained.save(folder, prefix="my_", save_anndata=True)
        ways = {"without data": False, "with saved data": None, "with given data": case.screen.adata()}
        for way, data in ways.items():
            model = case.cls.load(folder, data, accelerator="cpu", prefix="my_")
            case.require_same_predictions(model, case.predicted, f"before and after save and load {way}")
            if data is not False:
                require_equal(model.predict().X, case.predicted.X, f"predictions of the model's own data, loaded {way}")


def check_files_of_another_class(case: Case) -> None:
    """`load` refuses files of another class."""
    other: Any = type(f"Other{case.cls.__name__}", (case.cls,), {"__doc__": "Another model."})
    with scratch() as folder:
        case.trained.save(folder)
        with refused(ValueError, "loading files of another class", mention=case.cls.__name__):
            other.load(folder, False, accelerator="cpu")
