import anndata as ad
import numpy as np
import pandas as pd
import pytest
from scipy import sparse

from multipert.datasets import add_control


def ratios(kind=np.asarray):
    values = np.array([[1.0, -2.0, 0.5], [0.3, 0.0, -1.0], [2.0, 1.0, 1.0], [-1.0, -1.0, 4.0]], dtype=np.float32)
    obs = pd.DataFrame(
        {
            "perturbation": pd.Categorical(["A", "B", "A", "B"]),
            "line": pd.Categorical(["x", "x", "y", "y"]),
            "site": ["s1", "s1", "s1", "s2"],
            "dose": [1.0, 2.0, 1.0, 2.0],
        },
        index=["a", "b", "c", "d"],
    )
    adata = ad.AnnData(kind(values), obs=obs, var=pd.DataFrame({"long": [1, 2, 3]}, index=["g1", "g2", "g3"]))
    adata.layers["raw"] = kind(values + 1)
    adata.uns["note"] = "z"
    return adata


@pytest.mark.parametrize("kind", [np.asarray, sparse.csr_matrix, sparse.csc_matrix, sparse.csr_array])
def test_one_block_of_zero_rows(kind):
    adata = ratios(kind)
    out = add_control(adata, n_cells=3)
    assert out.shape == (7, 3)
    assert type(out.X) is type(adata.X)
    assert out.X.dtype == np.float32
    dense, raw = (m.toarray() if sparse.issparse(m) else m for m in (out.X, out.layers["raw"]))
    assert np.array_equal(dense[:4], ratios().X)
    assert not dense[4:].any()
    assert not raw[4:].any()
    assert out.obs["perturbation"].tolist() == ["A", "B", "A", "B"] + ["control"] * 3
    assert out.obs_names.is_unique
    assert out.var.equals(adata.var)
    assert out.uns["note"] == "z"
    assert adata.shape == (4, 3)
    assert "control" not in adata.obs["perturbation"].cat.categories


def test_one_block_per_context():
    out = add_control(ratios(), context_key="line", dose_key="dose", n_cells=2)
    new = out.obs.iloc[4:]
    assert new["line"].tolist() == ["x", "x", "y", "y"]
    assert new["dose"].tolist() == [0] * 4
    assert (new["perturbation"] == "control").all()
    # a value is kept where the whole block has it, and not made up elsewhere
    assert new["site"].iloc[:2].tolist() == ["s1", "s1"]
    assert new["site"].iloc[2:].isna().all()
    assert isinstance(out.obs["line"].dtype, pd.CategoricalDtype)


def test_doses_written_as_text():
    adata = ratios()
    adata.obs["dose"] = pd.Categorical(["1", "1+2", "1", "2"])
    out = add_control(adata, dose_key="dose", control="vehicle", n_cells=1)
    assert out.obs["dose"].iloc[-1] == "0"
    assert out.obs["perturbation"].iloc[-1] == "vehicle"


def test_survives_h5ad(tmp_path):
    out = add_control(ratios(sparse.csr_matrix), context_key="line", dose_key="dose")
    out.write_h5ad(tmp_path / "ratios.h5ad")
    back = ad.read_h5ad(tmp_path / "ratios.h5ad")
    assert back.shape == (24, 3)
    assert back.obs["perturbation"].tolist() == out.obs["perturbation"].tolist()


def test_errors():
    with pytest.raises(KeyError, match="perturbation_key='drug'.*perturbation, line"):
        add_control(ratios(), "drug")
    with pytest.raises(KeyError, match="context_key='tissue'"):
        add_control(ratios(), context_key="tissue")
    with pytest.raises(ValueError, match="n_cells=0"):
        add_control(ratios(), n_cells=0)
    with pytest.raises(ValueError, match="2 rows labelled 'A' already"):
        add_control(ratios(), control="A")
    with pytest.raises(ValueError, match="0 cells"):
        add_control(ratios()[:0])
    missing = ratios()
    missing.obs.loc["a", "line"] = np.nan
    with pytest.raises(ValueError, match="missing in 1 rows"):
        add_control(missing, context_key="line")
    taken = ratios()
    taken.obs_names = ["control_1", "b", "c", "d"]
    with pytest.raises(ValueError, match="first 'control_1'"):
        add_control(taken)
