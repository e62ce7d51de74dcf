"""How many updates MTAe needs, chosen on held-out TRAINING contexts only.

For each data set and each of several test contexts, the perturbed cells of the test context are removed altogether and
another context is held out in their place; its score along the training decides. Test contexts are never scored.

Run: python benchmarks/choose_mtae_default.py   (about 10 minutes on two cores)
Writes benchmarks/results/choose_mtae_default.csv and its means.
"""

from __future__ import annotations

import copy
import sys

import pandas as pd
from _kang import RESULTS, read
from lightning.pytorch.callbacks import Callback

import multipert as mp

POINTS = (250, 500, 1000, 1500, 2000, 3000)
RATES = (3e-4, 1e-3)
# (test context, whose perturbed cells are removed; training context that is held out and scored)
PAIRS = {
    "kang18_scgen_valid": [("B", "CD8T"), ("FCGR3A+Mono", "Dendritic")],
    "kang18_ifnb2800": [("NK", "CD14+Mono")],
    "simulated (small)": [("context_1", "context_2"), ("context_3", "context_4")],
}


class Snapshots(Callback):
    """Copies of the weights at some numbers of updates."""

    def __init__(self) -> None:
        self.states: dict[int, dict] = {}
        self.n_updates = 0

    def on_train_batch_end(self, trainer, plan, outputs, batch, batch_idx) -> None:
        self.n_updates += 1
        if self.n_updates in POINTS:
            self.states[self.n_updates] = copy.deepcopy(plan.module.state_dict())


def score_along(adata, test: str, held: str, context_key: str, lr: float) -> list[dict]:
    perturbed = adata.obs["perturbation"] != "control"
    adata = adata[~(perturbed & (adata.obs[context_key] == test)).to_numpy()].copy()
    label = adata.obs["perturbation"][perturbed].value_counts().index[0]
    adata.obs["split"] = mp.splits.context_transfer(adata, held, context_key=context_key)
    mp.model.MTAe.setup_anndata(adata, context_key=context_key)
    model = mp.model.MTAe(adata)
    snapshots = Snapshots()
    n_batches = int((adata.obs["split"] == "train").sum()) // 64
    model.train(
        max_epochs=-(-POINTS[-1] // n_batches),
        split_key="split",
        lr=lr,
        seed=0,
        callbacks=[snapshots],
        enable_progress_bar=False,
        accelerator="cpu",
    )
    here = adata.obs[context_key] == held
    control = adata[(here & (adata.obs["perturbation"] == "control")).to_numpy()]
    observed = adata[(here & (adata.obs["perturbation"] == label)).to_numpy()]
    fitted = {name: model.module.get_buffer(name) for name in model.module.fitted}
    rows = []
    for n_updates, state in snapshots.states.items():
        model.module.load_state_dict({**state, **fitted})
        for realise in ("plain", "residual"):
            predicted = model.predict(perturbation=label, context=held, realise=realise)
            table = mp.metrics.evaluate(
                predicted, observed, control, by=("perturbation", context_key), preset="thesis-joint"
            )
            scores = table[table["predictor"] == "prediction"].set_index("metric")["value"]
            rows.append({"test": test, "held": held, "lr": lr, "n_updates": n_updates, "realise": realise, **scores})
    return rows


def main() -> int:
    rows = []
    for name, pairs in PAIRS.items():
        if name.startswith("kang"):
            adata, key = read(name, 5000 if name == "kang18_ifnb2800" else None), "cell_type"
        else:
            adata, key = mp.datasets.screen("small"), "context"
        for test, held in pairs:
            for lr in RATES:
                rows += [{"data": name, **row} for row in score_along(adata, test, held, key, lr)]
                print(pd.DataFrame(rows[-2 * len(POINTS) :]).round(3).to_string(), flush=True)
    table = pd.DataFrame(rows)
    RESULTS.mkdir(exist_ok=True)
    table.to_csv(RESULTS / "choose_mtae_default.csv", index=False, float_format="%.4f")
    columns = ["pearson_delta", "r2_pearson_bootstrap", "edistance_ratio_joint", "de_overlap_absolute"]
    means = table.groupby(["data", "lr", "realise", "n_updates"])[columns].mean().round(3)
    means.to_csv(RESULTS / "choose_mtae_default_mean.csv")
    print(means.to_string())
    return 0


if __name__ == "__main__":
    sys.exit(main())
