import numpy as np
import pandas as pd
import pytest
import torch
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import Callback
from scvi.module.base import LossOutput

from multipert import _keys
from multipert.data._loaders import CellLoader
from multipert.data._store import CellStore
from multipert.model import PerturbationModule
from multipert.train import PerturbationTrainingPlan, Stage, _plan
from multipert.train._fit import append_history, check_train_kwargs, checked_precision, fit

QUIET = {"accelerator": "cpu", "devices": 1, "enable_progress_bar": False, "max_epochs": 1}
X = np.random.default_rng(0).random((32, 3)).astype(np.float32)


class Toy(PerturbationModule):
    """y = w x, an idle parameter, and on wish an adversary; a failure can be planted."""

    def __init__(self, adversary=False, loss_nan_at=None, gradient_nan_at=None, interrupt_at=None):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.full((3,), 0.5))
        self.idle = torch.nn.Parameter(torch.ones(2))
        torch.manual_seed(0)
        self.critic = torch.nn.Linear(3, 1) if adversary else None
        self.register_buffer("running", torch.zeros(3))
        self.plan = {"nan": loss_nan_at, "gradient": gradient_nan_at, "interrupt": interrupt_at}
        self.step, self.snapshots, self.critic_batches = 0, [], []

    def generative(self, z, tensors):
        return {"px": z * self.weight}

    def loss(self, tensors, inference_outputs, generative_outputs):
        step, self.step = self.step, self.step + self.training
        self.snapshots.append(
            (
                self.training,
                self.weight.detach().clone(),
                None if self.critic is None else self.critic.weight.detach().clone(),
            )
        )
        if self.training and step == self.plan["interrupt"]:
            raise KeyboardInterrupt
        per_cell = torch.square(generative_outputs["px"] - 2 * tensors[_keys.X]).mean(1)
        loss = per_cell.mean()
        if self.training and step == self.plan["nan"]:
            self.running.fill_(torch.nan)
            loss = loss * torch.nan
        if self.training and step == self.plan["gradient"]:
            # finite itself, with a gradient that is not: 0 * inf
            loss = loss + torch.sqrt(torch.square(self.weight[0] - self.weight[0].detach()))
        return LossOutput(loss=loss, reconstruction_loss=per_cell)

    def critic_parameters(self):
        return () if self.critic is None else self.critic.parameters()

    def critic_loss(self, tensors):
        self.critic_batches.append(self.step)
        return torch.square(self.critic(tensors[_keys.X] * self.weight)).mean()


def loader(n=32, batch_size=8):
    return CellLoader(CellStore(X, {}), np.arange(n), batch_size)


def run(module, *, epochs=1, validation=None, callbacks=None, precision="32-true", **plan):
    plan = PerturbationTrainingPlan(module, **{"lr": 0.1, "n_warmup_steps": 0, **plan})
    module.train()
    watched = {} if callbacks is None else {"callbacks": callbacks}
    return plan, fit(plan, loader(), validation, **{**QUIET, "max_epochs": epochs}, precision=precision, **watched)


def losses(history):
    return sorted(key for key in history if key.endswith("_loss"))


def weights(module):
    return [weight for training, weight, _ in module.snapshots if training]


def test_updates_are_those_of_adam():
    module = Toy()
    run(module, epochs=2, weight_decay=0.01)
    reference = torch.nn.Parameter(torch.full((3,), 0.5))
    adam = torch.optim.Adam([reference], lr=0.1, weight_decay=0.01, eps=1e-8)
    for _ in range(2):
        for batch in loader():
            adam.zero_grad()
            torch.square(batch[_keys.X] * reference - 2 * batch[_keys.X]).mean().backward()
            adam.step()
    np.testing.assert_allclose(module.weight.detach(), reference.detach(), rtol=1e-5)


def test_the_first_update_of_a_warm_up_changes_no_weight_and_the_rate_rises_linearly():
    module = Toy()
    run(module, n_warmup_steps=4, lr=1e-3)
    steps = np.diff([weight[0].item() for weight in [*weights(module), module.weight.detach()]])
    assert steps[0] == 0
    # the size of an early step of Adam is close to its rate
    np.testing.assert_allclose(steps[1:], [1e-3 * 1 / 4, 1e-3 * 2 / 4, 1e-3 * 3 / 4], rtol=0.2)


