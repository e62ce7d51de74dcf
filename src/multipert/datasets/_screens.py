"""Three frozen screens."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from ._simulate import simulate

if TYPE_CHECKING:
    from anndata import AnnData

# Stored tables rest on these: changing one means making every stored table again.
SCREENS: Final[dict[str, dict[str, Any]]] = {
    "small": {"n_cells": 2500, "n_vars": 500, "n_contexts": 5, "n_perturbations": 4, "seed": 1},
    "doses": {
        "n_cells": 4000,
        "n_vars": 500,
        "n_contexts": 4,
        "n_perturbations": 3,
        "doses": (0.1, 0.5, 2.0, 10.0, 50.0),
        "seed": 2,
    },
    "combinations": {
        "n_cells": 5000,
        "n_vars": 500,
        "n_contexts": 2,
        "n_perturbations": 12,
        "combinations": 18,
        "features": 4,
        "seed": 3,
    },
}


def screen(name: str) -> AnnData:
    """Make a named, frozen simulated screen.

    - "small": 2,500 cells, 500 genes, 5 contexts, 4 perturbations; for context transfer, the demo and the tests.
    - "doses": 4,000 cells, 500 genes, 4 contexts, 3 perturbations at 5 doses; for leaving out a dose.
    - "combinations": 5,000 cells, 500 genes, 2 contexts, 12 perturbations and 18 pairs, six of each kind, with a
      perturbation embedding that also names three unseen perturbations.

    Parameters
    ----------
    name
        Which screen.

    Returns
    -------
    A screen as :func:`simulate` makes it, the same in every release that does not say otherwise in its changelog.

    Raises
    ------
    ValueError
        If there is no screen of this name.

    Examples
    --------
    >>> screen("small").shape
    (2500, 500)
    """
    if name not in SCREENS:
        raise ValueError(f"There is no screen {name!r}; known: {', '.join(SCREENS)}.")
    return simulate(**SCREENS[name])
