import numpy as np
import pandas as pd
import pytest
from anndata import AnnData

from multipert.splits import context_transfer


@pytest.fixture
def adata():
    contexts = np.repeat(["A", "B", "C"], 40)
    labels = np.tile(np.repeat(["control", "x", "y", "control"], 10), 3)
    obs = pd.DataFrame({"context": contexts, "perturbation": labels}, index=[f"c{i}" for i in range(120)])
    return AnnData(np.zeros((120, 2), dtype=np.float32), obs=obs)


def test_holds_out_exactly_the_perturbed_cells_of_the_context(adata):
    split = context_transfer(adata, "B")
    expected = (adata.obs["context"] == "B") & (adata.obs["perturbation"] != "control")
    assert ((split == "test") == expected).all()
    assert (split[~expected] == "train").all()
    assert split.index.equals(adata.obs_names)


def test_one_perturbation_leaves_the_others_in_training(adata):
    split = context_transfer(adata, ["A", "B"], perturbation="x")
    test = adata.obs[split == "test"]
    assert set(test["perturbation"]) == {"x"}
    assert set(test["context"]) == {"A", "B"}
    assert len(test) == 20


def test_validation_cells_come_from_training_and_depend_on_the_seed_only(adata):
    first, again, other = (context_transfer(adata, "A", val_size=0.2, seed=s) for s in (0, 0, 1))
    assert (first == again).all()
    assert (first != other).any()
    assert (first == "val").sum() == round(0.2 * 100)
    assert ((first == "test") == (context_transfer(adata, "A") == "test")).all()


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"hold_out": "b"}, "did you mean 'B'"),
        ({"hold_out": "A", "perturbation": "z"}, "perturbation='z'"),
        ({"hold_out": "A", "val_size": 1.0}, "val_size"),
    ],
)
def test_unknown_names_are_refused(adata, kwargs, message):
    with pytest.raises(ValueError, match=message):
        context_transfer(adata, **kwargs)


def test_a_combination_is_held_out_however_it_is_written(adata):
    adata.obs["perturbation"] = adata.obs["perturbation"].replace({"x": "b + a"})
    split = context_transfer(adata, "A", perturbation="a+b")
    assert set(adata.obs.loc[split == "test", "perturbation"]) == {"b + a"}
    with pytest.raises(ValueError, match=r"perturbation='a\+b'"):
        context_transfer(adata, "A", perturbation="a+b", delimiter=None)


def test_a_context_without_controls_is_refused(adata):
    kept = adata[~((adata.obs["context"] == "C") & (adata.obs["perturbation"] == "control"))]
    with pytest.raises(ValueError, match="no control cell"):
        context_transfer(kept, "C")
