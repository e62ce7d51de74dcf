"""MTAe and its variants: one encoder for all conditions, a decoder modulated by the perturbation."""

from __future__ import annotations

import math
from dataclasses import replace
from numbers import Integral
from typing import TYPE_CHECKING, Any, ClassVar, get_args

import pandas as pd
import torch
from scvi.module.base import LossOutput
from torch.nn.functional import mse_loss

from multipert import _keys
from multipert.data._conditions import close_matches
from multipert.data._transport import Partner
from multipert.nn import (
    ConditionAdversary,
    ConditionVector,
    Encoder,
    FiLMDecoder,
    GaussianAdversary,
    GaussianLatent,
    kl_to_standard_normal,
    noise_of_cells,
    shared_label,
)
from multipert.train import Stage

from ._base import PerturbationModel
from ._embedding import registered_embedding, scaled
from ._module import PerturbationModule, Tensors
from ._tags import ModelTags

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from anndata import AnnData

    from multipert.data._conditions import Condition
    from multipert.data._loaders import CellLoader

_MOST_LAYERS = 64


class MultiTaskModule(PerturbationModule):
    """FiLM autoencoder: `x_hat = decoder(encoder(x), c)` with `c` the condition's vector, control first.

    Parameters
    ----------
    n_vars
        Number of genes.
    n_perturbations
        Size of the vocabulary.
    hidden
        Widths of the encoder's hidden layers; the decoder mirrors them.
    n_latent
        Width of the latent representation.
    film_hidden
        Widths of the trunk of each FiLM generator.
    dropout_rate
        Dropout after each hidden layer.
    mask_rate
        Share of genes masked in training.
    n_embedding
        Width of the given perturbation embedding; None takes one-hot vectors.
    doses
        Whether the vector depends on the dose.
    adversary
        Class of the adversary of the latent representation, if any.
    adversary_weight
        Weight of the adversary in the loss; the rest is the reconstruction's.
    variational
        Whether each cell's latent representation is a normal distribution.
    kl_weight
        Weight of its divergence from the standard normal, times batch size over number of cells.
    train_vae_heads
        Whether the layers of mean and variance are trained; False is the published code's.
    """

    def __init__(
        self,
        n_vars: int,
        n_perturbations: int,
        hidden: Sequence[int],
        n_latent: int,
        film_hidden: Sequence[int],
        dropout_rate: float,
        mask_rate: float,
        *,
        n_embedding: int | None = None,
        doses: bool = False,
        adversary: type[ConditionAdversary | GaussianAdversary] | None = None,
        adversary_weight: float = 0.0,
        variational: bool = False,
        kl_weight: float = 0.0,
        train_vae_heads: bool = True,
    ) -> None:
        super().__init__()
        self.encoder = Encoder(n_vars, hidden, n_latent, dropout_rate, mask_rate)
        self.condition = ConditionVector(n_perturbations, n_embedding, doses)
        self.decoder = FiLMDecoder(n_latent, hidden[::-1], n_vars, self.condition.width, film_hidden, dropout_rate)
        self.adversary = None if adversary is None else adversary(n_latent)
        self.latent = GaussianLatent(n_latent, frozen=not train_vae_heads) if variational else None
        self.adversary_weight, self.kl_weight = adversary_weight, kl_weight
        self.keyed_training = adversary is ConditionAdversary

    def prepare(self, loader: CellLoader) -> None:
        """Put the midpoints of the dose curves where the trained doses are."""
        self.condition.start(self.known_codes, self.known_doses)

    def inference(self, tensors: Tensors) -> dict[str, torch.Tensor]:
        """Latent representation of the cells, or of their paired controls where the batch has them.

        A variational module draws it in training, and in a prediction of samples; else it is the mean.
        """
        z = self.encoder(tensors.get(_keys.X_CONTROL, tensors[_keys.X]))
        if self.latent is None:
            return {"z": z}
        mean, log_variance = self.latent(z)
        z = mean
        if self.training:
            z = mean + torch.randn_like(mean) * torch.exp(log_variance / 2)
        elif _keys.CELL_KEY in tensors:
            noise = noise_of_cells(tensors[_keys.CELL_KEY], mean.shape[1])
            z = mean + noise.to(mean) * torch.exp(log_variance / 2)
        return {"z": z, "mean": mean, "log_variance": log_variance}

    def generative(self, z: torch.Tensor, tensors: Tensors) -> dict[str, torch.Tensor]:
        """Expression under the batch's labels."""
        return {"px": self.decoder(z, self.condition(shared_label(tensors)))}

    def loss(self, tensors: Tensors, inference_outputs: Mapping, generative_outputs: Mapping) -> LossOutput:
        """Squared error, mean over cells and genes, with the terms of the variational and the adversarial part."""
        per_cell = mse_loss(generative_outputs["px"], tensors[_keys.X], reduction="none").mean(dim=1)
        loss = per_cell.mean()
        if self.latent is not None:
            divergence = kl_to_standard_normal(inference_outputs["mean"], inference_outputs["log_variance"])
            loss = loss + self.kl_weight * len(per_cell) / self.n_rows * divergence.mean()
        if self.adversary is not None and self.adversarial:
            penalty = self.adversary.penalty(inference_outputs["z"], tensors)
            if penalty is not None:
                loss = (1 - self.adversary_weight) * loss + self.adversary_weight * penalty
        return LossOutput(loss=loss, reconstruction_loss=per_cell)

    def critic_parameters(self) -> Iterable[torch.nn.Parameter]:
        """Parameters of the adversary."""
        return () if self.adversary is None else self.adversary.parameters()

    def critic_loss(self, tensors: Tensors) -> torch.Tensor:
        """Loss of the adversary on latent representations made anew, which send no gradient to the encoder."""
        if self.adversary is None:
            return super().critic_loss(tensors)
        with torch.no_grad():
            z = self.inference(tensors)["z"]
        return self.adversary.critic_loss(z, tensors)


