"""What each part of MTAeED does, on held-out TRAINING contexts only.

For each (test, validation) pair the perturbed cells of the test type are removed altogether, those of another type are held
out in their place, and the prediction for that one is scored. Test types are never scored.

Run: python benchmarks/choose_mtaeed.py   (about 8 minutes on two cores)
Writes benchmarks/results/choose_mtaeed.csv and its means over the eight pairs.
"""

from __future__ import annotations

import sys
import time

import pandas as pd
from _kang import RESULTS, read, select

import multipert as mp

PAIRS = {
    "kang18_scgen_valid": [("B", "CD8T"), ("NK", "Dendritic"), ("CD4T", "CD8T"), ("FCGR3A+Mono", "Dendritic")],
    "kang18_ifnb2800": [("B", "CD14+Mono"), ("CD4T", "NK"), ("Dendritic", "CD14+Mono"), ("CD8T", "NK")],
}
# name: class, its arguments, arguments of train
VARIANTS: dict[str, tuple[str, dict, dict]] = {
    "ContextShift (ridge)": ("ContextShift", {"kind": "ridge"}, {}),
    "ContextShift (similarity)": ("ContextShift", {"kind": "similarity"}, {}),
    "MTAeED": ("MTAeED", {}, {}),
    "without network": ("MTAeED", {"network_share": 0.0}, {"max_epochs": 1}),
    "network alone": ("MTAeED", {"network_share": 1.0}, {}),
    "without energy distance": ("MTAeED", {"energy_weight": 0.0}, {}),
    "quarter of the updates": ("MTAeED", {}, {"max_epochs": 50}),
}
COLUMNS = {
    "r2_pearson_bootstrap": "R2",
    "mean_distance_ratio_joint": "Eu",
    "edistance_ratio_joint": "E",
    "edistance_ratio": "E train",
    "pearson_delta": "delta",
    "de_overlap_up": "DEG up",
    "de_overlap_absolute": "DEG abs",
}


def score(adata, held: str, variant: str) -> list[dict]:
    """Rows of one variant: moved cells, and counts."""
    name, arguments, training = VARIANTS[variant]
    cls = getattr(mp.model, name)
    cls.setup_anndata(adata, context_key="cell_type")
    model = cls(adata, **arguments)
    start = time.process_time()
    model.train(split_key="split", seed=0, enable_progress_bar=False, accelerator="cpu", **training)
    seconds = time.process_time() - start
    observed, control = select(adata, held, "IFNB"), select(adata, held, "control")
    rows = []
    for realise in ("residual", "counts"):
        predicted = model.predict(perturbation="IFNB", context=held, realise=realise)
        table = mp.metrics.evaluate(
            predicted,
            observed,
            control,
            by=("perturbation", "cell_type"),
            metrics=list(COLUMNS),
            training=adata[(adata.obs["split"] == "train").to_numpy()],
            references=[],
        )
        scores = table.set_index("metric")["value"].rename(COLUMNS).to_dict()
        rows.append({"variant": variant, "realise": realise, "s": seconds, **scores})
    return rows


def main() -> int:
    rows = []
    for file, pairs in PAIRS.items():
        whole = read(file, 5000 if file == "kang18_ifnb2800" else None)
        for test, held in pairs:
            removed = (whole.obs["perturbation"] != "control") & (whole.obs["cell_type"] == test)
            adata = whole[~removed.to_numpy()].copy()
            adata.obs["split"] = mp.splits.context_transfer(adata, held, context_key="cell_type")
            for variant in VARIANTS:
                scored = score(adata, held, variant)
                rows += [{"file": file, "test": test, "validation": held, **row} for row in scored]
            print(pd.DataFrame(rows[-2 * len(VARIANTS) :]).round(3).to_string(index=False), flush=True)
    table = pd.DataFrame(rows)
    RESULTS.mkdir(exist_ok=True)
    table.to_csv(RESULTS / "choose_mtaeed.csv", index=False, float_format="%.4f")
    means = table.groupby(["variant", "realise"], sort=False)[[*COLUMNS.values(), "s"]].mean().round(3)
    means.to_csv(RESULTS / "choose_mtaeed_mean.csv")
    print(f"\nMean over the {len(table) // 2 // len(VARIANTS)} pairs\n{means.to_string()}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
