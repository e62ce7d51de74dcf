"""Every bad input, over containers and types of X, plain, as a view and on disk: a plain error and nothing written."""

from itertools import product

import numpy as np
import pandas as pd
import pytest
from scipy import sparse

from multipert.model import MTAe, TwoFactor

KINDS = list(product(["ndarray", "csr", "csc"], ["float32", "float64", "int64"], ["plain", "view", "backed"]))
FLOATS = [kind for kind in KINDS if kind[1] != "int64"]
pytestmark = pytest.mark.filterwarnings("ignore:.*names are not unique", "ignore:Transforming to str index")


def place(cell, gene, value):
    def change(adata):
        x = adata.X.toarray()
        x[cell, gene] = value
        adata.X = sparse.csr_matrix(x)
        return adata

    return change


def put(column, cells, value):
    def change(adata):
        adata.obs[column] = adata.obs[column].astype(object)
        adata.obs.loc[adata.obs_names[cells], column] = value
        return adata

    return change


def drop(column):
    def change(adata):
        del adata.obs[column]
        return adata

    return change


def rename(axis, name):
    def change(adata):
        names = getattr(adata, axis).to_numpy().copy()
        names[:3] = name
        setattr(adata, axis, names)
        return adata

    return change


def give(attribute, key, value):
    def change(adata):
        getattr(adata, attribute)[key] = value
        return adata

    return change


def unchanged(adata):
    return adata


def control_rows(adata):
    return np.flatnonzero(adata.obs["perturbation"] == "control")