def _with(
    presets: Mapping[str, dict[str, Any]], *, published: Mapping[str, Any] | None = None, **default: Any
) -> dict[str, dict[str, Any]]:
    """Presets of a variant: further entries of the default, and changes of the published one."""
    merged = {name: dict(preset) for name, preset in presets.items()}
    merged["default"].update(default)
    merged["published"].update(published or {})
    return merged


def _reconstructing_first(presets: Mapping[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Presets where a pass of reconstruction comes before one of transport: by default a shorter one, else as long."""
    return {
        name: {**preset, "shares": (0.25, 1.0) if name == "default" else (1.0, 1.0)} for name, preset in presets.items()
    }


def check_widths(**widths: int | Sequence[int]) -> None:
    """Refuse widths below 1.

    Parameters
    ----------
    **widths
        Widths by the name of the argument, each a number or several.

    Raises
    ------
    ValueError
        Naming the argument and the value.
    """
    for name, given in widths.items():
        for width in (given,) if isinstance(given, int | Integral) else given:
            if not isinstance(width, Integral) or width < 1:
                raise ValueError(f"{name}={given} must be of whole numbers of at least 1.")


class MTAe(PerturbationModel):
    r"""Multi-task autoencoder with feature-wise linear modulation :cite:p:`Katzalis2025`.

    One encoder maps every cell to a latent representation; each hidden layer of the decoder is scaled and shifted by
    the perturbation. Cells are reconstructed under their own label, and a control cell is decoded under another:

    .. math::

        \hat x = g(f(x),\, c), \qquad h_{l+1} = \phi\bigl(\gamma_l(c) \odot \mathrm{BN}(W_l h_l + b_l) + \beta_l(c)\bigr)

    Use it for perturbations seen in other contexts, several of them in one model. The vector :math:`c` is one-hot, and
    for a combination the sum of its parts' vectors; with `dose_key` each part is scaled by a learnt curve of its dose, so
    doses between the measured ones are legal; with `perturbation_embedding_key` the given vectors take the place of the
    unit vectors, so unseen perturbations are. The decoder gives conditional means: use `predict(realise="residual")` for
    distances and `"counts"` for differential expression.

    Parameters
    ----------
    adata
        Data that :meth:`setup_anndata` was run on.
    registry
        Registry of a saved model, in place of data.
    preset
        "default"; "published" (the thesis' 400 epochs at learning rate 1e-5); "tuned" (512-256-128, the thesis' later
        search, which looked at a test context).
    n_hidden
        Width of the hidden layers: a number (then `n_layers` of them) or one per layer, encoder's order.
    n_latent
        Width of the latent representation.
    n_layers
        Number of hidden layers where `n_hidden` is a number.
    dropout_rate
        Dropout after each hidden layer.
    mask_rate
        Share of genes masked in training.
    film_hidden
        Widths of the trunk of the FiLM generators; None is none for one perturbation and 16 for several.
    adversary_weight
        Weight of the adversary in the loss, for the variants that have one.
    kl_weight
        Weight of the divergence from the standard normal, for the variational variants.
    train_vae_heads
        Whether the variational variants train the layers of mean and variance; False is the published code's.
    partner
        Which perturbed cell a control cell is paired with by the variants with transport: the "best" of its row of the
        plan, or a "sample" of it.

    Examples
    --------
    >>> import multipert as mp
    >>> adata = mp.datasets.screen("small")
    >>> mp.model.MTAe.setup_anndata(adata, context_key="context")
    >>> model = mp.model.MTAe(adata)
    >>> model.train(max_epochs=1, enable_progress_bar=False)
    >>> model.predict(context=model.trained_contexts_[0], returns="mean").n_vars == adata.n_vars
    True
    """

    tags = ModelTags(
        unseen_perturbations=True,
        unseen_needs_embedding=True,
        combinations=True,
        doses=True,
        latent=True,
        perturbation_embedding=True,
        reference="Katzalis2025",
    )
    presets: ClassVar[dict[str, dict[str, Any]]] = {
        "default": {
            "n_hidden": 256,
            "n_latent": 128,
            "n_layers": 1,
            "dropout_rate": 0.5,
            "mask_rate": 0.2,
            "lr": 1e-3,
            "batch_size": 64,
            "n_updates": 2000,
            "partner": "best",
        },
        "published": {"lr": 1e-5, "batch_size": 64, "max_epochs": 400},
        "tuned": {
            "n_hidden": (512, 256),
            "n_latent": 128,
            "film_hidden": (),
            "lr": 5e-5,
            "batch_size": 128,
            "max_epochs": 500,
        },
    }
    search_space: ClassVar[dict[str, tuple]] = {
        "n_hidden": ("choice", (128, 256, 512)),
        "n_latent": ("choice", (32, 64, 128)),
        "dropout_rate": ("float", 0.0, 0.6),
        "mask_rate": ("float", 0.0, 0.5),
        "lr": ("log", 1e-5, 1e-2),
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
        mask_rate: float | None = None,
        film_hidden: Sequence[int] | None = None,
        adversary_weight: float | None = None,
        kl_weight: float | None = None,
        train_vae_heads: bool | None = None,
        partner: Partner | None = None,
    ) -> None:
        super().__init__(adata, registry, preset)
        width, depth = self._value("n_hidden", n_hidden), self._value("n_layers", n_layers)
        if not 1 <= depth <= _MOST_LAYERS:
            raise ValueError(f"n_layers={depth} must lie in 1..{_MOST_LAYERS}.")
        hidden = (width,) * self._value("n_layers", n_layers) if isinstance(width, Integral) else tuple(width)
        film = self._preset.get("film_hidden") if film_hidden is None else film_hidden
        if isinstance(film, Integral):
            raise TypeError(f"film_hidden={film} must be a list of widths, such as ({film},).")
        check_widths(n_hidden=hidden, n_latent=self._value("n_latent", n_latent), film_hidden=film or ())
        if not hidden:
            raise ValueError("n_hidden and n_layers give no hidden layer, so no layer would be modulated; give one.")
        if n_layers is not None and len(hidden) != n_layers:
            raise ValueError(
                f"n_layers={n_layers}, but n_hidden={hidden} holds {len(hidden)} widths; give one of them."
            )
        n_perturbations = self.summary_stats.n_perturbations
        several = () if n_perturbations == 1 else (16,)
        self._module_args = {
            "n_vars": self.summary_stats.n_vars,
            "n_perturbations": n_perturbations,
            "hidden": hidden,
            "n_latent": self._value("n_latent", n_latent),
            "film_hidden": tuple(self._preset.get("film_hidden", several) if film_hidden is None else film_hidden),
            "dropout_rate": self._value("dropout_rate", dropout_rate),
            "mask_rate": self._value("mask_rate", mask_rate),
            "n_embedding": self._n_embedding,
            "doses": self._setup.dose_key is not None,
            **self.parts,
            **self._of_part("adversary" in self.parts, "adversary", adversary_weight=adversary_weight),
            **self._of_part(
                "variational" in self.parts,
                "variational latent",
                kl_weight=kl_weight,
                train_vae_heads=train_vae_heads,
            ),
        }
        self._check_weights()
        transported = any(Stage.of(stage).pairing == "ot" for stage in self.stages)
        self._partner = self._of_part(transported, "stage of transport", partner=partner).get("partner", "best")
        if partner is not None and self._setup.pairing_key is not None:
            raise ValueError(
                f"partner={partner!r} has no meaning beside pairing_key, which names the pairs; leave it out."
            )
        if self._partner not in get_args(Partner):
            raise ValueError(f"partner={self._partner!r} is unknown{close_matches(self._partner, get_args(Partner))}")
        self._start_module()
        self.init_params_ = self._get_init_params(locals())

    def _check_weights(self) -> None:
        """Refuse weights that turn a term of the loss round."""
        args = self._module_args
        if not 0 <= args.get("adversary_weight", 0) <= 1:
            raise ValueError(f"adversary_weight={args['adversary_weight']} must lie in 0..1.")
        if not 0 <= args.get("kl_weight", 0) < math.inf:
            raise ValueError(f"kl_weight={args['kl_weight']} must be a finite number of at least 0.")

    def _of_part(self, there: bool, part: str, **given: Any) -> dict[str, Any]:
        """Arguments that belong to a part of some variants; an error where the part is not there."""
        for name, value in given.items():
            if value is not None and not there:
                raise ValueError(f"{name}={value!r} was given, but {type(self).__name__} has no {part}; leave it out.")
        defaults = {name: self._preset[name] for name in given if name in self._preset}
        return {**defaults, **{name: value for name, value in given.items() if value is not None}} if there else {}

    def _new_module(self) -> MultiTaskModule:
        module = MultiTaskModule(**self._module_args)
        # each pass puts its own number here; scvi-tools' plan knows no passes
        module.n_rows = int(self.summary_stats.n_cells)
        table = registered_embedding(self)
        if table is not None:
            module.condition.embedding = scaled(table)
        return module

    def _perturbation_embedding(self) -> pd.DataFrame:
        """Scale and shift of every modulated layer, control first.

        One row for each perturbation that was trained or has a given embedding; with doses one for each trained condition.
        """
        trained = {name for condition in self.trained_conditions_ for name, _ in condition}
        if self._setup.dose_key is None:
            names = [name for name in self._codec.vocabulary if name in trained or self._n_embedding]
            conditions: list[Condition] = [(), *(((name, 1.0),) for name in names)]
        else:
            conditions = sorted({(), *self.trained_conditions_})
        vectors, columns, names = self.module.condition(self._label_tensors(conditions)), [], []
        for layer, film in enumerate(self.module.decoder.films):
            for kind, values in zip(("scale", "shift"), film(vectors), strict=True):
                columns.append(values)
                names += [f"{kind}_{layer}_{unit}" for unit in range(values.shape[1])]
        return pd.DataFrame(torch.cat(columns, dim=1).cpu().numpy(), index=self._labels(conditions), columns=names)


class MTAeAdv(MTAe):
    r"""MTAe whose encoder is rewarded for hiding the perturbation :cite:p:`Katzalis2025`.

    A discriminator tells latent representations of control cells from those of perturbed cells, and the encoder is
    rewarded when it fails on the perturbed ones:

    .. math::

        (1 - \lambda)\, \mathrm{MSE} + \lambda\, \mathrm{BCE}\bigl(D(f(x_\mathrm{perturbed})),\, 1 - y\bigr)

    Trained in three passes: the autoencoder, the discriminator alone, then both in turn for a quarter as long. Arguments
    are those of :class:`MTAe`. The discriminator is soon deceived, which does not mean that no other classifier can tell the
    cells apart: measure it.

    Examples
    --------
    >>> import multipert as mp
    >>> adata = mp.datasets.screen("small")
    >>> mp.model.MTAeAdv.setup_anndata(adata, context_key="context")
    >>> model = mp.model.MTAeAdv(adata, adversary_weight=0.05)
    >>> model.train(max_epochs=1, enable_progress_bar=False)
    >>> "critic_loss" in model.history
    True
    """

    parts = {"adversary": ConditionAdversary}
    stages = (Stage(trains="module"), Stage(trains="critic"), Stage(share=0.25))
    presets: ClassVar[dict[str, dict[str, Any]]] = _with(MTAe.presets, adversary_weight=0.01)
    search_space: ClassVar[dict[str, tuple]] = {**MTAe.search_space, "adversary_weight": ("log", 1e-3, 0.5)}


class MTAeAdvG(MTAe):
    r"""MTAe whose latent representation is drawn towards normal noise :cite:p:`Katzalis2025`.

    A discriminator tells latent representations from standard normal noise, and the encoder is rewarded when it fails.
    Passes and arguments are those of :class:`MTAeAdv`. The latent representation is almost non-negative, so it can come
    near to the noise but never match it.

    Examples
    --------
    >>> import multipert as mp
    >>> adata = mp.datasets.screen("small")
    >>> mp.model.MTAeAdvG.setup_anndata(adata, context_key="context")
    >>> model = mp.model.MTAeAdvG(adata)
    >>> model.train(max_epochs=1, enable_progress_bar=False)
    >>> model.get_latent_representation().shape
    (2500, 128)
    """

    parts = {"adversary": GaussianAdversary}
    stages = MTAeAdv.stages
    presets, search_space = MTAeAdv.presets, MTAeAdv.search_space


class MTAeOT(MTAe):
    r"""MTAe trained on transported pairs :cite:p:`Katzalis2025`.

    Each control cell is paired, by optimal transport within its context, with a cell of every condition measured there, and
    decoded to it: :math:`\lVert g(f(x_\mathrm{control}), c) - x_\mathrm{partner} \rVert^2`. Contexts without perturbed
    training cells take no part. :func:`multipert.data.pair` gives the pairs. Arguments are those of :class:`MTAe`.

    Examples
    --------
    >>> import multipert as mp
    >>> adata = mp.datasets.screen("small")
    >>> mp.model.MTAeOT.setup_anndata(adata, context_key="context")
    >>> model = mp.model.MTAeOT(adata)
    >>> model.train(max_epochs=1, enable_progress_bar=False)
    >>> model.is_trained
    True
    """

    stages = (Stage("ot"),)


class MTAePlusOT(MTAe):
    """MTAe trained on reconstruction, then on transported pairs :cite:p:`Katzalis2025`.

    The passes of :class:`MTAe` and :class:`MTAeOT` one after the other on the same weights; by default the first is a quarter
    as long as the second, which has to undo part of it. Arguments are those of :class:`MTAe`.

    Examples
    --------
    >>> import multipert as mp
    >>> adata = mp.datasets.screen("small")
    >>> mp.model.MTAePlusOT.setup_anndata(adata, context_key="context")
    >>> model = mp.model.MTAePlusOT(adata)
    >>> model.train(max_epochs=1, enable_progress_bar=False)
    >>> len(model.history["train_loss"])
    2
    """

    stages = (Stage("self"), Stage("ot"))
    presets: ClassVar[dict[str, dict[str, Any]]] = _reconstructing_first(MTAe.presets)


_VARIATIONAL = _with(MTAe.presets, kl_weight=0.004, train_vae_heads=True, published={"lr": 6.62e-6, "batch_size": 32})


class MTVae(MTAe):
    r"""MTAe with a normal distribution for each cell's latent representation :cite:p:`Katzalis2025`.

    .. math::

        z \sim \mathcal N\bigl(\mu(f(x)),\, \sigma^2(f(x))\bigr), \qquad
        \mathrm{MSE} + \beta\, \tfrac{B}{N}\, \mathrm{KL}\bigl(z \,\Vert\, \mathcal N(0, I)\bigr)

    with B cells per batch and N cells. Predictions use the mean, or draw with `predict(n_samples=)`. The published code
    never trained the layers of mean and variance; here they are trained (`train_vae_heads`). Arguments are those of
    :class:`MTAe`.

    Examples
    --------
    >>> import multipert as mp
    >>> adata = mp.datasets.screen("small")
    >>> mp.model.MTVae.setup_anndata(adata, context_key="context")
    >>> model = mp.model.MTVae(adata, kl_weight=0.01)
    >>> model.train(max_epochs=1, enable_progress_bar=False)
    >>> drawn = model.predict(perturbation="P1", context="context_1", n_samples=3)
    >>> drawn.obs["draw"].unique().tolist()
    [0, 1, 2]
    """

    tags = replace(MTAe.tags, samples=True)
    parts = {"variational": True}
    presets: ClassVar[dict[str, dict[str, Any]]] = _with(_VARIATIONAL, n_updates=500)
    search_space: ClassVar[dict[str, tuple]] = {**MTAe.search_space, "kl_weight": ("log", 1e-4, 1.0)}


class MTVaeOT(MTAe):
    """:class:`MTVae` trained on transported pairs :cite:p:`Katzalis2025`; see :class:`MTAeOT`.

    Arguments are those of :class:`MTAe`.

    Examples
    --------
    >>> import multipert as mp
    >>> adata = mp.datasets.screen("small")
    >>> mp.model.MTVaeOT.setup_anndata(adata, context_key="context")
    >>> model = mp.model.MTVaeOT(adata)
    >>> model.train(max_epochs=1, enable_progress_bar=False)
    >>> model.is_trained
    True
    """

    tags, parts, stages = MTVae.tags, MTVae.parts, MTAeOT.stages
    presets, search_space = _VARIATIONAL, MTVae.search_space


class MTVaePlusOT(MTAe):
    """:class:`MTVae` trained on reconstruction, then on transported pairs :cite:p:`Katzalis2025`; see :class:`MTAePlusOT`.

    Arguments are those of :class:`MTAe`.

    Examples
    --------
    >>> import multipert as mp
    >>> adata = mp.datasets.screen("small")
    >>> mp.model.MTVaePlusOT.setup_anndata(adata, context_key="context")
    >>> model = mp.model.MTVaePlusOT(adata)
    >>> model.train(max_epochs=1, enable_progress_bar=False)
    >>> len(model.history["train_loss"])
    2
    """

    tags, parts, stages = MTVae.tags, MTVae.parts, MTAePlusOT.stages
    presets: ClassVar[dict[str, dict[str, Any]]] = _reconstructing_first(_VARIATIONAL)
    search_space = MTVae.search_space
