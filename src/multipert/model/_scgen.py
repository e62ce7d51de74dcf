"""ScGen: a variational autoencoder whose latent representations are moved by one vector per perturbation."""

from __future__ import annotations

import math
from dataclasses import fields
from numbers import Integral
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import pandas as pd
import torch
from anndata import AnnData
from scvi.module.base import LossOutput
from torch.nn.functional import mse_loss

from multipert import _keys
from multipert.data._checks import check_column
from multipert.data._conditions import close_matches
from multipert.nn import GroupMeans, VAEDecoder, VAEEncoder, group_means, kl_to_standard_normal

from ._base import PerturbationModel
from ._module import PerturbationModule, Tensors
from ._mtae import check_widths
from ._shift import Deltas, by_condition
from ._tags import ModelTags
from ._training import PREDICT_BATCH, checked_batch_size

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from mudata import MuData

    from multipert.data._conditions import Condition
    from multipert.data._loaders import CellLoader


class LatentShiftModule(PerturbationModule):
    """Prediction = decoder(latent representation of the control cell + shift of its condition); control has no shift.

    A subclass fills its buffers in `conclude` and gives the shift of one condition in `condition_shift`.

    Parameters
    ----------
    n_vars
        Number of genes.
    hidden
        Widths of the encoder's hidden layers; the decoder mirrors them.
    n_latent
        Width of the latent representation.
    dropout_rate
        Dropout after each hidden layer.
    kl_weight
        Weight of the divergence from the standard normal.
    linear_decoder
        Whether the decoder is one linear layer.
    """

    fits_correction = False

    def __init__(
        self,
        n_vars: int,
        hidden: Sequence[int],
        n_latent: int,
        dropout_rate: float,
        kl_weight: float,
        *,
        linear_decoder: bool = False,
    ) -> None:
        super().__init__()
        self.encoder = VAEEncoder(n_vars, hidden, n_latent, dropout_rate)
        self.decoder = VAEDecoder(n_latent, hidden[::-1], n_vars, dropout_rate, linear=linear_decoder)
        self.kl_weight = kl_weight

    def inference(self, tensors: Tensors) -> dict[str, torch.Tensor]:
        """Latent representation of the cells: drawn in training, else the mean of its distribution."""
        mean, variance = self.encoder(tensors.get(_keys.X_CONTROL, tensors[_keys.X]))
        z = mean + variance.sqrt() * torch.randn_like(mean) if self.training else mean
        return {"z": z, "mean": mean, "variance": variance}

    def generative(self, z: torch.Tensor, tensors: Tensors) -> dict[str, torch.Tensor]:
        """Expression of latent representations; labels are no input."""
        return {"px": self.decoder(z)}

    def loss(self, tensors: Tensors, inference_outputs: Mapping, generative_outputs: Mapping) -> LossOutput:
        """Half the squared error, summed over genes, and half the weighted divergence; means over cells.

        Without the weights the two are the negative evidence bound but for a constant, `"negative_elbo"`.
        """
        error = 0.5 * mse_loss(generative_outputs["px"], tensors[_keys.X], reduction="none").sum(dim=1)
        divergence = kl_to_standard_normal(inference_outputs["mean"], inference_outputs["variance"].log())
        loss = (error + 0.5 * self.kl_weight * divergence).mean()
        bound = {"negative_elbo": (error + divergence).detach().mean()}
        return LossOutput(loss=loss, reconstruction_loss=error, kl_local=divergence, extra_metrics=bound)

    def counterfactual(self, tensors: Tensors, z: torch.Tensor | None = None) -> torch.Tensor:
        """Decoded control cells, each moved by its shift, shape `(B, n_vars)`."""
        if z is None:
            z = self.inference(tensors)["z"]
        return self.generative(z + self.shift(tensors, z), tensors)["px"]

    def shift(self, tensors: Tensors, z: torch.Tensor) -> torch.Tensor:
        """Shift of every cell of a batch, of the shape and type of `z`."""
        shift = torch.zeros_like(z)
        for codes, doses, rows in by_condition(tensors):
            some = {key: value[rows] for key, value in tensors.items()}
            shift[rows] = self.condition_shift(codes, doses, some).to(z)
        return shift

    def condition_shift(self, codes: torch.Tensor, doses: torch.Tensor, tensors: Tensors) -> torch.Tensor:
        """Shift of cells that share one condition.

        Parameters
        ----------
        codes
            Codes of the condition, shape `(n_slots,)`.
        doses
            Doses of the condition, same shape.
        tensors
            The batch, restricted to these cells.

        Returns
        -------
        Shift of the latent representation, broadcastable to `(B, n_latent)`.
        """
        raise NotImplementedError(f"{type(self).__name__} must define condition_shift.")

    def latents(self, loader: CellLoader) -> Iterator[Tensors]:
        """Batches of a loader with the latent representation in the place of the expression."""
        for batch in loader:
            some = {key: value.to(self.device) for key, value in batch.items()}
            yield {**batch, _keys.X: self.inference(some)["z"].cpu()}

    @property
    def control_position(self) -> int:
        """Position of control among the trained conditions."""
        return int(torch.nonzero((self.known_codes < 0).all(1))[0, 0])


