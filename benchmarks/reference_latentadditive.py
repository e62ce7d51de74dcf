"""LatentAdditive against the reference's network (altoslabs/perturbench), weights copied, float64.

Run: python benchmarks/reference_latentadditive.py [folder of a checkout of altoslabs/perturbench]
Prints the largest difference of decoded expression and loss in evaluation mode, with and without covariates and with a cell
embedding as the input; exits with 1 if one is above 1e-6. A checkout holds one of the two perceptrons, which is said. Without
a folder it says so and compares nothing; tests/model/test_latentadditive.py has the equations re-stated.
"""

from __future__ import annotations

import sys

import torch
from _perturbench_reference import copy_weights, datamodule, labels, largest, reference_class, variant_of

from multipert.model._latentadditive import LatentAdditiveModule

LIMIT = 1e-6
N_VARS, N_PERTURBATIONS, COVARIATES = 200, 12, (4, 3)
# layers, width, latent dimensions, covariates in encoder and decoder, width of a cell embedding
CASES = [(1, 64, 16, True, True, None), (3, 32, 8, True, False, None), (2, 48, 8, False, False, 20)]


def compare(
    cls: type, n_layers: int, n_hidden: int, n_latent: int, encoder: bool, decoder: bool, n_cell: int | None
) -> tuple[str, float]:
    """Which perceptron the reference has, and the largest difference between the two networks."""
    sizes = datamodule(N_VARS, N_PERTURBATIONS, n_cell or N_VARS, COVARIATES)
    theirs = cls(
        N_VARS,
        N_PERTURBATIONS,
        n_layers=n_layers,
        encoder_width=n_hidden,
        latent_dim=n_latent,
        dropout=0.1,
        inject_covariates_encoder=encoder,
        inject_covariates_decoder=decoder,
        datamodule=sizes,
    ).double()
    variant = variant_of(theirs.pert_encoder, n_layers)
    ours = LatentAdditiveModule(
        N_VARS,
        N_PERTURBATIONS,
        n_hidden,
        n_latent,
        n_layers,
        0.1,
        variant=variant,
        n_cell_embedding=n_cell,
        encoder_covariates=COVARIATES if encoder else (),
        decoder_covariates=COVARIATES if decoder else (),
    ).double()
    copy_weights(theirs.gene_encoder, ours.cell_encoder)
    copy_weights(theirs.pert_encoder, ours.perturbation_encoder)
    copy_weights(theirs.decoder, ours.decoder)
    theirs.eval()
    ours.eval()
    tensors, hot, one_hot = labels(40, N_VARS, N_PERTURBATIONS, COVARIATES)
    control = torch.rand(40, N_VARS, dtype=torch.float64) * 4
    tensors["X_control"] = control
    if n_cell is not None:
        control = torch.randn(40, n_cell, dtype=torch.float64)
        tensors["cell_embedding_control"] = control
    with torch.no_grad():
        expected = theirs(control, hot, one_hot)
        inferred, generated = ours(tensors, compute_loss=False)
        loss = torch.nn.functional.mse_loss(expected, tensors["X"])
        pairs = [(generated["px"], expected), (ours.loss(tensors, inferred, generated).loss, loss)]
    return variant, largest(pairs)


def main(arguments: list[str]) -> int:
    cls = reference_class(arguments[0] if arguments else None, "latent_additive", "LatentAdditive")
    if cls is None:
        print("The reference is absent: nothing was compared. Give the folder of a checkout of altoslabs/perturbench.")
        return 0
    torch.manual_seed(0)
    worst = 0.0
    for case in CASES:
        variant, difference = compare(cls, *case)
        worst = max(worst, difference)
        n_layers, n_hidden, n_latent, encoder, decoder, n_cell = case
        read = f"covariates in encoder {encoder}, in decoder {decoder}, cell embedding {n_cell}"
        print(f"{variant}, {n_layers} hidden layers of {n_hidden}, {n_latent} latent, {read}: {difference:.1e}")
    print(f"largest difference {worst:.1e} (limit {LIMIT:g})")
    return int(worst > LIMIT)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
