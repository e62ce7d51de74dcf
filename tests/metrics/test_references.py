"""The predictors made from training cells, against their definitions written out."""

import anndata as ad
import numpy as np
import pandas as pd
import pytest

from multipert import metrics
from multipert.data._shifts import choose_strength, context_weights
from multipert.metrics import REFERENCES, evaluate

METRICS = ["rmse", "pearson_delta"]


@pytest.fixture
def screen():
    """Three perturbations and a combination in four contexts whose responses follow their control means."""
    rng = np.random.default_rng(7)
    n_vars, n_cells = 40, 30
    effects = {name: rng.normal(0, 1, n_vars) for name in ("A", "B", "C")}
    effects["A+B"] = effects["A"] + effects["B"]
    blocks, labels = [], []
    for context in "wxyz":
        baseline, strength = rng.gamma(2.0, 1.0, n_vars), rng.uniform(0.4, 1.2)
        for label, effect in {"control": 0, **effects}.items():
            blocks.append(np.log1p(rng.poisson(baseline * np.exp(strength * effect), (n_cells, n_vars))))
            labels += [(label, context)] * n_cells
    obs = pd.DataFrame(labels, columns=["perturbation", "context"], index=[f"c{i}" for i in range(len(labels))])
    return ad.AnnData(np.vstack(blocks), obs=obs)


def parts(screen, held_out):
    """(observed, control, training) for a mask of held-out cells."""
    is_control = (screen.obs["perturbation"] == "control").to_numpy()
    return screen[held_out].copy(), screen[is_control].copy(), screen[~held_out].copy()


def mean(adata, perturbation, context):
    here = (adata.obs["perturbation"] == perturbation) & (adata.obs["context"] == context)
    return adata.X[here.to_numpy()].mean(axis=0)


def delta(adata, perturbation, context):
    return mean(adata, perturbation, context) - mean(adata, "control", context)


def rmse_of(shift, observed, control, context="z"):
    cells = control.X[(control.obs["context"] == context).to_numpy()]
    return metrics.rmse(np.maximum(cells + shift, 0), observed.X)


def value(frame, predictor, metric="rmse"):
    (found,) = frame.query("predictor == @predictor and metric == @metric")["value"]
    return found


@pytest.fixture
def transfer(screen):
    """All perturbed cells of context z held out; scored for "A"."""
    held_out = ((screen.obs["context"] == "z") & (screen.obs["perturbation"] != "control")).to_numpy()
    observed, control, training = parts(screen, held_out)
    return observed[observed.obs["perturbation"] == "A"].copy(), control, training


@pytest.mark.parametrize("kind", ["similarity", "ridge"])
def test_weighted_shifts_follow_their_definition(transfer, kind):
    observed, control, training = transfer
    frame = evaluate(None, observed, control, metrics=METRICS, training=training)
    contexts = ["w", "x", "y"]
    known = np.stack([mean(training, "control", context) for context in contexts])
    problems = [
        (known, np.stack([delta(training, name, context) for context in contexts])) for name in ("A", "A+B", "B", "C")
    ]
    strength = choose_strength(kind, problems)
    weights = context_weights(kind, strength, known, mean(control, "control", "z")[None])
    shift = weights[0] @ problems[0][1]
    assert value(frame, f"{kind}_shift") == pytest.approx(rmse_of(shift, observed, control), rel=1e-9)


def test_only_references_that_the_data_allow_are_listed(transfer, screen):
    observed, control, training = transfer
    frame = evaluate(None, observed, control, metrics=METRICS, training=training)
    # no perturbed training cells in the context, no combination, no embedding
    assert list(frame["predictor"].unique()) == [
        "no_change",
        "mean_shift",
        "similarity_shift",
        "ridge_shift",
        "ceiling",
    ]
    asked = evaluate(
        None, observed, control, metrics=METRICS, training=training, references=["additive", "control_mean"]
    )
    assert asked.query("predictor == 'additive'")["value"].isna().all()
    assert value(asked, "control_mean") == pytest.approx(value(frame, "no_change"))
    assert set(frame["predictor"]) < set(REFERENCES)


def test_context_mean_and_additive_use_the_context(screen):
    held_out = ((screen.obs["context"] == "z") & (screen.obs["perturbation"] == "A+B")).to_numpy()
    observed, control, training = parts(screen, held_out)
    frame = evaluate(None, observed, control, metrics=METRICS, training=training)
    deltas = {name: delta(screen, name, "z") for name in "ABC"}
    assert value(frame, "additive") == pytest.approx(rmse_of(deltas["A"] + deltas["B"], observed, control), rel=1e-9)
    expected = rmse_of(np.mean(list(deltas.values()), axis=0), observed, control)
    assert value(frame, "context_mean") == pytest.approx(expected, rel=1e-9)


def test_additive_takes_the_mean_over_contexts_of_a_part_that_the_context_lacks(screen):
    held_out = ((screen.obs["context"] == "z") & screen.obs["perturbation"].isin(["A+B", "B"])).to_numpy()
    observed, control, training = parts(screen, held_out)
    observed = observed[observed.obs["perturbation"] == "A+B"].copy()
    frame = evaluate(None, observed, control, metrics=METRICS, training=training)
    of_b = np.mean([delta(screen, "B", context) for context in "wxy"], axis=0)
    expected = rmse_of(delta(screen, "A", "z") + of_b, observed, control)
    assert value(frame, "additive") == pytest.approx(expected, rel=1e-9)


