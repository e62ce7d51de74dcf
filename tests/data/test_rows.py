import numpy as np
import pandas as pd
import pytest

from multipert.data._rows import split_rows


def obs(values) -> pd.DataFrame:
    return pd.DataFrame({"split": values}, index=[f"c{i}" for i in range(len(values))])


@pytest.mark.parametrize("dtype", [object, "category", "string"])
def test_a_column_gives_increasing_rows_of_each_part(dtype):
    frame = obs(["test", "train", "val", "train", "test"]).astype(dtype)
    train, val, test = split_rows(frame, "split", 0.9, 0)
    assert (train.tolist(), val.tolist(), test.tolist()) == ([1, 3], [2], [0, 4])


def test_a_random_split_covers_every_cell_once_and_depends_on_the_seed():
    frame = obs(["x"] * 100)
    train, val, test = split_rows(frame, None, 0.8, 0)
    assert (len(train), len(val), len(test)) == (80, 20, 0)
    assert sorted([*train, *val]) == list(range(100))
    assert (np.diff(train) > 0).all()
    np.testing.assert_array_equal(train, split_rows(frame, None, 0.8, 0)[0])
    assert not np.array_equal(train, split_rows(frame, None, 0.8, 1)[0])
    assert len(split_rows(frame, None, 1.0, 0)[1]) == 0


def test_a_random_split_leaves_the_global_generator_alone():
    np.random.seed(0)  # noqa: NPY002
    before = np.random.get_state()[1].copy()  # noqa: NPY002
    split_rows(obs(["x"] * 10), None, 0.5, 0)
    np.testing.assert_array_equal(before, np.random.get_state()[1])  # noqa: NPY002


@pytest.mark.parametrize("train_size", [0, -0.1, 1.1, float("nan")])
def test_a_wrong_share_is_refused(train_size):
    with pytest.raises(ValueError, match=f"train_size={train_size}"):
        split_rows(obs(["x"] * 10), None, train_size, 0)


def test_other_values_are_refused_with_their_number():
    with pytest.raises(
        ValueError, match=r"obs\['split'\] has 2 cell\(s\) with 'Train', 'valid'.*'train', 'val', 'test'"
    ):
        split_rows(obs(["train", "Train", "valid", "test"]), "split", 0.9, 0)


def test_missing_values_are_refused_with_their_number():
    with pytest.raises(ValueError, match=r"obs\['split'\] \(split_key\) has 1 missing value\(s\), first at 'c1'"):
        split_rows(obs(["train", None, "test"]), "split", 0.9, 0)


def test_an_absent_column_is_a_key_error_with_the_columns():
    with pytest.raises(KeyError, match="split_key='splits' is not a column of obs; did you mean 'split'"):
        split_rows(obs(["train"]), "splits", 0.9, 0)


def test_no_training_cell_is_refused():
    with pytest.raises(ValueError, match="marks no cell as 'train'"):
        split_rows(obs(["val", "test"]), "split", 0.9, 0)
