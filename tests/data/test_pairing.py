import numpy as np
import pandas as pd
import pytest

from multipert.data._noise import cell_generator, cell_key
from multipert.data._pairing import paired_controls

RNG = np.random.default_rng(0)
N = 200
NAMES = pd.Index([f"c{i:03}" for i in range(N)])
CONTEXTS = RNG.integers(0, 4, N)
IS_CONTROL = RNG.random(N) < 0.4
IS_CONTROL[CONTEXTS == 3] = False
ROWS = np.flatnonzero(RNG.random(N) < 0.8)


def pair(rows=ROWS, seed=0):
    return paired_controls(NAMES, CONTEXTS, IS_CONTROL, rows, seed=seed)


def test_partners_are_controls_of_the_own_context_among_the_rows():
    partners = pair()
    found = partners >= 0
    assert np.isin(partners[found], ROWS).all()
    assert IS_CONTROL[partners[found]].all()
    np.testing.assert_array_equal(CONTEXTS[partners[found]], CONTEXTS[ROWS[found]])
    np.testing.assert_array_equal(~found, CONTEXTS[ROWS] == 3)


def test_a_control_is_its_own_partner():
    control = IS_CONTROL[ROWS]
    np.testing.assert_array_equal(pair()[control], ROWS[control])


def test_the_seed_decides():
    np.testing.assert_array_equal(pair(seed=3), pair(seed=3))
    assert (pair(seed=3) != pair(seed=4)).mean() > 0.3


def test_partners_spread_over_the_controls():
    usable = ROWS[(CONTEXTS[ROWS] == 0)]
    partners = pair()[(CONTEXTS[ROWS] == 0) & ~IS_CONTROL[ROWS]]
    assert len(np.unique(partners)) > 0.5 * min(len(partners), IS_CONTROL[usable].sum())


def test_other_perturbed_cells_change_nothing():
    fewer = ROWS[IS_CONTROL[ROWS] | (ROWS % 2 == 0)]
    np.testing.assert_array_equal(pair(fewer), pair()[np.isin(ROWS, fewer)])


def test_the_order_of_cells_changes_nothing():
    order = RNG.permutation(N)
    rows = np.flatnonzero(np.isin(order, ROWS))
    shuffled = paired_controls(NAMES[order], CONTEXTS[order], IS_CONTROL[order], rows, seed=0)
    partner_of = dict(zip(NAMES[order][rows], np.where(shuffled < 0, -1, order[shuffled]), strict=True))
    assert partner_of == dict(zip(NAMES[ROWS], pair(), strict=True))


def test_noise_depends_on_seed_and_cell_only():
    draws = cell_generator(1, "AAAC").random(4)
    np.testing.assert_array_equal(draws, cell_generator(1, "AAAC").random(4))
    assert not np.array_equal(draws, cell_generator(1, "AAAG").random(4))
    assert not np.array_equal(draws, cell_generator(2, "AAAC").random(4))
    keys = {cell_key(seed, f"{cell}") for seed in range(20) for cell in range(20)}
    assert len(keys) == 400


@pytest.mark.parametrize(("left", "right"), [((1, "1:A"), (11, ":A")), ((0, "é"), (0, "e"))])
def test_keys_of_different_cells_differ(left, right):
    assert cell_key(*left) != cell_key(*right)
