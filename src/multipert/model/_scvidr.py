"""ScVIDR: ScGen's autoencoder with a latent shift that depends on the context and on the dose."""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any, ClassVar, Literal, cast, get_args

import numpy as np
import pandas as pd
import torch

from multipert import _keys
from multipert.data._conditions import close_matches
from multipert.nn import group_means

from ._base import PerturbationModel
from ._module import PerturbationModule, Tensors
from ._predict import ContextMeans, Predictor
from ._results import cells_to_anndata
from ._scgen import LatentShiftModule, decoded, vae_arguments
from ._shift import Deltas
from ._surrogate import Regressor, Surrogate, nearness
from ._tags import ModelTags
from ._targets import encode_targets

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from anndata import AnnData
    from mudata import MuData

    from multipert.data._conditions import Condition
    from multipert.data._loaders import CellLoader

Latent = Literal["vae", "pca"]
# centroids are means of float32 numbers: a smaller share of the largest spread is rounding
_LEAST_SPREAD = 1e-5
_PASSES, _OVERSAMPLE = 6, 10
# sum of the absolute weights, 1 between the contexts, above which an error of the vectors is multiplied too much
_MOST_WEIGHT = 3


def regression_weights(control: np.ndarray, target: np.ndarray, ridge_alpha: float) -> np.ndarray:
    """Weights of training contexts whose weighted shift is that of the linear regression of shifts on centroids.

    Parameters
    ----------
    control
        Control centroids of the training contexts, shape `(n_contexts, n_latent)`.
    target
        Control centroids of other contexts, shape `(n_targets, n_latent)`.
    ridge_alpha
        Penalty, in units of the mean squared distance of the centroids from their mean; 0 is least squares of the
        smallest norm.

    Returns
    -------
    Shape `(n_targets, n_contexts)`, rows sum to 1.

    Examples
    --------
    >>> regression_weights(np.array([[0.0, 0.0], [2.0, 0.0]]), np.array([[3.0, 5.0]]), 0.0).round(6)
    array([[-0.5,  1.5]])
    """
    n = len(control)
    centred = control - control.mean(axis=0)
    away = target - control.mean(axis=0)
    if not ridge_alpha:
        return 1 / n + away @ np.linalg.pinv(centred, rcond=_LEAST_SPREAD)
    gram = centred @ centred.T
    penalty = ridge_alpha * np.trace(gram) / n
    if not penalty > 0:
        return np.full((len(target), n), 1 / n)
    return 1 / n + np.linalg.solve(gram + penalty * np.eye(n), centred @ away.T).T