class ScGenModule(LatentShiftModule):
    """One shift for each trained condition.

    Parameters
    ----------
    n_vars
        Number of genes.
    hidden
        Widths of the encoder's hidden layers; the decoder mirrors them.
    n_latent
        Width of the latent representation.
    dropout_rate
        Dropout after each hidden layer.
    kl_weight
        Weight of the divergence from the standard normal.
    delta_contexts
        Codes of the contexts that the shifts are taken from; None takes all.
    legacy_delta
        Whether the means of control and of perturbed cells may be of different contexts.
    """

    fitted = (*PerturbationModule.fitted, "delta")

    def __init__(
        self,
        n_vars: int,
        hidden: Sequence[int],
        n_latent: int,
        dropout_rate: float,
        kl_weight: float,
        *,
        delta_contexts: Sequence[int] | None,
        legacy_delta: bool,
    ) -> None:
        super().__init__(n_vars, hidden, n_latent, dropout_rate, kl_weight)
        self.delta_contexts, self.legacy_delta = delta_contexts, legacy_delta

    def conclude(self, loader: CellLoader) -> None:
        """Take the shifts from the mean latent representations of the training cells, contexts weighted equally."""
        means = group_means(self.latents(loader), self.lookup)
        if self.delta_contexts is not None:
            kept = torch.isin(means.context, torch.tensor(self.delta_contexts))
            means = GroupMeans(**{field.name: getattr(means, field.name)[kept] for field in fields(means)})
        control = self.control_position
        # NaN where no context tells the shift
        delta = torch.full((len(self.known_codes), means.mean.shape[1]), torch.nan, dtype=torch.float64)
        if self.legacy_delta:
            for condition in torch.unique(means.condition):
                delta[condition] = means.mean[means.condition == condition].mean(0)
            delta -= delta[control].clone()
        else:
            deltas = Deltas(means, control)
            for condition in torch.unique(deltas.condition):
                delta[condition] = deltas.delta[deltas.condition == condition].mean(0)
        self.delta = delta.float().to(self.device)

    def condition_shift(self, codes: torch.Tensor, doses: torch.Tensor, tensors: Tensors) -> torch.Tensor:
        """Shift of cells that share one condition; see :class:`LatentShiftModule`."""
        return self.delta[self.lookup({_keys.PERTURBATION: codes[None], _keys.DOSE: doses[None]})]


