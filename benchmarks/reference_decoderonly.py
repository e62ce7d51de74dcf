"""DecoderOnly and LinearAdditive against the reference's networks (altoslabs/perturbench), weights copied, float64.

Run: python benchmarks/reference_decoderonly.py [folder of a checkout of altoslabs/perturbench]
Prints the largest difference of expression and loss, for every choice of inputs; exits with 1 if one is above 1e-6. Without a
folder it says so and compares nothing; tests/model/test_decoderonly.py and test_linearadditive.py have the equations re-stated.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import torch
from _perturbench_reference import copy_weights, datamodule, labels, largest, reference_class, variant_of

from multipert.model._decoderonly import DecoderOnlyModule
from multipert.model._linearadditive import LinearAdditiveModule

if TYPE_CHECKING:
    from multipert.nn._perceptron import OutputActivation

LIMIT = 1e-6
N_VARS, N_PERTURBATIONS, COVARIATES = 200, 12, (4, 3)
# layers, width, whether labels and covariates are read, softplus
CASES = [(1, 64, True, True, True), (3, 32, True, False, False), (5, 48, False, True, True)]


def differences(ours: DecoderOnlyModule | LinearAdditiveModule, theirs: torch.nn.Module) -> float:
    """The largest difference of expression and loss on random labels and cells."""
    tensors, hot, one_hot = labels(40, N_VARS, N_PERTURBATIONS, COVARIATES)
    tensors["X_control"] = torch.rand(40, N_VARS, dtype=torch.float64) * 4
    with torch.no_grad():
        expected = theirs(tensors["X_control"], hot, one_hot)
        inferred, generated = ours(tensors, compute_loss=False)
        loss = torch.nn.functional.mse_loss(expected, tensors["X"])
        return largest([(generated["px"], expected), (ours.loss(tensors, inferred, generated).loss, loss)])


def decoder_only(cls: type, n_layers: int, n_hidden: int, perturbations: bool, covariates: bool, softplus: bool) -> str:
    """What was compared, and the largest difference."""
    theirs = cls(
        N_VARS,
        N_PERTURBATIONS,
        n_layers=n_layers,
        encoder_width=n_hidden,
        softplus_output=softplus,
        use_covariates=covariates,
        use_perturbations=perturbations,
        datamodule=datamodule(N_VARS, N_PERTURBATIONS, N_VARS, COVARIATES),
    ).double()
    variant = variant_of(theirs.decoder, n_layers)
    ours = DecoderOnlyModule(
        N_VARS,
        N_PERTURBATIONS if perturbations else None,
        COVARIATES if covariates else (),
        n_hidden,
        n_layers,
        variant=variant,
        output="softplus" if softplus else "identity",
        train_on="cells",
    ).double()
    copy_weights(theirs.decoder, ours.decoder)
    found = differences(ours.eval(), theirs.eval())
    read = f"labels {perturbations}, covariates {covariates}, softplus {softplus}"
    return f"decoder, {variant}, {n_layers} hidden layers of {n_hidden}, {read}: {found:.1e}"


def linear(cls: type, covariates: bool, softplus: bool) -> str:
    """What was compared, and the largest difference."""
    theirs = cls(
        N_VARS,
        N_PERTURBATIONS,
        inject_covariates=covariates,
        softplus_output=softplus,
        datamodule=datamodule(N_VARS, N_PERTURBATIONS, N_VARS, COVARIATES),
    ).double()
    output: OutputActivation = "softplus" if softplus else "identity"
    ours = LinearAdditiveModule(N_VARS, N_PERTURBATIONS, COVARIATES if covariates else (), output=output).double()
    copy_weights(theirs.fc_pert, ours.shift)
    return f"linear, covariates {covariates}, softplus {softplus}: {differences(ours.eval(), theirs.eval()):.1e}"


def main(arguments: list[str]) -> int:
    folder = arguments[0] if arguments else None
    decoder = reference_class(folder, "decoder_only", "DecoderOnly")
    layer = reference_class(folder, "linear_additive", "LinearAdditive")
    if decoder is None or layer is None:
        print("The reference is absent: nothing was compared. Give the folder of a checkout of altoslabs/perturbench.")
        return 0
    torch.manual_seed(0)
    lines = [decoder_only(decoder, *case) for case in CASES]
    lines += [linear(layer, covariates, softplus) for covariates in (True, False) for softplus in (True, False)]
    print("\n".join(lines))
    worst = max(float(line.rsplit(": ")[-1]) for line in lines)
    print(f"largest difference {worst:.1e} (limit {LIMIT:g})")
    return int(worst > LIMIT)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
