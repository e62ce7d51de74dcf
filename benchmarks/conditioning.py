"""MTAe conditioned on doses, on given perturbation embeddings and on combinations, beside what needs no training.

Run from anywhere: `python benchmarks/conditioning.py [doses] [tggates] [embedding] [combinations] [picture]`; without a
part, all but the picture. Writes `benchmarks/results/conditioning_*.csv`; `picture` writes `docs/_static/mtae_doses.png`.
"tggates" needs `../shared/data` beside the project. One training takes 8 to 20 seconds of one core; with
OMP_NUM_THREADS=1 it does not wait for others.
"""

import logging
import sys
import warnings
from collections.abc import Callable
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
from _kang import DATA, RESULTS
from scipy import sparse

import multipert as mp
from multipert.metrics import evaluate, pearson_delta, rmse

PICTURE = Path(__file__).resolve().parents[1] / "docs" / "_static" / "mtae_doses.png"
QUIET = {"accelerator": "cpu", "enable_progress_bar": False, "enable_model_summary": False, "logger": False}
MIDDLE, OTHER_DOSES = 2.0, (0.1, 0.5, 10.0, 50.0)
REALISATIONS = {"MTAe, plain": "plain", "MTAe, residual": "residual"}
PROGRAMMES = {
    "n_cells": 5000,
    "n_vars": 500,
    "n_contexts": 2,
    "n_perturbations": 40,
    "features": 4,
    "control_fraction": 0.15,
}
RIDGE = 0.1

Means = dict[str, np.ndarray]


def dense(x: sparse.spmatrix | np.ndarray) -> np.ndarray:
    return x.toarray() if sparse.issparse(x) else np.asarray(x)


def correlation(one: np.ndarray, other: np.ndarray) -> float:
    """Over genes; missing where one of them is constant."""
    return float(np.corrcoef(one, other)[0, 1]) if one.std() > 0 and other.std() > 0 else np.nan


class Groups:
    """Cells and means by context, label and, if there are any, dose."""

    def __init__(self, adata: ad.AnnData, *keys: str) -> None:
        self.adata, self.x = adata, dense(adata.X)
        self.rows = adata.obs.reset_index(drop=True).groupby([adata.obs[key].to_numpy() for key in keys]).indices

    def cells(self, *key: object) -> ad.AnnData:
        return self.adata[self.rows[key]]

    def mean(self, *key: object) -> np.ndarray:
        return self.x[self.rows[key]].mean(axis=0)


def train(
    model_class: type, adata: ad.AnnData, seed: int, setup: dict, **arguments: object
) -> mp.model.PerturbationModel:
    """A model trained on the cells marked "train" in `obs["split"]`."""
    model_class.setup_anndata(adata, context_key="context", **setup)
    model = model_class(adata, **arguments)
    model.train(split_key="split", seed=seed, **QUIET)
    return model


def of_group(predicted: ad.AnnData, context: str, perturbation: str) -> ad.AnnData:
    return predicted[
        ((predicted.obs["context"] == context) & (predicted.obs["perturbation"] == perturbation)).to_numpy()
    ]


def score(predictions: Means, observed: np.ndarray, control: np.ndarray, truth: np.ndarray, truth_control: np.ndarray):
    """Errors of each predicted mean against the observed cells and against the truth without noise.

    The change of the truth is that of the truth: an observed change shares the noise of the observed control mean with
    every prediction that starts from measured means.
    """
    for name, mean in predictions.items():
        moves = not np.array_equal(mean, control)
        yield {
            "predictor": name,
            "rmse": rmse(mean[None], observed[None]),
            "pearson_delta": pearson_delta(mean[None], observed[None], control[None]) if moves else np.nan,
            "rmse_true": rmse(mean[None], truth[None]),
            "pearson_delta_true": np.corrcoef(mean - control, truth - truth_control)[0, 1] if moves else np.nan,
        }


def true_means(adata: ad.AnnData, conditions: list[tuple[str, float | None]]) -> dict[tuple, np.ndarray]:
    """Expected expression, mean over the control cells of each context."""
    is_control = (adata.obs["perturbation"] == "control").to_numpy()
    return {
        (context, name, dose): mp.datasets.true_mean(cells, name, dose, space="log1p").mean(axis=0)
        for context in adata.obs["context"].unique()
        for cells in [adata[is_control & (adata.obs["context"] == context).to_numpy()]]
        for name, dose in conditions
    }


