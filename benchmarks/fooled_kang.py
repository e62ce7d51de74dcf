"""What each metric makes of predictions that are wrong by construction, on Kang et al. 2018.

Run from anywhere: `python benchmarks/fooled_kang.py`. Reads `../shared/data/kang18_scgen_valid.h5ad` beside the
project, writes `benchmarks/results/fooled_kang.csv` and prints the mean over the seven held-out cell types.
"""

import anndata as ad
import numpy as np
import pandas as pd
from references_kang import BY, DATA, RESULT

from multipert.metrics import PRESETS, evaluate

METRICS = list(dict.fromkeys([*PRESETS["default"], *PRESETS["thesis-joint"]]))


def wrong_predictions(observed: np.ndarray, training_mean: np.ndarray) -> dict[str, np.ndarray]:
    """Cells that no user would want, most of them made from the truth itself."""
    rng = np.random.default_rng(0)
    mean = observed.mean(axis=0)
    return {
        "mean of perturbed training cells, repeated": np.tile(training_mean, (len(observed), 1)),
        "true mean, repeated": np.tile(mean, (len(observed), 1)),
        "true cells, spread tripled": mean + 3 * (observed - mean),
        "true cells, log1p again": np.log1p(observed),
        "true cells, each gene shuffled over cells": rng.permuted(observed, axis=0),
        "true cells, genes permuted": observed[:, rng.permutation(observed.shape[1])],
    }


def main() -> None:
    adata = ad.read_h5ad(DATA)
    is_control = (adata.obs["perturbation"] == "control").to_numpy()
    frames = []
    for context in sorted(adata.obs["cell_type"].astype(str).unique()):
        held_out = (adata.obs["cell_type"] == context).to_numpy()
        observed, control = adata[~is_control & held_out], adata[is_control & held_out]
        training = adata[is_control | ~held_out]
        training_mean = np.asarray(adata.X[~is_control & ~held_out].mean(axis=0)).ravel()
        for name, cells in wrong_predictions(observed.X.toarray(), training_mean).items():
            predicted = ad.AnnData(cells, observed.obs, observed.var)
            frame = evaluate(predicted, observed, control, BY, metrics=METRICS, training=training)
            frame.loc[frame["predictor"] == "prediction", "predictor"] = name
            frames.append(frame)
        print(context, flush=True)
    frame = pd.concat(frames).drop_duplicates([*BY, "predictor", "metric"])
    frame.to_csv(RESULT.with_name("fooled_kang.csv"), index=False, float_format="%.6g")
    mean = frame.groupby(["predictor", "metric"], sort=False)["value"].mean().unstack("metric")
    with pd.option_context("display.width", 250):
        print(mean.round(3).to_string())


if __name__ == "__main__":
    main()
