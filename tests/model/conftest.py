"""A tiny screen in every container, and test-only models that use what few registered models do."""

import hashlib
from types import SimpleNamespace

import anndata
import numpy as np
import pandas as pd
import pytest
import torch
from anndata import AnnData
from scipy import sparse
from scvi.module.base import LossOutput

from multipert import _keys
from multipert.model import ModelTags, MTAe, PerturbationModel, PerturbationModule
from multipert.nn import multi_hot

CONTAINERS = {"ndarray": np.asarray, "csr": sparse.csr_matrix, "csc": sparse.csc_matrix}
TINY = {"n_hidden": 16, "n_latent": 6}
QUIET = {"enable_progress_bar": False, "accelerator": "cpu"}


def make_screen(seed: int = 0) -> AnnData:
    """120 cells x 20 genes: 3 contexts x 4 labels x 10 cells, in random order, X = log1p(size factor * counts)."""
    rng = np.random.default_rng(seed)
    context, label = (values.ravel() for values in np.meshgrid(list("abc"), ["control", "A", "B", "C"], indexing="ij"))
    context, label = (rng.permutation(np.repeat(np.c_[context, label], 10, axis=0)).T).astype(object)
    baseline = {name: rng.gamma(2, 2, 20) for name in "abc"}
    effect = {"control": np.ones(20), **{name: np.exp(rng.normal(0, 1, 20)) for name in "ABC"}}
    counts = rng.poisson([baseline[c] * effect[p] for c, p in zip(context, label, strict=True)]) + np.eye(120, 20)
    x = np.log1p(counts / counts.sum(1, keepdims=True) * 50)
    obs = pd.DataFrame({"perturbation": label, "context": context}, index=[f"c{i:03}" for i in range(120)])
    obs["combination"] = obs["perturbation"].replace({"C": "A+B"})
    obs["dose"] = obs["perturbation"].map({"control": "0", "A": "1", "B": "2", "C": "1+2"})
    first_of_a = obs.index[label == "A"][::2]
    obs.loc[first_of_a, "dose"] = "5"
    swapped = obs.index[label == "C"][::2]
    obs.loc[swapped, "combination"], obs.loc[swapped, "dose"] = "B + A", "2+1"
    obs["single_dose"] = obs["dose"].where(obs["perturbation"] != "C", "3").astype(float)
    obs["batch"] = rng.choice(["x", "y"], 120)
    partner = {c: obs.index[(context == c) & (label == "control")] for c in "abc"}
    obs["partner"] = [partner[c][i % 10] for i, c in enumerate(context)]
    obs["split"] = "train"
    adata = AnnData(
        sparse.csr_matrix(x.astype(np.float32)), obs=obs, var=pd.DataFrame(index=[f"g{i}" for i in range(20)])
    )
    adata.layers["counts"] = sparse.csr_matrix(counts.astype(np.float32))
    adata.obsm["X_emb"] = rng.normal(size=(120, 3))
    adata.uns["table"] = pd.DataFrame(rng.normal(size=(4, 3)), index=list("ABCD"), columns=list("xyz"))
    return adata


def planted(n=150, n_vars=60, seed=0):
    """Two contexts; the perturbation shifts the first 10 genes; the second context's perturbed cells are test cells."""
    rng = np.random.default_rng(seed)
    baseline = rng.uniform(1, 3, n_vars) + rng.normal(0, 0.2, (2, n_vars))
    shift = np.zeros(n_vars)
    shift[:10] = np.array([1, -1] * 5) * rng.uniform(0.6, 1.2, 10)
    context, label = np.repeat([0, 0, 1, 1], n), np.repeat([0, 1, 0, 1], n)
    x = baseline[context] + label[:, None] * shift + rng.normal(0, 0.2, (4 * n, n_vars))
    obs = pd.DataFrame(
        {
            "perturbation": np.array(["control", "A"])[label],
            "context": np.array(["a", "b"])[context],
            "split": np.where(context & label, "test", "train"),
        },
        index=[f"c{i}" for i in range(4 * n)],
    )
    return AnnData(x.clip(0).astype(np.float32), obs), shift