def share_won(frame: pd.DataFrame, metric: str, against: str, keys: list[str]) -> pd.Series:
    """Share of the pairs in which a predictor is better than one of them; that one has none."""
    wide = frame.pivot(index=[*keys, "seed"], columns="predictor", values=metric)
    gain = wide.sub(wide[against], axis=0) * (-1 if metric.startswith(("rmse", "edistance")) else 1)
    return (gain > 0).astype(float).where(gain.notna()).mean().drop(against)


def summary(
    frame: pd.DataFrame, by: list[str], keys: list[str], against: str | Callable, won: list[str]
) -> pd.DataFrame:
    """Means over pairs and seeds, and shares of pairs won."""
    tables = []
    for values, part in frame.groupby(by, sort=False):
        metrics = [column for column in part if column not in {*by, *keys, "seed", "predictor"}]
        table = part.groupby("predictor", sort=False)[metrics].mean()
        reference = against if isinstance(against, str) else against(part)
        for metric in won:
            table[f"won_{metric}"] = share_won(part, metric, reference, keys)
        table["n_pairs"] = part.groupby("predictor").size()
        table["n_seeds"] = part["seed"].nunique()
        for name, value in zip(by, values, strict=True):
            table.insert(0, name, value)
        tables.append(table.reset_index())
    return pd.concat(tables, ignore_index=True)


def store(name: str, table: pd.DataFrame) -> None:
    table.to_csv(RESULTS / f"conditioning_{name}.csv", index=False, float_format="%.4g")
    with pd.option_context("display.width", 250, "display.max_columns", 30):
        print(f"\n{name}\n{table.round(3).to_string(index=False)}\n", flush=True)


# between the neighbouring doses, or the nearest one


def interpolated(groups: Groups, context: str, name: str, dose: float, doses: list[float]) -> Means:
    """The mean at a dose from the means at its neighbours; of the only neighbour where it has one."""
    low = max((d for d in doses if d < dose), default=None)
    high = min((d for d in doses if d > dose), default=None)
    if low is None or high is None:
        return {"nearest dose": groups.mean(context, name, high if low is None else low)}
    ends = groups.mean(context, name, low), groups.mean(context, name, high)
    shares = {
        "interpolation, log dose": np.log(dose / low) / np.log(high / low),
        "interpolation, dose": (dose - low) / (high - low),
    }
    return {key: (1 - share) * ends[0] + share * ends[1] for key, share in shares.items()}


def moved(control: ad.AnnData, mean: np.ndarray) -> np.ndarray:
    """Control cells moved to a mean, not below 0."""
    x = dense(control.X)
    return np.maximum(x + mean - x.mean(axis=0), 0)


def distances(groups: Groups, training: ad.AnnData, predicted: dict[str, list], dose: float) -> pd.DataFrame:
    """Energy distance of predicted to observed cells over that of control cells, by predictor, context and label."""
    observed = groups.adata[(groups.adata.obs["dose"] == dose).to_numpy()]
    control = groups.adata[(groups.adata.obs["perturbation"] == "control").to_numpy()]
    frames = []
    for name, cells in predicted.items():
        x = np.concatenate([part for _, _, part in cells])
        obs = pd.DataFrame(
            [(context, label) for context, label, part in cells for _ in range(len(part))],
            columns=["context", "perturbation"],
        )
        made = ad.AnnData(x.astype(np.float32), obs.set_index(obs.index.astype(str)), training.var[[]])
        frames.append(
            evaluate(made, observed, control, metrics=["edistance_ratio"], training=training, references=[]).assign(
                predictor=name
            )
        )
    frame = pd.concat(frames).rename(columns={"value": "edistance_ratio"})
    return frame[["predictor", "context", "perturbation", "edistance_ratio"]]


