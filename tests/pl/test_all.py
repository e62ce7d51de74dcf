"""What every picture has in common."""

import io
import itertools

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from anndata import AnnData
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure

from multipert import pl
from multipert.pl._axes import GREY, LINES, MARKERS, PALETTE, point_styles


def screen() -> AnnData:
    rng = np.random.default_rng(0)
    dose = np.repeat([0.0, 1.0, 10.0], 20)
    obs = pd.DataFrame({"dose": dose, "perturbation": np.where(dose > 0, "P", "control")}, index=map(str, range(60)))
    adata = AnnData(rng.gamma(1, 1, (60, 12)), obs=obs, var=pd.DataFrame(index=[f"gene_{i}" for i in range(12)]))
    adata.obsm["X_MTAe"] = rng.normal(size=(60, 5))
    return adata


def draw(name: str, ax: Axes | None = None) -> Axes:
    adata = screen()
    control, observed = adata[:20], adata[20:]
    frame = pd.DataFrame({"model": ["A", "no_change"], "metric": "rank_rmse", "calibrated": [0.4, 0.1], "value": 0.2})
    match name:
        case "benchmark_table" | "rank_curves":
            return getattr(pl, name)(frame, ax=ax)
        case "mean_scatter":
            return pl.mean_scatter(observed, observed, control, ax=ax)
        case "precision_recall":
            return pl.precision_recall(np.arange(9) > 6, {"A": np.arange(9.0)}, ax=ax)
        case "gene_distributions":
            return pl.gene_distributions({"control": control, "observed": observed}, ["gene_1", "gene_2"], ax=ax)
        case "dose_response":
            return pl.dose_response(observed, adata, "gene_1", ax=ax)
        case "gene_scores":
            scores = pd.DataFrame({"score": np.linspace(2, -2, 9), "r2": 0.5}, index=[f"gene_{i}" for i in range(9)])
            return pl.gene_scores(scores, ax=ax)
        case "pseudo_dose":
            values = pd.Series(adata.obs["dose"] / 10 + np.random.default_rng(0).normal(0, 0.3, 60))
            return pl.pseudo_dose(values, adata.obs["dose"], ax=ax)
        case "latent":
            return pl.latent(adata, "X_MTAe", ax=ax)
        case "perturbations":
            index = ["control", *"ABCDEF", "G@1", "G@10"]
            table = pd.DataFrame(np.random.default_rng(0).normal(size=(9, 4)), index=index)
            return pl.perturbations(table, groups=dict.fromkeys("ABC", "pathway"), ax=ax)
    raise AssertionError(f"{name} is not drawn here")


@pytest.fixture(params=pl.__all__)
def name(request) -> str:
    return request.param


def test_given_axes_are_returned_and_pyplot_is_left_alone(name):
    ax = Figure(layout="constrained").subplots()
    assert draw(name, ax) is ax
    assert plt.get_fignums() == []


def test_without_axes_there_is_one_new_figure_that_pyplot_shows(name):
    ax = draw(name)
    assert plt.get_fignums() == [ax.figure.number]


def test_nothing_is_cut_off(name):
    figure = draw(name).figure
    figure.draw_without_rendering()
    needed, page = figure.get_tightbbox(), figure.bbox_inches
    assert page.x0 - 0.01 <= needed.x0 <= needed.x1 <= page.x1 + 0.01
    assert page.y0 - 0.01 <= needed.y0 <= needed.y1 <= page.y1 + 0.01


def picture(name: str, ax: Axes) -> np.ndarray:
    """Pixels of the file."""
    buffer = io.BytesIO()
    draw(name, ax).figure.savefig(buffer, dpi=50)
    buffer.seek(0)
    return plt.imread(buffer)[..., :3]


def test_file_has_the_size_of_the_figure_and_the_same_input_gives_the_same(name):
    first, again = (picture(name, Figure(figsize=(6, 4), layout="constrained").subplots()) for _ in range(2))
    assert first.shape == (200, 300, 3)
    assert np.ptp(first) > 0.5
    np.testing.assert_array_equal(first, again)


def test_dark_style_makes_all_text_light(name):
    with mpl.rc_context():
        plt.style.use("dark_background")
        ax = draw(name)
    texts = [*ax.get_xticklabels(), *ax.get_yticklabels(), ax.xaxis.label, ax.yaxis.label]
    texts += [] if name == "benchmark_table" else ax.texts
    texts += ax.get_legend().get_texts() if ax.get_legend() else []
    assert all(min(to_rgb(text.get_color())) > 0.7 for text in texts)


def test_subfigures_are_drawn_on(name):
    sub = Figure(figsize=(8, 4), layout="constrained").subfigures(1, 2)[0]
    ax = sub.subplots()
    assert draw(name, ax) is ax


def contrast(a: str, b: str) -> float:
    def luminance(colour: str) -> float:
        channels = np.array(to_rgb(colour))
        return np.where(channels <= 0.04045, channels / 12.92, ((channels + 0.055) / 1.055) ** 2.4) @ [
            0.2126,
            0.7152,
            0.0722,
        ]

    low, high = sorted([luminance(a), luminance(b)])
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("ground", ["#ffffff", "#14171c"])
def test_colours_stand_out_on_white_and_on_near_black(ground):
    assert min(contrast(colour, ground) for colour in (*PALETTE, GREY)) > 2.3


def test_styles_repeat_no_pair_before_all_are_used():
    styles = point_styles(map(str, range(len(PALETTE) * len(MARKERS))))
    assert len(set(styles.values())) == len(styles)
    assert len(set(LINES)) == len(LINES)
    pairs = itertools.islice(zip(itertools.cycle(PALETTE), itertools.cycle(LINES), strict=False), 35)
    assert len(set(pairs)) == 35
