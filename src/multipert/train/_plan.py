"""The one training plan of all models."""

from __future__ import annotations

from typing import TYPE_CHECKING

import lightning.pytorch as pl
import torch

from multipert import _keys

if TYPE_CHECKING:
    from lightning.pytorch.core.optimizer import LightningOptimizer
    from scvi.module.base import LossOutput

    from multipert.model._module import PerturbationModule, Tensors

    from ._stage import Trains


class PerturbationTrainingPlan(pl.LightningModule):
    """Adam with a linear warm-up; alternates with an adversary where the module has one.

    The rate of update `t` (from 0) is `lr * min(1, t / n_warmup_steps)`, so the first update of a warm-up changes no
    weight. A loss that is not finite stops the run with the batch named, and the last finite weights are kept.

    Parameters
    ----------
    module
        What to train.
    lr
        Learning rate.
    weight_decay
        L2 penalty of Adam.
    n_warmup_steps
        Updates until the full learning rate.
    eps
        Adam's `eps`.
    critic_lr
        Learning rate of the adversary; None takes `lr`.
    critic_every
        The adversary is trained at every `critic_every`-th batch.
    trains
        Which parameters move; see :class:`Stage`.
    """

    def __init__(
        self,
        module: PerturbationModule,
        *,
        lr: float = 1e-3,
        weight_decay: float = 0.0,
        n_warmup_steps: int = 100,
        eps: float = 1e-8,
        critic_lr: float | None = None,
        critic_every: int = 1,
        trains: Trains = "all",
    ) -> None:
        super().__init__()
        self.module, self.trains = module, trains
        module.adversarial = trains == "all"
        self.automatic_optimization = False
        self.lr, self.weight_decay, self.eps = lr, weight_decay, eps
        self.critic_lr = lr if critic_lr is None else critic_lr
        self.n_warmup_steps = n_warmup_steps
        self.critic_every = critic_every
        self._n_updates = 0
        self._finite_state: dict[str, torch.Tensor] = {}

    def configure_optimizers(self) -> list[torch.optim.Optimizer]:
        """One optimiser for the module, a second for its adversary if any."""
        critic = list(self.module.critic_parameters())
        of_critic = {id(p) for p in critic}
        main = [p for p in self.module.parameters() if p.requires_grad and id(p) not in of_critic]
        groups = [(main, self.lr), (critic, self.critic_lr)] if critic else [(main, self.lr)]
        return [
            torch.optim.Adam(parameters, lr=lr, weight_decay=self.weight_decay, eps=self.eps, fused=_fused(parameters))
            for parameters, lr in groups
        ]

    def forward(self, batch: Tensors) -> LossOutput:
        """Loss of a batch."""
        return self.module(batch)[2]

    def on_train_epoch_start(self) -> None:
        """Keep a copy of the weights and running statistics to fall back on."""
        if not self._broken():
            self._finite_state = {name: value.detach().clone() for name, value in self._state().items()}

    def on_train_epoch_end(self) -> None:
        """The last update of an epoch has no loss after it, so look at the weights."""
        if self._finite_state and self._broken():
            self._stop("The weights became infinite or NaN", f"the end of epoch {self.current_epoch}")

    def training_step(self, batch: Tensors, batch_idx: int) -> torch.Tensor:
        """One update of the module, then one of the adversary, as far as the pass trains them."""
        optimizers = self.optimizers()
        optimizers = optimizers if isinstance(optimizers, list) else [optimizers]
        rate = min(1.0, self._n_updates / self.n_warmup_steps) if self.n_warmup_steps else 1.0
        self._n_updates += 1
        loss = torch.zeros((), device=self.device)
        if self.trains != "critic":
            loss = self._step(optimizers[0], self(batch).loss, self.lr * rate, batch_idx)
            self._log("train_loss", loss, batch)
        if self.trains != "module" and len(optimizers) > 1 and batch_idx % self.critic_every == 0:
            critic_loss = self._step(optimizers[1], self.module.critic_loss(batch), self.critic_lr * rate, batch_idx)
            self._log("critic_loss", critic_loss, batch)
        return loss

    def _step(self, optimizer: LightningOptimizer, loss: torch.Tensor, lr: float, batch_idx: int) -> torch.Tensor:
        self._check_finite(loss, batch_idx)
        self._update(optimizer, loss, lr)
        return loss.detach()

    def _update(self, optimizer: LightningOptimizer, loss: torch.Tensor, lr: float) -> None:
        for group in optimizer.param_groups:
            group["lr"] = lr
        # None, not zero: parameters that took no part must not move
        for parameter in self.module.parameters():
            parameter.grad = None
        self.manual_backward(loss)
        optimizer.step()

    def validation_step(self, batch: Tensors, batch_idx: int) -> None:
        """Log the loss of held-out cells."""
        self._log("validation_loss", self(batch).loss, batch)

    def _log(self, name: str, value: torch.Tensor, batch: Tensors) -> None:
        """Mean over the epoch, cells weighted equally."""
        self.log(name, value, on_step=False, on_epoch=True, prog_bar=True, batch_size=len(batch[_keys.X]))

    def _check_finite(self, loss: torch.Tensor, batch_idx: int) -> None:
        if not torch.isfinite(loss):
            self._stop(f"The loss became {loss.item()}", f"epoch {self.current_epoch}, batch {batch_idx}")

    def _state(self) -> dict[str, torch.Tensor]:
        """Parameters and running statistics; not what `conclude` fits."""
        return {name: value for name, value in self.module.state_dict().items() if name not in self.module.fitted}

    def _broken(self) -> list[str]:
        return [
            name
            for name, value in self._state().items()
            if value.is_floating_point() and not torch.isfinite(value).all()
        ]

    def _stop(self, what: str, when: str) -> None:
        broken = self._broken()
        if broken and self._finite_state:
            self.module.load_state_dict(self._finite_state, strict=False)
        where = f"parameter {broken[0]!r} is not finite either" if broken else "all parameters are still finite"
        raise FloatingPointError(
            f"{what} at {when} ({where}). The last finite weights are kept. Train with a smaller lr (now {self.lr:g}), "
            "or look for extreme values in the expression."
        )


def _fused(parameters: list[torch.nn.Parameter]) -> bool:
    """One kernel per update where the device has it."""
    return all(p.device.type in ("cpu", "cuda") and p.is_floating_point() for p in parameters)
