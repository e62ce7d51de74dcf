"""Models trained on cells that stay on disk."""

import anndata
import numpy as np
import pytest

from multipert import datasets, splits
from multipert.data import _files, _store, read_backed
from multipert.model import MTAe, _training
from multipert.train import _fit

QUIET = {"accelerator": "cpu", "devices": 1, "enable_progress_bar": False, "check_val_every_n_epoch": 1}


@pytest.fixture(scope="module")
def screen():
    adata = datasets.simulate(n_contexts=2, n_perturbations=2, n_vars=40, n_cells=120, seed=0)
    adata.obs["split"] = splits.context_transfer(adata, "context_1", val_size=0.2)
    return adata


@pytest.fixture(scope="module")
def expected(screen):
    with pytest.MonkeyPatch.context() as patch:
        return trained(screen.copy(), patch)


@pytest.fixture(scope="module")
def homes(screen, tmp_path_factory):
    tmp_path = tmp_path_factory.mktemp("files")
    screen.write_h5ad(tmp_path / "all.h5ad")
    screen.write_zarr(tmp_path / "all.zarr")
    dense = screen.copy()
    dense.X = dense.X.toarray() if hasattr(dense.X, "toarray") else dense.X
    dense.write_h5ad(tmp_path / "dense.h5ad")
    half = screen.n_obs // 2
    screen[:half].copy().write_h5ad(tmp_path / "1.h5ad")
    screen[half:].copy().write_h5ad(tmp_path / "2.h5ad")
    return {
        "backed": lambda: anndata.read_h5ad(tmp_path / "all.h5ad", backed="r"),
        "h5ad": lambda: read_backed(tmp_path / "all.h5ad"),
        "zarr": lambda: read_backed(tmp_path / "all.zarr"),
        "dense": lambda: read_backed(tmp_path / "dense.h5ad"),
        "two files": lambda: read_backed([tmp_path / "1.h5ad", tmp_path / "2.h5ad"]),
    }


def trained(adata, monkeypatch):
    monkeypatch.setattr(_store, "_SMALL_BYTES", 0)
    MTAe.setup_anndata(adata, "perturbation", context_key="context")
    model = MTAe(adata, n_hidden=16, n_latent=8)
    model.train(3, split_key="split", batch_size=32, block_size=8, seed=1, **QUIET)
    return model


@pytest.mark.parametrize("home", ["backed", "h5ad", "zarr", "dense", "two files"])
def test_losses_and_predictions_are_those_of_cells_in_memory(homes, expected, home, monkeypatch):
    adata = homes[home]()
    model = trained(adata, monkeypatch)
    assert set(model.history_) == set(expected.history_)
    for key in ("train_loss", "validation_loss"):
        np.testing.assert_allclose(model.history_[key], expected.history_[key], rtol=1e-5)
    asked = {"perturbation": "P1", "context": "context_1"}
    found, known = model.predict(**asked), expected.predict(**asked)
    np.testing.assert_allclose(found.X, known.X, rtol=1e-5, atol=1e-6)


def test_a_pass_reads_training_cells_only(homes, monkeypatch):
    adata = homes["h5ad"]()
    asked = []
    fill = _files.SparsePart.fill
    fit = _fit.fit

    def noted(part, rows, *out):
        asked.append(rows)
        return fill(part, rows, *out)

    def watched(*arguments, **keywords):
        asked.clear()
        return fit(*arguments, **keywords)

    monkeypatch.setattr(_files.SparsePart, "fill", noted)
    monkeypatch.setattr(_training, "fit", watched)
    model = trained(adata, monkeypatch)
    assert set(np.concatenate(asked)) <= {*model.train_indices, *model.validation_indices}
