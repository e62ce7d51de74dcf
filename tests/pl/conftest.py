import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from anndata import AnnData
from matplotlib.figure import Figure
from matplotlib.text import Text


@pytest.fixture(autouse=True)
def _nothing_left_behind():
    """Draw into memory; no setting may change."""
    plt.switch_backend("Agg")
    before = dict(mpl.rcParams)
    yield
    plt.close("all")
    assert dict(mpl.rcParams) == before


@pytest.fixture
def new_ax():
    """Make axes of a figure that pyplot does not know."""

    def make(width: float = 5.0, height: float = 4.0):
        return Figure(figsize=(width, height), layout="constrained").subplots()

    return make


@pytest.fixture
def cells():
    """Make an AnnData of cells by genes "a", "b", ..., with obs columns."""

    def make(values, **obs) -> AnnData:
        values = np.asarray(values, dtype=float)
        names = [chr(ord("a") + i) for i in range(values.shape[1])]
        index = [f"cell_{i}" for i in range(len(values))]
        return AnnData(values, obs=pd.DataFrame(obs, index=index), var=pd.DataFrame(index=names))

    return make


@pytest.fixture
def legend():
    """Texts of the legend of axes."""
    return lambda ax: [text.get_text() for text in ax.get_legend().get_texts()]


@pytest.fixture
def overlaps():
    """Pairs of texts of which one covers the other, as the figure is drawn."""

    def find(ax, texts) -> list[tuple[str, str]]:
        ax.figure.draw_without_rendering()
        # without the line that an annotation draws
        boxes = [(text.get_text(), Text.get_window_extent(text)) for text in texts]
        return [(a, b) for i, (a, one) in enumerate(boxes) for b, other in boxes[:i] if one.overlaps(other)]

    return find
