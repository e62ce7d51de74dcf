"""ScButterfly between two modalities: blocks, pairs, kinds of target, prediction either way, annotation and files."""

import mudata
import numpy as np
import pandas as pd
import pytest
import torch
from anndata import AnnData
from mudata import MuData

from multipert import datasets, pp
from multipert.model import MTAe, ScButterfly
from multipert.model._passes import Pass
from multipert.model._scbutterfly import A, R, TwoSideModule
from multipert.nn._translator import Side

pytestmark = pytest.mark.filterwarnings(
    "ignore:Cannot join columns", "ignore:From 0.4", "ignore:var_names are not unique"
)
QUIET = {"enable_progress_bar": False, "accelerator": "cpu"}
TINY = {"n_hidden": (10,), "n_latent": 6}
WIDTH = {"protein": (8,), "accessibility": (4,), "expression": (8,)}
NAME = {"protein": "protein", "accessibility": "atac", "expression": "protein"}


def make(kind="protein", n_cells=90, seed=0, *, processed=True) -> MuData:
    """Cells with a split, each modality processed on the training cells."""
    target = NAME[kind]
    mdata = datasets.simulate_multimodal(n_cells, 30, 24, target=target, n_types=3, seed=seed)
    split = np.where(np.arange(n_cells) % 5 == 0, "test", np.where(np.arange(n_cells) % 5 == 1, "val", "train"))
    for adata in mdata.mod.values():
        adata.obs["split"] = split
    if processed:
        process(mdata, kind)
    mdata = MuData(dict(mdata.mod))
    mdata.obs = mdata["rna"].obs[["context", "split"]].copy()
    return mdata


def process(mdata, kind):
    pp.normalise(mdata["rna"])
    if kind == "protein":
        pp.clr(mdata["protein"])
    elif kind == "accessibility":
        pp.tfidf(mdata["atac"])
    else:
        pp.normalise(mdata["protein"])


def set_up(mdata, kind="protein", **setup):
    chromosome_key = "chrom" if kind == "accessibility" else None
    modalities = {"expression": "rna", "target": NAME[kind]}
    ScButterfly.setup_mudata(
        mdata, **{"modalities": modalities, "context_key": "context", "chromosome_key": chromosome_key, **setup}
    )


def made(mdata, kind="protein", init=None, **setup):
    set_up(mdata, kind, **setup)
    return ScButterfly(mdata, target_kind=kind, **{**TINY, "n_hidden_target": WIDTH[kind], **(init or {})})


def trained(mdata, kind="protein", init=None, epochs=2, **setup):
    model = made(mdata, kind, init, **setup)
    model.train(epochs, split_key="split", seed=0, batch_size=16, **QUIET)
    return model


@pytest.fixture(scope="module", params=["protein", "accessibility"])
def fitted(request):
    mdata = make(request.param)
    return request.param, mdata, trained(mdata, request.param)


def weights(model):
    return {name: value.clone() for name, value in model.module.state_dict().items()}


# ---------------------------------------------------------------- prediction


def test_each_direction_has_the_features_of_its_target(fitted):
    kind, mdata, model = fitted
    name = NAME[kind]
    both = model.predict()
    assert list(both.mod) == ["rna", name]
    for target in ("rna", name):
        found = model.predict(perturbation=target)
        assert isinstance(found, AnnData)
        assert list(found.var_names) == list(mdata[target].var_names)
        assert list(found.obs_names) == list(mdata["rna"].obs_names)
        assert list(found.obs["context"]) == list(mdata.obs["context"])
        assert found.X.dtype == np.float32
        assert np.isfinite(found.X).all()
        np.testing.assert_array_equal(both[target].X, found.X)
        np.testing.assert_array_equal(model.predict(perturbation=target).X, found.X)
    assert found.uns["multipert"]["model"] == "ScButterfly"


