"""`check_model` accepts good models of others, and each check refuses the model that is broken where it looks."""

import re
import types
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from scipy import sparse

from multipert.data._codec import ConditionCodec
from multipert.model import ModelTags, PerturbationModel, PerturbationModule
from multipert.model._predict import Predictor
from multipert.nn import group_means, multi_hot, noise_of_cells
from multipert.testing import CHECKS, check_model
from multipert.testing._case import Case
from multipert.testing._check_model import run_check
from multipert.testing._screen import Screen, log_fold_changes

PAGE = Path(__file__).parents[1] / "docs" / "contributing.md"


def scaffolds() -> list[str]:
    """The Python blocks of the page's section on adding a model, in order."""
    section = PAGE.read_text(encoding="utf-8").partition("\n## Add a model in 10 minutes\n")[2].partition("\n## ")[0]
    return re.findall(r"^```python\n(.*?)^```$", section, flags=re.MULTILINE | re.DOTALL)


PAGE_CLASSES: dict = {"__name__": "scaffold"}
for block in scaffolds()[:2]:
    exec(compile(block, PAGE.name, "exec"), PAGE_CLASSES)
MeanShift, MeanShiftModule = PAGE_CLASSES["MeanShift"], PAGE_CLASSES["MeanShiftModule"]
TinyNet, TinyNetModule = PAGE_CLASSES["TinyNet"], PAGE_CLASSES["TinyNetModule"]


def failing(cls: type) -> dict[str, str]:
    """Checks that a model fails, with their messages."""
    case, failed = Case(cls), {}
    for name in CHECKS:
        try:
            run_check(name, case)
        except AssertionError as error:
            failed[name] = str(error)
    return failed


# ---------------------------------------------------------------- good models of others


def test_the_page_has_both_scaffolds_and_runs_the_checks_on_them():
    blocks = scaffolds()
    assert len(blocks) == 3
    namespace = {"__name__": "scaffold"}
    exec(compile("\n".join(blocks), PAGE.name, "exec"), namespace)
    assert issubclass(namespace["MeanShift"], PerturbationModel)
    assert issubclass(namespace["TinyNet"], PerturbationModel)


class RichModule(PerturbationModule):
    """Linear response to summed feature vectors, scaled by dose / (dose + 1)."""

    fitted = (*PerturbationModule.fitted, "weights")

    def __init__(self, features):
        super().__init__()
        self.register_buffer("features", features)

    def design(self, codes, doses):
        doses = doses.float()
        return multi_hot(codes, doses / (doses + 1), len(self.features)) @ self.features

    def conclude(self, loader):
        means = group_means(loader, self.lookup)
        is_control = (self.known_codes < 0).all(dim=1)[means.condition]
        control = {int(means.context[i]): means.mean[i] for i in torch.nonzero(is_control)[:, 0]}
        changes = torch.stack([mean - control[int(c)] for c, mean in zip(means.context, means.mean, strict=True)])
        design = self.design(self.known_codes, self.known_doses)[means.condition].double()
        self.weights = torch.linalg.lstsq(design, changes, driver="gelsd").solution.float()

    def inference(self, tensors):
        return {"z": tensors["cell_embedding"]}

    def counterfactual(self, tensors, z=None):
        return tensors["X"] + self.design(tensors["perturbation"], tensors["dose"]) @ self.weights


class Rich(PerturbationModel):
    """A model with nearly every ability and need."""

    tags = ModelTags(
        combinations=True,
        doses=True,
        unseen_perturbations=True,
        needs_context=True,
        needs_embedding=True,
        needs_cell_embedding=True,
        needs_counts=True,
        latent=True,
        perturbation_embedding=True,
    )
    stages = ()

    def __init__(self, adata=None, registry=None):
        super().__init__(adata, registry)
        self._start_module()
        self.init_params_ = self._get_init_params(locals())

    def _new_module(self):
        n = len(self._codec.vocabulary)
        table = None if self.adata is None else self._setup.embedding(self.adata)
        return RichModule(torch.zeros(n, 2) if table is None else torch.tensor(table.to_numpy(np.float32)))

    def _perturbation_embedding(self):
        return pd.DataFrame(self.module.features.numpy(), index=list(self._codec.vocabulary))


