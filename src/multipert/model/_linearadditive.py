"""LinearAdditive: a perturbation adds one number to every gene."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any, ClassVar, Literal, get_args

import pandas as pd
import torch

from multipert import _keys
from multipert.nn import (
    CovariateVector,
    LabelLinear,
    LabelVector,
    covariate_codes,
    distinct_rows,
    group_means,
    output_activation,
    shared_label,
)
from multipert.nn._perceptron import OutputActivation
from multipert.train import Stage

from ._arguments import check_switch, check_weight, checked, one_of
from ._base import PerturbationModel
from ._module import PerturbationModule, Tensors
from ._perturbench import (
    REFERENCE,
    blind_to_covariates,
    checked_output,
    equip,
    label_sizes,
    single_conditions,
    squared_error,
)
from ._tags import ModelTags

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from anndata import AnnData
    from scvi.module.base import LossOutput

    from multipert.data._loaders import CellLoader

logger = logging.getLogger(__name__)

Solver = Literal["adam", "lstsq"]
# rows of the design that are summed at once, and the share of the largest singular value that counts as 0
_BLOCK, _RCOND = 1024, 1e-10
# the reference trains on perturbed cells only
_PUBLISHED = {**REFERENCE, "control_targets": False}
_CHECKS = {
    "inject_covariates": check_switch,
    "solver": one_of(Solver),
    "ridge": check_weight,
    "control_targets": check_switch,
}


class LinearAdditiveModule(PerturbationModule):
    """One linear layer from labels and covariates to a shift of the control cell.

    Parameters
    ----------
    n_vars
        Number of genes.
    n_perturbations
        Size of the vocabulary.
    covariate_sizes
        Number of values of each covariate that is read.
    n_embedding
        Width of the given perturbation embedding; None takes unit vectors.
    doses
        Whether labels are scaled by their doses.
    output
        Activation of the sum.
    solver
        "lstsq" fits the layer in closed form.
    ridge
        Penalty of the weights in the closed form, relative to the number of cells.
    control_targets
        Whether control cells count in the closed form, with the shift 0.
    """

    fits_correction = False

    def __init__(
        self,
        n_vars: int,
        n_perturbations: int,
        covariate_sizes: Sequence[int] = (),
        *,
        n_embedding: int | None = None,
        doses: bool = False,
        output: OutputActivation = "softplus",
        solver: Solver = "adam",
        ridge: float = 0.0,
        control_targets: bool = True,
    ) -> None:
        super().__init__()
        self.perturbation = LabelVector(n_perturbations, n_embedding, doses)
        self.covariates = CovariateVector(covariate_sizes)
        self.shift = LabelLinear(self.perturbation.width + self.covariates.width, n_vars)
        self.activation = output_activation(output)
        self.solver, self.ridge, self.control_targets = solver, ridge, control_targets

    def vector(self, tensors: Tensors) -> torch.Tensor:
        """Input of the layer: the label, then the covariates, shape `(B, n_inputs)`."""
        return torch.cat([self.perturbation(tensors), self.covariates(tensors)], dim=1)

    def generative(self, z: torch.Tensor, tensors: Tensors) -> dict[str, torch.Tensor]:
        """Control cells plus their shifts, activated; `z` is the control cell."""
        if shared_label(tensors) is tensors:
            shift = self.shift(self.vector(tensors))
        else:
            # of the cells with the same covariates once
            rows, kind = distinct_rows(covariate_codes(tensors))
            shift = self.shift(self.vector({key: value[rows] for key, value in tensors.items()}))[kind]
        return {"px": self.activation(z + shift)}

    def loss(self, tensors: Tensors, inference_outputs: Mapping, generative_outputs: Mapping) -> LossOutput:
        """Squared error, mean over cells and genes."""
        return squared_error(generative_outputs["px"], tensors[_keys.X])

    def conclude(self, loader: CellLoader) -> None:
        """Solve for the layer, where it is not trained by gradient.

        Least squares of `cell - mean control cell of its context` on the inputs: what the loss comes to over all partners
        of a cell, since these differ from their mean by noise that no input tells.
        """
        if self.solver != "lstsq":
            return
        inputs: list[torch.Tensor] = []
        of_control: list[bool] = []
        numbers: dict[tuple[float, ...], int] = {}

        def group_of(batch: Tensors) -> torch.Tensor:
            keys = torch.cat(
                [batch[_keys.PERTURBATION].double(), batch[_keys.DOSE].double(), covariate_codes(batch)], 1
            )
            rows, kind = distinct_rows(keys)
            some = {key: value[rows].to(self.device) for key, value in batch.items()}
            vectors, controls = self.vector(some).double().cpu(), (some[_keys.PERTURBATION] < 0).all(1).tolist()
            for key, vector, control in zip(map(tuple, keys[rows].tolist()), vectors, controls, strict=True):
                if key not in numbers:
                    numbers[key] = len(inputs)
                    inputs.append(vector)
                    of_control.append(control)
            return torch.tensor([numbers[tuple(key)] for key in keys[rows].tolist()])[kind]

        means = group_means(loader, group_of)
        is_control = torch.tensor(of_control)[means.condition]
        weight, target = means.n_cells.double(), torch.zeros_like(means.mean)
        for context in torch.unique(means.context):
            here = means.context == context
            controls = here & is_control
            base = (weight[controls, None] * means.mean[controls]).sum(0) / weight[controls].sum()
            target[here & ~is_control] = means.mean[here & ~is_control] - base
            if not controls.any():
                logger.warning("%d cell(s) have no control cell in their context and are left out.", weight[here].sum())
                weight[here], target[here] = 0, 0
        if not self.control_targets:
            weight[is_control] = 0
        if not weight[~is_control].any():
            raise ValueError(
                "No context has both control and perturbed training cells, so no shift can be fitted; mark such cells as "
                "'train'."
            )
        design = torch.cat([torch.stack(inputs)[means.condition], torch.ones(len(weight), 1, dtype=torch.float64)], 1)
        solution = least_squares(design, target, weight, self.ridge)
        self.shift.weight.copy_(solution[:-1].T)
        self.shift.bias.copy_(solution[-1])


def least_squares(design: torch.Tensor, target: torch.Tensor, weight: torch.Tensor, ridge: float = 0.0) -> torch.Tensor:
    """Weighted ridge regression; of several solutions the one with the smallest coefficients.

    Parameters
    ----------
    design
        Inputs, the last of them the constant, shape `(n, n_inputs)`, float64.
    target
        What they should give, shape `(n, n_vars)`, float64.
    weight
        Weights of the rows, shape `(n,)`, float64.
    ridge
        Penalty of all coefficients but the last, relative to the sum of the weights.

    Returns
    -------
    Coefficients, shape `(n_inputs, n_vars)`.

    Examples
    --------
    >>> design = torch.tensor([[0.0, 1.0], [1.0, 1.0], [1.0, 1.0]]).double()
    >>> coefficients = least_squares(design, torch.tensor([[1.0], [3.0], [5.0]]).double(), torch.ones(3).double())
    >>> coefficients.round(decimals=6).ravel().tolist()
    [3.0, 1.0]
    """
    gram = design.new_zeros(design.shape[1], design.shape[1])
    cross = design.new_zeros(design.shape[1], target.shape[1])
    for rows in torch.arange(len(design)).split(_BLOCK):
        weighted = (design[rows] * weight[rows, None]).T
        gram += weighted @ design[rows]
        cross += weighted @ target[rows]
    gram.diagonal()[:-1] += ridge * weight.sum()
    return torch.linalg.lstsq(gram, cross, rcond=_RCOND, driver="gelsd").solution


class LinearAdditive(PerturbationModel):
    r"""A perturbation adds one number to every gene, whatever the cell :cite:p:`Wu2024`.

    One linear layer turns the label and the covariates into a shift of a control cell:

    .. math::

        \hat x = \phi\bigl(x_0 + W [p;\, c] + b\bigr), \qquad \mathrm{MSE}(\hat x, x)

    with x a perturbed cell and :math:`x_0` a control cell of its context, drawn anew in each epoch; p the sum of the unit
    vectors of the label's parts, c the unit vectors of the context and of the covariates, :math:`\phi` the softplus. The
    weakest network, shown beside every other: perturbations and contexts add up and combinations are the sum of their
    parts. Each gene keeps the spread that it has among control cells.

    The softplus of a 0 is 0.69, so control cells do not come back as they are. `output_activation="identity"` returns them
    and leaves the sum as it is, which is then solved for exactly by `solver="lstsq"`. With `perturbation_embedding_key`
    the given vectors, summed, take the place of p and unseen perturbations are legal; with `dose_key` each part is scaled
    by `log1p` of its dose.

    Tags: reads contexts and covariates, none of them unseen; combinations; doses; unseen perturbations with an embedding;
    perturbation embedding (the shifts).

    Parameters
    ----------
    adata
        Data that :meth:`setup_anndata` was run on.
    registry
        Registry of a saved model, in place of data.
    preset
        "default"; "published" (the reference's configuration); or the reference's best for a data set: "srivatsan20",
        "norman19", "frangieh21", "jiang24", "op3", "mcfaline_small", "mcfaline_medium", "mcfaline_full".
    inject_covariates
        Whether the context and the covariates are an input. Without them control cells of any context can be predicted.
    output_activation
        "softplus", "relu" or "identity"; None is "softplus", or "identity" for signed data and with `solver="lstsq"`.
    solver
        "adam", by gradient; or "lstsq", in closed form, for `output_activation="identity"`.
    ridge
        Penalty of W in the closed form: that of the mean squared error of a gene, summed over W's row of the gene.
    control_targets
        Whether control cells are targets too, each with itself as its control cell; the reference leaves them out. It then
        says nothing of what control cells come to, so that differences of two predictions are safe but
        `realise="residual"` and `"counts"` are not.

    Examples
    --------
    >>> import multipert as mp
    >>> adata = mp.datasets.screen("small")
    >>> mp.model.LinearAdditive.setup_anndata(adata, context_key="context")
    >>> model = mp.model.LinearAdditive(adata, solver="lstsq")
    >>> model.train()
    >>> model.predict(perturbation="P1", returns="mean").n_vars == adata.n_vars
    True
    """

    tags = ModelTags(
        uses_context=True,
        unseen_context=False,
        uses_covariates=True,
        unseen_perturbations=True,
        unseen_needs_embedding=True,
        combinations=True,
        doses=True,
        perturbation_embedding=True,
        reference="Wu2024",
    )
    stages: tuple[Stage, ...] = (Stage("random"),)
    presets: ClassVar[dict[str, dict[str, Any]]] = {
        "default": {
            "inject_covariates": True,
            "output_activation": "softplus",
            "control_targets": True,
            "lr": 5e-3,
            "weight_decay": 1e-8,
            "batch_size": 128,
            "n_updates": 2000,
        },
        "published": {**_PUBLISHED, "lr": 1e-3, "weight_decay": 1e-4},
        "srivatsan20": {**_PUBLISHED, "lr": 7.788e-4, "weight_decay": 1.06e-8},
        "norman19": {**_PUBLISHED, "lr": 4.717e-3, "weight_decay": 1.76e-8, "inject_covariates": False},
        "frangieh21": {**_PUBLISHED, "lr": 3.916e-3, "weight_decay": 1.43e-8, "batch_size": 8000},
        "jiang24": {**_PUBLISHED, "lr": 1.421e-3, "weight_decay": 1.01e-8, "batch_size": 2000},
        "op3": {**_PUBLISHED, "lr": 4.996e-3, "weight_decay": 1.00e-8, "batch_size": 8000},
        "mcfaline_small": {**_PUBLISHED, "lr": 4.951e-3, "weight_decay": 1.04e-8, "batch_size": 8000},
        "mcfaline_medium": {**_PUBLISHED, "lr": 2.300e-3, "weight_decay": 1.07e-8, "batch_size": 8000},
        "mcfaline_full": {**_PUBLISHED, "lr": 1.359e-3, "weight_decay": 1.00e-8, "batch_size": 8000},
    }
    search_space: ClassVar[dict[str, tuple]] = {
        "lr": ("log", 5e-4, 2e-2),
        "weight_decay": ("log", 1e-8, 1e-3),
        "output_activation": ("choice", get_args(OutputActivation)),
    }

    def __init__(
        self,
        adata: AnnData | None = None,
        registry: dict | None = None,
        *,
        preset: str | None = None,
        inject_covariates: bool | None = None,
        output_activation: OutputActivation | None = None,
        solver: Solver = "adam",
        ridge: float = 0.0,
        control_targets: bool | None = None,
    ) -> None:
        super().__init__(adata, registry, preset)
        args = checked(self, _CHECKS, locals())
        closed = solver == "lstsq"
        if ridge and not closed:
            raise ValueError(f"ridge={ridge} has no meaning for solver={solver!r}; it is for solver='lstsq'.")
        default: OutputActivation = "identity" if closed else self._preset["output_activation"]
        output = checked_output(self, output_activation, default=default)
        if closed and output != "identity":
            raise ValueError(f"solver='lstsq' needs output_activation='identity'; found {output!r}.")
        if closed and self._setup.pairing_key is not None:
            raise ValueError(
                f"solver='lstsq' takes mean control cells, but pairing_key={self._setup.pairing_key!r} names the pairs; "
                "take 'adam', or set up the data without it."
            )
        reads = args.pop("inject_covariates")
        if not reads:
            self.tags = blind_to_covariates(self.tags)  # type: ignore[misc]
        # the closed form needs no pass
        self.stages = () if closed else (Stage("random", itself=args["control_targets"]),)
        self._module_args = {
            **label_sizes(self),
            "covariate_sizes": self._covariate_sizes if reads else (),
            "output": output,
            **args,
        }
        self._start_module()
        self.init_params_ = self._get_init_params(locals())

    def _new_module(self) -> LinearAdditiveModule:
        module = LinearAdditiveModule(**self._module_args)
        equip(self, module, module.perturbation)
        return module

    def _perturbation_embedding(self) -> pd.DataFrame:
        """The shifts, without that of the context."""
        conditions = single_conditions(self)
        vectors = self.module.perturbation(self._label_tensors(conditions))
        shifts = vectors @ self.module.shift.weight[:, : vectors.shape[1]].T
        return pd.DataFrame(shifts.cpu().numpy(), index=self._labels(conditions), columns=self.get_var_names())
