"""ScVIDR and dose-conditioned MTAe where a context has never been seen perturbed: the error at every dose.

Run from anywhere: `python benchmarks/dose_response.py [simulator] [tggates] [picture]`; without a part, all three. Writes
`benchmarks/results/dose_response_*.csv` and `docs/_static/dose_response.png`.
"simulator": the frozen screen of doses, each of its four contexts held out in turn: all doses of all perturbations.
"tggates": bulk arrays of liver cells, contexts are the durations, each of the three held out in turn; needs
`../shared/data` beside the project.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from _kang import RESULTS
from conditioning import Groups, aligned, correlation, of_group, read_tggates, score, train, true_means

import multipert as mp
from multipert.metrics import rmse

if TYPE_CHECKING:
    from collections.abc import Iterable

    import anndata as ad

PICTURE = Path(__file__).resolve().parents[1] / "docs" / "_static" / "dose_response.png"
PREDICTORS: dict[str, tuple[str, dict, str]] = {
    "ScVIDR, plain": ("ScVIDR", {}, "plain"),
    "ScVIDR, residual": ("ScVIDR", {}, "residual"),
    "ScVIDR (no regression), residual": ("ScVIDR", {"regression": False}, "residual"),
    "ScVIDR (pca), residual": ("ScVIDR", {"latent": "pca"}, "residual"),
    "MTAe, plain": ("MTAe", {}, "plain"),
    "MTAe, residual": ("MTAe", {}, "residual"),
}
LEVELS = ("Low", "Middle", "High")
SHOWN = ("ScVIDR (pca), residual", "MTAe, residual")


def trained_models(
    adata: ad.AnnData, seed: int, names: Iterable[str] = PREDICTORS
) -> dict[str, tuple[mp.model.PerturbationModel, str]]:
    """Each predictor's model and realisation; one training serves all realisations."""
    models, of_predictor = {}, {}
    for name in names:
        cls, arguments, realise = PREDICTORS[name]
        key = cls, tuple(arguments.items())
        if key not in models:
            models[key] = train(getattr(mp.model, cls), adata, seed, {"dose_key": "dose"}, **arguments)
        of_predictor[name] = models[key], realise
    return of_predictor


def predicted_cells(
    models: dict[str, tuple[mp.model.PerturbationModel, str]], targets: pd.DataFrame, context: str
) -> dict[str, ad.AnnData]:
    """Counterfactual cells of a context at given perturbations and doses, by predictor."""
    return {
        name: model.predict(perturbation=targets.assign(context=context), realise=realise)
        for name, (model, realise) in models.items()
    }


def simulated(held: str, seed: int) -> pd.DataFrame:
    """Scores at every dose in a held-out context of the frozen screen."""
    adata = mp.datasets.screen("doses")
    groups = Groups(adata, "context", "perturbation", "dose")
    names = sorted(set(adata.obs["perturbation"]) - {"control"})
    doses = sorted(set(adata.obs["dose"]) - {0.0})
    contexts = sorted(adata.obs["context"].unique())
    adata.obs["split"] = mp.splits.context_transfer(adata, held, context_key="context")
    here = adata[(adata.obs["context"] == held).to_numpy()].copy()
    truth = true_means(here, [("control", 0.0), *((name, dose) for name in names for dose in doses)])
    targets = pd.DataFrame([(name, dose) for name in names for dose in doses], columns=["perturbation", "dose"])
    cells = predicted_cells(trained_models(adata, seed), targets, held)
    control, rows = groups.mean(held, "control", 0.0), []
    for name, dose in targets.itertuples(index=False):
        others = [
            groups.mean(context, name, dose) - groups.mean(context, "control", 0.0)
            for context in contexts
            if context != held
        ]
        means = {"no change": control, "mean change of other contexts": control + np.mean(others, axis=0)}
        for key, predicted in cells.items():
            at = predicted[(predicted.obs["dose"].astype(float) == dose).to_numpy()]
            means[key] = np.asarray(of_group(at, held, name).X).mean(axis=0)
        found = groups.mean(held, name, dose), control, truth[held, name, dose], truth[held, "control", 0.0]
        rows += [{"held": held, "perturbation": name, "dose": dose, "seed": seed, **s} for s in score(means, *found)]
    print(f"simulator, {held}, seed {seed}", flush=True)
    return pd.DataFrame(rows)


def simulator(seeds: int) -> None:
    """Errors on the frozen screen of doses."""
    contexts = sorted(mp.datasets.screen("doses").obs["context"].unique())
    frame = pd.concat([simulated(held, seed) for seed in range(seeds) for held in contexts], ignore_index=True)
    store("simulator", frame, "dose", ["rmse_true", "pearson_delta_true", "rmse", "pearson_delta"])


