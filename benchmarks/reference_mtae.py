"""MTAe against a plain re-statement of the published equations (Katzalis 2025), weights copied, float64.

Run: python benchmarks/reference_mtae.py
Prints the largest difference of outputs in evaluation mode and the parameter counts; exits with 1 if either is wrong.
"""

from __future__ import annotations

import sys

import torch

from multipert.model._mtae import MultiTaskModule

SLOPE, EPS = 0.01, 1e-5
COUNTS = {(6998, 1, ()): 3_658_710, (5000, 8, (16,)): 2_641_064}


def leaky(x: torch.Tensor) -> torch.Tensor:
    return torch.maximum(x, torch.zeros(())) + SLOPE * torch.minimum(x, torch.zeros(()))


def affine(w: dict, name: str, x: torch.Tensor) -> torch.Tensor:
    return x @ w[f"{name}.weight"].T + w[f"{name}.bias"]


def batch_norm(w: dict, name: str, x: torch.Tensor) -> torch.Tensor:
    scaled = (x - w[f"{name}.running_mean"]) / torch.sqrt(w[f"{name}.running_var"] + EPS)
    return scaled * w[f"{name}.weight"] + w[f"{name}.bias"]


def restated(w: dict, x: torch.Tensor, one_hot: torch.Tensor, n_hidden: int, n_film: int) -> torch.Tensor:
    """Encoder, FiLM decoder and output layer, written out without a single layer class."""
    for i in range(n_hidden):
        x = leaky(batch_norm(w, f"encoder.hidden.{i}.1", affine(w, f"encoder.hidden.{i}.0", x)))
    z = leaky(affine(w, "encoder.latent", x))
    for i in range(n_hidden):
        code = one_hot
        for j in range(n_film):
            code = leaky(affine(w, f"decoder.films.{i}.trunk.{2 * j}", code))
        gamma, beta = (leaky(affine(w, f"decoder.films.{i}.{kind}", code)) for kind in ("scale", "shift"))
        z = leaky(gamma * batch_norm(w, f"decoder.norms.{i}", affine(w, f"decoder.linears.{i}", z)) + beta)
    return leaky(affine(w, "decoder.output", z))


def main() -> int:
    torch.manual_seed(0)
    worst, wrong = 0.0, 0
    for n_vars, n_perturbations, hidden, film in [
        (200, 1, (64,), ()),
        (300, 8, (64,), (16,)),
        (150, 3, (48, 32), (16,)),
    ]:
        module = MultiTaskModule(n_vars, n_perturbations, hidden, 24, film, 0.5, 0.2).double()
        for norm in (m for m in module.modules() if isinstance(m, torch.nn.BatchNorm1d)):
            norm.running_mean.normal_()
            norm.running_var.uniform_(0.5, 2.0)
            torch.nn.init.normal_(norm.weight)
            torch.nn.init.normal_(norm.bias)
        module.eval()
        x = torch.rand(40, n_vars, dtype=torch.float64) * 4
        codes = torch.randint(-1, n_perturbations, (40, 1))
        tensors = {"X": x, "perturbation": codes, "dose": (codes >= 0).double()}
        with torch.no_grad():
            ours = module.counterfactual(tensors)
            one_hot = torch.nn.functional.one_hot(codes[:, 0] + 1, n_perturbations + 1).double()
            theirs = restated(module.state_dict(), x, one_hot, len(hidden), len(film))
        difference = float((ours - theirs).abs().max())
        worst = max(worst, difference)
        print(f"{n_vars} genes, {n_perturbations} perturbations, hidden {hidden}, film {film}: {difference:.1e}")
    for (n_vars, n_perturbations, film), expected in COUNTS.items():
        module = MultiTaskModule(n_vars, n_perturbations, (256,), 128, film, 0.5, 0.2)
        found = sum(p.numel() for p in module.parameters())
        wrong += found != expected
        print(f"parameters at {n_vars} genes, {n_perturbations + 1} conditions: {found:,} (published {expected:,})")
    print(f"largest difference {worst:.1e} (limit 1e-6)")
    return int(worst > 1e-6 or wrong > 0)


if __name__ == "__main__":
    sys.exit(main())