def test_the_warm_up_counts_batches_also_beside_an_adversary():
    plain, adversarial = Toy(), Toy(adversary=True)
    for module in (plain, adversarial):
        run(module, n_warmup_steps=4, critic_every=3)
    np.testing.assert_array_equal(torch.stack(weights(plain)), torch.stack(weights(adversarial)))


def test_the_adversary_takes_turns_and_leaves_the_rest_alone():
    module = Toy(adversary=True)
    critic_before = module.critic.weight.detach().clone()
    _, history = run(module, critic_lr=0.01)
    assert module.critic_batches == [1, 2, 3, 4]
    critics = [critic for _, _, critic in module.snapshots]
    assert torch.equal(critics[0], critic_before)
    assert all(not torch.equal(a, b) for a, b in zip(critics[:-1], critics[1:], strict=True))
    assert losses(history) == ["critic_loss", "train_loss"]
    # the critic's loss has a gradient with respect to the module's weight, which must not be used
    alone = Toy()
    run(alone)
    np.testing.assert_array_equal(module.weight.detach(), alone.weight.detach())


def test_the_adversary_may_be_trained_at_some_batches_only():
    module = Toy(adversary=True)
    run(module, critic_every=2)
    assert module.critic_batches == [1, 3]


@pytest.mark.parametrize("adversary", [False, True])
def test_parameters_that_take_no_part_do_not_move(adversary):
    module = Toy(adversary)
    run(module, epochs=2, weight_decay=0.1)
    assert torch.equal(module.idle.detach(), torch.ones(2))
    assert not torch.equal(module.weight.detach(), torch.full((3,), 0.5))


@pytest.mark.parametrize("observed", [{}, {"callbacks": [Callback()]}])
@pytest.mark.parametrize("adversary", [False, True])
def test_a_training_step_returns_its_mean_loss(adversary, observed, monkeypatch):
    returned = []
    step = PerturbationTrainingPlan.training_step

    def spy(self, batch, batch_idx):
        returned.append(step(self, batch, batch_idx))
        return returned[-1]

    monkeypatch.setattr(PerturbationTrainingPlan, "training_step", spy)
    _, history = run(Toy(adversary), **observed)
    assert len(returned) == (4 if observed else 1)
    assert all(loss.ndim == 0 and not loss.requires_grad for loss in returned)
    np.testing.assert_allclose(history["train_loss"].iloc[0, 0], np.mean([loss.item() for loss in returned]), rtol=1e-5)


@pytest.mark.parametrize("adversary", [False, True])
@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_updates_are_the_same_one_by_one_and_in_bursts(adversary, precision):
    """Copies of the weights in reduced precision must not outlive an update."""
    burst, single = Toy(adversary), Toy(adversary)
    _, history = run(burst, epochs=2, precision=precision)
    _, expected = run(single, epochs=2, precision=precision, callbacks=[Callback()])
    for one, other in zip(burst.parameters(), single.parameters(), strict=True):
        np.testing.assert_array_equal(one.detach(), other.detach())
    for name in losses(history):
        np.testing.assert_allclose(history[name], expected[name], rtol=1e-6)


def test_a_callback_sees_every_update():
    class Counting(Callback):
        seen = 0

        def on_train_batch_end(self, *args):
            self.seen += 1

    counting = Counting()
    run(Toy(), epochs=2, callbacks=[counting])
    assert counting.seen == 8


def test_a_callback_is_given_the_batches():
    class Reading(Callback):
        sizes = []

        def on_train_batch_start(self, trainer, plan, batch, batch_idx):
            self.sizes.append(batch[_keys.X].shape)

    run(Toy(), callbacks=Reading())
    assert Reading.sizes == [(8, 3)] * 4


def test_the_plan_runs_under_a_plain_trainer():
    module, expected = Toy(), Toy()
    plan = PerturbationTrainingPlan(module, lr=0.1, n_warmup_steps=0)
    Trainer(logger=False, enable_checkpointing=False, enable_model_summary=False, **QUIET).fit(plan, loader())
    run(expected)
    np.testing.assert_array_equal(module.weight.detach(), expected.weight.detach())


@pytest.mark.parametrize(
    ("given", "name"), [(None, "32-true"), (32, "32-true"), ("bf16", "bf16-mixed"), ("16-mixed", "16-mixed")]
)
def test_precisions_have_one_name(given, name):
    assert checked_precision(given) == name


