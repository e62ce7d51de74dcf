"""Raw values between a null and a ceiling, on the scale of each metric."""

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from multipert.metrics import METRICS, calibrate, leaderboard, summarise


def frame_of(rows, metric="rmse", **columns):
    frame = pd.DataFrame(rows, columns=["predictor", "value"])
    return frame.assign(**({"metric": metric, "perturbation": "A"} | columns))


def calibrated(rows, metric="rmse"):
    return calibrate(frame_of(rows, metric)).set_index("predictor")["calibrated"].to_dict()


def test_lower_is_better_is_turned():
    found = calibrated([("prediction", 2.0), ("no_change", 5.0), ("mean_shift", 4.0), ("ceiling", 1.0)])
    assert found == {
        "prediction": pytest.approx(2 / 3),
        "no_change": pytest.approx(-1 / 3),
        "mean_shift": 0,
        "ceiling": 1,
    }


def test_zero_is_the_better_baseline_whichever_that_is():
    rows = [("prediction", 0.5), ("no_change", 0.4), ("mean_shift", 0.2), ("context_mean", 0.3), ("ceiling", 0.9)]
    found = calibrated(rows, "pearson_delta")
    assert found["no_change"] == 0
    assert found["prediction"] == pytest.approx(0.2)
    assert found["mean_shift"] < found["context_mean"] < 0


def test_nearest_is_best_on_both_sides():
    rows = [("high", 0.7), ("low", 0.3), ("no_change", 0.9), ("ceiling", 0.5)]
    found = calibrated(rows, "classifier_auc")
    assert found["high"] == pytest.approx(found["low"]) == pytest.approx(0.5)


def test_undefined_prediction_is_worth_the_null_and_no_more():
    rows = [("prediction", np.nan), ("no_change", np.nan), ("mean_shift", 0.6), ("ceiling", 0.9)]
    assert calibrated(rows, "pearson_delta")["prediction"] == pytest.approx(-2)
    # without a mean baseline the null itself is the zero
    rows = [("prediction", 0.45), ("no_change", np.nan), ("ceiling", 0.9)]
    assert calibrated(rows, "pearson_delta")["prediction"] == pytest.approx(0.5)
    assert np.isnan(calibrated([("prediction", np.nan), ("no_change", 2.0), ("ceiling", 1.0)])["prediction"])


def test_baseline_that_could_not_be_made_is_no_null():
    frame = frame_of([("no_change", np.nan), ("mean_shift", np.nan), ("ceiling", -0.5)], "pearson_delta")
    # 0 cells: the training cells did not suffice
    found = calibrate(frame.assign(n_predicted=[10, 0, 5]))
    assert found["calibrated"].isna().tolist() == [True, True, True]


def test_ceiling_below_the_baseline_calibrates_nothing():
    found = calibrated([("prediction", 0.1), ("no_change", 1.0), ("ceiling", 2.0)])
    assert all(np.isnan(value) for value in found.values())


@given(
    st.floats(-3, 3), st.floats(0.1, 5), st.lists(st.floats(-10, 10), min_size=1, max_size=5),
    st.sampled_from(["rmse", "r2", "edistance", "de_overlap_up"]),
)  # fmt: skip
def test_order_of_predictors_is_that_of_the_raw_values(base, gap, others, metric):
    better = METRICS[metric].better
    top = base - gap if better == "lower" else base + gap
    rows = [("no_change", base), ("ceiling", top), *((f"p{i}", value) for i, value in enumerate(others))]
    frame = calibrate(frame_of(rows, metric))
    raw = frame["value"] * (-1 if better == "lower" else 1)
    np.testing.assert_allclose(frame["calibrated"], (raw - raw[0]) / gap, rtol=1e-6, atol=1e-6)


def test_groups_do_not_mix_and_the_index_may_repeat():
    one = frame_of([("prediction", 1.0), ("no_change", 2.0), ("ceiling", 0.0)])
    other = frame_of([("prediction", 1.0), ("no_change", 4.0), ("ceiling", 0.0)], perturbation="B")
    found = calibrate(pd.concat([one, other]))
    assert found["calibrated"].tolist() == [0.5, 0, 1, 0.75, 0, 1]
    assert "calibrated" not in one