TABLE = pd.DataFrame(np.eye(2), index=["A", "B"])
# name: (model, change of the data, setup arguments, error, what its message holds)
SETUPS = {
    "absent label column": (
        "MTAe",
        unchanged,
        {"perturbation_key": "perturbatoin"},
        KeyError,
        ["perturbation_key='perturbatoin'", "did you mean 'perturbation'", "Columns: perturbation, context"],
    ),
    "absent context column": (
        "MTAe",
        unchanged,
        {"context_key": "contxt"},
        KeyError,
        ["context_key='contxt'", "did you mean 'context'"],
    ),
    "absent dose column": (
        "Net",
        unchanged,
        {"dose_key": "doses"},
        KeyError,
        ["dose_key='doses'", "did you mean 'dose'"],
    ),
    "absent covariate": (
        "MTAe",
        unchanged,
        {"categorical_covariate_keys": ["batches"]},
        KeyError,
        ["categorical_covariate_keys='batches'", "'batch'"],
    ),
    "a covariate as text": (
        "MTAe",
        unchanged,
        {"categorical_covariate_keys": "batch"},
        TypeError,
        ["categorical_covariate_keys='batch'", "['batch']"],
    ),
    "absent layer": ("MTAe", unchanged, {"layer": "count"}, KeyError, ["layer='count'", "did you mean 'counts'"]),
    "absent cell embedding": (
        "Net",
        unchanged,
        {"cell_embedding_key": "emb"},
        KeyError,
        ["cell_embedding_key='emb'", "'X_emb'"],
    ),
    "absent table": (
        "Net",
        unchanged,
        {"perturbation_embedding_key": "tabel"},
        KeyError,
        ["perturbation_embedding_key='tabel'", "did you mean 'table'"],
    ),
    "missing label": (
        "MTAe",
        put("perturbation", [3, 9], None),
        {},
        ValueError,
        ["obs['perturbation']", "2 missing value(s)", "'c003', 'c009'", "drop these cells"],
    ),
    "missing context": (
        "MTAe",
        put("context", [3], None),
        {"context_key": "context"},
        ValueError,
        ["obs['context']", "1 missing", "'c003'"],
    ),
    "missing dose": (
        "Net",
        put("dose", [3], None),
        {"dose_key": "dose"},
        ValueError,
        ["obs['dose']", "1 missing", "'c003'"],
    ),
    "missing covariate": (
        "MTAe",
        put("batch", [3], None),
        {"categorical_covariate_keys": ["batch"]},
        ValueError,
        ["obs['batch']", "1 missing"],
    ),
    "no control cell": (
        "MTAe",
        unchanged,
        {"control": "ctrl"},
        ValueError,
        ["obs['perturbation']", "'ctrl'", "Labels seen (4)", "'control'", "Name the control label"],
    ),
    "control is no text": ("MTAe", put("perturbation", [3], 0), {"control": 0}, TypeError, ["control=0", "'0'"]),
    "control cells only": (
        "MTAe",
        put("perturbation", slice(None), "control"),
        {},
        ValueError,
        ["obs['perturbation']", "control cells only"],
    ),
    "combination": (
        "ContextMean",
        unchanged,
        {"perturbation_key": "combination"},
        ValueError,
        ["ContextMean", "'A+B'", "tag combinations is False", "delimiter"],
    ),
    "repeated part": ("Net", put("perturbation", [3], "A+A"), {}, ValueError, ["'A+A'", "more than once"]),
    "empty part": ("Net", put("perturbation", [3], "A+"), {}, ValueError, ["'A+'", "empty part"]),
    "dose": (
        "ContextMean",
        unchanged,
        {"dose_key": "single_dose"},
        ValueError,
        ["ContextMean", "tag doses is False", "dose_key='single_dose'", "TCDD@30"],
    ),
    "number of doses": ("Net", unchanged, {"dose_key": "dose"}, ValueError, ["'C'", "1 part(s)", "has 2", "'2+1'"]),
    "negative dose": (
        "Net",
        put("single_dose", [3], -1.0),
        {"dose_key": "single_dose"},
        ValueError,
        ["-1.0", "negative or not finite", ">= 0"],
    ),
    "infinite dose": (
        "Net",
        put("single_dose", [3], np.inf),
        {"dose_key": "single_dose"},
        ValueError,
        ["inf", "negative or not finite"],
    ),
    "dose is no number": (
        "Net",
        put("dose", [3], "high"),
        {"dose_key": "dose", "perturbation_key": "combination"},
        ValueError,
        ["'high'", "not a number"],
    ),
    "negative X": (
        "MTAe",
        place(3, 2, -1),
        {},
        ValueError,
        ["X has 1 negative value(s)", "cell 'c003', gene 'g2'", "signed=True"],
    ),
    "repeated genes": (
        "MTAe",
        rename("var_names", "g7"),
        {},
        ValueError,
        ["var_names holds 3 duplicate(s): 'g7'", "var_names_make_unique"],
    ),
    "repeated cells": (
        "MTAe",
        rename("obs_names", "c007"),
        {},
        ValueError,
        ["obs_names holds 3 duplicate(s): 'c007'", "obs_names_make_unique"],
    ),
    "no cells": ("MTAe", lambda adata: adata[:0].copy(), {}, ValueError, ["0 cells and 20 genes"]),
    "context needed": ("ContextNet", unchanged, {}, ValueError, ["ContextNet", "`context_key`", "tag needs_context"]),
    "mistyped argument": (
        "MTAe",
        unchanged,
        {"contextkey": "context"},
        TypeError,
        ["setup_anndata()", "'contextkey'", "did you mean 'context_key'"],
    ),
    "table lacks a label": (
        "Net",
        give("uns", "table", TABLE),
        {"perturbation_embedding_key": "table"},
        ValueError,
        ["uns['table']", "lacks 1", "obs['perturbation']: C"],
    ),
    "table repeats a label": (
        "Net",
        give("uns", "table", TABLE.set_axis(["A", "A"])),
        {"perturbation_embedding_key": "table"},
        ValueError,
        ["uns['table']", "1 repeated row(s): A"],
    ),
    "table with NaN": (
        "Net",
        give("uns", "table", TABLE.replace(1.0, np.nan)),
        {"perturbation_embedding_key": "table"},
        ValueError,
        ["uns['table']", "2 row(s): A, B"],
    ),
    "NaN in the cell embedding": (
        "Net",
        give("obsm", "X_emb", np.full((120, 3), np.nan)),
        {"cell_embedding_key": "X_emb"},
        ValueError,
        ["obsm['X_emb']", "120 cell(s)", "'c000'"],
    ),
    "absent partner": (
        "Net",
        put("partner", slice(None), "c999"),
        {"pairing_key": "partner"},
        ValueError,
        ["obs['partner']", "90 partner(s)", "'c999'"],
    ),
}
FLOAT_SETUPS = {
    "NaN": (
        "MTAe",
        place(3, 2, np.nan),
        {},
        ValueError,
        ["X has 1 NaN or infinite value(s)", "cell 'c003', gene 'g2'", "replace them"],
    ),
    "infinity": ("MTAe", place(3, 2, np.inf), {"signed": True}, ValueError, ["X has 1 NaN or infinite value(s)"]),
    "counts needed": (
        "CountNet",
        unchanged,
        {},
        ValueError,
        ["X must hold integer counts", "are not integers", "`layer`"],
    ),
}
CASES = [(name, case, kind) for name, case in SETUPS.items() for kind in KINDS]
CASES += [(name, case, kind) for name, case in FLOAT_SETUPS.items() for kind in FLOATS]
CASES += [
    ("integers", ("MTAe", unchanged, {}, ValueError, ["X holds integers only", "scanpy.pp.log1p"]), kind)
    for kind in KINDS
    if kind[1] == "int64"
]