@pytest.mark.parametrize("given", ["64-true", "bf16-true", "half", 64])
def test_precisions_that_change_the_weights_are_refused(given):
    with pytest.raises(ValueError, match=f"precision={given!r} is not offered; known: '32-true', 'bf16-mixed'"):
        checked_precision(given)


@pytest.mark.parametrize(
    ("arguments", "epochs"),
    [
        ({"check_val_every_n_epoch": 2}, [1, 3]),
        ({"check_val_every_n_epoch": 1, "num_sanity_val_steps": 2}, [0, 1, 2, 3]),
        ({"check_val_every_n_epoch": 1, "val_check_interval": 0.5}, [0, 1, 2, 3]),
        ({"check_val_every_n_epoch": None, "early_stopping": True}, [0, 1, 2, 3]),
    ],
)
def test_losses_of_validation_stand_at_their_epochs(arguments, epochs):
    plan = PerturbationTrainingPlan(Toy(), lr=0.1)
    history = fit(plan, loader(), loader(8), **{**QUIET, "max_epochs": 4}, **arguments)
    assert history["validation_loss"].index.tolist() == epochs
    assert history["train_loss"].index.tolist() == [0, 1, 2, 3]
    assert append_history(history, history)["validation_loss"].index.tolist() == [*epochs, *(4 + e for e in epochs)]


class Telling(Toy):
    """Tells the number of cells of a batch beside the loss."""

    def loss(self, tensors, inference_outputs, generative_outputs):
        found = super().loss(tensors, inference_outputs, generative_outputs)
        return LossOutput(
            loss=found.loss,
            reconstruction_loss=found.reconstruction_loss,
            extra_metrics={"n": torch.tensor(len(tensors[_keys.X]))},
        )


@pytest.mark.parametrize("observed", [{}, {"callbacks": [Callback()]}])
def test_what_a_module_tells_beside_its_loss_is_noted_as_a_mean_over_cells(observed):
    plan = PerturbationTrainingPlan(Telling(), lr=0.1)
    validation = CellLoader(CellStore(X, {}), np.arange(9), 6)
    arguments = {**QUIET, "max_epochs": 2, "check_val_every_n_epoch": 1, **observed}
    history = fit(plan, loader(), validation, **arguments)
    # batches of 8; of 6 and 3
    assert history["train_n"].iloc[:, 0].tolist() == [8, 8]
    assert history["validation_n"].iloc[:, 0].tolist() == [(6 * 6 + 3 * 3) / 9] * 2
    stopped = {**arguments, "max_epochs": 50, "early_stopping": True, "early_stopping_patience": 2}
    plan = PerturbationTrainingPlan(Telling(), lr=0.1)
    history = fit(plan, loader(), validation, **stopped, early_stopping_monitor="validation_n")
    assert len(history["validation_n"]) == 3


@pytest.mark.parametrize("callbacks", [None, Callback(), [Callback()]])
def test_early_stopping_stands_beside_callbacks(callbacks):
    plan = PerturbationTrainingPlan(Toy(), lr=0.0)
    more = {"early_stopping": True, "early_stopping_patience": 2, "callbacks": callbacks}
    history = fit(plan, loader(), loader(8), **{**QUIET, "max_epochs": 50}, **more)
    assert len(history["validation_loss"]) == 3


def test_a_folder_for_logs_is_written(tmp_path):
    plan = PerturbationTrainingPlan(Toy(), lr=0.1)
    fit(plan, loader(), None, **QUIET, log_save_dir=str(tmp_path))
    assert list(tmp_path.rglob("*"))


def test_a_thread_that_reads_ahead_has_ended_after_the_last_batch():
    """With updates one by one, and in bursts that divide the number of batches."""
    ended = []

    class Ending(CellLoader):
        def __iter__(self):
            try:
                yield from super().__iter__()
            finally:
                ended.append(True)

    class Looking(Callback):
        def on_train_epoch_end(self, *args):
            assert ended == [True]

    cells = Ending(CellStore(X, {}), np.arange(32), 8)
    plan = PerturbationTrainingPlan(Toy(), lr=0.1)
    fit(plan, cells, None, **QUIET, callbacks=[Looking()])
    ended.clear()
    fit(PerturbationTrainingPlan(Toy(), lr=0.1), Ending(CellStore(X, {}), np.arange(32), 1), None, **QUIET)
    assert ended == [True]