class CountMeanModule(PerturbationModule):
    """The mean counts of the condition, whatever the cell."""

    fitted = (*PerturbationModule.fitted, "mean")

    def conclude(self, loader):
        means = group_means(loader, self.lookup)
        rows = [means.mean[means.condition == i].mean(dim=0) for i in range(len(self.known_codes))]
        self.mean = torch.stack(rows).float()

    def counterfactual(self, tensors, z=None):
        return self.mean[self.lookup(tensors)]


class CountMean(MeanShift):
    """One perturbation, raw counts, one mean for all cells."""

    tags = ModelTags(counts=True, several_perturbations=False, output="mean")

    def _new_module(self):
        return CountMeanModule()


class CountShift(MeanShift):
    """The mean shift of raw counts."""

    tags = ModelTags(counts=True)


class BoundToContexts(MeanShift):
    """The mean shift for the contexts of the training cells."""

    tags = ModelTags(uses_context=True, needs_context=True, unseen_context=False)


@pytest.mark.parametrize("cls", [Rich, CountMean, CountShift, BoundToContexts])
def test_good_models_pass_with_other_tags(cls):
    assert failing(cls) == {}


# ---------------------------------------------------------------- broken models, one for each check

BROKEN: dict[str, type] = {}


def breaks(check):
    """Enter a model as the one that fails this check, and no other."""

    def enter(cls):
        assert check not in BROKEN
        BROKEN[check] = cls
        return cls

    return enter


def using(module):
    """A `_new_module` that makes this module."""
    return lambda self: module()


@breaks("tags")
class Lookalike(MeanShift):
    """Tags of another type, which may lack what comes later."""

    tags = types.SimpleNamespace(**vars(ModelTags()), given=ModelTags().given)


@breaks("docstring")
class Undocumented(MeanShift):
    pass


@breaks("init_arguments")
class Swallows(MeanShift):
    """A mistyped argument is lost."""

    def __init__(self, adata=None, registry=None, **kwargs):
        super(MeanShift, self).__init__(adata, registry)
        self._start_module()
        self.init_params_ = self._get_init_params(locals())


@breaks("sealed_methods")
class OwnPredict(MeanShift):
    """A prediction of its own."""

    def predict(self, *args, **kwargs):
        return super().predict(*args, **kwargs)


@breaks("setup_typos")
class AcceptsTypos(MeanShift):
    """A mistyped setup argument is lost."""

    @classmethod
    def _register(cls, data, setup_args, kwargs):
        super()._register(data, setup_args, {k: v for k, v in kwargs.items() if k == "source_registry"})


@breaks("setup_labels")
class FillsLabels(MeanShift):
    """Cells without a label become control cells."""

    @classmethod
    def _register(cls, data, setup_args, kwargs):
        if data.obs["label"].isna().any():
            data.obs["label"] = data.obs["label"].astype(object).fillna("untreated")
        super()._register(data, setup_args, kwargs)


@breaks("setup_expression")
class DropsSigns(MeanShift):
    """Negative values lose their sign."""

    @classmethod
    def _register(cls, data, setup_args, kwargs):
        data.X = abs(data.X)
        super()._register(data, setup_args, kwargs)


@breaks("setup_names")
class RenamesGenes(MeanShift):
    """Duplicated genes get new names."""

    @classmethod
    def _register(cls, data, setup_args, kwargs):
        data.var_names_make_unique()
        super()._register(data, setup_args, kwargs)


@breaks("setup_needs")
class SplitsCombinations(MeanShift):
    """A combination is taken for its first part."""

    @classmethod
    def _register(cls, data, setup_args, kwargs):
        if (data.obs["label"] == "A+B").any():
            data.obs["label"] = data.obs["label"].astype(object).replace("A+B", "A")
        super()._register(data, setup_args, kwargs)


@breaks("untrained")
class PredictsUntrained(MeanShift):
    """Goes ahead without training."""

    def _require_trained(self):
        pass


@breaks("predicted_cells")
class Negative(MeanShift):
    """Expression may become negative."""

    def _predictor(self, source, realise, clip, seed, batch_size):
        return super()._predictor(source, realise, False, seed, batch_size)