def written(adata):
    return {name: sorted(getattr(adata, name)) for name in ("obs", "obsm", "layers", "uns")}


def model_class(toys, name):
    return {"MTAe": MTAe, "TwoFactor": TwoFactor}.get(name) or getattr(toys, name)


@pytest.fixture(scope="module")
def data(toys):
    """The clean screen, whose X are the counts where integers are held."""
    clean = toys.screen()
    counted = clean.copy()
    counted.X = counted.layers["counts"].copy()
    return lambda dtype: (counted if dtype == "int64" else clean).copy()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("backed")


@pytest.mark.parametrize(("name", "case", "kind"), CASES, ids=[f"{name}-{'-'.join(kind)}" for name, _, kind in CASES])
def test_setup_refuses(name, case, kind, data, toys, folder):
    model, change, arguments, error, parts = case
    adata = toys.hold(change(data(kind[1])), *kind, folder)
    before = written(adata)
    with pytest.raises((error, ValueError) if kind[1] == "int64" else error) as raised:
        model_class(toys, model).setup_anndata(adata, **arguments)
    if "holds integers only" not in str(raised.value) or kind[1] != "int64":
        assert [part for part in parts if part not in str(raised.value)] == [], str(raised.value)
    assert written(adata) == before


# name: (model, change of the data, arguments of predict, error, what its message holds)
PREDICTIONS = {
    "absent label column": (
        "MTAe",
        drop("perturbation"),
        {},
        KeyError,
        ["perturbation_key='perturbation'", "Columns: context"],
    ),
    "absent context column": ("MTAe", drop("context"), {}, KeyError, ["context_key='context'"]),
    "absent dose column": ("Net", drop("dose"), {}, KeyError, ["dose_key='dose'"]),
    "absent covariate": ("Net", drop("batch"), {}, KeyError, ["categorical_covariate_keys='batch'"]),
    "missing label": (
        "MTAe",
        put("perturbation", [3, 9], None),
        {},
        ValueError,
        ["obs['perturbation']", "2 missing value(s)", "'c003', 'c009'"],
    ),
    "missing context": ("MTAe", put("context", [3], None), {}, ValueError, ["obs['context']", "1 missing"]),
    "no control cell": (
        "MTAe",
        put("perturbation", slice(None), "A"),
        {},
        ValueError,
        ["No control cell", "obs['perturbation']", "Labels seen (1): 'A'"],
    ),
    "unknown perturbation": ("MTAe", unchanged, {"perturbation": "a"}, ValueError, ["'a'", "did you mean 'A'"]),
    "one of several is unknown": (
        "MTAe",
        unchanged,
        {"perturbation": ["A", "Q"]},
        ValueError,
        ["'Q'", "known: 'A', 'B', 'C'"],
    ),
    "combination": (
        "ContextMean",
        unchanged,
        {"perturbation": "A+B"},
        ValueError,
        ["'A+B'", "tag combinations is False"],
    ),
    "dose": ("ContextMean", unchanged, {"perturbation": "A", "dose": 3}, ValueError, ["dose=3", "tag doses is False"]),
    "samples": ("MTAe", unchanged, {"n_samples": 2}, ValueError, ["MTAe", "tag samples is False", "n_samples=2"]),
    "dose without a column": (
        "TwoFactor",
        unchanged,
        {"perturbation": "A", "dose": 3},
        ValueError,
        ["dose=3", "without dose_key"],
    ),
    "dose without a label": ("Net", unchanged, {"dose": 3}, ValueError, ["name the perturbation"]),
    "negative dose": ("Net", unchanged, {"perturbation": "A", "dose": -1}, ValueError, ["-1", "'A'", "negative"]),
    "number of doses": ("Net", unchanged, {"perturbation": "A", "dose": "1+2"}, ValueError, ["1 part(s)", "has 2"]),
    "doses of several": (
        "Net",
        unchanged,
        {"perturbation": ["A", "B"], "dose": [1, 2, 3]},
        ValueError,
        ["2 perturbations but 3 doses"],
    ),
    "no label": ("MTAe", unchanged, {"perturbation": []}, ValueError, ["perturbation is empty"]),
    "unknown column of targets": (
        "MTAe",
        unchanged,
        {"perturbation": pd.DataFrame({"perturbation": ["A"], "cell_type": ["a"]})},
        ValueError,
        ["'cell_type'", "'context'"],
    ),
    "unknown context": ("MTAe", unchanged, {"context": "A"}, ValueError, ["'A'", "did you mean 'a'"]),
    "unknown context of a target": (
        "MTAe",
        unchanged,
        {"perturbation": pd.DataFrame({"perturbation": ["A"], "context": ["z"]})},
        ValueError,
        ["'z'", "known: 'a', 'b', 'c'"],
    ),
    "context without a column": ("TwoFactor", unchanged, {"context": "a"}, ValueError, ["without context_key"]),
    "unseen context": (
        "ContextNet",
        put("context", slice(None), "0"),
        {},
        ValueError,
        ["ContextNet", "tag unseen_context is False", "0"],
    ),
    "unseen empty context": (
        "ContextNet",
        put("context", slice(None), ""),
        {},
        ValueError,
        ["tag unseen_context is False"],
    ),
    "negative X": (
        "MTAe",
        lambda a: place(control_rows(a)[1], 2, -1)(a),
        {},
        ValueError,
        ["X has 1 negative value(s)", "gene 'g2'"],
    ),
    "repeated genes": ("MTAe", rename("var_names", "g7"), {}, ValueError, ["var_names holds 3 duplicate(s): 'g7'"]),
    "repeated cells": ("MTAe", rename("obs_names", "c007"), {}, ValueError, ["obs_names holds 3 duplicate(s): 'c007'"]),
    "genes are missing": (
        "MTAe",
        lambda adata: adata[:, 2:].copy(),
        {},
        ValueError,
        ["lacks 2 of the model's 20 genes: g0, g1"],
    ),
    "genes in another order": (
        "MTAe",
        lambda adata: adata[:, ::-1].copy(),
        {},
        ValueError,
        ["another order", "adata[:, model.get_var_names()]"],
    ),
    "no cells": ("MTAe", lambda adata: adata[:0].copy(), {}, ValueError, ["0 cells"]),
    "no counts": (
        "MTAe",
        lambda adata: give("layers", "raw", adata.layers.pop("counts"))(adata),
        {"realise": "counts"},
        ValueError,
        ["realise='counts'", "layers['counts']"],
    ),
    "unknown realisation": ("MTAe", unchanged, {"realise": "count"}, ValueError, ["realise='count'", "'counts'"]),
    "unknown result": ("MTAe", unchanged, {"returns": "means"}, ValueError, ["returns='means'", "'mean'"]),
    "rows outside": ("MTAe", unchanged, {"indices": [0, 120]}, ValueError, ["0..119", "0..120"]),
    "a mask of another length": (
        "MTAe",
        unchanged,
        {"indices": np.ones(5, dtype=bool)},
        ValueError,
        ["mask of length 120", "(5,)"],
    ),
    "rows by name": ("MTAe", unchanged, {"indices": ["c001"]}, ValueError, ["row numbers"]),
    "no control among the rows": (
        "MTAe",
        lambda a: a,
        {"indices": "perturbed"},
        ValueError,
        ["No control cell is left", "`indices`"],
    ),
    "no batch": ("MTAe", unchanged, {"batch_size": -5}, ValueError, ["batch_size=-5"]),
    "absent cell embedding": (
        "Net",
        lambda adata: (adata.obsm.clear(), adata)[1],
        {},
        KeyError,
        ["cell_embedding_key='X_emb'"],
    ),
    "cell embedding of another width": (
        "Net",
        give("obsm", "X_emb", np.zeros((120, 2))),
        {},
        ValueError,
        ["has 2 columns", "set up with 3"],
    ),
}
FLOAT_PREDICTIONS = {
    "NaN": (
        "MTAe",
        lambda a: place(control_rows(a)[1], 2, np.nan)(a),
        {},
        ValueError,
        ["X has 1 NaN or infinite value(s)", "gene 'g2'"],
    ),
    "NaN in the mean of a context": (
        "ContextMean",
        lambda a: place(control_rows(a)[1], 2, np.nan)(a),
        {"indices": "first control"},
        ValueError,
        ["X has 1 NaN or infinite value(s)"],
    ),
    "X is not made from the counts": (
        "MTAe",
        lambda a: place(control_rows(a)[1], 2, 4.4)(a),
        {"realise": "counts"},
        ValueError,
        ["1 cell(s) differ", "layers['counts']"],
    ),
}
CASES = [(name, case, kind) for name, case in PREDICTIONS.items() for kind in KINDS]
CASES += [(name, case, kind) for name, case in FLOAT_PREDICTIONS.items() for kind in FLOATS]
CASES += [
    ("integers", ("MTAe", unchanged, {}, ValueError, ["X holds integers only", "scanpy.pp.log1p"]), kind)
    for kind in KINDS
    if kind[1] == "int64"
]
NET_SETUP = {
    "perturbation_key": "combination",
    "dose_key": "dose",
    "context_key": "context",
    "categorical_covariate_keys": ["batch"],
    "cell_embedding_key": "X_emb",
}