class ScVIDRModule(LatentShiftModule):
    """Shifts of every perturbation at its highest dose in every training context, and their regression on the centroids.

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
    latent
        "vae", or "pca" for principal components in the place of both networks.
    regression
        Whether the shift depends on the centroid; else it is the mean over training contexts.
    ridge_alpha
        Penalty of the regression.
    """

    context_latents = True
    fitted = (
        *PerturbationModule.fitted,
        "context_code",
        "centroid",
        "pair_context",
        "pair_condition",
        "delta",
        "latent_range",
        "components",
        "centre",
    )

    def __init__(
        self,
        n_vars: int,
        hidden: Sequence[int],
        n_latent: int,
        dropout_rate: float,
        kl_weight: float,
        *,
        linear_decoder: bool,
        latent: Latent,
        regression: bool,
        ridge_alpha: float,
    ) -> None:
        if latent == "pca":
            PerturbationModule.__init__(self)
        else:
            super().__init__(n_vars, hidden, n_latent, dropout_rate, kl_weight, linear_decoder=linear_decoder)
        self.n_latent, self.latent = n_latent, latent
        self.regression, self.ridge_alpha = regression, ridge_alpha

    def inference(self, tensors: Tensors) -> dict[str, torch.Tensor]:
        """Latent representation of the cells; see :class:`LatentShiftModule`."""
        if self.latent == "vae":
            return super().inference(tensors)
        return {"z": (tensors[_keys.X] - self.centre) @ self.components}

    def generative(self, z: torch.Tensor, tensors: Tensors) -> dict[str, torch.Tensor]:
        """Expression of latent representations."""
        if self.latent == "vae":
            return super().generative(z, tensors)
        return {"px": z @ self.components.T + self.centre}

    def conclude(self, loader: CellLoader) -> None:
        """Take centroids, shifts and the range of the latent representation from the training cells."""
        if self.latent == "pca":
            self._fit_components(loader)
        lowest, highest = [], []

        def watched() -> Iterator[Tensors]:
            for batch in self.latents(loader):
                lowest.append(batch[_keys.X].amin(0))
                highest.append(batch[_keys.X].amax(0))
                yield batch

        deltas = Deltas(group_means(watched(), self.lookup), self.control_position)
        device = self.known_codes.device
        self.context_code, self.centroid = deltas.contexts.to(device), deltas.control_mean.float().to(device)
        self.pair_context, self.pair_condition = deltas.context_row.to(device), deltas.condition.to(device)
        self.delta = deltas.delta.float().to(device)
        self.latent_range = torch.stack([torch.stack(lowest).amin(0), torch.stack(highest).amax(0)]).to(device)

    def _fit_components(self, loader: CellLoader) -> None:
        """Principal components of the training cells by subspace iteration, one pass over the cells for each step."""
        n_cells, n_vars = len(loader.rows), loader.store.n_vars
        centre = torch.zeros(n_vars, dtype=torch.float64)
        for batch in loader:
            centre += batch[_keys.X].double().sum(0) / n_cells
        n_components = min(self.n_latent, n_vars, n_cells - 1)
        start = np.random.default_rng(0).normal(size=(n_vars, min(n_components + _OVERSAMPLE, n_vars)))
        axes = torch.from_numpy(np.linalg.qr(start)[0])
        for _ in range(_PASSES):
            image = torch.zeros_like(axes)
            for batch in loader:
                x = batch[_keys.X].double() - centre
                image += x.T @ (x @ axes)
            axes = torch.from_numpy(np.linalg.qr(image.numpy())[0])
        covariance = torch.zeros(axes.shape[1], axes.shape[1], dtype=torch.float64)
        for batch in loader:
            z = (batch[_keys.X].double() - centre) @ axes
            covariance += z.T @ z
        # eigh sorts from the smallest on
        rotation = torch.from_numpy(np.linalg.eigh(covariance.numpy())[1][:, ::-1].copy())
        self.components = (axes @ rotation)[:, :n_components].float().to(self.known_codes.device)
        self.centre = centre.float().to(self.known_codes.device)

    def highest(self, code: int) -> int:
        """Position, among the trained conditions, of a perturbation's highest dose that has a shift; -1 without one."""
        measured = torch.unique(self.pair_condition)
        of_code = measured[(self.known_codes[measured] == code).any(1)]
        return int(of_code[self.known_doses[of_code].sum(1).argmax()]) if len(of_code) else -1

    def pairs(self, position: int) -> torch.Tensor:
        """Positions of the measured shifts of one trained condition."""
        return torch.nonzero(self.pair_condition == position).reshape(-1)

    def context_shift(self, position: int, centroids: torch.Tensor) -> torch.Tensor:
        """Shift of one trained condition in contexts with given control centroids.

        Parameters
        ----------
        position
            Position of the condition.
        centroids
            Control centroids, shape `(n, n_latent)`.

        Returns
        -------
        Shape `(n, n_latent)`, float64.
        """
        at = self.pairs(position)
        delta = self.delta[at].double()
        if not self.regression:
            return delta.mean(0).expand(len(centroids), -1)
        control, target = (x.double().cpu().numpy() for x in (self.centroid[self.pair_context[at]], centroids))
        weights = regression_weights(control, target, self.ridge_alpha)
        if np.abs(weights).sum(axis=1).max() > _MOST_WEIGHT:
            warnings.warn(
                "ScVIDR extrapolates: the control cells of a context lie far outside those of the contexts that the vector "
                f"was measured in, so that these are weighted by {weights.min():.1f} to {weights.max():.1f}. Compare "
                "regression_errors(); a ridge_alpha draws the weights to equal ones, regression=False makes them so.",
                UserWarning,
                stacklevel=2,
            )
        return torch.from_numpy(weights).to(delta.device) @ delta

    def centroids_of(self, tensors: Tensors) -> torch.Tensor:
        """Control centroid of each cell's context: of its training cells, or of the given ones where it has none there."""
        found = tensors["context_latent"]
        if _keys.CONTEXT not in tensors:
            return found
        same = tensors[_keys.CONTEXT][:, :1].long() == self.context_code.long()
        return torch.where(same.any(1)[:, None], self.centroid[same.int().argmax(1)].to(found), found)

    def dose_share(self, position: int, dose: float) -> float:
        """Share of the shift at a perturbation's highest dose that another dose has."""
        return math.log1p(dose) / math.log1p(float(self.known_doses[position].sum()))

    def condition_shift(self, codes: torch.Tensor, doses: torch.Tensor, tensors: Tensors) -> torch.Tensor:
        """Shift of cells that share one condition; see :class:`LatentShiftModule`."""
        position = self.highest(int(codes.max()))
        # cells of one context share their centroid, so each is solved once
        centroids, inverse = torch.unique(self.centroids_of(tensors), dim=0, return_inverse=True)
        return self.dose_share(position, float(doses.sum())) * self.context_shift(position, centroids)[inverse]