def test_summary_is_the_ratio_of_means_not_the_mean_of_ratios():
    weak = frame_of([("prediction", 0.30), ("no_change", 0.12), ("ceiling", 0.10)])
    strong = frame_of([("prediction", 0.5), ("no_change", 1.0), ("ceiling", 0.1)], perturbation="B")
    table = summarise(pd.concat([weak, strong])).set_index("predictor")
    assert table.loc["prediction", "calibrated"] == pytest.approx((0.56 - 0.40) / (0.56 - 0.10))
    assert table.loc["prediction", ["n_groups", "n_undefined"]].tolist() == [2, 0]
    # a second sample of as many cells would be nearer by the root of two
    assert table["dynamic_range"].to_numpy() == pytest.approx((0.56 - 0.1 / np.sqrt(2)) / 0.56)


def test_undefined_values_are_counted_and_left_out():
    frame = pd.concat([
        frame_of([("prediction", np.nan), ("no_change", 2.0), ("ceiling", 1.0)], "r2"),
        frame_of([("prediction", 0.5), ("no_change", 0.0), ("ceiling", 1.0)], "r2", perturbation="B"),
    ])  # fmt: skip
    table = summarise(frame).set_index("predictor")
    assert table.loc["prediction", ["value", "n_groups", "n_undefined"]].tolist() == [0.5, 2, 1]


def test_groups_of_a_few_cells_are_left_out_of_means():
    many = frame_of([("prediction", 0.5), ("no_change", 1.0), ("ceiling", 0.4)], "edistance")
    few = frame_of([("prediction", 9.0), ("no_change", 1.0), ("ceiling", 9.0)], "edistance", perturbation="B")
    # the ceiling compares one half with the other
    many = many.assign(n_predicted=[30, 30, 5], n_observed=[10, 10, 5])
    few = few.assign(n_predicted=[30, 30, 4], n_observed=[9, 9, 5])
    table = summarise(pd.concat([many, few])).set_index("predictor")
    assert table["value"].to_dict() == {"prediction": 0.5, "no_change": 1.0, "ceiling": 0.4}
    assert set(table["n_groups"]) == {1}
    assert summarise(few).set_index("predictor").loc["prediction", "value"] == 9.0


def test_leaderboard_counts_scores_that_can_tell():
    rows = [("prediction", 0.7), ("no_change", 0.2), ("ceiling", 0.9)]
    flat = [("prediction", 0.9), ("no_change", 0.2), ("ceiling", 0.21)]
    frame = pd.concat([
        frame_of(rows, "pearson_delta"), frame_of(flat, "sign_accuracy"), frame_of(rows, "r2_pearson"),
    ])  # fmt: skip
    board = leaderboard(frame)
    # r2_pearson restates another metric, and half of the cells hardly betters the baseline in sign_accuracy
    assert board.loc["prediction", "score"] == pytest.approx(board.loc["prediction", "pearson_delta"])
    assert list(board.columns) == ["score", "pearson_delta", "sign_accuracy", "r2_pearson"]
    assert board.index[0] == "ceiling"
    with pytest.warns(UserWarning, match="None of 1 metrics separates the ceiling"):
        assert leaderboard(frame_of(flat, "sign_accuracy"))["score"].isna().all()


def test_no_single_metric_decides_the_score():
    good = [("prediction", 0.5), ("no_change", 1.0), ("ceiling", 0.4)]
    awful = [("prediction", -500.0), ("no_change", 0.0), ("ceiling", 0.9)]
    board = leaderboard(pd.concat([frame_of(good, "edistance"), frame_of(awful, "r2")]))
    assert board.loc["prediction", "score"] == pytest.approx((5 / 6 - 1) / 2)


def test_other_column_names_the_ranked():
    frame = frame_of([("prediction", 0.7), ("no_change", 0.2), ("ceiling", 0.9)], "pearson_delta")
    frame["model"] = ["MTAe", "no_change", "ceiling"]
    assert list(leaderboard(frame, predictor="model").index) == ["ceiling", "MTAe", "no_change"]


def test_bad_frames_are_refused():
    with pytest.raises(KeyError, match="no column metric, value"):
        calibrate(pd.DataFrame({"predictor": ["a"]}))
    with pytest.raises(ValueError, match="1 unknown metrics \\(nonsense\\)"):
        summarise(frame_of([("a", 1.0)], "nonsense"))


