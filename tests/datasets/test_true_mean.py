import anndata as ad
import numpy as np
import pandas as pd
import pytest

from multipert.datasets import network_edges, simulate, true_de_genes, true_effects, true_mean
from multipert.datasets._true_mean import expected_log1p


@pytest.fixture(scope="module")
def many_cells():
    """Enough cells for means, with everything switched on."""
    return simulate(
        n_cells=12_000, n_vars=40, n_contexts=2, n_perturbations=3, doses=(1, 10), combinations=3, features=2,
        covariates=2, seed=4,
    )  # fmt: skip


@pytest.fixture(scope="module")
def pairs():
    return simulate(n_cells=400, n_vars=200, n_contexts=2, n_perturbations=3, combinations=3, seed=2)


def own_label_means(adata, space):
    """Truth of every cell under the label and dose it has."""
    out = np.empty(adata.shape)
    for (label, dose), rows in adata.obs.groupby(["perturbation", "dose"], observed=True).indices.items():
        out[rows] = true_mean(adata[rows], label, dose, space=space)
    return out


def test_counts_have_the_stated_moments(many_cells):
    mean = own_label_means(many_cells, "counts")
    variance = mean + many_cells.uns["simulation"]["dispersion"] * mean**2
    counts = many_cells.layers["counts"].toarray()
    scores, spread = [], []
    for rows in many_cells.obs.groupby(["perturbation", "dose", "context"], observed=True).indices.values():
        residual = counts[rows] - mean[rows]
        scores.append(residual.sum(axis=0) / np.sqrt(variance[rows].sum(axis=0)))
        spread.append((residual**2).sum() / variance[rows].sum())
    z = np.concatenate(scores)
    assert abs(z.mean()) < 0.15
    assert 0.85 < (z**2).mean() < 1.15
    assert 0.9 < np.mean(spread) < 1.1


def test_log1p_is_the_expectation_of_x(many_cells):
    mean = own_label_means(many_cells, "log1p")
    x = many_cells.X.toarray()
    scores = []
    for rows in many_cells.obs.groupby(["perturbation", "dose", "context"], observed=True).indices.values():
        expressed = mean[rows].mean(axis=0) > 0.3  # a gene that is never seen has no empirical spread
        residual = (x[rows] - mean[rows])[:, expressed]
        scores.append(residual.mean(axis=0) / residual.std(axis=0) * np.sqrt(len(rows)))
    z = np.concatenate(scores)
    assert abs(z.mean()) < 0.15
    assert 0.85 < (z**2).mean() < 1.15


def test_log1p_is_not_log1p_of_the_mean(many_cells):
    control = many_cells[:200]
    counts = true_mean(control, "control").astype(float)
    target = many_cells.uns["simulation"]["target_sum"]
    naive = np.log1p(target * counts / counts.sum(axis=1, keepdims=True))
    assert (naive - true_mean(control, "control", space="log1p")).mean() > 0.05


def test_expected_log1p_of_one_gene_is_exact():
    # a cell with one gene has all its counts there, or none
    mean, dispersion, target = np.array([[0.5], [30.0]]), np.array([0.7]), 800.0
    exact = np.log1p(target) * (1 - (1 + mean * dispersion) ** (-1 / dispersion))
    np.testing.assert_allclose(expected_log1p(mean, dispersion, target), exact, atol=2e-5)


def test_expected_log1p_of_two_genes_by_enumeration():
    mean, dispersion, target = np.array([[1.5, 3.0]]), np.array([0.4, 1.2]), 100.0
    y = np.arange(150)

    def probabilities(m, d):
        from scipy.stats import nbinom

        return nbinom.pmf(y, 1 / d, 1 / (1 + m * d))

    joint = np.outer(probabilities(1.5, 0.4), probabilities(3.0, 1.2))
    total = np.maximum(y[:, None] + y, 1)
    exact = [(joint * np.log1p(target * y[:, None] / total)).sum(), (joint * np.log1p(target * y / total)).sum()]
    np.testing.assert_allclose(expected_log1p(mean, dispersion, target)[0], exact, atol=2e-5)


