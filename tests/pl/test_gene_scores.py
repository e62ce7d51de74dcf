import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import to_rgb

from multipert.pl import gene_scores
from multipert.pl._axes import PALETTE

FRAME = pd.DataFrame(
    {"score": [0.2, 2.0, -3.0, 0.1, 1.0, -0.3], "r2": [0.5, 1.0, 0.0, 0.5, np.nan, 0.5]}, index=list("abcdef")
)


def names(ax):
    return [label.get_text() for label in ax.get_yticklabels()]


def test_the_largest_scores_of_either_sign_are_drawn_from_the_highest_down(new_ax):
    ax = gene_scores(FRAME, n_genes=4, ax=new_ax())
    assert names(ax) == ["b", "e", "f", "c"]
    assert [bar.get_width() for bar in ax.patches] == [2.0, 1.0, -0.3, -3.0]
    # the first is at the top
    low, high = ax.get_ylim()
    assert low > high
    order = gene_scores(FRAME.iloc[::-1], n_genes=4, ax=new_ax())
    assert names(order) == names(ax)


def test_colour_tells_the_sign_and_paleness_what_the_surrogate_explains(new_ax):
    bars = gene_scores(FRAME, ax=new_ax()).patches
    of = dict(zip(["b", "e", "a", "d", "f", "c"], bars, strict=True))
    up, down = (to_rgb(colour) for colour in (PALETTE[1], PALETTE[0]))
    assert {name: of[name].get_facecolor()[:3] == up for name in of} == dict(
        zip("beadfc", [True] * 4 + [False] * 2, strict=True)
    )
    assert of["c"].get_facecolor()[:3] == down
    assert of["b"].get_alpha() == 1
    assert of["c"].get_alpha() == of["e"].get_alpha() == 0.25
    assert 0.25 < of["a"].get_alpha() < 1


def test_the_mean_of_what_is_explained_stands_below(new_ax):
    assert "mean R² 0.50" in gene_scores(FRAME, ax=new_ax()).get_xlabel()
    assert gene_scores(FRAME.assign(r2=np.nan), ax=new_ax()).get_xlabel() == "score"


def test_names_do_not_cover_each_other(new_ax, overlaps):
    frame = pd.DataFrame({"score": np.linspace(-1, 1, 50), "r2": 1.0}, index=[f"gene_{i:03}" for i in range(50)])
    ax = gene_scores(frame, n_genes=30)
    assert overlaps(ax, ax.get_yticklabels()) == []


@pytest.mark.parametrize(
    ("frame", "arguments", "error", "message"),
    [
        (FRAME.drop(columns="r2"), {}, KeyError, "no column 'r2'"),
        (FRAME.iloc[:0], {}, ValueError, "no rows"),
        (FRAME, {"n_genes": 0}, ValueError, "`n_genes` is 0"),
        (FRAME.assign(score=np.inf), {}, ValueError, "6 score"),
    ],
)
def test_bad_input(frame, arguments, error, message):
    with pytest.raises(error, match=message):
        gene_scores(frame, **arguments)