@pytest.mark.parametrize("name", [name for name, metric in METRICS.items() if metric.unhalve is not None])
def test_correction_for_halving_goes_towards_perfect_and_leaves_perfect_alone(name):
    metric = METRICS[name]
    imperfect = metric.best + (0.4 if metric.better == "lower" else -0.4)
    assert metric.unhalve(metric.best) == pytest.approx(metric.best)
    assert metric.loss(metric.best) < metric.loss(metric.unhalve(imperfect)) < metric.loss(imperfect)


def test_corrections_are_those_of_samples():
    """Two samples of n cells against two of n / 2, over many draws."""
    rng = np.random.default_rng(0)
    from multipert import metrics

    signal, n = rng.normal(0, 1, 60), 40
    found = {name: [] for name in ("rmse", "edistance_genes", "r2", "pearson_delta")}
    functions = {
        "rmse": metrics.rmse,
        "edistance_genes": metrics.edistance,
        "r2": metrics.r2,
        "pearson_delta": lambda a, b: metrics.pearson_delta(a, b, np.zeros((2, 60))),
    }
    for _ in range(60):
        for name, function in functions.items():
            whole = [signal + 3 * rng.normal(0, 1, (n, 60)) for _ in range(2)]
            halves = [cells[: n // 2] for cells in whole]
            found[name].append([function(*whole), METRICS[name].unhalve(function(*halves))])
    for name, values in found.items():
        whole, corrected = np.mean(values, axis=0)
        assert corrected == pytest.approx(whole, rel=0.05), name


def test_all_means_are_over_the_same_groups():
    """A baseline that exists for strong groups only must not be compared with a ceiling over all groups."""
    frames = []
    for i in range(4):
        strong = [("prediction", 0.5), ("no_change", 2.0), ("mean_shift", 1.0), ("ceiling", 0.4)]
        weak = [("prediction", 0.15), ("no_change", 0.2), ("mean_shift", np.nan), ("ceiling", 0.1)]
        frames.append(frame_of(strong, "edistance", perturbation=f"s{i}"))
        frames.append(frame_of(weak, "edistance", perturbation=f"w{i}"))
    table = summarise(pd.concat(frames)).set_index("predictor")["calibrated"]
    # where the shift could not be made it earns what doing nothing earns: (1.0 + 0.2) / 2
    assert table["prediction"] == pytest.approx((0.6 - 0.325) / (0.6 - 0.25))
    assert table["mean_shift"] == 0


def test_undefined_scores_of_a_prediction_are_not_left_out_of_its_mean():
    good = frame_of([("prediction", 80.0), ("no_change", 0.0), ("ceiling", 90.0)], "de_overlap_up")
    gone = frame_of([("prediction", np.nan), ("no_change", 0.0), ("ceiling", 90.0)], "de_overlap_up", perturbation="B")
    table = summarise(pd.concat([good, gone])).set_index("predictor")
    assert table.loc["prediction", "calibrated"] == pytest.approx(40 / 90)
    assert leaderboard(gone).loc["prediction", "score"] == 0


def test_reference_that_could_never_be_made_earns_nothing():
    rows = [("prediction", 0.5), ("no_change", 1.0), ("context_mean", np.nan), ("ceiling", 0.4)]
    frame = frame_of(rows, "edistance").assign(n_predicted=[30, 30, 0, 15], n_observed=[30, 30, 30, 15])
    assert np.isnan(summarise(frame).set_index("predictor").loc["context_mean", "calibrated"])
    assert np.isnan(leaderboard(frame).loc["context_mean", "score"])


def test_models_joined_without_a_name_are_refused_and_named_ones_stand_apart():
    rows = [("no_change", 0.2), ("mean_shift", 0.5), ("ceiling", 0.9)]
    good, bad = (frame_of([("prediction", value), *rows], "pearson_delta") for value in (0.8, 0.1))
    with pytest.raises(ValueError, match="4 rows with a group, predictor and metric that an earlier row has"):
        leaderboard(pd.concat([good, bad]))
    both = pd.concat([good.assign(model="good"), bad.assign(model="bad")])
    board = leaderboard(both, predictor="model")
    assert list(board.index[:3]) == ["ceiling", "good", "mean_shift"]
    assert board.loc["good", "score"] == pytest.approx(0.75)
    assert board.loc["bad", "score"] == -1
    with pytest.raises(KeyError, match="no column 'modle'"):
        leaderboard(both, predictor="modle")
