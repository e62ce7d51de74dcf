import numpy as np
import pandas as pd
import pytest
from anndata import AnnData
from mudata import MuData

from multipert import _keys
from multipert.data._fields import CategoryField, CellEmbeddingField, ConditionField, DoseField, ExpressionField

LABELS = ["control", "B + A", "A", "C", "A+B"]
DOSES = ["0", "2+1", "3", "0", "5+7"]


def make(labels=LABELS, doses=DOSES, context=("a", "0", "", "b", "a")) -> AnnData:
    obs = pd.DataFrame({"p": labels, "d": doses, "context": list(context)}, index=[f"c{i}" for i in range(len(labels))])
    return AnnData(np.ones((len(labels), 2), dtype="float32"), obs=obs, var=pd.DataFrame(index=["g0", "g1"]))


def condition(cls=ConditionField, dose_key="d", vocabulary=None, **modalities):
    return cls("p", dose_key, "control", "+", vocabulary, **modalities)


def test_codes_and_doses_of_each_cell():
    adata = make()
    state = condition().register_field(adata)
    condition(DoseField).register_field(adata)
    # C has dose 0, so it is a control cell and no perturbation
    assert state["vocabulary"] == ["A", "B"]
    assert state["n_slots"] == 2
    np.testing.assert_array_equal(adata.obsm[_keys.CODES_OBSM], [[-1, -1], [0, 1], [0, -1], [-1, -1], [0, 1]])
    np.testing.assert_array_equal(adata.obsm[_keys.DOSES_OBSM], [[0, 0], [1, 2], [3, 0], [0, 0], [5, 7]])
    assert condition().get_summary_stats(state) == {"n_perturbations": 2}
    assert condition(DoseField).get_summary_stats(state) == {}


def test_without_doses_every_dose_is_one():
    adata = make()
    state = condition(DoseField, dose_key=None).register_field(adata)
    assert state["vocabulary"] == ["A", "B", "C"]
    np.testing.assert_array_equal(adata.obsm[_keys.DOSES_OBSM], [[0, 0], [1, 1], [1, 0], [1, 0], [1, 1]])


def test_a_given_vocabulary_keeps_its_order_and_unseen_names():
    adata = make()
    state = condition(vocabulary=("Z", "B", "A")).register_field(adata)
    assert state["vocabulary"] == ["Z", "B", "A"]
    # slots follow the sorted names, codes the vocabulary
    np.testing.assert_array_equal(adata.obsm[_keys.CODES_OBSM][1], [2, 1])


def test_new_data_take_the_saved_codes():
    state = condition(vocabulary=("Z", "B", "A")).register_field(make())
    new = make(["B", "control"], ["1", "0"], "ab")
    assert condition().transfer_field(state, new)["vocabulary"] == ["Z", "B", "A"]
    np.testing.assert_array_equal(new.obsm[_keys.CODES_OBSM], [[1], [-1]])
    with pytest.raises(ValueError, match="'Q' is not in the vocabulary"):
        condition().transfer_field(state, make(["Q", "control"], ["1", "0"], "ab"))


@pytest.mark.parametrize("new", ["", "0", "zz"])
def test_categories_of_new_data_come_after_the_known(new):
    """An unseen category that is falsy must not pass for a known one."""
    field = CategoryField(_keys.CONTEXT, ["context"])
    state = field.register_field(make(context="babab"))
    assert state["categories"] == [["a", "b"]]
    data = make(context=["b", new, "a", "b", new])
    field.transfer_field(state, data)
    np.testing.assert_array_equal(data.obsm["_multipert_context"][:, 0], [1, 2, 0, 1, 2])


@pytest.mark.parametrize("values", [[0, 1, 0, 1, 1], ["0", "1", "0", "1", "1"], [False, True, False, True, True]])
def test_categories_are_compared_as_text(values):
    adata = make()
    adata.obs["x"] = pd.Categorical(values)
    field = CategoryField(_keys.CATEGORICAL_COVARIATES, ["x", "context"])
    state = field.register_field(adata)
    assert state["categories"][0] == sorted({str(value) for value in values})
    np.testing.assert_array_equal(adata.obsm["_multipert_extra_categorical_covs"][:, 0], [0, 1, 0, 1, 1])
    assert field.get_summary_stats(state) == {"n_covariates": 2}


def test_other_genes_are_refused():
    field = ExpressionField(None)
    state = field.register_field(make())
    assert field.get_summary_stats(state) == {"n_vars": 2, "n_cells": 5}
    with pytest.raises(ValueError, match="another order"):
        field.transfer_field(state, make()[:, ::-1].copy())


def test_an_embedding_of_another_width_is_refused():
    adata = make()
    adata.obsm["E"] = np.zeros((5, 4))
    field = CellEmbeddingField("E")
    state = field.register_field(adata)
    adata.obsm["E"] = np.zeros((5, 3))
    with pytest.raises(ValueError, match=r"obsm\['E'\] has 3 columns, the model was set up with 4"):
        field.transfer_field(state, adata)


@pytest.mark.parametrize("labels_key", ["guides", None])
def test_labels_of_another_modality_are_put_into_the_order_of_the_expression(labels_key):
    rna, guides = make(), make()[::-1].copy()
    rna.obs = rna.obs[[]]
    mdata = MuData({"guides": guides, "rna": rna})
    if labels_key is None:
        mdata.obs = mdata.obs.join(guides.obs)
        guides.obs = guides.obs[[]]
    modalities = {"mod_key": "rna", "labels_key": labels_key}
    condition(**modalities).register_field(mdata)
    CategoryField(_keys.CONTEXT, ["context"], "rna", labels_key).register_field(mdata)
    np.testing.assert_array_equal(rna.obsm[_keys.CODES_OBSM], [[-1, -1], [0, 1], [0, -1], [-1, -1], [0, 1]])
    np.testing.assert_array_equal(rna.obsm["_multipert_context"][:, 0], [2, 1, 0, 3, 2])
