"""Pairs of perturbations that do more, or less, than the sum of their parts, in a context where they were never measured.

Run: python benchmarks/synergy.py [--models CPA GEARS] [--seeds 2]
On the frozen screen of combinations half of the pairs of each kind (additive, synergistic, masking) are test cells in the
second context and train in the first. Scored against true means: RMSE of the mean, and of the interaction, which is what a
pair does beyond the sum of its parts, its correlation and the slope of the predicted on the true one (0 for whom everything
adds up). Writes benchmarks/results/synergy.csv: means over pairs of a kind and seeds.
"""

from __future__ import annotations

import argparse
import sys
import time
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import torch
from _kang import RESULTS

import multipert as mp

if TYPE_CHECKING:
    import anndata as ad

MODELS = (
    "Additive",
    "TwoFactor",
    "KNN",
    "LinearAdditive",
    "LatentAdditive",
    "DecoderOnly",
    "CPA",
    "SAMSVAE",
    "GEARS",
    "MTAe",
)
# these read what is known of perturbations; the others learn them from their cells
WITH_TABLE = ("KNN", "GEARS")
HELD_OUT = "context_2"
QUIET = {"accelerator": "cpu", "enable_progress_bar": False, "enable_model_summary": False, "logger": False}


def pairs_of(adata: ad.AnnData) -> pd.Series:
    """Kind of each pair, by its label, sorted."""
    stored = adata.uns["simulation"]
    names = ["+".join(sorted(map(str, stored["perturbations"][pair]))) for pair in stored["pairs"]]
    return pd.Series(np.asarray(stored["pair_kind"]).astype(str), index=names).sort_index()


def with_split(adata: ad.AnnData, seed: int) -> pd.Series:
    """Mark half of the pairs of each kind in the held-out context as test cells; the kinds of these pairs."""
    kinds = pairs_of(adata)
    held = kinds.groupby(kinds).sample(frac=0.5, random_state=seed).sort_index()
    is_test = adata.obs["perturbation"].isin(held.index) & (adata.obs["context"] == HELD_OUT)
    adata.obs["split"] = np.where(is_test, "test", "train")
    return held


def true_change(control: ad.AnnData, label: str) -> np.ndarray:
    """True mean change of the held-out context's control cells."""
    with_label, without = (
        np.asarray(mp.datasets.true_mean(control, name, space="log1p")).mean(axis=0) for name in (label, "control")
    )
    return with_label - without


def predicted_means(name: str, adata: ad.AnnData, held: pd.Series, seed: int) -> tuple[dict[str, np.ndarray], float]:
    """Predicted mean of each pair, and the processor seconds of the training."""
    cls = getattr(mp.model, name)
    table = "perturbation_embedding" if name in WITH_TABLE else None
    cls.setup_anndata(adata, context_key="context", perturbation_embedding_key=table)
    model = cls(adata)
    start = time.process_time()
    model.train(split_key="split", seed=seed, **QUIET)
    seconds = time.process_time() - start
    found = model.predict(
        perturbation=held.index.tolist(),
        context=HELD_OUT,
        returns="mean",
        realise="residual" if model.tags.output == "cell" else "plain",
    )
    return dict(zip(found.obs["perturbation"].astype(str), np.asarray(found.X), strict=True)), seconds


def score(name: str, seed: int) -> list[dict[str, object]]:
    """Scores of every held-out pair."""
    adata = mp.datasets.screen("combinations")
    held = with_split(adata, seed)
    control = adata[((adata.obs["context"] == HELD_OUT) & (adata.obs["perturbation"] == "control")).to_numpy()].copy()
    means, seconds = predicted_means(name, adata, held, seed)
    base = np.asarray(control.X.mean(axis=0)).ravel()
    rows = []
    for label, kind in held.items():
        truth, parts = true_change(control, label), sum(true_change(control, part) for part in label.split("+"))
        change = means[label] - base
        interaction, found = truth - parts, change - parts
        rows.append(
            {
                "model": name,
                "kind": kind,
                "seed": seed,
                "rmse": float(np.sqrt(np.square(change - truth).mean())),
                "pearson_delta": float(np.corrcoef(change, truth)[0, 1]),
                "interaction": float(np.corrcoef(found, interaction)[0, 1]) if interaction.any() else np.nan,
                "s": seconds,
            }
        )
    print(
        f"{name}, seed {seed}: {pd.DataFrame(rows)[['rmse', 'pearson_delta', 'interaction']].mean().round(3).to_dict()}",
        flush=True,
    )
    return rows


def main() -> int:
    """Train each model on each seed and score the held-out pairs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=MODELS)
    parser.add_argument("--seeds", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(1)
    table = pd.DataFrame([row for seed in range(args.seeds) for name in args.models for row in score(name, seed)])
    values = table.pivot_table(
        index="model", columns="kind", values=["rmse", "pearson_delta", "interaction"], sort=False
    )
    values.columns = [f"{metric}, {kind}" for metric, kind in values.columns]
    values["s"] = table.groupby("model")["s"].mean()
    values.round(4).to_csv(RESULTS / "synergy.csv")
    print(values.round(3).to_string())
    return 0


if __name__ == "__main__":
    sys.exit(main())