def test_gradients_are_freed():
    module = Toy(adversary=True)
    run(module)
    assert all(parameter.grad is None for parameter in module.parameters())


def test_an_epoch_is_timed_and_its_memory_measured():
    plan, history = run(Toy(), epochs=2)
    assert plan.n_updates == 8
    for name in ("cells_per_second", "epoch_seconds", "loading_seconds", "peak_memory"):
        assert len(history[name]) == 2
        assert (history[name] > 0).all(axis=None)
    np.testing.assert_allclose(
        history["cells_per_second"]["cells_per_second"] * history["epoch_seconds"]["epoch_seconds"], 32
    )
    assert (history["loading_seconds"]["loading_seconds"] <= history["epoch_seconds"]["epoch_seconds"]).all()


def test_validation_changes_no_weight_and_is_logged():
    module = Toy()
    _, history = run(module, epochs=2, validation=loader(8))
    alone = Toy()
    run(alone, epochs=2)
    np.testing.assert_array_equal(module.weight.detach(), alone.weight.detach())
    assert {key: len(frame) for key, frame in history.items()}["train_loss"] == 2


def test_a_loss_that_is_not_finite_stops_with_finite_weights():
    module = Toy(loss_nan_at=2)
    with pytest.raises(FloatingPointError, match="loss became nan at epoch 0, batch 2") as error:
        run(module)
    assert "smaller lr (now 0.1)" in str(error.value)
    assert torch.isfinite(module.weight).all()
    # running statistics that the same batch broke are restored as well
    assert torch.isfinite(module.running).all()
    assert "'running' is not finite" in str(error.value)


def test_weights_that_the_last_update_broke_are_restored():
    """No loss is computed after the last update of a run."""
    module = Toy(gradient_nan_at=3)
    with pytest.raises(FloatingPointError, match="weights became infinite or NaN at the end of the training.*'weight'"):
        run(module)
    assert torch.equal(module.weight.detach(), torch.full((3,), 0.5))


def test_weights_go_back_to_the_start_of_the_epoch(monkeypatch):
    monkeypatch.setattr(_plan, "_KEEP_EVERY", 4)
    module, finite = Toy(gradient_nan_at=5), Toy()
    run(finite)
    with pytest.raises(FloatingPointError, match="epoch 1, batch 2"):
        run(module, epochs=3)
    np.testing.assert_array_equal(module.weight.detach(), finite.weight.detach())


def test_weights_are_copied_after_some_updates_not_at_every_short_epoch(monkeypatch):
    """A failure in the third epoch then goes back to the start of the second."""
    monkeypatch.setattr(_plan, "_KEEP_EVERY", 5)
    module, finite = Toy(gradient_nan_at=13), Toy()
    run(finite, epochs=2)
    with pytest.raises(FloatingPointError, match="epoch 3, batch 2"):
        run(module, epochs=5)
    np.testing.assert_array_equal(module.weight.detach(), finite.weight.detach())


def test_an_interruption_is_a_keyboard_interrupt_and_ctrl_c_keeps_working():
    import signal

    before = signal.getsignal(signal.SIGINT)
    module = Toy(interrupt_at=2)
    with pytest.raises(KeyboardInterrupt):
        run(module)
    assert signal.getsignal(signal.SIGINT) is before
    assert torch.isfinite(module.weight).all()
    assert not torch.equal(module.weight.detach(), torch.full((3,), 0.5))