class ScVIDR(PerturbationModel):
    r"""Latent space arithmetic with a vector for each context and dose :cite:p:`Kana2023`.

    The autoencoder of :class:`ScGen`; the vector of a perturbation is a linear function of the mean latent representation
    :math:`\bar z_{c0}` of a context's control cells, fitted to the training contexts, and grows with the logarithm of the
    dose :math:`d` up to the highest one, :math:`d_p`:

    .. math::

        \hat x = g\Bigl(f(x) + \frac{\log(1 + d)}{\log(1 + d_p)}\, (A_p\, \bar z_{c0} + b_p)\Bigr), \qquad
        A_p \bar z_{c0} + b_p \approx \bar z_{cp} - \bar z_{c0}

    With fewer contexts than latent dimensions the regression (of the smallest norm) hits every training context exactly, so
    it says nothing of its own error: :meth:`regression_errors` leaves each out in turn. Use it for perturbations seen in
    several contexts whose responses differ, and for doses. Without `dose_key` each label is a perturbation at one dose.
    Perturbations without training cells and combinations are out of reach.

    Parameters
    ----------
    adata
        Data that :meth:`setup_anndata` was run on, with `context_key`.
    registry
        Registry of a saved model, in place of data.
    preset
        "default"; "published" (100 epochs in batches of 128).
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
    linear_decoder
        Whether the decoder is one linear layer and a batch norm.
    latent
        "vae"; or "pca", the same arithmetic on `n_latent` principal components, which are fitted in closed form.
    regression
        Whether the vector depends on the context; False takes the mean over training contexts, as :class:`ScGen` does.
    ridge_alpha
        Penalty that draws the vectors to their mean over contexts, in units of the mean squared distance of the control
        centroids from their mean; 0 is least squares of the smallest norm.

    Examples
    --------
    >>> import multipert as mp
    >>> adata = mp.datasets.screen("doses")
    >>> mp.model.ScVIDR.setup_anndata(adata, context_key="context", dose_key="dose")
    >>> model = mp.model.ScVIDR(adata, latent="pca", n_latent=20)
    >>> model.train()
    >>> model.predict(perturbation="P1", dose=[0.2, 50], returns="mean").obs["dose"].unique().tolist()
    [0.2, 50.0]
    """

    tags = ModelTags(uses_context=True, doses=True, latent=True, perturbation_embedding=True, reference="Kana2023")
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
        "published": {"batch_size": 128, "max_epochs": 100},
    }
    search_space: ClassVar[dict[str, tuple]] = {
        "n_hidden": ("choice", (128, 256, 800)),
        "n_latent": ("choice", (20, 50, 100)),
        "dropout_rate": ("float", 0.0, 0.5),
        "kl_weight": ("log", 1e-6, 1e-2),
        "ridge_alpha": ("log", 1e-3, 10.0),
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
        linear_decoder: bool = False,
        latent: Latent = "vae",
        regression: bool = True,
        ridge_alpha: float = 0.0,
    ) -> None:
        super().__init__(adata, registry, preset)
        if latent not in get_args(Latent):
            raise ValueError(f"latent={latent!r} is unknown{close_matches(latent, get_args(Latent))}")
        if not 0 <= ridge_alpha < math.inf:
            raise ValueError(f"ridge_alpha={ridge_alpha} must be a finite number of at least 0.")
        networks = {
            "n_hidden": n_hidden,
            "n_layers": n_layers,
            "dropout_rate": dropout_rate,
            "kl_weight": kl_weight,
            "linear_decoder": linear_decoder or None,
        }
        useless = [name for name, value in networks.items() if value is not None]
        if latent == "pca" and useless:
            raise ValueError(f"{useless[0]} was given, but latent='pca' has no network; leave it out.")
        self._module_args = vae_arguments(
            self,
            n_hidden=n_hidden,
            n_latent=n_latent,
            n_layers=n_layers,
            dropout_rate=dropout_rate,
            kl_weight=kl_weight,
        )
        self._module_args |= {
            "linear_decoder": linear_decoder,
            "latent": latent,
            "regression": regression,
            "ridge_alpha": ridge_alpha,
        }
        if latent == "pca":
            # principal components need no pass
            self.stages = ()  # type: ignore[misc]
        self._start_module()
        self.init_params_ = self._get_init_params(locals())

    def _new_module(self) -> ScVIDRModule:
        return ScVIDRModule(**self._module_args)

    def _check_target(self, condition: Condition) -> None:
        """Refuse perturbations whose shift no context tells."""
        if condition and self.module.highest(self._code(condition[0][0])) < 0:
            raise ValueError(
                f"{condition[0][0]!r} is in no training context that has control cells, so its vector is unknown."
            )

    def _code(self, name: str) -> int:
        return self._codec.vocabulary.index(name)

    def _measured(self) -> dict[str, int]:
        """Perturbations with a vector, and the position of the highest dose of each."""
        found = {name: self.module.highest(code) for code, name in enumerate(self._codec.vocabulary)}
        return {name: position for name, position in found.items() if position >= 0}

    def _named(self, perturbation: str | None) -> tuple[str, int]:
        """One perturbation, the only one where none is named, and the position of its highest dose."""
        measured = self._measured()
        if perturbation is None and len(measured) != 1:
            raise ValueError(f"The model holds {len(measured)} perturbations; name one{close_matches('', measured)}")
        name = next(iter(measured)) if perturbation is None else perturbation.strip()
        if name not in measured:
            raise ValueError(f"perturbation={perturbation!r} has no vector{close_matches(str(perturbation), measured)}")
        return name, measured[name]

    def _context_names(self) -> list[str]:
        """Names of the training contexts that have control cells, in the order of the centroids."""
        if self._setup.context_key is None:
            return [""]
        known = self.registry_["field_registries"][_keys.CONTEXT]["state_registry"]["categories"][0]
        return [str(known[code]) for code in self.module.context_code.tolist()]

    def _perturbation_embedding(self) -> pd.DataFrame:
        """Mean vector over training contexts of every perturbation, at its highest dose."""
        positions = list(self._measured().values())
        rows = [self.module.delta[self.module.pairs(position)].mean(0) for position in positions]
        index = self._labels([self.trained_conditions_[position] for position in positions])
        return pd.DataFrame(torch.stack(rows).cpu().numpy(), index=index)

    def regression_errors(self) -> pd.DataFrame:
        """Error of the regression for each training context, left out of it in turn.

        Returns
        -------
        One row per perturbation and training context that has it: the latent distance of the predicted from the measured
        vector, as a share of the measured vector's length, for the regression (`error`) and for the mean vector of the
        other contexts (`error_of_mean`); and the number of these contexts. NaN where there are none. Where `error` is not
        the smaller, take `regression=False` or a `ridge_alpha`.

        Raises
        ------
        RuntimeError
            If the model is not trained.
        """
        self._require_trained()
        module, names, rows = self.module, np.array(self._context_names()), []
        for label, position in self._measured().items():
            at = module.pairs(position)
            delta = module.delta[at].double().cpu().numpy()
            control = module.centroid[module.pair_context[at]].double().cpu().numpy()
            for i, context in enumerate(names[module.pair_context[at].cpu().numpy()]):
                others = np.arange(len(delta)) != i
                errors = [math.nan, math.nan]
                if others.any():
                    weights = regression_weights(control[others], control[i : i + 1], module.ridge_alpha)
                    found = (weights @ delta[others])[0], delta[others].mean(axis=0)
                    errors = [float(np.linalg.norm(one - delta[i]) / np.linalg.norm(delta[i])) for one in found]
                rows.append((label, context, int(others.sum()), *errors))
        columns = [self._setup.perturbation_key, self._setup.context_key or "context", "n_contexts"]
        return pd.DataFrame(rows, columns=[*columns, "error", "error_of_mean"])

    def gene_scores(
        self,
        perturbation: str | None = None,
        *,
        context: str | None = None,
        dose: float | None = None,
        regressor: Regressor = "ridge",
        alpha: float = 1.0,
        l1_ratio: float = 0.5,
        n_samples: int = 20_000,
        seed: int = 0,
    ) -> pd.DataFrame:
        """Score genes by how far the decoder moves them along the vector of a perturbation.

        A linear surrogate of the decoder is fitted to latent representations drawn uniformly from the box that holds the
        training cells, weighted by the inverse of their cosine distance from the vector. Its weights, scaled to one norm
        over genes for each latent dimension, times the vector are the scores.

        Parameters
        ----------
        perturbation
            Name; may be left out where there is one.
        context
            A training context with control cells, held out or not; None takes the mean vector over training contexts.
        dose
            The dose, which scales all scores alike; None takes the highest trained one.
        regressor
            "ridge", or "elasticnet" for sparse weights.
        alpha
            Penalty of the surrogate, as in scikit-learn's class of that name.
        l1_ratio
            Share of the absolute weights in the penalty of the elastic net.
        n_samples
            Number of latent representations; a fifth as many more measure the surrogate.
        seed
            Seed of their draw.

        Returns
        -------
        One row per gene, from the highest signed score to the lowest, the order that tests of gene sets on ranked lists
        read: `score`; `rank` by absolute score, 1 for the largest; and `r2`, the share of the decoded gene's variance that
        the surrogate explains on samples which it was not fitted to. Their mean over genes is in `attrs["r2"]`: scores of a
        surrogate that explains little mean little.

        Raises
        ------
        RuntimeError
            If the model is not trained.
        ValueError
            If the perturbation, the context or the regressor is unknown, or a number out of range.
        """
        self._require_trained()
        _check_surrogate(regressor, alpha, l1_ratio, n_samples)
        name, position = self._named(perturbation)
        delta = self._delta(position, context).cpu().numpy()
        if dose is not None:
            delta = delta * self.module.dose_share(position, self._checked_dose(name, dose))
        if not delta.any():
            raise ValueError(f"The vector of {name!r} at dose {dose} is 0, so no gene has a score.")
        rng = np.random.default_rng(seed)
        low, high = self.module.latent_range.double().cpu().numpy()
        z, fresh = (rng.uniform(low, high, (n, len(low))) for n in (n_samples, max(2, n_samples // 5)))

        def decode(some: np.ndarray) -> np.ndarray:
            return decoded(self, some.astype(np.float32), False, None)

        surrogate = Surrogate.fit(decode, z, nearness(z, delta), regressor=regressor, alpha=alpha, l1_ratio=l1_ratio)
        table = pd.DataFrame({"score": surrogate.scores(delta)}, index=pd.Index(self.get_var_names(), name="gene"))
        table["rank"] = table["score"].abs().rank(ascending=False, method="first").astype(int)
        table["r2"] = surrogate.r2(decode, fresh)
        table = table.sort_values("score", ascending=False, kind="stable")
        table.attrs["r2"] = float(table["r2"].mean())
        return table

    def _delta(self, position: int, context: str | None) -> torch.Tensor:
        """Vector of a condition in a training context, or its mean over those that have it, float64."""
        if context is None:
            return self.module.delta[self.module.pairs(position)].double().mean(0)
        names = self._context_names()
        if str(context) not in names:
            raise ValueError(
                f"Context {context!r} has no training cell under control{close_matches(str(context), names)}"
            )
        at = names.index(str(context))
        return self.module.context_shift(position, self.module.centroid[at : at + 1])[0]

    def _checked_dose(self, name: str, dose: float) -> float:
        if self._setup.dose_key is None and float(dose) not in (0, 1):
            raise ValueError(f"dose={dose!r} was asked for, but the model was set up without dose_key.")
        condition = self._codec.parse(name, dose)
        return condition[0][1] if condition else 0.0

    def pseudo_dose(self, adata: AnnData | MuData | None = None, perturbation: str | None = None) -> pd.Series:
        r"""Project cells on the vector of a perturbation in their context.

        :math:`\langle z, \delta \rangle / \langle \delta, \delta \rangle` with :math:`\delta` the measured change at the
        highest dose where the context has it in training, else the predicted one. Perturbed cells at the highest dose lie
        1 above control cells on average; where control lies differs between contexts.

        Parameters
        ----------
        adata
            Cells of any label; with control cells of contexts that had none in training, unless the model's `regression` is
            off. None takes the model's own data.
        perturbation
            Name; may be left out where there is one.

        Returns
        -------
        One number per cell.

        Raises
        ------
        ValueError
            If the perturbation is unknown, or a context has no control cells where they are needed.
        """
        self._require_trained()
        name, position = self._named(perturbation)
        source = self._source(adata, needs_control=False)
        self._check_rows(source, None)
        result = np.empty(source.n_obs)
        self.module.eval()
        with torch.inference_mode():
            names, of_cell = np.unique(self._setup.contexts(source).astype(str), return_inverse=True)
            deltas = self._deltas(position, names.tolist(), source)
            predictor = self._predictor(source, "plain", None, 0, None, needs_means=False)
            for some, tensors in predictor.batches(np.arange(source.n_obs)):
                z = self.module.inference(tensors)["z"].double()
                delta = deltas[torch.from_numpy(of_cell[some]).to(deltas.device)]
                result[some] = ((z * delta).sum(1) / delta.square().sum(1)).cpu().numpy()
        return pd.Series(result, index=source.obs_names, name=f"pseudo_dose_{name}")

    def _deltas(self, position: int, contexts: list[str], source: AnnData) -> torch.Tensor:
        """Vector of a condition in some contexts, float64: measured in training, else predicted from their control cells."""
        module, at = self.module, self.module.pairs(position)
        measured = dict(zip(module.pair_context[at].tolist(), module.delta[at].double(), strict=True))
        found = {name: measured[i] for i, name in enumerate(self._context_names()) if i in measured}
        absent = [name for name in contexts if name not in found]
        if absent:
            shifts = module.context_shift(position, self._centroids(absent, source))
            found.update(zip(absent, shifts, strict=True))
        return torch.stack([found[name] for name in contexts])

    def _centroids(self, contexts: list[str], source: AnnData) -> torch.Tensor:
        """Control centroids of some contexts: of the training cells, else of the given ones."""
        known = dict(zip(self._context_names(), self.module.centroid, strict=True))
        new = [name for name in contexts if name not in known]
        if new and self.module.regression:
            self._require_controls(source, np.flatnonzero(np.isin(self._setup.contexts(source).astype(str), new)))
            given = cast("ContextMeans", self._predictor(source, "plain", None, 0, None).latents)
            of_given = dict(zip(given.names, given.mean.to(self.module.centroid), strict=True))
            known.update({name: of_given[name] for name in new})
        # without regression the vector is the same everywhere
        known.update({name: self.module.centroid[0] for name in new if name not in known})
        return torch.stack([known[name] for name in contexts])

    def _require_controls(self, source: AnnData, rows: np.ndarray) -> None:
        contexts, is_control = self._setup.contexts(source), self._setup.is_control(source)
        bare = sorted(set(contexts[rows]) - set(contexts[is_control]))
        if bare:
            raise ValueError(
                f"{len(bare)} context(s) have no control cells, first {bare[0]!r}; add them, or leave these cells out."
            )

    def predict_from_perturbed(
        self,
        adata: AnnData | MuData | None = None,
        perturbation: str | None = None,
        *,
        dose: float | Sequence[float],
        context: str | Sequence[str] | None = None,
        clip: bool | None = None,
        batch_size: int | None = None,
    ) -> AnnData:
        """Predict other doses from the cells measured at a perturbation's highest trained dose.

        They are moved back along the vector of their context, by the share that the highest dose has more of. Where the
        highest dose was measured this keeps what the regression does not know of the cells.

        Parameters
        ----------
        adata
            Data with cells at the highest dose, and control cells of their contexts; None takes the model's own.
        perturbation
            Name; may be left out where there is one.
        dose
            One dose or several; 0 leads to control.
        context
            Which contexts' cells to use; None uses all.
        clip
            Whether negative values are set to 0; None does so unless the data are signed.
        batch_size
            Cells per batch.

        Returns
        -------
        Every cell at every dose, as :meth:`predict` returns them; `source_cell` names the perturbed cell.

        Raises
        ------
        ValueError
            If the perturbation or the context is unknown, a dose is negative or given twice, there are no such cells, or a
            context has no control cells.
        """
        self._require_trained()
        name, position = self._named(perturbation)
        highest = self.trained_conditions_[position]
        doses = [self._checked_dose(name, one) for one in np.atleast_1d(dose)]
        if not doses or len(set(doses)) < len(doses):
            raise ValueError(f"dose={dose!r} must name at least one dose, and none twice.")
        source = self._source(adata)
        conditions, of_cell = self._setup.conditions(source)
        chosen = np.array([condition == highest for condition in conditions])[of_cell]
        if context is not None:
            chosen &= self._in_contexts(source, context)
        rows = np.flatnonzero(chosen)
        if not len(rows):
            raise ValueError(
                f"No cell has {name!r} at dose {highest[0][1]:g}, the highest that the model was trained on."
            )
        self._require_controls(source, rows)
        self._check_rows(source, np.flatnonzero(chosen | self._setup.is_control(source)))
        predictor = self._predictor(source, "plain", clip, 0, batch_size)
        codes, top = encode_targets([highest], self._codec, self._n_slots)
        bound = {part.name: getattr(predictor, part.name) for part in fields(predictor)}
        moved_back = _FromHighest(**bound, codes=codes, doses=top)
        targets: list[Condition] = [((name, one),) if one else () for one in doses]
        provenance = self._provenance("plain", 0)
        return cells_to_anndata(
            moved_back, [(rows, targets)], source, self._setup, self._codec, self._n_slots, provenance
        )


@dataclass
class _FromHighest(Predictor):
    """A prediction that starts from perturbed cells: their shift is taken off before that of the target is added.

    Parameters
    ----------
    codes
        Codes of their condition, shape `(1, n_slots)`.
    doses
        Its doses, same shape.
    """

    codes: np.ndarray = field(default_factory=lambda: np.empty((1, 0), dtype=np.int32))
    doses: np.ndarray = field(default_factory=lambda: np.empty((1, 0), dtype=np.float32))

    def _encode(self, rows: np.ndarray, tensors: Tensors) -> dict[str, Any]:
        z = super()._encode(rows, tensors)["z"]
        labels = zip((_keys.PERTURBATION, _keys.DOSE), (self.codes, self.doses), strict=True)
        own = {key: torch.from_numpy(values).to(z.device).expand(len(z), -1) for key, values in labels}
        return {"z": z - self.module.shift({**tensors, **own}, z)}


def _check_surrogate(regressor: str, alpha: float, l1_ratio: float, n_samples: int) -> None:
    if regressor not in get_args(Regressor):
        raise ValueError(f"regressor={regressor!r} is unknown{close_matches(regressor, get_args(Regressor))}")
    if not 0 < alpha < math.inf:
        raise ValueError(f"alpha={alpha} must be positive and finite.")
    if not 0 <= l1_ratio <= 1:
        raise ValueError(f"l1_ratio={l1_ratio} must lie in 0..1.")
    if n_samples < 2:
        raise ValueError(f"n_samples={n_samples} must be at least 2.")
