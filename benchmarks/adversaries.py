"""What each metric makes of predictions that know nothing worth knowing.

Run from anywhere: `python benchmarks/adversaries.py`. Every second perturbation of a simulated screen is held out in each of
its contexts in turn, and, where `../shared/data/kang18_scgen_valid.h5ad` stands beside the project, each of the seven cell
types of Kang et al. 2018. Writes `benchmarks/results/adversaries_*.csv` and prints the calibrated means.
"""

import warnings
from pathlib import Path

import anndata as ad
import pandas as pd

import multipert as mp
from multipert.metrics import PRESETS, adversaries, evaluate, leaderboard, summarise

RESULTS = Path(__file__).parent / "results"
KANG = Path(__file__).parents[2] / "shared" / "data" / "kang18_scgen_valid.h5ad"
METRICS = list(PRESETS["default"])
REFERENCES = ["no_change", "mean_shift", "similarity_shift", "context_mean", "ceiling"]


def score(adata: ad.AnnData, perturbations: list[str]) -> pd.DataFrame:
    """Scores of every adversary, each context held out in turn."""
    labels, contexts = (adata.obs[key].astype(str) for key in ("perturbation", "context"))
    frames = []
    for context in sorted(contexts.unique()):
        held_out = ((contexts == context) & labels.isin(perturbations)).to_numpy()
        control = adata[((contexts == context) & (labels == "control")).to_numpy()]
        observed, training = adata[held_out], adata[~held_out]
        for name, predicted in adversaries(observed, control, training).items():
            frame = evaluate(predicted, observed, control, metrics=METRICS, training=training, references=REFERENCES)
            frames.append(frame.replace({"predictor": {"prediction": name}}))
        print(context, flush=True)
    return pd.concat(frames).drop_duplicates(["perturbation", "context", "predictor", "metric"])


def report(name: str, frame: pd.DataFrame) -> None:
    summarise(frame).to_csv(RESULTS / f"adversaries_{name}.csv", index=False, float_format="%.6g")
    with pd.option_context("display.width", 250, "display.max_columns", 30):
        print(f"\n{name}: calibrated means\n{leaderboard(frame).round(2).T.to_string()}\n")


def main() -> None:
    warnings.simplefilter("ignore", UserWarning)
    screen = mp.datasets.simulate(n_cells=9900, n_vars=500, n_contexts=3, n_perturbations=10, seed=1)
    report("simulated", score(screen, sorted(set(screen.obs["perturbation"]) - {"control"})[::2]))
    if KANG.exists():
        kang = ad.read_h5ad(KANG)
        kang.obs["context"] = kang.obs["cell_type"].astype(str)
        report("kang", score(kang, ["IFNB"]))


if __name__ == "__main__":
    main()
