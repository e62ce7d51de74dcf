"""Pairs of perturbations that do more, or less, than the sum of their parts: are planted interactions recovered?

Run: python benchmarks/synergy.py [--models CPA GEARS] [--seeds 3] [--parts measured]
"measured": a simulated screen of one context, all of whose pairs train; the question is what a model makes of noisy cells. A
screen of its own for each seed.
"transfer": on the frozen screen of combinations half of the pairs of each kind (additive, synergistic, masking) are test
cells in the second context and train in the first. A draw of the pairs for each seed.
Scored against true means: RMSE of the mean, and the correlation over genes of the predicted and the true interaction, which
is what a pair does beyond the sum of the true changes of its parts.
Writes benchmarks/results/synergy_<part>.csv: means over pairs of a kind and seeds.
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
from multipert.datasets._screens import SCREENS

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
# reads what is known of perturbations; the others learn them from their cells
WITH_TABLE = ("KNN",)
HELD_OUT = "context_2"
QUIET = {"accelerator": "cpu", "enable_progress_bar": False, "enable_model_summary": False, "logger": False}


def pairs_of(adata: ad.AnnData) -> pd.Series:
    """Kind of each pair, by its label, sorted."""
    stored = adata.uns["simulation"]
    names = ["+".join(sorted(map(str, stored["perturbations"][pair]))) for pair in stored["pairs"]]
    return pd.Series(np.asarray(stored["pair_kind"]).astype(str), index=names).sort_index()


def measured(seed: int) -> tuple[ad.AnnData, pd.Series, str]:
    """A screen of one context whose pairs all train; the kinds of the pairs, and the context."""
    adata = mp.datasets.simulate(**{**SCREENS["combinations"], "n_contexts": 1, "seed": 200 + seed})
    adata.obs["split"] = "train"
    return adata, pairs_of(adata), str(adata.obs["context"].iloc[0])


def with_split(adata: ad.AnnData, seed: int) -> pd.Series:
    """Mark half of the pairs of each kind in the held-out context as test cells; the kinds of these pairs."""
    kinds = pairs_of(adata)
    held = kinds.groupby(kinds).sample(frac=0.5, random_state=seed).sort_index()
    is_test = adata.obs["perturbation"].isin(held.index) & (adata.obs["context"] == HELD_OUT)
    adata.obs["split"] = np.where(is_test, "test", "train")
    return held


def transfer(seed: int) -> tuple[ad.AnnData, pd.Series, str]:
    """The frozen screen with its split; the kinds of the held-out pairs, and the context."""
    adata = mp.datasets.screen("combinations")
    return adata, with_split(adata, seed), HELD_OUT


PARTS = {"measured": measured, "transfer": transfer}


def true_change(control: ad.AnnData, label: str) -> np.ndarray:
    """True mean change of the held-out context's control cells."""
    with_label, without = (
        np.asarray(mp.datasets.true_mean(control, name, space="log1p")).mean(axis=0) for name in (label, "control")
    )
    return with_label - without


def predicted_means(
    name: str, adata: ad.AnnData, held: pd.Series, context: str, seed: int
) -> tuple[dict[str, np.ndarray], float]:
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
        context=context,
        returns="mean",
        realise="residual" if model.tags.output == "cell" else "plain",
    )
    return dict(zip(found.obs["perturbation"].astype(str), np.asarray(found.X), strict=True)), seconds


def score(part: str, name: str, seed: int) -> list[dict[str, object]]:
    """Scores of every pair that is asked for."""
    adata, held, context = PARTS[part](seed)
    control = adata[((adata.obs["context"] == context) & (adata.obs["perturbation"] == "control")).to_numpy()].copy()
    means, seconds = predicted_means(name, adata, held, context, seed)
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
        f"{part}, {name}, seed {seed}: {pd.DataFrame(rows)[['rmse', 'interaction']].mean().round(3).to_dict()}",
        flush=True,
    )
    return rows


def main() -> int:
    """Train each model on each seed and score the held-out pairs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=MODELS)
    parser.add_argument("--parts", nargs="+", default=list(PARTS), choices=list(PARTS))
    parser.add_argument("--seeds", type=int, default=3)
    args = parser.parse_args()
    torch.set_num_threads(1)
    for part in args.parts:
        rows = [row for seed in range(args.seeds) for name in args.models for row in score(part, name, seed)]
        table = pd.DataFrame(rows)
        values = table.pivot_table(index="model", columns="kind", values=["rmse", "interaction"], sort=False)
        values.columns = [f"{metric}, {kind}" for metric, kind in values.columns]
        values["s"] = table.groupby("model")["s"].mean()
        values.round(4).to_csv(RESULTS / f"synergy_{part}.csv")
        print(values.round(3).to_string())
    return 0


if __name__ == "__main__":
    sys.exit(main())
