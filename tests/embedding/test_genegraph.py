"""Annotation tables from every form, and graphs against brute force."""

import gzip

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from multipert.embedding import annotation_table, gene_graph
from multipert.embedding._genegraph import known_edges, similarities, strongest

TERMS = {"A": {"x", "y"}, "B": {"x", "y", "z"}, "C": {"z"}, "D": {"w"}}


@pytest.fixture
def random_terms():
    rng = np.random.default_rng(0)
    return {f"G{i}": {f"T{t}" for t in rng.choice(12, rng.integers(1, 7), replace=False)} for i in range(30)}


def full(values, kind, block_bytes=2**20):
    return np.concatenate([block for _, block in similarities(np.asarray(values), kind, block_bytes)])


# ------------------------------------------------------------------ annotations


def test_a_table_holds_the_terms_of_each_gene():
    table = annotation_table(TERMS)
    assert {gene: set(row.index[row == 1]) for gene, row in table.iterrows()} == TERMS
    assert sorted(np.unique(table)) == [0, 1]
    assert table.dtypes.unique().tolist() == [np.int8]


def written(tmp_path):
    """The same annotations in every form."""
    pairs = [(gene, term) for gene, terms in TERMS.items() for term in sorted(terms)]
    yield pd.DataFrame(pairs[::-1], columns=["gene", "term"]).assign(evidence="IDA")
    gmt = "".join(f"{t}\tsome text\t" + "\t".join(g for g, own in pairs if own == t) + "\n" for t in "wxyz")
    for name, text in (("a.gmt", gmt), ("b.gaf", "!gaf-version: 2.2\n" + "".join(map(gaf_line, pairs)))):
        (tmp_path / name).write_text(text)
        yield tmp_path / name
        with gzip.open(tmp_path / f"{name}.gz", "wt") as file:
            file.write(text)
        yield str(tmp_path / f"{name}.gz")


def gaf_line(pair, qualifier="involved_in"):
    gene, term = pair
    return (
        f"UniProtKB\tP{gene}\t{gene}\t{qualifier}\t{term}\tPMID:1\tIDA\t\tP\tname\t\tprotein\ttaxon:9606\t20200101\tX\n"
    )


def test_all_forms_give_one_table(tmp_path):
    expected = annotation_table(TERMS)
    forms = list(written(tmp_path))
    assert len(forms) == 5
    for form in forms:
        pd.testing.assert_frame_equal(annotation_table(form), expected)


def test_negated_annotations_and_comments_are_left_out(tmp_path):
    path = tmp_path / "a.gaf"
    path.write_text("!a comment\n" + gaf_line(("A", "x")) + gaf_line(("A", "y"), "NOT|involved_in") + "\n")
    assert annotation_table(path).columns.tolist() == ["x"]


def test_genes_choose_the_rows_and_their_order_and_bare_ones_are_named():
    with pytest.warns(UserWarning, match=r"1 of 3 gene\(s\) have no annotation.*: Q\."):
        table = annotation_table(TERMS, genes=["C", "Q", "A"])
    assert table.index.tolist() == ["C", "Q", "A"]
    assert table.columns.tolist() == ["x", "y", "z"]
    assert table.loc["Q"].sum() == 0


def test_hallmark_sets_are_read(shared_data):
    table = annotation_table(shared_data / "hallmark_gene_sets.gmt.gz")
    assert table.shape[1] == 50
    assert table.loc["JUNB", "HALLMARK_TNFA_SIGNALING_VIA_NFKB"] == 1
    graph = gene_graph(table.head(300), n_neighbors=5)
    assert graph.groupby("target").size().max() == 5


