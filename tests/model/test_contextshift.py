"""Changes learnt from resembling contexts: restated formulas, limits, symmetries, and real cells."""

import anndata
import numpy as np
import pandas as pd
import pytest
import torch
from anndata import AnnData

from multipert.data._shifts import GRIDS
from multipert.metrics import PRESETS, evaluate
from multipert.model import ContextShift, TwoFactor
from multipert.model._contextshift import weigh

KINDS = ("similarity", "ridge", "gene_ridge")
QUIET = {"train_size": 1.0, "accelerator": "cpu"}


def screen(n_contexts=5, n_vars=12, labels=("A",), *, n=6, seed=0, spread=0.4, linear=0.0):
    """Contexts c0, c1, ...; each gene's change is partly linear in the control mean; c0's perturbed cells are test cells."""
    rng = np.random.default_rng(seed)
    control = 3 + rng.normal(0, spread, (n_contexts, n_vars))
    frames, cells = [], []
    for p, label in enumerate(("control", *labels)):
        change = rng.normal(0, 0.3, n_vars) + linear * (control - control.mean(0)) + rng.normal(0, 0.1, control.shape)
        means = control + (change if p else 0)
        cells.append(np.repeat(means, n, axis=0) + rng.normal(0, 0.2, (n_contexts * n, n_vars)))
        contexts = np.repeat([f"c{c}" for c in range(n_contexts)], n)
        frames.append(pd.DataFrame({"perturbation": label, "context": contexts}))
    obs = pd.concat(frames, ignore_index=True)
    obs["split"] = np.where((obs["context"] == "c0") & (obs["perturbation"] != "control"), "test", "train")
    order = rng.permutation(len(obs))
    obs = obs.iloc[order].set_index(np.array([f"cell{i}" for i in range(len(obs))]))
    return AnnData(np.concatenate(cells)[order].clip(0).astype(np.float32), obs)


def fit(adata, cls=ContextShift, split_key="split", **init):
    cls.setup_anndata(adata, context_key="context")
    model = cls(adata, **init)
    model.train(split_key=split_key, **QUIET)
    return model


def group_mean(adata, label, context):
    here = (adata.obs["perturbation"] == label) & (adata.obs["context"] == context)
    return adata.X[here.to_numpy()].astype(np.float64).mean(0)


def shift(model, adata, context="c0", label="A"):
    """Predicted change of the context's mean."""
    predicted = model.predict(adata, perturbation=label, context=context, returns="mean", clip=False)
    return predicted.X[0].astype(np.float64) - group_mean(adata, "control", context)


def pieces(adata, label="A", target="c0"):
    """Control means and changes of the training contexts, and the target's control mean."""
    trained = adata[adata.obs["split"] == "train"]
    contexts = sorted(set(trained.obs["context"][trained.obs["perturbation"] == label]))
    control = np.stack([group_mean(trained, "control", c) for c in contexts])
    return (
        control,
        np.stack([group_mean(trained, label, c) for c in contexts]) - control,
        group_mean(adata, "control", target),
    )


def restated(kind, strength, control, target, delta):
    """The three formulas without a shared line: correlations by numpy, ridges as least squares on augmented rows."""
    centre = control.mean(0)
    a, wanted = control - centre, target - centre
    if kind == "similarity":
        r = np.array([np.corrcoef(wanted, row)[0, 1] for row in a])
        w = np.exp(r / strength)
        return (w[:, None] * delta).sum(0) / w.sum()
    d = delta - delta.mean(0)
    if kind == "ridge":
        penalty = strength * (a**2).sum() / len(a)
        rows, answers = (
            np.vstack([a, np.sqrt(penalty) * np.eye(a.shape[1])]),
            np.vstack([d, np.zeros((a.shape[1], a.shape[1]))]),
        )
        return delta.mean(0) + wanted @ np.linalg.lstsq(rows, answers, rcond=None)[0]
    penalty = strength * np.mean([(column**2).sum() for column in a.T])
    slopes = [
        np.linalg.lstsq(np.append(x, np.sqrt(penalty))[:, None], np.append(y, 0), rcond=None)[0][0]
        for x, y in zip(a.T, d.T, strict=True)
    ]
    return delta.mean(0) + np.array(slopes) * wanted


# ------------------------------------------------------------------ formulas


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("strength", [0.05, 0.4, 7.0])
def test_predictions_equal_the_restated_formula(kind, strength):
    adata = screen(linear=0.5)
    control, delta, target = pieces(adata)
    expected = restated(kind, strength, control, target, delta)
    assert np.abs(expected - delta.mean(0)).max() > 1e-3
    model = fit(adata, kind=kind, strength=strength)
    np.testing.assert_allclose(shift(model, adata), expected, atol=1e-6)
    weighed = weigh(kind, strength, *map(torch.from_numpy, (control, target[None], delta)))[0]
    np.testing.assert_allclose(weighed, expected, atol=1e-12)


