"""What the default schedule of ScButterfly rests on: scores on a held-out TRAINING context of Kang file 1.

The perturbed cells of a test type are removed altogether, those of another type are held out in their place and scored
(the pairs of time_to_quality.py). Test types are never scored.

Run: python benchmarks/choose_scbutterfly.py   (about 25 minutes of one core)
Writes benchmarks/results/choose_scbutterfly.csv after each training; rows that are there are not made again.
"""

from __future__ import annotations

import sys
import time

import pandas as pd
import torch
from _kang import RESULTS, select
from time_to_quality import cells_of

import multipert as mp

DATA = "kang18_scgen_valid"
HELD = ("CD8T", "Dendritic")
# name: arguments of the model, updates of the last pass
VARIANTS: dict[str, tuple[dict, int]] = {
    "default": ({}, 600),
    "half of the updates": ({}, 300),
    "decoders start at 0 and 1": ({"start_at_means": False}, 600),
    "without discriminators": ({"adversary_weight": 0.0}, 600),
    "twice the updates": ({}, 1200),
}
COLUMNS = {
    "r2_pearson_bootstrap": "R2",
    "pearson_delta": "delta",
    "edistance_ratio_joint": "E",
    "edistance_ratio": "E train",
    "mean_distance_ratio_joint": "Eu",
}


def score(held: str, variant: str) -> list[dict]:
    """Rows of one training: cells as decoded, and control cells plus the decoded change."""
    adata = cells_of(DATA, held)
    arguments, n_updates = VARIANTS[variant]
    whole = mp.model.ScButterfly
    preset = {**whole.presets["default"], "n_updates": n_updates}
    cls = type(whole.__name__, (whole,), {"presets": {**whole.presets, "varied": preset}})
    cls.setup_anndata(adata, context_key="cell_type")
    model = cls(adata, preset="varied", **arguments)
    start = time.process_time()
    model.train(split_key="split", seed=0, enable_progress_bar=False, accelerator="cpu")
    seconds = time.process_time() - start
    observed, control = select(adata, held, "IFNB"), select(adata, held, "control")
    rows = []
    for realise in ("plain", "residual"):
        table = mp.metrics.evaluate(
            model.predict(perturbation="IFNB", context=held, realise=realise),
            observed,
            control,
            by=("perturbation", "cell_type"),
            metrics=list(COLUMNS),
            training=adata[(adata.obs["split"] == "train").to_numpy()],
            references=[],
        )
        scores = table.set_index("metric")["value"].rename(COLUMNS).to_dict()
        rows.append({"held": held, "variant": variant, "realise": realise, "s": round(seconds), **scores})
    return rows


def main() -> int:
    torch.set_num_threads(1)
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / "choose_scbutterfly.csv"
    rows = pd.read_csv(path).to_dict("records") if path.exists() else []
    for held in HELD:
        for variant in VARIANTS:
            if any((row["held"], row["variant"]) == (held, variant) for row in rows):
                continue
            rows += score(held, variant)
            pd.DataFrame(rows).round(3).to_csv(path, index=False)
            print(pd.DataFrame(rows[-2:]).round(3).to_string(index=False), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