def dose_scores(dose: float, seeds: range) -> pd.DataFrame:
    """Scores of one held-out dose of the frozen screen."""
    adata = mp.datasets.screen("doses")
    groups = Groups(adata, "context", "perturbation", "dose")
    names = sorted(set(adata.obs["perturbation"]) - {"control"})
    doses = sorted(set(adata.obs["dose"]) - {0.0})
    contexts = sorted(adata.obs["context"].unique())
    adata.obs["split"] = np.where(adata.obs["dose"] == dose, "test", "train")
    training = adata[(adata.obs["split"] == "train").to_numpy()]
    truth = true_means(adata, [("control", 0.0), *((name, dose) for name in names)])
    frames = []
    for seed in seeds:
        model = train(mp.model.MTAe, adata, seed, {"dose_key": "dose"})
        cells = {key: model.predict(perturbation=names, dose=dose, realise=how) for key, how in REALISATIONS.items()}
        rows, clouds = [], {}
        for context in contexts:
            control = groups.mean(context, "control", 0.0)
            for name in names:
                means = interpolated(groups, context, name, dose, doses)
                for key, mean in means.items():
                    x = moved(groups.cells(context, "control", 0.0), mean)
                    clouds.setdefault(key, []).append((context, name, x))
                for key, predicted in cells.items():
                    x = dense(of_group(predicted, context, name).X)
                    clouds.setdefault(key, []).append((context, name, x))
                    means[key] = x.mean(axis=0)
                found = groups.mean(context, name, dose), control
                scores = score(means, *found, truth[context, name, dose], truth[context, "control", 0.0])
                rows += [{"dose": dose, "context": context, "perturbation": name, "seed": seed, **s} for s in scores]
        frame = pd.DataFrame(rows)
        frames.append(
            frame.merge(distances(groups, training, clouds, dose), on=["predictor", "context", "perturbation"])
        )
        print(f"dose {dose:g}, seed {seed}", flush=True)
    return pd.concat(frames, ignore_index=True)


def control_noise(n_divisions: int = 20) -> pd.DataFrame:
    """Correlation of interpolated with observed changes, from the same control cells and from divided ones."""
    adata = mp.datasets.screen("doses")
    groups = Groups(adata, "context", "perturbation", "dose")
    measured = sorted(set(adata.obs["dose"]) - {0.0})
    names, rows = sorted(set(adata.obs["perturbation"]) - {"control"}), []
    for dose in measured[1:-1]:
        for context in sorted(adata.obs["context"].unique()):
            control = groups.rows[context, "control", 0.0]
            for division in range(n_divisions):
                drawn = np.random.default_rng(division).permutation(control)
                first, second = (groups.x[half].mean(axis=0) for half in np.array_split(drawn, 2))
                for name in names:
                    mean = interpolated(groups, context, name, dose, measured)["interpolation, log dose"]
                    observed = groups.mean(context, name, dose)
                    values = [np.corrcoef(mean - first, observed - other)[0, 1] for other in (first, second)]
                    rows.append((dose, *values))
    columns = ["dose", "half of the control cells, shared", "halves of the control cells, divided"]
    return pd.DataFrame(rows, columns=columns).groupby("dose").mean().reset_index()


def doses() -> None:
    store("control_noise", control_noise())
    frame = pd.concat(
        [dose_scores(dose, range(5) if dose == MIDDLE else range(1)) for dose in (MIDDLE, *OTHER_DOSES)],
        ignore_index=True,
    )
    table = summary(
        frame,
        ["dose"],
        ["context", "perturbation"],
        lambda part: part["predictor"].iloc[0],
        ["rmse", "pearson_delta", "edistance_ratio", "rmse_true", "pearson_delta_true"],
    )
    store("doses", table)


def picture() -> None:
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    adata = mp.datasets.screen("doses")
    adata.obs["split"] = np.where(adata.obs["dose"] == MIDDLE, "test", "train")
    model = train(mp.model.MTAe, adata, 0, {"dose_key": "dose"})
    groups, measured = Groups(adata, "context", "perturbation", "dose"), sorted(set(adata.obs["dose"]) - {0.0})
    grid = sorted({*measured, *np.geomspace(measured[0], measured[-1], 17).round(3).tolist()})
    figure, axes = plt.subplots(1, 3, figsize=(13, 4.2), layout="constrained")
    context = "context_1"
    for ax, name in zip(axes, ("P1", "P2", "P3"), strict=True):
        targets = pd.DataFrame({"perturbation": name, "dose": grid, "context": context})
        predicted = model.predict(perturbation=targets, returns="mean", realise="residual")
        change = np.abs(groups.mean(context, name, measured[-1]) - groups.mean(context, "control", 0.0))
        genes = adata.var_names[np.argsort(-change)[:3]].tolist()
        is_here = (adata.obs["context"] == context) & adata.obs["perturbation"].isin([name, "control"])
        mp.pl.dose_response(predicted, adata[is_here.to_numpy()], genes, ax=ax)
        between = interpolated(groups, context, name, MIDDLE, measured)["interpolation, log dose"]
        for line, gene in enumerate(genes):
            colour = ax.get_legend().get_lines()[line].get_color()
            ax.plot(MIDDLE, between[adata.var_names.get_loc(gene)], "x", color=colour, markersize=9, markeredgewidth=2)
        ax.axvspan(MIDDLE / 1.35, MIDDLE * 1.35, color="0.5", alpha=0.12, linewidth=0)
        ax.set_xticks([ax.get_xticks()[0], *measured], ["control", *(f"{dose:g}" for dose in measured)], rotation=0)
        ax.set_title(f"{name} in {context}")
    figure.savefig(PICTURE, dpi=110)
    print(PICTURE)


