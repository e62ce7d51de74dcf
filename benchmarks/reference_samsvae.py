"""SAMSVAE against the authors' model and guides (insitro/sams-vae), weights and draws copied, float64.

Run: python benchmarks/reference_samsvae.py folder of a checkout of insitro/sams-vae
Prints the largest difference of basal means and variances, log-probabilities and the sampled loss, for both guides and two
likelihoods; exits with 1 if one is above 1e-8 of the loss. Where the reference is absent it says so and compares nothing;
tests/model/test_samsvae.py has the equations re-stated.
"""

from __future__ import annotations

import importlib
import sys
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import torch

from multipert.model import SAMSVAE
from multipert.model._samsvae import SAMSVAEModule
from multipert.nn._offsets import Draw

if TYPE_CHECKING:
    from multipert.nn._perceptron import ResidualPerceptron

LIMIT = 1e-8
N_VARS, N_PERTURBATIONS, N_LATENT, N_HIDDEN, N_CELLS, N_PARTICLES = 60, 5, 4, 16, 30, 3
LAYERS = {"n_layers_encoder": 2, "n_layers_embedding": 3, "n_layers_decoder": 2}


@dataclass
class Reference:
    """The authors' classes.

    Parameters
    ----------
    model
        The generative model.
    guides
        The guides by whether embeddings are correlated with masks.
    loss
        The loss.
    statistics
        Means and standard deviations of the input.
    """

    model: type
    guides: dict[bool, type]
    loss: type
    statistics: type


def reference(folder: str | None) -> Reference | None:
    """The authors' classes, or None where they are not there."""
    if folder is None or not (Path(folder) / "sams_vae" / "models" / "sams_vae" / "model.py").exists():
        return None
    # the packages' own __init__ import data sets, and the older name of Lightning
    sys.modules["pytorch_lightning"] = importlib.import_module("lightning.pytorch")
    for name in ("", ".data", ".data.utils", ".models", ".models.utils", ".models.sams_vae", ".models.sams_vae.guides"):
        package = ModuleType(f"sams_vae{name}")
        package.__path__ = [str(Path(folder, "sams_vae", *name.split(".")))]
        sys.modules[package.__name__] = package
    found = {
        name: importlib.import_module(f"sams_vae.{name}")
        for name in (
            "models.sams_vae.model",
            "models.sams_vae.guides.mean_field_normal_guide",
            "models.sams_vae.guides.correlated_normal_guide",
            "models.sams_vae.loss_module",
            "data.utils.perturbation_datamodule",
        )
    }
    return Reference(
        found["models.sams_vae.model"].SAMSVAEModel,
        {
            False: found["models.sams_vae.guides.mean_field_normal_guide"].SAMSVAEMeanFieldNormalGuide,
            True: found["models.sams_vae.guides.correlated_normal_guide"].SAMSVAECorrelatedNormalGuide,
        },
        found["models.sams_vae.loss_module"].SAMSVAE_ELBOLossModule,
        found["data.utils.perturbation_datamodule"].ObservationNormalizationStatistics,
    )


def copy_network(theirs: torch.nn.Module, ours: ResidualPerceptron, heads: list[torch.nn.Linear]) -> None:
    """Hidden layers one by one, and all output layers into one."""
    for target, source in zip(ours.hidden, theirs.mlp.layers, strict=True):
        target.load_state_dict(source[0].state_dict())
    ours.output.weight.data = torch.cat([head.weight for head in heads]).detach()
    ours.output.bias.data = torch.cat([head.bias for head in heads]).detach()


def ours_like(model: Any, guide: Any, likelihood: str, *, correlated: bool, mean_field: bool) -> SAMSVAEModule:
    """Our module with the weights of theirs."""
    preset = SAMSVAE.presets["default"]
    left_out = {"inject_covariates", "lr", "weight_decay", "batch_size", "n_updates"}
    changes = {
        **LAYERS,
        "n_latent": N_LATENT,
        "n_hidden": N_HIDDEN,
        "likelihood": likelihood,
        "correlated_embedding": correlated,
        "mean_field_encoder": mean_field,
        "kl": "mc",
        "n_particles": N_PARTICLES,
    }
    arguments = {name: value for name, value in preset.items() if name not in left_out} | changes
    ours = SAMSVAEModule(N_VARS, N_PERTURBATIONS, (), **arguments).double()
    state, decoder = guide.param_dict, model.decoder
    ours.offsets.logits.data = state["q_mask_logits"].detach()
    if correlated:
        network = guide.embedding_encoder
        copy_network(network, ours.offsets.network, [network.mean_encoder, network.log_var_encoder])
    else:
        ours.offsets.mean.data, ours.offsets.log_scale.data = state["q_E_loc"].detach(), state["q_E_log_scale"].detach()
    basal = guide.z_basal_encoder
    copy_network(basal, ours.encoder, [basal.mean_encoder, basal.log_var_encoder])
    if likelihood == "nb":
        copy_network(decoder, ours.decoder, [decoder.normalized_mean_decoder[0]])
        ours.log_spread.data = decoder.log_concentration.detach()
    else:
        copy_network(decoder, ours.decoder, [decoder.mean_encoder])
        ours.log_spread.data = decoder.log_var_encoder.log_var.detach()
    return ours