def test_an_exception_of_the_module_comes_through(monkeypatch):
    monkeypatch.setattr(Toy, "generative", lambda self, z, tensors: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        run(Toy())


@pytest.mark.parametrize(
    ("trains", "module_moves", "critic_moves", "logged"),
    [
        ("all", True, True, ["critic_loss", "train_loss"]),
        ("module", True, False, ["train_loss"]),
        ("critic", False, True, ["critic_loss"]),
    ],
)
def test_a_pass_trains_what_it_should(trains, module_moves, critic_moves, logged):
    module = Toy(adversary=True)
    weight, critic = module.weight.detach().clone(), module.critic.weight.detach().clone()
    plan, history = run(module, trains=trains, weight_decay=0.1)
    assert torch.equal(module.weight.detach(), weight) is not module_moves
    assert torch.equal(module.critic.weight.detach(), critic) is not critic_moves
    assert losses(history) == logged
    assert len(module.critic_batches) == 4 * critic_moves
    # the adversary has a say in the loss only where both are trained
    assert module.adversarial is (trains == "all")
    assert [row for row in module.snapshots if row[0]] == module.snapshots[: 4 * module_moves]


def test_a_pass_of_the_module_alone_is_that_of_a_module_without_adversary():
    module, alone = Toy(adversary=True), Toy()
    run(module, trains="module", n_warmup_steps=3)
    run(alone, n_warmup_steps=3)
    np.testing.assert_array_equal(module.weight.detach(), alone.weight.detach())


def test_a_pass_of_the_critic_alone_warms_up_and_skips_batches_as_any():
    module = Toy(adversary=True)
    before = module.critic.weight.detach().clone()
    run(module, trains="critic", n_warmup_steps=100, critic_every=4)
    # its only update has rate 0
    assert len(module.critic_batches) == 1
    assert torch.equal(module.critic.weight.detach(), before)


class Turns(Toy):
    """Notes in which order its two losses are asked for, and with which rates."""

    def __init__(self, turn="after", optimizer="adam"):
        super().__init__(adversary=True)
        self.critic_turn, self.critic_optimizer, self.turns = turn, optimizer, []

    def loss(self, *args):
        self.turns.append("module")
        return super().loss(*args)

    def critic_loss(self, tensors):
        self.turns.append("critic")
        return super().critic_loss(tensors)


@pytest.mark.parametrize(
    ("turn", "every", "expected"),
    [
        ("after", 1, "mcmcmcmc"),
        ("before", 1, "cmcmcmcm"),
        ("before", 3, "cmmmcm"),
        ("alone", 1, "mcmc"),
        ("alone", 2, "mccm"),
    ],
)
def test_the_adversary_has_its_turn(turn, every, expected):
    module = Turns(turn)
    _, history = run(module, critic_every=every)
    assert "".join(name[0] for name in module.turns) == expected
    # all cells count, also those that one of the two does not see
    rate, seconds = history["cells_per_second"].iloc[0, 0], history["epoch_seconds"].iloc[0, 0]
    assert rate * seconds == pytest.approx(32)


def test_turns_go_on_from_one_epoch_to_the_next():
    module = Turns("alone")
    plan = PerturbationTrainingPlan(module, n_warmup_steps=0)
    fit(plan, loader(24), None, **{**QUIET, "max_epochs": 2})
    assert module.turns == ["module", "critic"] * 3


def test_a_pass_of_one_batch_moves_the_module():
    module = Turns("alone")
    plan = PerturbationTrainingPlan(module, n_warmup_steps=0)
    history = fit(plan, loader(8), None, **QUIET)
    assert module.turns == ["module"]
    assert losses(history) == ["train_loss"]


def test_an_adversary_may_descend_without_moments():
    module = Turns("before", "sgd")
    before = [parameter.detach().clone() for parameter in module.critic.parameters()]
    weight = module.weight.detach().clone()
    plan = PerturbationTrainingPlan(module, lr=0.1, n_warmup_steps=0, critic_lr=0.01)
    fit(plan, loader(8), None, **QUIET)
    parameters = [parameter.clone().requires_grad_() for parameter in before]
    x = loader(8).store.batch(np.arange(8))[_keys.X]
    torch.square(torch.nn.functional.linear(x * weight, *parameters)).mean().backward()
    for parameter, moved in zip(parameters, module.critic.parameters(), strict=True):
        torch.testing.assert_close(moved.detach(), parameter.detach() - 0.01 * parameter.grad)


class Grouped(Toy):
    """Weights with rates and betas of their own."""

    def __init__(self, factor, betas):
        super().__init__()
        self.factor, self.betas = factor, betas

    def parameter_groups(self):
        return [{"params": [self.weight], "factor": self.factor, "betas": self.betas}, {"params": [self.idle]}]


def test_parts_of_a_module_have_rates_and_betas_of_their_own():
    module = Grouped(0.1, (0.5, 0.9))
    run(module, epochs=2)
    reference = torch.nn.Parameter(torch.full((3,), 0.5))
    adam = torch.optim.Adam([reference], lr=0.01, betas=(0.5, 0.9), eps=1e-8)
    for _ in range(2):
        for batch in loader():
            adam.zero_grad()
            torch.square(batch[_keys.X] * reference - 2 * batch[_keys.X]).mean().backward()
            adam.step()
    np.testing.assert_allclose(module.weight.detach(), reference.detach(), rtol=1e-5)


def test_the_rate_falls_in_steps():
    module = Toy()
    run(module, lr=1e-3, decay_every=2, decay_factor=0.1)
    steps = np.diff([weight[0].item() for weight in [*weights(module), module.weight.detach()]])
    np.testing.assert_allclose(steps, [1e-3, 1e-3, 1e-4, 1e-4], rtol=0.2)
    with pytest.raises(ValueError, match="decay_every=0 must be at least 1"):
        PerturbationTrainingPlan(Toy(), decay_every=0)


@pytest.mark.parametrize("keeps", [True, False])
def test_the_best_weights_are_kept_where_the_module_asks_for_it(keeps):
    module = Toy()
    module.keeps_best = keeps
    # a rate that jumps past the solution, which 8 updates come close to
    plan = PerturbationTrainingPlan(module, lr=0.4, n_warmup_steps=0)
    history = fit(plan, loader(), loader(8), **{**QUIET, "max_epochs": 6}, check_val_every_n_epoch=1)
    seen = history["validation_loss"]["validation_loss"]
    module.eval()
    batch = loader(8).store.batch(np.arange(8))
    now = module.loss(batch, {}, module.generative(batch[_keys.X], batch)).loss.item()
    assert seen.min() < seen.iloc[-1]
    assert now == pytest.approx(seen.min() if keeps else seen.iloc[-1], rel=1e-5)


def test_a_module_knows_its_epoch():
    module, epochs = Toy(), []
    loss = module.loss
    module.loss = lambda *args: (epochs.append(module.epoch), loss(*args))[1]
    run(module, epochs=2)
    assert epochs == [0] * 4 + [1] * 4


def test_a_failure_of_the_critic_keeps_finite_weights():
    module = Toy(adversary=True)
    module.critic_loss = lambda tensors: torch.square(module.critic(tensors[_keys.X])).mean() * torch.inf
    before = module.critic.weight.detach().clone()
    with pytest.raises(FloatingPointError, match="loss became inf at epoch 0, batch 0"):
        run(module, trains="critic")
    assert torch.equal(module.critic.weight.detach(), before)


def test_a_stage_is_named_by_its_pairing_or_given_whole():
    assert Stage.of("ot") == Stage("ot", "all", 1.0)
    stage = Stage("random", trains="critic", share=0.5)
    assert Stage.of(stage) is stage


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"pairing": "OT"}, "pairing='OT' is unknown; known: 'self', 'random', 'ot'"),
        ({"trains": "adversary"}, "trains='adversary' is unknown; known: 'all', 'module', 'critic'"),
        ({"share": 0}, "share=0 must be above 0"),
        ({"share": float("nan")}, "share=nan must be above 0"),
    ],
)
def test_stages_that_are_none_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        Stage(**arguments)


