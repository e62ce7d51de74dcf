"""ScPreGAN: an encoder for all cells, a generator and a discriminator for control and for each perturbation."""

from __future__ import annotations

from contextlib import contextmanager
from functools import partial
from itertools import pairwise
from numbers import Integral
from typing import TYPE_CHECKING, Any, ClassVar, Literal, get_args

import numpy as np
import torch
from scvi.module.base import LossOutput
from torch import nn
from torch.nn.functional import batch_norm, binary_cross_entropy_with_logits, cross_entropy, mse_loss

from multipert import _keys
from multipert.data._conditions import close_matches
from multipert.nn import group_means

from ._base import PerturbationModel, _row_numbers
from ._module import PerturbationModule, Tensors
from ._results import cells_to_anndata
from ._tags import ModelTags

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from anndata import AnnData
    from mudata import MuData

    from multipert.data._loaders import CellLoader

Variant = Literal["ac", "wgan"]
ClassLoss = Literal["cross_entropy", "legacy"]

_BETAS = (0.5, 0.9)
# rate of the encoder, as a share of that of the generators
_ENCODER_RATE = 0.1
# batches of the discriminators before each of the generators
_CRITIC_BATCHES: dict[str, int] = {"ac": 1, "wgan": 5}
_PENALTY_WEIGHT, _PENALTY_POWER = 2.0, 6


class _BatchNorm(nn.BatchNorm1d):
    """Batch norm by the running statistics where a batch has a single cell of a perturbation."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if len(x) > 1:
            return super().forward(x)
        return batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, eps=self.eps)


def _hidden(widths: Sequence[int], norm: type[nn.Module]) -> list[nn.Module]:
    """Linear, norm and ReLU for every two widths in a row."""
    layers: list[nn.Module] = []
    for n_in, n_out in pairwise(widths):
        layers += [nn.Linear(n_in, n_out), norm(n_out), nn.ReLU()]
    return layers


class Discriminator(nn.Module):
    """Tells measured cells from generated ones, and their contexts apart; spectral norm bounds its slope.

    Parameters
    ----------
    n_vars
        Number of genes.
    n_hidden
        Width of the second hidden layer; the first is twice as wide.
    n_classes
        Number of contexts; 0 for none.
    """

    def __init__(self, n_vars: int, n_hidden: int, n_classes: int) -> None:
        super().__init__()
        first, second = nn.Linear(n_vars, 2 * n_hidden), nn.Linear(2 * n_hidden, n_hidden)
        spectral_norm = nn.utils.parametrizations.spectral_norm
        self.hidden = nn.Sequential(spectral_norm(first), nn.ReLU(), spectral_norm(second), nn.ReLU())
        self.score = nn.Linear(n_hidden, 1)
        self.context = nn.Linear(n_hidden, n_classes) if n_classes else None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Score of each cell, then the logit of each context, shape `(B, 1 + n_classes)`."""
        hidden = self.hidden(x)
        score = self.score(hidden)
        return score if self.context is None else torch.cat([score, self.context(hidden)], dim=1)


@contextmanager
def _fixed(network: nn.Module) -> Iterator[None]:
    """Let gradients pass through a network without computing those of its parameters."""
    for parameter in network.parameters():
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in network.parameters():
            parameter.requires_grad_(True)


