"""MTAe: one encoder for all conditions, a decoder modulated by the perturbation."""

from __future__ import annotations

from numbers import Integral
from typing import TYPE_CHECKING, Any, ClassVar

import pandas as pd
import torch
from scvi.module.base import LossOutput

from multipert import _keys
from multipert.nn import Encoder, FiLMDecoder, multi_hot, with_control

from ._base import PerturbationModel
from ._module import PerturbationModule, Tensors
from ._tags import ModelTags

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from anndata import AnnData

_MOST_LAYERS = 64


class MultiTaskModule(PerturbationModule):
    """FiLM autoencoder: `x_hat = decoder(encoder(x), c)` with `c` the one-hot condition, control first.

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
    ) -> None:
        super().__init__()
        self.n_perturbations = n_perturbations
        self.encoder = Encoder(n_vars, hidden, n_latent, dropout_rate, mask_rate)
        self.decoder = FiLMDecoder(n_latent, hidden[::-1], n_vars, n_perturbations + 1, film_hidden, dropout_rate)

    def condition(self, tensors: Tensors) -> torch.Tensor:
        """One-hot condition, control first, shape `(B, n_perturbations + 1)`."""
        dtype = tensors[_keys.X].dtype
        vectors = multi_hot(tensors[_keys.PERTURBATION], tensors[_keys.DOSE].to(dtype), self.n_perturbations)
        return with_control(vectors)

    def inference(self, tensors: Tensors) -> dict[str, torch.Tensor]:
        """Latent representation of the cells, or of their paired controls where the batch has them."""
        return {"z": self.encoder(tensors.get(_keys.X_CONTROL, tensors[_keys.X]))}

    def generative(self, z: torch.Tensor, tensors: Tensors) -> dict[str, torch.Tensor]:
        """Expression under the batch's labels."""
        return {"px": self.decoder(z, self.condition(tensors))}

    def loss(self, tensors: Tensors, inference_outputs: Mapping, generative_outputs: Mapping) -> LossOutput:
        """Squared error, mean over cells and genes."""
        per_cell = torch.square(generative_outputs["px"] - tensors[_keys.X]).mean(dim=1)
        return LossOutput(loss=per_cell.mean(), reconstruction_loss=per_cell)


class MTAe(PerturbationModel):
    r"""Multi-task autoencoder with feature-wise linear modulation :cite:p:`Katzalis2025`.

    One encoder maps every cell to a latent representation; each hidden layer of the decoder is scaled and shifted by
    the perturbation. Cells are reconstructed under their own label, and a control cell is decoded under another:

    .. math::

        \hat x = g(f(x),\, c), \qquad h_{l+1} = \phi\bigl(\gamma_l(c) \odot \mathrm{BN}(W_l h_l + b_l) + \beta_l(c)\bigr)

    Use it for perturbations seen in other contexts, several of them or several doses in one model (each pair one
    label). It predicts no unseen perturbation and no combination, and its decoder gives conditional means: use
    `predict(realise="residual")` for distances and `"counts"` for differential expression.

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

    tags = ModelTags(latent=True, perturbation_embedding=True, reference="Katzalis2025")
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
    ) -> None:
        super().__init__(adata, registry, preset)
        width, depth = self._value("n_hidden", n_hidden), self._value("n_layers", n_layers)
        if not 1 <= depth <= _MOST_LAYERS:
            raise ValueError(f"n_layers={depth} must lie in 1..{_MOST_LAYERS}.")
        hidden = (width,) * self._value("n_layers", n_layers) if isinstance(width, Integral) else tuple(width)
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
            **self.parts,
        }
        self._start_module()
        self.init_params_ = self._get_init_params(locals())

    def _new_module(self) -> MultiTaskModule:
        return MultiTaskModule(**self._module_args)

    def _perturbation_embedding(self) -> pd.DataFrame:
        """Scale and shift of every modulated layer, control first."""
        condition = torch.eye(self.module.n_perturbations + 1, device=self.module.device)
        columns, names = [], []
        for layer, film in enumerate(self.module.decoder.films):
            for kind, values in zip(("scale", "shift"), film(condition), strict=True):
                columns.append(values)
                names += [f"{kind}_{layer}_{unit}" for unit in range(values.shape[1])]
        index = pd.Index([self._codec.control, *self._codec.vocabulary], name=self._setup.perturbation_key)
        return pd.DataFrame(torch.cat(columns, dim=1).cpu().numpy(), index=index, columns=names)
