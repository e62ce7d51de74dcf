import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import to_rgb
from matplotlib.patches import Rectangle

from multipert.pl import benchmark_table

COLUMNS = ["model", "metric", "seed", "calibrated", "value"]


@pytest.fixture
def frame() -> pd.DataFrame:
    rows = [
        ("weak", "rmse", 0, -0.5, 3.0),
        ("weak", "rmse", 1, -0.3, 5.0),
        ("weak", "pearson_delta", 0, -0.2, 0.1),
        ("weak", "pearson_delta", 1, -0.2, 0.1),
        ("ceiling", "rmse", 0, 1.0, 1.0),
        ("ceiling", "rmse", 1, 1.0, 1.0),
        ("ceiling", "pearson_delta", 0, 1.0, 0.9),
        ("ceiling", "pearson_delta", 1, 1.0, 0.9),
        ("strong", "rmse", 0, 0.6, 2.0),
        ("strong", "rmse", 1, 0.8, 2.0),
        ("strong", "pearson_delta", 0, 0.5, 0.7),
        ("strong", "pearson_delta", 1, np.nan, np.nan),
    ]
    return pd.DataFrame(rows, columns=COLUMNS)


def rows_of(ax) -> list[str]:
    return [label.get_text() for label in ax.get_yticklabels()]


def written(ax) -> list[list[str]]:
    """Texts by row, from left to right, the mean of a cell before its standard deviation."""
    ticks = ax.get_yticks()
    rows: list[list] = [[] for _ in ticks]
    for text in ax.texts:
        x, y = text.get_position()
        rows[int(np.argmin(np.abs(ticks - y)))].append((x, y, text.get_text()))
    return [[text for *_, text in sorted(row)] for row in rows]


def fills(ax) -> dict[tuple[float, float], tuple]:
    """Colour by the middle of every cell."""
    cells = [patch for patch in ax.patches if isinstance(patch, Rectangle)]
    return {tuple(np.round(cell.get_center(), 3)): cell.get_facecolor()[:3] for cell in cells}


def test_models_by_mean_and_references_apart(frame):
    ax = benchmark_table(frame)
    assert rows_of(ax) == ["strong", "weak", "ceiling"]
    places = ax.get_yticks()
    assert places[2] - places[1] > places[1] - places[0]
    (line,) = ax.lines
    assert places[1] < line.get_ydata()[0] < places[2]


def test_cells_hold_mean_and_sd_over_seeds(frame):
    assert written(benchmark_table(frame)) == [
        ["0.70", "± 0.14", "0.50*", "0.60*"],
        ["−0.40", "± 0.14", "−0.20", "± 0.00", "−0.30"],
        ["1.00", "± 0.00", "1.00", "± 0.00", "1.00"],
    ]


def test_splits_are_averaged_within_a_seed(frame):
    split = pd.concat([frame.assign(split=0), frame.assign(split=1, calibrated=frame["calibrated"] + 0.2)])
    assert written(benchmark_table(split, metrics=["rmse"]))[:2] == [["0.80", "± 0.14"], ["−0.30", "± 0.14"]]


def test_one_seed_has_no_sd(frame):
    ax = benchmark_table(frame[frame["seed"] == 0])
    assert not any("±" in text.get_text() for text in ax.texts)
    assert written(benchmark_table(frame[frame["seed"] == 0].drop(columns="seed"))) == written(ax)


def test_undefined_is_a_dash_without_colour(frame):
    frame = frame[(frame["model"] != "strong") | (frame["metric"] == "rmse")]
    ax = benchmark_table(frame)
    assert written(ax)[0] == ["0.70", "± 0.14", "–", "0.70*"]
    assert (1.0, 0.0) not in fills(ax)
    assert ax.get_xlabel().startswith("*")
    assert benchmark_table(frame, metrics=["rmse"]).get_xlabel() == ""


def test_raw_values_keep_the_calibrated_colour_and_order(frame):
    raw, calibrated = benchmark_table(frame, value="value"), benchmark_table(frame)
    assert rows_of(raw) == rows_of(calibrated)
    assert fills(raw) == fills(calibrated)
    assert written(raw)[1] == ["4.00", "± 1.41", "0.100", "± 0.000", "−0.30"]


def test_raw_values_alone_are_not_coloured(frame):
    ax = benchmark_table(frame.drop(columns="calibrated"), value="value")
    assert rows_of(ax) == ["weak", "strong", "ceiling"]
    assert fills(ax) == {}
    assert len(ax.figure.axes) == 1