def test_a_prediction_reads_its_source_only(fitted):
    kind, mdata, model = fitted
    name = NAME[kind]
    for target, source in (("rna", name), (name, "rna")):
        whole = model.predict(mdata, target)
        for query in (MuData({source: mdata[source].copy()}), mdata[source].copy()):
            np.testing.assert_array_equal(model.predict(query, target).X, whole.X)
        other = mdata.copy()
        other.mod[target].X = other.mod[target].X * 0
        np.testing.assert_array_equal(model.predict(other, target).X, whole.X)
        # it is a function of the source
        changed = mdata.copy()
        changed.mod[source].X = changed.mod[source].X[::-1].copy()
        assert not np.array_equal(model.predict(changed, target).X, whole.X)


def test_cells_of_one_modality_only_can_be_translated():
    mdata = make()
    model = trained(mdata)
    alone = MuData({"rna": mdata["rna"].copy(), "protein": mdata["protein"][:50].copy()})
    found = model.predict(alone, "protein")
    np.testing.assert_array_equal(found.X, model.predict(mdata, "protein").X)


def test_both_ways_restated(fitted):
    kind, mdata, model = fitted
    module = model.module.eval()
    for source, target, names in ((R, A, ("rna", NAME[kind])), (A, R, (NAME[kind], "rna"))):
        x = mdata[names[0]].X
        x = torch.tensor(x.toarray() if hasattr(x, "toarray") else x)
        with torch.no_grad():
            mu = module.translator.mean[source](module.encoders[source](x))
            expected = module.decoders[target](module.translator.to_side[target](mu)).numpy()
        if module.sides[target].zero_below is not None:
            expected = np.where(expected < 1e-4, 0, expected)
        np.testing.assert_allclose(model.predict(perturbation=names[1]).X, expected, atol=1e-6)


def test_proteins_keep_negative_values_and_the_others_have_none():
    for kind in ("protein", "accessibility"):
        model = trained(make(kind), kind)
        assert (model.predict(perturbation="rna").X >= 0).all()
        found = model.predict(perturbation=NAME[kind]).X
        assert (found < 0).any() == (kind == "protein")
        if kind == "accessibility":
            assert (found <= 1).all()


def test_means_are_those_of_the_predicted_cells(fitted):
    kind, _, model = fitted
    cells, means = (model.predict(perturbation=NAME[kind], returns=r, batch_size=7) for r in ("cells", "mean"))
    assert list(means.obs["context"]) == sorted(set(cells.obs["context"]))
    for i, context in enumerate(means.obs["context"]):
        x = cells.X[(cells.obs["context"] == context).to_numpy()].astype(float)
        assert means.obs["n_cells"].iloc[i] == len(x)
        np.testing.assert_allclose(means.X[i], x.mean(0), atol=1e-5)
        np.testing.assert_allclose(means.layers["variance"][i], x.var(0), atol=1e-5)


def test_a_choice_of_cells():
    mdata = make()
    model = trained(mdata)
    whole = model.predict(perturbation="protein")
    some = model.predict(perturbation="protein", indices=np.arange(10, 30), context="type_1")
    assert list(some.obs_names) == [
        name for i, name in enumerate(whole.obs_names) if 10 <= i < 30 and mdata.obs["context"].iloc[i] == "type_1"
    ]
    np.testing.assert_allclose(some.X, whole[some.obs_names].X, atol=1e-6)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"perturbation": "protien"}, ValueError, "Modality 'protien' is unknown.*did you mean 'protein'"),
        ({"perturbation": "protein", "dose": 2}, ValueError, "dose=2 has no meaning"),
        ({"perturbation": "protein", "n_samples": 2}, ValueError, "n_samples=2 has no meaning"),
        ({"perturbation": "protein", "realise": "counts"}, ValueError, "realise='counts' has no meaning"),
        ({"perturbation": "protein", "returns": "median"}, ValueError, "returns='median' is unknown"),
    ],
)
def test_wrong_requests_are_named(arguments, error, message):
    mdata = make(n_cells=40)
    model = trained(mdata)
    with pytest.raises(error, match=message):
        model.predict(**arguments)


