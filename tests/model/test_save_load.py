"""Models to files and back: what is written, what comes back, what is refused."""

import hashlib
import json

import numpy as np
import pandas as pd
import pytest
import torch
from scvi.data import AnnDataManager
from scvi.model.base import BaseModelClass

from multipert.model import ContextShift, ModelFileError, MTAe, TwoFactor
from multipert.model._files import CorruptModelFileError, TensorMismatchError, WrongModelClassError

JSON, SAFETENSORS = "model.json", "model.safetensors"
FULL = {
    "perturbation_key": "combination",
    "dose_key": "dose",
    "context_key": "context",
    "categorical_covariate_keys": ["batch"],
    "cell_embedding_key": "X_emb",
    "perturbation_embedding_key": "table",
}
SETUPS = {
    "MTAe": {"context_key": "context"},
    "TwoFactor": {"perturbation_key": "combination", "dose_key": "dose", "context_key": "context"},
    "ContextShift": {"context_key": "context"},
    "Net": FULL,
    "Linear": {key: FULL[key] for key in ("perturbation_key", "dose_key", "perturbation_embedding_key")},
    "ContextNet": {"context_key": "context", "pairing_key": "partner"},
}


def model_class(toys, name):
    return {"MTAe": MTAe, "TwoFactor": TwoFactor, "ContextShift": ContextShift}.get(name) or getattr(toys, name)


@pytest.fixture(scope="module", params=SETUPS)
def model(request, toys):
    return toys.trained(model_class(toys, request.param), toys.screen(), setup=SETUPS[request.param])


@pytest.fixture(scope="module")
def mtae(toys):
    return toys.trained(MTAe, toys.screen(), setup=SETUPS["MTAe"], max_epochs=2)


@pytest.fixture
def saved(mtae, tmp_path):
    mtae.save(tmp_path / "m")
    return tmp_path / "m"


def load(cls, folder, adata=None, **kwargs):
    return cls.load(folder, adata=adata, accelerator="cpu", **kwargs)


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def edit(folder, change):
    """Change the JSON and give it the right checksum again."""
    document = json.loads((folder / JSON).read_text(encoding="utf-8"))
    del document["sha256"]
    change(document)
    body = json.dumps(document).removesuffix("}").encode() + b',\n"sha256": "'
    (folder / JSON).write_bytes(body + hashlib.sha256(body).hexdigest().encode() + b'"\n}\n')


# ------------------------------------------------------------------ there and back


def test_two_files_exactly(model, tmp_path):
    model.save(tmp_path / "a" / "b")
    assert names(tmp_path / "a" / "b") == [JSON, SAFETENSORS]
    assert names(tmp_path) == ["a"]


@pytest.mark.parametrize("prefix", [None, "first_"])
@pytest.mark.parametrize("bound", ["given", "saved", False])
def test_what_is_loaded_predicts_the_same(model, prefix, bound, tmp_path, toys):
    model.save(tmp_path, prefix=prefix, save_anndata=bound == "saved")
    files = [JSON, SAFETENSORS] + ["adata.h5ad"] * (bound == "saved")
    assert names(tmp_path) == sorted((prefix or "") + name for name in files)
    adata = {"given": toys.screen(), "saved": None, False: False}[bound]
    loaded = load(type(model), tmp_path, adata, prefix=prefix)
    new = toys.screen() if bound is False else None
    for realise in ("plain", "counts"):
        toys.assert_same(loaded.predict(new, realise=realise), model.predict(new, realise=realise))
    if model.tags.latent:
        np.testing.assert_array_equal(loaded.get_latent_representation(new), model.get_latent_representation(new))
    if model.tags.perturbation_embedding:
        pd.testing.assert_frame_equal(loaded.get_perturbation_embedding(), model.get_perturbation_embedding())
    assert loaded.trained_conditions_ == model.trained_conditions_
    assert loaded.trained_contexts_ == model.trained_contexts_
    assert list(loaded.get_var_names()) == list(model.get_var_names())
    assert loaded.is_trained_
    assert not loaded.module.training


def test_nothing_is_unpickled(mtae, tmp_path, monkeypatch):
    mtae.save(tmp_path, save_anndata=True)

    def refuse(*args, **kwargs):
        raise AssertionError("unpickled")

    for target in ("torch.load", "pickle.load", "pickle.loads", "pickle.Unpickler"):
        monkeypatch.setattr(target, refuse)
    load(MTAe, tmp_path)


