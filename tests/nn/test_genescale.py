"""Units in which decoders work."""

import numpy as np
import torch

from multipert import _keys
from multipert.nn._genescale import GeneScale
from multipert.nn._likelihood import NormalHead


def batches(x, size=7):
    return [{_keys.X: part} for part in torch.from_numpy(x).split(size)]


def test_the_unit_is_mean_and_spread_of_the_cells_whatever_the_batches():
    x = np.random.default_rng(0).gamma(1, [0.01, 1, 3], (40, 3)).astype(np.float32)
    for size in (1, 7, 40):
        scale = GeneScale(3)
        scale.measure(batches(x, size))
        np.testing.assert_allclose(scale.center, x.mean(0), rtol=1e-5)
        np.testing.assert_allclose(scale.spread, x.std(0) + 0.01, rtol=1e-5)
        np.testing.assert_allclose(scale(scale.standardised(torch.from_numpy(x))), x, atol=1e-6)


def test_a_unit_in_which_weights_were_learnt_is_kept():
    scale = GeneScale(2)
    scale.measure(batches(np.array([[0.0, 1.0], [2.0, 1.0]], dtype=np.float32)))
    before = scale.center.clone(), scale.spread.clone()
    scale.measure(batches(np.full((3, 2), 9.0, dtype=np.float32)))
    assert torch.equal(scale.center, before[0])
    assert torch.equal(scale.spread, before[1])


def test_a_normal_head_is_equally_far_off_in_rare_and_common_genes_at_the_start():
    rng = np.random.default_rng(0)
    spread = np.geomspace(0.03, 3, 200)
    x = rng.normal(1, spread, (300, 200)).astype(np.float32)
    torch.manual_seed(0)
    hidden = torch.randn(300, 16)
    errors = {}
    for is_measured in (False, True):
        torch.manual_seed(0)
        head = NormalHead(16, 200)
        if is_measured:
            head.scale.measure(batches(x))
        decoded = head(hidden, {})
        errors[is_measured] = ((torch.from_numpy(x) - decoded["px"]).square() / decoded["variance"]).mean(0).detach()
        if is_measured:
            log_prob = head.log_prob({_keys.X: torch.from_numpy(x)}, decoded).detach()
            np.testing.assert_allclose(decoded["variance"].detach().sqrt().mean(0) / spread, 1, rtol=0.6)
            assert torch.isfinite(log_prob).all()
    # with its own unit the largest error of a gene is within an order of magnitude of the least
    assert errors[True].max() / errors[True].min() < 10 < errors[False].max() / errors[False].min()
