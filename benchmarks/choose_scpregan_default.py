"""The schedule and weights of ScPreGAN, chosen on held-out TRAINING contexts only, and what its parts do.

The perturbed cells of a test context are removed altogether and another context is held out in its place; its scores along
the training decide. Test contexts are never scored. Numbers of updates are those of "ac", half of them steps of the
generators; "wgan" makes three times as many, for as many steps of the generators.

Run: python benchmarks/choose_scpregan_default.py   (about 20 minutes of one core)
Writes benchmarks/results/choose_scpregan_default.csv and, means over contexts and seeds, _short.csv. Seconds are processor
time of the training.
"""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING, Any, NamedTuple

import pandas as pd
import torch
from _kang import RESULTS, read
from lightning.pytorch.callbacks import Callback

import multipert as mp

if TYPE_CHECKING:
    from anndata import AnnData

FILE, KEY = "kang18_scgen_valid", "cell_type"
# training context that is held out and scored: test context whose perturbed cells are removed
PAIRS = {"CD8T": "B", "Dendritic": "FCGR3A+Mono"}
METRICS = {
    "r2_pearson_bootstrap": "R2",
    "pearson_delta": "delta",
    "edistance_ratio_joint": "E",
    "edistance_ratio": "E train",
    "variance_ratio": "variance",
}


class Choice(NamedTuple):
    """Arguments of the model, numbers of updates after which it is scored, and whether contexts are set up."""

    arguments: dict[str, Any]
    points: tuple[int, ...] = (400,)
    seeds: tuple[int, ...] = (0,)
    contexts: bool = True


CHOICES = {
    "encoding .3, start at mean": Choice({"encoding_weight": 0.3, "start_at_mean": True}, (200, 400, 800), (0, 1)),
    "encoding .3, random start": Choice({"encoding_weight": 0.3, "start_at_mean": False}, (200, 400, 800), (0, 1)),
    "encoding .1, start at mean": Choice({"encoding_weight": 0.1, "start_at_mean": True}, (400, 800)),
    "encoding 1, random start": Choice({"encoding_weight": 1.0, "start_at_mean": False}, (400, 800)),
    "without adversary": Choice({"adversary_weight": 0.0}),
    "mask_unseen_contexts=False": Choice({"mask_unseen_contexts": False}),
    "variant='wgan'": Choice({"variant": "wgan"}),
}


class Snapshots(Callback):
    """Copies of the weights after some numbers of updates, and the processor seconds until then."""

    def __init__(self, points: tuple[int, ...]) -> None:
        self.states: dict[int, dict[str, torch.Tensor]] = {}
        self.seconds: dict[int, float] = {}
        self._points, self._n_updates, self._start = points, 0, time.process_time()

    def on_train_batch_end(self, trainer, plan, outputs, batch, batch_idx) -> None:
        self._n_updates += 1
        if self._n_updates in self._points:
            self.seconds[self._n_updates] = time.process_time() - self._start
            self.states[self._n_updates] = {
                name: value.detach().clone()
                for name, value in plan.module.state_dict().items()
                if name not in plan.module.fitted
            }


def cells(held: str) -> AnnData:
    """The file without the perturbed cells of the test context, and its split."""
    adata = read(FILE)
    removed = (adata.obs["perturbation"] != "control") & (adata.obs[KEY] == PAIRS[held])
    adata = adata[~removed.to_numpy()].copy()
    adata.obs["split"] = mp.splits.context_transfer(adata, held, context_key=KEY)
    return adata


def score_along(adata: AnnData, held: str, choice: Choice, seed: int) -> list[dict]:
    """Scores after each number of updates, both realisations."""
    mp.model.ScPreGAN.setup_anndata(adata, context_key=KEY if choice.contexts else None)
    model = mp.model.ScPreGAN(adata, **choice.arguments)
    times = 1 + model._preset["plan_kwargs"]["critic_every"]
    snapshots = Snapshots(tuple(point * times // 2 for point in choice.points))
    is_train = (adata.obs["split"] == "train").to_numpy()
    is_control = (adata.obs["perturbation"] == "control").to_numpy()
    n_batches = int((is_train & ~is_control).sum()) // model._preset["batch_size"]
    model.train(
        -(-choice.points[-1] * times // 2 // n_batches),
        split_key="split",
        seed=seed,
        accelerator="cpu",
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[snapshots],
    )
    here = (adata.obs[KEY] == held).to_numpy()
    rows = []
    for n_updates, state in snapshots.states.items():
        model.module.load_state_dict(state, strict=False)
        some = {"indices": here & is_control}
        table = mp.metrics.evaluate(
            {realise: model.predict(realise=realise, **some) for realise in ("plain", "residual")},
            adata[here & ~is_control],
            adata[here & is_control],
            by=("perturbation", KEY),
            metrics=list(METRICS),
            training=adata[is_train],
            references=["no_change", "mean_shift"],
        )
        wide = table.pivot_table(index="predictor", columns="metric", values="value")
        common = {"held": held, "seed": seed, "n_updates": n_updates * 2 // times, "s": snapshots.seconds[n_updates]}
        rows += [{**common, "realise": name, **scores} for name, scores in wide.to_dict("index").items()]
    return rows


def main() -> int:
    """Score all choices and write the tables."""
    torch.set_num_threads(1)
    rows: list[dict] = []
    for name, choice in CHOICES.items():
        for held in PAIRS:
            adata = cells(held)
            for seed in choice.seeds:
                rows += [{"choice": name, **row} for row in score_along(adata, held, choice, seed)]
        print(pd.DataFrame(rows).query("choice == @name").round(3).to_string(), flush=True)
    table = pd.DataFrame(rows)[["choice", "held", "seed", "n_updates", "realise", "s", *METRICS]]
    RESULTS.mkdir(exist_ok=True)
    table.to_csv(RESULTS / "choose_scpregan_default.csv", index=False, float_format="%.4f")
    table = table.rename(columns=METRICS)
    references = table["realise"].isin(["no_change", "mean_shift"])
    first = table["seed"].eq(0) & table["choice"].eq(next(iter(CHOICES))) & table["n_updates"].eq(400)
    table = table[~references | first]
    table.loc[references, ["choice", "n_updates", "s"]] = ["reference", pd.NA, pd.NA]
    keys = ["choice", "n_updates", "realise"]
    by_context = table.groupby([*keys, "held"], sort=False, dropna=False)[[*METRICS.values(), "s"]].mean()
    short = by_context.groupby(keys, sort=False, dropna=False).mean()
    for held in reversed(PAIRS):
        short.insert(0, f"R2 {held}", by_context["R2"].xs(held, level="held"))
    short = short.round({**dict.fromkeys(short, 3), "s": 0})
    short.to_csv(RESULTS / "choose_scpregan_default_short.csv")
    print(short.to_string())
    return 0


if __name__ == "__main__":
    sys.exit(main())
