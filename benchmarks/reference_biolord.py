"""Biolord against the published network (nitzanlab/biolord), weights copied, float64.

Run: python benchmarks/reference_biolord.py [folder of a checkout of nitzanlab/biolord]
Prints the largest difference of means, variances and losses in evaluation mode, for "normal" and for counts, with a given
perturbation embedding and a covariate; exits with 1 if one is above 1e-5. Without a folder an installed `biolord` is taken.
Where the reference is absent it says so and compares nothing; tests/model/test_biolord.py has the equations re-stated.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import torch

from multipert.model._biolord import BiolordModule
from multipert.nn._attributevector import AttributeVector

LIMIT = 1e-5
N_CELLS, N_VARS, N_FEATURES, N_CONTEXTS, N_LATENT = 30, 120, 7, 3, 16


def reference_class(folder: str | None) -> type | None:
    """The reference's module, or None where it is not there."""
    if folder is None:
        spec = importlib.util.find_spec("biolord")
        if spec is None or spec.origin is None:
            return None
        path = Path(spec.origin).parent
    else:
        path = Path(folder) / "src" / "biolord"
    if not (path / "_module.py").exists():
        return None
    # the package's own __init__ asks for the version of an installed package
    package = ModuleType("biolord")
    package.__path__ = [str(path)]
    sys.modules["biolord"] = package
    return importlib.import_module("biolord._module").BiolordModule


def disturb(module: torch.nn.Module) -> None:
    """Running statistics and scales that are not those of the start."""
    for norm in (part for part in module.modules() if isinstance(part, torch.nn.BatchNorm1d)):
        norm.running_mean.normal_()
        norm.running_var.uniform_(0.5, 2.0)
        torch.nn.init.normal_(norm.weight)
        torch.nn.init.normal_(norm.bias)


def copy_weights(source: torch.nn.Module, target: torch.nn.Module) -> None:
    """Weights in the order in which both define their layers."""
    given, own = source.state_dict(), target.state_dict()
    if [value.shape for value in given.values()] != [value.shape for value in own.values()]:
        raise ValueError("The two networks do not have the same layers.")
    target.load_state_dict(dict(zip(own, given.values(), strict=True)))


def compare(cls: type, likelihood: str) -> float:
    """The largest difference between the two networks."""
    theirs = cls(
        n_genes=N_VARS,
        n_samples=N_CELLS,
        x_loc="X",
        ordered_attributes_map={"features": 1 + N_FEATURES},
        categorical_attributes_map={"context": {str(i): i for i in range(N_CONTEXTS)}},
        n_latent=N_LATENT,
        gene_likelihood=likelihood,
        decoder_width=48,
        decoder_depth=3,
        attribute_nn_width=24,
    ).double()
    disturb(theirs)
    perturbation = AttributeVector(5, N_FEATURES, False, n_categorical=4, n_ordered=16, hidden=(24,), dropout_rate=0.1)
    perturbation.give(torch.randn(5, N_FEATURES))
    ours = BiolordModule(
        N_VARS,
        (N_CONTEXTS,),
        perturbation,
        (48, 48, 48),
        N_LATENT,
        n_categorical=4,
        unknown="free",
        likelihood=likelihood,
        standardise=False,
        batch_norm=True,
        dropout_rate=0.1,
        noise=0.1,
        code_penalty=10.0,
        reconstruction_penalty=100.0,
        attribute_lr_factor=1.0,
        n_code_steps=1,
    ).double()
    copy_weights(theirs.ordered_networks["features"], ours.perturbation.network)
    copy_weights(theirs.categorical_embeddings["context"], ours.covariates[0])
    ours.code_rows = torch.arange(N_CELLS)
    ours.codes = torch.nn.Parameter(theirs.latent_codes.embedding.weight.detach().clone())
    if likelihood == "nb":
        copy_weights(theirs.decoder.px_decoder, ours.decoder)
        ours.head.share.load_state_dict(theirs.decoder.px_scale_decoder[0].state_dict())
        ours.head.log_dispersion.data = theirs.px_r.detach().clone()
    else:
        copy_weights(theirs.decoder.decoder, ours.decoder)
        ours.head.mean.load_state_dict(theirs.decoder.mean_decoder.state_dict())
        ours.head.log_variance.load_state_dict(theirs.decoder.var_decoder.state_dict())
    theirs.eval()
    ours.eval()
    rng = np.random.default_rng(0)
    counts = torch.from_numpy(rng.poisson(4.0, (N_CELLS, N_VARS)).astype(float))
    codes = torch.from_numpy(rng.integers(-1, 5, (N_CELLS, 1)))
    context = torch.from_numpy(rng.integers(0, N_CONTEXTS, (N_CELLS, 1)))
    size_factor = torch.from_numpy(rng.uniform(0.5, 2.0, N_CELLS))
    x = torch.log1p(size_factor[:, None] * counts)
    tensors = {"X": x, "perturbation": codes, "dose": (codes >= 0).double(), "context": context}
    tensors |= {"row": torch.arange(N_CELLS), "size_factor": size_factor}
    given = {"X": counts if likelihood == "nb" else x, "context": context, "ind_x": torch.arange(N_CELLS)[:, None]}
    given["features"] = ours.perturbation.table[codes[:, 0] + 1]
    with torch.no_grad():
        found = ours.inference(tensors)
        decoded = ours.generative(found["z"], tensors)
        inferred = theirs.inference(**theirs.get_inference_input(given))
        expected = theirs.generative(inferred["latent"], inferred["library"])
        losses = theirs.loss(given, inferred, expected)
        loss = (
            losses["reconstruction_loss"] + theirs.unknown_attribute_penalty * losses["unknown_attribute_penalty_loss"]
        )
        pairs = [(ours.loss(tensors, found, decoded).loss, loss)]
        if likelihood == "nb":
            pairs.append((decoded["mean"], expected["means"]))
        else:
            pairs += [(decoded["px"], expected["means"]), (decoded["variance"], expected["variances"])]
    return max(float(((one - other).abs() / other.abs().clamp(min=1)).max()) for one, other in pairs)


def main(arguments: list[str]) -> int:
    cls = reference_class(arguments[0] if arguments else None)
    if cls is None:
        print("The reference is absent: nothing was compared. Give the folder of a checkout of nitzanlab/biolord.")
        return 0
    worst = 0.0
    for likelihood in ("normal", "nb"):
        torch.manual_seed(0)
        difference = compare(cls, likelihood)
        worst = max(worst, difference)
        print(f"{likelihood}: {difference:.1e}")
    print(f"largest difference {worst:.1e} (limit {LIMIT:g})")
    return int(worst > LIMIT)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
