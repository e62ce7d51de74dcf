"""Training in two processes, started by a script as a user would."""

import json
import os
import subprocess
import sys

import numpy as np

import multipert as mp

SCRIPT = """
import json, os, signal, sys
import torch
import multipert as mp
from lightning.pytorch.callbacks import Callback

arguments, killed, path = json.loads(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
torch.set_num_threads(1)

class Kill(Callback):
    def on_train_epoch_end(self, trainer, plan):
        if trainer.global_rank == killed and trainer.current_epoch == 1:
            os.kill(os.getpid(), signal.SIGKILL)

adata = mp.datasets.screen("small")[::3].copy()
mp.model.MTAeAdv.setup_anndata(adata, context_key="context")
model = mp.model.MTAeAdv(adata, **arguments.pop("model"))
model.train(devices=2, **arguments, **({"callbacks": [Kill()]} if killed >= 0 else {}))
if os.environ.get("LOCAL_RANK", "0") == "0":
    history = {key: frame[key].tolist() for key, frame in model.history.items()}
    predicted = model.predict(returns="mean").X.tolist()
    with open(path, "w") as file:
        json.dump({"history": history, "predicted": predicted}, file)
"""

# what is drawn, dropout and masks, differs between processes
WIDTHS = {"dropout_rate": 0.0, "mask_rate": 0.0, "n_hidden": 32, "n_latent": 16}
TRAIN = {
    "max_epochs": 4,
    "batch_size": 128,
    "accelerator": "cpu",
    "enable_progress_bar": False,
    "early_stopping": True,
}


def run(tmp_path, killed=-1):
    script, result = tmp_path / "script.py", tmp_path / "result.json"
    script.write_text(SCRIPT)
    outside = ("LOCAL_RANK", "NODE_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
    environment = {key: value for key, value in os.environ.items() if key not in outside}
    done = subprocess.run(
        [sys.executable, "-W", "ignore", str(script), json.dumps({"model": WIDTHS, **TRAIN}), str(killed), str(result)],
        env={**environment, "OMP_NUM_THREADS": "1"},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    return done, json.loads(result.read_text()) if result.exists() else None


def test_two_processes_learn_as_one(tmp_path):
    done, shared = run(tmp_path)
    assert done.returncode == 0, done.stderr
    # neither logs nor checkpoints are left behind
    assert sorted(path.name for path in tmp_path.iterdir()) == ["result.json", "script.py"]

    adata = mp.datasets.screen("small")[::3].copy()
    mp.model.MTAeAdv.setup_anndata(adata, context_key="context")
    alone = mp.model.MTAeAdv(adata, **WIDTHS)
    alone.train(devices=1, **TRAIN)
    for key in ("train_loss", "critic_loss", "validation_loss"):
        ours, theirs = np.array(shared["history"][key]), alone.history[key][key].to_numpy()
        np.testing.assert_allclose(ours, theirs, rtol=0.01)
        assert np.abs(ours - theirs).max() < 0.1 * np.ptp(theirs), key
    predicted = alone.predict(returns="mean").X
    assert np.corrcoef(np.ravel(shared["predicted"]), np.ravel(predicted))[0, 1] > 0.999


def test_a_killed_process_ends_the_other_with_a_clear_error(tmp_path):
    done, result = run(tmp_path, killed=1)
    assert done.returncode != 0
    assert result is None
    assert "Training in 2 processes stopped at epoch 1" in done.stderr
    assert "train again, or on one device" in done.stderr