@pytest.mark.parametrize("kind", KINDS)
def test_every_context_and_perturbation_gets_its_own_shift(kind):
    adata = screen(labels=("A", "B"), linear=0.5)
    adata.obs["split"] = adata.obs["split"].where(
        ~((adata.obs["context"] == "c2") & (adata.obs["perturbation"] == "B")), "test"
    )
    model = fit(adata, kind=kind, strength=0.5)
    predicted = model.predict(returns="mean", clip=False)
    assert predicted.n_obs == 10
    for row, (label, context) in enumerate(predicted.obs[["perturbation", "context"]].itertuples(index=False)):
        control, delta, target = pieces(adata, label, context)
        expected = target + restated(kind, 0.5, control, target, delta)
        np.testing.assert_allclose(predicted.X[row], expected, atol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_cells_are_the_control_cells_moved_by_the_shift(kind):
    adata = screen(linear=0.5)
    model = fit(adata, kind=kind)
    predicted = model.predict(perturbation="A", context="c0", clip=False)
    moved = predicted.X - adata[predicted.obs["source_cell"]].X
    np.testing.assert_allclose(moved, np.broadcast_to(shift(model, adata), moved.shape), atol=2e-6)


# ------------------------------------------------------------------ limits


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("strength", [None, 1e-3, 100.0])
def test_one_training_context_gives_its_own_change(kind, strength):
    adata = screen()
    adata = adata[adata.obs["context"].isin(["c0", "c3"])].copy()
    model = fit(adata, kind=kind, strength=strength)
    np.testing.assert_allclose(shift(model, adata), pieces(adata)[1][0], atol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("strength", [1e-3, 1.0])
def test_equal_control_means_give_the_mean_shift(kind, strength):
    # the same control cells in every context, in another order, so that means differ by rounding alone
    adata = screen(n=30)
    rng = np.random.default_rng(1)
    is_control = (adata.obs["perturbation"] == "control").to_numpy()
    cells = adata.X[is_control & (adata.obs["context"] == "c1").to_numpy()]
    for context in adata.obs["context"].unique():
        here = is_control & (adata.obs["context"] == context).to_numpy()
        adata.X[here] = rng.permutation(cells)
    model = fit(adata, kind=kind, strength=strength)
    expected = shift(fit(adata, TwoFactor), adata)
    np.testing.assert_allclose(expected, pieces(adata)[1].mean(0), atol=1e-6)
    np.testing.assert_allclose(shift(model, adata), expected, atol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_rounding_of_equal_means_is_no_resemblance(kind):
    cells = np.random.default_rng(0).gamma(2, 1, (30, 8))
    control = torch.tensor(np.stack([sum(np.random.default_rng(i).permutation(cells)) / 30 for i in range(3)]))
    assert not torch.equal(control[0], control[1])
    delta, target = torch.randn(3, 8, dtype=torch.float64), control[:1].float().double()
    np.testing.assert_allclose(weigh(kind, 1e-3, control, target, delta)[0], delta.mean(0), atol=1e-12)


def test_a_target_at_the_centre_resembles_no_context_more_than_another():
    control = torch.tensor([[1.0, 2.0, 3.0], [3.0, 1.0, 2.0], [2.0, 3.0, 1.0]], dtype=torch.float64)
    target = control.mean(0, keepdim=True) * (1 + 1e-8)
    delta = torch.eye(3, dtype=torch.float64)
    np.testing.assert_allclose(weigh("similarity", 0.02, control, target, delta)[0], [1 / 3] * 3, atol=1e-12)


@pytest.mark.parametrize("kind", KINDS)
def test_the_largest_strength_gives_the_mean_shift(kind):
    adata = screen(linear=0.5)
    expected = pieces(adata)[1].mean(0)
    np.testing.assert_allclose(shift(fit(adata, kind=kind, strength=1e9), adata), expected, atol=1e-6)
    assert np.abs(shift(fit(adata, kind=kind, strength=0.1), adata) - expected).max() > 1e-2


def test_the_smallest_penalty_gives_a_training_context_its_own_change():
    adata = screen(linear=0.5)
    model = fit(adata, kind="ridge", strength=1e-9)
    control, delta, _ = pieces(adata)
    for i, context in enumerate(["c1", "c2", "c3", "c4"]):
        np.testing.assert_allclose(shift(model, adata, context), delta[i], atol=1e-6)
    assert np.abs(delta - delta.mean(0)).max() > 0.1
    assert np.linalg.matrix_rank(control - control.mean(0)) == 3


def test_the_smallest_temperature_gives_a_training_context_its_own_change():
    adata = screen()
    model = fit(adata, kind="similarity", strength=1e-3)
    delta = pieces(adata)[1]
    for i, context in enumerate(["c1", "c2", "c3", "c4"]):
        np.testing.assert_allclose(shift(model, adata, context), delta[i], atol=1e-6)


def test_a_change_that_is_linear_in_the_control_mean_is_recovered_by_the_gene_ridge():
    rng = np.random.default_rng(0)
    control, slope, offset = rng.normal(3, 1, (6, 8)), rng.normal(0, 1, 8), rng.normal(0, 1, 8)
    target = rng.normal(3, 1, (2, 8))
    found = weigh("gene_ridge", 1e-12, *map(torch.from_numpy, (control, target, offset + slope * control)))
    np.testing.assert_allclose(found, offset + slope * target, atol=1e-8)


# ------------------------------------------------------------------ symmetries


@pytest.mark.parametrize("kind", KINDS)
def test_neither_the_names_nor_the_order_of_contexts_matter(kind):
    adata = screen(linear=0.5)
    model = fit(adata, kind=kind)
    renamed = adata[np.random.default_rng(5).permutation(adata.n_obs)].copy()
    names = {"c0": "c0", "c1": "z", "c2": "a", "c3": "m", "c4": "b"}
    renamed.obs["context"] = renamed.obs["context"].map(names)
    other = fit(renamed, kind=kind)
    assert float(other.module.chosen_strength) == float(model.module.chosen_strength)
    np.testing.assert_allclose(shift(other, renamed), shift(model, adata), atol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_a_constant_added_to_all_cells_changes_no_shift(kind):
    adata = screen(linear=0.5)
    raised = adata.copy()
    raised.X = adata.X + np.linspace(0, 4, adata.n_vars, dtype=np.float32)
    np.testing.assert_allclose(shift(fit(raised, kind=kind), raised), shift(fit(adata, kind=kind), adata), atol=5e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_test_cells_change_no_bit(kind):
    adata = screen(linear=0.5)
    spoiled = adata.copy()
    spoiled.X[(adata.obs["split"] == "test").to_numpy()] += 3
    one, other = fit(adata, kind=kind), fit(spoiled, kind=kind)
    assert all(torch.equal(a, b) for a, b in zip(one.module.buffers(), other.module.buffers(), strict=True))
    np.testing.assert_array_equal(one.predict(perturbation="A").X, other.predict(perturbation="A").X)
    spoiled.X[(adata.obs["split"] == "train").to_numpy() & (adata.obs["perturbation"] == "A").to_numpy()] += 1
    assert not np.allclose(one.predict(perturbation="A").X, fit(spoiled, kind=kind).predict(perturbation="A").X)


@pytest.mark.parametrize("kind", KINDS)
def test_the_target_counts_all_control_cells_of_its_context(kind):
    adata = screen(linear=0.5)
    model = fit(adata, kind=kind, strength=0.3)
    first = np.flatnonzero((adata.obs["perturbation"] == "control") & (adata.obs["context"] == "c0"))[:2]
    some = model.predict(perturbation="A", indices=first, clip=False).X - adata.X[first]
    np.testing.assert_allclose(some, np.broadcast_to(shift(model, adata), some.shape), atol=2e-6)


# ------------------------------------------------------------------ strength


def left_out(kind, pairs):
    """The strength of the least squared error when each training context in turn is predicted from the others."""
    errors = []
    for strength in GRIDS[kind]:
        total = 0.0
        for control, delta in pairs:
            for out in range(len(control)):
                kept = np.arange(len(control)) != out
                predicted = restated(kind, strength, control[kept], control[out], delta[kept])
                total += np.mean((predicted - delta[out]) ** 2)
        errors.append(total)
    assert np.ptp(errors) > 0
    return GRIDS[kind][int(np.argmin(errors))]


@pytest.mark.parametrize("kind", KINDS)
def test_the_strength_is_chosen_by_leaving_one_training_context_out(kind):
    chosen = []
    for linear, spread in ((0.0, 0.4), (0.3, 0.4), (0.8, 1.0)):
        adata = screen(n_contexts=6, labels=("A", "B"), linear=linear, spread=spread, seed=3)
        # B is left with two training contexts, too few to be left out
        adata = adata[~((adata.obs["perturbation"] == "B") & adata.obs["context"].isin(["c3", "c4", "c5"]))].copy()
        model = fit(adata, kind=kind)
        chosen.append(float(model.module.chosen_strength))
        np.testing.assert_allclose(chosen[-1], left_out(kind, [pieces(adata)[:2]]))
    assert len(set(chosen)) > 1


@pytest.mark.parametrize("kind", KINDS)
def test_all_perturbations_choose_one_strength_together(kind):
    adata = screen(n_contexts=5, labels=("A", "B"), linear=0.4, seed=4)
    model = fit(adata, kind=kind)
    expected = left_out(kind, [pieces(adata, label)[:2] for label in "AB"])
    np.testing.assert_allclose(float(model.module.chosen_strength), expected)


@pytest.mark.parametrize(("kind", "strength"), [("similarity", 0.4), ("ridge", 1.0), ("gene_ridge", 1.0)])
def test_fewer_than_three_training_contexts_fall_back(kind, strength):
    adata = screen(n_contexts=3, linear=0.5)
    model = fit(adata, kind=kind)
    assert float(model.module.chosen_strength) == strength
    control, delta, target = pieces(adata)
    assert len(control) == 2
    np.testing.assert_allclose(shift(model, adata), restated(kind, strength, control, target, delta), atol=1e-6)
    four = screen(n_contexts=4, linear=0.5)
    np.testing.assert_allclose(float(fit(four, kind=kind).module.chosen_strength), left_out(kind, [pieces(four)[:2]]))


def test_the_grids_span_the_stated_range():
    assert {kind: (grid[0], grid[-1]) for kind, grid in GRIDS.items()} == {
        "similarity": (pytest.approx(0.02), pytest.approx(3)),
        "ridge": (pytest.approx(1e-3), pytest.approx(100)),
        "gene_ridge": (pytest.approx(1e-3), pytest.approx(100)),
    }


# ------------------------------------------------------------------ refusals


@pytest.mark.parametrize(
    ("init", "message"),
    [
        ({"kind": "similarty"}, "kind='similarty' is unknown.*did you mean 'similarity'"),
        *(
            ({"strength": value}, f"strength={value} must be positive and finite")
            for value in (0, -1.0, np.inf, np.nan)
        ),
    ],
)
def test_bad_arguments_are_named(init, message):
    with pytest.raises(ValueError, match=message):
        fit(screen(), **init)


@pytest.mark.parametrize("cls", [ContextShift, TwoFactor])
def test_every_choice_of_the_search_space_is_legal(cls):
    adata = screen()
    for name, (how, choices) in cls.search_space.items():
        assert how == "choice"
        assert len(set(choices)) > 1
        assert all(np.isfinite(shift(fit(adata, cls, **{name: choice}), adata)).all() for choice in choices)


def test_a_perturbation_without_controls_beside_it_is_refused():
    adata = screen(labels=("A", "B"))
    seen_with_b = adata.obs["context"] == "c4"
    alone = (adata.obs["perturbation"] == "B") & ~seen_with_b
    adata.obs.loc[alone | ((adata.obs["perturbation"] == "control") & seen_with_b), "split"] = "test"
    model = fit(adata)
    assert np.isfinite(shift(model, adata)).all()
    with pytest.raises(ValueError, match="'B' at dose 1 is in no training context that has control cells"):
        model.predict(perturbation="B")


def test_the_embedding_is_the_mean_change(toys):
    adata = screen(labels=("A", "B"))
    table = fit(adata).get_perturbation_embedding()
    assert table.index.tolist() == ["A", "B"]
    for label in "AB":
        np.testing.assert_allclose(table.loc[label], pieces(adata, label)[1].mean(0), atol=1e-6)


# ------------------------------------------------------------------ real cells


def test_the_figures_on_interferon_stimulated_blood_cells(shared_data):
    path = shared_data / "kang18_scgen_valid.h5ad"
    if not path.exists():
        pytest.skip("needs shared/data/kang18_scgen_valid.h5ad beside the project")
    adata = anndata.read_h5ad(path)
    is_control = (adata.obs["perturbation"] == "control").to_numpy()
    cell_type = adata.obs["cell_type"].astype(str).to_numpy()
    ContextShift.setup_anndata(adata, context_key="cell_type")
    model, figures = ContextShift(adata), []
    metrics = ["pearson_delta", "r2_pearson_bootstrap"]
    assert set(metrics) <= set(PRESETS["thesis-joint"])
    for held_out in sorted(set(cell_type)):
        here = cell_type == held_out
        adata.obs["split"] = np.where(here & ~is_control, "test", "train")
        model.train(split_key="split", accelerator="cpu")
        predicted = model.predict(context=held_out)
        observed, control = adata[here & ~is_control], adata[here & is_control]
        training = adata[(adata.obs["split"] == "train").to_numpy()]
        frame = evaluate(
            predicted, observed, control, ("perturbation", "cell_type"), metrics=metrics, training=training
        )
        figures.append(frame[frame["predictor"] == "prediction"].set_index("metric")["value"])
    mean = pd.concat(figures, axis=1).mean(axis=1)
    assert len(figures) == 7
    assert mean["pearson_delta"] == pytest.approx(0.905, abs=0.01)
    assert mean["r2_pearson_bootstrap"] == pytest.approx(0.955, abs=0.01)
