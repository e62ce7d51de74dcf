import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from multipert.pl import precision_recall

LABELS = np.array([True, False, True, False, False])


def curve(ax, name: str) -> tuple[np.ndarray, np.ndarray]:
    (line,) = [line for line in ax.lines if str(line.get_label()).startswith(f"{name}: ")]
    assert line.get_drawstyle() == "steps-post"
    return np.asarray(line.get_xdata()), np.asarray(line.get_ydata())


def test_points_by_hand():
    recall, precision = curve(precision_recall(LABELS, {"A": [0.9, 0.8, 0.7, 0.2, 0.1]}), "A")
    np.testing.assert_allclose(recall, [1, 1, 1, 0.5, 0.5, 0])
    np.testing.assert_allclose(precision, [2 / 5, 2 / 4, 2 / 3, 1 / 2, 1, 1])


@given(st.lists(st.tuples(st.booleans(), st.integers(0, 5)), min_size=2, max_size=40))
@settings(max_examples=20, deadline=None)
def test_area_below_the_steps_is_the_average_precision_of_the_legend(rows):
    from matplotlib.figure import Figure

    labels, scores = np.array([row[0] for row in rows]), np.array([float(row[1]) for row in rows])
    if labels.all() or not labels.any():
        return
    ax = precision_recall(labels, {"A": scores}, ax=Figure().subplots())
    recall, precision = curve(ax, "A")
    area = np.sum(-np.diff(recall) * precision[:-1])
    assert ax.get_legend().get_texts()[0].get_text() == f"A: {area:.3f}"


def test_no_point_without_a_threshold():
    """The wrong gene comes first, so no curve may rise to precision 1 at recall 0."""
    _, precision = curve(precision_recall(LABELS, {"A": [0.8, 0.9, 0.7, 0.1, 0.2]}), "A")
    assert precision.max() < 1


def test_legend_by_average_precision_and_prevalence(legend):
    ax = precision_recall(LABELS, {"bad": -LABELS.astype(float), "constant": np.zeros(5), "good": LABELS.astype(float)})
    assert legend(ax) == ["good: 1.000", "bad: 0.400", "constant: 0.400", "prevalence: 0.400"]
    assert ax.lines[-1].get_ydata() == [0.4, 0.4]


@pytest.mark.parametrize(
    ("labels", "scores", "message"),
    [
        ([1, 1], {"A": [0.1, 0.2]}, "the same for all 2 genes"),
        ([0.5, 1], {"A": [0.1, 0.2]}, "true or false"),
        ([0, 1], {}, "`scores` is empty"),
        ([0, 1], {"A": [0.1]}, r"scores\['A'\].*\(1,\)"),
        ([0, 1], {"A": [0.1, np.nan]}, "1 NaN or infinite"),
        ([0, 1], {"A": [0.1, -np.inf]}, "1 NaN or infinite"),
    ],
)
def test_bad_input(labels, scores, message):
    with pytest.raises(ValueError, match=message):
        precision_recall(np.array(labels), scores)
