"""ScPreGAN against the networks of the published code (Wei 2022), weights copied, float64.

Run: python benchmarks/reference_scpregan.py [FOLDER]
FOLDER is a copy of the published code or of a repaired port of it: the folder that holds `Encoder.py`, `Generator.py` and
`Discriminator.py`, or one above it. Without it the installed package `scPreGAN` is taken, if there is one. Prints, for each
variant that the code holds, the largest difference of latent representations, expression and scores in training and in
evaluation mode; exits with 1 if one is above 1e-6. Where the published code is absent it says so and compares nothing.
"""

from __future__ import annotations

import argparse
import importlib.util
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from multipert.model._scpregan import PreGANModule

if TYPE_CHECKING:
    from types import ModuleType

G, K, HIDDEN, LATENT = 700, 5, 64, 16
FILES = ("Encoder", "Generator", "Discriminator")
# names of the classes in each file, and arguments that only the discriminators of "ac" take
CLASSES = {
    "ac": ("Encoder_AC_layer", "Generator_AC_layer", "Discriminator_AC"),
    "wgan": ("Encoder", "Generator", "Discriminator"),
}
LIMIT = 1e-6
ITERATIONS = 3000


def find(folder: Path | None) -> Path | None:
    """The folder with the three files."""
    if folder is None:
        found = importlib.util.find_spec("scPreGAN")
        folder = Path(found.origin).parent if found and found.origin else None
    if folder is None:
        return None
    places = [path.parent for path in sorted(folder.rglob("Encoder.py"))]
    return next((place for place in places if all((place / f"{name}.py").exists() for name in FILES)), None)


def load(path: Path) -> ModuleType:
    """One file as a module, without the package around it and what that imports."""
    spec = importlib.util.spec_from_file_location(f"reference_{path.stem}", path)
    if spec is None or spec.loader is None:
        raise SystemExit(f"{path} cannot be imported")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def published(place: Path, variant: str) -> list[Any] | None:
    """Encoder, generator and discriminator of the published code; None where it lacks the variant."""
    classes = [
        getattr(load(place / f"{file}.py"), name, None) for file, name in zip(FILES, CLASSES[variant], strict=True)
    ]
    if None in classes:
        return None
    encoder, generator, discriminator = classes
    heads = {"n_classes": K} if variant == "ac" else {}
    return [
        network.double()
        for network in (
            encoder(n_features=G, min_hidden_size=HIDDEN, z_dim=LATENT),
            generator(z_dim=LATENT, min_hidden_size=HIDDEN, n_features=G),
            discriminator(n_features=G, min_hidden_size=HIDDEN, out_dim=1, **heads),
        )
    ]


def copy(theirs: torch.nn.Module, ours: torch.nn.Module) -> None:
    """Weights, statistics and singular vectors, which both hold in the same order."""
    if hasattr(ours, "score"):
        pairs = [(theirs.layer1[0], ours.hidden[0]), (theirs.layer2[0], ours.hidden[2])]
        for there, here in pairs:
            here.parametrizations.weight.original.data.copy_(there.weight_orig.data)
            here.bias.data.copy_(there.bias.data)
            here.parametrizations.weight[0]._u.copy_(there.weight_u)
            here.parametrizations.weight[0]._v.copy_(there.weight_v)
        ours.score.load_state_dict(theirs.out[0].state_dict())
        if ours.context is not None:
            ours.context.load_state_dict(theirs.classify[0].state_dict())
        return
    layers = [layer for block in (theirs.layer1, theirs.layer2, theirs.out) for layer in block]
    for there, here in zip(layers, ours, strict=True):
        if there.state_dict():
            here.load_state_dict(there.state_dict())


def outputs(variant: str, networks: list[Any], x: torch.Tensor) -> list[torch.Tensor]:
    """Latent representation, expression, score and classes of a network's own kind of output."""
    encoder, generator, discriminator = networks
    z = encoder(x)
    expression = generator(z)
    if not hasattr(discriminator, "score"):
        judged = discriminator(x, True) if variant == "ac" else (discriminator(x),)
        return [z, expression, *judged]
    judged = discriminator(x)
    if variant == "wgan":
        return [z, expression, judged]
    return [z, expression, torch.sigmoid(judged[:, :1]), torch.softmax(judged[:, 1:], dim=1)]


def main() -> int:
    """Compare every variant that is there."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", nargs="?", type=Path, help="where the published code lies")
    place = find(parser.parse_args().folder)
    if place is None:
        print("nothing compared: the published code of scPreGAN is neither installed nor in the folder given")
        return 0
    worst = 0.0
    x = torch.rand(40, G, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) * 4
    for variant in CLASSES:
        torch.manual_seed(1)
        theirs = published(place, variant)
        if theirs is None:
            print(f"{variant}: not in {place.name}")
            continue
        module = PreGANModule(G, 1, K, HIDDEN, LATENT, variant=variant).double()
        ours = [module.encoder, module.generators[1], module.discriminators[1]]
        for there, here in zip(theirs, ours, strict=True):
            copy(there, here)
        # the two begin a power iteration at either end, so they agree once it has converged
        with torch.no_grad():
            for _ in range(ITERATIONS):
                theirs[2](*((x[:1], True) if variant == "ac" else (x[:1],)))
                ours[2](x[:1])
        for training in (True, False):
            for network in (*theirs, *ours):
                network.train(training)
            with torch.no_grad():
                pairs = zip(outputs(variant, theirs, x), outputs(variant, ours, x), strict=True)
                difference = max(float((there - here).abs().max()) for there, here in pairs)
            worst = max(worst, difference)
            print(f"{variant}, {'training' if training else 'evaluation'} mode: {difference:.1e}")
    print(f"largest difference {worst:.1e} (limit {LIMIT:.0e})")
    return int(worst > LIMIT)


if __name__ == "__main__":
    sys.exit(main())
