"""CPA against the published package (theislab/cpa 0.8), weights copied, float64.

Run: python benchmarks/reference_cpa.py [folder of a checkout of theislab/cpa]
Prints, for each likelihood, the largest relative difference of basal states, latent vectors, decoded means, the reconstruction
loss and its gradients, and the adversary's loss and penalty; exits with 1 if one is above 1e-6. Its network and the loss of its
adversary are run; its data classes and its training loop need versions of scvi-tools and Lightning that Python 3.11 does not
have, and are not. Without a folder it says so and compares nothing; tests/model/test_cpa.py has the equations re-stated.

Three differences are on purpose, and are undone here: the published package gives control an embedding of its own (here set to
0), every combination a row of the adversary's last layer (here set to the sum of its parts' rows), and reads counts where this one reads
log-normalised expression with size factors.
"""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import nn

from multipert.model._cpa import CPAModule
from multipert.nn import multi_hot
from multipert.nn._adversary import gradient_penalty

LIMIT = 1e-6
N_VARS, N_PERTURBATIONS, N_CELLS, N_LATENT = 120, 5, 60, 8
COVARIATES = {"cell_type": 3, "donor": 2}
LIKELIHOODS = {"normal": "gauss", "nb": "nb", "zinb": "zinb"}
# codes of ours: -1 is control and padding
LABELS = torch.tensor([[-1, -1], [0, -1], [1, -1], [2, -1], [3, -1], [4, -1], [0, 2], [1, 4]])


def reference(folder: str | None) -> SimpleNamespace | None:
    """The reference's modules, or None where they are not there."""
    if folder is None or not (Path(folder) / "cpa" / "_module.py").exists():
        return None
    # the package's own __init__ imports what old versions of others have
    package = ModuleType("cpa")
    package.__path__ = [str(Path(folder) / "cpa")]
    sys.modules["cpa"] = package
    names = ("_utils", "_module", "_task")
    return SimpleNamespace(**{name[1:]: importlib.import_module(f"cpa.{name}") for name in names})


def disturb(module: nn.Module) -> None:
    """Running statistics, scales and curves that are not those of the start."""
    for part in module.modules():
        if isinstance(part, nn.BatchNorm1d):
            part.running_mean.normal_()
            part.running_var.uniform_(0.5, 2.0)
            nn.init.normal_(part.weight)
            nn.init.normal_(part.bias)


def copy(source: nn.Module, target: nn.Module) -> None:
    """Weights in the order in which both define their layers."""
    state, own = source.state_dict(), target.state_dict()
    if [value.shape for value in state.values()] != [value.shape for value in own.values()]:
        raise ValueError("The two networks do not have the same layers.")
    target.load_state_dict(dict(zip(own, state.values(), strict=True)))


def batches(counts: torch.Tensor) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor], torch.Tensor]:
    """One batch as ours and as theirs, and the number of each cell's label."""
    rng = np.random.default_rng(1)
    of_label = torch.from_numpy(
        np.concatenate([np.arange(len(LABELS)), rng.integers(0, len(LABELS), N_CELLS - len(LABELS))])
    )
    codes = LABELS[of_label]
    doses = torch.where(codes >= 0, torch.from_numpy(rng.uniform(0.1, 9, codes.shape)), 0.0)
    factor = 50 / counts.sum(1)
    covariates = {name: torch.from_numpy(rng.integers(0, size, N_CELLS)) for name, size in COVARIATES.items()}
    ours = {
        "X": torch.log1p(factor[:, None] * counts),
        "size_factor": factor,
        "perturbation": codes,
        "dose": doses,
        "extra_categorical_covs": torch.stack(list(covariates.values()), dim=1),
    }
    # padding is 0, control 1
    perts = torch.where(codes >= 0, codes + 2, 0)
    perts[of_label == 0, 0] = 1
    theirs = {"perts": perts, "perts_doses": doses + (perts == 1), "label": of_label[:, None]}
    return ours, {**theirs, **{name: value[:, None] for name, value in covariates.items()}}, of_label