@pytest.fixture(scope="module")
def models(toys):
    setups = {
        "MTAe": {"context_key": "context"},
        "TwoFactor": {},
        "Net": NET_SETUP,
        "ContextNet": {"context_key": "context"},
        "ContextMean": {"context_key": "context"},
    }
    return {name: toys.trained(model_class(toys, name), toys.screen(), setup=setup) for name, setup in setups.items()}


@pytest.mark.parametrize(("name", "case", "kind"), CASES, ids=[f"{name}-{'-'.join(kind)}" for name, _, kind in CASES])
def test_predict_refuses(name, case, kind, data, models, toys, folder):
    model, change, arguments, error, parts = case
    adata = toys.hold(change(data(kind[1])), *kind, folder)
    if isinstance(arguments.get("indices"), str):
        control = control_rows(adata)
        rows = {"perturbed": np.setdiff1d(np.arange(120), control), "first control": control[:1]}
        arguments = {**arguments, "indices": rows[arguments["indices"]]}
    before = written(adata)
    with pytest.raises((error, ValueError) if kind[1] == "int64" else error) as raised:
        models[model].predict(adata, **arguments)
    if "holds integers only" not in str(raised.value) or kind[1] != "int64":
        assert [part for part in parts if part not in str(raised.value)] == [], str(raised.value)
    assert written(adata) == before


