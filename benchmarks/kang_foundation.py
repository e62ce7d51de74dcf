"""The first models on real cells: each of seven cell types held out, three realisations, beside the references.

Run: python benchmarks/kang_foundation.py [kang18_scgen_valid | kang18_ifnb2800]   (about 10 minutes on two cores each)
Writes benchmarks/results/kang_foundation_<file>.csv (every run) and prints the means over the seven types.
"""

from __future__ import annotations

import sys
import time

import pandas as pd
from _kang import RESULTS, TYPES, read, select

import multipert as mp

PRESET = "thesis-joint"
RUNS = [
    ("NoPerturb", {}, ("plain",)),
    ("TwoFactor", {}, ("plain", "counts")),
    ("ContextShift", {"kind": "similarity"}, ("plain", "counts")),
    ("ContextShift", {"kind": "ridge"}, ("plain", "counts")),
    ("ContextShift", {"kind": "gene_ridge"}, ("plain", "counts")),
    ("MTAe", {}, ("plain", "residual", "counts")),
]


def score(predicted, observed, control, training, predictors) -> dict[str, dict[str, float]]:
    table = mp.metrics.evaluate(
        predicted, observed, control, by=("perturbation", "cell_type"), preset=PRESET, training=training
    )
    return {name: table[table["predictor"] == name].set_index("metric")["value"].to_dict() for name in predictors}


def main(name: str) -> int:
    adata = read(name, 5000 if name == "kang18_ifnb2800" else None)
    rows = []
    for held in TYPES:
        adata.obs["split"] = mp.splits.context_transfer(adata, held, context_key="cell_type")
        observed, control = select(adata, held, "IFNB"), select(adata, held, "control")
        training = adata[(adata.obs["split"] == "train").to_numpy()]
        for model_name, arguments, realisations in RUNS:
            cls = getattr(mp.model, model_name)
            cls.setup_anndata(adata, context_key="cell_type")
            model = cls(adata, **arguments)
            start = time.perf_counter()
            model.train(split_key="split", seed=0, enable_progress_bar=False, accelerator="cpu")
            seconds = time.perf_counter() - start
            label = f"{model_name} ({arguments['kind']})" if arguments else model_name
            for realise in realisations:
                predicted = model.predict(perturbation="IFNB", context=held, realise=realise)
                first = model_name == "NoPerturb"
                wanted = ("prediction", "ceiling") if first else ("prediction",)
                for predictor, scores in score(predicted, observed, control, training, wanted).items():
                    row = {"held_out": held, "model": label, "realise": realise, "seconds": seconds}
                    if predictor == "ceiling":
                        row.update(model="ceiling", realise="", seconds=0.0)
                    rows.append({**row, **scores})
        done = pd.DataFrame(rows)
        print(done[done["held_out"] == held].round(3).to_string(index=False), flush=True)
    table = pd.DataFrame(rows)
    RESULTS.mkdir(exist_ok=True)
    table.to_csv(RESULTS / f"kang_foundation_{name}.csv", index=False, float_format="%.4f")
    means = table.groupby(["model", "realise"], sort=False).mean(numeric_only=True).round(3)
    print(f"\nMean over the seven held-out cell types of {name}\n{means.to_string()}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1] if len(sys.argv) > 1 else "kang18_scgen_valid"))