def test_a_pickle_of_scvi_tools_is_read_only_when_trusted(model, tmp_path, toys):
    BaseModelClass.save(model, tmp_path, overwrite=True)
    cls, adata = type(model), toys.screen()
    with pytest.raises(FileNotFoundError, match="trusted=True"):
        cls.load(tmp_path, adata)
    loaded = cls.load(tmp_path, adata, trusted=True)
    np.testing.assert_array_equal(loaded.predict(returns="mean").X, model.predict(returns="mean").X)
    if model.tags.output == "cell" and model.module.count_correction is not None:
        assert torch.equal(loaded.module.count_correction, model.module.count_correction)


def test_history_goes_on_after_loading(mtae, saved, toys):
    loaded = load(MTAe, saved, toys.screen())
    pd.testing.assert_frame_equal(loaded.history_["train_loss"], mtae.history_["train_loss"])
    before = loaded.predict()
    loaded.train(max_epochs=2, seed=5, **toys.quiet)
    assert loaded.history_["train_loss"].index.tolist() == [0, 1, 2, 3]
    assert not np.array_equal(loaded.predict().X, before.X)
    # from the weights reached, as the model itself would go on
    own = load(MTAe, saved, toys.screen())
    own.train(max_epochs=2, seed=5, **toys.quiet)
    np.testing.assert_array_equal(own.predict().X, loaded.predict().X)
    fresh = toys.trained(MTAe, toys.screen(), setup=SETUPS["MTAe"], max_epochs=2, seed=5)
    assert not np.array_equal(fresh.predict().X, loaded.predict().X)


def test_loading_leaves_the_random_states_alone(saved):
    torch.manual_seed(0)
    np.random.seed(0)  # noqa: NPY002
    states = torch.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
    load(MTAe, saved, False)
    assert torch.equal(states[0], torch.get_rng_state())
    np.testing.assert_array_equal(states[1], np.random.get_state()[1])  # noqa: NPY002


def test_an_untrained_model_is_saved_as_such(tmp_path, adata, toys):
    MTAe.setup_anndata(adata)
    MTAe(adata, **toys.tiny).save(tmp_path)
    loaded = load(MTAe, tmp_path, adata)
    with pytest.raises(RuntimeError, match="not trained"):
        loaded.predict()
    loaded.train(max_epochs=1, **toys.quiet)
    assert loaded.predict().n_obs == 90


def test_arguments_of_the_model_come_back(tmp_path, adata, toys):
    arguments = {"n_hidden": (7, 5), "n_latent": 3, "film_hidden": (2,), "dropout_rate": 0.25}
    toys.trained(MTAe, adata, init=arguments).save(tmp_path)
    module = load(MTAe, tmp_path, False).module
    assert module.encoder.latent.in_features == 5
    assert module.encoder.latent.out_features == 3
    assert module.decoder.films[0].trunk[0].out_features == 2
    assert module.decoder.dropout.p == 0.25


def test_the_registry_can_be_read_alone(saved):
    registry = MTAe.load_registry(saved)
    assert registry["setup_args"]["context_key"] == "context"
    assert registry["field_registries"]["perturbation"]["state_registry"]["vocabulary"] == ["A", "B", "C"]
    assert AnnDataManager._get_summary_stats_from_registry(registry).n_vars == 20


# ------------------------------------------------------------------ refusals


def test_files_are_not_replaced_unless_told(mtae, saved, toys):
    before = (saved / SAFETENSORS).read_bytes()
    other = toys.trained(MTAe, toys.screen(), setup=SETUPS["MTAe"], seed=9)
    with pytest.raises(ValueError, match="already exists.*overwrite=True"):
        other.save(saved)
    assert (saved / SAFETENSORS).read_bytes() == before
    other.save(saved, overwrite=True)
    toys.assert_same(load(MTAe, saved, toys.screen()).predict(), other.predict())
    mtae.save(saved, prefix="p")
    assert len(names(saved)) == 4


def test_saving_data_that_are_not_there_is_refused(saved, tmp_path):
    with pytest.raises(ValueError, match="loaded without data"):
        load(MTAe, saved, False).save(tmp_path / "n", save_anndata=True)


def test_a_model_without_data_says_so(saved, toys):
    loaded = load(MTAe, saved)
    for call in (loaded.predict, loaded.annotate, loaded.get_latent_representation, loaded.train):
        with pytest.raises(ValueError, match="loaded without data; pass `adata`"):
            call()
    assert loaded.predict(toys.screen()).n_obs == 90


def test_another_class_is_refused(saved, toys):
    for cls in (TwoFactor, toys.Net):
        with pytest.raises(WrongModelClassError, match=f"class 'MTAe', expected '{cls.__name__}'.*MTAe.load"):
            load(cls, saved)


