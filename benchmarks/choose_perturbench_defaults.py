"""Which schedules and settings the defaults of PerturBench's models take, chosen without any test cell.

Four settings, in each of which groups of TRAINING cells are held out and scored:
"norman": `norman19_subset` without its five test doubles; two other doubles whose parts stand in other combinations are held
out, and 20 cells of every other perturbation ("norman cells" scores these).
"simulated": a screen of combinations drawn with another seed than the frozen one; half of its pairs of each kind in the
second context, against true means.
"transfer": a small screen of single perturbations in five contexts, drawn with another seed than the frozen one; all
perturbed cells of the second context, against true means.
"kang": the perturbed CD8T cells of `kang18_scgen_valid`, the perturbed B cells being removed as test cells.

Run: python benchmarks/choose_perturbench_defaults.py [--models CPA GEARS] [--settings norman] [--jobs 2]
Every training leaves a record in build/choose_perturbench, so that the run may be stopped and goes on. Writes
benchmarks/results/choose_perturbench.csv: for each choice the correlation of the change (r), the error of the mean over
that of no change (e), the cosine of the log fold change (c; older records lack it) and the processor seconds of one thread (s).
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
import time
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import anndata as ad
import numpy as np
import pandas as pd
from _kang import DATA, RESULTS
from _records import run_all, write

if TYPE_CHECKING:
    from collections.abc import Iterator

RECORDS = Path(__file__).resolve().parents[1] / "build" / "choose_perturbench"
QUIET = {"accelerator": "cpu", "enable_progress_bar": False, "enable_model_summary": False, "logger": False}
HELD_DOUBLES = ("CNN1+MAPK1", "PTPN12+SAMD1")
DEFAULT: dict[str, Any] = {}
# what a preset of the choice has in place of what the default has
CHOICES: dict[str, dict[str, dict[str, Any]]] = {
    "Additive": {"default": DEFAULT},
    "ContextShift": {"default": DEFAULT},
    "GEARS": {
        "default": DEFAULT,
        "fourth power": {"gamma": 2.0},
        "batches of 32, 1,000 updates": {
            "batch_size": 32,
            "n_updates": 1000,
            "plan_kwargs": {"n_warmup_steps": 0, "decay_every": 250, "decay_factor": 0.5},
        },
    },
    "CPA": {
        "default": DEFAULT,
        "adversary 30": {"adversary_weight": 30.0},
        "adversary 30, embeddings start at 1, slow": {
            "adversary_weight": 30.0,
            "embedding_start": 1.0,
            "embedding_lr_factor": 1.0,
        },
        "adversary 30, batch norm": {"adversary_weight": 30.0, "norm": "batch", "decoder_norm": "batch"},
        "no adversary": {"adversary": False},
        "1,000 updates": {"n_updates": 1000},
        "500 updates": {"n_updates": 500},
    },
    "SAMSVAE": {
        "default": DEFAULT,
        "simplified": {"preset": "simplified"},
        "mean field": {"mean_field_encoder": True},
        "1,000 updates": {"n_updates": 1000},
    },
    "Biolord": {
        "default": DEFAULT,
        "units of the data": {"standardise": False},
        "free codes": {"unknown": "free"},
        "no codes": {"unknown": "none"},
        "500 updates": {"n_updates": 500},
    },
    "LatentAdditive": {
        "default": DEFAULT,
        "300 updates, dropout .1": {"n_updates": 300, "dropout_rate": 0.1},
        "300 updates, dropout .5": {"n_updates": 300, "dropout_rate": 0.5},
        "500 updates, dropout .1": {"dropout_rate": 0.1},
        "750 updates": {"n_updates": 750},
        "750 updates, dropout .5": {"n_updates": 750, "dropout_rate": 0.5},
        "1,500 updates, dropout .1": {"n_updates": 1500, "dropout_rate": 0.1},
        "1,500 updates": {"n_updates": 1500},
        "1,500 updates, dropout .5": {"n_updates": 1500, "dropout_rate": 0.5},
        "1,500 updates, dropout .7": {"n_updates": 1500, "dropout_rate": 0.7},
        "1,500 updates, dropout .1, decay 1e-3": {"n_updates": 1500, "dropout_rate": 0.1, "weight_decay": 1e-3},
    },
    "LatentAdditiveOT": {
        "default": DEFAULT,
        "300 updates, dropout .1": {"n_updates": 300, "dropout_rate": 0.1},
        "750 updates, dropout .5": {"n_updates": 750, "dropout_rate": 0.5},
        "1,500 updates, dropout .1": {"n_updates": 1500, "dropout_rate": 0.1},
        "1,500 updates, dropout .5": {"n_updates": 1500, "dropout_rate": 0.5},
    },
    "LinearAdditive": {"default": DEFAULT, "identity": {"output_activation": "identity"}},
    "DecoderOnly": {"default": DEFAULT, "500 updates": {"n_updates": 500}, "2,000 updates": {"n_updates": 2000}},
}
SKIPPED = {("Additive", "norman"), ("ContextShift", "norman"), ("ContextShift", "simulated")}
SETTINGS = ("norman", "simulated", "transfer", "kang")


def canonical(label: str) -> str:
    """A combination's parts in the order that predictions name them in."""
    return "+".join(sorted(label.split("+")))


