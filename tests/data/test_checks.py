import numpy as np
import pandas as pd
import pytest
from anndata import AnnData
from scipy import sparse

from multipert.data import _checks
from multipert.data._checks import check_column, check_control, check_expression, check_genes, check_names

CONTAINERS = {"ndarray": np.asarray, "csr": sparse.csr_matrix, "csc": sparse.csc_matrix}
RNG = np.random.default_rng(0)
X = (np.log1p(RNG.poisson(1.0, (30, 6))) * 1.01).astype(np.float32)
ADATA = AnnData(
    X, obs=pd.DataFrame(index=[f"c{i}" for i in range(30)]), var=pd.DataFrame(index=[f"g{i}" for i in range(6)])
)


@pytest.fixture(params=CONTAINERS)
def held(request):
    return CONTAINERS[request.param]


@pytest.fixture(params=["one block", "a block per row"])
def _blocks(request, monkeypatch):
    if request.param != "one block":
        monkeypatch.setattr(_checks, "_BLOCK_BYTES", 1)
        monkeypatch.setattr(_checks.row_blocks, "__defaults__", (None, 1))


def with_values(places, dtype="float32"):
    x = X.astype(dtype)
    for (cell, gene), value in places.items():
        x[cell, gene] = value
    return x


def refusal(x, **kwargs) -> str:
    with pytest.raises(ValueError, match=r"layers\['norm'\]") as error:
        check_expression(x, ADATA, name="layers['norm']", **kwargs)
    return str(error.value)


@pytest.mark.usefixtures("_blocks")
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_values_that_are_not_finite_are_counted_and_placed(held, value, dtype):
    message = refusal(held(with_values({(3, 1): value, (3, 4): value, (7, 0): value, (29, 5): value}, dtype)))
    assert "has 4 NaN or infinite value(s)" in message
    first = sorted(["cell 'c3', gene 'g1'", "cell 'c3', gene 'g4'", "cell 'c7', gene 'g0'"])
    assert all(place in message for place in first)
    assert "'c29'" not in message


def test_a_float64_beyond_float32_is_infinite(held):
    assert "has 1 NaN or infinite value(s), first at cell 'c2', gene 'g3'" in refusal(
        held(with_values({(2, 3): 1e39}, "float64"))
    )


@pytest.mark.usefixtures("_blocks")
def test_negative_values_are_counted_and_placed_unless_signed(held):
    x = held(with_values({(3, 1): -0.5, (28, 2): -1.5}))
    message = refusal(x)
    assert "has 2 negative value(s), first at cell 'c3', gene 'g1'; cell 'c28', gene 'g2'" in message
    assert "signed=True" in message
    check_expression(x, ADATA, name="X", signed=True)
    assert "has 2 negative value(s)" in refusal(held(np.rint(with_values({(3, 1): -1, (28, 2): -2}))), counts=True)


@pytest.mark.usefixtures("_blocks")
@pytest.mark.parametrize("dtype", ["int32", "int64", "uint8", "float32", "float64"])
def test_integers_are_refused_or_needed(held, dtype):
    counts = held(RNG.poisson(1.0, X.shape).astype(dtype))
    assert "integers only, which looks like raw counts" in refusal(counts)
    assert "scanpy.pp.log1p" in refusal(counts)
    check_expression(counts, ADATA, name="X", counts=True)
    check_expression(held(X), ADATA, name="X")


@pytest.mark.usefixtures("_blocks")
def test_fractions_are_counted_where_counts_are_needed(held):
    counts = RNG.poisson(1.0, X.shape).astype("float32")
    counts[4, 2], counts[9, 0] = 0.5, 1.25
    message = refusal(held(counts), counts=True)
    assert "2 value(s) are not integers, first at cell 'c4', gene 'g2'; cell 'c9', gene 'g0'" in message


def test_zeros_and_signed_integers_are_no_counts(held):
    check_expression(held(np.zeros_like(X)), ADATA, name="X")
    check_expression(held(RNG.integers(-2, 3, X.shape).astype("float32")), ADATA, name="X", signed=True)


def test_only_the_rows_asked_for_are_read(held):
    x = held(with_values({(3, 1): np.nan}))
    check_expression(x, ADATA, name="X", rows=np.array([0, 2, 4, 29]))
    assert "cell 'c3', gene 'g1'" in refusal(x, rows=np.array([0, 3, 29]))


def test_an_absent_column_names_the_columns_and_the_nearest():
    obs = pd.DataFrame({"perturbation": ["a"], "batch": ["x"]})
    with pytest.raises(
        KeyError, match="dose_key='perturbatoin' .* did you mean 'perturbation'.*Columns: perturbation, batch"
    ):
        check_column(obs, "perturbatoin", "dose_key")
    with pytest.raises(KeyError, match="Columns: none"):
        check_column(obs[[]], "x", "dose_key")


@pytest.mark.parametrize("missing", [None, np.nan, pd.NA])
def test_missing_values_are_counted_and_placed(missing):
    obs = pd.DataFrame({"dose": pd.Series([1.0, missing, 2.0, missing], dtype=object)}).set_axis(list("wxyz"))
    with pytest.raises(
        ValueError, match=r"obs\['dose'\] \(dose_key\) has 2 missing value\(s\), first at 'x', 'z'; fill"
    ):
        check_column(obs, "dose", "dose_key")
    with pytest.raises(ValueError, match="2 missing"):
        check_column(obs.astype("category"), "dose", "dose_key")


@pytest.mark.parametrize(
    ("axis", "remedy"), [("obs_names", "obs_names_make_unique"), ("var_names", "var_names_make_unique")]
)
@pytest.mark.filterwarnings("ignore:.*names are not unique")
def test_repeated_names_are_counted(axis, remedy):
    adata = ADATA.copy()
    names = getattr(adata, axis).to_numpy().copy()
    names[1:3] = names[0]
    setattr(adata, axis, names)
    with pytest.raises(ValueError, match=rf"{axis} holds 2 duplicate\(s\): '{names[0]}'; run adata\.{remedy}"):
        check_names(adata)


@pytest.mark.parametrize("shape", [(0, 3), (3, 0)])
def test_no_cells_or_no_genes_are_refused(shape):
    with pytest.raises(ValueError, match=f"has {shape[0]} cells and {shape[1]} genes"):
        check_names(AnnData(np.zeros(shape, dtype="float32")))


def test_genes_must_be_the_same_in_the_same_order():
    genes = pd.Index(["g0", "g1", "g2"])
    check_genes(genes, list(genes))
    for given, message in {
        ("g1", "g0", "g2"): "another order; pass adata[:, model.get_var_names()]",
        ("g0", "g1"): "lacks 1 of the model's 3 genes: g2",
        ("x", "y", "z"): "lacks 3 of the model's 3 genes: g0, g1, g2",
        ("g0", "g1", "g2", "g3"): "has 1 gene(s) more than the model; pass adata[:, model.get_var_names()]",
    }.items():
        with pytest.raises(ValueError, match="var_names") as error:
            check_genes(pd.Index(given), list(genes))
        assert message in str(error.value)


def test_no_control_cell_names_the_labels_seen():
    labels = pd.Series(["A", "Control", "A"])
    with pytest.raises(
        ValueError, match="no label 'control'; did you mean 'Control'.*seen \\(2\\): 'A', 'Control'"
    ) as error:
        check_control(labels, np.zeros(3, dtype=bool), "perturbation", "control")
    assert "obs['perturbation']" in str(error.value)
    check_control(labels, np.array([False, True, False]), "perturbation", "Control")
