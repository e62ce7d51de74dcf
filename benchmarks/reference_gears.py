"""GEARS against the reference's network (snap-stanford/GEARS), weights copied, float64.

Run: python benchmarks/reference_gears.py [folder of a checkout of snap-stanford/GEARS]
Prints the largest difference of predicted cells and log variances in evaluation mode, of the loss, and of the Jaccard graph;
exits with 1 if one is above 1e-6. The reference's graph layer comes from a library of its own; a stand-in written here, with
dense matrices, takes its place. Cells are handed over one by one: within a larger batch the reference reaches the
neighbours of co-expressed genes for the first cell only, and how far the same cell then moves is printed as well. Where the
reference is absent it says so and compares nothing; tests/model/test_gears.py has the equations re-stated.
"""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np
import torch

from multipert.embedding import annotation_table
from multipert.embedding._genegraph import similarities
from multipert.model._gears import GEARSModule
from multipert.nn._graph import normalised_adjacency

LIMIT = 1e-6
SIZES = [(40, 12, 16, 1, 1), (60, 20, 8, 2, 3)]
NAMES = {
    "gene_emb": "gene_table",
    "emb_pos": "position_table",
    "pert_emb": "perturbation_table",
    "bn_emb": "gene_norm",
    "bn_pert_base": "joint_norm",
    "layers_emb_pos": "gene_graph.layers",
    "sim_layers": "perturbation_graph.layers",
    "emb_trans_v2": "gene_mlp",
    "pert_fuse": "perturbation_mlp",
    "recovery_w": "shared_mlp",
    "cross_gene_state": "state_mlp",
    "uncertainty_w": "uncertainty_mlp",
    "indv_w1": "first_weight",
    "indv_b1": "first_bias",
    "indv_w2": "second_weight",
    "indv_b2": "second_bias",
}
DEAD = ("pert_w", "bn_pert_base_trans")


class DenseConvolution(torch.nn.Module):
    """A graph layer of one step by its definition: normalised adjacency with loops, then a linear layer."""

    def __init__(self, n_in: int, n_out: int, n_steps: int) -> None:
        super().__init__()
        self.lin = torch.nn.Linear(n_in, n_out)

    def forward(self, x: torch.Tensor, edge_index: torch.Tensor, edge_weight: torch.Tensor) -> torch.Tensor:
        """Values of the nodes."""
        matrix = torch.zeros(len(x), len(x), dtype=x.dtype)
        matrix[edge_index[1], edge_index[0]] = edge_weight
        has_loop = torch.zeros(len(x), dtype=torch.bool)
        has_loop[edge_index[0][edge_index[0] == edge_index[1]]] = True
        matrix = matrix + torch.diag((~has_loop).to(x.dtype))
        root = matrix.sum(1).rsqrt()
        return self.lin((root[:, None] * matrix * root) @ x)


class Anything(ModuleType):
    """A module of which any name can be imported; nothing of it is called."""

    def __getattr__(self, name: str) -> object:
        if name.startswith("__"):
            raise AttributeError(name)
        return object