def test_order_spaces_and_control_parts_do_not_matter(pairs):
    first = true_mean(pairs, "P1+P2")
    for label in ("P2+P1", " P2 + P1 ", "P1+control+P2"):
        assert np.array_equal(first, true_mean(pairs, label))
    assert not np.allclose(first, true_mean(pairs, "P1+P3"))


def test_dose_zero_is_control(many_cells):
    cells = many_cells[:50]
    control = true_mean(cells, "control")
    assert np.array_equal(control, true_mean(cells, "control", 0))
    assert np.array_equal(control, true_mean(cells, "P1", 0))
    assert np.array_equal(true_mean(cells, "P1+P2", "0+10"), true_mean(cells, "P2", 10))
    assert np.array_equal(true_mean(cells, "P2+P1", "10+1"), true_mean(cells, "P1+P2", "1+10"))
    assert not np.allclose(true_mean(cells, "P2+P1", "10+1"), true_mean(cells, "P2+P1", "1+10"))


def test_hill_curve(many_cells):
    truth = many_cells.uns["simulation"]
    index = truth["perturbations"].tolist().index("P2")
    half = truth["half_dose"][index]
    full = true_effects(many_cells, "P2", 1e9)
    np.testing.assert_allclose(true_effects(many_cells, "P2", half), full / 2, atol=1e-6)
    expected = 3.0 ** truth["hill"][index] / (1 + 3.0 ** truth["hill"][index])
    np.testing.assert_allclose(true_effects(many_cells, "P2", 3 * half), expected * full, atol=1e-6)


def test_pairs_combine_as_their_kind_says(pairs):
    truth = pairs.uns["simulation"]
    control = np.log(true_mean(pairs, "control"))
    for (a, b), kind, weight in zip(truth["pairs"], truth["pair_kind"], truth["pair_weight"], strict=True):
        first, second = truth["perturbations"][a], truth["perturbations"][b]
        delta_a, delta_b, both = (
            np.log(true_mean(pairs, label)) - control for label in (first, second, f"{first}+{second}")
        )
        if kind == "additive":
            expected = delta_a + delta_b
        elif kind == "synergistic":
            expected = 1.5 * (delta_a + delta_b)
        else:
            assert sorted(weight) == [0.1, 1.0]
            expected = weight[0] * delta_a + weight[1] * delta_b
        np.testing.assert_allclose(both, expected, atol=1e-4)
    assert sorted(truth["pair_kind"]) == ["additive", "masking", "synergistic"]


def test_counterfactual_keeps_the_cell_and_ignores_its_label(pairs):
    relabelled = pairs.copy()
    relabelled.obs["perturbation"] = "control"
    assert np.array_equal(true_mean(pairs, "P1"), true_mean(relabelled, "P1"))
    # a cell with twice the size has twice the counts
    relabelled.obsm["simulation"][:, 0] += np.log(2)
    np.testing.assert_allclose(true_mean(relabelled, "P1"), 2 * true_mean(pairs, "P1"), rtol=1e-5)
    # a cell of no responsiveness stays as it is
    relabelled.obsm["simulation"][:, 1] = 0
    assert np.array_equal(true_mean(relabelled, "P1"), true_mean(relabelled, "control"))


@pytest.mark.parametrize("space", ["counts", "log1p"])
def test_follows_subsets_of_cells_and_genes(pairs, space):
    rng = np.random.default_rng(0)
    cells, genes = rng.permutation(pairs.n_obs)[:37], rng.permutation(pairs.n_vars)[:11]
    whole = true_mean(pairs, "P3", space=space)
    part = true_mean(pairs[cells][:, genes].copy(), "P3", space=space)
    np.testing.assert_allclose(part, whole[np.ix_(cells, genes)], rtol=1e-5)
    effects = true_effects(pairs[cells][:, genes], "P3")
    pd.testing.assert_frame_equal(effects, true_effects(pairs, "P3").iloc[:, genes])