def pair(cpa: SimpleNamespace, likelihood: str) -> tuple[CPAModule, Any]:
    """Both modules with the same weights."""
    theirs = cpa.module.CPAModule(
        N_VARS,
        N_PERTURBATIONS + 2,
        {name: {str(i): i for i in range(size)} for name, size in COVARIATES.items()},
        n_latent=N_LATENT,
        recon_loss=LIKELIHOODS[likelihood],
        n_hidden_encoder=24,
        n_hidden_decoder=18,
    ).double()
    disturb(theirs)
    with torch.no_grad():
        nn.init.normal_(theirs.pert_network.dosers.beta)
        nn.init.normal_(theirs.pert_network.dosers.bias)
        theirs.pert_network.pert_embedding.weight[1] = 0
    ours = CPAModule(
        N_VARS,
        N_PERTURBATIONS,
        tuple(COVARIATES.values()),
        hidden=(24,) * 3,
        decoder_hidden=(18,) * 3,
        n_latent=N_LATENT,
        likelihood=likelihood,
        dose_curve="logsigm",
        adversary_hidden=(16,) * 2,
    ).double()
    copy(theirs.encoder.network, ours.encoder)
    copy(theirs.encoder.z, ours.mean)
    if likelihood == "normal":
        copy(theirs.decoder.encoder, ours.decoder)
        copy(theirs.decoder.mean_encoder, ours.head.mean)
        copy(theirs.decoder.var_encoder, ours.head.log_variance)
    else:
        copy(theirs.decoder.px_decoder, ours.decoder)
        copy(theirs.decoder.px_scale_decoder[0], ours.head.share)
        ours.head.log_dispersion.data = theirs.px_r.data.clone()
        if likelihood == "zinb":
            copy(theirs.decoder.px_dropout_decoder, ours.head.dropout_logits)
    ours.perturbation.vectors.weight.data = theirs.pert_network.pert_embedding.weight.data[2:].clone()
    ours.perturbation.curve.slope.data = theirs.pert_network.dosers.beta.data[0, 2:].clone()
    ours.perturbation.curve.offset.data = theirs.pert_network.dosers.bias.data[0, 2:].clone()
    for name, table in zip(COVARIATES, ours.covariates, strict=True):
        copy(theirs.covars_embeddings[name], table)
    return ours.eval(), theirs.eval()


def relative(found: torch.Tensor, expected: torch.Tensor) -> float:
    """Largest difference, as a share of the largest value."""
    return float((found.detach() - expected.detach()).abs().max() / expected.detach().abs().max())


def of_network(cpa: SimpleNamespace, likelihood: str) -> float:
    """The largest difference between the two networks."""
    counts = torch.poisson(torch.rand(N_CELLS, N_VARS, generator=torch.Generator().manual_seed(0)) * 4).double()
    ours, theirs = pair(cpa, likelihood)
    tensors, their_tensors, _ = batches(counts)
    x = tensors["X"] if likelihood == "normal" else counts
    keys = cpa.utils.CPA_REGISTRY_KEYS
    keys.PERTURBATION_KEY = "label"
    their_tensors, _ = theirs.mixup_data({keys.X_KEY: x, **their_tensors})
    expected = theirs.inference(**theirs._get_inference_input(their_tensors))
    generated = theirs.generative(expected["z"], expected["library"])
    their_loss, _ = theirs.loss(their_tensors, expected, generated)
    found = ours.inference(tensors)
    decoded = ours.generative(found["z"], tensors)
    our_loss = ours.loss(tensors, found, decoded).loss
    # the reference predicts the mean of the negative binomial part where there are further zeros
    mean = decoded["px"] if likelihood == "normal" else decoded["mean"]
    their_loss.backward()
    our_loss.backward()
    pairs = [
        (found["z"], expected["z_basal"]),
        (ours.latents(tensors, found["z"])["full"], expected["z"]),
        (mean, generated["px"].loc if likelihood == "normal" else generated["px"].mu),
        (our_loss, their_loss),
        (ours.encoder[0][0].weight.grad, theirs.encoder.network.fc_layers[0][0].weight.grad),
        (ours.perturbation.vectors.weight.grad, theirs.pert_network.pert_embedding.weight.grad[2:]),
        (ours.perturbation.curve.slope.grad, theirs.pert_network.dosers.beta.grad[0, 2:]),
    ]
    return max(relative(*both) for both in pairs)


