"""Covariates of a batch."""

import torch

from multipert import _keys
from multipert.nn import CovariateVector, covariate_codes


def batch(**columns):
    return {_keys.X: torch.zeros(3, 2), **columns}


def test_context_comes_first_and_each_value_has_its_own_entry():
    tensors = batch(
        context=torch.tensor([[1], [0], [-1]]), extra_categorical_covs=torch.tensor([[2, 0], [0, 1], [1, -1]])
    )
    assert covariate_codes(tensors).tolist() == [[1, 2, 0], [0, 0, 1], [-1, 1, -1]]
    vector = CovariateVector((2, 3, 2))
    assert vector.width == 7
    assert vector(tensors).tolist() == [[0, 1, 0, 0, 1, 1, 0], [1, 0, 1, 0, 0, 0, 1], [0, 0, 0, 1, 0, 0, 0]]


def test_without_covariates_the_vectors_have_no_width():
    assert covariate_codes(batch()).shape == (3, 0)
    assert CovariateVector(())(batch()).shape == (3, 0)
    assert CovariateVector(())(batch(context=torch.tensor([[1], [0], [1]]))).shape == (3, 0)


def test_nothing_is_kept_in_files():
    assert not CovariateVector((2, 3)).state_dict()