def test_wrong_queries_are_named():
    mdata = make(n_cells=40)
    model = trained(mdata)
    with pytest.raises(ValueError, match="holds one modality; name the one to predict"):
        model.predict(mdata["rna"].copy())
    with pytest.raises(KeyError, match="Modality 'protein' is not in these data"):
        model.predict(MuData({"rna": mdata["rna"].copy()}), "rna")
    with pytest.raises(ValueError, match="var_names holds the model's genes in another order"):
        model.predict(mdata["protein"][:, ::-1].copy(), "rna")
    bad = mdata["rna"].copy()
    bad.X = bad.X.toarray()
    bad.X[2, 3] = np.nan
    with pytest.raises(ValueError, match="Modality 'rna' has 1 NaN.*cell 'cell_03', gene 'gene_04'"):
        model.predict(bad, "protein")
    with pytest.raises(ValueError, match=r"no perturbed cells.*predict\(perturbation='rna'\)"):
        model.to_control()


# ---------------------------------------------------------------- setup


def test_cells_in_other_orders_or_on_one_side_only_raise():
    mdata = make(n_cells=40)
    order = np.r_[1, 0, 2:40]
    with pytest.raises(ValueError, match="same cells in different orders"):
        set_up(MuData({"rna": mdata["rna"].copy(), "protein": mdata["protein"][order].copy()}), context_key=None)
    fewer = MuData({"rna": mdata["rna"][3:].copy(), "protein": mdata["protein"][:35].copy()})
    with pytest.raises(ValueError, match="5 cell.s. are in modality 'rna' only and 3 in 'protein' only"):
        set_up(fewer, context_key=None)


@pytest.mark.parametrize(
    ("setup", "message"),
    [
        ({"dose_key": "dose"}, "does not use doses"),
        ({"perturbation_key": "guide"}, "perturbation_key='guide' has no meaning"),
        ({"modalities": {"expression": "rna"}, "target_layer": "counts"}, "target_layer='counts' needs a target"),
        ({"chromosome_key": "chr"}, "chromosome_key='chr'"),
        ({"pairing_key": "cluster"}, "pairing_key='cluster'"),
        ({"target_layer": "clr"}, "layer='clr' is not in layers"),
        ({"modalities": {"expression": "rna", "target": "adt"}}, "modalities..target..='adt' is not a modality"),
    ],
)
def test_wrong_setups_are_named(setup, message):
    mdata = make(n_cells=20)
    before = mdata.copy()
    with pytest.raises((ValueError, KeyError), match=message):
        set_up(mdata, **setup)
    assert list(mdata["rna"].obsm) == list(before["rna"].obsm)


def test_other_models_refuse_a_target():
    mdata = make(n_cells=20)
    with pytest.raises(ValueError, match=r"MTAe does not translate between modalities \(tag translates is False\)"):
        MTAe.setup_mudata(mdata, modalities={"expression": "rna", "target": "protein"})


def test_the_kind_of_the_target_is_never_guessed():
    mdata = make(n_cells=20)
    set_up(mdata)
    for kind, message in ((None, "say what modality 'protein' holds"), ("accessibility", "needs chromosome_key")):
        with pytest.raises(ValueError, match=message):
            ScButterfly(mdata, target_kind=kind)
    with pytest.raises(ValueError, match="partner='best' has no meaning"):
        ScButterfly(mdata, target_kind="protein", partner="best")
    screen = mdata["rna"].copy()
    screen.obs["perturbation"] = np.array(["control", "A"])[np.arange(20) % 2]
    ScButterfly.setup_anndata(screen)
    with pytest.raises(ValueError, match="target_kind='protein' needs a target modality"):
        ScButterfly(screen, target_kind="protein")


def test_values_of_the_wrong_kind_are_refused_before_training():
    mdata = make("accessibility", n_cells=30)
    mdata["atac"].X = mdata["atac"].X * 3.5
    model = made(mdata, "accessibility")
    with pytest.raises(ValueError, match=r"Modality 'atac' has \d+ value.s. above 1, the largest 3.5 at cell"):
        model.train(1, **QUIET)
    mdata = make("protein", n_cells=30)
    with pytest.raises(ValueError, match="Modality 'protein' has .* negative value"):
        trained(mdata, "expression")