def test_an_empty_folder_is_not_found(tmp_path):
    with pytest.raises(FileNotFoundError, match="model.json"):
        load(MTAe, tmp_path)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (lambda adata: adata[:, ::-1].copy(), ValueError, "another order; pass adata\\[:, model.get_var_names"),
        (lambda adata: adata[:, 3:].copy(), ValueError, "lacks 3 of the model's 20 genes: g0, g1, g2"),
        (lambda adata: adata[adata.obs["perturbation"] != "control"].copy(), ValueError, "No control cell"),
        (lambda adata: adata[adata.obs["context"] == "a"], ValueError, "view of another object"),
        (lambda adata: adata.T.copy(), ValueError, "var_names lacks 20|perturbation_key"),
    ],
)
def test_data_that_do_not_fit_are_refused(saved, adata, change, error, message):
    with pytest.raises(error, match=message):
        load(MTAe, saved, change(adata))


def test_labels_outside_the_vocabulary_are_refused(saved, adata):
    adata.obs["perturbation"] = adata.obs["perturbation"].replace("B", "Q")
    with pytest.raises(ValueError, match="'Q' is not in the vocabulary"):
        load(MTAe, saved, adata)


def test_new_contexts_can_be_predicted_but_not_trained_on(saved, adata, toys):
    adata.obs["context"] = adata.obs["context"].replace("a", "new")
    loaded = load(MTAe, saved, adata)
    assert loaded.predict(context="new").n_obs == 30
    with pytest.raises(ValueError, match=r"40 cell\(s\) have a category of context that the model was not set up with"):
        loaded.train(max_epochs=1, **toys.quiet)


def attribute(name, key, value):
    return lambda document: document["attributes"][name].__setitem__(key, value)


def argument(key, value):
    return lambda document: document["attributes"]["init_params_"]["non_kwargs"].__setitem__(key, value)


def everywhere(key, value):
    """Change a member of the registry however it is nested."""

    def change(node):
        if isinstance(node, dict):
            for name in node:
                node[name] = value if name == key else change(node[name])
        if isinstance(node, list):
            pair = len(node) == 2 and node[0] == key
            node[:] = [key, value] if pair else [change(item) for item in node]
        return node

    return lambda document: change(document["attributes"]["registry_"])


TAMPERED = {
    "a wide network": argument("n_hidden", 10**9),
    "a network that would fit": argument("n_hidden", 10**7),
    "a wider network": argument("n_hidden", 10**18),
    "a width beyond int64": argument("n_hidden", 10**30),
    "a wide latent layer": argument("n_latent", 10**9),
    "a negative width": argument("n_hidden", -4),
    "another width": argument("n_hidden", 17),
    "a width that is text": argument("n_hidden", "16"),
    "another depth": argument("n_layers", 3),
    "an unknown preset": argument("preset", "nope"),
    "an unknown argument": argument("n_units", 3),
    "an impossible dropout": argument("dropout_rate", 7.0),
    "no arguments": lambda document: document["attributes"].pop("init_params_"),
    "no registry": lambda document: document["attributes"].pop("registry_"),
    "a registry without fields": attribute("registry_", "field_registries", {}),
    "another method as setup": attribute("registry_", "setup_method_name", "load"),
    "a foreign attribute": lambda document: document["attributes"].__setitem__("predict", None),
    "a private attribute": lambda document: document["attributes"].__setitem__("__class__", None),
    "many genes": everywhere("n_vars", 10**9),
    "many perturbations": everywhere("n_perturbations", 10**9),
    "many slots": everywhere("n_slots", "many"),
}


@pytest.mark.parametrize("name", TAMPERED)
def test_a_tampered_description_is_a_typed_error_and_takes_no_memory(name, saved):
    resource = pytest.importorskip("resource")
    edit(saved, TAMPERED[name])
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(ModelFileError) as error:
        load(MTAe, saved)
    assert str(saved) in str(error.value)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200 * 1024


def test_tensors_of_another_width_are_named(saved):
    edit(saved, argument("n_latent", 7))
    with pytest.raises(
        TensorMismatchError,
        match="different: 'encoder.latent.weight' is float32 \\(6, 16\\), needed is float32 \\(7, 16\\)",
    ):
        load(MTAe, saved)


@pytest.mark.parametrize("name", [JSON, SAFETENSORS])
@pytest.mark.parametrize("kind", ["truncated", "flipped"])
def test_altered_files_are_refused(name, kind, saved):
    raw = bytearray((saved / name).read_bytes())
    for position in np.linspace(0, len(raw) - 1, 40).astype(int):
        altered = (
            raw[:position] if kind == "truncated" else raw[:position] + bytes([raw[position] ^ 1]) + raw[position + 1 :]
        )
        (saved / name).write_bytes(altered)
        with pytest.raises(CorruptModelFileError):
            load(MTAe, saved)
    (saved / name).write_bytes(raw)
    load(MTAe, saved)
