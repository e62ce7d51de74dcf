"""ScButterfly: an autoencoder for each of two sides and a translator between their hidden codes."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar, Literal, NamedTuple, cast, get_args

import numpy as np
import pandas as pd
import torch
from anndata import AnnData
from scvi.module.base import LossOutput
from torch import nn

from multipert import _keys
from multipert.data._checks import check_expression, row_blocks
from multipert.data._conditions import close_matches
from multipert.data._transport import Partner
from multipert.nn._translator import Side, Translator, code_discriminator, soft_targets
from multipert.nn._variational import kl_to_standard_normal
from multipert.train import Stage

from ._base import PerturbationModel, _row_numbers
from ._module import PerturbationModule, Tensors
from ._mtae import check_widths
from ._setup import PEAKS_REMEDY
from ._tags import ModelTags
from ._translation import feature_names, modality_names

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from mudata import MuData

    from multipert.data._loaders import CellLoader
    from multipert.data._pairing import Pairing
    from multipert.nn._mlp import MLP
    from multipert.nn._translator import Output

# the two sides: control cells and perturbed ones, or the expression and the target modality
R, A = 0, 1
_GATE = 1.35
_ZERO_BELOW = 1e-4
# what to do about raw counts of a target modality
_REMEDIES: dict[Output, str] = {
    "sigmoid": PEAKS_REMEDY,
    "identity": "bring proteins to centred log ratios first (multipert.pp.clr).",
}

# two modalities differ more than control and perturbed cells do, and take longer to learn
_TRANSLATION = {"n_updates": 2400}

TargetKind = Literal["accessibility", "protein", "expression"]


class _Kind(NamedTuple):
    """Published parts of a side A."""

    n_hidden: tuple[int, ...]
    mask_rate: float
    output: Output
    zero_below: float | None


_KINDS: dict[TargetKind, _Kind] = {
    "accessibility": _Kind((32,), 0.3, "sigmoid", _ZERO_BELOW),
    # log ratios to a cell's own mean are negative as often as not
    "protein": _Kind((128,), 0.0, "identity", None),
    "expression": _Kind((128,), 0.5, "leaky", _ZERO_BELOW),
}


class TwoSideModule(PerturbationModule):
    """An encoder and a decoder for each side, and a translator that maps either hidden code to either side.

    A batch of pairs holds the expression of control cells under `"X_control"` and of their partners under `"X"`; or, between
    two modalities, the expression under `"X"` and the values of the target under `"X_target"`. In the stages "R" and "A" one side is trained alone, with a translator of its own that is not used afterwards; in others both are
    trained together, against discriminators of each side's hidden codes.

    Parameters
    ----------
    sides
        The two sides.
    n_latent
        Width of hidden codes and of the latent representation.
    dropout_rate
        Dropout between layers.
    kl_warmup_epochs
        Epochs of each pass over which the weight of the divergence rises from 0; 0 has it in full from the start.
    adversary_weight
        Weight of the discriminators' loss; 0 leaves them out.
    linear_logvar
        Whether log variances are not activated.
    start_at_means
        Whether the decoders' last layers start at the mean and the spread of each feature, which they reach slowly else.
    """

    critic_optimizer = "sgd"
    critic_turn = "before"
    keeps_best = True

    def __init__(
        self,
        sides: Sequence[Side],
        n_latent: int,
        dropout_rate: float,
        *,
        kl_warmup_epochs: int,
        adversary_weight: float,
        linear_logvar: bool,
        start_at_means: bool,
    ) -> None:
        super().__init__()
        self.start_at_means = start_at_means
        self.sides, self.kl_warmup_epochs, self.adversary_weight = tuple(sides), kl_warmup_epochs, adversary_weight
        self.encoders = nn.ModuleList(side.encoder(n_latent, dropout_rate) for side in sides)
        self.decoders = nn.ModuleList(side.decoder(n_latent, dropout_rate) for side in sides)
        self.alone = nn.ModuleList(Translator(n_latent, 1, linear_logvar=linear_logvar) for _ in sides)
        self.translator = Translator(n_latent, len(self.sides), linear_logvar=linear_logvar)
        self.discriminators = nn.ModuleList(code_discriminator(n_latent) for _ in sides)

    # ------------------------------------------------------------ prediction

    def counterfactual(self, tensors: Tensors, z: torch.Tensor | None = None) -> torch.Tensor:
        """Control cells decoded on the side of their target, shape `(B, n_vars)`."""
        z = self.inference(tensors)["z"] if z is None else z
        is_target = (tensors[_keys.PERTURBATION] >= 0).any(dim=1)
        if is_target.all() or not is_target.any():
            return self.decoded(z, A if is_target.any() else R)
        return torch.where(is_target[:, None], self.decoded(z, A), self.decoded(z, R))

    def reconstruction(self, tensors: Tensors) -> torch.Tensor:
        """Cells by the encoder and the decoder of their own side, shape `(B, n_vars)`."""
        x, is_target = tensors[_keys.X], (tensors[_keys.PERTURBATION] >= 0).any(dim=1)
        return torch.where(is_target[:, None], self.translated(x, A, A), self.translated(x, R, R))

    def latent(self, x: torch.Tensor, side: int) -> torch.Tensor:
        """Means of the latent distributions of one side's cells, shape `(B, n_latent)`."""
        return self.translator.mean[side](self.encoders[side](x))

    def decoded(self, z: torch.Tensor, side: int) -> torch.Tensor:
        """Latent representations on one side, as predictions are handed out."""
        return self.sides[side].finished(self.decoders[side](self.translator(z, side)))

    def translated(self, x: torch.Tensor, source: int, target: int) -> torch.Tensor:
        """Cells of one side on another, by the means of their latent distributions."""
        return self.decoded(self.latent(x, source), target)

    # ------------------------------------------------------------ training

    def prepare(self, loader: CellLoader) -> None:
        """Put the output of the decoders where the training cells are, before the first training."""
        if not self.start_at_means:
            return
        sums = [torch.zeros(3, side.n_vars, dtype=torch.float64) for side in self.sides]
        for batch in loader:
            for total, x in zip(sums, self.own_sides(batch), strict=True):
                x = x.double().cpu()
                total += torch.stack([torch.ones_like(x).sum(dim=0), x.sum(dim=0), x.square().sum(dim=0)])
        for side, decoder, (n, total, squares) in zip(self.sides, self.decoders, sums, strict=True):
            mean = total / n.clamp(min=1)
            spread = (squares / n.clamp(min=1) - mean.square()).clamp(min=0).sqrt()
            side.start(cast("MLP", decoder), mean.float(), spread.float())

    def own_sides(self, tensors: Tensors) -> tuple[torch.Tensor, torch.Tensor]:
        """Cells of a batch without pairs that are of side R, and those of side A."""
        if _keys.X_TARGET in tensors:
            return tensors[_keys.X], tensors[_keys.X_TARGET]
        is_target = (tensors[_keys.PERTURBATION] >= 0).any(dim=1)
        return tensors[_keys.X][~is_target], tensors[_keys.X][is_target]

    @property
    def trained_sides(self) -> tuple[int, ...]:
        """The sides that the present stage trains."""
        return {"R": (R,), "A": (A,)}.get(self.stage, (R, A))

    def pair(self, tensors: Tensors) -> tuple[torch.Tensor, torch.Tensor]:
        """What a batch of pairs holds of side R and of side A."""
        if _keys.X_TARGET in tensors:
            return tensors[_keys.X], tensors[_keys.X_TARGET]
        return tensors[_keys.X_CONTROL], tensors[_keys.X]

    def inference(self, tensors: Tensors) -> dict[str, Any]:
        """Latent representations: of cells to predict their mean; of pairs one, with its distribution, for each trained side."""
        if not _holds_pairs(tensors):
            return {"z": self.latent(tensors[_keys.X], R)}
        pair = self.pair(tensors)
        encoded = [self._encoded(self.encoders[side](pair[side]), side) for side in self.trained_sides]
        return dict(zip(("z", "mean", "log_variance"), zip(*encoded, strict=True), strict=True))

    def generative(self, z: Any, tensors: Tensors) -> dict[str, Any]:
        """Expression under the labels of the batch; of pairs every trained side decoded on every trained side."""
        if not _holds_pairs(tensors):
            return {"px": self.counterfactual(tensors, z)}
        sides = self.trained_sides
        return {
            "px": {
                (source, target): self.decoders[target](self._hidden(one, target))
                for source, one in zip(sides, z, strict=True)
                for target in sides
            }
        }

    def _encoded(self, hidden: torch.Tensor, side: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        if len(self.trained_sides) == 1:
            return cast("Translator", self.alone[side]).encode(hidden, 0)
        return self.translator.encode(hidden, side)

    def _hidden(self, z: torch.Tensor, side: int) -> torch.Tensor:
        return self.alone[side](z, 0) if len(self.trained_sides) == 1 else self.translator(z, side)

    def kl_factor(self) -> float:
        """Share of the divergence's weight in the present epoch."""
        return min(1.0, self.epoch / self.kl_warmup_epochs) if self.kl_warmup_epochs else 1.0

    def loss(self, tensors: Tensors, inference_outputs: Mapping, generative_outputs: Mapping) -> LossOutput:
        """Loss of a batch of pairs in the present stage; outside training the reconstruction alone."""
        pair, sides = self.pair(tensors), self.trained_sides
        joint = len(sides) > 1
        errors = [
            (self.sides[target].weight if joint else 1.0) * self.sides[target].errors(decoded, pair[target])
            for (_, target), decoded in generative_outputs["px"].items()
        ]
        per_cell = torch.stack(errors).sum(dim=0)
        loss = per_cell.mean()
        if self.training:
            n_latent = inference_outputs["z"][0].shape[1]
            divergence = sum(
                kl_to_standard_normal(mean, log_variance).mean() / n_latent
                for mean, log_variance in zip(inference_outputs["mean"], inference_outputs["log_variance"], strict=True)
            )
            loss = loss + self.kl_factor() * sum(self.sides[side].kl_weight for side in sides) * divergence
            if joint and self.adversarial and self.adversary_weight:
                told_apart = self.discrimination(pair)
                # discriminators at chance or worse have nothing to teach
                if told_apart < _GATE:
                    loss = loss - self.adversary_weight * told_apart
        return LossOutput(loss=loss, reconstruction_loss=per_cell)

    def critic_parameters(self) -> Iterable[nn.Parameter]:
        """Parameters of the discriminators."""
        return self.discriminators.parameters() if self.adversary_weight else ()

    def critic_loss(self, tensors: Tensors) -> torch.Tensor:
        """Loss of the discriminators on hidden codes made anew, which send no gradient to what made them."""
        return self.discrimination(self.pair(tensors), detached=True)

    def discrimination(self, pair: tuple[torch.Tensor, torch.Tensor], *, detached: bool = False) -> torch.Tensor:
        """How well encoded and translated hidden codes are told apart, the sum of both sides' cross-entropies.

        Each cell draws a soft target, the same for both sides; where it is above 1/2 the discriminators see the code of
        their own side's encoder, else that which the translator makes of the other side.

        Parameters
        ----------
        pair
            Expression on side R and on side A.
        detached
            Whether only the discriminators get a gradient.

        Returns
        -------
        A scalar; 2 log 2 at chance.
        """
        with torch.set_grad_enabled(torch.is_grad_enabled() and not detached):
            own = [self.encoders[side](x) for side, x in enumerate(pair)]
            z = [self.translator.encode(hidden, side)[0] for side, hidden in enumerate(own)]
            other = [self.translator(z[source], side) for side, source in ((R, A), (A, R))]
        targets = soft_targets(torch.rand(len(own[R]), device=own[R].device))
        losses = []
        for side, discriminator in enumerate(self.discriminators):
            seen = torch.where((targets > 0.5)[:, None], own[side], other[side])
            logits = discriminator(seen).squeeze(1)
            losses.append(nn.functional.binary_cross_entropy_with_logits(logits, targets.to(logits.dtype)))
        return torch.stack(losses).sum()


def _holds_pairs(tensors: Tensors) -> bool:
    return _keys.X_CONTROL in tensors or _keys.X_TARGET in tensors


class ScButterfly(PerturbationModel):
    r"""Dual-aligned variational autoencoders with a translator between them :cite:p:`Cao2024`.

    Two sides, R and A, have an encoder :math:`f` and a decoder :math:`g` each. A translator turns the hidden code of
    either side into a normal distribution, and a draw of that into hidden codes for both, so that a cell is decoded as
    itself and on the other side:

    .. math::

        \hat x_A = g_A\bigl(t_A(z)\bigr), \qquad z \sim \mathcal N\bigl(\mu_R(f_R(x)),\, e^{d_R(f_R(x))}\bigr)

    Set up with :meth:`setup_anndata`, R are control cells and A perturbed ones, paired by optimal transport: use it for one
    perturbation that was seen in other contexts, not for several, combinations or doses. :meth:`to_control` is the
    way back. Set up with :meth:`setup_mudata` and a target modality, R is the expression and A the target (proteins,
    accessible peaks, or expression of another kind) of the same cells: `predict(perturbation=name)` gives the modality of that
    name from the other, and :meth:`annotate` writes both. With `pairing_key` cells are also paired within labels, which
    then are read in training. Either way both sides are first trained alone, then together, against discriminators that
    tell encoded from translated hidden codes; validation cells choose the weights of each pass.

    Parameters
    ----------
    adata
        Data that :meth:`setup_anndata` or :meth:`setup_mudata` was run on.
    registry
        Registry of a saved model, in place of data.
    preset
        "default"; "published" (200 epochs, and 100 for each side before; with `early_stopping=True` and
        `early_stopping_patience=50` in `train` it is the published training).
    target_kind
        What a target modality holds: "accessibility" (0..1, layers kept apart by the `chromosome_key` of the setup),
        "protein" (may be negative) or "expression".
    n_hidden
        Widths of the hidden layers of side R, encoder's order.
    n_hidden_target
        Those of side A; None is published: 128, for accessibility 32 units of each chromosome.
    n_latent
        Width of hidden codes and of the latent representation.
    dropout_rate
        Dropout between layers.
    mask_rate
        Share of features masked in training, side R.
    mask_rate_target
        Share of features masked in training, side A; None is published: 0.5, for accessibility 0.3, for proteins 0.
    reconstruction_weight
        Weights of the reconstruction of the two sides where both are trained; None is (1, 1), or (1, 2) with a target modality.
    kl_weight
        Weight of the divergence from the standard normal, divided by the number of features.
    kl_warmup_epochs
        Epochs of each pass over which that weight rises from 0.
    adversary_weight
        Weight of the discriminators' loss; 0 leaves them out.
    linear_logvar
        Whether log variances are not activated; the published ones are, so that they hardly fall below 0.
    start_at_means
        Whether the decoders start at the mean and the spread of each feature over the training cells of their side; the
        published ones start at 0 and 1, from where they need thousands of updates.
    partner
        Which perturbed cell a control cell is paired with: the "best" of its row of the transport plan, or a "sample" of it.

    Examples
    --------
    >>> import multipert as mp
    >>> adata = mp.datasets.simulate(n_cells=200, n_vars=50, n_contexts=2, n_perturbations=1)
    >>> mp.model.ScButterfly.setup_anndata(adata, context_key="context")
    >>> model = mp.model.ScButterfly(adata)
    >>> model.train(max_epochs=1, enable_progress_bar=False)
    >>> model.predict(context=model.trained_contexts_[0], returns="mean").n_vars == adata.n_vars
    True

    Proteins from RNA:

    >>> mdata = mp.datasets.simulate_multimodal(n_cells=200)
    >>> mp.pp.normalise(mdata["rna"], fit_on="all")
    >>> mp.pp.clr(mdata["protein"])
    >>> mp.model.ScButterfly.setup_mudata(mdata, modalities={"expression": "rna", "target": "protein"})
    >>> model = mp.model.ScButterfly(mdata, target_kind="protein")
    >>> model.train(max_epochs=1, enable_progress_bar=False)
    >>> model.predict(mdata["rna"].copy(), perturbation="protein").var_names[:2].tolist()
    ['protein_01', 'protein_02']
    """

    tags = ModelTags(several_perturbations=False, translates=True, latent=True, reference="Cao2024")
    stages: tuple[Stage | Pairing, ...] = (
        Stage("ot", trains="module", share=0.5, name="R", itself=False, once=True),
        Stage("ot", trains="module", share=0.5, name="A", itself=False, once=True),
        Stage("ot", name="joint", itself=False),
    )
    presets: ClassVar[dict[str, dict[str, Any]]] = {
        "default": {
            "n_hidden": (256,),
            "n_latent": 128,
            "dropout_rate": 0.1,
            "mask_rate": 0.5,
            "kl_weight": 20.0,
            "kl_warmup_epochs": 0,
            "adversary_weight": 1.0,
            "start_at_means": True,
            "partner": "best",
            "lr": 1e-3,
            "batch_size": 64,
            "n_updates": 600,
            "plan_kwargs": {"critic_lr": 5e-3, "n_warmup_steps": 0},
        },
        "published": {"max_epochs": 200, "kl_warmup_epochs": 50, "start_at_means": False},
    }
    search_space: ClassVar[dict[str, tuple]] = {
        "n_latent": ("choice", (32, 64, 128)),
        "dropout_rate": ("float", 0.0, 0.5),
        "mask_rate": ("float", 0.0, 0.7),
        "mask_rate_target": ("float", 0.0, 0.7),
        "kl_weight": ("log", 1.0, 1000.0),
        "lr": ("log", 1e-4, 1e-2),
    }

    def __init__(
        self,
        adata: AnnData | MuData | None = None,
        registry: dict | None = None,
        *,
        preset: str | None = None,
        target_kind: TargetKind | None = None,
        n_hidden: Sequence[int] | None = None,
        n_hidden_target: Sequence[int] | None = None,
        n_latent: int | None = None,
        dropout_rate: float | None = None,
        mask_rate: float | None = None,
        mask_rate_target: float | None = None,
        reconstruction_weight: Sequence[float] | None = None,
        kl_weight: float | None = None,
        kl_warmup_epochs: int | None = None,
        adversary_weight: float | None = None,
        linear_logvar: bool = False,
        start_at_means: bool | None = None,
        partner: Partner | None = None,
    ) -> None:
        super().__init__(adata, registry, preset)
        if self._setup.translates and "max_epochs" not in self._preset:
            self._preset |= _TRANSLATION
        kind = _KINDS[self._checked_kind(target_kind)]
        translates, signed = self._setup.translates, self._setup.signed
        args = {
            "n_hidden": tuple(self._value("n_hidden", n_hidden)),
            "n_hidden_target": kind.n_hidden if n_hidden_target is None else tuple(n_hidden_target),
            "n_latent": self._value("n_latent", n_latent),
            "kl_weight": self._value("kl_weight", kl_weight),
            "kl_warmup_epochs": self._value("kl_warmup_epochs", kl_warmup_epochs),
            "adversary_weight": self._value("adversary_weight", adversary_weight),
        }
        check_widths(**{name: args[name] for name in ("n_hidden", "n_hidden_target", "n_latent")})
        for name in ("kl_weight", "kl_warmup_epochs", "adversary_weight"):
            _check_weight(name, args[name])
        weights = ((1.0, 2.0) if translates else (1.0, 1.0)) if reconstruction_weight is None else reconstruction_weight
        if len(weights) != 2:
            raise ValueError(f"reconstruction_weight={reconstruction_weight} must be two numbers, one for each side.")
        for weight in weights:
            _check_weight("reconstruction_weight", weight)
        self._partner = self._checked_partner(partner)
        n_vars = self.summary_stats.n_vars
        groups = self._groups() if translates and target_kind == "accessibility" else None
        if groups is not None and len(args["n_hidden_target"]) != 1:
            raise ValueError(
                f"n_hidden_target={args['n_hidden_target']} must be one width, the units of each chromosome."
            )
        # proteins are too few for a divisor of their own
        n_divisor = n_vars if not translates or target_kind == "protein" else self.summary_stats.n_target_vars
        # a leaky ReLU and the cut at 0 would hardly let negative values through
        own: tuple[Output, float | None] = ("identity", None) if signed else ("leaky", _ZERO_BELOW)
        theirs = (kind.output, kind.zero_below) if translates else own
        self._sides = (
            Side(
                n_vars,
                args["n_hidden"],
                self._value("mask_rate", mask_rate),
                own[0],
                float(weights[R]),
                args["kl_weight"] / n_vars,
                own[1],
            ),
            Side(
                self.summary_stats.n_target_vars if translates else n_vars,
                args["n_hidden_target"],
                kind.mask_rate if mask_rate_target is None else mask_rate_target,
                theirs[0],
                float(weights[A]),
                args["kl_weight"] / n_divisor,
                theirs[1],
                groups,
            ),
        )
        self._module_args = {
            "n_latent": args["n_latent"],
            "dropout_rate": self._value("dropout_rate", dropout_rate),
            "kl_warmup_epochs": args["kl_warmup_epochs"],
            "adversary_weight": args["adversary_weight"],
            "linear_logvar": linear_logvar,
            "start_at_means": self._value("start_at_means", start_at_means),
        }
        if translates:
            pairing: Pairing = "self" if self._setup.pairing_key is None else "label"
            self.stages = tuple(replace(Stage.of(stage), pairing=pairing, itself=True) for stage in type(self).stages)
        self._start_module()
        self.init_params_ = self._get_init_params(locals())

    def _checked_kind(self, kind: TargetKind | None) -> TargetKind:
        """The kind of side A; perturbed cells are one of expression."""
        if not self._setup.translates:
            if kind is not None:
                raise ValueError(f"target_kind={kind!r} needs a target modality; set the data up with setup_mudata.")
            return "expression"
        if kind not in _KINDS:
            raise ValueError(
                f"target_kind={kind!r} is unknown; say what modality {self._setup.target_modality!r} holds: "
                f"{', '.join(map(repr, _KINDS))}."
            )
        if (kind == "accessibility") != (self._setup.chromosome_key is not None):
            needed = "needs" if kind == "accessibility" else "does not use"
            raise ValueError(f"target_kind={kind!r} {needed} chromosome_key; see setup_mudata.")
        return kind

    def _checked_partner(self, partner: Partner | None) -> Partner:
        if partner is not None and (self._setup.pairing_key is not None or self._setup.translates):
            raise ValueError(
                f"partner={partner!r} has no meaning beside pairing_key or a target modality, which make the pairs; leave it "
                "out."
            )
        chosen = self._value("partner", partner)
        if chosen not in get_args(Partner):
            raise ValueError(f"partner={chosen!r} is unknown{close_matches(chosen, get_args(Partner))}")
        return chosen

    def _groups(self) -> np.ndarray:
        """Chromosome of each peak, a number from 0."""
        return self.registry_["field_registries"][_keys.X_TARGET]["state_registry"]["chromosome_codes"]

    def _new_module(self) -> TwoSideModule:
        module = TwoSideModule(self._sides, **self._module_args)
        # counts are realised from expression of one modality only
        module.fits_correction = not self._setup.translates
        return module

    def _check_values(self, x: Any, obs_names: pd.Index, *, side: int, rows: np.ndarray | None = None) -> None:
        named = AnnData(obs=pd.DataFrame(index=obs_names), var=pd.DataFrame(index=feature_names(self, side)))
        name = f"Modality {modality_names(self)[side]!r}"
        output = self._sides[side].output
        # of the side of the expression the usual remedy holds
        remedy = _REMEDIES.get(output) if side == A else None
        check_expression(x, named, name=name, rows=rows, signed=output == "identity", remedy=remedy)
        if output == "sigmoid":
            check_at_most_one(x, named, name, rows)

    def to_control(
        self,
        adata: AnnData | MuData | None = None,
        *,
        context: str | Sequence[str] | None = None,
        indices: Sequence[int] | np.ndarray | None = None,
        batch_size: int | None = None,
    ) -> AnnData:
        """Predict perturbed cells as control cells: the way back.

        Parameters
        ----------
        adata
            Data with perturbed cells; None takes the model's own.
        context
            Which contexts' perturbed cells to use; None uses all.
        indices
            Row numbers among which perturbed cells are used; None uses all.
        batch_size
            Cells per batch.

        Returns
        -------
        One row for each perturbed cell, named as in :meth:`predict`.

        Raises
        ------
        RuntimeError
            If the model is not trained.
        ValueError
            If genes differ, or no perturbed cell is left.
        """
        self._require_trained()
        if self._setup.translates:
            raise ValueError(
                f"There are no perturbed cells between two modalities; predict(perturbation={self._setup.expression_modality!r}) "
                "is the way back."
            )
        source = self._source(adata, needs_control=False)
        conditions, of_cell = self._setup.conditions(source)
        known = {condition for condition in self.trained_conditions_ if condition}
        unknown = sorted(str(self._labels([one])[0]) for one in conditions if one and one not in known)
        if unknown:
            raise ValueError(
                f"obs[{self._setup.perturbation_key!r}] holds {unknown[0]!r}, but the model knows cells of "
                f"{self._codec.vocabulary[0]!r} only; leave others out."
            )
        chosen = np.array([bool(condition) for condition in conditions])[of_cell]
        if indices is not None:
            chosen &= np.isin(np.arange(source.n_obs), _row_numbers(source, indices))
        if context is not None:
            chosen &= self._in_contexts(source, context)
        if not chosen.any():
            raise ValueError("No perturbed cell is left after `context` and `indices`; widen the choice.")
        rows = np.flatnonzero(chosen)
        self._check_rows(source, rows)
        predictor = self._predictor(source, "plain", None, 0, batch_size)
        x = np.empty((len(rows), source.n_vars), dtype=np.float32)
        with torch.inference_mode():
            self.module.eval()
            for at, tensors in predictor.batches(rows):
                decoded = self.module.translated(tensors[_keys.X], A, R)
                x[at] = (decoded.clamp(min=0) if predictor.clip else decoded).float().cpu().numpy()
        obs = source.obs.iloc[rows].copy()
        names = obs.index.astype(str)
        obs[self._setup.perturbation_key] = pd.Categorical([self._setup.control] * len(rows))
        obs[_keys.SOURCE_CELL] = names
        obs.index = names + f":{self._setup.control}"
        return AnnData(x, obs=obs, var=source.var.copy(), uns={_keys.UNS: self._provenance("plain", 0)})


def _check_weight(name: str, value: float) -> None:
    if not 0 <= value < math.inf:
        raise ValueError(f"{name}={value} must be a finite number of at least 0.")


def check_at_most_one(x: Any, adata: AnnData, name: str, rows: np.ndarray | None = None) -> None:
    """Refuse values above 1.

    Parameters
    ----------
    x
        The matrix, none of it negative.
    adata
        Names of its rows and columns.
    name
        What to call the matrix.
    rows
        Increasing row numbers to check; None checks all.

    Raises
    ------
    ValueError
        With the number of such values and the cell and feature of the largest.
    """
    n_above, largest, place = 0, 1.0, ""
    for at, block in row_blocks(x, rows):
        dense = block.toarray() if hasattr(block, "toarray") else np.asarray(block)
        n_above += int((dense > 1).sum())
        if dense.size and dense.max() > largest:
            row, column = np.unravel_index(dense.argmax(), dense.shape)
            largest = float(dense[row, column])
            place = f"cell {str(adata.obs_names[at[row]])!r}, feature {str(adata.var_names[column])!r}"
    if n_above:
        raise ValueError(
            f"{name} has {n_above} value(s) above 1, the largest {largest:g} at {place}; accessibility is scaled to 0..1 "
            "(multipert.pp.tfidf)."
        )