def norman() -> tuple[ad.AnnData, dict[str, Any]]:
    """Without the test doubles; two doubles and 20 cells of each other perturbation are held out."""
    adata = ad.read_h5ad(DATA / "norman19_subset.h5ad")
    labels = adata.obs["perturbation"].astype(str).map(canonical)
    known = set(labels)
    test = {label for label in known if "+" in label and set(label.split("+")) <= known}
    adata.obs["perturbation"] = labels
    adata = adata[~labels.isin(test).to_numpy()].copy()
    labels = adata.obs["perturbation"].astype(str)
    order = np.random.default_rng(0).permutation(adata.n_obs)
    first = labels.iloc[order].groupby(labels.iloc[order]).cumcount().reindex(adata.obs_names) < 20
    held = labels.isin(HELD_DOUBLES) | (first & (labels != "control"))
    adata.obs["split"] = np.where(held, "test", "train")
    return adata, {}


def simulated() -> tuple[ad.AnnData, dict[str, Any]]:
    """A screen as the frozen one, of another seed; half of the pairs of each kind are held out in the second context."""
    from synergy import with_split

    import multipert as mp
    from multipert.datasets._screens import SCREENS

    adata = mp.datasets.simulate(**{**SCREENS["combinations"], "seed": 103})
    with_split(adata, 1)
    return adata, {"context_key": "context"}


def transfer() -> tuple[ad.AnnData, dict[str, Any]]:
    """A small screen of another seed than the frozen one; the second context has control cells only."""
    import multipert as mp
    from multipert.datasets._screens import SCREENS

    adata = mp.datasets.simulate(**{**SCREENS["small"], "seed": 103})
    adata.obs["split"] = mp.splits.context_transfer(adata, "context_2", context_key="context")
    return adata, {"context_key": "context"}


def kang() -> tuple[ad.AnnData, dict[str, Any]]:
    """The perturbed B cells are removed, the perturbed CD8T cells held out."""
    import multipert as mp

    adata = ad.read_h5ad(DATA / "kang18_scgen_valid.h5ad")
    removed = (adata.obs["perturbation"] != "control") & (adata.obs["cell_type"] == "B")
    adata = adata[~removed.to_numpy()].copy()
    adata.obs["split"] = mp.splits.context_transfer(adata, "CD8T", context_key="cell_type")
    return adata, {"context_key": "cell_type"}


def mean_of(adata: ad.AnnData, keep: np.ndarray) -> np.ndarray:
    return np.asarray(adata.X[np.flatnonzero(keep)].mean(axis=0), dtype=np.float64).ravel()


def truths(setting: str, adata: ad.AnnData) -> Iterator[tuple[str, str, np.ndarray, np.ndarray]]:
    """What is scored: the group's name, its label, its mean and the mean of its control cells."""
    from synergy import pairs_of, true_change

    labels, test = adata.obs["perturbation"].astype(str), (adata.obs["split"] == "test").to_numpy()
    is_control = (labels == "control").to_numpy()
    if setting in ("simulated", "transfer"):
        control = adata[is_control & (adata.obs["context"] == "context_2").to_numpy()].copy()
        base = np.asarray(control.X.mean(axis=0)).ravel()
        groups = (
            pairs_of(adata).map("simulated {}".format)
            if setting == "simulated"
            else dict.fromkeys(labels[test], setting)
        )
        for label, group in groups.items():
            if label in set(labels[test]):
                yield group, str(label), base + true_change(control, str(label)), base
        return
    here = (adata.obs["cell_type"] == "CD8T").to_numpy() if setting == "kang" else np.ones(adata.n_obs, dtype=bool)
    base = mean_of(adata, is_control & here)
    for label in sorted(set(labels[test])):
        group = "norman cells" if setting == "norman" and label not in HELD_DOUBLES else setting
        yield group, label, mean_of(adata, test & (labels == label).to_numpy()), base