@pytest.mark.parametrize(
    ("annotations", "genes", "error", "message"),
    [
        ({"A": "x"}, None, TypeError, "annotations\\['A'\\]='x' must be several"),
        (["A"], None, TypeError, "is a list"),
        (pd.DataFrame({"gene": ["A"], "go": ["x"]}), None, ValueError, "it needs 'gene' and 'term'"),
        (pd.DataFrame({"gene": ["A", None], "term": ["x", "y"]}), None, ValueError, "1 pair"),
        (TERMS, ["A", "A"], ValueError, "1 gene.*more than once: A"),
        (TERMS, ["a", "b"], ValueError, "no term of any of 2 gene"),
        ("no_such.gmt", None, FileNotFoundError, "no_such"),
        ("table.csv", None, ValueError, "must be a .gmt or .gaf"),
    ],
)
def test_bad_annotations_are_refused(annotations, genes, error, message):
    with pytest.raises(error, match=message):
        annotation_table(annotations, genes)


def test_a_file_of_another_kind_is_refused_with_its_line(tmp_path):
    path = tmp_path / "a.gmt"
    path.write_text("x\ttext\tA\nnot a set\n")
    with pytest.raises(ValueError, match=r"line 2, has 1 field"):
        annotation_table(path)


# ------------------------------------------------------------------ similarities


def test_jaccard_is_that_of_the_sets(random_terms):
    table, genes = annotation_table(random_terms), list(random_terms)
    found = full(table.loc[genes], "jaccard")
    for i, a in enumerate(genes):
        for j, b in enumerate(genes):
            one, other = random_terms[a], random_terms[b]
            assert found[i, j] == len(one & other) / len(one | other)


def test_jaccard_is_symmetric_one_with_itself_and_zero_without_a_shared_term(random_terms):
    found = full(annotation_table(random_terms), "jaccard")
    assert np.array_equal(found, found.T)
    assert (np.diag(found) == 1).all()
    assert found.min() >= 0
    assert found.max() <= 1
    few = full(annotation_table(TERMS), "jaccard")
    assert few[3, :3].tolist() == [0, 0, 0]
    assert few[0, 2] == 0


def test_a_gene_without_terms_is_like_nothing_and_gives_no_nan():
    found = full([[0, 0], [0, 0], [1, 0]], "jaccard")
    assert found.tolist() == [[0, 0, 0], [0, 0, 0], [0, 0, 1]]


def test_cosine_and_correlation_are_those_of_numpy():
    values = np.random.default_rng(0).normal(2, 1, (9, 6))
    np.testing.assert_allclose(full(values, "correlation"), np.corrcoef(values), atol=1e-12)
    unit = values / np.linalg.norm(values, axis=1, keepdims=True)
    np.testing.assert_allclose(full(values, "cosine"), unit @ unit.T, atol=1e-12)
    values[4] = 0.1
    assert (full(values, "correlation")[4] == 0).all()


@pytest.mark.parametrize("kind", ["jaccard", "cosine", "correlation"])
def test_blocks_change_nothing(kind):
    values = np.random.default_rng(0).integers(0, 2, (11, 6))
    np.testing.assert_allclose(full(values, kind, 1), full(values, kind), atol=1e-15)


# ------------------------------------------------------------------ graphs


@settings(max_examples=50, deadline=None)
@given(seed=st.integers(0, 999), k=st.integers(1, 8), threshold=st.floats(0, 0.9))
def test_strongest_is_the_head_of_a_stable_sort(seed, k, threshold):
    # few distinct values, so that many are equal
    block = np.random.default_rng(seed).integers(0, 5, (4, 6)) / 4
    expected = [
        (i, j, block[i, j])
        for i in range(4)
        for j in np.argsort(-block[i], kind="stable")[:k].tolist()
        if block[i, j] > threshold
    ]
    assert list(zip(*(part.tolist() for part in strongest(block, k, threshold)), strict=True)) == expected