@pytest.mark.parametrize("kind", KINDS, ids=map("-".join, KINDS))
@pytest.mark.parametrize("realise", ["plain", "residual", "counts"])
def test_predict_does_not_depend_on_what_holds_x(kind, realise, data, models, toys, folder):
    adata = toys.hold(data(kind[1]), *kind, folder)
    if kind[1] == "int64":
        with pytest.raises(ValueError, match="X holds integers only"):
            models["MTAe"].predict(adata, realise=realise)
        return
    expected = models["MTAe"].predict(data("float32"), realise=realise)
    found = models["MTAe"].predict(adata, realise=realise)
    np.testing.assert_allclose(found.X, expected.X, atol=1e-6)
    pd.testing.assert_frame_equal(found.obs, expected.obs, check_categorical=False, check_dtype=False)
    np.testing.assert_allclose(
        models["MTAe"].get_latent_representation(adata),
        models["MTAe"].get_latent_representation(data("float32")),
        atol=1e-6,
    )


@pytest.mark.parametrize("kind", KINDS, ids=map("-".join, KINDS))
@pytest.mark.parametrize("name", ["MTAe", "TwoFactor", "CountNet"])
def test_training_does_not_depend_on_what_holds_x(name, kind, data, toys, folder):
    cls, counts = model_class(toys, name), name == "CountNet"
    adata = toys.hold(data("int64" if counts else kind[1]), *kind, folder)
    if kind[2] == "view" or (kind[1] == "int64" and not counts):
        with pytest.raises(ValueError, match="view of another object|X holds integers only"):
            cls.setup_anndata(adata, context_key="context")
        return
    expected = toys.trained(cls, data("int64" if counts else "float32"), setup={"context_key": "context"})
    found = toys.trained(cls, adata, setup={"context_key": "context"})
    clean = data("int64" if counts else "float32")
    np.testing.assert_array_equal(found.predict(clean).X, expected.predict(clean).X)