class OwnCodec(MeanShift):
    """Reads the labels of a prediction in its own way."""

    codec = ConditionCodec

    def __init__(self, adata=None, registry=None):
        super().__init__(adata, registry)
        self._codec = self.codec(self._codec.vocabulary, self._codec.control, self._codec.delimiter)


class SpacesMatter(ConditionCodec):
    def parse(self, label, dose=None):
        if label != label.strip():
            raise ValueError(f"{label!r} is unknown")
        return super().parse(label, dose)


@breaks("label_spelling")
class Pedantic(OwnCodec):
    """Spaces matter."""

    codec = SpacesMatter


class UnknownIsControl(ConditionCodec):
    def parse(self, label, dose=None):
        condition = super().parse(label, dose)
        return condition if all(name in self.vocabulary for name, _ in condition) else ()


@breaks("bad_targets")
class IgnoresUnknown(OwnCodec):
    """An unknown perturbation is predicted as control."""

    codec = UnknownIsControl


class DoseZeroIsNone(ConditionCodec):
    def parse(self, label, dose=None):
        return super().parse(label, dose or None)


@breaks("dose_zero")
class ForgetsZero(OwnCodec):
    """Dose 0 is taken for no dose given."""

    codec = DoseZeroIsNone


class NoFeatures(MeanShiftModule):
    def counterfactual(self, tensors, z=None):
        never_measured = tensors["perturbation"][:, :1] == 3
        return torch.where(never_measured, torch.nan, super().counterfactual(tensors))


@breaks("unseen_perturbations")
class Overclaims(MeanShift):
    """Claims to predict perturbations that were never measured, and gives NaN."""

    tags = ModelTags(unseen_perturbations=True)
    _new_module = using(NoFeatures)


class OneDraw(MeanShiftModule):
    def counterfactual(self, tensors, z=None):
        return super().counterfactual(tensors) + 0.1 * torch.sin(tensors["X"])


@breaks("samples")
class DrawsOnce(MeanShift):
    """Claims to draw, but every sample is the same."""

    tags = ModelTags(samples=True)
    _new_module = using(OneDraw)


@breaks("bad_cells")
class SortsGenes(MeanShift):
    """Genes in another order are put right without a word."""

    def _source(self, adata, *, needs_control=True):
        if adata is not None and set(adata.var_names) == set(self.get_var_names()):
            adata = adata[:, self.get_var_names()]
        return super()._source(adata, needs_control=needs_control)


@breaks("choice_of_cells")
class IgnoresIndices(MeanShift):
    """Uses all control cells, whatever `indices` says."""

    def _control_rows(self, source, context, indices):
        return super()._control_rows(source, context, None)


class ContextOffset(MeanShiftModule):
    def counterfactual(self, tensors, z=None):
        return super().counterfactual(tensors) + 0.1 * tensors["context"]


@breaks("context_tags")
class HidesContext(MeanShift):
    """Depends on the context although its tags say that it does not."""

    _new_module = using(ContextOffset)


@breaks("input_unchanged")
class WritesNotes(MeanShift):
    """Leaves a note in the AnnData that it predicts from."""

    def _control_rows(self, source, context, indices):
        rows = super()._control_rows(source, context, indices)
        source.uns["n_control"] = len(rows)
        return rows


class SmallBatches(MeanShiftModule):
    def counterfactual(self, tensors, z=None):
        return tensors["X"] if len(tensors["X"]) < 8 else super().counterfactual(tensors)


@breaks("batch_size")
class SkipsSmallBatches(MeanShift):
    """Small batches are handed on unchanged."""

    _new_module = using(SmallBatches)


class RowNoise(MeanShiftModule):
    def counterfactual(self, tensors, z=None):
        return super().counterfactual(tensors) + 0.05 * torch.sin(tensors["row"].float())


@breaks("cell_order")
class NoiseByRow(MeanShift):
    """Noise is keyed by row number instead of by cell."""

    _new_module = using(RowNoise)

    def _extra_columns(self, source, contexts):
        return {**super()._extra_columns(source, contexts), "row": np.arange(source.n_obs)[:, None]}