def vae_arguments(
    model: PerturbationModel,
    *,
    n_hidden: int | Sequence[int] | None,
    n_latent: int | None,
    n_layers: int | None,
    dropout_rate: float | None,
    kl_weight: float | None,
) -> dict[str, Any]:
    """Arguments of :class:`LatentShiftModule`, from those of a model and its preset.

    Parameters
    ----------
    model
        The model.
    n_hidden
        Width of the hidden layers, or one per layer.
    n_latent
        Width of the latent representation.
    n_layers
        Number of hidden layers where `n_hidden` is a number.
    dropout_rate
        Dropout after each hidden layer.
    kl_weight
        Weight of the divergence.

    Returns
    -------
    The arguments by name.

    Raises
    ------
    ValueError
        If a width, a rate or the weight is out of range, or `n_hidden` and `n_layers` disagree.
    """
    given = {"n_latent": n_latent, "dropout_rate": dropout_rate, "kl_weight": kl_weight}
    args = {name: model._value(name, value) for name, value in given.items()}
    width, depth = model._value("n_hidden", n_hidden), model._value("n_layers", n_layers)
    check_widths(n_hidden=width, n_latent=args["n_latent"], n_layers=depth)
    hidden = (width,) * depth if isinstance(width, Integral) else tuple(width)
    if not hidden or (n_layers is not None and len(hidden) != n_layers):
        raise ValueError(f"n_hidden={width} holds {len(hidden)} width(s), but n_layers={depth}; give one of them.")
    if not 0 <= args["dropout_rate"] < 1:
        raise ValueError(f"dropout_rate={args['dropout_rate']} must be at least 0 and below 1.")
    if not 0 <= args["kl_weight"] < math.inf:
        raise ValueError(f"kl_weight={args['kl_weight']} must be a finite number of at least 0.")
    return {"n_vars": model.summary_stats.n_vars, "hidden": hidden, **args}


def decoded(model: PerturbationModel, z: np.ndarray, clip: bool | None, batch_size: int | None) -> np.ndarray:
    """Expression of latent representations.

    Parameters
    ----------
    model
        A trained model whose module is a :class:`LatentShiftModule`.
    z
        Latent representations, shape `(n_cells, n_latent)`.
    clip
        Whether negative values are set to 0; None does so unless the data are signed.
    batch_size
        Cells per batch.

    Returns
    -------
    Shape `(n_cells, n_vars)`, float32.
    """
    step = checked_batch_size(batch_size, PREDICT_BATCH)
    clip = not model._setup.signed if clip is None else clip
    x = np.empty((len(z), model.summary_stats.n_vars), dtype=np.float32)
    model.module.eval()
    with torch.inference_mode():
        for start in range(0, len(z), step):
            some = torch.from_numpy(z[start : start + step]).to(model.module.device)
            x[start : start + step] = model.module.generative(some, {})["px"].float().cpu().numpy()
    return x.clip(min=0) if clip else x