@pytest.mark.parametrize(
    ("kind", "name", "remedies"),
    [
        ("accessibility", "atac", ["tfidf"]),
        ("protein", "protein", ["clr", "normalise"]),
        ("expression", "protein", ["clr", "normalise"]),
    ],
)
def test_raw_counts_of_a_target_are_refused_at_the_setup_with_its_own_remedy(kind, name, remedies):
    mdata = make(kind, n_cells=30)
    processed, raw = mdata[name].X.copy(), mdata[name].layers["counts"].copy()
    mdata[name].X = raw
    with pytest.raises(ValueError, match=rf"Modality '{name}' holds integers only") as refused:
        set_up(mdata, kind)
    assert all(f"multipert.pp.{remedy}" in str(refused.value) for remedy in remedies)
    assert ("multipert.pp.clr" in str(refused.value)) == (kind != "accessibility")
    assert "_multipert_context" not in mdata["rna"].obsm
    # of a layer as of X
    mdata[name].X, mdata[name].layers["raw"] = processed, raw
    with pytest.raises(ValueError, match=rf"Modality '{name}' holds integers only"):
        set_up(mdata, kind, target_layer="raw")
    # and of data that were changed since
    model = made(mdata, kind)
    mdata[name].X = raw
    with pytest.raises(ValueError, match=rf"Modality '{name}' holds integers only.*"):
        model.train(1, **QUIET)


# ---------------------------------------------------------------- parts


def test_published_sides():
    mdata = make("accessibility")
    n_peaks = mdata["atac"].n_vars
    codes = mdata["atac"].var["chrom"].astype(str).nunique()
    set_up(mdata, "accessibility")
    rna, atac = ScButterfly(mdata, target_kind="accessibility")._sides
    assert (rna.hidden, rna.mask_rate, rna.output, rna.weight, rna.zero_below) == ((256,), 0.5, "leaky", 1.0, 1e-4)
    assert (atac.hidden, atac.mask_rate, atac.output, atac.weight, atac.zero_below) == (
        (32,),
        0.3,
        "sigmoid",
        2.0,
        1e-4,
    )
    assert (rna.kl_weight, atac.kl_weight) == (20 / 30, 20 / n_peaks)
    assert len(np.unique(atac.groups)) == codes
    mdata = make("protein")
    set_up(mdata)
    rna, protein = ScButterfly(mdata, target_kind="protein")._sides
    assert (protein.hidden, protein.mask_rate, protein.output, protein.zero_below) == ((128,), 0.0, "identity", None)
    assert (protein.weight, protein.kl_weight) == (2.0, rna.kl_weight)


def test_two_sides_of_expression_are_the_perturbation_module():
    """The same state-dict shapes, and the same loss for the same seed."""
    mdata = make("expression", n_cells=40)
    init = {"n_hidden": (10,), "n_hidden_target": (8,), "n_latent": 6, "reconstruction_weight": (1, 1)}
    rna = mdata["rna"]
    screen = AnnData(rna.X.toarray(), obs=pd.DataFrame({"perturbation": ["control", "A"] * 20}, index=rna.obs_names))
    screen.var_names = rna.var_names
    second = AnnData(
        screen.X[:, :30], obs=pd.DataFrame(index=rna.obs_names), var=pd.DataFrame(index=[f"p{i}" for i in range(30)])
    )
    both = MuData({"rna": AnnData(screen.X, obs=pd.DataFrame(index=rna.obs_names), var=screen.var), "other": second})
    ScButterfly.setup_mudata(both, modalities={"expression": "rna", "target": "other"})
    translating = ScButterfly(both, target_kind="expression", **init)
    ScButterfly.setup_anndata(screen)
    perturbing = ScButterfly(screen, **init)
    shapes = [{name: v.shape for name, v in m.module.state_dict().items()} for m in (translating, perturbing)]
    assert shapes[0] == shapes[1]
    x, y = torch.rand(2, 12, 30)
    codes = {"perturbation": torch.zeros(12, 1), "dose": torch.ones(12, 1)}
    found = []
    for model, batch in ((translating, {"X": x, "X_target": y}), (perturbing, {"X_control": x, "X": y})):
        model._start_module(4)
        model.module.stage = "joint"
        torch.manual_seed(7)
        batch = {**batch, **codes}
        inferred = model.module.inference(batch)
        decoded = model.module.generative(inferred["z"], batch)
        found.append(model.module.loss(batch, inferred, decoded).loss.item())
    assert found[0] == found[1]