def hold(adata: AnnData, container: str, dtype: str, form: str, folder) -> AnnData:
    """The same cells with X in another container and dtype; as it is, as a view, or on disk."""
    x = CONTAINERS[container]((adata.X.toarray() if sparse.issparse(adata.X) else np.asarray(adata.X)).astype(dtype))
    held = adata.copy()
    held.X = x
    if form == "view":
        return held[np.arange(held.n_obs)]
    if form == "backed":
        # the file holds X only, so that one serves many tests; the rest is in memory for any backed AnnData
        path = folder / f"{container}-{dtype}-{hashlib.sha256(held.to_df().to_numpy().tobytes()).hexdigest()}.h5ad"
        if not path.exists():
            AnnData(x).write_h5ad(path)
        held, rest = anndata.read_h5ad(path, backed="r"), held
        for attribute in ("obs", "var", "obsm", "uns", "layers"):
            setattr(held, attribute, getattr(rest, attribute))
    return held


def assert_same(found: AnnData, expected: AnnData) -> None:
    """Both hold the same, to the bit."""

    def dense(x):
        return x.toarray() if sparse.issparse(x) else np.asarray(x)

    pd.testing.assert_frame_equal(found.obs, expected.obs)
    pd.testing.assert_frame_equal(found.var, expected.var)
    np.testing.assert_array_equal(dense(found.X), dense(expected.X))
    assert type(found.X) is type(expected.X)
    for attribute in ("layers", "obsm", "uns"):
        left, right = getattr(found, attribute), getattr(expected, attribute)
        assert sorted(left) == sorted(right)
        for key in left:
            if isinstance(left[key], dict):
                assert left[key] == right[key]
            else:
                np.testing.assert_array_equal(dense(left[key]), dense(right[key]))


class NetModule(PerturbationModule):
    """One linear encoder, one linear decoder of everything that a batch may hold."""

    def __init__(self, n_vars, n_perturbations, n_contexts=0, n_embedding=0, adversary=False, table=None, counts=False):
        super().__init__()
        self.n_perturbations, self.n_contexts, self.counts = n_perturbations, n_contexts, counts
        self.register_buffer("table", table)
        self.encoder = torch.nn.Linear(n_vars, 6)
        n_condition = n_perturbations if table is None else table.shape[1]
        self.decoder = torch.nn.Linear(6 + n_condition + n_contexts + n_embedding, n_vars)
        self.idle = torch.nn.Parameter(torch.ones(2))
        self.critic = torch.nn.Linear(6, n_perturbations) if adversary else None
        self.log = []

    def inference(self, tensors):
        self.log.append({key: value.clone() for key, value in tensors.items()} | {"training": self.training})
        x = tensors.get(_keys.X_CONTROL, tensors[_keys.X])
        return {"z": self.encoder(torch.log1p(x) if self.counts else x)}

    def generative(self, z, tensors):
        condition = multi_hot(tensors[_keys.PERTURBATION], tensors[_keys.DOSE], self.n_perturbations)
        parts = [z, condition if self.table is None else condition @ self.table]
        if self.n_contexts:
            parts.append(torch.nn.functional.one_hot(tensors[_keys.CONTEXT].long()[:, 0], self.n_contexts).float())
        if _keys.CELL_EMBEDDING in tensors:
            parts.append(tensors[_keys.CELL_EMBEDDING])
        return {"px": self.decoder(torch.cat(parts, dim=1))}

    def _labels(self, tensors):
        return multi_hot(tensors[_keys.PERTURBATION], tensors[_keys.DOSE], self.n_perturbations)

    def loss(self, tensors, inference_outputs, generative_outputs):
        per_cell = torch.square(generative_outputs["px"] - tensors[_keys.X]).mean(1)
        loss = per_cell.mean()
        if self.critic is not None:
            loss = loss - 0.01 * torch.square(self.critic(inference_outputs["z"]) - self._labels(tensors)).mean()
        return LossOutput(loss=loss, reconstruction_loss=per_cell)

    def critic_parameters(self):
        return () if self.critic is None else self.critic.parameters()

    def critic_loss(self, tensors):
        z = self.encoder(tensors[_keys.X]).detach()
        return torch.square(self.critic(z) - self._labels(tensors)).mean()