class SampleVariance(Predictor):
    def moments(self, rows, codes, doses):
        means, variances, names, n_cells = super().moments(rows, codes, doses)
        return means, variances * (n_cells / (n_cells - 1))[:, None], names, n_cells


@breaks("mean")
class OtherVariance(MeanShift):
    """Reports the sample variance where the population variance is wanted."""

    def _predictor(self, *args):
        predictor = super()._predictor(*args)
        predictor.__class__ = SampleVariance
        return predictor


class ShrunkRates(MeanShiftModule):
    def rates(self, tensors, decoded, decoded_control):
        control, target = super().rates(tensors, decoded, decoded_control)
        return control, 0.9 * target


@breaks("realise")
class Shrinks(MeanShift):
    """Loses counts under control."""

    _new_module = using(ShrunkRates)


def rounded(adata):
    """The data, sparse expression rounded."""
    if sparse.issparse(adata.X):
        adata = adata.copy()
        adata.X.data = adata.X.data.round(2)
    return adata


@breaks("formats_in_predict")
class RoundsSparseCells(MeanShift):
    """Predicts from rounded values where they are sparse."""

    def _predictor(self, source, *args):
        return super()._predictor(rounded(source), *args)


@breaks("formats_in_training")
class RoundsSparseTraining(MeanShift):
    """Trains on rounded values where they are sparse."""

    def _training_store(self, adata, seed):
        return super()._training_store(rounded(adata), seed)


class Scaled(MeanShiftModule):
    def __init__(self, scale=1.0):
        super().__init__()
        self.register_buffer("scale", torch.tensor(float(scale)))

    def counterfactual(self, tensors, z=None):
        return tensors["X"] + self.scale * self.shift[self.lookup(tensors)]


@breaks("seed")
class Remembers(MeanShift):
    """A record at class level: training again on the same data starts from the last result."""

    record: set = set()
    _new_module = using(Scaled)

    def _training_store(self, adata, seed):
        data = (type(adata.X), adata.X.dtype, float(adata.X.sum()), *adata.obs.columns)
        self.module.scale.fill_(0.9 if data in self.record else 1.0)
        self.record.add(data)
        return super()._training_store(adata, seed)


@breaks("held_out_cells")
class ScalesByAll(MeanShift):
    """Scales by the greatest value of all cells, held-out ones among them."""

    def _new_module(self):
        return Scaled() if self.adata is None else Scaled(1 - 0.01 * self.adata.X.max())


class Pretrained(MeanShiftModule):
    def conclude(self, loader):
        rows = [log_fold_changes("ABC"[i]) if i >= 0 else np.zeros(loader.store.n_vars) for i in self.known_codes[:, 0]]
        self.shift = torch.tensor(np.stack(rows), dtype=torch.float32)


@breaks("training_cells")
class KnowsBefore(MeanShift):
    """Gives what it knew before training."""

    _new_module = using(Pretrained)


@breaks("two_setups")
class TrustsColumns(MeanShift):
    """Trains on whatever codes the last setup left in the AnnData."""

    def __init__(self, adata=None, registry=None):
        super().__init__(adata, registry)
        if adata is not None:
            self.adata_manager.validate = lambda: None

    def _training_store(self, adata, seed):
        store = super()._training_store(adata, seed)
        store._columns["perturbation"] = torch.as_tensor(adata.obsm["_multipert_perturbation"])
        return store


class PairsOnly(TinyNetModule):
    def inference(self, tensors):
        return {"z": self.encoder(tensors["X_control" if self.training else "X"])}


@breaks("plain_plan")
class NeedsPairs(TinyNet):
    """Cannot train on batches without paired control cells."""

    def _new_module(self):
        return PairsOnly(*self._module_args)


class Flipped(MeanShiftModule):
    def counterfactual(self, tensors, z=None):
        return tensors["X"] - self.shift[self.lookup(tensors)]


@breaks("effect")
class WrongSign(MeanShift):
    """Moves cells the wrong way."""

    _new_module = using(Flipped)


@breaks("annotate")
class Unwritable(MeanShift):
    """Keeps an object among the notes of a result."""

    def _provenance(self, realise, seed):
        return {**super()._provenance(realise, seed), "codec": self._codec}