class ScGen(PerturbationModel):
    r"""Latent space arithmetic of a variational autoencoder :cite:p:`Lotfollahi2019`.

    One autoencoder learns the cells of all conditions without being told their labels. A perturbation is one vector of its
    latent space, the mean over training contexts of perturbed minus control mean, added to every control cell:

    .. math::

        \hat x = g(f(x) + \delta_p), \qquad
        \delta_p = \frac{1}{|T(p)|} \sum_{c \in T(p)} \bigl(\bar z_{cp} - \bar z_{c0}\bigr)

    with f the mean of the encoder, g the decoder and T(p) the contexts with training cells of both p and control. Use it
    for perturbations seen in other contexts. The vector is the same in every context: :class:`ScVIDR` makes it depend on
    the context. Perturbations without training cells, combinations and doses between labels are out of reach. The decoder
    gives conditional means: use `predict(realise="residual")` for distances and `"counts"` for differential expression.

    Parameters
    ----------
    adata
        Data that :meth:`setup_anndata` was run on.
    registry
        Registry of a saved model, in place of data.
    preset
        "default"; "published" (100 epochs in batches of 32).
    n_hidden
        Width of the hidden layers: a number (then `n_layers` of them) or one per layer, encoder's order.
    n_latent
        Width of the latent representation.
    n_layers
        Number of hidden layers where `n_hidden` is a number.
    dropout_rate
        Dropout after each hidden layer.
    kl_weight
        Weight of the divergence of a cell's latent distribution from the standard normal.
    delta_contexts
        Names of the contexts that the vectors are taken from; None takes all.
    legacy_delta
        Whether the vector is the difference of the means over *all* contexts of either kind of cells, as published: it
        then also holds how a context without perturbed cells differs from the others.

    Examples
    --------
    >>> import multipert as mp
    >>> adata = mp.datasets.screen("small")
    >>> mp.model.ScGen.setup_anndata(adata, context_key="context")
    >>> model = mp.model.ScGen(adata, n_hidden=32, n_latent=8)
    >>> model.train(max_epochs=1, enable_progress_bar=False)
    >>> model.predict(perturbation="P1", returns="mean").n_vars == adata.n_vars
    True
    """

    tags = ModelTags(latent=True, perturbation_embedding=True, reference="Lotfollahi2019")
    presets: ClassVar[dict[str, dict[str, Any]]] = {
        "default": {
            "n_hidden": 800,
            "n_latent": 100,
            "n_layers": 2,
            "dropout_rate": 0.2,
            "kl_weight": 5e-5,
            "lr": 1e-3,
            "batch_size": 32,
            "n_updates": 1600,
            "weight_decay": 1e-6,
            "plan_kwargs": {"eps": 0.01, "n_warmup_steps": 0},
        },
        "published": {"batch_size": 32, "max_epochs": 100},
    }
    search_space: ClassVar[dict[str, tuple]] = {
        "n_hidden": ("choice", (128, 256, 800)),
        "n_latent": ("choice", (20, 50, 100)),
        "dropout_rate": ("float", 0.0, 0.5),
        "kl_weight": ("log", 1e-6, 1e-2),
        "lr": ("log", 1e-4, 1e-2),
    }

    def __init__(
        self,
        adata: AnnData | None = None,
        registry: dict | None = None,
        *,
        preset: str | None = None,
        n_hidden: int | Sequence[int] | None = None,
        n_latent: int | None = None,
        n_layers: int | None = None,
        dropout_rate: float | None = None,
        kl_weight: float | None = None,
        delta_contexts: Sequence[str] | None = None,
        legacy_delta: bool = False,
    ) -> None:
        super().__init__(adata, registry, preset)
        self._module_args = vae_arguments(
            self,
            n_hidden=n_hidden,
            n_latent=n_latent,
            n_layers=n_layers,
            dropout_rate=dropout_rate,
            kl_weight=kl_weight,
        )
        codes = None if delta_contexts is None else self._context_codes(delta_contexts)
        self._module_args |= {"delta_contexts": codes, "legacy_delta": legacy_delta}
        self._start_module()
        self.init_params_ = self._get_init_params(locals())

    def _new_module(self) -> ScGenModule:
        return ScGenModule(**self._module_args)

    def _context_codes(self, names: Sequence[str]) -> list[int]:
        if np.ndim(names) == 0:
            raise TypeError(f"delta_contexts={names!r} must be a list of contexts, such as {[names]}.")
        if self._setup.context_key is None:
            raise ValueError("delta_contexts was given but the model was set up without context_key.")
        if not len(names):
            raise ValueError("delta_contexts is empty, so no vector could be taken; name at least one context.")
        known = list(self.registry_["field_registries"][_keys.CONTEXT]["state_registry"]["categories"][0])
        for name in names:
            if str(name) not in known:
                raise ValueError(f"delta_contexts holds {name!r}, which is no context{close_matches(str(name), known)}")
        return [known.index(str(name)) for name in names]

    def _check_target(self, condition: Condition) -> None:
        """Refuse conditions whose shift no context tells."""
        if condition and condition not in self._shifted():
            where = "of delta_contexts " if self.module.delta_contexts is not None else ""
            raise ValueError(
                f"{condition[0][0]!r} is in no training context {where}that has control cells, so its vector is unknown."
            )

    def _shifted(self) -> list[Condition]:
        """Trained conditions with a shift."""
        known = torch.isfinite(self.module.delta).all(1).tolist()
        return [condition for condition, has in zip(self.trained_conditions_, known, strict=True) if condition and has]

    def _perturbation_embedding(self) -> pd.DataFrame:
        """The shifts."""
        shifted = self._shifted()
        rows = [self.trained_conditions_.index(condition) for condition in shifted]
        return pd.DataFrame(self.module.delta[rows].cpu().numpy(), index=self._labels(shifted))

    def remove_batch(
        self,
        adata: AnnData | MuData | None = None,
        *,
        batch_key: str,
        clip: bool | None = None,
        batch_size: int | None = None,
    ) -> AnnData:
        """Remove batch effects by moving, within each context, the latent mean of every batch onto that of the largest.

        Cells of a context that are all of one batch are decoded as they are. Nothing is written into the input.

        Parameters
        ----------
        adata
            Cells of any conditions; None takes the model's own data.
        batch_key
            obs column of the batches.
        clip
            Whether negative values are set to 0; None does so unless the data are signed.
        batch_size
            Cells per batch of the computation.

        Returns
        -------
        The cells in their order, with the decoded expression in `X` and the corrected latent representation in
        `obsm["X_ScGen_corrected"]`; obs and var are those of the input.

        Raises
        ------
        KeyError
            If the column is absent.
        ValueError
            If it has missing values, or genes differ.
        """
        self._require_trained()
        source = self._source(adata, needs_control=False)
        batches = check_column(source.obs, batch_key, "batch_key").astype(str).to_numpy()
        contexts = self._setup.contexts(source)
        z = self.get_latent_representation(source, batch_size=batch_size)
        for context in np.unique(contexts.astype(str)):
            _align(z, np.flatnonzero(contexts == context), batches)
        return AnnData(
            X=decoded(self, z, clip, batch_size),
            obs=source.obs.copy(),
            var=source.var.copy(),
            obsm={"X_ScGen_corrected": z},
            uns={_keys.UNS: self._provenance("plain", 0)},
        )

    def similarity_to_control(
        self,
        adata: AnnData | MuData | None = None,
        perturbation: str | Sequence[str] | pd.DataFrame | None = None,
        *,
        context: str | Sequence[str] | None = None,
    ) -> pd.DataFrame:
        """Tell how little a prediction differs from control, a known failure of latent space arithmetic.

        Parameters
        ----------
        adata
            Data with control cells; None takes the model's own.
        perturbation
            As in :meth:`predict`.
        context
            As in :meth:`predict`.

        Returns
        -------
        One row per perturbation and context: `r2`, the squared correlation over genes of the predicted mean with that of
        decoded control cells, near 1 for a prediction that stays at control; and `change`, the root mean square over genes
        of their difference, in units of the expression.
        """
        keys = [key for key in (self._setup.context_key,) if key is not None]
        control = self.predict(adata, self._codec.control, context=context, returns="mean", clip=False)
        found = self.predict(adata, perturbation, context=context, returns="mean", clip=False)
        names = control.obs[keys[0]].astype(str) if keys else pd.Series("", index=control.obs_names)
        at = pd.Index(names).get_indexer(found.obs[keys[0]].astype(str) if keys else [""] * found.n_obs)
        reference = control.X[at].astype(np.float64)
        table = found.obs[[self._setup.perturbation_key, *keys]].reset_index(drop=True)
        pairs = zip(found.X.astype(np.float64), reference, strict=True)
        table["r2"] = [np.corrcoef(one, other)[0, 1] ** 2 for one, other in pairs]
        table["change"] = np.sqrt(np.square(found.X - reference).mean(axis=1))
        return table


def _align(z: np.ndarray, rows: np.ndarray, batches: np.ndarray) -> None:
    """Move, in place, the mean of every batch of some rows onto that of the largest, the first of equals."""
    names, code, n_cells = np.unique(batches[rows], return_inverse=True, return_counts=True)
    if len(names) == 1:
        return
    means = np.stack([z[rows[code == i]].mean(axis=0, dtype=np.float64) for i in range(len(names))])
    z[rows] += (means[n_cells.argmax()] - means)[code]