def load(path: Path) -> ModuleType:
    """A file of the reference as a module."""
    spec = importlib.util.spec_from_file_location(f"reference_{path.stem}", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def reference(folder: str) -> tuple[ModuleType, ModuleType] | None:
    """The reference's network and its functions, or None where they are not there."""
    path = Path(folder) / "gears"
    if not (path / "model.py").exists():
        return None
    library = Anything("torch_geometric.nn")
    library.SGConv = DenseConvolution
    stand_ins = {name: Anything(name) for name in ("torch_geometric", "torch_geometric.data", "dcor", "networkx")}
    for name, module in {**stand_ins, "torch_geometric.nn": library}.items():
        sys.modules.setdefault(name, module)
    return load(path / "model.py"), load(path / "utils.py")


def random_edges(n: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Sources, targets and weights, some loops among them."""
    at = np.unique(np.concatenate([rng.choice(n * n, 3 * n, replace=False), np.arange(0, n, 3) * (n + 1)]))
    return at // n, at % n, rng.uniform(0.2, 1, len(at))


def disturb(module: torch.nn.Module) -> None:
    """Running statistics and scales that are not those of the start."""
    for norm in (part for part in module.modules() if isinstance(part, torch.nn.BatchNorm1d)):
        norm.running_mean.normal_()
        norm.running_var.uniform_(0.5, 2.0)
        torch.nn.init.normal_(norm.weight)
        torch.nn.init.normal_(norm.bias)


def renamed(name: str) -> str | None:
    """Our name of a weight of theirs; None for one that takes no part."""
    head, *rest = name.split(".")
    if head in DEAD:
        return None
    if rest and rest[0] == "network":
        # linear layer, norm and ReLU in turn
        number = int(rest[1])
        rest = ["linear" if number % 3 == 0 else "norm", str(number // 3), *rest[2:]]
    return ".".join([NAMES[head], *(part for part in rest if part != "lin")])


def compare(
    network: ModuleType, functions: ModuleType, n_vars: int, n_perturbations: int, n_hidden: int, n_go: int, n_gene: int
) -> tuple[float, float]:
    """The largest difference, and how far cells move with their place in a batch of the reference."""
    rng = np.random.default_rng(0)
    graphs = {"gene": random_edges(n_vars, rng), "perturbation": random_edges(n_perturbations, rng)}
    ours = GEARSModule(
        n_vars,
        n_perturbations,
        n_hidden,
        n_go,
        n_gene,
        20,
        0.4,
        gamma=2.0,
        direction_loss="sign",
        direction_weight=0.1,
        norm="batch",
        uncertainty=True,
        uncertainty_weight=0.7,
    )
    index, weight = {}, {}
    for name, (source, target, values) in graphs.items():
        edges, _ = normalised_adjacency(source, target, values, len(getattr(ours, f"{name}_table").weight))
        n = len(getattr(ours, f"{name}_table").weight)
        setattr(ours, f"{name}_edges", edges)
        setattr(ours, f"{name}_entries", normalised_adjacency(source, target, values, n)[1])
        index[name], weight[name] = torch.from_numpy(np.stack([source, target])), torch.from_numpy(values)
    theirs = network.GEARS_Model(
        {
            "num_genes": n_vars,
            "num_perts": n_perturbations,
            "hidden_size": n_hidden,
            "uncertainty": True,
            "num_go_gnn_layers": n_go,
            "decoder_hidden_size": 16,
            "num_gene_gnn_layers": n_gene,
            "no_perturb": False,
            "device": "cpu",
            "G_coexpress": index["gene"],
            "G_coexpress_weight": weight["gene"],
            "G_go": index["perturbation"],
            "G_go_weight": weight["perturbation"],
        }
    ).double()
    disturb(theirs)
    for weights in (theirs.indv_w1, theirs.indv_w2):
        # large shifts, so that differences show
        torch.nn.init.normal_(weights)
    state = {renamed(name): value for name, value in theirs.state_dict().items() if renamed(name)}
    ours = ours.double()
    own = {name for name, _ in ours.named_parameters()} | {name for name in ours.state_dict() if "running" in name}
    if not own <= set(state):
        raise ValueError(f"The reference has no {sorted(own - set(state))}.")
    ours.load_state_dict(
        {
            name: state[name].reshape(value.shape) if name in state else value
            for name, value in ours.state_dict().items()
        }
    )
    # entries in double precision: those of a model are stored in single
    for name, (source, target, values) in graphs.items():
        setattr(ours, f"{name}_entries", exact_entries(source, target, values, getattr(ours, f"{name}_edges")))
    ours.eval()
    theirs.eval()
    codes = torch.tensor([[0, 3], [-1, -1], [5, -1], [0, 3], [7, 2], [5, -1]])
    x, control = torch.rand(2, len(codes), n_vars, dtype=torch.float64)

    def cells(at: list[int]) -> SimpleNamespace:
        sets = [codes[i].tolist() for i in at]
        return SimpleNamespace(
            x=control[at].reshape(-1, 1), pert_idx=sets, batch=torch.arange(len(at)).repeat_interleave(n_vars)
        )

    with torch.no_grad():
        tensors = {"X": x, "X_control": control, "perturbation": codes, "dose": (codes >= 0).double()}
        found = ours.generative(control, tensors)
        parts = [theirs(cells([i])) for i in range(len(codes))]
        expected, log_variance = (torch.cat([part[k] for part in parts]) for k in range(2))
        together = theirs(cells(list(range(len(codes)))))[0]
        ours.known_codes = torch.unique(codes, dim=0)
        ours.known_doses = (ours.known_codes >= 0).double()
        ours.expressed = torch.rand(len(ours.known_codes), n_vars) < 0.7
        ours.expressed[0] = True
        ours.control_mean = torch.rand(n_vars, dtype=torch.float64)
        names = ["ctrl" if (row < 0).all() else str(row.tolist()) for row in codes]
        rows = dict(zip(map(str, ours.known_codes.tolist()), ours.expressed, strict=True))
        kept = {name: np.flatnonzero(rows[name].numpy()) for name in names if name != "ctrl"}
        loss = functions.uncertainty_loss_fct(
            expected, log_variance, x, names, reg=0.7, ctrl=ours.control_mean, direction_lambda=0.1, dict_filter=kept
        )
        own_loss = ours.loss(tensors, {}, found).loss
    pairs = [
        (found["px"], expected),
        (found["log_variance"][found["inverse"]], log_variance),
        (own_loss / loss, torch.ones((), dtype=torch.float64)),
    ]
    return max(float((a - b).abs().max()) for a, b in pairs), float((together - expected).abs().max())


def exact_entries(source: np.ndarray, target: np.ndarray, values: np.ndarray, edges: torch.Tensor) -> torch.Tensor:
    """Entries of the normalised adjacency in double precision."""
    n = int(edges.max()) + 1
    matrix = np.zeros((n, n))
    matrix[target, source] = values
    matrix[np.diag_indices(n)] = np.where(np.diag(matrix) == 0, 1, np.diag(matrix))
    root = 1 / np.sqrt(matrix.sum(1))
    return torch.from_numpy((root[:, None] * matrix * root)[tuple(edges.numpy())])


def compare_jaccard(functions: ModuleType) -> float:
    """The largest difference between similarities above 0.1."""
    rng = np.random.default_rng(0)
    terms = {f"G{i:02}": {f"T{t}" for t in rng.choice(15, rng.integers(1, 8), replace=False)} for i in range(40)}
    table = annotation_table(terms)
    found = np.concatenate([block for _, block in similarities(table.to_numpy(), "jaccard")])
    expected = np.zeros_like(found)
    for i, gene in enumerate(table.index):
        for _, other, score in functions.get_GO_edge_list((gene, terms)):
            expected[i, table.index.get_loc(other)] = score
    return float(np.abs(np.where(found > 0.1, found, 0) - expected).max())


def main(arguments: list[str]) -> int:
    found = reference(arguments[0]) if arguments else None
    if found is None:
        print("The reference is absent: nothing was compared. Give the folder of a checkout of snap-stanford/GEARS.")
        return 0
    torch.manual_seed(0)
    worst = compare_jaccard(found[1])
    print(f"Jaccard of 40 genes: {worst:.1e}")
    for sizes in SIZES:
        difference, moved = compare(*found, *sizes)
        worst = max(worst, difference)
        n_vars, n_perturbations, n_hidden, n_go, n_gene = sizes
        print(
            f"{n_vars} genes, {n_perturbations} perturbations, width {n_hidden}, {n_go} and {n_gene} steps: "
            f"{difference:.1e} (the reference's own cells, alone and in a batch: {moved:.1e})"
        )
    print(f"largest difference {worst:.1e} (limit {LIMIT:g})")
    return int(worst > LIMIT)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
