"""What conditioning on doses and on a given embedding is worth: better than what needs no training."""

from __future__ import annotations

import numpy as np
import pytest

import multipert as mp

pytestmark = pytest.mark.slow

QUIET = {"accelerator": "cpu", "enable_progress_bar": False, "enable_model_summary": False, "logger": False}


class Groups:
    """Measured means by context and label (with its dose), and the control cells."""

    def __init__(self, adata, *keys):
        self.x = adata.X.toarray()
        self.rows = adata.obs.reset_index(drop=True).groupby(list(keys), observed=True).indices
        self.adata = adata

    def mean(self, *key):
        return self.x[self.rows[key]].mean(axis=0)

    def true_mean(self, context, control_key, name, dose=None):
        cells = self.adata[self.rows[(context, *control_key)]]
        return mp.datasets.true_mean(cells, name, dose, space="log1p").mean(axis=0)


def rmse(a, b):
    return np.sqrt(np.mean((a - b) ** 2))


def correlation(a, b):
    return np.corrcoef(a, b)[0, 1]


def predicted_means(model, names, **arguments):
    predicted = model.predict(perturbation=names, returns="mean", realise="residual", **arguments)
    keys = zip(predicted.obs["context"], predicted.obs["perturbation"], strict=True)
    return dict(zip(keys, predicted.X, strict=True))


def test_a_held_out_dose_is_told_better_than_by_interpolation():
    adata = mp.datasets.screen("doses")
    adata.obs["split"] = np.where(adata.obs["dose"] == 2.0, "test", "train")
    mp.model.MTAe.setup_anndata(adata, context_key="context", dose_key="dose")
    model = mp.model.MTAe(adata)
    model.train(split_key="split", seed=0, **QUIET)
    groups, rows = Groups(adata, "context", "perturbation", "dose"), []
    made = predicted_means(model, ["P1", "P2", "P3"], dose=2.0)
    share = np.log(2.0 / 0.5) / np.log(10.0 / 0.5)
    for (context, name), mean in made.items():
        control, observed = groups.mean(context, "control", 0.0), groups.mean(context, name, 2.0)
        between = (1 - share) * groups.mean(context, name, 0.5) + share * groups.mean(context, name, 10.0)
        change = groups.true_mean(context, ("control", 0.0), name, 2.0)
        change -= groups.true_mean(context, ("control", 0.0), "control", 0.0)
        rows.append(
            [
                (rmse(of, observed), correlation(of - control, observed - control), correlation(of - control, change))
                for of in (mean, between)
            ]
        )
    ours, interpolation = np.array(rows).transpose(1, 2, 0)
    assert ours.shape == (3, 12)
    assert ours[0].mean() < interpolation[0].mean()
    assert (ours[0] < interpolation[0]).mean() > 0.5
    assert ours[1].mean() > interpolation[1].mean()
    assert (ours[2] > interpolation[2]).all()


def test_unseen_perturbations_are_told_better_than_by_the_mean_of_the_seen():
    adata = mp.datasets.simulate(
        n_cells=5000, n_vars=500, n_contexts=2, n_perturbations=40, features=4, control_fraction=0.15, seed=11
    )
    adata.obs["split"] = mp.splits.unseen_perturbation(adata, val_share=0, controls="train", seed=0)
    mp.model.MTAe.setup_anndata(adata, context_key="context", perturbation_embedding_key="perturbation_embedding")
    model = mp.model.MTAe(adata)
    model.train(split_key="split", seed=0, **QUIET)
    labels, is_test = adata.obs["perturbation"].astype(str), adata.obs["split"] == "test"
    unseen, seen = sorted(set(labels[is_test])), sorted(set(labels[~is_test]) - {"control"})
    assert len(unseen) == 10
    assert not set(unseen) & set(seen)
    groups, rows = Groups(adata, "context", "perturbation"), []
    for (context, name), mean in predicted_means(model, unseen).items():
        control, observed = groups.mean(context, "control"), groups.mean(context, name)
        of_seen = np.mean([groups.mean(context, other) for other in seen], axis=0)
        rows.append([(rmse(of, observed), correlation(of - control, observed - control)) for of in (mean, of_seen)])
    ours, of_seen = np.array(rows).transpose(1, 2, 0)
    assert ours[0].mean() < of_seen[0].mean()
    assert (ours[0] < of_seen[0]).mean() > 0.7
    assert ours[1].mean() > of_seen[1].mean() + 0.1
