"""GEARS against its equations restated cell by cell, its graphs, its loss, and which perturbations it can predict."""

import json
import warnings

import numpy as np
import pandas as pd
import pytest
import torch
from anndata import AnnData

from multipert.embedding import annotation_table, gene_graph
from multipert.model import GEARS
from multipert.model._gears import GEARSModule
from multipert.nn._graph import normalised_adjacency

SMALL = {"n_hidden": 6, "gene_threshold": 0.1}
TABLE = {"perturbation_embedding_key": "table"}
# A, B and C are measured; D joins A, E is as D but joins F alone, H joins nothing
TERMS = {"A": "x y", "B": "x z", "C": "z w", "D": "y", "E": "e", "F": "e f", "H": "h"}
KEPT = {"n_perturbation_layers": 1, "n_gene_layers": 1, "n_gene_neighbors": 3, "gene_threshold": 0.1}
LOSS = {"gamma": 2.0, "direction_loss": "off", "direction_weight": 0.1, "norm": "batch"}


@pytest.fixture
def genes(adata):
    """The screen with combinations, and a table of annotations that names four genes without cells."""
    adata.obs["perturbation"] = adata.obs["combination"].replace({"B + A": "A+B"})
    adata.obs.loc[adata.obs_names[adata.obs["perturbation"] == "B"][::2], "perturbation"] = "C"
    adata.uns["table"] = annotation_table({gene: terms.split() for gene, terms in TERMS.items()})
    return adata


def fit(toys, adata, *, setup=TABLE, init=None, **train):
    with warnings.catch_warnings():
        # of genes without neighbours, which have a test of their own
        warnings.simplefilter("ignore")
        return toys.trained(GEARS, adata, setup=setup, init={**SMALL, **(init or {})}, **train)