def of_livers(adata: ad.AnnData, held: str, seed: int) -> pd.DataFrame:
    """Scores of every drug and dose level at a held-out duration; the change is that from the drug's own controls."""
    adata = adata.copy()
    is_control = (adata.obs["dose_level"] == "Control").to_numpy()
    adata.obs["split"] = np.where((adata.obs["context"] == held) & ~is_control, "test", "train")
    groups = Groups(adata, "context", "drug", "dose_level")
    dose_of = adata.obs.groupby(["drug", "dose_level"], observed=True)["dose"].first()
    # a drug is known if it was measured at another duration
    drugs = sorted(
        drug
        for drug in adata.obs["drug"].astype(str).unique()
        if any((context, drug, "High") in groups.rows for context in adata.obs["context"].unique() if context != held)
        and (held, drug, "Control") in groups.rows
    )
    keys = [(drug, level) for drug in drugs for level in LEVELS if (held, drug, level) in groups.rows]
    targets = pd.DataFrame([(drug, dose_of[drug, level]) for drug, level in keys], columns=["perturbation", "dose"])
    made, rows = {}, []
    for name, predicted in predicted_cells(trained_models(adata, seed), targets, held).items():
        # of all control arrays those of the drug's own experiment
        own = predicted[(predicted.obs["perturbation"].astype(str) == predicted.obs["drug"].astype(str)).to_numpy()]
        made[name] = Groups(own.copy(), "drug", "dose")
    for drug, level in keys:
        control, observed = groups.mean(held, drug, "Control"), groups.mean(held, drug, level)
        others = [
            groups.mean(context, drug, level) - groups.mean(context, drug, "Control")
            for context in sorted(adata.obs["context"].unique())
            if context != held and (context, drug, level) in groups.rows
        ]
        means = {"no change": control}
        if others:
            means["mean change of other contexts"] = control + np.mean(others, axis=0)
        means |= {name: found.mean(drug, float(dose_of[drug, level])) for name, found in made.items()}
        rows += [
            {
                "held": held,
                "perturbation": drug,
                "dose": level,
                "seed": seed,
                "predictor": name,
                "rmse": rmse(mean[None], observed[None]),
                "pearson_delta": correlation(mean - control, observed - control),
            }
            for name, mean in means.items()
        ]
    print(f"tggates, {held}, seed {seed}, {len(drugs)} drugs", flush=True)
    return pd.DataFrame(rows)


def tggates(seeds: int) -> None:
    """Errors on the liver arrays, every experiment moved so that controls agree."""
    adata = aligned(read_tggates())
    durations = sorted(adata.obs["context"].unique())
    frame = pd.concat([of_livers(adata, held, seed) for seed in range(seeds) for held in durations], ignore_index=True)
    store("tggates", frame, "dose", ["rmse", "pearson_delta"])


def store(name: str, frame: pd.DataFrame, by: str, metrics: list[str]) -> None:
    """Means over what was held out, perturbations and seeds, at every dose."""
    table = frame.groupby(["predictor", by], sort=False)[metrics].mean()
    table["n"] = frame.groupby(["predictor", by], sort=False).size()
    table.to_csv(RESULTS / f"dose_response_{name}.csv", float_format="%.4g")
    print(f"\n{name}\n{table.unstack().round(3).to_string()}\n", flush=True)


def picture() -> None:
    """Curves of three genes by both models in a context never seen perturbed, and the error over dose."""
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    held, name = "context_2", "P1"
    adata = mp.datasets.screen("doses")
    adata.obs["split"] = mp.splits.context_transfer(adata, held, context_key="context")
    models = trained_models(adata, 0, SHOWN)
    groups, measured = Groups(adata, "context", "perturbation", "dose"), sorted(set(adata.obs["dose"]) - {0.0})
    change = np.abs(groups.mean(held, name, measured[-1]) - groups.mean(held, "control", 0.0))
    genes = adata.var_names[np.argsort(-change)[:3]].tolist()
    observed = adata[((adata.obs["context"] == held) & adata.obs["perturbation"].isin([name, "control"])).to_numpy()]
    grid = sorted({*measured, *np.geomspace(measured[0], measured[-1], 13).round(3).tolist()})
    figure, axes = plt.subplots(1, 3, figsize=(14, 4.4), layout="constrained")
    for ax, key in zip(axes, SHOWN, strict=False):
        model, realise = models[key]
        targets = pd.DataFrame({"perturbation": name, "dose": grid, "context": held})
        mp.pl.dose_response(
            model.predict(perturbation=targets, realise=realise, returns="mean"), observed, genes, ax=ax
        )
        ax.set_xticks([ax.get_xticks()[0], *measured], ["control", *(f"{dose:g}" for dose in measured)], rotation=0)
        ax.set_title(f"{key}: {name} in {held}, never seen perturbed", fontsize=10)
    limits = [axis.get_ylim() for axis in axes[:2]]
    for axis in axes[:2]:
        axis.set_ylim(min(low for low, _ in limits), max(high for _, high in limits))
    table = pd.read_csv(RESULTS / "dose_response_simulator.csv")
    for key, rows in table.groupby("predictor", sort=False):
        style = {"no change": ":", "mean change of other contexts": "--"}.get(key, "-")
        axes[2].plot(rows["dose"], rows["rmse_true"], style + "o", ms=4, lw=1.5, label=key)
    axes[2].set_xscale("log")
    axes[2].set_xticks(measured, [f"{dose:g}" for dose in measured])
    axes[2].minorticks_off()
    axes[2].set(xlabel="dose", ylabel="RMSE against the true mean", title="simulator, all contexts held out in turn")
    axes[2].title.set_fontsize(10)
    axes[2].spines[["top", "right"]].set_visible(False)
    axes[2].legend(frameon=False, fontsize=8)
    figure.savefig(PICTURE, dpi=110)
    print(PICTURE)


def main() -> int:
    """Run the parts."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", help="simulator, tggates, picture; all where nothing is given")
    parser.add_argument("--seeds", type=int, default=3)
    args = parser.parse_args()
    parts = args.parts or ["simulator", "tggates", "picture"]
    unknown = set(parts) - {"simulator", "tggates", "picture"}
    if unknown:
        parser.error(f"unknown part: {', '.join(sorted(unknown))}")
    if "simulator" in parts:
        simulator(args.seeds)
    if "tggates" in parts:
        tggates(args.seeds)
    if "picture" in parts:
        picture()
    return 0


if __name__ == "__main__":
    sys.exit(main())
