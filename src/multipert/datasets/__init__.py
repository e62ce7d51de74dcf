"""Simulated screens with known counterfactuals, and helpers for data sets."""

from ._add_control import add_control
from ._multimodal import simulate_multimodal
from ._screens import screen
from ._simulate import simulate
from ._true_effects import network_edges, true_de_genes, true_effects
from ._true_mean import true_mean

__all__ = [
    "add_control",
    "network_edges",
    "screen",
    "simulate",
    "simulate_multimodal",
    "true_de_genes",
    "true_effects",
    "true_mean",
]
