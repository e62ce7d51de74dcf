import numpy as np
import pytest
from matplotlib.collections import LineCollection
from scipy.stats import t

from multipert.pl import dose_response

DOSES = [0.0, 1.0, 10.0, 100.0]


@pytest.fixture
def observed(cells):
    rng = np.random.default_rng(0)
    dose = np.repeat(DOSES, 20)
    values = np.column_stack([dose, 100 - dose]) + rng.normal(0, 1, (80, 2))
    return cells(values, dose=dose, perturbation=np.where(dose > 0, "P", "control"))


@pytest.fixture
def predicted(cells):
    return cells([[2.0, 90], [12, 80], [90, 20]], dose=DOSES[1:], perturbation="P")


def bars(ax) -> list[tuple[float, float, float]]:
    """Dose, lower and upper end of every bar."""
    paths = [path for drawn in ax.collections if isinstance(drawn, LineCollection) for path in drawn.get_paths()]
    return [(path.vertices[0, 0], *path.vertices[:, 1]) for path in paths]


def lines(ax, marker: str) -> list[np.ndarray]:
    return [line.get_xydata() for line in ax.lines if line.get_marker() == marker and len(line.get_xdata())]


def test_points_are_the_observed_means(observed, predicted):
    points = np.concatenate(lines(dose_response(predicted, observed, "a"), "o"))
    np.testing.assert_allclose(points[:, 1], observed.X[:, 0].reshape(4, 20).mean(axis=1))
    assert points[1:, 0].tolist() == DOSES[1:]


def test_control_stands_left_of_the_lowest_dose_behind_a_line(observed, predicted):
    ax = dose_response(predicted, observed, "a")
    place = ax.get_xticks()
    assert [label.get_text() for label in ax.get_xticklabels()] == ["control", "1", "10", "100"]
    np.testing.assert_allclose(np.diff(np.log10(place)), 1)
    (divider,) = [line for line in ax.lines if line.get_linestyle() == ":"]
    assert place[0] < divider.get_xdata()[0] < place[1]
    assert ax.get_xscale() == "log"


def test_curve_is_the_prediction_and_does_not_reach_control(observed, predicted):
    (curve,) = lines(dose_response(predicted, observed, "a"), "s")
    np.testing.assert_allclose(curve, [[1, 2], [10, 12], [100, 90]])


def test_predicted_cells_are_averaged_by_dose(observed, cells):
    predicted = cells([[1.0, 0], [3, 0], [9, 0]], dose=[10, 10, 1], perturbation="P")
    (curve,) = lines(dose_response(predicted, observed, "a"), "s")
    np.testing.assert_allclose(curve, [[1, 9], [10, 2]])


def test_bars_are_the_interval_of_the_mean_or_the_quartiles(observed, predicted):
    groups = observed.X[:, 0].reshape(4, 20)
    half = t.ppf(0.975, 19) * groups.std(axis=1, ddof=1) / np.sqrt(20)
    found = np.array(bars(dose_response(predicted, observed, "a")))
    np.testing.assert_allclose(found[:, 1:], np.column_stack([groups.mean(1) - half, groups.mean(1) + half]))
    found = np.array(bars(dose_response(predicted, observed, "a", spread="quartiles")))
    np.testing.assert_allclose(found[:, 1:], np.quantile(groups, [0.25, 0.75], axis=1).T)


def test_one_cell_has_a_mean_and_no_interval(observed, predicted):
    ax = dose_response(predicted, observed[[0, 25, 45, 65]], "a")
    assert np.isnan(np.array(bars(ax))[:, 1:]).all()
    assert len(lines(ax, "o")) == 4


def test_several_genes_have_a_colour_each(observed, predicted, legend):
    ax = dose_response(predicted, observed, ["b", "a"])
    assert legend(ax) == ["b", "a", "observed, 95 % interval of the mean", "predicted"]
    curves = [line for line in ax.lines if line.get_marker() == "s" and len(line.get_xdata())]
    assert curves[0].get_ydata().tolist() == [90, 80, 20]
    assert curves[0].get_color() != curves[1].get_color()
    assert "gene" not in dose_response(predicted, observed, "a").get_ylabel()


def test_doses_may_be_text_and_control_may_be_absent(observed, predicted):
    observed = observed[observed.obs["dose"] > 0].copy()
    observed.obs["dose"] = observed.obs["dose"].astype(str).astype("category")
    ax = dose_response(predicted, observed, "a")
    assert [label.get_text() for label in ax.get_xticklabels()] == ["1", "10", "100"]


def test_bad_input(observed, predicted):
    def changed(**obs):
        adata = observed.copy()
        adata.obs = adata.obs.assign(**obs)
        return adata

    for wrong, message in [
        (changed(dose="1+5"), "80 value.*no dose, first '1\\+5'"),
        (changed(dose=-1.0), "80 value.*no dose"),
        (changed(dose=np.nan), "missing"),
        (changed(perturbation=["P", "Q"] * 40), "2 perturbations \\(P, Q\\)"),
        (observed[:0], "`observed` has no cells"),
    ]:
        with pytest.raises(ValueError, match=message):
            dose_response(predicted, wrong, "a")
    with pytest.raises(ValueError, match="No cell has a positive dose"):
        dose_response(changed(dose=0.0), changed(dose=0.0), "a")
    with pytest.raises(ValueError, match="unknown name.*'A'; did you mean 'a'"):
        dose_response(predicted, observed, "A")
    with pytest.raises(ValueError, match="confidence, quartiles"):
        dose_response(predicted, observed, "a", spread="sd")
    with pytest.raises(KeyError, match="dose_key='doses'.*did you mean 'dose'"):
        dose_response(predicted, observed, "a", dose_key="doses")
    with pytest.raises(KeyError, match="perturbation_key='drug'"):
        dose_response(predicted, observed, "a", perturbation_key="drug")
