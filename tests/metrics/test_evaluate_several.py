"""Several predictions scored in one call."""

import warnings

import numpy as np
import pandas as pd
import pytest

from multipert.metrics import PRESETS, evaluate, leaderboard

NAMES = list(dict.fromkeys([*PRESETS["default"], *PRESETS["thesis-joint"]]))


@pytest.fixture
def case(screen):
    """Both perturbations held out in one context; a good, a weak and a constant prediction."""
    is_control = (screen.obs["perturbation"] == "control").to_numpy()
    here = (screen.obs["context"] == "y").to_numpy()
    observed, control = screen[~is_control & here].copy(), screen[is_control & here].copy()
    rng = np.random.default_rng(3)
    weak, good, constant = observed.copy(), observed.copy(), observed.copy()
    good.X = np.maximum(good.X + rng.normal(0, 0.1, good.shape), 0).astype(np.float32)
    weak.X = rng.permuted(weak.X, axis=0)
    weak.X[:, ::2] = np.asarray(control.X).mean(axis=0)[::2]
    constant.X = np.tile(np.asarray(control.X).mean(axis=0) + 0.1, (len(constant), 1)).astype(np.float32)
    return {
        "predicted": {"good": good, "weak": weak[::2].copy(), "constant": constant},
        "observed": observed,
        "control": control,
        "training": screen[is_control | ~here].copy(),
        "metrics": NAMES,
    }


def test_each_scores_as_it_does_alone(case):
    together = evaluate(**case)
    for name, one in case["predicted"].items():
        others = set(case["predicted"]) - {name}
        part = together[~together["predictor"].isin(others)].reset_index(drop=True)
        alone = evaluate(**case | {"predicted": one}).replace({"predictor": {"prediction": name}})
        pd.testing.assert_frame_equal(part, alone, check_exact=True)


def test_order_of_the_predictions_changes_nothing_but_the_order(case):
    first = evaluate(**case)
    again = evaluate(**case | {"predicted": dict(reversed(case["predicted"].items()))})
    rows = ["perturbation", "context", "predictor", "metric"]
    assert list(first["predictor"].unique()[:3]) == list(case["predicted"])
    pd.testing.assert_frame_equal(
        first.sort_values(rows).reset_index(drop=True), again.sort_values(rows).reset_index(drop=True), check_exact=True
    )


def test_leaderboard_ranks_them_by_their_names(case):
    board = leaderboard(evaluate(**case))
    assert set(case["predicted"]) < set(board.index)
    assert board["score"][list(case["predicted"])].idxmax() == "good"


def test_predictions_of_other_groups_are_refused(case):
    few = case["predicted"]["weak"]
    case["predicted"]["weak"] = few[(few.obs["perturbation"] == "A").to_numpy()].copy()
    with pytest.raises(
        ValueError, match=r"`predicted\['weak'\]` and `predicted\['good'\]` differ in 1 groups \(A\+B, y\)"
    ):
        evaluate(**case)


@pytest.mark.parametrize("name", ["no_change", "ceiling"])
def test_names_of_references_are_refused(case, name):
    with pytest.raises(ValueError, match=f"name of a reference, '{name}'"):
        evaluate(**case | {"predicted": {name: case["predicted"]["good"]}})


def test_no_prediction_is_refused(case):
    with pytest.raises(ValueError, match="`predicted` is empty"):
        evaluate(**case | {"predicted": {}})


def test_errors_and_warnings_name_the_prediction(case):
    case["predicted"]["weak"] = case["predicted"]["weak"][:, ::-1].copy()
    with pytest.raises(ValueError, match=r"`predicted\['weak'\]` has the genes of `observed` in another order"):
        evaluate(**case)
    del case["predicted"]["weak"]
    for name in ("observed", "control", "training"):
        case[name].X = np.rint(case[name].X)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        evaluate(**case | {"metrics": ["rmse"]})
    texts = [str(one.message) for one in caught if "integers only" in str(one.message)]
    assert [text.split("`")[3] for text in texts] == ["predicted['good']", "predicted['constant']"]
    assert all(one.filename == __file__ for one in caught if "integers only" in str(one.message))
