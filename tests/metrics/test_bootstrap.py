import numpy as np
import pytest
from scipy import sparse

from multipert.metrics._bootstrap import bootstrap
from multipert.metrics._cells import Cells
from multipert.metrics._comparison import DRAWN_SHARE, N_DRAWS, Comparison, Truth
from multipert.metrics._de import de_overlap
from multipert.metrics._delta import pearson_delta
from multipert.metrics._error import mse, r2, r2_pearson


def test_draws_are_those_of_the_table(groups):
    scores = bootstrap(r2_pearson, groups["predicted"], groups["observed"], seed=5)
    assert scores.shape == (N_DRAWS,)
    truth = Truth(Cells(groups["observed"]), Cells(groups["control"]), seed=5)
    expected = Comparison(Cells(groups["predicted"]), truth).r2_pearson_bootstrap()
    assert scores.mean() == pytest.approx(expected, rel=1e-12)
    np.testing.assert_array_equal(
        scores, bootstrap(r2_pearson, groups["predicted"], groups["observed"], share=DRAWN_SHARE, seed=5)
    )


@pytest.mark.parametrize("metric", [r2, pearson_delta, de_overlap])
def test_all_cells_give_the_score_itself(metric, groups):
    cells = [groups[name] for name in ("predicted", "observed", "control")][: 2 if metric is r2 else 3]
    scores = bootstrap(metric, *cells, n_draws=4, share=1)
    np.testing.assert_allclose(scores, metric(*cells), rtol=1e-10)
    assert np.ptp(bootstrap(metric, *cells, n_draws=20)) > 0


def test_draws_take_the_share_and_leave_the_others_whole(groups):
    shapes, rows = [], set()

    def record(predicted, observed, control):
        assert control is groups["control"]
        assert len(np.unique(predicted, axis=0)) == len(predicted)
        shapes.append((len(predicted), len(observed)))
        rows.update(map(bytes, predicted))
        return 0.0

    bootstrap(record, groups["predicted"], groups["observed"], groups["control"], n_draws=30, share=0.3)
    assert set(shapes) == {(round(0.3 * 41), round(0.3 * 38))}
    assert rows == set(map(bytes, groups["predicted"]))


def test_a_draw_is_fixed_by_its_seed(groups):
    pair = groups["predicted"], groups["observed"]
    np.testing.assert_array_equal(bootstrap(r2, *pair, n_draws=6)[1:], bootstrap(r2, *pair, n_draws=5, seed=1))
    assert len(np.unique(bootstrap(r2, *pair, n_draws=6))) == 6


def test_cells_that_belong_together_are_drawn_together(groups):
    observed = groups["observed"]
    assert bootstrap(lambda p, o: mse(p, o, per_cell=True), observed + 2, observed, n_draws=5) == pytest.approx(4)


def test_storage_does_not_matter(groups):
    cells = [groups[name] for name in ("predicted", "observed", "control")]
    expected = bootstrap(pearson_delta, *cells, n_draws=5)
    for convert in (sparse.csr_matrix, sparse.csc_array, np.float32):
        np.testing.assert_allclose(bootstrap(pearson_delta, *map(convert, cells), n_draws=5), expected, rtol=1e-5)


def test_any_function_of_arrays_can_be_used(groups):
    observed = groups["observed"]
    scores = bootstrap(lambda p, o: (p - o).sum(), observed.copy(), observed, n_draws=3)
    np.testing.assert_array_equal(scores, 0)


def test_spread_grows_as_draws_shrink(groups):
    pair = groups["predicted"], groups["observed"]
    spreads = [bootstrap(r2, *pair, n_draws=40, share=share).std() for share in (0.9, 0.5, 0.1)]
    assert spreads == sorted(spreads)


def test_a_single_cell_is_always_drawn(groups):
    one = groups["observed"][:1]
    assert np.ptp(bootstrap(r2, one, groups["observed"][1:2], n_draws=3, share=0.1)) == 0


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"n_draws": 0}, "`n_draws` is 0"),
        ({"share": 0}, "`share` is 0"),
        ({"share": 1.1}, "`share` is 1.1"),
        ({"share": np.nan}, "`share` is nan"),
    ],
)
def test_bad_arguments_raise(changed, message, groups):
    with pytest.raises(ValueError, match=message):
        bootstrap(r2, groups["predicted"], groups["observed"], **changed)


def test_bad_cells_raise_before_anything_is_drawn(groups):
    with pytest.raises(ValueError, match="`observed` has 119 genes but `predicted` has 120"):
        bootstrap(lambda *_: pytest.fail("was called"), groups["predicted"], groups["observed"][:, 1:])
