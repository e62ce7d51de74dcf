import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from multipert.pl import rank_curves


def frame_of(**ranks) -> pd.DataFrame:
    rows = [(model, value) for model, values in ranks.items() for value in values]
    return pd.DataFrame(rows, columns=["model", "value"])


def curve(ax, name: str):
    (line,) = [line for line in ax.lines if str(line.get_label()).startswith(f"{name}: ")]
    assert line.get_drawstyle() == "steps-post"
    return line.get_xdata(), line.get_ydata()


def test_curve_is_the_share_of_ranks_up_to_r():
    x, y = curve(rank_curves(frame_of(A=[0.5, 0.0, 0.25, 0.25])), "A")
    assert [(r, float(y[np.flatnonzero(x <= r)[-1]])) for r in (0, 0.2, 0.25, 0.4, 0.5, 1)] == [
        *((0, 0.25), (0.2, 0.25), (0.25, 0.75), (0.4, 0.75), (0.5, 1.0), (1, 1.0))
    ]


@given(st.lists(st.floats(0, 1), min_size=1, max_size=30))
@settings(max_examples=15, deadline=None)
def test_area_above_a_curve_is_the_mean_rank(values):
    from matplotlib.figure import Figure

    x, y = curve(rank_curves(frame_of(A=values), ax=Figure().subplots()), "A")
    assert np.isclose(np.sum(np.diff(x) * (1 - np.asarray(y)[:-1])), np.mean(values))


def test_legend_has_the_best_model_first_and_chance(legend):
    ax = rank_curves(frame_of(late=[0.9, 0.7], early=[0.1, 0.1, 0.4], no_change=[0.5]))
    expected = ["early: 0.200 (n = 3)", "no_change: 0.500 (n = 1)", "late: 0.800 (n = 2)", "chance: 0.500"]
    assert legend(ax) == expected


def test_undefined_ranks_are_counted_and_never_hidden(legend):
    ax = rank_curves(frame_of(gone=[np.nan, np.nan], half=[0.2, np.nan]))
    assert legend(ax) == ["half: 0.200 (n = 1)", "gone: undefined", "chance: 0.500"]


def test_references_are_grey_and_models_are_not():
    ax = rank_curves(frame_of(A=[0.1], no_change=[0.5], ceiling=[0.1]))
    colour = {str(line.get_label()).split(":")[0]: line.get_color() for line in ax.lines}
    assert colour["no_change"] == colour["ceiling"] != colour["A"]


def test_no_two_curves_look_the_same():
    ax = rank_curves(frame_of(**{f"model_{i:02}": [0.1, i / 40] for i in range(20)}))
    looks = {(line.get_color(), line._dash_pattern[1] and tuple(line._dash_pattern[1])) for line in ax.lines[:-1]}
    assert len(looks) == 20


def test_colours_do_not_depend_on_who_is_best():
    def colours(**ranks):
        return {str(line.get_label())[0]: line.get_color() for line in rank_curves(frame_of(**ranks)).lines[:-1]}

    assert colours(A=[0.1], B=[0.2]) == colours(A=[0.3], B=[0.2])


def test_metric_is_chosen_and_named_on_the_axis(legend):
    frame = pd.concat([frame_of(A=[0.1]).assign(metric="rank_rmse"), frame_of(A=[0.3]).assign(metric="rank_r2")])
    ax = rank_curves(frame, metric="rank_r2")
    assert legend(ax)[0] == "A: 0.300 (n = 1)"
    assert "rank_r2" in ax.get_xlabel()
    with pytest.raises(ValueError, match=r"holds 2 metrics \(rank_rmse, rank_r2\)"):
        rank_curves(frame)


def test_model_column_can_have_another_name(legend):
    frame = frame_of(A=[0.1]).rename(columns={"model": "predictor"})
    assert legend(rank_curves(frame, model_key="predictor"))[0] == "A: 0.100 (n = 1)"


@pytest.mark.parametrize(
    ("frame", "arguments", "error", "message"),
    [
        (frame_of(A=[0.1]).drop(columns="value"), {}, KeyError, "no column 'value'"),
        (frame_of(A=[0.1]), {"metric": "rank_rmse"}, KeyError, "no column 'metric'"),
        (frame_of(), {}, ValueError, "no rows"),
        (frame_of(A=[0.1, 3.0, -1.0]), {}, ValueError, "2 of 3 values are no rank in 0 to 1, first 3"),
        (frame_of(A=[np.nan]), {}, ValueError, "All 1 values"),
        (frame_of(A=[0.1]).assign(metric="rank_rmse"), {"metric": "rank_rsme"}, ValueError, "did you mean 'rank_rmse'"),
    ],
)
def test_bad_input(frame, arguments, error, message):
    with pytest.raises(error, match=message):
        rank_curves(frame, **arguments)