def make_module(n_vars=12, n_perturbations=5, density=2.0, **changes):
    """A module with graphs and running statistics that are not those of the start."""
    torch.manual_seed(0)
    arguments = {**KEPT, **LOSS, "uncertainty": True, "uncertainty_weight": 1.0, "n_hidden": 6, **changes}
    module = GEARSModule(n_vars=n_vars, n_perturbations=n_perturbations, **arguments)
    rng = np.random.default_rng(0)
    for name, n in (("gene", n_vars), ("perturbation", n_perturbations)):
        at = rng.choice(n * n, int(density * n), replace=False)
        edges, entries = normalised_adjacency(at // n, at % n, rng.uniform(0.2, 1, len(at)), n)
        setattr(module, f"{name}_edges", edges)
        setattr(module, f"{name}_entries", entries)
    for norm in (part for part in module.modules() if isinstance(part, torch.nn.BatchNorm1d)):
        norm.running_mean.normal_()
        norm.running_var.uniform_(0.5, 2)
        torch.nn.init.normal_(norm.weight)
        torch.nn.init.normal_(norm.bias)
    return module


def batch_of(codes, n_vars=12, seed=0):
    rng = np.random.default_rng(seed)
    codes = torch.tensor(codes)
    x = torch.from_numpy(rng.gamma(1, 1, (2, len(codes), n_vars)).astype(np.float32))
    return {"X": x[0], "X_control": x[1], "perturbation": codes, "dose": (codes >= 0).float()}


CODES = [[0, 1], [-1, -1], [2, -1], [0, 1], [4, -1], [-1, -1], [2, -1], [2, -1]]


def predicted(module, tensors):
    return module.generative(module.inference(tensors)["z"], tensors)


# ------------------------------------------------------------------ the equations, cell by cell


def dense(module, name, n):
    edges, entries = getattr(module, f"{name}_edges"), getattr(module, f"{name}_entries")
    matrix = torch.zeros(n, n)
    matrix[edges[0], edges[1]] = entries
    return matrix


def plain_norm(state, name, x):
    """Batch norm over all axes but the last, by the running statistics."""
    mean, variance = state[f"{name}.running_mean"], state[f"{name}.running_var"]
    return (x - mean) / (variance + 1e-5).sqrt() * state[f"{name}.weight"] + state[f"{name}.bias"]


def batch_statistics(state, name, x):
    flat = x.reshape(-1, x.shape[-1])
    return ((x - flat.mean(0)) / (flat.var(0, correction=0) + 1e-5).sqrt()) * state[f"{name}.weight"] + state[
        f"{name}.bias"
    ]


def restated(module, tensors, norm=plain_norm):
    """Every cell has its own copy of all genes, as published; dense matrices for the graphs."""
    state = module.state_dict()
    n_vars, n_perturbations = len(state["first_bias"]), len(state["perturbation_table.weight"])
    n_cells = len(tensors["X"])

    def bounded(name):
        weight = state[f"{name}.weight"]
        return weight / weight.norm(dim=1, keepdim=True).clamp(min=1)

    def linear(name, x):
        return x @ state[f"{name}.weight"].T + state[f"{name}.bias"]

    def mlp(name, x):
        n = sum(key.startswith(f"{name}.linear") for key in state) // 2
        for i in range(n):
            x = norm(state, f"{name}.norm.{i}", linear(f"{name}.linear.{i}", x))
            x = x.relu() if i < n - 1 else x
        return x

    def convolved(name, x, matrix):
        n = sum(key.startswith(f"{name}.layers") for key in state) // 2
        for i in range(n):
            x = linear(f"{name}.layers.{i}", matrix @ x)
            x = x.relu() if i < n - 1 else x
        return x

    base = norm(state, "gene_norm", bounded("gene_table").repeat(n_cells, 1, 1)).relu()
    base = base + 0.2 * convolved("gene_graph", bounded("position_table"), dense(module, "gene", n_vars))
    base = mlp("gene_mlp", base)
    vectors = convolved(
        "perturbation_graph", bounded("perturbation_table"), dense(module, "perturbation", n_perturbations)
    )
    codes = tensors["perturbation"]
    perturbed = [i for i in range(n_cells) if (codes[i] >= 0).any()]
    fused = mlp(
        "perturbation_mlp", torch.stack([sum(vectors[code] for code in codes[i] if code >= 0) for i in perturbed])
    )
    base = base.clone()
    for i, added in zip(perturbed, fused, strict=True):
        base[i] = base[i] + added
    joint = norm(state, "joint_norm", base).relu()
    own = (mlp("shared_mlp", joint) * state["first_weight"]).sum(2) + state["first_bias"]
    cell_state = mlp("state_mlp", own)
    both = torch.cat([own[..., None], cell_state[:, None].expand(-1, n_vars, -1)], dim=2)
    out = (both * state["second_weight"]).sum(2) + state["second_bias"] + tensors["X_control"]
    return out, mlp("uncertainty_mlp", joint)[..., 0]


@pytest.mark.parametrize("layers", [1, 2])
def test_one_pass_per_condition_is_the_published_pass_per_cell(layers):
    module = make_module(n_perturbation_layers=layers, n_gene_layers=layers).eval()
    tensors = batch_of(CODES)
    with torch.no_grad():
        found = predicted(module, tensors)
        expected, log_variance = restated(module, tensors)
    np.testing.assert_allclose(found["px"], expected, atol=1e-5)
    np.testing.assert_allclose(found["log_variance"][found["inverse"]], log_variance, atol=1e-5)
    assert (found["px"] - tensors["X_control"]).std() > 0.1


def test_in_training_a_condition_counts_as_often_as_it_has_cells():
    module = make_module(n_gene_layers=2).train()
    tensors = batch_of(CODES)
    with torch.no_grad():
        found = predicted(module, tensors)
        expected, _ = restated(module, tensors, batch_statistics)
    np.testing.assert_allclose(found["px"], expected, atol=2e-5)


def test_the_network_runs_once_for_each_condition_of_the_batch():
    module, rows = make_module(), []
    module.shared_mlp.register_forward_hook(lambda _, inputs, __: rows.append(inputs[0].shape[0]))
    predicted(module.train(), batch_of(CODES))
    predicted(module.eval(), batch_of(CODES))
    assert rows == [4, 4]


def test_many_conditions_are_predicted_in_chunks():
    module, rows = make_module(n_perturbations=20).eval(), []
    tensors = batch_of([[i, -1] for i in range(20)])
    hook = module.shared_mlp.register_forward_hook(lambda _, inputs, __: rows.append(inputs[0].shape[0]))
    with torch.no_grad():
        found = predicted(module, tensors)
        hook.remove()
        np.testing.assert_allclose(found["px"], restated(module, tensors)[0], atol=1e-5)
    assert rows == [16, 4]
    assert found["log_variance"].shape == (20, 12)


def test_every_parameter_takes_part():
    module, tensors = make_module().train(), batch_of(CODES)
    outputs = predicted(module, tensors)
    module.loss(tensors, {}, outputs).loss.backward()
    assert [name for name, p in module.named_parameters() if p.grad is None] == []


# ------------------------------------------------------------------ what the shift depends on


def test_the_shift_is_that_of_the_condition_whatever_the_cell():
    module = make_module().eval()
    tensors, others = batch_of([[2, -1]] * 3), batch_of([[2, -1]] * 3, seed=1)
    with torch.no_grad():
        shifts = [module.generative(torch.zeros(3, 12), t)["px"] for t in (tensors, others)]
        found = predicted(module, tensors)["px"]
    assert torch.equal(shifts[0], shifts[1])
    assert torch.equal(found, tensors["X_control"] + shifts[0])


def test_the_order_of_genes_and_empty_slots_change_nothing():
    module = make_module().eval()
    with torch.no_grad():
        one, other, third = (
            predicted(module, batch_of([codes]))["px"] for codes in ([0, 1, -1], [1, 0, -1], [-1, 1, 0])
        )
    assert torch.equal(one, other)
    assert torch.equal(one, third)


def test_predictions_are_control_cells_plus_one_shift(genes, toys):
    model = fit(toys, genes, max_epochs=3)
    found = model.predict(perturbation=["A", "B+A"], clip=False)
    control = genes[(genes.obs["perturbation"] == "control").to_numpy()].X.toarray()
    for label in ("A", "A+B"):
        moved = found[(found.obs["perturbation"] == label).to_numpy()].X - control
        np.testing.assert_allclose(moved, np.broadcast_to(moved[0], moved.shape), atol=1e-5)
    mean = model.predict(perturbation="A", returns="mean", clip=False)
    np.testing.assert_allclose(mean.X[0], control.mean(0) + moved_by(model, "A"), atol=1e-5)


def moved_by(model, label):
    codes = model._label_tensors([model._codec.parse(label)])["perturbation"].long()
    with torch.no_grad():
        return model.module.eval().shifts(codes, torch.ones(1))[0][0].numpy()


def test_control_cells_stay_near_themselves(toys):
    adata, shift = toys.planted(n=60)
    falling = {"n_warmup_steps": 0, "decay_every": 60, "decay_factor": 0.5}
    setup = {"context_key": "context"}
    model = fit(toys, adata, setup=setup, max_epochs=40, lr=1e-2, plan_kwargs=falling)
    assert np.abs(moved_by(model, "control")).mean() < 0.15 * np.abs(shift[:10]).mean()
    assert np.corrcoef(moved_by(model, "A"), shift)[0, 1] > 0.9


# ------------------------------------------------------------------ graphs


def test_the_graph_of_genes_is_that_of_control_and_single_training_cells(genes, toys):
    genes.obs["split"] = np.where(np.arange(genes.n_obs) % 5 == 0, "test", "train")
    single = ~genes.obs["perturbation"].str.contains("+", regex=False) & (genes.obs["split"] == "train")

    def gene_edges(change=None):
        adata = genes.copy()
        if change is not None:
            x = adata.X.toarray()
            x[change] = x[change][:, ::-1] + 1
            adata.X = x
        module = fit(toys, adata, split_key="split", max_epochs=0).module
        return dense(module, "gene", genes.n_vars).numpy()

    expected = gene_edges()
    assert np.array_equal(gene_edges(~single.to_numpy()), expected)
    assert not np.array_equal(gene_edges(single.to_numpy()), expected)
    r = np.abs(np.corrcoef(genes.X.toarray()[single.to_numpy()].T.astype(np.float64)))
    linked = (r > 0.1) & ~np.eye(len(r), dtype=bool)
    few = linked.sum(1) <= 20
    assert few.all()
    assert np.array_equal(expected > 0, linked | np.eye(len(r), dtype=bool))


def test_further_training_keeps_the_graph_of_genes(genes, toys):
    model = fit(toys, genes)
    before = model.module.gene_edges.clone(), model.module.gene_entries.clone()
    genes.obs["split"] = np.where(np.arange(genes.n_obs) % 2 == 0, "test", "train")
    model.train(max_epochs=1, split_key="split", **toys.quiet)
    assert torch.equal(model.module.gene_edges, before[0])
    assert torch.equal(model.module.gene_entries, before[1])


def test_the_graph_of_perturbations_is_that_of_the_table(genes, toys):
    model = fit(toys, genes, max_epochs=0)
    graph = gene_graph(genes.uns["table"])
    names = list(genes.uns["table"].index)
    a = np.eye(len(names))
    for source, target, weight in graph.itertuples(index=False):
        a[names.index(target), names.index(source)] = weight
    degree = a.sum(1)
    np.testing.assert_allclose(
        dense(model.module, "perturbation", len(names)), a / np.sqrt(np.outer(degree, degree)), rtol=1e-6
    )


def test_features_of_any_kind_make_a_graph(genes, toys):
    rng = np.random.default_rng(0)
    genes.uns["table"] = pd.DataFrame(rng.normal(size=(7, 3)), index=list(TERMS))
    for similarity in (None, "cosine", "correlation"):
        init = {"similarity": similarity, "n_perturbation_neighbors": 2, "perturbation_threshold": 0.0}
        module = fit(toys, genes, init=init, max_epochs=0).module
        graph = gene_graph(genes.uns["table"], similarity=similarity or "cosine", n_neighbors=2, threshold=0)
        assert module.perturbation_edges.shape[1] == 7 + len(graph)


EDGES = pd.DataFrame(
    [("A", "H", 0.5), ("B", "H", 0.4), ("Q", "A", 1.0), ("C", "E", 0.3)], columns=["source", "target", "importance"]
)


def test_ready_edges_take_the_place_of_the_tables(genes, toys, tmp_path):
    model = fit(toys, genes, init={"edges": EDGES, "n_perturbation_neighbors": 1})
    matrix = dense(model.module, "perturbation", 7).numpy()
    joined = {(list(TERMS)[s], list(TERMS)[t]) for t, s in zip(*np.nonzero(matrix), strict=True) if s != t}
    assert joined == {("A", "H"), ("C", "E")}
    assert model.coverage()["predictable"].to_dict() == dict.fromkeys("ABCHE", True) | dict.fromkeys("DF", False)
    model.save(tmp_path)
    loaded = GEARS.load(tmp_path, False, accelerator="cpu")
    assert loaded.init_params_["non_kwargs"]["edges"]["source"].tolist() == ["C", "A"]
    found, expected = (m.predict(genes, "H").X for m in (loaded, model))
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("edges", [None, EDGES])
def test_an_untrained_model_keeps_its_graph_in_files(genes, toys, tmp_path, edges):
    GEARS.setup_anndata(genes, **TABLE)
    with pytest.warns(UserWarning, match="no neighbour"):
        model = GEARS(genes, edges=edges, **SMALL)
    model.save(tmp_path, save_anndata=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        loaded = GEARS.load(tmp_path, accelerator="cpu")
    for one in (model, loaded):
        one.train(max_epochs=1, seed=0, **toys.quiet)
    np.testing.assert_array_equal(loaded.predict(genes, "A").X, model.predict(genes, "A").X)
    assert torch.equal(loaded.module.perturbation_edges, model.module.perturbation_edges)


# ------------------------------------------------------------------ unseen perturbations


def test_unseen_genes_are_predicted_where_the_graph_joins_them_to_trained_ones(genes, toys):
    model = fit(toys, genes, max_epochs=2)
    found = model.coverage()
    assert found["trained"].to_dict() == dict.fromkeys("ABC", True) | dict.fromkeys("DEFH", False)
    assert found["predictable"].to_dict() == dict.fromkeys("ABCD", True) | dict.fromkeys("EFH", False)
    assert found["n_neighbors"].to_dict() == {"A": 2, "B": 2, "C": 1, "D": 1, "E": 1, "F": 1, "H": 0}
    predicted_means = model.predict(perturbation=["D", "A+D", "D+C"], returns="mean")
    assert np.isfinite(predicted_means.X).all()
    assert "D" in model.get_perturbation_embedding().index
    assert "H" not in model.get_perturbation_embedding().index


@pytest.mark.parametrize("label", ["H", "E", "A+H"])
def test_genes_that_nothing_joins_to_a_trained_one_are_refused_with_the_coverage(genes, toys, label):
    model = fit(toys, genes)
    with pytest.raises(ValueError, match=rf"'{label[-1]}' has no training cells.*3 of 7 perturbations \(E, F, H"):
        model.predict(perturbation=["A", label])


def test_without_a_table_only_trained_genes_are_predicted(genes, toys):
    genes.obs["split"] = np.where(genes.obs["perturbation"] == "C", "test", "train")
    model = fit(toys, genes, setup={}, split_key="split")
    assert model.module.perturbation_edges is None
    assert model.coverage()["predictable"].to_dict() == {"A": True, "B": True, "C": False}
    with pytest.raises(ValueError, match="perturbation_embedding_key"):
        model.predict(perturbation="C")


@pytest.mark.parametrize("layers", [1, 2])
def test_predictable_is_what_changes_with_what_was_trained(layers):
    """A vector that training moved changes the vectors of all that are made of it, and of nothing else."""
    module = make_module(n_perturbations=30, density=0.8, n_perturbation_layers=layers)
    module.known_codes, module.condition_cells = torch.tensor([[-1, -1], [0, 3]]), torch.ones(2)
    module.conclude([])
    module.perturbation_table.weight.grad = None
    (module.perturbation_vectors()[[0, 3]] * torch.randn(2, 6)).sum().backward()
    moved = module.perturbation_table.weight.grad.abs().sum(1) > 0
    before = module.perturbation_vectors()
    with torch.no_grad():
        module.perturbation_table.weight[moved] *= 0.5
    changes = (module.perturbation_vectors() - before).abs().sum(1) > 0
    assert torch.equal(module.informed, changes)
    assert 2 < int(changes.sum()) < 25


def test_a_gene_with_the_neighbours_of_another_gets_a_like_vector(genes, toys):
    """The vector of an unseen gene is made of those of its neighbours, and its own, which stays as it was drawn."""
    model = fit(toys, genes, max_epochs=2)
    module, names = model.module, list(TERMS)
    matrix = dense(module, "perturbation", 7)
    table = module.perturbation_table()
    layer = module.perturbation_graph.layers[0]
    d, a = names.index("D"), names.index("A")
    expected = layer(matrix[d, d] * table[d] + matrix[d, a] * table[a])
    np.testing.assert_allclose(model.get_perturbation_embedding().loc["D"], expected.detach(), rtol=1e-5, atol=1e-6)


def test_isolated_genes_are_named_when_the_model_is_made(genes):
    GEARS.setup_anndata(genes, **TABLE)
    with pytest.warns(UserWarning, match=r"1 of 7 perturbation\(s\) have no neighbour in the graph: H\."):
        GEARS(genes, **SMALL)


# ------------------------------------------------------------------ loss


def expected_loss(module, tensors, outputs, expressed, control_mean):
    """Condition by condition."""
    terms, codes = [], tensors["perturbation"]
    for condition in {tuple(row) for row in codes.tolist()}:
        cells = (codes == torch.tensor(condition)).all(1)
        kept = expressed[condition]
        y, y_hat = tensors["X"][cells][:, kept], outputs["px"][cells][:, kept]
        error = (y_hat - y) ** 4
        if "log_variance" in outputs:
            s = outputs["log_variance"][outputs["inverse"]][cells][:, kept]
            error = error + 0.7 * torch.exp(-s) * error
        term = error.mean()
        if module.direction_loss != "off":
            ways = {"sign": torch.sign, "tanh": lambda x: torch.tanh(10 * x)}
            way, centre = ways[module.direction_loss], control_mean[kept]
            term = term + module.direction_weight * (way(y - centre) - way(y_hat - centre)).square().mean()
        terms.append(term)
    return torch.stack(terms).mean()


@pytest.mark.parametrize("direction", ["off", "tanh", "sign"])
@pytest.mark.parametrize("uncertainty", [False, True])
def test_the_loss_is_the_mean_over_conditions_of_the_genes_that_they_express(direction, uncertainty):
    module = make_module(
        direction_loss=direction, direction_weight=0.3, uncertainty=uncertainty, uncertainty_weight=0.7
    ).eval()
    tensors = batch_of(CODES)
    known = [(-1, -1), (0, 1), (2, -1)]
    module.known_codes = torch.tensor(known)
    module.known_doses = (module.known_codes >= 0).float()
    module.expressed = torch.rand(3, 12, generator=torch.Generator().manual_seed(0)) < 0.6
    module.expressed[0] = True
    module.control_mean = torch.rand(12)
    # a condition that was not trained, such as one of validation cells, counts with all genes
    expressed = dict(zip(known, module.expressed, strict=True)) | {(4, -1): torch.ones(12, dtype=torch.bool)}
    outputs = predicted(module, tensors)
    found = module.loss(tensors, {}, outputs)
    expected = expected_loss(module, tensors, outputs, expressed, module.control_mean)
    np.testing.assert_allclose(found.loss.item(), expected.item(), rtol=1e-5)


def gradients(direction, weight):
    module = make_module(direction_loss=direction, direction_weight=weight).eval()
    module.control_mean = torch.full((12,), 0.5)
    tensors = batch_of(CODES)
    module.loss(tensors, {}, predicted(module, tensors)).loss.backward()
    return torch.cat([p.grad.ravel() for p in module.parameters()])


def test_the_sign_of_the_change_moves_no_weight_and_its_tanh_does():
    without = gradients("off", 0.5)
    assert torch.equal(gradients("sign", 0.5), without)
    assert not torch.allclose(gradients("tanh", 0.5), without, rtol=1e-3)


def test_genes_of_the_training_cells_alone_say_what_a_condition_expresses(genes, toys):
    genes.obs["split"] = np.where(np.arange(genes.n_obs) % 4 == 0, "test", "train")
    x, is_a = genes.X.toarray(), (genes.obs["perturbation"] == "A").to_numpy()
    is_train = (genes.obs["split"] == "train").to_numpy()
    x[is_a, 3] = 0
    x[is_a & is_train, 5] = 0
    assert x[is_a & ~is_train, 5].any()
    genes.X = x
    model = fit(toys, genes, split_key="split")
    at = model.trained_conditions_.index((("A", 1.0),))
    assert torch.nonzero(~model.module.expressed[at])[:, 0].tolist() == [3, 5]
    control = (genes.obs["perturbation"] == "control").to_numpy() & is_train
    np.testing.assert_allclose(model.module.control_mean, x[control].mean(0), rtol=1e-5)


# ------------------------------------------------------------------ choices


def test_uncertainty_is_a_log_variance_of_each_condition_and_gene(genes, toys):
    model = fit(toys, genes, init={"uncertainty": True}, max_epochs=2)
    found = model.uncertainty(["A", "D", "B + A"])
    assert found.index.tolist() == ["A", "D", "A+B"]
    assert found.columns.tolist() == genes.var_names.tolist()
    assert np.isfinite(found.to_numpy()).all()
    assert not np.allclose(found.loc["A"], found.loc["D"])
    assert model.uncertainty().index.tolist() == ["A", "A+B", "B", "C"]
    with pytest.raises(ValueError, match="'H' has no training cells"):
        model.uncertainty("H")


def test_uncertainty_is_refused_where_none_is_predicted(genes, toys):
    with pytest.raises(ValueError, match="uncertainty=True"):
        fit(toys, genes).uncertainty()


def test_layer_norm_leaves_no_statistics_of_batches(genes, toys):
    model = fit(toys, genes, init={"norm": "layer", "uncertainty": True}, max_epochs=2)
    assert not [key for key in model.module.state_dict() if "running" in key]
    assert model.uncertainty("A").to_numpy().std() > 0
    assert np.isfinite(model.predict().X).all()


def test_a_batch_of_one_perturbed_cell_is_no_obstacle():
    module = make_module().train()
    for codes in ([[0, -1]], [[0, -1], [-1, -1]], [[-1, -1], [-1, -1]]):
        tensors = batch_of(codes)
        loss = module.loss(tensors, {}, predicted(module, tensors)).loss
        loss.backward()
        assert torch.isfinite(loss)


def test_one_perturbation_is_learnt(toys):
    adata, shift = toys.planted(n=60)
    init = {"norm": "layer"}
    model = fit(toys, adata, setup={"context_key": "context"}, init=init, split_key="split", max_epochs=40, lr=1e-2)
    assert np.corrcoef(moved_by(model, "A"), shift)[0, 1] > 0.9


def test_statistics_are_those_of_the_last_weights_also_of_one_perturbation(toys):
    """A norm of rows that are all equal divides by next to nothing: lagging means would give anything."""
    adata, _ = toys.planted(n=60)
    module = fit(toys, adata, setup={}, max_epochs=5, lr=1e-2).module
    codes, n_cells = torch.tensor([[-1], [0]]), torch.tensor([50, 50])
    found, expected = (
        mode._fused(mode.perturbation_vectors(), codes, n_cells).detach() for mode in (module.eval(), module.train())
    )
    assert expected[1].abs().max() > 0.01
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_weights_and_graphs_are_all_that_a_file_holds(genes, toys, tmp_path):
    model = fit(toys, genes)
    model.save(tmp_path)
    kept = set(json.loads((tmp_path / "model.json").read_text())["tensors"])
    assert {"gene_edges", "perturbation_edges", "informed"} <= kept
    assert not {"expressed", "control_mean"} & kept


def test_half_precision_trains_and_an_estimate_is_made(genes, toys):
    model = fit(toys, genes, max_epochs=2, precision="bf16-mixed")
    assert np.isfinite(model.predict().X).all()
    assert model.module.joint_norm.running_var.dtype == torch.float32
    assert model.estimate(accelerator="cpu").memory > 0


def test_signed_data_are_legal(genes, toys):
    genes.X = genes.X.toarray() - 1
    model = fit(toys, genes, setup={**TABLE, "signed": True})
    assert (model.predict().X < 0).any()


def test_presets_make_models(genes):
    GEARS.setup_anndata(genes, **TABLE)
    for preset in GEARS.presets:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            model = GEARS(genes, preset=preset)
        assert model.module.gene_table.weight.shape == (20, GEARS.presets[preset].get("n_hidden", 64))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"n_hidden": 0}, "n_hidden=0"),
        ({"n_gene_layers": 0}, "n_gene_layers=0"),
        ({"n_perturbation_neighbors": 0}, "n_perturbation_neighbors=0"),
        ({"gene_threshold": 1.5}, "gene_threshold=1.5"),
        ({"perturbation_threshold": -1}, "perturbation_threshold=-1"),
        ({"similarity": "jacard"}, "did you mean 'jaccard'"),
        ({"direction_loss": "on"}, "direction_loss='on'"),
        ({"norm": "bach"}, "did you mean 'batch'"),
        ({"gamma": -1}, "gamma=-1"),
        ({"direction_weight": np.inf}, "direction_weight=inf"),
        ({"edges": EDGES[:1].assign(source="Q")}, "joins none of the 7"),
    ],
)
def test_bad_arguments_are_refused(genes, change, message):
    GEARS.setup_anndata(genes, **TABLE)
    with pytest.raises(ValueError, match=message):
        GEARS(genes, **change)


