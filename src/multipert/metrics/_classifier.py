from __future__ import annotations

import numpy as np

from ._cells import Cells, Matrix, as_cells
from ._distribution import N_COMPONENTS, fit_basis

N_FOLDS = 5


def classifier_auc(
    predicted: Matrix,
    observed: Matrix,
    *,
    n_components: int | None = N_COMPONENTS,
    seed: int = 0,
) -> float:
    """How well a linear classifier tells predicted from observed cells it has not seen.

    A two-sample test by classification :cite:p:`LopezPaz2017`: logistic regression with both groups weighing the same,
    in five folds with the share of both groups kept. The area under the ROC curve is that of the left-out cells, the
    mean over folds. Principal components and scaling come from the training folds alone.

    It answers whether the prediction could be mistaken for cells, which a small distance does not: a tiny but constant
    offset gives 1. Being linear it sees differences of means and not of spread alone, for which
    :func:`variance_ratio` stands beside it. A cell that is in both groups counts as seen under the other name, so
    copies of the observed cells score below 0.5 and not at it. The folds depend on the order of the cells.

    Parameters
    ----------
    predicted
        Counterfactual cells, shape `(n_predicted, n_vars)`.
    observed
        Perturbed cells that were measured, shape `(n_observed, n_vars)`.
    n_components
        Number of principal components of the training cells that are classified; None for the values as they are.
    seed
        Of the folds.

    Returns
    -------
    About 0.5 if the groups cannot be told apart, 1 if they always can, and below 0.5 by chance; `nan` if a group has
    fewer than two cells. Groups of fewer than five cells are divided in as many folds as the smaller has cells.

    Raises
    ------
    ValueError
        If a group is empty, holds NaN or infinite values, the numbers of genes differ, or `n_components` is below 1.

    Examples
    --------
    >>> cells = np.random.default_rng(0).normal(size=(50, 3))
    >>> classifier_auc(cells + 10, cells)
    1.0
    """
    first, second = as_cells(predicted=predicted, observed=observed)
    if n_components is not None and n_components < 1:
        raise ValueError(f"`n_components` is {n_components}; it must be at least 1, or None for all values.")
    n_folds = min(N_FOLDS, len(first), len(second))
    if n_folds < 2:
        return np.nan
    # imported here because scikit-learn loads slowly
    from sklearn.model_selection import StratifiedKFold

    cells = np.vstack([first.dense(), second.dense()])
    is_predicted = np.repeat([True, False], [len(first), len(second)])
    folds = StratifiedKFold(n_folds, shuffle=True, random_state=seed).split(cells, is_predicted)
    return float(np.mean([_fold_auc(cells, is_predicted, train, test, n_components) for train, test in folds]))


def _fold_auc(
    cells: np.ndarray, is_predicted: np.ndarray, train: np.ndarray, test: np.ndarray, n_components: int | None
) -> float:
    """Area under the curve of the test cells, with everything fitted on the training cells."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.metrics import roc_auc_score
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    train_cells, test_cells = cells[train], cells[test]
    if n_components is not None and n_components < cells.shape[1]:
        basis = fit_basis(Cells(train_cells), n_components=n_components)
        if not basis.axes.size:
            # all training cells are equal
            return 0.5
        train_cells, test_cells = (basis.project(Cells(values)).dense() for values in (train_cells, test_cells))
    model = make_pipeline(StandardScaler(), LogisticRegression(class_weight="balanced", max_iter=1000))
    model.fit(train_cells, is_predicted[train])
    return float(roc_auc_score(is_predicted[test], model.decision_function(test_cells)))