@breaks("annotate_leakage")
class OwnExpression(MeanShift):
    """Predicts a perturbed cell from itself."""

    def _partners(self, adata, rows, seed):
        return np.where(super()._partners(adata, rows, seed) < 0, -1, rows)


@breaks("annotate_without_control")
class AnyControl(MeanShift):
    """Borrows control cells of other contexts."""

    def _partners(self, adata, rows, seed):
        partners = super()._partners(adata, rows, seed)
        return np.where(partners < 0, partners.max(), partners)


class LogCell(MeanShiftModule):
    def inference(self, tensors):
        return {"z": torch.log(tensors["X"])}


@breaks("latent_representation")
class InfiniteLatent(MeanShift):
    """Takes the logarithm of zeros."""

    tags = ModelTags(latent=True)
    _new_module = using(LogCell)


@breaks("perturbation_embedding")
class Nameless(MeanShift):
    """Numbers perturbations instead of naming them."""

    tags = ModelTags(perturbation_embedding=True)

    def _perturbation_embedding(self):
        return pd.DataFrame(self.module.shift.numpy())


class Unsaved(MeanShiftModule):
    fitted = PerturbationModule.fitted


@breaks("files")
class KeepsStateAside(MeanShift):
    """The fitted shift is no buffer, so it is not saved."""

    _new_module = using(Unsaved)


class OneName(type(PerturbationModel)):
    __name__ = property(lambda cls: "Model")


@breaks("files_of_another_class")
class Anonymous(MeanShift, metaclass=OneName):
    """All its subclasses go by one name, so files cannot tell them apart."""


class LenientTags(ModelTags):
    """Takes unseen perturbations for legal without the embedding that they need."""

    def given(self, perturbation_embedding_key):
        return self


class PredictsUnknown(MeanShift):
    """Predicts perturbations of which it knows nothing, where no embedding is given."""

    tags = LenientTags(unseen_perturbations=True, unseen_needs_embedding=True)


def test_unseen_perturbations_without_the_embedding_that_they_need_fail_exactly_that_check():
    failed = failing(PredictsUnknown)
    assert list(failed) == ["unseen_perturbations"], failed
    assert "accepted: 'C', without training cells and without an embedding" in failed["unseen_perturbations"]


class KeyNoise(MeanShiftModule):
    """Noise from the 64 bits of each cell, where the batch has them."""

    def counterfactual(self, tensors, z=None):
        predicted = super().counterfactual(tensors)
        if "cell_key" not in tensors:
            return predicted
        noise = noise_of_cells(tensors["cell_key"], predicted.shape[1])
        perturbed = (tensors["perturbation"] >= 0).any(dim=1, keepdim=True)
        return predicted + 0.1 * perturbed * noise


class Noisy(MeanShift):
    """The mean shift with noise that is drawn on request."""

    tags = ModelTags(samples=True)
    _new_module = using(KeyNoise)


class FewSamples(Noisy):
    """Draws one sample fewer than was asked for."""

    def predict(self, *args, n_samples=None, **kwargs):
        return super().predict(*args, n_samples=None if n_samples is None else max(n_samples - 1, 1), **kwargs)


class ForgetsSeed(Noisy):
    """Draws the same samples whatever the seed."""

    def _predictor(self, source, realise, clip, seed, batch_size):
        return super()._predictor(source, realise, clip, 0, batch_size)


class BatchNoise(MeanShiftModule):
    def counterfactual(self, tensors, z=None):
        noise = torch.sin(1.0 * tensors["cell_key"].float().sum()) if "cell_key" in tensors else 0
        return super().counterfactual(tensors) + 0.1 * noise


class NoiseOfBatch(Noisy):
    """The noise of a cell depends on the cells beside it."""

    _new_module = using(BatchNoise)


@pytest.mark.parametrize(
    ("cls", "message"),
    [
        (FewSamples, "accepted: no sample"),
        (ForgetsSeed, "another seed draws the same samples"),
        (NoiseOfBatch, "drawn again in batches of 7"),
    ],
)
def test_wrong_samples_are_found(cls, message):
    check_model(Noisy, checks=["samples", "seed", "realise"])
    with pytest.raises(AssertionError, match=f"^samples: .*{message}"):
        check_model(cls, checks=["samples"])