@pytest.fixture
def unseen(screen):
    """ "A" held out in every context, with an embedding in which "C" is nearest."""
    held_out = screen.obs["perturbation"].isin(["A", "A+B"]).to_numpy()
    observed, control, training = parts(screen, held_out)
    embedding = pd.DataFrame([[0.0, 0.0], [5.0, 0.0], [1.0, 0.0]], index=["A", "B", "C"])
    in_context = ((observed.obs["context"] == "z") & (observed.obs["perturbation"] == "A")).to_numpy()
    return observed[in_context].copy(), control, training, embedding


def test_nearest_is_the_nearest_in_the_embedding(unseen, screen):
    observed, control, training, embedding = unseen
    frame = evaluate(None, observed, control, metrics=METRICS, training=training, embedding=embedding)
    assert value(frame, "nearest") == pytest.approx(rmse_of(delta(screen, "C", "z"), observed, control), rel=1e-9)


def test_knn_draws_training_cells_of_the_near_perturbations(unseen, screen):
    observed, control, training, embedding = unseen
    far = embedding * 1000
    frame = evaluate(None, observed, control, metrics=["rmse"], training=training, embedding=far, references=["knn"])
    cells = screen.X[((screen.obs["perturbation"] == "C") & (screen.obs["context"] == "z")).to_numpy()]
    from multipert.metrics._groups import GroupedCells
    from multipert.metrics._references import References

    grouped = GroupedCells(
        "training", training, ["perturbation", "context"], layer=None, control_label="control", delimiter="+"
    )
    made = References(grouped, control_label="control", delimiter="+", clip=True, embedding=far)
    drawn = made.predict("knn", ("A", "z"), grouped[("control", "z")])
    # all weight on "C", whose cells of the same context are there
    assert {tuple(row) for row in drawn.dense()} <= {tuple(row) for row in cells}
    assert value(frame, "knn") == pytest.approx(metrics.rmse(drawn.dense(), observed.X))


def test_references_never_read_the_cells_that_they_predict(screen, unseen):
    """Neither held-out cells nor, in a leaky `training`, cells of the group's own perturbation and context."""
    observed, control, training, embedding = unseen
    names = ["mean_shift", "similarity_shift", "ridge_shift", "nearest", "knn"]
    both = ad.concat([training, observed], merge="same")
    spoilt = both.copy()
    spoilt.X[-observed.n_obs :] += 50.0
    frames = [
        evaluate(None, observed, control, metrics=METRICS, training=cells, embedding=embedding, references=names)
        for cells in (both, spoilt)
    ]
    own = frames[0]["predictor"].isin(["nearest", "knn"])
    pd.testing.assert_frame_equal(frames[0][own], frames[1][own])


def test_references_alone_equal_those_beside_a_prediction(transfer):
    observed, control, training = transfer
    alone = evaluate(None, observed, control, metrics=METRICS, training=training)
    beside = evaluate(observed, observed, control, metrics=METRICS, training=training)
    pd.testing.assert_frame_equal(alone, beside[beside["predictor"] != "prediction"].reset_index(drop=True))


def test_signed_data_are_not_clipped(transfer):
    observed, control, training = (adata.copy() for adata in transfer)
    for adata in (observed, control, training):
        adata.X = adata.X - 5.0
    frame = evaluate(None, observed, control, metrics=METRICS, training=training)
    shift = np.mean([delta(training, "A", context) for context in "wxy"], axis=0)
    cells = control.X[(control.obs["context"] == "z").to_numpy()]
    assert value(frame, "mean_shift") == pytest.approx(metrics.rmse(cells + shift, observed.X), rel=1e-9)


def test_many_control_cells_are_drawn_from_and_not_all_moved(transfer, monkeypatch):
    """Shifted references and distances use a drawn part of the cells, means of control all of them."""
    observed, control, training = transfer
    whole = evaluate(None, observed, control, metrics=["rmse", "edistance"], training=training)
    monkeypatch.setattr("multipert.metrics._table.N_MOVED_CELLS", 10)
    monkeypatch.setattr("multipert.metrics._comparison.MAX_DISTANCE_CELLS", 10)
    frame = evaluate(None, observed, control, metrics=["rmse", "edistance"], training=training)
    sizes = frame.drop_duplicates("predictor").set_index("predictor")["n_predicted"]
    assert sizes["mean_shift"] == sizes["similarity_shift"] == 10
    assert sizes["no_change"] == (control.obs["context"] == "z").sum()
    assert value(frame, "no_change") == value(whole, "no_change")
    assert value(frame, "no_change", "edistance") != value(whole, "no_change", "edistance")
    pd.testing.assert_frame_equal(
        frame, evaluate(None, observed, control, metrics=["rmse", "edistance"], training=training)
    )


def test_projected_cells_are_kept_for_their_own_cells_only():
    """Groups come and go; the scores of one must never be taken for those of another at the same address."""
    from multipert.metrics._cells import Cells
    from multipert.metrics._comparison import MAX_KEPT_SCORES, Bases

    rng = np.random.default_rng(0)
    fitted = Cells(rng.normal(size=(60, 8)))
    bases = Bases([(fitted, np.arange(60))], [(fitted, np.arange(60))])
    for _ in range(3 * MAX_KEPT_SCORES):
        cells = Cells(rng.normal(size=(5, 8)))
        np.testing.assert_allclose(bases.scores(cells, 0).values, bases.training.project(cells).values)
    assert bases.scores(cells, 0) is bases.scores(cells, 0)
