import numpy as np
import pytest
from anndata import AnnData


@pytest.fixture
def groups() -> dict[str, np.ndarray]:
    """Predicted, observed and control cells of unequal number with zeros, ties and a shared baseline over genes."""
    rng = np.random.default_rng(1)
    n_vars = 120
    baseline = rng.gamma(1.0, 1.0, n_vars)
    effect = np.where(np.arange(n_vars) < 30, rng.normal(0, 1.5, n_vars), 0.0)
    control = np.log1p(rng.poisson(baseline, (45, n_vars)))
    observed = np.log1p(rng.poisson(baseline * np.exp(effect), (38, n_vars)))
    predicted = np.log1p(rng.poisson(baseline * np.exp(0.6 * effect), (41, n_vars)))
    return {"predicted": predicted, "observed": observed, "control": control}


@pytest.fixture
def screen() -> AnnData:
    """Control and two perturbations ("A", "B+A") in four contexts of unequal size."""
    rng = np.random.default_rng(2)
    n_vars, contexts = 60, {"w": 9, "x": 24, "y": 31, "z": 12}
    effects = {"control": np.zeros(n_vars), "A": rng.normal(0, 0.6, n_vars), "B+A": rng.normal(0, 0.6, n_vars)}
    blocks, labels = [], []
    for number, (context, n_cells) in enumerate(contexts.items()):
        baseline = rng.gamma(2.0, 1.0, n_vars)
        for perturbation, effect in effects.items():
            size = n_cells + 3 * number + len(perturbation)
            strength = 1 + 0.3 * number
            blocks.append(np.log1p(rng.poisson(baseline * np.exp(strength * effect), (size, n_vars))))
            labels += [(perturbation, context)] * size
    adata = AnnData(np.vstack(blocks).astype(np.float32))
    adata.obs["perturbation"], adata.obs["context"] = zip(*labels, strict=True)
    adata.var_names = [f"g{i}" for i in range(n_vars)]
    return adata