class PreGANModule(PerturbationModule):
    """Encoder, generators and discriminators; of these the first are those of control.

    A training batch has as many control cells, `a`, as perturbed cells, `b`, which are not paired. `ab` is a control cell
    that went through the encoder and the generator of the perturbation beside it, `aba` one that then went through the
    encoder and the generator of control, and so on.

    Parameters
    ----------
    n_vars
        Number of genes.
    n_perturbations
        Size of the vocabulary.
    n_contexts
        Number of contexts that the discriminators of "ac" tell apart; 0 for none.
    n_hidden
        Width of the narrower hidden layer of each network; the other is twice as wide.
    n_latent
        Width of the latent representation.
    variant
        "ac" or "wgan"; see :class:`ScPreGAN`.
    class_loss
        "cross_entropy", or "legacy": minus the probability of the context.
    adversary_weight
        Weight of the discriminators in the loss of encoder and generators.
    encoding_weight
        Weight of the latent representations of generated cells there.
    mask_unseen_contexts
        Whether discriminators are asked only for contexts of which they see measured cells.
    start_at_mean
        Whether the first training starts the generators at the mean and spread of their cells.
    """

    critic_turn = "alone"

    def __init__(
        self,
        n_vars: int,
        n_perturbations: int,
        n_contexts: int,
        n_hidden: int,
        n_latent: int,
        *,
        variant: Variant = "ac",
        class_loss: ClassLoss = "cross_entropy",
        adversary_weight: float = 0.001,
        encoding_weight: float = 0.1,
        mask_unseen_contexts: bool = True,
        start_at_mean: bool = True,
    ) -> None:
        super().__init__()
        norm = nn.LayerNorm if variant == "ac" else _BatchNorm
        n_classes = n_contexts if variant == "ac" else 0
        narrow, wide, n = n_hidden, 2 * n_hidden, 1 + n_perturbations
        self.encoder = nn.Sequential(*_hidden((n_vars, wide, narrow), norm), nn.Linear(narrow, n_latent))
        self.generators = nn.ModuleList(
            nn.Sequential(*_hidden((n_latent, narrow, wide, n_vars), norm)) for _ in range(n)
        )
        self.discriminators = nn.ModuleList(Discriminator(n_vars, n_hidden, n_classes) for _ in range(n))
        self.variant, self.class_loss, self.n_classes = variant, class_loss, n_classes
        self.adversary_weight, self.encoding_weight = adversary_weight, encoding_weight
        self.mask_unseen_contexts, self.start_at_mean = mask_unseen_contexts, start_at_mean
        # whether each generator was started; saved, since further training must not start it again
        self.register_buffer("started", torch.zeros(n, dtype=torch.bool))
        # whether control, and each perturbation, has training cells of each context
        self.register_buffer("measured", torch.ones(n, n_classes, dtype=torch.bool))

    def prepare(self, loader: CellLoader) -> None:
        """Note which contexts were measured; start generators at the mean and spread of their cells, each once."""
        starting = self.start_at_mean and not self.started.all()
        if not starting and not (self.n_classes and self.mask_unseen_contexts):
            return
        means = group_means(loader, _number)
        if self.n_classes and self.mask_unseen_contexts:
            self.measured.zero_()
            self.measured[means.condition.to(self.device), means.context.to(self.device)] = True
        if not starting:
            return
        for number in means.condition.unique().tolist():
            if self.started[number]:
                continue
            here = means.condition == number
            share = (means.n_cells[here] / means.n_cells[here].sum())[:, None]
            mean = (share * means.mean[here]).sum(dim=0)
            variance = (share * (means.variance[here] + torch.square(means.mean[here] - mean))).sum(dim=0)
            norm = self.generators[number][-2]
            norm.bias.copy_(mean)
            norm.weight.copy_(variance.sqrt())
            self.started[number] = True

    def inference(self, tensors: Tensors) -> dict[str, torch.Tensor]:
        """Latent representation; in training that of the control cells, and `"z_b"`, of the perturbed ones."""
        if _keys.X_CONTROL not in tensors:
            return {"z": self.encoder(tensors[_keys.X])}
        z_a, z_b = self._run(self.encoder, tensors[_keys.X_CONTROL], tensors[_keys.X])
        return {"z": z_a, "z_b": z_b}

    def _get_generative_input(self, tensors: Tensors, inference_outputs: Mapping[str, Any]) -> dict[str, Any]:
        return {**super()._get_generative_input(tensors, inference_outputs), "z_b": inference_outputs.get("z_b")}

    def generative(self, z: torch.Tensor, tensors: Tensors, z_b: torch.Tensor | None = None) -> dict[str, torch.Tensor]:
        """Expression by the generators of the batch's labels; in training all cells by those of control as well.

        Parameters
        ----------
        z
            Latent representation, shape `(B, n_latent)`.
        tensors
            A batch.
        z_b
            That of the perturbed cells, in training.

        Returns
        -------
        A dict with `"px"`, shape `(B, n_vars)`, and in training `"aa"`, `"ba"` and `"bb"`; `"px"` is then `ab`.
        """
        if z_b is None:
            return {"px": self._run_each(self.generators, _number(tensors), z)[0]}
        aa, ba = self._run(self.generators[0], z, z_b)
        ab, bb = self._run_each(self.generators, _number(tensors), z, z_b)
        return {"px": ab, "aa": aa, "ba": ba, "bb": bb}

    def loss(self, tensors: Tensors, inference_outputs: Mapping, generative_outputs: Mapping) -> LossOutput:
        """Reconstruction and encoding; in training also how little the discriminators are deceived.

        That part rises and falls with the discriminators, so the loss of validation cells is without it.
        """
        a, b, number = tensors[_keys.X_CONTROL], tensors[_keys.X], _number(tensors)
        z_a, z_b = inference_outputs["z"], inference_outputs["z_b"]
        aa, ab, ba, bb = (generative_outputs[name] for name in ("aa", "px", "ba", "bb"))
        error = partial(mse_loss, reduction="none")
        per_cell = error(aa, a).mean(dim=1) + error(bb, b).mean(dim=1)
        z_aa, z_ab, z_ba, z_bb = self._run(self.encoder, aa, ab, ba, bb)
        # a target that followed would be met by an encoder that gives all cells one representation
        encoding = sum(
            mse_loss(found, target.detach()) for found, target in ((z_aa, z_a), (z_ab, z_a), (z_ba, z_b), (z_bb, z_b))
        )
        loss = per_cell.mean() + self.encoding_weight * encoding
        if self.training and self.adversarial and self.adversary_weight > 0:
            (aba,) = self._run(self.generators[0], z_ab)
            (bab,) = self._run_each(self.generators, number, z_ba)
            context_a, context_b = self._contexts(tensors)
            with _fixed(self.discriminators):
                deceived = self._judge(
                    torch.zeros_like(number), (aa, context_a, True), (ba, context_b, True), (aba, context_a, True)
                ) + self._judge(number, (bb, context_b, True), (ab, context_a, True), (bab, context_b, True))
            loss = loss + self.adversary_weight * deceived
        return LossOutput(loss=loss, reconstruction_loss=per_cell)

    def critic_loss(self, tensors: Tensors) -> torch.Tensor:
        """How little the discriminators tell measured cells from generated ones, which are made anew."""
        a, b, number = tensors[_keys.X_CONTROL], tensors[_keys.X], _number(tensors)
        with torch.no_grad():
            inferred = self.inference(tensors)
            (ba,) = self._run(self.generators[0], inferred["z_b"])
            (ab,) = self._run_each(self.generators, number, inferred["z"])
        of_control = torch.zeros_like(number)
        context_a, context_b = self._contexts(tensors)
        loss = self._judge(of_control, (a, context_a, True), (ba, context_b, False))
        loss = loss + self._judge(number, (b, context_b, True), (ab, context_a, False))
        if self.variant == "wgan":
            loss = loss + self._penalty(of_control, a, ba) + self._penalty(number, b, ab)
        return loss

    def critic_parameters(self) -> Iterable[nn.Parameter]:
        """Parameters of the discriminators."""
        return self.discriminators.parameters()

    def critic_groups(self) -> list[dict[str, Any]]:
        """The discriminators, with Adam's betas."""
        return [{"params": list(self.critic_parameters()), "betas": _BETAS}]

    def parameter_groups(self) -> list[dict[str, Any]]:
        """The encoder at a tenth of the rate, and the generators with Adam's betas."""
        return [
            {"params": list(self.encoder.parameters()), "factor": _ENCODER_RATE},
            {"params": list(self.generators.parameters()), "betas": _BETAS},
        ]

    def _run(self, network: nn.Module, *parts: torch.Tensor) -> list[torch.Tensor]:
        """A network on several batches; on all at once unless it normalises over each."""
        if self.variant == "wgan":
            return [network(part) for part in parts]
        return list(network(torch.cat(parts)).split([len(part) for part in parts]))

    def _run_each(self, networks: nn.ModuleList, number: torch.Tensor, *parts: torch.Tensor) -> list[torch.Tensor]:
        """To each cell the network of its number, on several batches that have the same numbers."""
        present = torch.unique(number).tolist()
        if len(present) == 1:
            return self._run(networks[present[0]], *parts)
        rows = [torch.nonzero(number == one)[:, 0] for one in present]
        found = [self._run(networks[one], *(part[at] for part in parts)) for one, at in zip(present, rows, strict=True)]
        back = torch.argsort(torch.cat(rows))
        return [torch.cat(of_part)[back] for of_part in zip(*found, strict=True)]

    def _contexts(self, tensors: Tensors) -> tuple[torch.Tensor, torch.Tensor]:
        """Context of each control and of each perturbed cell; 0 where nothing asks for it."""
        if not self.n_classes:
            none = torch.zeros_like(_number(tensors))
            return none, none
        return tensors[_keys.CONTEXT_CONTROL][:, 0].long(), tensors[_keys.CONTEXT][:, 0].long()

    def _judge(self, number: torch.Tensor, *cells: tuple[torch.Tensor, torch.Tensor, bool]) -> torch.Tensor:
        """Loss of the discriminators of some numbers that should call cells of some contexts measured, or generated."""
        losses = []
        outputs = self._run_each(self.discriminators, number, *(x for x, _, _ in cells))
        for output, (_, context, is_real) in zip(outputs, cells, strict=True):
            score, logits = output[:, 0], output[:, 1:]
            if self.variant == "wgan":
                losses.append(-score.mean() if is_real else score.mean())
                continue
            losses.append(binary_cross_entropy_with_logits(score, torch.full_like(score, float(is_real))))
            if self.n_classes:
                losses.append((self._of_class(logits, context) * self.measured[number, context]).mean())
        return torch.stack(losses).sum()

    def _of_class(self, logits: torch.Tensor, context: torch.Tensor) -> torch.Tensor:
        """Loss of the context of each cell, shape `(B,)`."""
        if self.class_loss == "cross_entropy":
            return cross_entropy(logits, context, reduction="none")
        return -torch.softmax(logits, dim=1).gather(1, context[:, None])[:, 0]

    def _penalty(self, number: torch.Tensor, real: torch.Tensor, made: torch.Tensor) -> torch.Tensor:
        """On the slope of the discriminators at random points between measured and generated cells."""
        share = torch.rand(len(real), 1, dtype=real.dtype, device=real.device)
        between = (share * real + (1 - share) * made).requires_grad_()
        (score,) = self._run_each(self.discriminators, number, between)
        (slope,) = torch.autograd.grad(score.sum(), between, create_graph=True)
        return _PENALTY_WEIGHT * slope.square().sum(dim=1).pow(_PENALTY_POWER / 2).mean()


