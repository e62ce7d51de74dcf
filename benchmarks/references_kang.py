"""References on real cells for each held-out cell type of Kang et al. 2018.

Run from anywhere: `python benchmarks/references_kang.py`. Reads `../shared/data/kang18_scgen_valid.h5ad` beside the
project, writes `benchmarks/results/references_kang.csv`, prints the mean over the seven cell types and the time taken.
"""

import time
from pathlib import Path

import anndata as ad
import pandas as pd

from multipert.metrics import evaluate

ROOT = Path(__file__).parents[1]
DATA = ROOT.parent / "shared" / "data" / "kang18_scgen_valid.h5ad"
RESULT = ROOT / "benchmarks" / "results" / "references_kang.csv"
BY = ("perturbation", "cell_type")


def references(adata: ad.AnnData, context: str) -> pd.DataFrame:
    """Both presets for one held-out context."""
    is_control = (adata.obs["perturbation"] == "control").to_numpy()
    is_held_out = (adata.obs["cell_type"] == context).to_numpy()
    control, observed = adata[is_control & is_held_out], adata[~is_control & is_held_out]
    training = adata[is_control | ~is_held_out]
    frames = []
    for preset in ("thesis-joint", "default"):
        start = time.perf_counter()
        frame = evaluate(None, observed, control, BY, preset=preset, training=training)
        frames.append(frame.assign(preset=preset))
        print(f"{context:12s} {preset:12s} {time.perf_counter() - start:5.2f} s", flush=True)
    return pd.concat(frames, ignore_index=True)


def main() -> None:
    adata = ad.read_h5ad(DATA)
    contexts = sorted(adata.obs["cell_type"].astype(str).unique())
    frame = pd.concat([references(adata, context) for context in contexts], ignore_index=True)
    RESULT.parent.mkdir(exist_ok=True)
    frame.to_csv(RESULT, index=False, float_format="%.6g")
    mean = frame.groupby(["preset", "metric", "predictor"], sort=False)["value"].mean().unstack("predictor")
    print(mean.round(3).to_string())


if __name__ == "__main__":
    main()