def test_jaccard_of_features_that_are_no_annotations_is_refused(genes):
    genes.uns["table"] = genes.uns["table"] * 0.5
    GEARS.setup_anndata(genes, **TABLE)
    with pytest.raises(ValueError, match="needs zeros and ones"):
        GEARS(genes, similarity="jaccard")


def test_doses_are_refused(genes):
    with pytest.raises(ValueError, match="does not use doses"):
        GEARS.setup_anndata(genes, dose_key="dose")


def test_the_default_shift_is_the_mean_change_of_skewed_genes_and_that_of_the_fourth_power_is_not(toys):
    rng, n, n_vars = np.random.default_rng(0), 400, 10
    label = np.repeat(["control", "A"], n)
    # few cells respond, strongly
    x = rng.gamma(2, 0.5, (2 * n, n_vars)) + ((label == "A") & (rng.random(2 * n) < 0.1))[:, None] * 5.0
    adata = AnnData(x.astype(np.float32), pd.DataFrame({"perturbation": label}, index=[f"c{i}" for i in range(2 * n)]))
    shift = {}
    for gamma in (None, 2.0):
        init = {"n_hidden": 16, "gene_threshold": 0.99} | ({} if gamma is None else {"gamma": gamma})
        model = toys.trained(GEARS, adata.copy(), init=init, max_epochs=60, batch_size=64, lr=5e-3, train_size=1.0)
        means = {p: model.predict(perturbation=p, returns="mean").X[0] for p in ("A", "control")}
        shift[gamma] = float((means["A"] - means["control"]).mean())
    true = float((x[label == "A"].mean(0) - x[label == "control"].mean(0)).mean())
    assert abs(shift[None] - true) < 0.15 * true
    assert abs(shift[2.0] - true) > 0.5 * true