def test_colour_is_limited_and_orange_below_zero_blue_above():
    values = {"a": 5.0, "b": 1.0, "c": 0.0, "d": -1.0, "e": -9.0}
    frame = pd.DataFrame({"model": list(values), "metric": "rmse", "calibrated": list(values.values())})
    colour = {name: fills(benchmark_table(frame))[0.0, float(i)] for i, name in enumerate("abcde")}
    assert colour["a"] == colour["b"]
    assert colour["d"] == colour["e"]
    assert colour["b"][2] > colour["b"][0]
    assert colour["d"][0] > colour["d"][2]
    assert max(colour["c"]) - min(colour["c"]) < 0.01


def test_text_can_be_read_on_every_colour():
    values = np.linspace(-1, 1, 21)
    frame = pd.DataFrame({"model": [f"m{i:02}" for i in range(21)], "metric": "rmse", "calibrated": values})
    ax = benchmark_table(frame)
    at = fills(ax)

    def luminance(colour):
        channels = np.array(colour)
        linear = np.where(channels <= 0.04045, channels / 12.92, ((channels + 0.055) / 1.055) ** 2.4)
        return linear @ [0.2126, 0.7152, 0.0722]

    for text in ax.texts:
        pair = sorted([luminance(to_rgb(text.get_color())), luminance(at[tuple(np.round(text.get_position(), 3))])])
        assert (pair[1] + 0.05) / (pair[0] + 0.05) > 4


def test_arrows_from_the_metrics_or_the_argument(frame):
    def labels(**arguments):
        return [label.get_text() for label in benchmark_table(frame, **arguments).get_xticklabels()]

    assert labels() == ["rmse ↓", "pearson_delta ↑", "mean"]
    assert labels(better={"rmse": "higher"}) == ["rmse ↑", "pearson_delta ↑", "mean"]
    frame = frame.replace({"metric": {"rmse": "variance_ratio", "pearson_delta": "mine"}})
    assert labels() == ["variance_ratio → 1", "mine", "mean"]


def test_metrics_are_shown_in_the_order_asked_for(frame):
    ax = benchmark_table(frame, metrics=["pearson_delta", "rmse"])
    assert written(ax)[1][:3] == ["−0.20", "± 0.00", "−0.40"]


def test_order_follows_the_metrics_shown(frame):
    frame.loc[frame["model"] == "weak", "calibrated"] = [0.9, 0.9, -1.0, -1.0]
    assert rows_of(benchmark_table(frame))[0] == "strong"
    assert rows_of(benchmark_table(frame, metrics=["rmse"]))[0] == "weak"


def test_texts_do_not_touch(frame, overlaps, new_ax):
    frame = pd.concat([frame.assign(metric=frame["metric"] + str(i)) for i in range(3)])
    for ax in (benchmark_table(frame), benchmark_table(frame, ax=new_ax(8, 5))):
        assert overlaps(ax, ax.texts) == []


def test_categories_are_drawn_like_texts(frame):
    as_categories = frame.astype({"model": "category", "metric": "category", "seed": "category"})
    assert written(benchmark_table(as_categories)) == written(benchmark_table(frame))


def test_summary_of_the_metrics_is_drawn_as_it_is():
    from multipert.metrics import summarise

    rows = [("mine", 0.8), ("no_change", 0.2), ("mean_shift", 0.6), ("ceiling", 0.9)]
    frame = pd.DataFrame(rows, columns=["predictor", "value"]).assign(metric="pearson_delta", perturbation="A")
    ax = benchmark_table(summarise(frame), model_key="predictor")
    assert rows_of(ax) == ["mine", "ceiling", "mean_shift", "no_change"]
    assert [row[0] for row in written(ax)] == ["0.67", "1.00", "0.00", "−1.33"]


@pytest.mark.parametrize(
    ("change", "arguments", "error", "message"),
    [
        (lambda f: f.drop(columns="model"), {}, KeyError, "no column 'model'"),
        (lambda f: f.rename(columns={"calibrated": "calibrate"}), {}, KeyError, "did you mean 'calibrate'"),
        (lambda f: f.iloc[:0], {}, ValueError, "no rows"),
        (lambda f: f.to_dict(), {}, TypeError, "must be a DataFrame"),
        (lambda f: f, {"metrics": ["rsme"]}, ValueError, "1 unknown name.*'rsme'; did you mean 'rmse'"),
        (lambda f: f, {"metrics": []}, ValueError, "`metrics` is empty"),
        (lambda f: f, {"value": "raw"}, ValueError, "calibrated, value"),
        (lambda f: f, {"better": {"rmse": "less"}}, ValueError, "higher, lower, nearest"),
    ],
)
def test_bad_input(frame, change, arguments, error, message):
    with pytest.raises(error, match=message):
        benchmark_table(change(frame), **arguments)
