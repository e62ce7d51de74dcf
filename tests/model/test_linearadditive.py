"""LinearAdditive keeps the invariants of its equation; its closed form is what training converges to."""

from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from anndata import AnnData
from hypothesis import given, settings
from hypothesis import strategies as st
from scvi.train import Trainer

from multipert.model import LinearAdditive
from multipert.model._linearadditive import LinearAdditiveModule, least_squares

CONTEXT = {"context_key": "context"}
COMBINED = {"perturbation_key": "combination", **CONTEXT}
LINEAR = {"output_activation": "identity"}
CLOSED = {"solver": "lstsq"}


def batch(n=6, n_vars=8, context=True):
    codes = torch.tensor([[0, -1], [1, -1], [0, 1]]).repeat(n // 3, 1)
    x = torch.rand(n, n_vars, generator=torch.Generator().manual_seed(1)) * 3
    tensors = {"X": x, "perturbation": codes, "dose": (codes >= 0).float()}
    return tensors | ({"context": torch.arange(n)[:, None] % 2} if context else {})


def mean_of(adata, context, label, column="perturbation"):
    x = adata.X.toarray() if hasattr(adata.X, "toarray") else adata.X
    return x[((adata.obs["context"] == context) & (adata.obs[column] == label)).to_numpy()].mean(0, dtype=np.float64)


# ------------------------------------------------------------------ equation


@pytest.mark.parametrize("output", ["softplus", "relu", "identity"])
def test_the_module_is_its_equation(output):
    torch.manual_seed(0)
    made, tensors = LinearAdditiveModule(8, 2, (2,), output=output).eval(), batch()
    weight, bias = made.shift.weight.detach().numpy(), made.shift.bias.detach().numpy()
    codes, labels = tensors["perturbation"], np.zeros((6, 2))
    for row, code in enumerate(codes.numpy()):
        labels[row, code[code >= 0]] = 1
    inputs = np.concatenate([labels, np.eye(2)[tensors["context"][:, 0]]], axis=1)
    total = tensors["X"].numpy() + inputs @ weight.T + bias
    expected = {"softplus": np.log1p(np.exp(total)), "relu": np.maximum(total, 0), "identity": total}[output]
    np.testing.assert_allclose(made.counterfactual(tensors).detach(), expected, atol=1e-6)


def test_the_loss_compares_the_shifted_control_with_the_perturbed_cell():
    torch.manual_seed(0)
    made, tensors = LinearAdditiveModule(8, 2, output="identity"), batch(context=False)
    source = torch.rand(6, 8)
    paired = {**tensors, "X_control": source}
    found = made.loss(paired, *made(paired, compute_loss=False))
    shift = made.shift(made.vector(tensors))
    np.testing.assert_allclose(found.loss.item(), torch.square(source + shift - tensors["X"]).mean().item(), rtol=1e-6)
    assert found.reconstruction_loss["reconstruction_loss"].shape == (6,)


def test_a_batch_of_one_cell():
    tensors = {key: value[:1] for key, value in batch().items()}
    made = LinearAdditiveModule(8, 2, (2,))
    assert made.counterfactual(tensors).shape == (1, 8)


def test_only_the_identity_gives_control_cells_back():
    cell = {"X": torch.zeros(1, 8), "perturbation": torch.tensor([[-1]]), "dose": torch.zeros(1, 1)}
    for output, expected in (("softplus", np.log(2)), ("identity", 0)):
        made = LinearAdditiveModule(8, 2, output=output)
        torch.nn.init.zeros_(made.shift.bias)
        np.testing.assert_allclose(made.counterfactual(cell).detach(), np.full((1, 8), expected), atol=1e-6)


# ------------------------------------------------------------------ what a trained model predicts


@pytest.mark.parametrize("some", [slice(None), slice(5, 12)])
def test_the_change_is_the_column_of_the_perturbation_and_the_bias(adata, toys, some):
    model = toys.trained(
        LinearAdditive, adata, setup=CONTEXT, init={**LINEAR, "inject_covariates": False}, max_epochs=3
    )
    rows = np.flatnonzero(adata.obs["perturbation"] == "control")[some]
    control, found = adata[rows], model.predict(perturbation="B", indices=rows, clip=False)
    layer = model.module.shift
    column = (layer.weight[:, list(model._codec.vocabulary).index("B")] + layer.bias).detach().numpy()
    np.testing.assert_allclose(found.X.mean(0) - control.X.toarray().mean(0), column, atol=1e-6)
    np.testing.assert_allclose(found.X - control.X.toarray(), np.tile(column, (control.n_obs, 1)), atol=1e-6)


@pytest.mark.parametrize("init", [LINEAR, CLOSED])
def test_parts_of_a_combination_add_up(adata, toys, init):
    model = toys.trained(LinearAdditive, adata, setup=COMBINED, init=init, max_epochs=3)
    of = {
        label: model.predict(perturbation=label, clip=False).X.astype(np.float64)
        for label in ("A", "B", "A+B", "B + A", "control")
    }
    np.testing.assert_allclose(of["A+B"] - of["A"] - of["B"] + of["control"], 0, atol=2e-6)
    np.testing.assert_array_equal(of["A+B"], of["B + A"])
    assert np.abs(of["A"] - of["control"]).max() > 0.1


def test_the_spread_of_control_cells_is_kept(adata, toys):
    model = toys.trained(LinearAdditive, adata, setup=CONTEXT, init=CLOSED)
    found = model.predict(perturbation="A", context="b", clip=False)
    control = adata[((adata.obs["context"] == "b") & (adata.obs["perturbation"] == "control")).to_numpy()]
    np.testing.assert_allclose(found.X.var(0), control.X.toarray().var(0), atol=1e-5)


@pytest.mark.parametrize("control_targets", [True, False])
def test_under_control_a_cell_is_moved_by_bias_and_context_only(adata, toys, control_targets):
    init = {**CLOSED, "control_targets": control_targets}
    model = toys.trained(LinearAdditive, adata, setup=CONTEXT, init=init)
    found = model.predict(perturbation="control", clip=False)
    layer = model.module.shift
    of_context = dict(zip("abc", (layer.weight[:, 3:].T + layer.bias).detach().numpy(), strict=True))
    control = adata[(adata.obs["perturbation"] == "control").to_numpy()]
    moved = np.stack([of_context[c] for c in control.obs["context"]])
    np.testing.assert_allclose(found.X - control.X.toarray(), moved, atol=1e-5)
    # control cells that are their own targets leave nothing for the bias but noise
    assert (np.abs(moved).mean() < 0.15) == control_targets


def test_trained_on_control_cells_too_the_bias_is_near_zero(toys):
    adata, shift = toys.planted(n=60, n_vars=12)
    train = {"split_key": "split", "max_epochs": 60, "lr": 5e-2, "weight_decay": 0.0, "batch_size": 32}
    train["plan_kwargs"] = {"n_warmup_steps": 0, "decay_every": 80, "decay_factor": 0.7}
    model = toys.trained(LinearAdditive, adata, setup=CONTEXT, init={**LINEAR, "inject_covariates": False}, **train)
    layer = model.module.shift
    assert layer.bias.abs().max() < 0.1
    # the target is another tensor than the source: a shift is learnt
    observed = mean_of(adata, "a", "A") - mean_of(adata, "a", "control")
    np.testing.assert_allclose((layer.weight[:, 0] + layer.bias).detach(), observed, atol=0.05)
    assert np.abs(observed[:10]).min() > 0.3
    table = model.get_perturbation_embedding()
    assert (table.shape, list(table.index)) == ((1, 12), ["A"])
    np.testing.assert_allclose(table.loc["A"], layer.weight[:, 0].detach(), atol=1e-7)


def test_two_contexts_of_one_perturbation_get_one_shift_between_them(toys):
    adata, _ = toys.planted(n=40, n_vars=12)
    adata.X[((adata.obs["context"] == "b") & (adata.obs["perturbation"] == "A")).to_numpy(), 11] += 1
    adata.obs["split"] = "train"
    init = {**CLOSED, "inject_covariates": False}
    model = toys.trained(LinearAdditive, adata, setup=CONTEXT, init=init, split_key="split")
    found = model.predict(perturbation="A", clip=False)
    moved = found.X - adata[(adata.obs["perturbation"] == "control").to_numpy()].X
    np.testing.assert_allclose(moved, np.tile(moved[0], (len(moved), 1)), atol=1e-5)
    expected = np.mean([mean_of(adata, c, "A") - mean_of(adata, c, "control") for c in "ab"], axis=0)
    # the bias, which control cells draw to 0, is the rest
    np.testing.assert_allclose(moved[0], expected, atol=1e-5)


# ------------------------------------------------------------------ closed form


def test_the_closed_form_is_the_difference_of_means_pooled_over_contexts(adata, toys):
    uneven = adata[~((adata.obs["context"] == "a") & (np.arange(120) % 3 == 0)).to_numpy()].copy()
    uneven.obs["split"] = "train"
    init = {**CLOSED, "inject_covariates": False}
    model = toys.trained(LinearAdditive, uneven, setup=CONTEXT, init=init, split_key="split")
    sizes = {c: ((uneven.obs["context"] == c) & (uneven.obs["perturbation"] == "A")).sum() for c in "abc"}
    deltas = [mean_of(uneven, c, "A") - mean_of(uneven, c, "control") for c in "abc"]
    pooled = np.average(deltas, axis=0, weights=list(sizes.values()))
    layer = model.module.shift
    np.testing.assert_allclose((layer.weight[:, 0] + layer.bias).detach(), pooled, atol=1e-5)
    np.testing.assert_allclose(layer.bias.detach(), 0, atol=1e-6)


def test_training_converges_to_the_closed_form(toys):
    adata, _ = toys.planted(n=40, n_vars=12)
    adata = adata[(adata.obs["context"] == "a").to_numpy()].copy()
    model = toys.trained(LinearAdditive, adata, setup=CONTEXT, init=CLOSED, split_key="split")
    x, perturbed = torch.from_numpy(adata.X), torch.from_numpy((adata.obs["perturbation"] == "A").to_numpy())
    # the mean control cell is what all partners of a perturbed cell come to
    source = torch.where(perturbed[:, None], x[~perturbed].mean(0), x)
    codes = perturbed.long()[:, None] - 1
    tensors = {"X": x, "X_control": source, "perturbation": codes, "dose": perturbed.float()[:, None]}
    torch.manual_seed(0)
    made = LinearAdditiveModule(12, 1, output="identity")
    optimizer = torch.optim.SGD(made.parameters(), lr=2.0)
    for _ in range(400):
        optimizer.zero_grad()
        made.loss(tensors, *made(tensors, compute_loss=False)).loss.backward()
        optimizer.step()
    layer = model.module.shift
    np.testing.assert_allclose(made.shift.bias.detach(), layer.bias.detach(), atol=1e-3)
    np.testing.assert_allclose(made.shift.weight[:, 0].detach(), layer.weight[:, 0].detach(), atol=1e-3)
    assert layer.weight[:, 0].abs().max() > 0.5


@settings(deadline=None, max_examples=25)
@given(seed=st.integers(0, 10**6), ridge=st.sampled_from([0.0, 0.3]), n=st.integers(3, 30))
def test_least_squares_is_the_weighted_ridge_regression(seed, ridge, n):
    rng = np.random.default_rng(seed)
    design = np.c_[rng.normal(size=(n, 3)), np.ones(n)]
    target, weight = rng.normal(size=(n, 2)), rng.uniform(0.5, 2, n)
    found = least_squares(*map(torch.from_numpy, (design, target, weight)), ridge).numpy()
    # rows that pull the coefficients to 0
    penalty = np.sqrt(ridge * weight.sum()) * np.eye(4)[:3]
    rows = np.r_[np.sqrt(weight)[:, None] * design, penalty]
    expected = np.linalg.lstsq(rows, np.r_[np.sqrt(weight)[:, None] * target, np.zeros((3, 2))], rcond=None)[0]
    residuals = [np.square(rows[:n] @ c - np.sqrt(weight)[:, None] * target).sum() for c in (found, expected)]
    np.testing.assert_allclose(residuals[0], residuals[1], rtol=1e-4, atol=1e-8)
    if n > 10:
        np.testing.assert_allclose(found, expected, atol=1e-6)


def test_ridge_draws_the_shift_to_zero(adata, toys):
    sizes = []
    for ridge in (0.0, 0.1, 10.0):
        model = toys.trained(LinearAdditive, adata, setup=CONTEXT, init={**CLOSED, "ridge": ridge})
        sizes.append(np.abs(model.get_perturbation_embedding().to_numpy()).mean())
    assert sizes[0] > sizes[1] > sizes[2]
    assert sizes[2] < 0.1 * sizes[0]


def test_the_closed_form_reads_no_held_out_cell_and_no_context_without_control(adata, toys):
    adata.obs["split"] = np.where(
        (adata.obs["context"] == "c") & (adata.obs["perturbation"] == "control"), "test", "train"
    )
    model = toys.trained(LinearAdditive, adata, setup=CONTEXT, init=CLOSED, split_key="split")
    other = adata.copy()
    x = other.X.toarray()
    x[(other.obs["context"] == "c").to_numpy()] += 2
    other.X = x
    again = toys.trained(LinearAdditive, other, setup=CONTEXT, init=CLOSED, split_key="split")
    np.testing.assert_array_equal(*(m.get_perturbation_embedding().to_numpy() for m in (model, again)))
    adata.obs["split"] = np.where(
        (adata.obs["context"] == "a") == (adata.obs["perturbation"] == "control"), "train", "test"
    )
    with pytest.raises(ValueError, match="No context has both control and perturbed training cells"):
        toys.trained(LinearAdditive, adata, setup=CONTEXT, init=CLOSED, split_key="split")


# ------------------------------------------------------------------ setups


def test_without_covariates_any_context_can_be_predicted(adata, toys):
    setup = {**CONTEXT, "categorical_covariate_keys": ["batch"]}
    model = toys.trained(LinearAdditive, adata, setup=setup, init={"inject_covariates": False})
    assert model.module.shift.in_features == 3
    new = adata.copy()
    new.obs["batch"] = "z"
    elsewhere = new.copy()
    elsewhere.obs["context"] = "elsewhere"
    np.testing.assert_array_equal(model.predict(elsewhere, "A").X, model.predict(adata, "A").X)
    full = toys.trained(LinearAdditive, adata, setup=setup)
    assert full.module.shift.in_features == 3 + 3 + 2
    with pytest.raises(ValueError, match=r"30 cell\(s\) have values of obs\['batch'\]"):
        full.predict(new, "A")
    new.obs["batch"], new.obs["context"] = "x", "elsewhere"
    with pytest.raises(ValueError, match="unseen_context"):
        full.predict(new, "A")


def test_an_unseen_perturbation_is_linear_in_its_embedding(adata, toys):
    setup = {**CONTEXT, "perturbation_embedding_key": "table"}
    table = adata.uns["table"]
    table.loc["D"] = table.loc["A"] + table.loc["B"] - table.loc["C"]
    model = toys.trained(LinearAdditive, adata, setup=setup, init=CLOSED)
    shifts = model.get_perturbation_embedding()
    assert list(shifts.index) == list("ABCD")
    np.testing.assert_allclose(shifts.loc["D"], shifts.loc["A"] + shifts.loc["B"] - shifts.loc["C"], atol=1e-5)
    assert model.predict(perturbation="D").n_obs == 30


def test_what_all_perturbations_share_is_theirs_and_not_controls(toys):
    """A centred embedding has its middle, and the sum of all of its rows, where control is."""
    rng = np.random.default_rng(0)
    labels = np.repeat(["control", *"ABCD"], 60)
    x = rng.normal(3, 0.1, (300, 20))
    x[labels != "control", :5] += 2
    adata = AnnData(x.astype(np.float32), pd.DataFrame({"perturbation": labels}, index=[f"c{i}" for i in range(300)]))
    adata.uns["table"] = pd.DataFrame([[1.0, 0], [-1, 0], [0, 1], [0, -1]], index=list("ABCD"))
    model = toys.trained(LinearAdditive, adata, setup={"perturbation_embedding_key": "table"}, init=CLOSED)
    for realise in ("plain", "residual"):
        control, one, both = (
            model.predict(perturbation=label, realise=realise).X.mean(0) for label in ("control", "A", "A+B")
        )
        np.testing.assert_allclose((one - control)[:5], 2, atol=0.1)
        np.testing.assert_allclose((both - control)[:5], 4, atol=0.2)


def test_doses_scale_the_shift_by_their_logarithm(adata, toys):
    setup = {"perturbation_key": "combination", **CONTEXT, "dose_key": "dose"}
    model = toys.trained(LinearAdditive, adata, setup=setup, init=CLOSED)
    control = model.predict(perturbation="control", clip=False).X.astype(np.float64)
    one, seven = (model.predict(perturbation="A", dose=d, clip=False).X - control for d in (1, 7))
    np.testing.assert_allclose(seven, one * np.log1p(7) / np.log1p(1), atol=1e-5)
    both = model.predict(perturbation="A+B", dose="7+1", clip=False).X - control
    np.testing.assert_allclose(both - seven, model.predict(perturbation="B", dose=1, clip=False).X - control, atol=1e-5)


def test_signed_data_take_no_activation(adata, toys):
    adata.X = adata.X.toarray() - 1
    model = toys.trained(LinearAdditive, adata, setup={**CONTEXT, "signed": True})
    assert isinstance(model.module.activation, torch.nn.Identity)
    assert (model.predict(perturbation="A").X < 0).any()
    with pytest.raises(ValueError, match="output_activation='relu' gives no negative values"):
        LinearAdditive(adata, output_activation="relu")


@pytest.mark.parametrize(
    ("init", "setup", "message"),
    [
        ({"solver": "qr"}, {}, "solver='qr' is unknown"),
        (
            {"solver": "lstsq", "output_activation": "softplus"},
            {},
            "needs output_activation='identity'; found 'softplus'",
        ),
        ({"ridge": 0.1}, {}, "ridge=0.1 .* is for solver='lstsq'"),
        ({"ridge": -1.0, "solver": "lstsq"}, {}, "ridge=-1.0"),
        ({"output_activation": "exp"}, {}, "output_activation='exp' is unknown"),
        ({"preset": "norman"}, {}, "preset='norman' is unknown.*norman19"),
        ({"solver": "lstsq"}, {"pairing_key": "partner"}, "pairing_key='partner' names the pairs"),
    ],
)
def test_arguments_that_make_no_model_are_named(adata, init, setup, message):
    LinearAdditive.setup_anndata(adata, **{**CONTEXT, **setup})
    with pytest.raises(ValueError, match=message):
        LinearAdditive(adata, **init)


def test_presets_are_the_published_ones(adata, monkeypatch):
    seen = SimpleNamespace()

    def fit(trainer, plan, train, validation=None):
        seen.found = plan.lr, plan.weight_decay, plan.n_warmup_steps, train.loader.batch_size, trainer.max_epochs
        seen.rows = train.loader.rows

    monkeypatch.setattr(Trainer, "fit", fit)
    LinearAdditive.setup_anndata(adata, **CONTEXT)
    LinearAdditive(adata, preset="norman19").train(accelerator="cpu", train_size=1.0)
    assert seen.found == (4.717e-3, 1.76e-8, 0, 4000, 500)
    # perturbed cells only
    assert sorted(seen.rows) == np.flatnonzero(adata.obs["perturbation"] != "control").tolist()
    assert all(LinearAdditive(adata, preset=name) for name in LinearAdditive.presets)


def test_a_model_in_closed_form_comes_back_from_its_files(adata, toys, tmp_path):
    model = toys.trained(LinearAdditive, adata, setup=CONTEXT, init=CLOSED)
    model.save(tmp_path)
    loaded = LinearAdditive.load(tmp_path, False, accelerator="cpu")
    assert loaded.stages == ()
    np.testing.assert_array_equal(loaded.predict(adata, "A").X, model.predict(adata, "A").X)


def test_every_context_counts_with_its_own_covariate(toys):
    rng = np.random.default_rng(0)
    obs = pd.DataFrame(
        [(c, p) for c in "ab" for p in ("control", "A") for _ in range(20)], columns=["context", "perturbation"]
    )
    obs.index = [f"c{i}" for i in obs.index]
    x = rng.uniform(2, 3, (80, 4)).astype(np.float32)
    x[((obs["context"] == "b") & (obs["perturbation"] == "A")).to_numpy()] += 1
    adata = AnnData(x, obs)
    adata.obs["split"] = "train"
    init = {**CLOSED, "control_targets": False}
    model = toys.trained(LinearAdditive, adata, setup=CONTEXT, init=init, split_key="split")
    for context in "ab":
        found = model.predict(perturbation="A", context=context, returns="mean", clip=False).X[0]
        np.testing.assert_allclose(found, mean_of(adata, context, "A"), atol=1e-5)