def _number(tensors: Tensors) -> torch.Tensor:
    """Number of each cell's generator: 0 for control, then in the order of the vocabulary."""
    return tensors[_keys.PERTURBATION].long().amax(dim=1) + 1


class ScPreGAN(PerturbationModel):
    r"""Generators for control and for each perturbation behind one encoder, with a discriminator each :cite:p:`Wei2022`.

    Control cells :math:`a` and perturbed cells :math:`b` are not paired. The encoder :math:`E` is for all; the generators
    :math:`G_0` (control) and :math:`G_p` reconstruct their own cells, and discriminators judge whatever they generate,
    from cells of either kind:

    .. math::

        \lVert G_0(E(a)) - a \rVert^2 + \lVert G_p(E(b)) - b \rVert^2
        + \lambda_e \sum_{x,\, q} \lVert E(G_q(E(x))) - E(x) \rVert^2
        + \lambda_a \sum_{q} \bigl[-\log D_q(G_q(\cdot)) + \mathrm{CE}_q(\text{context})\bigr]

    A control cell is predicted as :math:`G_p(E(a))`, and :meth:`to_control` gives :math:`G_0(E(b))`. With one perturbation
    this is the published model; cost and memory grow linearly with the number of perturbations. With `context_key` the
    discriminators also name the context of a cell; nothing else uses contexts. Expression must be non-negative, as the
    generators end in a ReLU.

    Parameters
    ----------
    adata
        Data that :meth:`setup_anndata` was run on.
    registry
        Registry of a saved model, in place of data.
    preset
        "default"; "published" (the published widths, weights and random start, 20,000 steps of the generators).
    n_hidden
        Width of the narrower hidden layer of each network; the other is twice as wide.
    n_latent
        Width of the latent representation.
    variant
        "ac": layer norm and discriminators that also name the context; "wgan": batch norm, Wasserstein losses with a
        penalty on the slope, and five steps of the discriminators to one of the generators.
    class_loss
        Loss of the context's name: "cross_entropy", or "legacy", minus its probability, as in the published code.
    adversary_weight
        Weight of the discriminators in the loss of encoder and generators, :math:`\lambda_a`.
    encoding_weight
        Weight of the latent representations of generated cells there, :math:`\lambda_e`.
    mask_unseen_contexts
        Whether a discriminator is asked only for contexts of which it sees measured cells. Those of held-out contexts it
        would else learn from generated cells alone, and so to know these by their context.
    start_at_mean
        Whether the first training starts the output layer of each generator at the mean and standard deviation of its
        cells. A gene whose output is below 0 for all cells gets no gradient through the ReLU.

    Examples
    --------
    >>> import multipert as mp
    >>> adata = mp.datasets.screen("small")
    >>> mp.model.ScPreGAN.setup_anndata(adata, context_key="context")
    >>> model = mp.model.ScPreGAN(adata, n_hidden=32)
    >>> model.train(max_epochs=1, enable_progress_bar=False)
    >>> model.predict(context=model.trained_contexts_[0], returns="mean").n_vars == adata.n_vars
    True
    """

    tags = ModelTags(latent=True, reference="Wei2022")
    stages = ("any",)
    presets: ClassVar[dict[str, dict[str, Any]]] = {
        "default": {
            "n_hidden": 128,
            "n_latent": 16,
            "variant": "ac",
            "class_loss": "cross_entropy",
            "adversary_weight": 0.001,
            "encoding_weight": 0.3,
            "mask_unseen_contexts": True,
            "start_at_mean": True,
            "lr": 1e-3,
            "batch_size": 64,
            "n_updates": 400,
            "plan_kwargs": {"n_warmup_steps": 0},
        },
        "published": {
            "n_hidden": 256,
            "encoding_weight": 0.1,
            "start_at_mean": False,
            "n_updates": 40_000,
            "plan_kwargs": {"n_warmup_steps": 0, "decay_every": 20_000, "decay_factor": 0.9},
        },
    }
    search_space: ClassVar[dict[str, tuple]] = {
        "n_hidden": ("choice", (64, 128, 256)),
        "n_latent": ("choice", (8, 16, 32, 64)),
        "adversary_weight": ("log", 1e-4, 1e-1),
        "encoding_weight": ("log", 1e-2, 10.0),
        "lr": ("log", 1e-4, 3e-3),
    }

    def __init__(
        self,
        adata: AnnData | None = None,
        registry: dict | None = None,
        *,
        preset: str | None = None,
        n_hidden: int | None = None,
        n_latent: int | None = None,
        variant: Variant | None = None,
        class_loss: ClassLoss | None = None,
        adversary_weight: float | None = None,
        encoding_weight: float | None = None,
        mask_unseen_contexts: bool | None = None,
        start_at_mean: bool | None = None,
    ) -> None:
        super().__init__(adata, registry, preset)
        if self._setup.signed:
            raise ValueError(
                "ScPreGAN was set up with signed=True, but its generators give no negative values; give it log-normalised "
                "expression and leave signed out."
            )
        given = {
            "n_hidden": n_hidden,
            "n_latent": n_latent,
            "variant": variant,
            "class_loss": class_loss,
            "adversary_weight": adversary_weight,
            "encoding_weight": encoding_weight,
            "mask_unseen_contexts": mask_unseen_contexts,
            "start_at_mean": start_at_mean,
        }
        arguments = {name: self._value(name, value) for name, value in given.items()}
        for name in ("n_hidden", "n_latent"):
            if not isinstance(arguments[name], Integral) or arguments[name] < 1:
                raise ValueError(f"{name}={arguments[name]} must be a whole number of at least 1.")
        for name, known in (("variant", get_args(Variant)), ("class_loss", get_args(ClassLoss))):
            if arguments[name] not in known:
                raise ValueError(f"{name}={arguments[name]!r} is unknown{close_matches(str(arguments[name]), known)}")
        for name in ("adversary_weight", "encoding_weight"):
            if not 0 <= arguments[name] < float("inf"):
                raise ValueError(f"{name}={arguments[name]} must be finite and not negative.")
        self._preset = _scheduled(self._preset, arguments["variant"])
        self._module_args = {
            "n_vars": self.summary_stats.n_vars,
            "n_perturbations": self.summary_stats.n_perturbations,
            "n_contexts": 0 if self._setup.context_key is None else self.summary_stats.n_contexts,
            **arguments,
        }
        self._start_module()
        self.init_params_ = self._get_init_params(locals())

    def _new_module(self) -> PreGANModule:
        return PreGANModule(**self._module_args)

    def to_control(
        self,
        adata: AnnData | MuData | None = None,
        *,
        context: str | Sequence[str] | None = None,
        indices: Sequence[int] | np.ndarray | None = None,
        batch_size: int | None = None,
    ) -> AnnData:
        """Map perturbed cells to control; the input is never changed.

        Parameters
        ----------
        adata
            Data with perturbed cells, set up or not, of any labels; None takes the model's own.
        context
            Which contexts' perturbed cells to map; None maps all.
        indices
            Row numbers among which perturbed cells are mapped, or a mask; None maps all.
        batch_size
            Cells per batch.

        Returns
        -------
        One row per perturbed cell, with its obs, the perturbation replaced by the label of control, and `source_cell`, as
        :meth:`predict` gives them.

        Raises
        ------
        RuntimeError
            If the model is not trained.
        ValueError
            If genes differ, a context is unknown, or no perturbed cell is left.
        KeyError
            If an obs column or layer is absent.

        Examples
        --------
        >>> import multipert as mp
        >>> adata = mp.datasets.screen("small")
        >>> mp.model.ScPreGAN.setup_anndata(adata, context_key="context")
        >>> model = mp.model.ScPreGAN(adata, n_hidden=32)
        >>> model.train(max_epochs=1, enable_progress_bar=False)
        >>> model.to_control().obs["perturbation"].unique().tolist()
        ['control']
        """
        self._require_trained()
        source = self._source(adata, needs_control=False)
        conditions, inverse = self._setup.conditions(source)
        chosen = np.array([bool(condition) for condition in conditions])[inverse]
        if indices is not None:
            mask = np.zeros(source.n_obs, dtype=bool)
            mask[_row_numbers(source, indices)] = True
            chosen &= mask
        if context is not None:
            chosen &= self._in_contexts(source, context)
        if not chosen.any():
            raise ValueError("No perturbed cell is left after `context` and `indices`; widen the choice.")
        rows = np.flatnonzero(chosen)
        self._check_rows(source, rows)
        predictor = self._predictor(source, "plain", None, 0, batch_size)
        groups = [(rows, [()])]
        return cells_to_anndata(
            predictor, groups, source, self._setup, self._codec, self._n_slots, self._provenance("plain", 0)
        )


def _scheduled(preset: dict[str, Any], variant: Variant) -> dict[str, Any]:
    """A preset with as many batches of the discriminators to one of the generators as the variant needs.

    Presets count the batches of "ac", two for each step of the generators.
    """
    n_critic = _CRITIC_BATCHES[variant]
    plan_kwargs = {**preset["plan_kwargs"], "critic_every": n_critic}
    if "decay_every" in plan_kwargs:
        plan_kwargs["decay_every"] = plan_kwargs["decay_every"] * (1 + n_critic) // 2
    return {**preset, "n_updates": preset["n_updates"] * (1 + n_critic) // 2, "plan_kwargs": plan_kwargs}
