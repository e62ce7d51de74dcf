"""What a model can do, in one frozen record."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal


@dataclass(frozen=True)
class ModelTags:
    """Abilities and needs of a model; drives the checks, the docs' table and the benchmark.

    Parameters
    ----------
    uses_context
        Whether the prediction depends on the context.
    uses_covariates
        Whether it depends on categorical covariates, so that values never seen are refused.
    needs_context
        Whether `context_key` must be given.
    unseen_context
        Whether control cells of a context never seen in training are a legal input.
    several_perturbations
        Whether one model holds more than one perturbation.
    unseen_perturbations
        Whether perturbations without training cells are legal targets.
    unseen_needs_embedding
        Whether they are so only where `perturbation_embedding_key` is given.
    combinations
        Whether labels such as "A+B" are legal.
    doses
        Whether `dose_key` is legal.
    needs_embedding
        Whether `perturbation_embedding_key` must be given.
    needs_cell_embedding
        Whether `cell_embedding_key` must be given.
    needs_counts
        Whether a layer of raw counts must be there beside the expression.
    counts
        Whether the expression itself must be raw counts.
    modalities
        Number of modalities.
    translates
        Whether `setup_mudata` may name a target modality, into which cells are then translated and back.
    latent
        Whether there is a latent representation.
    perturbation_embedding
        Whether `get_perturbation_embedding` returns something.
    samples
        Whether `predict(n_samples=)` draws several counterfactuals of one cell.
    output
        What a predicted row is: a mapped "cell", a drawn "sample", or the "mean" repeated.
    reference
        Bibtex key of the source.
    """

    uses_context: bool = False
    uses_covariates: bool = False
    needs_context: bool = False
    unseen_context: bool = True
    several_perturbations: bool = True
    unseen_perturbations: bool = False
    unseen_needs_embedding: bool = False
    combinations: bool = False
    doses: bool = False
    needs_embedding: bool = False
    needs_cell_embedding: bool = False
    needs_counts: bool = False
    counts: bool = False
    modalities: int = 1
    translates: bool = False
    latent: bool = False
    perturbation_embedding: bool = False
    samples: bool = False
    output: Literal["cell", "sample", "mean"] = "cell"
    reference: str = ""

    def given(self, is_embedded: bool) -> ModelTags:
        """What holds under a setup: without an embedding, unseen perturbations may be out of reach.

        Parameters
        ----------
        is_embedded
            Whether a perturbation embedding is given.

        Returns
        -------
        Tags whose `unseen_perturbations` needs no further condition.
        """
        unseen = self.unseen_perturbations and (is_embedded or not self.unseen_needs_embedding)
        return replace(self, unseen_perturbations=unseen)
