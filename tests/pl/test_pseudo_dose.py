import numpy as np
import pandas as pd
import pytest

from multipert.pl import pseudo_dose
from multipert.pl._axes import GROUPS


def cells(doses=(0, 0, 0, 1, 1, 30, 30), values=(0.1, 0.2, 0.3, 0.4, 0.8, 1.2, 1.0)):
    index = [f"cell{i}" for i in range(len(doses))]
    return pd.Series(values, index=index, dtype=float), pd.Series(doses, index=index)


def points(ax):
    return [float(line.get_ydata()[0]) for line in ax.lines if line.get_marker() == "o"]


def test_each_dose_has_the_mean_and_middle_half_of_its_cells_control_first(new_ax):
    values, doses = cells()
    # the order of cells, and of their doses, does not matter
    ax = pseudo_dose(values.iloc[::-1], doses.sample(frac=1, random_state=0), ax=new_ax())
    assert [label.get_text() for label in ax.get_xticklabels()] == ["control", "1", "30"]
    np.testing.assert_allclose(points(ax), [0.2, 0.6, 1.1])
    bars = [line.get_segments()[0][:, 1].tolist() for line in ax.collections if hasattr(line, "get_segments")]
    np.testing.assert_allclose(bars, [np.quantile(x, [0.25, 0.75]) for x in ([0.1, 0.2, 0.3], [0.4, 0.8], [1.2, 1.0])])


def test_lines_are_at_the_mean_of_control_and_one_above(new_ax):
    ax = pseudo_dose(*cells(), ax=new_ax())
    dotted = [line.get_ydata()[0] for line in ax.lines if line.get_linestyle() == ":"]
    np.testing.assert_allclose(dotted, [0.2, 1.2])
    assert [text.get_text() for text in ax.texts] == ["mean of control", "1 above"]
    assert ax.get_ylim()[1] > 1.2
    without = pseudo_dose(*cells((1, 1, 1, 2, 2, 30, 30)), ax=new_ax())
    assert [line for line in without.lines if line.get_linestyle() == ":"] == []


def test_control_is_grey_and_a_single_cell_has_no_shape(new_ax):
    ax = pseudo_dose(*cells((0, 0, 0, 1, 5, 30, 30)), ax=new_ax())
    colours = [line.get_color()[0][:3] for line in ax.collections if hasattr(line, "get_segments")]
    assert not np.allclose(colours[0], colours[1])
    np.testing.assert_allclose(colours[1], colours[3])
    shapes = [part for part in ax.collections if not hasattr(part, "get_segments")]
    assert len(shapes) == 2
    assert len(points(ax)) == 4
    assert GROUPS["control"] != GROUPS["observed"]


def test_the_axis_is_named_as_the_doses_are(new_ax):
    assert pseudo_dose(*cells(), dose_key="TCDD (ug/kg)", ax=new_ax()).get_xlabel() == "TCDD (ug/kg)"


VALUES, DOSES = cells()


@pytest.mark.parametrize(
    ("values", "doses", "error", "message"),
    [
        (VALUES.iloc[:0], DOSES, ValueError, "no cells"),
        (VALUES, DOSES.iloc[1:], KeyError, "lacks 1 cell"),
        (VALUES.replace(1.2, np.nan), DOSES, ValueError, "1 NaN or infinite"),
        (VALUES, DOSES.replace(30, -1), ValueError, "2 value"),
        (VALUES, DOSES.astype(str).replace("1", "1+5"), ValueError, r"first '1\+5'"),
        (pd.concat([VALUES, VALUES]), DOSES, ValueError, "`values` names 7 cell"),
    ],
)
def test_bad_input(values, doses, error, message):
    with pytest.raises(error, match=message):
        pseudo_dose(values, doses)