def compare(classes: Reference, likelihood: str, *, correlated: bool, mean_field: bool) -> dict[str, float]:
    """The largest differences, each in units of the largest value of the reference."""
    codes = torch.randint(-1, N_PERTURBATIONS, (N_CELLS, 2))
    codes[codes[:, 0] == codes[:, 1], 1] = -1
    dosage = torch.zeros(N_CELLS, N_PERTURBATIONS + 1, dtype=torch.float64)
    dosage = dosage.scatter(1, codes % (N_PERTURBATIONS + 1), 1.0)[:, :N_PERTURBATIONS]
    n_cells = dosage.sum(0) + 7
    x = torch.poisson(torch.rand(N_CELLS, N_VARS, dtype=torch.float64) * 6)
    mean, spread = torch.rand(N_VARS, dtype=torch.float64), 0.5 + torch.rand(N_VARS, dtype=torch.float64)
    counts = likelihood == "nb"
    statistics = classes.statistics(x_mean=mean, x_std=spread, log_x_mean=mean, log_x_std=spread)
    model = classes.model(
        N_LATENT,
        N_PERTURBATIONS,
        N_VARS,
        mask_prior_prob=SAMSVAE.presets["default"]["mask_prior"],
        embedding_prior_scale=1,
        likelihood_key="library_nb" if counts else "normal_fixed_variance",
        decoder_n_layers=LAYERS["n_layers_decoder"],
        decoder_n_hidden=N_HIDDEN,
    )
    embedding = {
        "embedding_encoder_n_layers": LAYERS["n_layers_embedding"],
        "embedding_encoder_n_hidden": N_HIDDEN,
    }
    guide = classes.guides[correlated](
        N_LATENT,
        N_PERTURBATIONS,
        N_VARS,
        basal_encoder_n_layers=LAYERS["n_layers_encoder"],
        basal_encoder_n_hidden=N_HIDDEN,
        basal_encoder_input_normalization="log_standardize" if counts else "standardize",
        x_normalization_stats=statistics,
        mean_field_encoder=mean_field,
        **(embedding if correlated else {}),
    )
    theirs = classes.loss(model, guide).double()
    for parameter in [*guide.param_dict.values(), *(p for p in model.decoder.parameters() if p.shape == (N_VARS,))]:
        torch.nn.init.normal_(parameter, std=0.7)
    ours = ours_like(model, guide, likelihood, correlated=correlated, mean_field=mean_field)
    ours.scale.center.copy_(mean)
    ours.scale.spread.copy_(spread)
    if not counts:
        # ours decodes in units of each gene's spread
        ours.decoder.output.weight.data /= spread[:, None]
        ours.decoder.output.bias.data = (ours.decoder.output.bias.data - mean) / spread
    ours.n_cells.copy_(n_cells)
    condition = {"library_size": x.sum(1, keepdim=True).T}
    drawn: dict[str, Any] = {}
    forward = theirs.forward

    def remember(*args: Any, **kwargs: Any) -> Any:
        drawn["guide"], drawn["model"], drawn["samples"] = forward(*args, **kwargs)
        return drawn["guide"], drawn["model"], drawn["samples"]

    theirs.forward = remember
    expected, _ = theirs.loss(x, dosage, n_cells.clone(), dict(condition), N_PARTICLES)
    samples, of_embedding = drawn["samples"], drawn["guide"]["q_E"]
    tensors = {
        "X": x.log1p() if counts else x,
        "size_factor": torch.ones(N_CELLS, dtype=torch.float64),
        "perturbation": codes,
        "dose": (codes >= 0).double(),
    }
    own = ours.offsets._moments(torch.arange(N_PERTURBATIONS), samples["mask"])
    draw = Draw(torch.arange(N_PERTURBATIONS), samples["mask"], *own, samples["E"])
    offset = dosage @ draw.shift
    basal = ours.encode(tensors, offset)
    inferred = {
        "z": samples["z_basal"],
        "mean": basal[0],
        "variance": basal[1],
        "offset": offset,
        "shared": (draw, dosage),
    }
    generated = ours.generative(samples["z_basal"], tensors, offset)
    found = ours.loss(tensors, inferred, generated)
    pairs = {
        "embedding": (own[0].expand_as(of_embedding.mean), of_embedding.mean),
        "basal mean": (basal[0], drawn["guide"]["q_z_basal"].mean),
        "basal variance": (basal[1], drawn["guide"]["q_z_basal"].variance),
        "log p(x)": (ours.log_prob(tensors, generated), drawn["model"]["p_x"].log_prob(x).sum(-1)),
        "loss": (found.loss, expected),
    }
    return {
        name: float(((one - other).abs().max() / other.abs().max()).detach()) for name, (one, other) in pairs.items()
    }


def main(arguments: list[str]) -> int:
    classes = reference(arguments[0] if arguments else None)
    if classes is None:
        print("The reference is absent: nothing was compared. Give the folder of a checkout of insitro/sams-vae.")
        return 0
    torch.manual_seed(0)
    worst = 0.0
    for likelihood in ("nb", "normal"):
        for correlated in (False, True):
            for mean_field in (False, True):
                differences = compare(classes, likelihood, correlated=correlated, mean_field=mean_field)
                worst = max(worst, *differences.values())
                shown = ", ".join(f"{name} {value:.1e}" for name, value in differences.items())
                print(f"{likelihood}, correlated {correlated}, mean-field encoder {mean_field}: {shown}")
    print(f"largest relative difference {worst:.1e} (limit {LIMIT:g})")
    return int(worst > LIMIT)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
