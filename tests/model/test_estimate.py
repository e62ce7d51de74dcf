"""Time and memory of a training before it is run."""

import numpy as np
import pytest
import torch

import multipert as mp

QUIET = {"accelerator": "cpu", "enable_progress_bar": False}


@pytest.fixture(scope="module")
def screen():
    return mp.datasets.screen("small")


def made(name, adata, **arguments):
    cls = getattr(mp.model, name)
    cls.setup_anndata(adata, context_key="context")
    return cls(adata, **arguments)


@pytest.mark.parametrize("name", ["MTAe", "MTAeAdv", "MTVaePlusOT", "MTAeED"])
def test_the_updates_are_those_of_the_training(name, screen, monkeypatch):
    model = made(name, screen)
    estimate = model.estimate(max_epochs=1, accelerator="cpu")
    done = []

    def count(plan, burst, batch_idx):
        done.append(sum(1 for _ in burst))
        return torch.zeros(())

    monkeypatch.setattr(mp.train.PerturbationTrainingPlan, "training_step", count)
    model.train(max_epochs=1, **QUIET)
    assert estimate.n_updates == sum(done)


def test_seconds_and_memory_grow_with_what_is_asked_for(screen):
    model = made("MTAe", screen)
    short, long = (model.estimate(max_epochs=n, accelerator="cpu") for n in (1, 100))
    assert long.n_updates == 100 * short.n_updates
    for estimate in (short, long):
        assert estimate.seconds * estimate.cells_per_second == pytest.approx(64 * estimate.n_updates)
    larger = made("MTAe", screen, n_hidden=1024).estimate(max_epochs=1, accelerator="cpu")
    n_bytes = {
        width: sum(p.nbytes for p in made("MTAe", screen, n_hidden=width).module.parameters()) for width in (256, 1024)
    }
    # weights, gradients, two moments, and the copy to fall back on
    assert larger.memory - short.memory >= 5 * (n_bytes[1024] - n_bytes[256])
    assert short.memory >= 5 * n_bytes[256]
    assert str(short).endswith("MB beside the data")


def test_memory_counts_copies_and_what_is_read_ahead_only(screen, tmp_path, monkeypatch):
    """Expression that training shares with the AnnData is no memory beside it; buffers of cells on disk are."""
    from multipert.data import _store

    dense = screen.copy()
    dense.X = dense.X.toarray() if hasattr(dense.X, "toarray") else np.ascontiguousarray(dense.X, dtype=np.float32)
    double = dense.copy()
    double.X = dense.X.astype(np.float64)
    shared, copied = (made("MTAe", adata).estimate(max_epochs=1, accelerator="cpu") for adata in (dense, double))
    assert copied.memory - shared.memory == 4 * screen.n_obs * screen.n_vars
    double.write_h5ad(tmp_path / "cells.h5ad")
    monkeypatch.setattr(_store, "_SMALL_BYTES", 0)
    on_disk = made("MTAe", mp.data.read_backed(tmp_path / "cells.h5ad")).estimate(max_epochs=1, accelerator="cpu")
    # two buffers, each larger than the screen
    assert on_disk.memory - shared.memory > 2 * 4 * screen.n_obs * screen.n_vars


def test_the_preset_gives_the_length(screen):
    model = made("MTAe", screen)
    n_train = round(0.9 * screen.n_obs)
    assert model.estimate(accelerator="cpu").n_updates == -(-2000 // (n_train // 64)) * (n_train // 64)


def test_nothing_of_the_model_or_the_data_changes(screen):
    model = made("MTAe", screen)
    before = {key: value.clone() for key, value in model.module.state_dict().items()}
    draws = torch.get_rng_state()
    model.estimate(accelerator="cpu")
    assert not model.is_trained
    assert model.history_ == {}
    assert torch.equal(torch.get_rng_state(), draws)
    for key, value in model.module.state_dict().items():
        assert torch.equal(value, before[key])
    model.train(max_epochs=1, seed=0, **QUIET)
    other = made("MTAe", screen)
    other.train(max_epochs=1, seed=0, **QUIET)
    np.testing.assert_array_equal(model.predict(returns="mean").X, other.predict(returns="mean").X)


def test_other_data_may_be_larger(screen):
    model = made("MTAe", screen[::2].copy())
    assert model.estimate(screen, max_epochs=1, accelerator="cpu").n_updates > model.estimate(max_epochs=1).n_updates


def test_a_model_in_closed_form_has_no_updates(screen):
    estimate = made("ContextShift", screen).estimate()
    assert estimate.n_updates == 0
    assert np.isnan(estimate.cells_per_second)


def test_bad_arguments_are_refused_as_in_training(screen):
    model = made("MTAe", screen)
    with pytest.raises(ValueError, match="max_epochs=-1 must not be negative"):
        model.estimate(max_epochs=-1)
    with pytest.raises(ValueError, match="batch_size=1, but MTAe normalises"):
        model.estimate(batch_size=1)
    with pytest.raises(KeyError, match="split_key='folds'"):
        model.estimate(split_key="folds")