class Doubled(MeanShift):
    """Has a second latent representation."""

    tags = ModelTags(latent=True)
    written = staticmethod(lambda z: {"twice": 2 * z})

    def get_latents(self, adata=None, indices=None):
        z = self.get_latent_representation(adata, indices)
        return {"basal": z, "twice": 2 * z}

    def _further_latents(self, source):
        return self.written(self.get_latent_representation(source))


class Undeclared(MeanShift):
    """Writes a latent representation that it never returns."""

    tags = ModelTags(latent=True)

    def _further_latents(self, source):
        return {"twice": 2 * self.get_latent_representation(source)}


@pytest.mark.parametrize(
    ("written", "message"),
    [
        (lambda z: {}, r"wrote \['X_Doubled'\] into obsm"),
        (lambda z: {"double": 2 * z}, r"'X_Doubled_double'\] into obsm"),
        (lambda z: {"twice": 2 * z, "thrice": 3 * z}, r"'X_Doubled_thrice', 'X_Doubled_twice'\] into obsm"),
        (lambda z: {"twice": 2 * z[::-1]}, r"obsm\['X_Doubled_twice'\] and what the model returns differ"),
    ],
)
def test_annotate_must_write_the_latent_representations_that_are_returned(written, message):
    check_model(Doubled, checks=["annotate"])
    broken = type("Doubled", (Doubled,), {"__doc__": "Writes other ones.", "written": staticmethod(written)})
    with pytest.raises(AssertionError, match=f"^annotate: .*{message}"):
        check_model(broken, checks=["annotate"])
    with pytest.raises(AssertionError, match=r"^annotate: .*'X_Undeclared_twice'\] into obsm"):
        check_model(Undeclared, checks=["annotate"])


def test_every_check_has_its_broken_model():
    assert list(CHECKS) == [name for name in CHECKS if name in BROKEN]
    assert set(BROKEN) <= set(CHECKS)


@pytest.mark.parametrize("check", BROKEN)
def test_broken_model_fails_exactly_its_check(check):
    failed = failing(BROKEN[check])
    assert list(failed) == [check], failed
    assert failed[check].startswith(f"{check}: ")


# ---------------------------------------------------------------- check_model itself


def test_first_failure_is_raised():
    with pytest.raises(AssertionError, match="^effect: predicted and measured change under 'A' correlate at -"):
        check_model(WrongSign)


def test_checks_can_be_chosen():
    check_model(WrongSign, checks=["docstring", "seed"])
    with pytest.raises(AssertionError, match="^effect: "):
        check_model(WrongSign, checks=["effect"])


def test_unknown_check_is_refused():
    with pytest.raises(ValueError, match=r"no check 'effects'; did you mean 'effect'"):
        check_model(MeanShift, checks=["effects"])


def test_unexpected_errors_name_the_check_and_keep_their_cause():
    class Crashes(MeanShift):
        """Divides by zero."""

        def _new_module(self):
            return 1 / 0

    with pytest.raises(AssertionError, match="^seed: Crashes raised ZeroDivisionError") as caught:
        check_model(Crashes, checks=["seed"])
    assert isinstance(caught.value.__cause__, ZeroDivisionError)


def test_checks_are_quiet(capfd, caplog, recwarn):
    check_model(TinyNet, checks=["seed", "plain_plan", "annotate_without_control"])
    assert capfd.readouterr() == ("", "")
    assert caplog.records == []
    assert len(recwarn) == 0


def test_screen_is_the_same_each_time_and_follows_the_tags():
    one, two = Screen(ModelTags()), Screen(ModelTags())
    np.testing.assert_array_equal(one.x, two.x)
    assert one.trained == [("A", None), ("B", None)]
    assert Screen(ModelTags(several_perturbations=False)).trained == [("A", None)]
    rich = Screen(ModelTags(combinations=True, doses=True))
    assert rich.trained == [(label, dose) for label in ("A", "B", "A+B") for dose in (1.0, 4.0)]
    with pytest.raises(NotImplementedError, match="2 modalities"):
        Screen(ModelTags(modalities=2))
