"""MTAeED: a FiLM autoencoder on principal components, trained with an energy distance beside a measured change."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import pandas as pd
import torch
from scvi.module.base import LossOutput
from torch import nn

from multipert import _keys
from multipert.data._shifts import choose_strength, context_weights
from multipert.nn import ConditionVector, energy_distance, group_means
from multipert.nn._poisson import rate_of_mean
from multipert.train import Stage

from ._base import PerturbationModel
from ._module import PerturbationModule, Tensors
from ._mtae import check_widths
from ._shift import Deltas, by_condition, context_codes
from ._tags import ModelTags

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from anndata import AnnData

    from multipert.data._conditions import Condition
    from multipert.data._loaders import CellLoader

_SLOPE = 0.01
_FIT_CELLS = 10_000
# added to means before their ratio, in units of the mean control expression: it damps ratios of silent genes
_PSEUDO = 0.2
# effects of contexts and conditions that are kept between the batches of a prediction
_MOST_EFFECTS = 256


class EnergyModule(PerturbationModule):
    """Measured changes of the training contexts, and a network that corrects them.

    Parameters
    ----------
    n_vars
        Number of genes.
    n_perturbations
        Size of the vocabulary.
    n_components
        Principal components that the network works on.
    n_hidden
        Width of the hidden layers.
    n_latent
        Width of the latent representation.
    dropout_rate
        Dropout of the hidden layers.
    doses
        Whether the condition's vector depends on the dose.
    signed
        Whether the expression may be negative.
    energy_weight
        Weight of the energy distance beside the reconstruction.
    network_share
        Share of the network's prediction; the rest is the measured change of similar contexts.
    """

    context_means = True
    fits_correction = False
    fitted = (
        *PerturbationModule.fitted,
        "control_mean",
        "context_row",
        "pair_condition",
        "delta",
        "signal",
        "strength",
    )

    axes: torch.Tensor
    centre: torch.Tensor
    unit: torch.Tensor

    def __init__(
        self,
        n_vars: int,
        n_perturbations: int,
        n_components: int,
        n_hidden: int,
        n_latent: int,
        dropout_rate: float,
        *,
        doses: bool,
        signed: bool,
        energy_weight: float,
        network_share: float,
    ) -> None:
        super().__init__()
        self.signed, self.energy_weight, self.network_share = signed, energy_weight, network_share
        self._effects: dict[tuple[bytes, bytes, bytes], tuple[torch.Tensor, torch.Tensor]] = {}
        n_components = min(n_components, n_vars)
        # any orthonormal axes until `prepare` finds the principal ones
        self.register_buffer("axes", nn.init.orthogonal_(torch.empty(n_vars, n_components)))
        self.register_buffer("centre", torch.zeros(n_vars))
        self.register_buffer("unit", torch.ones(()))
        self.encoder = nn.Sequential(
            nn.Linear(n_components, n_hidden),
            nn.LayerNorm(n_hidden),
            nn.LeakyReLU(_SLOPE),
            nn.Dropout(dropout_rate),
            nn.Linear(n_hidden, n_latent),
        )
        self.condition = ConditionVector(n_perturbations, doses=doses)
        self.inner, self.norm = nn.Linear(n_latent, n_hidden), nn.LayerNorm(n_hidden)
        # no effect at the start, so that training departs from the measured change
        self.scale, self.shift = (nn.Linear(self.condition.width, n_hidden) for _ in range(2))
        for layer in (self.scale, self.shift):
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)
        self.dropout, self.output = nn.Dropout(dropout_rate), nn.Linear(n_hidden, n_components)

    # ------------------------------------------------------------ network

    def scores(self, x: torch.Tensor) -> torch.Tensor:
        """Scores of expression on the components, shape `(B, n_components)`."""
        return x @ self.axes - self.centre @ self.axes

    def encode(self, x: torch.Tensor) -> torch.Tensor:
        """Latent representation of expression, shape `(B, n_latent)`."""
        return self.encoder(self.scores(x) / self.unit)

    def decode(self, z: torch.Tensor, condition: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
        """Scores on the components, shape `(B, n_components)`; `mask` takes the place of dropout."""
        hidden = self.norm(self.inner(z))
        hidden = nn.functional.leaky_relu((1 + self.scale(condition)) * hidden + self.shift(condition), _SLOPE)
        return self.output(self.dropout(hidden) if mask is None else hidden * mask) * self.unit

    def correction(self, x: torch.Tensor, tensors: Tensors) -> torch.Tensor:
        """What the labels of a batch change in the scores of `x`, shape `(B, n_components)`."""
        z, vectors = self.encode(x), self.condition(tensors)
        control = torch.zeros_like(vectors)
        control[:, 0] = 1
        # the same units drop out under both, or the difference would be noise
        mask = self.dropout(torch.ones(len(z), self.inner.out_features, dtype=z.dtype, device=z.device))
        return self.decode(z, vectors, mask) - self.decode(z, control, mask)

    def inference(self, tensors: Tensors) -> dict[str, torch.Tensor]:
        """Scores and latent representation of the cells themselves."""
        scores = self.scores(tensors[_keys.X])
        return {"z": self.encoder(scores / self.unit), "scores": scores}

    def generative(self, z: torch.Tensor, tensors: Tensors) -> dict[str, torch.Tensor]:
        """Reconstruction under the batch's labels: scores, and outside training expression."""
        scores = self.decode(z, self.condition(tensors))
        if self.training:
            return {"scores": scores}
        return {"scores": scores, "px": scores @ self.axes.T + self.centre}

    def loss(self, tensors: Tensors, inference_outputs: Mapping, generative_outputs: Mapping) -> LossOutput:
        """Squared error of the scores, and where the batch holds groups their mean energy distance."""
        own = inference_outputs["scores"]
        per_cell = torch.square((generative_outputs["scores"] - own) / self.unit).mean(dim=1)
        loss = per_cell.mean()
        if _keys.X_CONTROL in tensors:
            loss = loss + self.energy_weight * self._energy(tensors, own)
        return LossOutput(loss=loss, reconstruction_loss=per_cell)

    def _energy(self, tensors: Tensors, own: torch.Tensor) -> torch.Tensor:
        """Mean over the groups of a batch of the distance of moved control cells to perturbed ones."""
        distances = [own.new_zeros(())]
        for codes, doses, rows in by_condition(tensors):
            with torch.no_grad():
                factor, addition = self.measured(codes, doses, None)
            signal = self.signal_share(codes, doses)
            for context in torch.unique(context_codes(tensors)[rows]):
                at = rows[context_codes(tensors)[rows] == context]
                x = tensors[_keys.X_CONTROL][at]
                some = {key: value[at[:1]] for key, value in tensors.items()}
                moved = self.scores(x * factor) + addition @ self.axes
                moved = moved + signal * self.correction(x.mean(dim=0, keepdim=True), some)
                distances.append(energy_distance(moved, own[at]) / self.unit)
        return torch.stack(distances).sum() / max(1, len(distances) - 1)

    # ------------------------------------------------------------ measured change

    def prepare(self, loader: CellLoader) -> None:
        """Fit the changes of the training contexts, and at the first training the components."""
        means = group_means(loader, self.lookup)
        control = int(torch.nonzero((self.known_codes < 0).all(1))[0, 0])
        deltas, device = Deltas(means, control), self.axes.device
        self.control_mean, self.delta = deltas.control_mean.float().to(device), deltas.delta.float().to(device)
        self.context_row, self.pair_condition = deltas.context_row.to(device), deltas.condition.to(device)
        found, n_contexts = torch.unique(deltas.condition, return_counts=True)
        of_condition = torch.argsort(deltas.condition, stable=True).split(n_contexts.tolist())
        problems = (
            (deltas.control_mean[deltas.context_row[at]].numpy(), deltas.delta[at].numpy()) for at in of_condition
        )
        self.strength = torch.tensor(choose_strength("similarity", problems), dtype=torch.float64, device=device)
        self.signal = torch.ones(len(self.known_codes), device=device)
        for condition, at in zip(found, of_condition, strict=True):
            self.signal[condition] = _signal_share(deltas.delta[at], deltas.error[at])
        # a network that was trained on some components keeps them
        if not self.centre.any():
            self._fit_components(_evenly(loader))
        self.condition.start(self.known_codes, self.known_doses)

    def _fit_components(self, x: torch.Tensor) -> None:
        """Centre, axes and scale of the scores, from some training cells."""
        device = self.axes.device
        self.centre = x.mean(dim=0).to(device)
        axes = torch.svd_lowrank(x - x.mean(dim=0), q=min(self.axes.shape[1] + 10, *x.shape), niter=2)[2]
        self.axes = torch.zeros_like(self.axes)
        # the sign of an axis is free; its largest entry is made positive
        largest = axes.gather(0, axes.abs().argmax(dim=0, keepdim=True))
        kept = (axes * torch.where(largest < 0, -1.0, 1.0))[:, : self.axes.shape[1]]
        self.axes[:, : kept.shape[1]] = kept.to(device)
        spread = self.scores(x.to(device)).var(dim=0).mean().sqrt()
        self.unit = spread if spread > 0 else torch.ones_like(spread)

    def position(self, codes: torch.Tensor, doses: torch.Tensor) -> int:
        """Position of one condition among the trained ones, -1 where it is none or has no change."""
        found = int(self.lookup({_keys.PERTURBATION: codes[None], _keys.DOSE: doses[None]})[0])
        return found if bool((self.pair_condition == found).any()) else -1

    def measured(
        self, codes: torch.Tensor, doses: torch.Tensor, target: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Factor and addition of every gene under one condition; those of its parts together where it was not trained.

        Parameters
        ----------
        codes
            Codes of the condition, shape `(n_slots,)`.
        doses
            Its doses, same shape.
        target
            Control mean of the context, shape `(n_vars,)`, to weigh training contexts by; None weighs them equally.

        Returns
        -------
        Two tensors of shape `(n_vars,)`, float32.
        """
        factor, addition = torch.ones_like(self.centre), torch.zeros_like(self.centre)
        for position in self.parts(codes, doses):
            part = self._transform(position, target)
            factor, addition = factor * part[0], addition + part[1]
        return factor, addition

    def parts(self, codes: torch.Tensor, doses: torch.Tensor) -> list[int]:
        """Position of one condition among the measured ones, or of those of its parts that are where it is not."""
        position = self.position(codes, doses)
        if position >= 0:
            return [position]
        found = []
        for slot in torch.nonzero(codes >= 0).reshape(-1):
            one, dose = torch.full_like(codes, _keys.PAD), torch.zeros_like(doses)
            one[0], dose[0] = codes[slot], doses[slot]
            found.append(self.position(one, dose))
        return [position for position in found if position >= 0]

    def signal_share(self, codes: torch.Tensor, doses: torch.Tensor) -> float:
        """How much of the measured change of a condition is no sampling noise, 0..1; the mean of its parts'."""
        parts = self.parts(codes, doses)
        return float(self.signal[parts].mean()) if parts else 0.0

    def _transform(self, position: int, target: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor]:
        at = self.pair_condition == position
        control, delta = self.control_mean[self.context_row[at]], self.delta[at]
        weights = torch.full((len(delta),), 1 / len(delta), dtype=torch.float64, device=delta.device)
        if target is not None:
            known, wanted = control.cpu().numpy(), target.double().cpu().numpy()[None]
            weights = torch.from_numpy(context_weights("similarity", float(self.strength), known, wanted)[0]).to(
                weights
            )
        before, change = weights @ control.double(), float(self.signal[position]) * (weights @ delta.double())
        if self.signed:
            return torch.ones_like(self.centre), change.float()
        pseudo = _PSEUDO * self.control_mean.mean()
        factor = ((before + change + pseudo) / (before + pseudo).clamp(min=1e-12)).clamp(min=0, max=1)
        return factor.float(), change.clamp(min=0).float()

    def effect(self, tensors: Tensors) -> Iterator[tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]]:
        """Factor and addition of the cells of each context and condition of a batch; control is left out.

        Parameters
        ----------
        tensors
            A batch of a prediction.

        Yields
        ------
        Positions of the cells, their context's control mean, and factor and addition, each of shape `(n_vars,)`.
        """
        for codes, doses, rows in by_condition(tensors):
            means, inverse = torch.unique(tensors["context_mean"][rows], dim=0, return_inverse=True)
            for i, mean in enumerate(means):
                key = codes.cpu().numpy().tobytes(), doses.cpu().numpy().tobytes(), mean.cpu().numpy().tobytes()
                if key not in self._effects:
                    if len(self._effects) >= _MOST_EFFECTS:
                        self._effects.clear()
                    label = {_keys.PERTURBATION: codes[None], _keys.DOSE: doses[None], _keys.X: mean[None]}
                    self._effects[key] = self._of_context(codes, doses, mean, label)
                yield rows[inverse == i], mean, *self._effects[key]

    def _of_context(
        self, codes: torch.Tensor, doses: torch.Tensor, mean: torch.Tensor, label: Tensors
    ) -> tuple[torch.Tensor, torch.Tensor]:
        share = self.network_share
        even, near = self.measured(codes, doses, None), self.measured(codes, doses, mean)
        corrected = self.signal_share(codes, doses) * (self.correction(mean[None], label)[0] @ self.axes.T)
        return (
            share * even[0] + (1 - share) * near[0],
            share * (even[1] + corrected) + (1 - share) * near[1],
        )

    def train(self, mode: bool = True) -> EnergyModule:
        """Switch between training and prediction; effects of other weights are forgotten."""
        self._effects.clear()
        return super().train(mode)

    def counterfactual(self, tensors: Tensors, z: torch.Tensor | None = None) -> torch.Tensor:
        """Control cells times a factor plus an addition, shape `(B, n_vars)`; a control cell under control is itself."""
        x = tensors[_keys.X].clone()
        for rows, _, factor, addition in self.effect(tensors):
            x[rows] = x[rows] * factor + addition
        return x

    def rates(
        self, tensors: Tensors, decoded: torch.Tensor, decoded_control: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Rates at which Poisson counts of a cell's depth have the control mean and the predicted mean of its context."""
        control, target = torch.zeros_like(decoded, dtype=torch.float64), torch.zeros_like(decoded, dtype=torch.float64)
        for rows, mean, factor, addition in self.effect(tensors):
            moved = (mean * factor + addition).clamp(min=0)
            # cells of nearly one depth share their rates
            depths, inverse = torch.unique(_rounded(tensors[_keys.SIZE_FACTOR][rows]), return_inverse=True)
            for i, depth in enumerate(depths):
                at = rows[inverse == i]
                for rate, wanted in ((control, mean), (target, moved)):
                    found = rate_of_mean(wanted.double().cpu().numpy(), float(depth))
                    rate[at] = torch.from_numpy(found).to(rate.device)
        return control, target


def _rounded(factors: torch.Tensor) -> torch.Tensor:
    """Size factors to the next power of 1.05."""
    return 1.05 ** torch.round(torch.log(factors.double()) / math.log(1.05))


def _signal_share(delta: torch.Tensor, error: torch.Tensor) -> float:
    """Share of the power of the mean change that its sampling error does not explain: near 0 where there is no effect.

    Parameters
    ----------
    delta
        Changes of the contexts, shape `(n_contexts, n_vars)`.
    error
        Their sampling variances, same shape.

    Returns
    -------
    A number in 0..1.
    """
    power, noise = delta.mean(dim=0).square().sum(), error.sum() / len(delta) ** 2
    return max(0.0, 1 - float(noise / power)) if power > 0 else 1.0


def _evenly(loader: CellLoader) -> torch.Tensor:
    """At most `_FIT_CELLS` cells of a loader, evenly spaced."""
    n_cells = len(loader.rows)
    wanted = np.unique(np.linspace(0, n_cells - 1, min(n_cells, _FIT_CELLS)).astype(np.int64))
    parts, start = [], 0
    for batch in loader:
        x = batch[_keys.X]
        inside = wanted[(wanted >= start) & (wanted < start + len(x))] - start
        parts.append(x[torch.from_numpy(inside)].cpu())
        start += len(x)
    return torch.cat(parts)


class MTAeED(PerturbationModel):
    r"""A FiLM autoencoder that corrects measured changes, trained with an energy distance.

    Every control cell of a context with control mean :math:`m` is moved by a factor and an addition of each gene,

    .. math::

        \hat x = q\, x + u, \qquad q = \tfrac12 (\bar q + q_m), \qquad
        u = \tfrac12 \bigl(\bar u + A\,[g(f(m), c) - g(f(m), 0)] + u_m\bigr)

    where :math:`\bar q, \bar u` come from the mean change of the training contexts (genes that go down are multiplied, genes
    that go up are added to), :math:`q_m, u_m` from the contexts whose control means resemble :math:`m`, and f, g are the
    encoder and the FiLM decoder of an autoencoder on principal components with axes A. Changes and correction are shrunk by
    the share of the change's power that sampling noise does not explain, to nothing where there is no effect. The network is trained on the
    reconstruction of all cells and, for several contexts and conditions at each step, on the energy distance between moved
    control cells and perturbed cells :cite:p:`Szekely2013`.

    Use it under context transfer, for means, distances and, with `realise="counts"`, for differential expression at
    once. All cells of a context get the same effect. It needs the perturbation in at least one training context with
    control cells; doses must be trained ones, and combinations trained or made of trained parts.

    Parameters
    ----------
    adata
        Data that :meth:`setup_anndata` was run on, with `context_key`.
    registry
        Registry of a saved model, in place of data.
    preset
        "default".
    n_components
        Principal components of the training cells that the network works on.
    n_hidden
        Width of the hidden layers.
    n_latent
        Width of the latent representation.
    dropout_rate
        Dropout of the hidden layers.
    energy_weight
        Weight of the energy distance beside the reconstruction.
    network_share
        Share of the network in the effect, 0..1; 0 leaves the measured changes of similar contexts.

    Examples
    --------
    >>> import multipert as mp
    >>> adata = mp.datasets.screen("small")
    >>> mp.model.MTAeED.setup_anndata(adata, context_key="context")
    >>> model = mp.model.MTAeED(adata)
    >>> model.train(max_epochs=2, enable_progress_bar=False)
    >>> model.predict(perturbation="P1", returns="mean").n_obs
    5
    """

    tags = ModelTags(
        uses_context=True,
        needs_context=True,
        combinations=True,
        doses=True,
        latent=True,
        perturbation_embedding=True,
    )
    stages = (Stage("group"),)
    presets: ClassVar[dict[str, dict[str, Any]]] = {
        "default": {
            "n_components": 50,
            "n_hidden": 128,
            "n_latent": 32,
            "dropout_rate": 0.2,
            "energy_weight": 1.0,
            "network_share": 0.5,
            "lr": 1e-3,
            "batch_size": 256,
            "n_updates": 400,
        }
    }
    search_space: ClassVar[dict[str, tuple]] = {
        "n_components": ("choice", (20, 50, 100)),
        "n_hidden": ("choice", (64, 128, 256)),
        "dropout_rate": ("float", 0.0, 0.6),
        "energy_weight": ("log", 0.1, 10.0),
        "network_share": ("float", 0.0, 1.0),
        "lr": ("log", 1e-4, 1e-2),
    }

    def __init__(
        self,
        adata: AnnData | None = None,
        registry: dict | None = None,
        *,
        preset: str | None = None,
        n_components: int | None = None,
        n_hidden: int | None = None,
        n_latent: int | None = None,
        dropout_rate: float | None = None,
        energy_weight: float | None = None,
        network_share: float | None = None,
    ) -> None:
        super().__init__(adata, registry, preset)
        share = self._value("network_share", network_share)
        if not 0 <= share <= 1:
            raise ValueError(f"network_share={share} must lie in 0..1.")
        if not 0 <= self._value("energy_weight", energy_weight) < math.inf:
            raise ValueError(f"energy_weight={energy_weight} must be a finite number of at least 0.")
        check_widths(
            n_components=self._value("n_components", n_components),
            n_hidden=self._value("n_hidden", n_hidden),
            n_latent=self._value("n_latent", n_latent),
        )
        self._module_args = {
            "n_vars": self.summary_stats.n_vars,
            "n_perturbations": self.summary_stats.n_perturbations,
            "n_components": self._value("n_components", n_components),
            "n_hidden": self._value("n_hidden", n_hidden),
            "n_latent": self._value("n_latent", n_latent),
            "dropout_rate": self._value("dropout_rate", dropout_rate),
            "doses": self._setup.dose_key is not None,
            "signed": self._setup.signed,
            "energy_weight": self._value("energy_weight", energy_weight),
            "network_share": share,
        }
        self._start_module()
        self.init_params_ = self._get_init_params(locals())

    def _new_module(self) -> EnergyModule:
        return EnergyModule(**self._module_args)

    def _check_target(self, condition: Condition) -> None:
        """Refuse conditions, and parts of combinations, without a training context that also has control cells."""
        for one in (condition, *((part,) for part in condition)):
            codes, doses = (torch.from_numpy(x) for x in self._codec.encode_one(one, max(self._n_slots, len(one))))
            device = self.module.device
            measured = not one or self.module.position(codes.to(device), doses.to(device)) >= 0
            if measured and one == condition:
                return
            if not measured and len(one) == 1:
                known = [self.trained_conditions_[i] for i in self.module.pair_condition.unique().tolist()]
                name, dose = one[0]
                others = ", ".join(f"{d:g}" for c in known if len(c) == 1 for n, d in c if n == name) or "none"
                raise ValueError(
                    f"{name!r} at dose {dose:g} is in no training context that has control cells (doses that are: {others})."
                )

    def _perturbation_embedding(self) -> pd.DataFrame:
        """Scale and shift of the hidden layer for every trained condition, control first."""
        conditions = sorted({(), *self.trained_conditions_})
        vectors = self.module.condition(self._label_tensors(conditions))
        values = torch.cat([1 + self.module.scale(vectors), self.module.shift(vectors)], dim=1)
        width = values.shape[1] // 2
        columns = [f"{kind}_0_{unit}" for kind in ("scale", "shift") for unit in range(width)]
        return pd.DataFrame(values.cpu().numpy(), index=self._labels(conditions), columns=columns)