class Net(PerturbationModel):
    """Uses combinations, doses, unseen perturbations, covariates and both embeddings."""

    tags = ModelTags(combinations=True, doses=True, unseen_perturbations=True, latent=True)

    def __init__(self, adata=None, registry=None):
        super().__init__(adata, registry)
        self._start_module()
        self.init_params_ = self._get_init_params(locals())

    def _new_module(self):
        sizes = self.summary_stats
        key = self._setup.perturbation_embedding_key
        table = None
        if key is not None:
            table = torch.zeros(sizes.n_perturbations, 3)
            if self.adata is not None:
                table = torch.tensor(self._setup.embedding(self._setup.as_anndata(self.adata)).to_numpy()).float()
        embedding = sizes.get("n_cell_embedding", 0)
        parts = dict(self.parts)
        n_contexts = sizes.n_contexts if parts.pop("context", False) else 0
        return NetModule(sizes.n_vars, sizes.n_perturbations, n_contexts, embedding, table=table, **parts)


class RandomNet(Net):
    stages = ("random",)


class TwoStageNet(Net):
    stages = ("self", "random")


class AdversaryNet(Net):
    parts = {"adversary": True}


class ContextNet(Net):
    tags = ModelTags(uses_context=True, needs_context=True, unseen_context=False, latent=True)
    parts = {"context": True}


class CountNet(Net):
    tags = ModelTags(counts=True, latent=True)
    parts = {"counts": True}


class LinearModule(PerturbationModule):
    """Cell + dose-weighted sum of the parts' least-squares effects, or of effects linear in a table."""

    fitted = (*PerturbationModule.fitted, "effects", "table")
    fits_correction = False

    def __init__(self, n_perturbations):
        super().__init__()
        self.n_perturbations = n_perturbations

    def _features(self, tensors):
        parts = multi_hot(tensors[_keys.PERTURBATION], tensors[_keys.DOSE], self.n_perturbations)
        return parts if self.table is None else parts @ self.table

    def conclude(self, loader):
        batches = list(loader)
        x = torch.cat([batch[_keys.X] for batch in batches])
        features = torch.cat([self._features(batch) for batch in batches])
        offset = torch.ones(len(x), 1)
        self.effects = torch.linalg.lstsq(torch.cat([offset, features], 1), x, driver="gelsd").solution[1:]

    def counterfactual(self, tensors, z=None):
        return tensors[_keys.X] + self._features(tensors) @ self.effects


class Linear(PerturbationModel):
    """Closed form, for everything."""

    tags = ModelTags(combinations=True, doses=True, unseen_perturbations=True, perturbation_embedding=True)
    stages = ()

    def __init__(self, adata=None, registry=None):
        super().__init__(adata, registry)
        self._start_module()
        self.init_params_ = self._get_init_params(locals())

    def _new_module(self):
        module = LinearModule(self.summary_stats.n_perturbations)
        if self._setup.perturbation_embedding_key is not None and self.adata is not None:
            module.table = torch.tensor(self._setup.embedding(self._setup.as_anndata(self.adata)).to_numpy()).float()
        return module

    def _perturbation_embedding(self):
        module = self.module
        effects = module.effects if module.table is None else module.table @ module.effects
        return pd.DataFrame(effects.numpy(), index=list(self._codec.vocabulary), columns=self.get_var_names())


class ContextMeanModule(PerturbationModule):
    """Predicts the mean of the context's control cells: wrong if that mean is of the wrong cells."""

    context_means = True
    fits_correction = False

    def counterfactual(self, tensors, z=None):
        return tensors["context_mean"] + 0 * tensors[_keys.X]


class ContextMean(PerturbationModel):
    tags = ModelTags(uses_context=True)
    stages = ()

    def __init__(self, adata=None, registry=None):
        super().__init__(adata, registry)
        self._start_module()
        self.init_params_ = self._get_init_params(locals())

    def _new_module(self):
        return ContextMeanModule()


def trained(cls, adata, *, setup=None, init=None, **train):
    """Set up, make and train a model."""
    cls.setup_anndata(adata, **(setup or {}))
    model = cls(adata, **(TINY if cls is MTAe and init is None else init or {}))
    model.train(**{"max_epochs": 1, "seed": 0, **QUIET, **train})
    return model


@pytest.fixture(scope="session")
def toys() -> SimpleNamespace:
    """What the tests of models share; see the classes and functions of this file."""
    classes = (Net, RandomNet, TwoStageNet, AdversaryNet, ContextNet, CountNet, Linear, ContextMean)
    return SimpleNamespace(
        screen=make_screen,
        planted=planted,
        hold=hold,
        trained=trained,
        assert_same=assert_same,
        tiny=TINY,
        quiet=QUIET,
        **{cls.__name__: cls for cls in classes},
    )


@pytest.fixture
def adata() -> AnnData:
    return make_screen()
