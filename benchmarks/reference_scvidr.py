"""ScVIDR against the reference's networks (BhattacharyaLab/scVIDR) and scikit-learn's regression, float64.

Run: python benchmarks/reference_scvidr.py [folder of a checkout of BhattacharyaLab/scVIDR]
Prints the largest difference of latent means and variances and of both decoders, weights copied, in evaluation mode, and that
of the predicted vectors from those of `LinearRegression`; exits with 1 if one is above 1e-6. Where the reference is absent it
says so and compares the regression only. The reference uses one hidden block twice where there are more than two, so
networks of two are compared.
"""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

import numpy as np
import torch
from reference_scgen import LIMIT, copy_weights, disturb
from sklearn.linear_model import LinearRegression

from multipert.model._scvidr import regression_weights
from multipert.nn import VAEDecoder, VAEEncoder

SIZES = [(200, 64, 20), (150, 32, 10)]


def used(module: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Weights without those of the block that is registered a second time."""
    return {name: value for name, value in module.state_dict().items() if not name.startswith("fclayers.")}


def compare_networks(folder: str) -> float | None:
    """The largest difference between the networks; None where the reference is not there."""
    if not (Path(folder) / "vidr" / "modules.py").exists():
        return None
    sys.path.insert(0, str(Path(folder) / "vidr"))
    reference = importlib.import_module("modules")
    worst = 0.0
    for n_vars, n_hidden, n_latent in SIZES:
        hidden = (n_hidden, n_hidden)
        linear = torch.nn.Sequential(
            torch.nn.Linear(n_latent, n_vars), torch.nn.BatchNorm1d(n_vars, momentum=0.01, eps=0.001)
        )
        theirs = [
            reference.VIDREncoder(n_vars, n_latent, n_hidden, 2),
            reference.VIDRDecoder(n_vars, n_latent, n_hidden, 2),
            linear,
        ]
        ours = [
            VAEEncoder(n_vars, hidden, n_latent, 0.2),
            VAEDecoder(n_latent, hidden, n_vars, 0.2),
            VAEDecoder(n_latent, hidden, n_vars, 0.2, linear=True),
        ]
        for one, other in zip(theirs, ours, strict=True):
            disturb(one.double().eval())
            copy_weights(used(one), other.double().eval())
        x = torch.rand(40, n_vars, dtype=torch.float64) * 4
        with torch.no_grad():
            mean, variance, _ = theirs[0](x)
            found = ours[0](x)
            pairs = [
                (found[0], mean),
                (found[1], variance),
                *((o(mean), t(mean)) for o, t in zip(ours[1:], theirs[1:], strict=True)),
            ]
        difference = max(float((one - other).abs().max()) for one, other in pairs)
        worst = max(worst, difference)
        print(f"{n_vars} genes, 2 hidden layers of {n_hidden}, {n_latent} latent: {difference:.1e}")
    return worst


def compare_regression() -> float:
    """The largest difference of predicted vectors, few contexts and many."""
    rng, worst = np.random.default_rng(0), 0.0
    for n_contexts, n_latent in [(3, 100), (6, 100), (30, 10)]:
        control, delta, target = (rng.normal(size=(n, n_latent)) for n in (n_contexts, n_contexts, 2))
        expected = LinearRegression().fit(control, delta).predict(target)
        worst = max(worst, float(np.abs(regression_weights(control, target, 0.0) @ delta - expected).max()))
    print(f"regression on 3, 6 and 30 contexts: {worst:.1e}")
    return worst


def main(arguments: list[str]) -> int:
    torch.manual_seed(0)
    differences = [compare_regression(), compare_networks(arguments[0]) if arguments else None]
    if differences[1] is None:
        print(
            "The reference is absent: no network was compared. Give the folder of a checkout of BhattacharyaLab/scVIDR."
        )
    worst = max(difference for difference in differences if difference is not None)
    print(f"largest difference {worst:.1e} (limit {LIMIT:g})")
    return int(worst > LIMIT)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
