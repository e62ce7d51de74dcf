"""Two modalities: expression in one, labels in the other or in the obs of the whole, cells in different orders."""

import numpy as np
import pandas as pd
import pytest
from anndata import AnnData
from mudata import MuData

from multipert import _keys
from multipert.model import MTAe

pytestmark = pytest.mark.filterwarnings("ignore:Cannot join columns", "ignore:From 0.4")
LABELS = ["combination", "perturbation", "context", "dose", "batch"]


def make(toys, *, labels="guides", shuffled=True) -> MuData:
    """The screen with its labels taken away from the expression; guides in another order of cells."""
    whole = toys.screen()
    rna = whole.copy()
    rna.obs = rna.obs[["partner"]]
    order = np.random.default_rng(5).permutation(120) if shuffled else np.arange(120)
    guides = AnnData(
        np.ones((120, 2), dtype="float32"), obs=whole.obs.iloc[order][LABELS], var=pd.DataFrame(index=["s0", "s1"])
    )
    mdata = MuData({"guides": guides, "rna": rna})
    if labels is None:
        mdata.obs = mdata.obs.join(guides.obs[LABELS])
        guides.obs = guides.obs[[]]
    return mdata


def modalities(labels):
    return {"expression": "rna"} | ({} if labels is None else {"labels": labels})


def trained(toys, cls, mdata, labels="guides", init=None, **setup):
    cls.setup_mudata(mdata, modalities=modalities(labels), **setup)
    model = cls(mdata, **(init or {}))
    model.train(max_epochs=1, seed=0, batch_size=30, **toys.quiet)
    return model


@pytest.mark.parametrize("labels", ["guides", None])
@pytest.mark.parametrize("name", ["MTAe", "Linear", "Net"])
def test_a_mudata_gives_what_one_anndata_gives(name, labels, toys):
    cls = MTAe if name == "MTAe" else getattr(toys, name)
    init = toys.tiny if cls is MTAe else None
    setup = {"context_key": "context", "categorical_covariate_keys": ["batch"], "cell_embedding_key": "X_emb"}
    if name == "Linear":
        setup |= {"perturbation_key": "combination", "dose_key": "dose"}
    mdata, whole = make(toys, labels=labels), toys.screen()
    model = trained(toys, cls, mdata, labels, init, **setup)
    expected = toys.trained(cls, whole, setup=setup, init=init, batch_size=30)
    for realise in ("plain", "counts"):
        found, wanted = (one.predict(realise=realise) for one in (model, expected))
        assert found.obs_names.tolist() == wanted.obs_names.tolist()
        np.testing.assert_array_equal(found.X, wanted.X)
        assert found.obs["context"].tolist() == wanted.obs["context"].tolist()
    # new data, again in another order
    np.testing.assert_array_equal(model.predict(make(toys, labels=labels, shuffled=False)).X, expected.predict().X)
    model.annotate()
    expected.annotate()
    key = f"{name}_predicted"
    np.testing.assert_array_equal(mdata.mod["rna"].layers[key], whole.layers[key])
    assert name in mdata.mod["rna"].uns
    assert key not in mdata.mod["guides"].layers


@pytest.mark.parametrize("labels", ["guides", None])
def test_registered_codes_are_in_the_order_of_the_expression(labels, toys):
    mdata, whole = make(toys, labels=labels), toys.screen()
    toys.Linear.setup_mudata(mdata, modalities=modalities(labels), context_key="context")
    toys.Linear.setup_anndata(whole, context_key="context")
    manager = toys.Linear(mdata).adata_manager
    for key in (_keys.PERTURBATION, _keys.DOSE, _keys.CONTEXT):
        np.testing.assert_array_equal(
            manager.get_from_registry(key), toys.Linear(whole).adata_manager.get_from_registry(key)
        )


def test_predict_changes_no_mudata(toys):
    mdata = make(toys)
    model = trained(toys, toys.Net, make(toys), context_key="context")
    before = mdata.copy()
    model.predict(mdata, returns="mean")
    for name, modality in mdata.mod.items():
        toys.assert_same(modality, before.mod[name])
    pd.testing.assert_frame_equal(mdata.obs, before.obs)
    assert "_scvi_uuid" not in mdata.uns