def test_the_graph_holds_the_nearest_of_each_gene(random_terms):
    table = annotation_table(random_terms)
    similarity = pd.DataFrame(full(table, "jaccard"), index=table.index, columns=table.index)
    graph = gene_graph(table, n_neighbors=4, threshold=0.15)
    for gene in table.index:
        others = similarity.loc[gene].drop(gene).sort_values(ascending=False, kind="stable")[:4]
        others = others[others > 0.15]
        here = graph[graph["target"] == gene]
        assert here["source"].tolist() == others.index.tolist()
        assert here["importance"].tolist() == others.tolist()
    assert graph["target"].drop_duplicates().tolist() == [g for g in table.index if g in set(graph["target"])]


def test_a_gene_is_no_neighbour_of_itself_also_among_equals():
    graph = gene_graph(pd.DataFrame(np.ones((4, 2), dtype=int), index=list("ABCD")), n_neighbors=2)
    assert (graph["source"] != graph["target"]).all()
    assert graph["source"].tolist() == ["B", "C", "A", "C", "A", "B", "A", "B"]


def test_the_similarity_is_chosen_by_the_values():
    ones = annotation_table(TERMS)
    pd.testing.assert_frame_equal(gene_graph(ones), gene_graph(ones, similarity="jaccard"))
    other = ones + 0.5
    pd.testing.assert_frame_equal(gene_graph(other), gene_graph(other, similarity="cosine"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"n_neighbors": 0}, "n_neighbors=0"),
        ({"n_neighbors": 1.5}, "n_neighbors=1.5"),
        ({"threshold": -0.1}, "threshold=-0.1"),
        ({"similarity": "cosin"}, "did you mean 'cosine'"),
        ({"table": annotation_table(TERMS) * 2.0, "similarity": "jaccard"}, "7 value"),
        ({"table": pd.DataFrame({"f": [1.0, np.nan]}, index=["A", "B"])}, "1 row.*: B"),
        ({"table": pd.DataFrame({"f": [1.0, 2.0]}, index=["A", "A"])}, "repeats 1 gene.*: A"),
        ({"table": pd.DataFrame({"f": ["x", "y"]}, index=["A", "B"])}, "give numbers"),
    ],
)
def test_bad_tables_and_limits_are_refused(change, message):
    arguments = {"table": annotation_table(TERMS), **change}
    with pytest.raises(ValueError, match=message):
        gene_graph(**arguments)


# ------------------------------------------------------------------ ready edges


def ready(*rows):
    return pd.DataFrame(rows, columns=["source", "target", "importance"])


def test_edges_between_known_genes_are_kept_strongest_first_loops_beside():
    edges = ready(("A", "B", 0.2), ("C", "B", 0.9), ("B", "B", 0.1), ("Q", "B", 1), ("D", "B", 0.9), ("B", "A", 3))
    found = known_edges(edges, list("ABCD"), 2)
    assert found.to_numpy().tolist() == [["B", "A", 3], ["C", "B", 0.9], ["D", "B", 0.9], ["B", "B", 0.1]]
    pd.testing.assert_frame_equal(known_edges(found, list("ABCD"), 2), found)


def test_a_graph_of_a_table_passes_through(random_terms):
    graph = gene_graph(annotation_table(random_terms))
    pd.testing.assert_frame_equal(known_edges(graph, sorted(random_terms), 20), graph, check_dtype=False)


@pytest.mark.parametrize(
    ("edges", "error", "message"),
    [
        ([("A", "B", 1)], TypeError, "is a list"),
        (ready(("A", "B", 1)).rename(columns={"importance": "importanc"}), ValueError, "did you mean 'importanc'"),
        (ready(("A", "B", -1.0)), ValueError, r"1 importance\(s\).*row 0"),
        (ready(("A", "B", np.nan)), ValueError, r"1 importance\(s\)"),
        (ready(("A", "B", 1), ("A", "B", 2)), ValueError, "first 'A' to 'B'"),
        (ready(("a", "b", 1), ("A", "A", 1)), ValueError, "joins none of the 2 perturbations"),
    ],
)
def test_bad_edges_are_refused(edges, error, message):
    with pytest.raises(error, match=message):
        known_edges(edges, ["A", "B"], 5)
