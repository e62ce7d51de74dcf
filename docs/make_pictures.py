"""Pictures of the page `pictures`: simulated cells, fixed seeds.

Run: python docs/make_pictures.py [name ...]
Writes docs/_static/pictures/<name>.png, all of them if none is named.
"""

import sys
from pathlib import Path

import matplotlib as mpl
import numpy as np
import pandas as pd

import multipert as mp
from multipert.model import ContextShift, MTAe, NoPerturb, ScVIDR, TwoFactor

FOLDER = Path(__file__).parent / "_static" / "pictures"
HELD_OUT = "context_2"
DOTS_PER_INCH = 80


def screen(name="small"):
    """A screen with the held-out context in obs["split"]; its control cells, and its perturbed ones."""
    adata = mp.datasets.screen(name)
    return adata, *held_out(adata)


def held_out(adata):
    adata.obs["split"] = mp.splits.context_transfer(adata, HELD_OUT)
    is_test = (adata.obs["split"] == "test").to_numpy()
    is_control = (adata.obs["context"] == HELD_OUT).to_numpy() & ~is_test
    return adata[is_control], adata[is_test]


def fitted(model_class, adata, arguments=None, **setup):
    model_class.setup_anndata(adata, context_key="context", **setup)
    model = model_class(adata, **(arguments or {}))
    model.train(split_key="split", seed=0, enable_progress_bar=False)
    return model


def of(adata, label):
    return adata[(adata.obs["perturbation"] == label).to_numpy()]


def scores(adata, models, metrics):
    """A frame of `evaluate` for several models, with their names as predictors."""
    control, observed = held_out(adata)
    training = adata[(adata.obs["split"] == "train").to_numpy()]
    frames = []
    for model in models:
        predicted = fitted(model, adata).predict(control, realise="residual")
        frame = mp.metrics.evaluate(predicted, observed, control, metrics=metrics, training=training)
        frames.append(frame.replace({"predictor": {"prediction": model.__name__}}))
    return pd.concat(frames).drop_duplicates(["predictor", "metric", "perturbation", "context"])


def benchmark_table():
    metrics, frames = ["rmse", "pearson_delta", "edistance_ratio", "de_overlap_absolute"], []
    for seed in range(3):
        adata = mp.datasets.simulate(n_cells=3000, n_vars=300, n_contexts=5, n_perturbations=3, seed=seed)
        frames.append(scores(adata, [ContextShift, TwoFactor, NoPerturb], metrics).assign(seed=seed))
    summary = mp.metrics.summarise(pd.concat(frames), by=["seed"])
    return mp.pl.benchmark_table(summary, model_key="predictor")


def rank_curves():
    adata = mp.datasets.simulate(n_cells=900, n_vars=100, n_contexts=4, n_perturbations=50, seed=0)
    frame = scores(adata, [ContextShift, TwoFactor, NoPerturb], ["rank_rmse"])
    is_shown = frame["predictor"].isin(["ContextShift", "TwoFactor", "NoPerturb", "ceiling"])
    return mp.pl.rank_curves(frame[is_shown], model_key="predictor")


def mean_scatter():
    adata, control, observed = screen()
    predicted = fitted(ContextShift, adata).predict(control, "P1")
    return mp.pl.mean_scatter(predicted, of(observed, "P1"), control, delta=True)


def precision_recall():
    adata, control, observed = screen()
    truth = mp.datasets.true_de_genes(observed, "P1", min_effect=0.2)
    labels = adata.var_names.isin(truth["gene"][truth["context"] == HELD_OUT])
    groups = {
        model.__name__: fitted(model, adata).predict(control, "P1", realise="residual")
        for model in (ContextShift, MTAe)
    }
    groups["observed"] = of(observed, "P1")
    scores = {name: np.abs(np.nan_to_num(mp.metrics.welch_t(cells.X, control.X))) for name, cells in groups.items()}
    return mp.pl.precision_recall(labels, scores)


def gene_distributions():
    adata, control, observed = screen()
    genes = mp.datasets.true_de_genes(observed, "P1").query("context == @HELD_OUT")["gene"].head(4)
    model = fitted(MTAe, adata)
    groups = {
        "control": control,
        "observed": of(observed, "P1"),
        "predicted": model.predict(control, "P1"),
        "predicted, counts": model.predict(control, "P1", realise="counts"),
    }
    return mp.pl.gene_distributions(groups, genes)


def dose_response():
    adata, control, observed = screen("doses")
    predicted = fitted(TwoFactor, adata, dose_key="dose").predict(control, returns="mean")
    genes = mp.datasets.true_de_genes(observed, "P1", dose=50).query("context == @HELD_OUT")["gene"].head(2)
    observed = adata[(adata.obs["context"] == HELD_OUT) & adata.obs["perturbation"].isin(["P1", "control"])]
    return mp.pl.dose_response(of(predicted, "P1"), observed, genes)


def latent():
    adata, *_ = screen()
    fitted(MTAe, adata).annotate(adata)
    return mp.pl.latent(adata, "X_MTAe", color="context", centres=True)


def perturbations():
    adata = mp.datasets.simulate(
        n_cells=8000, n_vars=300, n_contexts=3, n_perturbations=10, doses=[1, 5, 25], features=3, seed=5
    )
    labels = adata.obs["perturbation"].astype(str) + "@" + adata.obs["dose"].map("{:g}".format)
    adata.obs["perturbation"] = labels.replace("control@0", "control")
    held_out(adata)
    largest = adata.uns["perturbation_embedding"].idxmax(axis=1).rename("largest feature")
    return mp.pl.perturbations(fitted(MTAe, adata).get_perturbation_embedding(), groups=largest)


def scvidr():
    adata, *_ = screen("doses")
    return fitted(ScVIDR, adata, {"latent": "pca"}, dose_key="dose"), adata


def gene_scores():
    model, _ = scvidr()
    return mp.pl.gene_scores(model.gene_scores("P1", context=HELD_OUT))


def pseudo_dose():
    model, adata = scvidr()
    here = (adata.obs["context"] == HELD_OUT) & adata.obs["perturbation"].isin(["P1", "control"])
    return mp.pl.pseudo_dose(model.pseudo_dose(perturbation="P1")[here], adata.obs["dose"])


PICTURES = (
    benchmark_table,
    rank_curves,
    mean_scatter,
    precision_recall,
    gene_distributions,
    dose_response,
    latent,
    perturbations,
    gene_scores,
    pseudo_dose,
)


def main(names):
    mpl.use("Agg")
    FOLDER.mkdir(parents=True, exist_ok=True)
    for draw in PICTURES:
        if not names or draw.__name__ in names:
            draw().figure.savefig(FOLDER / f"{draw.__name__}.png", dpi=DOTS_PER_INCH)


if __name__ == "__main__":
    main(sys.argv[1:])