def one(job: tuple[str, str, str, int], deadline: float) -> str:
    """Train one choice in one setting and record its scores."""
    name, choice, setting, seed = job
    path = record(job)
    if path.exists():
        return "is there"
    if time.time() > deadline:
        return "left for another run"
    import torch

    import multipert as mp

    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    adata, setup = {"norman": norman, "simulated": simulated, "transfer": transfer, "kang": kang}[setting]()
    cls = getattr(mp.model, name)
    chosen = CHOICES[name][choice]
    preset = {**cls.presets.get("default", {}), **cls.presets.get(chosen.get("preset", ""), {}), **chosen}
    preset.pop("preset", None)
    cls.presets = {**cls.presets, "choice": preset}
    cls.setup_anndata(adata, **setup)
    start = time.process_time()
    model = cls(adata, preset="choice") if cls.presets.get("default") else cls(adata)
    model.train(split_key="split", seed=seed, **QUIET)
    seconds = time.process_time() - start
    wanted = list(truths(setting, adata))
    found = model.predict(
        perturbation=[label for _, label, _, _ in wanted],
        context={"norman": None, "simulated": "context_2", "transfer": "context_2", "kang": "CD8T"}[setting],
        returns="mean",
        realise="residual" if model.tags.output == "cell" else "plain",
    )
    means = dict(zip(found.obs["perturbation"].astype(str), np.asarray(found.X, dtype=np.float64), strict=True))
    rows = []
    for group, label, mean, base in wanted:
        change, true = means[label] - base, mean - base
        r = float(np.corrcoef(change, true)[0, 1]) if change.std() > 1e-9 else 0.0
        e = float(np.sqrt(np.square(change - true).mean() / np.square(true).mean()))
        c = mp.metrics.cosine_logfc(means[label][None], mean[None], base[None])
        rows.append(
            {"model": name, "choice": choice, "group": group, "seed": seed, "r": r, "e": e, "c": c, "s": seconds}
        )
    table = pd.DataFrame(rows)
    write(table, path)
    means = table.groupby("group")[["r", "e", "c"]].mean().round(3)
    return " ".join(f"{group} r {row.r} e {row.e} c {row.c};" for group, row in means.iterrows()) + f" {seconds:.0f} s"


def record(job: tuple[str, str, str, int]) -> Path:
    """A file for what was trained: its name tells the arguments."""
    name, choice, setting, seed = job
    digest = hashlib.sha256(json.dumps(CHOICES[name][choice], sort_keys=True).encode()).hexdigest()[:10]
    return RECORDS / f"{name}-{setting}-{seed}-{digest}.csv"


def main() -> int:
    """Run what has no record yet and write the table of all choices."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=list(CHOICES), choices=list(CHOICES))
    parser.add_argument("--settings", nargs="+", default=list(SETTINGS), choices=SETTINGS)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--minutes", type=float, default=1e6, help="nothing new is begun after these")
    args = parser.parse_args()
    jobs = [
        (m, choice, s, args.seed)
        for m in args.models
        for choice in CHOICES[m]
        for s in args.settings
        if (m, s) not in SKIPPED
    ]
    n_failed = run_all(one, jobs, args.jobs, args.minutes)
    files = [
        (job, record(job))
        for job in [(m, choice, s, args.seed) for m in CHOICES for choice in CHOICES[m] for s in SETTINGS]
    ]
    rows = [pd.read_csv(path).assign(choice=job[1]) for job, path in files if path.exists()]
    table = pd.concat(rows).pivot_table(
        index=["model", "choice"], columns="group", values=["r", "e", "c"], aggfunc="mean", sort=False
    )
    table.columns = [f"{score} {group}" for score, group in table.columns]
    table["s"] = pd.concat(rows).groupby(["model", "choice"])["s"].max()
    table.round(3).to_csv(RESULTS / "choose_perturbench.csv")
    print(table.round(3).to_string())
    return min(n_failed, 1)


if __name__ == "__main__":
    sys.exit(main())
