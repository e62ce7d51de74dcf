"""ScButterfly against the published code: weights copied over, outputs in evaluation mode compared.

Run: python benchmarks/reference_scbutterfly.py PATH
PATH is a checkout of the published repository, of which the file with the networks is imported. Prints the largest
difference of all four translations, for two sides of expression, for peaks and for proteins; exits with 1 above 1e-5, and
says so where the reference is absent.
"""

from __future__ import annotations

import argparse
import importlib.util
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import nn

from multipert.model._scbutterfly import A, R, TwoSideModule
from multipert.nn._translator import Side

if TYPE_CHECKING:
    from types import ModuleType

LIMIT = 1e-5
N_LATENT, N_GENES, N_PROTEINS, PEAKS = 24, 60, 17, (13, 30, 9)
SIDES = ("RNA", "ATAC")


def read(folder: Path) -> ModuleType | None:
    """The published file of networks, by its place; the package around it needs many others."""
    path = folder / "scButterfly" / "model_component.py"
    if not path.exists():
        return None
    spec = importlib.util.spec_from_file_location("published_components", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def roughen(module: nn.Module) -> None:
    """Give every batch norm something to do in evaluation mode."""
    for norm in (part for part in module.modules() if isinstance(part, nn.BatchNorm1d)):
        norm.running_mean.normal_(0, 0.5)
        norm.running_var.uniform_(0.5, 2)
        nn.init.normal_(norm.weight)
        nn.init.normal_(norm.bias)


def copy_norm(theirs: nn.BatchNorm1d, ours: nn.BatchNorm1d, at: slice = slice(None)) -> None:
    for name in ("weight", "bias", "running_mean", "running_var"):
        getattr(theirs, name).data.copy_(getattr(ours, name).data[at])


def copy_chain(theirs: nn.Module, ours: nn.Module) -> None:
    """Dense layers."""
    for i, layer in enumerate(ours.layers):
        theirs.linear_list[i].load_state_dict(layer[0].state_dict())
        copy_norm(theirs.bn_list[i], layer[1])


def copy_blocks(theirs: nn.Module, ours: nn.Module, *, decodes: bool) -> None:
    """One layer of blocks, peaks sorted by chromosome, and one dense layer."""
    wide, dense = (1, 0) if decodes else (0, 1)
    blocks, norm = ours.layers[wide][:2]
    start = 0
    for group, size in enumerate(blocks.sizes):
        peaks, units = slice(start, start + size), slice(group * blocks.width, (group + 1) * blocks.width)
        weight = blocks.weight.data[peaks]
        linear, out = theirs.linear_list[wide][group], peaks if decodes else units
        linear.weight.data.copy_(weight if decodes else weight.T)
        linear.bias.data.copy_(blocks.bias.data[out])
        copy_norm(theirs.bn_list[wide][group], norm, out)
        start += size
    theirs.linear_list[dense].load_state_dict(ours.layers[dense][0].state_dict())
    copy_norm(theirs.bn_list[dense], ours.layers[dense][1])


def copy_translator(theirs: nn.Module, ours: nn.Module) -> None:
    parts = {"encoder_{}_mu": ours.mean, "encoder_{}_d": ours.log_variance, "decoder_{}": ours.to_side}
    for pattern, sides in parts.items():
        for name, part in zip(SIDES, sides, strict=True):
            getattr(theirs, f"{name}_{pattern.format('l')}").load_state_dict(part[0].state_dict())
            copy_norm(getattr(theirs, f"{name}_{pattern.format('bn')}"), part[1])


def dense(published: ModuleType, ours: nn.Module, activation: nn.Module) -> nn.Module:
    widths = [ours.layers[0][0].in_features, *(layer[0].out_features for layer in ours.layers)]
    made = published.NetBlock(2, widths, [nn.LeakyReLU(), activation], 0.1, 0)
    copy_chain(made, ours)
    return made


def wide(published: ModuleType, ours: nn.Module, *, decodes: bool) -> nn.Module:
    kind = published.Split_Chrom_Decoder_block if decodes else published.Split_Chrom_Encoder_block
    widths = [ours.layers[0][0].in_features, *(layer[0].out_features for layer in ours.layers)]
    last = nn.Sigmoid() if decodes else nn.LeakyReLU()
    made = kind(2, widths, [nn.LeakyReLU(), last], list(PEAKS), 0.1, 0)
    copy_blocks(made, ours, decodes=decodes)
    return made


def difference(published: ModuleType, other: Side) -> float:
    """Largest difference of the four translations between a side of RNA and another."""
    torch.manual_seed(0)
    rna = Side(N_GENES, (20,), 0.5, "leaky", 1.0, 0.1, None)
    module = TwoSideModule(
        (rna, other),
        N_LATENT,
        0.1,
        kl_warmup_epochs=0,
        adversary_weight=1.0,
        linear_logvar=False,
        start_at_means=False,
    ).double()
    roughen(module)
    last = {"leaky": nn.LeakyReLU(), "sigmoid": nn.Sigmoid(), "identity": nn.Identity()}[other.output]
    if other.groups is None:
        ends = dense(published, module.encoders[A], nn.LeakyReLU()), dense(published, module.decoders[A], last)
    else:
        ends = (
            wide(published, module.encoders[A], decodes=False),
            wide(published, module.decoders[A], decodes=True),
        )
    translator = published.Translator(N_LATENT, N_LATENT, N_LATENT, [nn.LeakyReLU()] * 3)
    copy_translator(translator, module.translator)
    encoders = dense(published, module.encoders[R], nn.LeakyReLU()), ends[0]
    decoders = dense(published, module.decoders[R], nn.LeakyReLU()), ends[1]
    for part in (*encoders, *decoders, translator, module):
        part.double().eval()
    worst = 0.0
    with torch.no_grad():
        for source, side in enumerate((rna, other)):
            x = torch.rand(40, side.n_vars, dtype=torch.float64)
            hidden = translator.test_model(encoders[source](x), SIDES[source])
            for target in (R, A):
                theirs = decoders[target](hidden[target])
                worst = max(worst, float((module.translated(x, source, target) - theirs).abs().max()))
    return worst


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("path", type=Path, nargs="?", default=Path("scButterfly"))
    published = read(parser.parse_args().path)
    if published is None:
        print("The reference is absent: give the path of a checkout of scButterfly. Nothing was compared.")
        return 0
    torch.set_default_dtype(torch.float64)
    groups = np.repeat(np.arange(len(PEAKS)), PEAKS)
    sides = {
        "treated cells": Side(N_GENES, (16,), 0.5, "leaky", 1.0, 0.1, None),
        "peaks": Side(sum(PEAKS), (8,), 0.3, "sigmoid", 2.0, 0.1, None, groups),
        "proteins": Side(N_PROTEINS, (16,), 0.0, "identity", 2.0, 0.1, None),
    }
    found = {name: difference(published, side) for name, side in sides.items()}
    for name, value in found.items():
        print(f"{name}: largest difference {value:.1e}")
    return int(max(found.values()) > LIMIT)


if __name__ == "__main__":
    sys.exit(main())