# bulk arrays: every experiment has one drug and controls of its own


def read_tggates() -> ad.AnnData:
    """The arrays, contexts by duration, the middle dose of each drug with three doses marked "test"."""
    path = DATA / "tggates_human_hepatocyte_196genes.h5ad"
    if not path.exists():
        raise SystemExit(f"skipped: the optional data folder has no {path.name} (../shared/data beside the project)")
    adata = ad.read_h5ad(path)
    adata.obs["context"] = adata.obs["duration_h"].map("{:02.0f} h".format).astype(str)
    levels = adata.obs.groupby("drug", observed=True)["dose_level"].agg(set)
    complete = levels.index[levels.map(lambda found: {"Low", "Middle", "High"} <= found)]
    is_test = adata.obs["drug"].isin(complete) & (adata.obs["dose_level"] == "Middle")
    adata.obs["split"] = np.where(is_test, "test", "train")
    return adata


def aligned(adata: ad.AnnData) -> ad.AnnData:
    """Every experiment moved, by duration, so that its controls have the mean of all controls."""
    adata, x, is_control = (
        adata.copy(),
        dense(adata.X).astype(np.float64),
        (adata.obs["dose_level"] == "Control").to_numpy(),
    )
    labels = adata.obs.reset_index(drop=True)
    for _, rows in labels.groupby("context").indices.items():
        middle = x[rows[is_control[rows]]].mean(axis=0)
        for _, own in labels.iloc[rows].groupby("drug", observed=True).indices.items():
            own = rows[own]
            x[own] += middle - x[own[is_control[own]]].mean(axis=0)
    adata.X = x.astype(np.float32)
    return adata


def tggates_scores(raw: ad.AnnData, scale: str, seed: int) -> pd.DataFrame:
    """Scores of every held-out (drug, duration); the change is that from the controls of the same experiment."""
    adata = raw if scale == "as distributed" else aligned(raw)
    model = train(mp.model.MTAe, adata, seed, {"dose_key": "dose"})
    groups = Groups(adata, "context", "drug", "dose_level")
    test = adata.obs[adata.obs["split"] == "test"]
    dose_of = adata.obs.groupby(["drug", "dose_level"], observed=True)["dose"].first()
    drugs = sorted(test["drug"].astype(str).unique())
    middle = [dose_of[drug, "Middle"] for drug in drugs]
    made = {}
    for name, how in REALISATIONS.items():
        cells = model.predict(perturbation=drugs, dose=middle, realise=how)
        # of all control arrays those of the drug's own experiment
        own = cells[(cells.obs["perturbation"].astype(str) == cells.obs["drug"].astype(str)).to_numpy()]
        made[name] = Groups(own.copy(), "context", "drug", "replicate")
    rows = []
    for context, drug in test[["context", "drug"]].astype(str).drop_duplicates().itertuples(index=False):
        levels = {level: (context, drug, level) for level in ("Control", "Low", "Middle", "High")}
        if not all(key in groups.rows for key in levels.values()):
            continue
        control, low, observed, high = (groups.mean(*key) for key in levels.values())
        replicates = adata.obs["replicate"].astype(str).to_numpy()[groups.rows[levels["Control"]]]
        first, second = (groups.x[groups.rows[levels["Control"]]][replicates == which][0] for which in ("1", "2"))
        at = {level: dose_of[drug, level] for level in ("Low", "Middle", "High")}
        shares = {
            "interpolation, log dose": np.log(at["Middle"] / at["Low"]) / np.log(at["High"] / at["Low"]),
            "interpolation, dose": (at["Middle"] - at["Low"]) / (at["High"] - at["Low"]),
        }
        means = {name: (1 - share) * low + share * high for name, share in shares.items()}
        changes = {name: mean - first for name, mean in means.items()}
        for name, predicted in made.items():
            by_replicate = [predicted.mean(context, drug, which) for which in ("1", "2")]
            means[name], changes[name] = np.mean(by_replicate, axis=0), by_replicate[0] - first
        for source in (means, changes):
            source["mean of interpolation and MTAe"] = (
                source["interpolation, log dose"] + source["MTAe, residual"]
            ) / 2
        means["no change"] = control
        for name, mean in means.items():
            rows.append(
                {
                    "expression": scale,
                    "context": context,
                    "perturbation": drug,
                    "seed": seed,
                    "predictor": name,
                    "rmse": rmse(mean[None], observed[None]),
                    "pearson_delta": correlation(mean - control, observed - control),
                    # of two replicates of control, one for the predicted change and one for the observed one
                    "pearson_delta_divided": correlation(changes[name], observed - second)
                    if name in changes
                    else np.nan,
                }
            )
    print(f"tggates, {scale}, seed {seed}", flush=True)
    return pd.DataFrame(rows)


