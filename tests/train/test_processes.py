"""Training in two processes, started by a script as a user would."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest

import multipert as mp

SCRIPT = """
import json, os, signal, sys
import torch
import multipert as mp
from lightning.pytorch.callbacks import Callback

arguments, killed, folder = json.loads(sys.argv[1]), sys.argv[2] == "True", sys.argv[3]
rank = os.environ.get("LOCAL_RANK", "0")
torch.set_num_threads(1)

class Kill(Callback):
    def on_train_epoch_end(self, trainer, plan):
        if trainer.global_rank == 1 and trainer.current_epoch == 1:
            os.kill(os.getpid(), signal.SIGKILL)

adata = mp.datasets.screen("small")[::3].copy()
mp.model.MTAeAdv.setup_anndata(adata, context_key="context")
widths = arguments.pop("model")
result = {}
for devices in (2, 1):
    # one device in the same process afterwards learns from all cells again
    model = mp.model.MTAeAdv(adata, **widths)
    model.train(devices=devices, **arguments, callbacks=[Kill()] if killed else None)
    result[devices] = {
        "history": {key: frame[key].tolist() for key, frame in model.history.items()},
        "predicted": model.predict(returns="mean").X.tolist(),
        "state": {key: value.double().sum().item() for key, value in model.module.state_dict().items()},
    }
with open(f"{folder}/{rank}.json", "w") as file:
    json.dump(result, file)
"""

# what is drawn, dropout and masks, differs between processes
WIDTHS = {"dropout_rate": 0.0, "mask_rate": 0.0, "n_hidden": 32, "n_latent": 16}
TRAIN = {
    "max_epochs": 4,
    "seed": 0,
    "batch_size": 128,
    "lr": 5e-3,
    "plan_kwargs": {"n_warmup_steps": 0},
    "accelerator": "cpu",
    "enable_progress_bar": False,
    "early_stopping": True,
}
LOSSES = ("train_loss", "critic_loss", "validation_loss")


def run(tmp_path, killed=False):
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    outside = ("LOCAL_RANK", "NODE_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
    environment = {key: value for key, value in os.environ.items() if key not in outside}
    done = subprocess.run(
        [
            sys.executable,
            "-W",
            "ignore",
            str(script),
            json.dumps({"model": WIDTHS, **TRAIN}),
            str(killed),
            str(tmp_path),
        ],
        env={**environment, "OMP_NUM_THREADS": "1"},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    return done, [json.loads(path.read_text()) for path in sorted(tmp_path.glob("*.json"))]


def test_two_processes_learn_as_one(tmp_path):
    done, results = run(tmp_path)
    assert done.returncode == 0, done.stderr
    # neither logs nor checkpoints are left behind
    assert sorted(path.name for path in tmp_path.iterdir()) == ["0.json", "1.json", "script.py"]
    # gradients that were not exchanged, or statistics of one's own cells, would set the two apart
    for key, value in results[0]["2"]["state"].items():
        assert results[1]["2"]["state"][key] == pytest.approx(value, rel=1e-5, abs=1e-5), key
    np.testing.assert_allclose(results[0]["2"]["predicted"], results[1]["2"]["predicted"], atol=1e-5)

    adata = mp.datasets.screen("small")[::3].copy()
    mp.model.MTAeAdv.setup_anndata(adata, context_key="context")
    alone = mp.model.MTAeAdv(adata, **WIDTHS)
    alone.train(devices=1, **TRAIN)
    predicted = alone.predict(returns="mean").X
    for key in LOSSES:
        theirs = alone.history[key][key].to_numpy()
        np.testing.assert_allclose(results[0]["1"]["history"][key], theirs, rtol=1e-5)
        ours = np.array(results[0]["2"]["history"][key])
        np.testing.assert_allclose(ours, theirs, rtol=0.05)
        if key != "critic_loss":  # which hardly moves
            assert np.abs(ours - theirs).max() < 0.1 * np.ptp(theirs), key
    assert np.ptp(alone.history["train_loss"]) > 0.1 * alone.history["train_loss"].iloc[0, 0]
    assert np.corrcoef(np.ravel(results[0]["2"]["predicted"]), np.ravel(predicted))[0, 1] > 0.99


def test_a_killed_process_ends_the_other_with_a_clear_error(tmp_path):
    done, results = run(tmp_path, killed=True)
    assert done.returncode != 0
    assert results == []
    # the process that is left finds out by itself, or is ended by the one that watches both
    assert any(
        text in done.stderr
        for text in ("train again, or on one device", "Child process with PID", "terminated with code")
    ), done.stderr
