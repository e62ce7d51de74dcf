"""ScGen against the reference's network (theislab/scgen 2.1), weights copied, float64.

Run: python benchmarks/reference_scgen.py [folder of a checkout of theislab/scgen]
Prints the largest difference of latent means and variances, decoded expression and loss in evaluation mode; exits with 1 if
one is above 1e-6. Without a folder an installed `scgen` is taken. Where the reference is absent it says so and compares
nothing; tests/nn/test_vae.py has the equations re-stated.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import torch

from multipert.model._scgen import ScGenModule

LIMIT = 1e-6
SIZES = [(200, 64, 2, 20), (150, 32, 3, 10)]


def reference_class(folder: str | None) -> type | None:
    """The reference's module, or None where it is not there."""
    if folder is None:
        spec = importlib.util.find_spec("scgen")
        if spec is None or spec.origin is None:
            return None
        path = Path(spec.origin).parent
    else:
        path = Path(folder) / "scgen"
    if not (path / "_scgenvae.py").exists():
        return None
    # the package's own __init__ asks for the version of an installed package
    package = ModuleType("scgen")
    package.__path__ = [str(path)]
    sys.modules["scgen"] = package
    return importlib.import_module("scgen._scgenvae").SCGENVAE


def disturb(module: torch.nn.Module) -> None:
    """Running statistics and scales that are not those of the start."""
    for norm in (part for part in module.modules() if isinstance(part, torch.nn.BatchNorm1d)):
        norm.running_mean.normal_()
        norm.running_var.uniform_(0.5, 2.0)
        torch.nn.init.normal_(norm.weight)
        torch.nn.init.normal_(norm.bias)


def copy_weights(source: dict[str, torch.Tensor], target: torch.nn.Module) -> None:
    """Weights in the order in which both define their layers."""
    own = target.state_dict()
    if [value.shape for value in source.values()] != [value.shape for value in own.values()]:
        raise ValueError("The two networks do not have the same layers.")
    target.load_state_dict(dict(zip(own, source.values(), strict=True)))


def compare(cls: type, n_vars: int, n_hidden: int, n_layers: int, n_latent: int) -> float:
    """The largest difference between the two networks."""
    theirs = cls(n_vars, n_hidden, n_latent, n_layers, 0.2).double()
    disturb(theirs)
    ours = ScGenModule(
        n_vars, (n_hidden,) * n_layers, n_latent, 0.2, theirs.kl_weight, delta_contexts=None, legacy_delta=False
    ).double()
    copy_weights(theirs.z_encoder.state_dict(), ours.encoder)
    copy_weights(theirs.decoder.state_dict(), ours.decoder)
    theirs.eval()
    ours.eval()
    tensors = {"X": torch.rand(40, n_vars, dtype=torch.float64) * 4}
    with torch.no_grad():
        found, expected = ours.inference(tensors), theirs.inference(tensors["X"])
        generated, expected_generated = ours.generative(found["mean"], {}), theirs.generative(expected["qz_m"])
        pairs = [
            (found["mean"], expected["qz_m"]),
            (found["variance"], expected["qz_v"]),
            (generated["px"], expected_generated["px"]),
            (ours.loss(tensors, found, generated).loss, theirs.loss(tensors, expected, expected_generated).loss),
        ]
    return max(float((one - other).abs().max()) for one, other in pairs)


def main(arguments: list[str]) -> int:
    cls = reference_class(arguments[0] if arguments else None)
    if cls is None:
        print("The reference is absent: nothing was compared. Give the folder of a checkout of theislab/scgen.")
        return 0
    torch.manual_seed(0)
    worst = 0.0
    for n_vars, n_hidden, n_layers, n_latent in SIZES:
        difference = compare(cls, n_vars, n_hidden, n_layers, n_latent)
        worst = max(worst, difference)
        print(f"{n_vars} genes, {n_layers} hidden layers of {n_hidden}, {n_latent} latent: {difference:.1e}")
    print(f"largest difference {worst:.1e} (limit {LIMIT:g})")
    return int(worst > LIMIT)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