@pytest.mark.parametrize("labels", ["guides", None])
def test_save_and_load_with_the_data_and_without(labels, tmp_path, toys):
    mdata = make(toys, labels=labels)
    model = trained(toys, MTAe, mdata, labels, toys.tiny, context_key="context")
    expected = model.predict()
    model.save(tmp_path / "m", save_anndata=True)
    assert sorted(path.name for path in (tmp_path / "m").iterdir()) == ["mdata.h5mu", "model.json", "model.safetensors"]
    for adata in (None, make(toys, labels=labels, shuffled=False), False):
        loaded = MTAe.load(tmp_path / "m", adata=adata, accelerator="cpu")
        found = loaded.predict(make(toys, labels=labels) if adata is False else None)
        np.testing.assert_array_equal(found.X, expected.X)
    loaded = MTAe.load(tmp_path / "m", accelerator="cpu")
    loaded.train(max_epochs=1, seed=3, **toys.quiet)
    assert len(loaded.history_["train_loss"]) == 2


def test_a_table_may_be_in_the_uns_of_either(toys):
    for place in ("rna", "guides", None):
        mdata = make(toys)
        table = mdata.mod["rna"].uns.pop("table")
        (mdata if place is None else mdata.mod[place]).uns["table"] = table
        model = trained(toys, toys.Net, mdata, perturbation_embedding_key="table")
        assert model.predict(perturbation="D").n_obs == 30


@pytest.mark.parametrize(
    ("wrong", "error", "message"),
    [
        ({"expression": "rnaa"}, KeyError, "modalities\\['expression'\\]='rnaa' is not a modality; did you mean 'rna'"),
        ({"expression": "rna", "labels": "guide"}, KeyError, "'guide' is not a modality; did you mean 'guides'"),
        ({"expression": "rna", "label": "guides"}, ValueError, "modalities names 'label'; did you mean 'labels'"),
        ({"labels": "guides"}, ValueError, "must name the modality of 'expression'"),
        ({}, ValueError, "must name the modality of 'expression'"),
        ({"expression": "rna", "labels": "rna"}, KeyError, "perturbation_key='perturbation' is not a column.*partner"),
    ],
)
def test_wrong_modalities_are_named(wrong, error, message, toys):
    with pytest.raises(error, match=message):
        MTAe.setup_mudata(make(toys), modalities=wrong)


def test_cells_of_one_modality_only_are_refused(toys):
    mdata = make(toys)
    fewer = MuData({"guides": mdata.mod["guides"][:100].copy(), "rna": mdata.mod["rna"].copy()})
    with pytest.raises(ValueError, match="'rna' has 120 cells and the labels 100; .*intersect_obs"):
        MTAe.setup_mudata(fewer, modalities=modalities("guides"))


def test_the_two_setups_are_not_mixed(toys):
    with pytest.raises(TypeError, match=r"MuData was given where an AnnData \(setup_anndata\)"):
        MTAe.setup_anndata(make(toys))
    with pytest.raises(TypeError, match=r"AnnData was given where a MuData \(setup_mudata\)"):
        MTAe.setup_mudata(toys.screen(), modalities=modalities("guides"))


def test_a_model_of_a_mudata_predicts_and_annotates_an_anndata(toys):
    model, whole = trained(toys, MTAe, make(toys), init=toys.tiny, context_key="context"), toys.screen()
    np.testing.assert_array_equal(model.predict(whole).X, model.predict().X)
    model.annotate(whole)
    model.annotate()
    np.testing.assert_array_equal(whole.layers["MTAe_predicted"], model.adata.mod["rna"].layers["MTAe_predicted"])


def test_bad_expression_names_cell_and_gene(toys):
    mdata = make(toys)
    x = mdata.mod["rna"].X.toarray()
    x[3, 2] = np.nan
    mdata.mod["rna"].X = x
    with pytest.raises(ValueError, match="X has 1 NaN or infinite value.*cell 'c003', gene 'g2'"):
        MTAe.setup_mudata(mdata, modalities=modalities("guides"))
    assert _keys.CODES_OBSM not in mdata.mod["rna"].obsm