def test_the_pass_is_no_argument_of_the_user():
    with pytest.raises(TypeError, match="plan_kwargs has an unexpected key 'trains'"):
        check_train_kwargs({}, {"trains": "critic"})


def test_a_history_goes_on():
    one = {"train_loss": pd.DataFrame({"train_loss": [3.0, 2.0]}, index=pd.RangeIndex(2, name="epoch"))}
    two = {key: frame - 1 for key, frame in one.items()} | {"validation_loss": pd.DataFrame({"validation_loss": [1.0]})}
    merged = append_history(append_history({}, one), two)
    assert merged["train_loss"]["train_loss"].tolist() == [3, 2, 2, 1]
    assert merged["train_loss"].index.tolist() == [0, 1, 2, 3]
    assert merged["validation_loss"].index.tolist() == [2]
    assert one["train_loss"]["train_loss"].tolist() == [3, 2]


def test_unknown_arguments_are_refused():
    check_train_kwargs({"enable_progress_bar": False, "logger": False, "gradient_clip_val": 1.0}, {"eps": 1e-3})
    with pytest.raises(TypeError, match=r"train\(\) got an unexpected keyword argument 'n_epochs'.*max_epochs"):
        check_train_kwargs({"n_epochs": 3}, None)
    with pytest.raises(TypeError, match="plan_kwargs has an unexpected key 'n_warmup'; did you mean 'n_warmup_steps'"):
        check_train_kwargs({}, {"n_warmup": 3})
    with pytest.raises(TypeError, match="plan_kwargs holds 'lr'; pass it to train"):
        check_train_kwargs({}, {"lr": 3})
