"""Every registry, obs, obsm, layers and uns key that the package uses, named once."""

from typing import Final

# Keys of the batch dictionary and of the scvi-tools registry.
X: Final = "X"
X_CONTROL: Final = "X_control"
X_TARGET: Final = "X_target"
PERTURBATION: Final = "perturbation"
DOSE: Final = "dose"
CONTEXT: Final = "context"
CONTEXT_CONTROL: Final = "context_control"
CATEGORICAL_COVARIATES: Final = "extra_categorical_covs"
CELL_EMBEDDING: Final = "cell_embedding"
CELL_EMBEDDING_CONTROL: Final = "cell_embedding_control"
CELL_KEY: Final = "cell_key"
SIZE_FACTOR: Final = "size_factor"
ROW: Final = "row"

# Default names of obs columns and labels.
CONTROL: Final = "control"
SPLIT: Final = "split"
SPLIT_LEVELS: Final = ("train", "val", "test")
SOURCE_CELL: Final = "source_cell"
SAMPLE: Final = "draw"
N_CELLS: Final = "n_cells"

# Where setup_anndata puts what it derives (obsm of the AnnData).
CODES_OBSM: Final = "_multipert_perturbation"
DOSES_OBSM: Final = "_multipert_dose"
TARGET_OBSM: Final = "_multipert_target"

# Layers and uns.
COUNTS_LAYER: Final = "counts"
VARIANCE_LAYER: Final = "variance"
UNS: Final = "multipert"
SIMULATION: Final = "simulation"

PAD: Final = -1