def test_the_joint_weight_of_the_divergence_is_the_sum_and_a_weight_leaves_the_pretraining_alone():
    mdata = make("accessibility", n_cells=60)
    states, passes = [], ScButterfly.stages
    for weight in ((1, 2), (1, 7)):
        model = made(mdata, "accessibility", {"reconstruction_weight": weight})
        model.stages = model.stages[:2]
        model.train(2, split_key="split", seed=0, batch_size=16, **QUIET)
        states.append(weights(model))
    assert len(passes) == 3
    assert all(torch.equal(value, states[1][name]) for name, value in states[0].items())
    module = made(mdata, "accessibility", {"adversary_weight": 0.0, "kl_warmup_epochs": 50}).module
    batch = {"X": torch.rand(9, 30), "X_target": torch.rand(9, mdata["atac"].n_vars)}
    module.stage = "joint"
    inferred = module.inference(batch)
    decoded, losses = module.generative(inferred["z"], batch), []
    for module.epoch in (0, 50):
        losses.append(module.loss(batch, inferred, decoded).loss.item())
    divergence = sum(
        -0.5 * (1 + d - mu**2 - d.exp()).mean()
        for mu, d in zip(inferred["mean"], inferred["log_variance"], strict=True)
    )
    expected = (20 / 30 + 20 / mdata["atac"].n_vars) * divergence.item()
    assert losses[1] - losses[0] == pytest.approx(expected, rel=1e-4)


def test_the_joint_loss_weighs_squared_errors_and_cross_entropies():
    mdata = make("accessibility", n_cells=60)
    module = made(mdata, "accessibility").module.eval()
    x, y = torch.rand(9, 30), torch.rand(9, mdata["atac"].n_vars)
    batch = {"X": x, "X_target": y}
    inferred = module.inference(batch)
    px = module.generative(inferred["z"], batch)["px"]
    expected = 0.0
    for source in (R, A):
        expected += (px[source, R] - x).square().mean()
        expected += -2 * (y * px[source, A].log() + (1 - y) * (1 - px[source, A]).log()).mean()
    assert module.loss(batch, inferred, {"px": px}).loss.item() == pytest.approx(expected.item(), rel=1e-5)


def test_permuted_peaks_permute_the_prediction_and_nothing_else():
    mdata = make("accessibility", n_cells=60)
    order = np.random.default_rng(3).permutation(mdata["atac"].n_vars)
    other = MuData({"rna": mdata["rna"].copy(), "atac": mdata["atac"][:, order].copy()})
    other.obs = mdata.obs.copy()
    model = trained(mdata, "accessibility")
    moved = trained(other, "accessibility")
    state, place = weights(model), torch.from_numpy(np.argsort(order))
    own = moved.module.state_dict()
    for name, value in state.items():
        on_peaks = name.startswith(("encoders.1.layers.0.0.weight", "decoders.1.layers.1"))
        if name.endswith("order"):
            continue
        own[name].copy_(value[torch.from_numpy(order)] if on_peaks and value.ndim else value)
    np.testing.assert_allclose(
        moved.predict(perturbation="atac").X[:, place], model.predict(perturbation="atac").X, atol=1e-6
    )
    np.testing.assert_allclose(moved.predict(perturbation="rna").X, model.predict(perturbation="rna").X, atol=1e-5)


# ---------------------------------------------------------------- pairs