def test_contexts_differ_in_strength(pairs):
    effects = true_effects(pairs, "P1")
    assert effects.index.tolist() == ["context_1", "context_2"]
    correlation = np.corrcoef(effects)[0, 1]
    assert 0.3 < correlation < 0.99
    control, treated = true_mean(pairs, "control"), true_mean(pairs, "P1")
    rows = (pairs.obs["context"] == "context_2").to_numpy()
    responsiveness = pairs.obsm["simulation"][rows, [1]][:, None]
    found = np.log(treated[rows] / control[rows]) / responsiveness
    np.testing.assert_allclose(found, np.broadcast_to(effects.loc["context_2"], found.shape), atol=1e-4)


def test_de_genes_are_the_large_effects(pairs):
    effects = true_effects(pairs, "P1")
    table = true_de_genes(pairs, "P1", min_effect=0.5)
    assert len(table) == (effects.abs() >= 0.5).to_numpy().sum() > 0
    for _, rows in table.groupby("context"):
        assert rows["effect"].abs().is_monotonic_decreasing
    for row in table.itertuples():
        assert effects.loc[row.context, row.gene] == row.effect
    assert len(true_de_genes(pairs, "control")) == 0


def test_effects_travel_along_the_edges_only(pairs):
    edges = network_edges(pairs)
    assert set(edges["source"]) | set(edges["target"]) <= set(pairs.var_names)
    assert (edges["source"] != edges["target"]).all()
    truth = pairs.uns["simulation"]
    reached = set(pairs.var_names[truth["target_gene"][truth["target_programme"] == 0]])
    for _ in range(2):
        reached |= set(edges.loc[edges["source"].isin(reached), "target"])
    changed = set(true_de_genes(pairs, "P1", min_effect=1e-9)["gene"])
    assert changed == reached
    assert 0 < len(reached) < pairs.n_vars


def test_features_explain_unseen_perturbations(many_cells):
    embedding = many_cells.uns["perturbation_embedding"]
    unseen = [name for name in embedding.index if name not in set(many_cells.obs["perturbation"])]
    assert len(unseen) == 2
    # at equal strength effects are linear in the features: learn from the observed, predict the unseen
    truth = many_cells.uns["simulation"]
    effects = {
        name: true_effects(many_cells, name, 1e12).loc["context_1"].to_numpy() / truth["strength"][0, i]
        for i, name in enumerate(embedding.index)
    }
    seen = [name for name in embedding.index if name not in unseen]
    weights = np.linalg.lstsq(embedding.loc[seen], np.stack([effects[name] for name in seen]), rcond=None)[0]
    for name in unseen:
        np.testing.assert_allclose(embedding.loc[name] @ weights, effects[name], atol=1e-6)
        assert np.abs(effects[name]).max() > 0.1


def test_survives_h5ad(many_cells, tmp_path):
    cells = many_cells[:100].copy()
    cells.write_h5ad(tmp_path / "screen.h5ad")
    back = ad.read_h5ad(tmp_path / "screen.h5ad")
    for label, dose in [("control", None), ("P1", 3), ("P2+P1", "1+10"), ("P5", 10)]:
        for space in ("counts", "log1p"):
            assert np.array_equal(true_mean(cells, label, dose, space), true_mean(back, label, dose, space))
    pd.testing.assert_frame_equal(network_edges(cells), network_edges(back))
    assert list(back.uns["perturbation_embedding"].index) == list(cells.uns["perturbation_embedding"].index)


def test_survives_h5ad_without_extras(tmp_path):
    plain = simulate(n_cells=40, n_vars=20, n_contexts=1, n_perturbations=1)
    plain.write_h5ad(tmp_path / "screen.h5ad")
    assert np.array_equal(true_mean(plain, "P1"), true_mean(ad.read_h5ad(tmp_path / "screen.h5ad"), "P1"))


def test_truth_is_small(many_cells):
    sizes = [np.size(value) for value in many_cells.uns["simulation"].values()]
    assert max(sizes) < many_cells.n_obs


@pytest.mark.parametrize(
    ("label", "dose", "space", "message"),
    [
        ("P9", 1, "counts", "Unknown perturbation 'P9'"),
        ("P1", None, "counts", "name the `dose`"),
        ("P1", -1, "counts", "negative or not finite"),
        ("P1", float("nan"), "counts", "negative or not finite"),
        ("P1+P2", "1+2+3", "counts", "3"),
        ("P1", 1, "log", "space='log'"),
    ],
)
def test_bad_requests(many_cells, label, dose, space, message):
    with pytest.raises(ValueError, match=message):
        true_mean(many_cells[:5], label, dose, space)