def tggates() -> None:
    raw = read_tggates()
    frame = pd.concat(
        [tggates_scores(raw, scale, seed) for scale in ("as distributed", "aligned") for seed in range(2)],
        ignore_index=True,
    )
    won = ["rmse", "pearson_delta", "pearson_delta_divided"]
    every = summary(frame, ["expression"], ["context", "perturbation"], "interpolation, log dose", won)
    by_time = summary(frame, ["expression", "context"], ["perturbation"], "interpolation, log dose", won)
    store("tggates", pd.concat([every.assign(context="all"), by_time], ignore_index=True)[list(by_time)])


# perturbations that were never seen, known by their features


def mean_changes(groups: Groups, context: str, seen: list[str], table: pd.DataFrame, name: str) -> Means:
    """Control moved by the mean change of the seen perturbations, and by a ridge regression on their features."""
    control = groups.mean(context, "control")
    changes = np.stack([groups.mean(context, other) - control for other in seen])
    features, mean = table.loc[seen].to_numpy(), changes.mean(axis=0)
    centred = features - features.mean(axis=0)
    penalty = RIDGE * len(seen) * np.eye(features.shape[1]) * centred.var(axis=0).mean()
    weights = np.linalg.solve(centred.T @ centred + penalty, centred.T @ (changes - mean))
    return {
        "mean of the seen": control + mean,
        "no change": control,
        "ridge on the features": control + mean + (table.loc[name].to_numpy() - features.mean(axis=0)) @ weights,
    }


def embedding_scores(title: str, adata: ad.AnnData, split_seed: int | None, seed: int) -> pd.DataFrame:
    """Scores of perturbations held out by `split_seed`, or of those of the table that were never observed."""
    table = adata.uns["perturbation_embedding"]
    labels = adata.obs["perturbation"].astype(str)
    adata.obs["split"] = "train"
    if split_seed is not None:
        adata.obs["split"] = mp.splits.unseen_perturbation(adata, val_share=0, controls="train", seed=split_seed)
    unseen = sorted(set(labels[adata.obs["split"] == "test"]) - {"control"}) or sorted(set(table.index) - set(labels))
    seen = sorted(set(labels[adata.obs["split"] == "train"]) & set(table.index))
    groups, contexts = Groups(adata, "context", "perturbation"), sorted(adata.obs["context"].unique())
    truth = true_means(adata, [(name, None) for name in ("control", *unseen)])
    setup = {"perturbation_embedding_key": "perturbation_embedding"}
    models = {
        "NearestPerturbation": (train(mp.model.NearestPerturbation, adata, seed, setup), "plain"),
        "KNN, mean": (train(mp.model.KNN, adata, seed, setup, mode="mean"), "plain"),
    }
    mtae = train(mp.model.MTAe, adata, seed, setup)
    models |= {name: (mtae, how) for name, how in REALISATIONS.items()}
    made = {
        name: model.predict(perturbation=unseen, returns="mean", realise=how) for name, (model, how) in models.items()
    }
    rows = []
    for context in contexts:
        for name in unseen:
            means = mean_changes(groups, context, seen, table, name)
            means |= {key: dense(of_group(predicted, context, name).X)[0] for key, predicted in made.items()}
            expected = truth[context, name, None]
            # what was never observed is known by its truth only
            observed = groups.mean(context, name) if split_seed is not None else np.full_like(expected, np.nan)
            frame = score_unseen(
                means, observed, groups.mean(context, "control"), expected, truth[context, "control", None]
            )
            rows += [{"screen": title, "context": context, "perturbation": name, "seed": seed, **s} for s in frame]
    print(f"embedding, {title}, seed {seed}", flush=True)
    return pd.DataFrame(rows)