@pytest.mark.parametrize("pairing_key", [None, "context"])
def test_pairs_are_of_training_cells_and_partners_share_their_label(pairing_key):
    mdata = make()
    model = made(mdata, pairing_key=pairing_key)
    source = model._source(None)
    rows = {level: np.flatnonzero(mdata.obs["split"] == level) for level in ("train", "val")}
    store = model._training_store(source, 0)
    x, y = mdata["rna"].X.toarray(), mdata["protein"].X
    types = mdata.obs["context"].astype(str).to_numpy()
    for number, stage in enumerate(model.stages):
        loader = Pass(model, source, store, stage.pairing, 8, 0, None, stage.itself).training(rows["train"], number)
        n = len(rows["train"])
        if pairing_key is None:
            assert loader.partners is None
            np.testing.assert_array_equal(loader.rows, rows["train"])
        else:
            assert len(loader.rows) == 3 * n
            np.testing.assert_array_equal(loader.rows[:n], rows["train"])
            np.testing.assert_array_equal(loader.partners[:n], rows["train"])
            for side in (loader.rows, loader.partners):
                np.testing.assert_array_equal(np.bincount(side, minlength=90)[rows["train"]], 3)
                assert set(side) == set(rows["train"])
            assert (types[loader.rows] == types[loader.partners]).all()
            assert (loader.rows[n:] != loader.partners[n:]).any()
        loader.shuffle = False
        first = next(iter(loader))
        partners = loader.rows if loader.partners is None else loader.partners
        np.testing.assert_allclose(first["X"], x[loader.rows[:8]], rtol=1e-6)
        np.testing.assert_allclose(first["X_target"], y[partners[:8]], rtol=1e-6)
        validation = Pass(model, source, store, stage.pairing, 8, 0, None).validation(rows["val"], np.arange(90))
        assert validation.partners is None
        np.testing.assert_array_equal(validation.rows, rows["val"])


def test_label_pairing_trains_and_differs_from_true_pairs():
    mdata = make(n_cells=60)
    true, within = (trained(mdata, pairing_key=key) for key in (None, "context"))
    assert [stage.pairing for stage in true.stages] == ["self"] * 3
    assert [stage.pairing for stage in within.stages] == ["label"] * 3
    assert not torch.equal(*(model.module.encoders[R].layers[0][0].weight for model in (true, within)))
    assert [stage.pairing for stage in ScButterfly.stages] == ["ot"] * 3


def test_test_cells_change_no_statistic_and_no_weight():
    states = []
    for factor in (1, 5):
        mdata = make("accessibility", processed=False)
        test = (mdata["rna"].obs["split"] == "test").to_numpy()
        for adata in mdata.mod.values():
            x = adata.X.toarray()
            x[test] = x[test][:, ::-1] * factor + (factor > 1)
            adata.X = x
        process(mdata, "accessibility")
        mdata = MuData(dict(mdata.mod))
        mdata.obs = mdata["rna"].obs[["context", "split"]].copy()
        record = {name: adata.uns["multipert"]["preprocessing"] for name, adata in mdata.mod.items()}
        states.append((record, mdata["atac"].var["idf"].to_numpy(), weights(trained(mdata, "accessibility"))))
    (records, idf, first), (other_records, other_idf, second) = states
    assert records == other_records
    np.testing.assert_array_equal(idf, other_idf)
    assert all(torch.equal(value, second[name]) for name, value in first.items())


# ---------------------------------------------------------------- annotation, files, figures


def test_annotate_writes_into_the_target_modality_and_survives_a_file(fitted, tmp_path):
    kind, mdata, model = fitted
    name = NAME[kind]
    annotated = mdata.copy()
    model.annotate(annotated)
    annotated.write(tmp_path / "annotated.h5mu")
    read = mudata.read_h5mu(tmp_path / "annotated.h5mu")
    for target in ("rna", name):
        expected = model.predict(mdata, target).X
        for data in (annotated, read):
            np.testing.assert_array_equal(data[target].layers["ScButterfly_predicted"], expected)
            assert data[target].obsm["X_ScButterfly"].shape == (90, 6)
    np.testing.assert_array_equal(annotated["rna"].obsm["X_ScButterfly"], model.get_latent_representation(mdata))
    assert read.uns["ScButterfly"]["model"] == "ScButterfly"
    alone = MuData({"rna": mdata["rna"].copy()})
    for data in (alone, mdata["rna"].copy()):
        with pytest.raises(
            ValueError, match=f"'{name}' is not one of these data; predict needs one only|one of these data"
        ):
            model.annotate(data)
    only = mdata.copy()
    model.annotate(only, latent=False, key="mine")
    assert "mine_predicted" in only["rna"].layers
    assert "X_mine" not in only["rna"].obsm