def of_adversary(cpa: SimpleNamespace) -> float:
    """The largest difference between the two adversaries."""
    from scvi.module import Classifier

    ours, _ = pair(cpa, "normal")
    adversary = ours.adversary
    if adversary is None:
        raise ValueError("The module has no adversary.")
    disturb(adversary)
    tensors, their_tensors, of_label = batches(torch.ones(N_CELLS, N_VARS).double())

    def classifier(network: nn.Module, n_labels: int) -> nn.Module:
        made = Classifier(N_LATENT, n_hidden=16, n_labels=n_labels, n_layers=2, logits=True).double()
        *hidden, last = list(network)
        copy(nn.Sequential(*hidden), made.classifier[0])
        rows = of_labels if last is list(adversary.label)[-1] else torch.eye(n_labels).double()
        made.classifier[-1].weight.data, made.classifier[-1].bias.data = rows @ last.weight.data, rows @ last.bias.data
        return made.eval()

    # which rows of the last layer make that of a label: control's, or those of its parts
    of_labels = torch.cat(
        [torch.zeros(len(LABELS), 1), multi_hot(LABELS, torch.ones(LABELS.shape), N_PERTURBATIONS)], 1
    )
    of_labels[0, 0] = 1
    of_labels = of_labels.double()
    n = torch.bincount(of_label)
    weights = (N_CELLS / n - 1).double()
    networks = zip(COVARIATES.items(), adversary.covariates, strict=True)
    plan = SimpleNamespace(
        covars_encoder={name: range(size) for name, size in COVARIATES.items()},
        covars_classifiers={name: classifier(network, size) for (name, size), network in networks},
        perturbation_classifier=classifier(adversary.label, len(LABELS)),
        adv_loss_fn=nn.CrossEntropyLoss(),
        adv_loss_drugs=nn.CrossEntropyLoss(weight=weights),
        n_adv_perts=len(LABELS),
        device="cpu",
    )
    z = torch.randn(N_CELLS, N_LATENT, dtype=torch.float64, requires_grad=True)
    their_tensors = {**their_tensors, "label_mixup": their_tensors["label"]}
    cpa.utils.CPA_REGISTRY_KEYS.PERTURBATION_KEY = "label"
    expected = cpa.task.CPATrainingPlan.adversarial_loss(plan, their_tensors, z)
    adversary.eval()
    logits = adversary(z, LABELS)
    entropy = adversary.entropy(logits, tensors, LABELS, weights)
    return max(relative(entropy, expected["adv_loss"]), relative(gradient_penalty(logits, z), expected["penalty_adv"]))


def main(arguments: list[str]) -> int:
    cpa = reference(arguments[0] if arguments else None)
    if cpa is None:
        print("The reference is absent: nothing was compared. Give the folder of a checkout of theislab/cpa.")
        return 0
    torch.manual_seed(0)
    differences = {f"network, likelihood {name}": of_network(cpa, name) for name in LIKELIHOODS}
    differences["adversary, entropy and penalty"] = of_adversary(cpa)
    for name, difference in differences.items():
        print(f"{name}: {difference:.1e}")
    worst = max(differences.values())
    print(f"largest difference {worst:.1e} (limit {LIMIT:g})")
    return int(worst > LIMIT)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