def score_unseen(means: Means, observed: np.ndarray, control: np.ndarray, truth: np.ndarray, truth_control: np.ndarray):
    """As `score`, with missing scores where there are no observed cells."""
    is_known = bool(np.isfinite(observed).all())
    for row in score(means, observed if is_known else truth, control, truth, truth_control):
        yield row if is_known else {**row, "rmse": np.nan, "pearson_delta": np.nan}


def embedding() -> None:
    frames = [embedding_scores("combinations", mp.datasets.screen("combinations"), None, seed) for seed in range(3)]
    for seed in range(3):
        adata = mp.datasets.simulate(**PROGRAMMES, seed=11 + seed)
        frames.append(embedding_scores("40 perturbations", adata, seed, seed))
    frame = pd.concat(frames, ignore_index=True)
    won = ["rmse", "pearson_delta", "rmse_true", "pearson_delta_true"]
    store("embedding", summary(frame, ["screen"], ["context", "perturbation"], "mean of the seen", won))


# combinations whose parts were seen alone


def combination_scores(seed: int) -> pd.DataFrame:
    adata = mp.datasets.screen("combinations")
    adata.obs["split"] = mp.splits.combination(adata, share=0.5, val_share=0, controls="train", seed=seed)
    is_test = (adata.obs["split"] == "test").to_numpy()
    held_out = sorted(set(adata.obs["perturbation"].astype(str)[is_test]))
    groups = Groups(adata, "context", "perturbation")
    truth = true_means(adata, [(name, None) for name in ("control", *held_out)])
    mtae = train(mp.model.MTAe, adata, seed, {})
    models = {
        "Additive": (train(mp.model.Additive, adata, seed, {}), "plain"),
        "TwoFactor": (train(mp.model.TwoFactor, adata, seed, {}), "plain"),
        **{name: (mtae, how) for name, how in REALISATIONS.items()},
    }
    made = {
        name: model.predict(perturbation=held_out, returns="mean", realise=how) for name, (model, how) in models.items()
    }
    rows = []
    tested = adata.obs.loc[is_test, ["context", "perturbation"]].astype(str).drop_duplicates()
    for context, name in tested.sort_values(["context", "perturbation"]).itertuples(index=False):
        control = groups.mean(context, "control")
        means = {key: dense(of_group(predicted, context, name).X)[0] for key, predicted in made.items()}
        means["no change"] = control
        scores = score(
            means, groups.mean(context, name), control, truth[context, name, None], truth[context, "control", None]
        )
        rows += [
            {"kind": kind_of(adata, name), "context": context, "perturbation": name, "seed": seed, **s} for s in scores
        ]
    print(f"combinations, seed {seed}", flush=True)
    return pd.DataFrame(rows)


def kind_of(adata: ad.AnnData, label: str) -> str:
    """Additive, synergistic or masking."""
    simulation = adata.uns["simulation"]
    names = np.asarray(simulation["perturbations"], dtype=str)
    pairs = ["+".join(sorted(names[pair])) for pair in np.asarray(simulation["pairs"])]
    return str(simulation["pair_kind"][pairs.index("+".join(sorted(label.split("+"))))])


def combinations() -> None:
    frame = pd.concat([combination_scores(seed) for seed in range(2)], ignore_index=True)
    won = ["rmse", "pearson_delta", "rmse_true", "pearson_delta_true"]
    parts = [
        summary(part, ["kind"], ["context", "perturbation"], "Additive", won)
        for part in (frame.assign(kind="all"), frame)
    ]
    store("combinations", pd.concat(parts, ignore_index=True))


PARTS = {
    "doses": doses,
    "tggates": tggates,
    "embedding": embedding,
    "combinations": combinations,
    "picture": picture,
}


def main() -> None:
    # Lightning's notices on devices, and the model's on cells whose doses are not those of the control cells
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)
    warnings.simplefilter("ignore", UserWarning)
    chosen = sys.argv[1:] or [name for name in PARTS if name != "picture"]
    for name in chosen:
        if name not in PARTS:
            raise SystemExit(f"There is no part {name!r}; known: {', '.join(PARTS)}.")
    for name in chosen:
        PARTS[name]()


if __name__ == "__main__":
    main()
