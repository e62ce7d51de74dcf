"""How many updates the autoencoder of ScGen and ScVIDR needs, chosen on held-out TRAINING contexts only.

The perturbed cells of a test context are removed altogether and another context is held out in its place; its score along
the published schedule (batches of 32, lr 1e-3, eps 0.01) decides, since the default is a beginning of it. Test contexts are
never scored. ScVIDR is scored with the weights of ScGen, which are trained alike, and its principal components once.

Run: python benchmarks/choose_scgen_default.py   (about 10 minutes of one core)
Writes benchmarks/results/choose_scgen_default.csv and its means.
"""

from __future__ import annotations

import copy
import sys
import time
from typing import TYPE_CHECKING

import pandas as pd
import torch
from _kang import RESULTS, read
from lightning.pytorch.callbacks import Callback

import multipert as mp
from multipert.data._loaders import CellLoader

if TYPE_CHECKING:
    from anndata import AnnData

FILE, KEY = "kang18_scgen_valid", "cell_type"
# training context that is held out and scored: test context whose perturbed cells are removed
PAIRS = {"CD8T": "B", "Dendritic": "FCGR3A+Mono"}
POINTS = (400, 800, 1600, 2800, 5600)
VARIANTS = {
    "ScGen": ("ScGen", {}),
    "ScVIDR": ("ScVIDR", {}),
    "ScVIDR, ridge_alpha=1": ("ScVIDR", {"ridge_alpha": 1.0}),
}
COMPONENTS = ("ScVIDR, latent='pca'", ("ScVIDR", {"latent": "pca"}))
METRICS = ["r2_pearson_bootstrap", "pearson_delta", "edistance_ratio_joint", "edistance_ratio"]


class Snapshots(Callback):
    """Copies of the weights after some numbers of updates, and the processor seconds until then."""

    def __init__(self) -> None:
        self.states: dict[int, dict[str, torch.Tensor]] = {}
        self.seconds: dict[int, float] = {}
        self._n_updates, self._start = 0, time.process_time()

    def on_train_batch_end(self, trainer, plan, outputs, batch, batch_idx) -> None:
        self._n_updates += 1
        if self._n_updates in POINTS:
            self.seconds[self._n_updates] = time.process_time() - self._start
            state = plan.module.state_dict()
            self.states[self._n_updates] = copy.deepcopy(
                {name: value for name, value in state.items() if name not in plan.module.fitted}
            )


def cells(held: str) -> AnnData:
    """The file without the perturbed cells of the test context, and its split."""
    adata = read(FILE)
    removed = (adata.obs["perturbation"] != "control") & (adata.obs[KEY] == PAIRS[held])
    adata = adata[~removed.to_numpy()].copy()
    adata.obs["split"] = mp.splits.context_transfer(adata, held, context_key=KEY)
    return adata


def new_model(name: str, init: dict, adata: AnnData, **train) -> mp.model.PerturbationModel:
    """A model trained for so many epochs; with none its weights are as drawn."""
    cls = getattr(mp.model, name)
    cls.setup_anndata(adata, context_key=KEY)
    model = cls(adata, **init)
    model.train(
        split_key="split", seed=0, accelerator="cpu", enable_progress_bar=False, enable_model_summary=False, **train
    )
    return model


def scores(model: mp.model.PerturbationModel, adata: AnnData, held: str) -> list[dict]:
    """Metrics of the held-out context, both realisations."""
    here, is_control = adata.obs[KEY] == held, adata.obs["perturbation"] == "control"
    rows = []
    for realise in ("plain", "residual"):
        table = mp.metrics.evaluate(
            model.predict(perturbation="IFNB", context=held, realise=realise),
            adata[(here & ~is_control).to_numpy()],
            adata[(here & is_control).to_numpy()],
            by=("perturbation", KEY),
            metrics=METRICS,
            training=adata[(adata.obs["split"] == "train").to_numpy()],
            references=[],
        )
        found = table[table["predictor"] == "prediction"].set_index("metric")["value"]
        rows.append({"realise": realise, **found})
    return rows


def score_along(held: str) -> list[dict]:
    """Scores of every variant along one training."""
    adata, snapshots = cells(held), Snapshots()
    n_batches = int((adata.obs["split"] == "train").sum()) // 32
    trained = new_model(
        "ScGen", {"preset": "published"}, adata, max_epochs=-(-POINTS[-1] // n_batches), callbacks=[snapshots]
    )
    loader = CellLoader(trained._training_store(adata, 0), trained.train_indices, 512)
    rows = []
    for variant, (name, init) in VARIANTS.items():
        model = new_model(name, init, adata, max_epochs=0)
        for n_updates, state in snapshots.states.items():
            model.module.load_state_dict(state, strict=False)
            with torch.no_grad():
                model.module.eval().conclude(loader)
            common = {"held": held, "model": variant, "n_updates": n_updates, "seconds": snapshots.seconds[n_updates]}
            rows += [{**common, **row} for row in scores(model, adata, held)]
    variant, (name, init) = COMPONENTS
    start = time.process_time()
    model = new_model(name, init, adata)
    common = {"held": held, "model": variant, "n_updates": 0, "seconds": time.process_time() - start}
    return rows + [{**common, **row} for row in scores(model, adata, held)]


def main() -> int:
    torch.set_num_threads(1)
    rows = []
    for held in PAIRS:
        rows += score_along(held)
        print(pd.DataFrame(rows).round(3).to_string(), flush=True)
    table = pd.DataFrame(rows)
    RESULTS.mkdir(exist_ok=True)
    table.to_csv(RESULTS / "choose_scgen_default.csv", index=False, float_format="%.4f")
    short = {"r2_pearson_bootstrap": "R2", "pearson_delta": "delta", "edistance_ratio": "E train", "seconds": "s"}
    wide = table.rename(columns=short).pivot_table(
        index=["model", "n_updates", "realise"], columns="held", values=["R2", "delta", "E train", "s"], sort=False
    )
    wide.columns = [f"{name} {held}" for name, held in wide.columns]
    seconds = wide.pop("s Dendritic").combine(wide.pop("s CD8T"), max)
    wide = wide.round(3).assign(s=seconds.round(0).astype(int))
    wide.to_csv(RESULTS / "choose_scgen_default_short.csv")
    print(wide.to_string())
    return 0


if __name__ == "__main__":
    sys.exit(main())
