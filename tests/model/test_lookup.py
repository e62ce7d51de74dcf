"""Conditions found among the trained ones."""

import copy

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

from multipert import _keys
from multipert.model import PerturbationModule


class Largest(TorchDispatchMode):
    """Notes the size of the largest tensor that is made."""

    numel = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        made = func(*args, **(kwargs or {}))
        for one in made if isinstance(made, tuple) else (made,):
            if isinstance(one, torch.Tensor):
                self.numel = max(self.numel, one.numel())
        return made


def module(codes, doses):
    made = PerturbationModule()
    made.known_codes = torch.tensor(codes, dtype=torch.int32)
    made.known_doses = torch.tensor(doses, dtype=torch.float32)
    return made


def batch(codes, doses):
    return {
        _keys.PERTURBATION: torch.tensor(codes, dtype=torch.int32),
        _keys.DOSE: torch.tensor(doses, dtype=torch.float32),
    }


@st.composite
def conditions(draw, n_slots):
    """Rows of codes and doses, few of each so that rows meet, control and repeats among them."""
    n = draw(st.integers(1, 12))
    codes = draw(st.lists(st.lists(st.integers(-1, 3), min_size=n_slots, max_size=n_slots), min_size=n, max_size=n))
    doses = [[draw(st.sampled_from([0.5, 1.0, 30.0])) if code >= 0 else 0.0 for code in row] for row in codes]
    return np.array(codes), np.array(doses, dtype=np.float32)


def one_by_one(known, wanted):
    """The first equal row of each, the narrower side padded."""

    def key(codes, doses):
        pairs = [(int(code), float(dose)) for code, dose in zip(codes, doses, strict=True)]
        return tuple(pairs + [(_keys.PAD, 0.0)] * (4 - len(pairs)))

    rows = [key(*row) for row in zip(*known, strict=True)]
    keys = [key(*row) for row in zip(*wanted, strict=True)]
    return [rows.index(one) if one in rows else -1 for one in keys]


@settings(deadline=None, max_examples=150)
@given(st.data(), st.integers(1, 3), st.integers(1, 3))
def test_a_condition_is_found_at_the_first_equal_row_or_nowhere(data, of_known, of_batch):
    known, wanted = data.draw(conditions(of_known)), data.draw(conditions(of_batch))
    assert module(*known).lookup(batch(*wanted)).tolist() == one_by_one(known, wanted)


def test_many_conditions_are_searched_and_not_compared_one_by_one():
    n, some = 60_000, 400
    codes = np.stack([np.arange(n) // 200 - 1, np.arange(n) % 200], axis=1)
    doses = np.where(codes < 0, 0.0, 1.0)
    made, rows = module(codes, doses), np.random.default_rng(0).permutation(n)[:some]
    unknown = batch(np.full((1, 2), 777), np.ones((1, 2)))
    with Largest() as first:
        found = made.lookup(batch(codes[rows], doses[rows]))
    np.testing.assert_array_equal(found, rows)
    assert first.numel <= 2 * n
    # the conditions are sorted once, not for every batch
    with Largest() as second:
        again = made.lookup(batch(codes[rows], doses[rows]))
        assert made.lookup(unknown).tolist() == [-1]
    np.testing.assert_array_equal(again, rows)
    assert second.numel <= 2 * some


def test_other_conditions_are_indexed_anew():
    made = module([[0], [1]], [[1.0], [1.0]])
    wanted = batch([[1]], [[1.0]])
    assert made.lookup(wanted).tolist() == [1]
    other = copy.deepcopy(made)
    made.known_codes = torch.tensor([[1], [0]], dtype=torch.int32)
    assert made.lookup(wanted).tolist() == [0]
    made.known_doses = torch.tensor([[2.0], [1.0]])
    assert made.lookup(wanted).tolist() == [-1]
    assert other.lookup(wanted).tolist() == [1]
    made.load_state_dict(other.state_dict())
    assert made.lookup(wanted).tolist() == [1]
