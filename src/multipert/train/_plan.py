"""The one training plan of all models."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import lightning.pytorch as pl
import torch

from multipert import _keys

from ._burst import Burst
from ._resources import peak_memory

if TYPE_CHECKING:
    from lightning.pytorch.core.optimizer import LightningOptimizer
    from scvi.module.base import LossOutput

    from multipert.model._module import PerturbationModule, Tensors

    from ._stage import Trains

# updates between copies of the weights, so that short epochs are not spent on copying
_KEEP_EVERY = 50


class PerturbationTrainingPlan(pl.LightningModule):
    """Adam with a linear warm-up; alternates with an adversary where the module has one.

    The rate of update `t` (from 0) is `lr * min(1, t / n_warmup_steps) * decay_factor ** (t // decay_every)`, so the first
    update of a warm-up changes no weight. What is particular to a module (rates and betas of its parts, the kind of
    optimiser and the turn of its adversary, whether the best weights are kept) it states itself, see
    :class:`multipert.model.PerturbationModule`. A loss that is not finite stops the run with the batch named, and the last finite weights are kept: those
    before the batch on a CPU, else a copy, which is made at the start of an epoch once 50 updates have passed. Losses,
    the `extra_metrics` that a module's loss holds (`train_` and `validation_` before their names), seconds and memory are
    noted once per epoch in `history`.

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
        The adversary is trained at every `critic_every`-th batch; one that has batches of its own is trained on so many of
        them in a row.
    decay_every
        Updates after which the rate falls; None keeps it.
    decay_factor
        What the rate is then multiplied by.
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
        decay_every: int | None = None,
        decay_factor: float = 0.9,
        trains: Trains = "all",
    ) -> None:
        super().__init__()
        for name, value in {"critic_every": critic_every, "decay_every": decay_every}.items():
            if value is not None and value < 1:
                raise ValueError(f"{name}={value} must be at least 1.")
        self.module, self.trains = module, trains
        module.adversarial = trains == "all"
        self.automatic_optimization = False
        self.lr, self.weight_decay, self.eps = lr, weight_decay, eps
        self.critic_lr = lr if critic_lr is None else critic_lr
        self.n_warmup_steps = n_warmup_steps
        self.critic_every = critic_every
        self.decay_every, self.decay_factor = decay_every, decay_factor
        self.history: dict[str, dict[int, float]] = {}
        """By epoch: mean losses and further metrics, cells per second, seconds, seconds of them that batches were waited
        for, and the peak of memory in bytes."""
        self.n_updates = 0
        self.direct = False
        self._sums: dict[str, float | torch.Tensor] = {}
        self._n_cells: dict[str, int] = {}
        self._n_seen = 0
        self._unchecked: list[tuple[int, torch.Tensor]] = []
        self._started = self._loading_seconds = 0.0
        self._finite_state: dict[str, torch.Tensor] = {}
        self._kept_at = 0
        self._best: tuple[float, dict[str, torch.Tensor]] | None = None

    def configure_optimizers(self) -> list[torch.optim.Optimizer]:
        """One optimiser for the module, a second for its adversary if any."""
        main, critic = self.module.parameter_groups(), self.module.critic_groups()
        optimizers: list[torch.optim.Optimizer] = [self._adam(main, self.lr)]
        if critic and self.module.critic_optimizer == "sgd":
            optimizers.append(torch.optim.SGD(critic, lr=self.critic_lr, weight_decay=self.weight_decay))
        elif critic:
            optimizers.append(self._adam(critic, self.critic_lr))
        return optimizers

    def _adam(self, groups: list[dict[str, Any]], lr: float) -> torch.optim.Adam:
        fused = all(_fused(group["params"]) for group in groups)
        return torch.optim.Adam(groups, lr=lr, weight_decay=self.weight_decay, eps=self.eps, fused=fused)

    def forward(self, batch: Tensors) -> LossOutput:
        """Loss of a batch; the batch is on the module's device already, so nothing looks through it again."""
        module = self.module
        inferred = module.inference(**module._get_inference_input(batch))
        generated = module.generative(**module._get_generative_input(batch, inferred))
        return module.loss(batch, inferred, generated)

    def transfer_batch_to_device(self, batch: Any, device: torch.device, dataloader_idx: int) -> Any:
        """A burst moves its batches one by one."""
        if not isinstance(batch, Burst):
            return super().transfer_batch_to_device(batch, device, dataloader_idx)
        batch.device = device
        return batch

    def on_fit_start(self) -> None:
        """Let several processes draw different numbers."""
        if self.global_rank:
            torch.manual_seed(torch.initial_seed() + self.global_rank)

    def on_train_epoch_start(self) -> None:
        """Keep a copy of the weights and running statistics to fall back on, unless the last is of a moment ago."""
        self.module.epoch = self.current_epoch
        self._started, self._loading_seconds = time.perf_counter(), 0.0
        if self._finite_state and self.n_updates - self._kept_at < _KEEP_EVERY:
            return
        self._check_weights(f"the start of epoch {self.current_epoch}")
        self._kept_at = self.n_updates
        for name, value in self._state().items():
            if name in self._finite_state:
                self._finite_state[name].copy_(value)
            else:
                self._finite_state[name] = value.detach().clone()

    def on_train_epoch_end(self) -> None:
        """Note what the epoch gave."""
        n_cells, self._n_seen = self._n_seen * self.trainer.world_size, 0
        self._note_means(validation=False)
        seconds = max(time.perf_counter() - self._started, 1e-9)
        self._note("cells_per_second", n_cells / seconds)
        self._note("epoch_seconds", seconds)
        self._note("loading_seconds", self._loading_seconds)
        self._note("peak_memory", peak_memory(self.device))

    def on_train_end(self) -> None:
        """Look at the weights, since no loss follows the last update; free what updates need; let processes end alike.

        A module that keeps the best weights ends with those.
        """
        self._check_weights("the end of the training")
        if self._best is not None:
            self.module.load_state_dict(self._best[1], strict=False)
        for parameter in self.module.parameters():
            parameter.grad = None
        if self.trainer.world_size > 1:
            # running statistics are those of each process's cells
            for buffer in self.module.buffers():
                if buffer.is_floating_point():
                    buffer.copy_(self.trainer.strategy.reduce(buffer.clone(), reduce_op="mean"))

    def training_step(self, batch: Burst | Tensors, batch_idx: int) -> torch.Tensor:
        """For each batch one update of the module, then one of the adversary, as far as the pass trains them."""
        burst = self._burst(batch, batch_idx)
        optimizers = self.optimizers()
        optimizers = optimizers if isinstance(optimizers, list) else [optimizers]
        parameters = list(self.module.parameters())
        losses = []
        for number, batch in enumerate(burst, burst.first):
            rate = self._rate()
            self.n_updates += 1
            self._n_seen += len(batch[_keys.X])
            loss = torch.zeros((), device=self.device)
            for turn in self._turns(len(optimizers) > 1):
                if turn == "module":
                    output = self(batch)
                    loss = self._update(optimizers[0], parameters, output.loss, self.lr * rate, number)
                    self._add_all("train", loss, output, batch)
                else:
                    critic_loss = self.module.critic_loss(batch)
                    critic_loss = self._update(optimizers[1], parameters, critic_loss, self.critic_lr * rate, number)
                    self._add("critic_loss", critic_loss, batch)
            losses.append(loss)
        self._check_finite()
        self._loading_seconds += burst.seconds
        return torch.stack(losses).mean()

    def _rate(self) -> float:
        """Factor on the learning rates at the coming update."""
        rate = min(1.0, self.n_updates / self.n_warmup_steps) if self.n_warmup_steps else 1.0
        return rate if self.decay_every is None else rate * self.decay_factor ** (self.n_updates // self.decay_every)

    def _turns(self, adversarial: bool) -> tuple[str, ...]:
        """Who moves at the update that has just been counted, and in which order."""
        if self.trains == "module" or not adversarial:
            return () if self.trains == "critic" else ("module",)
        # counted over all epochs, so that short ones favour neither
        is_due = (self.n_updates - 1) % self.critic_every == 0
        if self.trains == "critic":
            return ("critic",) if is_due else ()
        if self.module.critic_turn == "alone":
            # the module first, so that a pass of one batch moves it
            return ("critic",) if (self.n_updates - 1) % (self.critic_every + 1) else ("module",)
        if not is_due:
            return ("module",)
        return ("critic", "module") if self.module.critic_turn == "before" else ("module", "critic")

    def _update(
        self,
        optimizer: LightningOptimizer,
        parameters: list[torch.nn.Parameter],
        loss: torch.Tensor,
        lr: float,
        number: int,
    ) -> torch.Tensor:
        self._unchecked.append((number, loss.detach()))
        # asking another device would make it wait
        if loss.device.type == "cpu":
            self._check_finite()
        for group in optimizer.param_groups:
            group["lr"] = lr * group.get("factor", 1.0)
        # None, not zero: parameters that took no part must not move
        for parameter in parameters:
            parameter.grad = None
        if self.direct:
            loss.backward()
            optimizer.optimizer.step()
        else:
            self.manual_backward(loss)
            optimizer.step()
        return loss.detach()

    def on_validation_start(self) -> None:
        """The seconds of an epoch are those of its training."""
        self._started -= time.perf_counter()

    def on_validation_end(self) -> None:
        """Go on counting."""
        self._started += time.perf_counter()

    def validation_step(self, batch: Burst | Tensors, batch_idx: int) -> None:
        """Loss of held-out cells."""
        for one in self._burst(batch, batch_idx):
            output = self(one)
            self._add_all("validation", output.loss.detach(), output, one)

    def on_validation_epoch_end(self) -> None:
        """Note the mean, so that early stopping sees it; copy the weights where the module keeps the best."""
        self._note_means(validation=True)
        if not self.module.keeps_best or self.trainer.sanity_checking:
            return
        reached = self.history["validation_loss"][self.current_epoch]
        if self._best is None or reached < self._best[0]:
            self._best = reached, {name: value.detach().clone() for name, value in self._state().items()}

    def _burst(self, batch: Burst | Tensors, batch_idx: int) -> Burst:
        return batch if isinstance(batch, Burst) else Burst(iter([batch]), batch_idx, self.device)

    def _add_all(self, part: str, loss: torch.Tensor, output: LossOutput, batch: Tensors) -> None:
        """Add the loss of a batch, and what else its module tells of it."""
        self._add(f"{part}_loss", loss, batch)
        for name, value in (output.extra_metrics or {}).items():
            self._add(f"{part}_{name}", value.detach(), batch)

    def _add(self, name: str, value: torch.Tensor, batch: Tensors) -> None:
        """Add the loss of a batch to the sums of the epoch, cells weighted equally."""
        n = len(batch[_keys.X])
        # on another device the sum stays there, so that nothing waits
        self._sums[name] = self._sums.get(name, 0.0) + n * (value.item() if value.device.type == "cpu" else value)
        self._n_cells[name] = self._n_cells.get(name, 0) + n

    def _note_means(self, *, validation: bool) -> None:
        """Note the mean losses of the epoch, over all processes, and start anew."""
        for name in [name for name in self._sums if name.startswith("validation_") == validation]:
            total, n = float(self._sums.pop(name)), float(self._n_cells.pop(name))
            if self.trainer.world_size > 1:
                both = torch.tensor([total, n], dtype=torch.float32, device=self.device)
                total, n = self.trainer.strategy.reduce(both, reduce_op="sum").tolist()
            self._note(name, total / n, shown=name.endswith("_loss"))

    def _note(self, name: str, value: float, *, shown: bool = False) -> None:
        if not self.trainer.sanity_checking:
            self.history.setdefault(name, {})[self.current_epoch] = value
        self.log(name, value, on_step=False, on_epoch=True, prog_bar=shown, batch_size=1)

    def _check_finite(self) -> None:
        """Stop at the first loss since the last look that is not finite."""
        unchecked, self._unchecked = self._unchecked, []
        if not unchecked or torch.isfinite(torch.stack([loss for _, loss in unchecked])).all():
            return
        for number, loss in unchecked:
            if not torch.isfinite(loss):
                self._stop(f"The loss became {loss.item()}", f"epoch {self.current_epoch}, batch {number}")

    def _check_weights(self, when: str) -> None:
        if self._finite_state and self._broken():
            self._stop("The weights became infinite or NaN", when)

    def _state(self) -> dict[str, torch.Tensor]:
        """Parameters and running statistics; not what `conclude` fits."""
        return {name: value for name, value in self.module.state_dict().items() if name not in self.module.fitted}

    def _broken(self) -> list[str]:
        # one pass without a mask: the smallest or the largest value of a tensor tells
        return [
            name
            for name, value in self._state().items()
            if value.is_floating_point() and value.numel() and not all(map(torch.isfinite, value.aminmax()))
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
