"""How shift models turn their shift into rates of counts, compared on held-out TRAINING contexts only.

For each of the seven types as test context, its perturbed cells are removed altogether, and each of the other six is held
out and scored in turn. "cell" takes the rates from the shifted and the unshifted cell, as the package does; "additive" adds
the weighted change of mean normalised counts to the context's mean, the same for every cell.

Run: python benchmarks/choose_counts_rates.py   (about a minute)
Writes benchmarks/results/choose_counts_rates.csv: means over the six held-out contexts for each test context.
"""

from __future__ import annotations

import sys

import numpy as np
import pandas as pd
import torch
from _kang import RESULTS, TYPES, read, select

import multipert as mp
from multipert.model._contextshift import weigh

METRICS = ["pearson_delta", "edistance_ratio_joint", "de_overlap_absolute"]


def mean_counts(cells) -> torch.Tensor:
    return torch.from_numpy(np.expm1(cells.X.toarray().astype(np.float64)).mean(axis=0))


def main() -> int:
    adata = read("kang18_scgen_valid")
    groups = {(held, label): select(adata, held, label) for held in TYPES for label in ("control", "IFNB")}
    linear = {key: mean_counts(cells) for key, cells in groups.items()}
    logs = {
        held: torch.from_numpy(groups[held, "control"].X.toarray().astype(np.float64).mean(axis=0)) for held in TYPES
    }
    rows = []
    for test in TYPES:
        kept = adata[~((adata.obs["cell_type"] == test) & (adata.obs["perturbation"] == "IFNB")).to_numpy()].copy()
        for held in TYPES:
            if held == test:
                continue
            kept.obs["split"] = mp.splits.context_transfer(kept, held, context_key="cell_type")
            mp.model.ContextShift.setup_anndata(kept, context_key="cell_type")
            model = mp.model.ContextShift(kept)
            model.train(split_key="split")
            training = [name for name in TYPES if name not in (test, held)]
            shift = weigh(
                "similarity",
                float(model.module.chosen_strength),
                torch.stack([logs[name] for name in training]),
                logs[held][None],
                torch.stack([linear[name, "IFNB"] - linear[name, "control"] for name in training]),
            )[0]
            control_rate = linear[held, "control"]

            def additive(tensors, decoded, decoded_control, a=control_rate, b=control_rate + shift):
                return tuple(rate.clamp(min=0).expand_as(decoded) for rate in (a, b))

            for name in ("cell", "additive"):
                if name == "additive":
                    model.module.rates = additive
                predicted = model.predict(perturbation="IFNB", context=held, realise="counts")
                table = mp.metrics.evaluate(
                    predicted,
                    groups[held, "IFNB"],
                    groups[held, "control"],
                    by=("perturbation", "cell_type"),
                    metrics=METRICS,
                )
                scores = table[table["predictor"] == "prediction"].set_index("metric")["value"]
                rows.append({"test": test, "held": held, "rates": name, **scores})
    table = pd.DataFrame(rows).groupby(["test", "rates"], sort=False)[METRICS].mean().round(3)
    RESULTS.mkdir(exist_ok=True)
    table.to_csv(RESULTS / "choose_counts_rates.csv")
    print(table.to_string())
    return 0


if __name__ == "__main__":
    sys.exit(main())