def test_predict_before_training_is_refused(adata, toys):
    MTAe.setup_anndata(adata)
    model = MTAe(adata, **toys.tiny)
    for call in (model.predict, model.annotate, model.get_latent_representation, model.get_perturbation_embedding):
        with pytest.raises(RuntimeError, match=r"This MTAe is not trained; call train\(\) first"):
            call()


@pytest.mark.parametrize("thing", ["file.h5ad", None, np.ones((3, 2))])
def test_what_is_no_anndata_is_refused(thing, models):
    with pytest.raises(TypeError, match=f"{type(thing).__name__} was given where an AnnData"):
        MTAe.setup_anndata(thing)
    if thing is not None:
        with pytest.raises(TypeError, match=f"{type(thing).__name__} was given"):
            models["MTAe"].predict(thing)


@pytest.mark.parametrize("indices", [np.arange(120) % 3 == 0, [5, -1, 5, 0], np.array([119])])
def test_latent_representations_of_rows(indices, models, data):
    every = models["MTAe"].get_latent_representation(data("float32"))
    np.testing.assert_allclose(
        models["MTAe"].get_latent_representation(data("float32"), indices), every[indices], atol=1e-6
    )


def test_latent_representations_of_an_unseen_context_are_refused(models, data):
    with pytest.raises(ValueError, match="tag unseen_context is False"):
        models["ContextNet"].get_latent_representation(put("context", slice(None), "z")(data("float32")))
