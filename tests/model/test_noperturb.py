"""No change: every prediction is the control cell itself, whatever the label."""

import numpy as np
import pytest

from multipert.model import NoPerturb


@pytest.fixture
def model(adata, toys):
    return toys.trained(NoPerturb, adata, setup={"perturbation_key": "combination", "context_key": "context"})


def controls(adata, context=None):
    kept = adata.obs["perturbation"] == "control"
    return adata[kept if context is None else kept & (adata.obs["context"] == context)]


@pytest.mark.parametrize("label", ["A", "B", "A+B", "control"])
@pytest.mark.parametrize("realise", ["plain", "residual", "counts"])
def test_a_predicted_cell_is_its_control_cell(model, adata, label, realise):
    predicted = model.predict(perturbation=label, realise=realise)
    np.testing.assert_array_equal(predicted.X, adata[predicted.obs["source_cell"]].X.toarray())
    assert set(predicted.obs["source_cell"]) == set(controls(adata).obs_names)
    if realise == "counts":
        np.testing.assert_array_equal(
            predicted.layers["counts"], adata[predicted.obs["source_cell"]].layers["counts"].toarray()
        )


def test_a_predicted_mean_is_that_of_the_controls_of_the_context(model, adata):
    predicted = model.predict(perturbation=["A", "A+B"], returns="mean")
    assert predicted.n_obs == 6
    for i, context in enumerate(predicted.obs["context"]):
        x = controls(adata, context).X.toarray().astype(np.float64)
        np.testing.assert_allclose(predicted.X[i], x.mean(0), rtol=1e-6)
        np.testing.assert_allclose(predicted.layers["variance"][i], x.var(0), rtol=1e-4, atol=1e-6)


def test_doses_and_perturbations_without_training_cells_are_legal(adata, toys):
    adata.obs["split"] = np.where(adata.obs["perturbation"] == "B", "test", "train")
    setup = {"dose_key": "single_dose", "context_key": "context"}
    model = toys.trained(NoPerturb, adata, setup=setup, split_key="split")
    predicted = model.predict(perturbation="B", dose=[0.5, 7], context="a")
    expected = controls(adata, "a").X.toarray()
    np.testing.assert_array_equal(predicted.X, np.concatenate([expected, expected]))
    assert predicted.obs["single_dose"].unique().tolist() == [0.5, 7]
    with pytest.raises(ValueError, match="'E' is unknown"):
        model.predict(perturbation="E")


def test_annotation_holds_controls_of_the_own_context_and_never_the_cell_itself(model, adata):
    before = adata.X.toarray()
    model.annotate()
    layer = np.asarray(adata.layers["NoPerturb_predicted"])
    perturbed = adata.obs["perturbation"] != "control"
    for context in "abc":
        pool = {row.tobytes() for row in controls(adata, context).X.toarray()}
        here = (perturbed & (adata.obs["context"] == context)).to_numpy()
        assert all(row.tobytes() in pool for row in np.ascontiguousarray(layer[here], dtype=np.float32))
        assert not (layer[here] == before[here]).all(axis=1).any()


def test_negative_values_survive_unless_clipped(adata, toys):
    adata.X = adata.X.toarray() - 1
    model = toys.trained(NoPerturb, adata, setup={"signed": True})
    expected = controls(adata).X
    assert expected.min() < 0
    np.testing.assert_array_equal(model.predict(perturbation="A").X, expected)
    np.testing.assert_array_equal(model.predict(perturbation="A", clip=True).X, np.maximum(expected, 0))