def test_bad_data(pairs):
    with pytest.raises(ValueError, match="without doses"):
        true_mean(pairs, "P1", 2)
    with pytest.raises(ValueError, match="0 cells"):
        true_mean(pairs[:0], "P1")
    with pytest.raises(KeyError, match="no simulated screen"):
        true_mean(ad.AnnData(np.ones((2, 2), dtype=np.float32)), "P1")
    bare = pairs.copy()
    del bare.obs["context"]
    with pytest.raises(KeyError, match="lacks obs\\['context'\\]"):
        true_mean(bare, "P1")
    bare = pairs.copy()
    del bare.obsm["simulation"]
    with pytest.raises(KeyError, match="lacks obsm"):
        true_mean(bare, "P1")
    renamed = pairs.copy()
    renamed.obs["context"] = "liver"
    with pytest.raises(ValueError, match="unknown context.*'liver'"):
        true_mean(renamed, "P1")
    renamed = pairs.copy()
    renamed.var_names = [f"x{name}" for name in renamed.var_names]
    with pytest.raises(ValueError, match="200 unknown gene"):
        true_mean(renamed, "P1")


def test_covariate_shifts_the_counts_of_a_cell(many_cells):
    swapped = many_cells[:60].copy()
    swapped.obs["covariate"] = swapped.obs["covariate"].map(
        {"covariate_1": "covariate_2", "covariate_2": "covariate_1"}
    )
    found = np.log(true_mean(swapped, "P1", 10) / true_mean(many_cells[:60], "P1", 10))
    first, second = many_cells.uns["simulation"]["covariate_effects"]
    was_first = (many_cells.obs["covariate"][:60] == "covariate_1").to_numpy()[:, None]
    np.testing.assert_allclose(found, np.where(was_first, second - first, first - second), atol=1e-4)
    assert np.abs(second - first).max() > 0.2


def test_interaction_fades_with_the_dose_of_the_partner(many_cells):
    truth = many_cells.uns["simulation"]
    pair = truth["pair_kind"].tolist().index("synergistic")
    a, b = truth["perturbations"][truth["pairs"][pair]]
    response = [
        dose ** truth["hill"][i] / (dose ** truth["hill"][i] + truth["half_dose"][i] ** truth["hill"][i])
        for i, dose in zip(truth["pairs"][pair], (1.0, 10.0), strict=True)
    ]
    expected = (
        true_effects(many_cells, a, 1) * 1.5 ** response[1] + true_effects(many_cells, b, 10) * 1.5 ** response[0]
    )
    np.testing.assert_allclose(true_effects(many_cells, f"{a}+{b}", "1+10"), expected, atol=1e-9)
    assert abs(response[0] - response[1]) > 0.1


def test_genes_that_are_off_in_a_context_answer_less(pairs):
    """The effect, worked out again gene by gene and edge by edge."""
    truth = pairs.uns["simulation"]
    weights = np.zeros((pairs.n_vars, pairs.n_vars))
    weights[truth["edge_source"], truth["edge_target"]] = truth["edge_weight"]
    push = np.zeros(pairs.n_vars)
    mine = truth["target_programme"] == 1
    push[truth["target_gene"][mine]] = truth["target_weight"][mine]
    for c, context in enumerate(truth["contexts"]):
        gate = np.diag(truth["activity"][c])
        direct = push @ gate
        expected = truth["strength"][c, 1] * (
            direct + direct @ weights @ gate + direct @ weights @ gate @ weights @ gate
        )
        np.testing.assert_allclose(true_effects(pairs, "P2").loc[context], expected, atol=1e-9)
    # activity grows with the expression of the gene in the context
    more = truth["log_rate"][0] - truth["log_rate"][1]
    assert np.corrcoef(more, truth["activity"][0] - truth["activity"][1])[0, 1] > 0.7