def test_save_and_load_without_the_data_and_with(fitted, tmp_path):
    kind, mdata, model = fitted
    name = NAME[kind]
    model.save(tmp_path / "m", save_anndata=True)
    for data in (False, None, mdata.copy()):
        loaded = ScButterfly.load(tmp_path / "m", data, accelerator="cpu")
        for target, source in (("rna", name), (name, "rna")):
            expected = model.predict(mdata, target)
            found = loaded.predict(MuData({source: mdata[source].copy()}), target)
            np.testing.assert_array_equal(found.X, expected.X)
            assert list(found.var_names) == list(expected.var_names)
    loaded.train(1, split_key="split", seed=1, batch_size=16, **QUIET)
    if kind == "accessibility":
        other = MuData({"rna": mdata["rna"].copy(), "atac": mdata["atac"][:, ::-1].copy()})
        other.obs = mdata.obs.copy()
        with pytest.raises(ValueError, match="in another order"):
            ScButterfly.load(tmp_path / "m", other, accelerator="cpu")


def test_estimates_and_seeds():
    mdata = make(n_cells=60)
    model = made(mdata)
    assert model.estimate(max_epochs=2, split_key="split", batch_size=8, accelerator="cpu").n_updates > 0
    first, second = (weights(trained(mdata)) for _ in range(2))
    assert all(torch.equal(value, second[name]) for name, value in first.items())


def test_both_directions_are_learnt():
    mdata = make(n_cells=300, seed=3)
    model = made(mdata, init={"n_hidden": (32,), "n_latent": 16, "n_hidden_target": (32,)})
    model.train(16, split_key="split", seed=0, batch_size=32, lr=3e-3, **QUIET)
    test = (mdata.obs["split"] == "test").to_numpy()
    for name, floor in (("protein", 0.5), ("rna", 0.25)):
        found, truth = model.predict(perturbation=name).X[test], mdata[name].X[test]
        truth = truth.toarray() if hasattr(truth, "toarray") else truth
        correlations = [np.corrcoef(f, t)[0, 1] for f, t in zip(found.T, truth.T, strict=True) if t.std() and f.std()]
        assert np.median(correlations) > floor, name


def test_pairs_drawn_by_label_train_as_any_mudata():
    mdata = make(n_cells=80)
    pairs = pp.pair_by_label(
        mdata["rna"][:40].copy(), mdata["protein"][40:].copy(), "context", names=("rna", "protein"), seed=1
    )
    ScButterfly.setup_mudata(pairs, modalities={"expression": "rna", "target": "protein"}, context_key="context")
    model = ScButterfly(pairs, target_kind="protein", **TINY)
    model.train(1, seed=0, batch_size=16, **QUIET)
    assert model.predict(mdata, "protein").shape == (80, 24)
    assert isinstance(model.module, TwoSideModule)


@pytest.mark.parametrize("rows", [slice(None, None, -1), slice(0, 40)])
def test_annotate_refuses_modalities_of_other_rows_before_anything_is_written(fitted, rows):
    _, mdata, model = fitted
    names = list(mdata.mod)
    query = MuData({names[0]: mdata[names[0]].copy(), names[1]: mdata[names[1]][rows].copy()})
    before = {name: (sorted(adata.obsm), sorted(adata.layers)) for name, adata in query.mod.items()}
    with pytest.raises(ValueError, match="in different orders|only and"):
        model.annotate(query)
    assert {name: (sorted(adata.obsm), sorted(adata.layers)) for name, adata in query.mod.items()} == before
    assert "ScButterfly" not in query.uns


def test_rare_peaks_start_near_their_means():
    side = Side(3, (4,), 0.0, "sigmoid", 1.0, 1.0, None)
    torch.manual_seed(0)
    decoder = side.decoder(5, 0.0).train()
    mean = torch.tensor([0.002, 0.03, 0.5])
    side.start(decoder, mean, torch.tensor([0.03, 0.09, 0.3]))
    with torch.no_grad():
        found = decoder(torch.randn(2000, 5)).mean(0)
    assert ((found / mean) < 2).all()
    assert ((found / mean) > 0.5).all()
