import ast
import hashlib
import json
import math
import os
import tempfile
import tracemalloc
from collections import OrderedDict, defaultdict
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from safetensors.torch import load_file

import multipert
from multipert.model import _files
from multipert.model._files import (
    CorruptModelFileError,
    ModelFileError,
    TensorMismatchError,
    UnsupportedFormatError,
    WrongModelClassError,
    read_header,
    read_tensors,
    write_model,
)

TENSORS = {"encoder.weight": torch.arange(6.0).reshape(2, 3), "steps": torch.tensor(7)}
ATTRIBUTES = {"init_params_": {"n_latent": 3}, "indices_": np.arange(4)}
JSON, SAFETENSORS = "model.json", "model.safetensors"


def write(folder, *, class_name="MTAe", tensors=TENSORS, attributes=ATTRIBUTES, var_names=("A", "B"), **kwargs):
    write_model(folder, class_name=class_name, tensors=tensors, attributes=attributes, var_names=var_names, **kwargs)


def read(folder, **kwargs):
    header = read_header(folder)
    return header, read_tensors(folder, header, **kwargs)


def contents(folder):
    return {path.name: path.read_bytes() for path in Path(folder).iterdir()}


def reseal(folder, body):
    """Write a JSON text, given without its last member, with the checksum that belongs to it."""
    body = body + b',\n"sha256": "'
    (folder / JSON).write_bytes(body + hashlib.sha256(body).hexdigest().encode() + b'"\n}\n')


def edit(folder, change):
    """Change the parsed JSON and give it the right checksum again."""
    document = json.loads((folder / JSON).read_bytes())
    del document["sha256"]
    change(document)
    reseal(folder, json.dumps(document).removesuffix("}").encode())


def forge(folder, raw):
    """Put other bytes in place of the tensors, and their size and checksum into the JSON."""
    (folder / SAFETENSORS).write_bytes(raw)
    edit(folder, lambda d: d.update(safetensors={"size": len(raw), "sha256": hashlib.sha256(raw).hexdigest()}))


def safetensors_bytes(header, data=b""):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data


def assert_same(left, right):
    assert type(left) is type(right)
    if isinstance(left, dict):
        assert len(left) == len(right)
        for (key, value), (other_key, other) in zip(left.items(), right.items(), strict=True):
            assert_same(key, other_key)
            assert_same(value, other)
        assert getattr(left, "default_factory", None) is getattr(right, "default_factory", None)
    elif isinstance(left, list | tuple):
        assert len(left) == len(right)
        for value, other in zip(left, right, strict=True):
            assert_same(value, other)
    elif isinstance(left, np.ndarray | np.generic):
        assert left.dtype == right.dtype
        assert left.shape == right.shape
        if left.dtype == object:
            assert_same(left.ravel().tolist(), right.ravel().tolist())
        else:
            assert left.tobytes() == right.tobytes()
    elif isinstance(left, pd.DataFrame):
        pd.testing.assert_frame_equal(left, right, check_exact=True, check_column_type="exact")
    elif isinstance(left, pd.Series):
        pd.testing.assert_series_equal(left, right, check_exact=True)
    elif isinstance(left, pd.Index):
        pd.testing.assert_index_equal(left, right, exact=True)
    elif isinstance(left, pd.Categorical):
        pd.testing.assert_categorical_equal(left, right)
    elif isinstance(left, pd.api.extensions.ExtensionArray):
        pd.testing.assert_extension_array_equal(left, right)
    elif isinstance(left, float) and math.isnan(left):
        assert math.isnan(right)
    else:
        assert left == right
        assert repr(left) == repr(right)  # tells -0.0 from 0.0


HISTORY = pd.DataFrame({"loss": [1.5, float("nan")]}, index=pd.Index([0, 1], name="epoch"))
VALUES = {
    "scalars": [None, True, 0, -(2**90), 0.1, -0.0, math.nan, math.inf, -math.inf, 'β\x00\n"\\', ""],
    "containers": {"tuple": (1, (2, [3])), "empty": [[], (), {}], "order": {"b": 1, "a": 2}},
    "keys": {1: "a", (0, "x"): "b", None: "c", 1.5: "d", "1": "e"},
    "tag": {"__type__": "ndarray", "shape": [2**60]},
    "defaultdict": defaultdict(dict, a={"b": defaultdict(list)}),
    "no factory": defaultdict(None, a=1),
    "numpy scalars": [np.float32(0.1), np.int64(5), np.bool_(True), np.str_("abc"), np.complex64(1 + 2j)],
    "nan bits": np.array([0x7FF8000000000001, 0xFFF8000000000000], dtype="u8").view("f8"),
    "big endian": np.arange(3, dtype=">i4"),
    "fortran": np.asfortranarray(np.arange(6).reshape(2, 3)),
    "strided": np.arange(10)[::3],
    "text": np.array([["a", "βγ"]], dtype="<U5"),
    "objects": np.array(["A", None, math.nan, 3, (1, 2)], dtype=object),
    "nested objects": np.array([[1, "a"], [None, True]], dtype=object),
    "zero-dimensional": [np.array(3.0), np.array("a"), np.array(None, dtype=object)],
    "empty arrays": [np.zeros((0, 3), dtype="f4"), np.array([], dtype=str), np.empty((2, 0), dtype=object)],
    "history": {"train_loss": HISTORY, "object": HISTORY.astype(object), "none": HISTORY.iloc[:0]},
    "repeated columns": pd.DataFrame([[1, "x"], [2, "y"]], columns=["a", "a"]),
    "no columns": pd.DataFrame(index=pd.RangeIndex(1, 9, 2, name="step")),
    "typed columns": pd.DataFrame(
        {"c": pd.Categorical(["b", None, "a"], categories=["b", "a"], ordered=True), "u": np.uint8([1, 2, 3])}
    ),
    "strings": pd.DataFrame({"s": pd.array(["a", None], dtype="string")}, index=pd.Index(["x", "y"], dtype="string")),
    "series": pd.Series([True, False], index=pd.Index(["a", "b"], name="gene"), name=("t", 1)),
    "index": [pd.Index([0.5, 2.0]), pd.Index(["a", None], dtype=object), pd.CategoricalIndex(["a", "b"], name="c")],
    "brackets in text": "[" * 10_000 + '"{',
}


@pytest.mark.parametrize("name", VALUES)
def test_attributes_come_back_the_same(tmp_path, name):
    write(tmp_path, attributes={name: VALUES[name]})
    assert_same(read_header(tmp_path).attributes, {name: VALUES[name]})


def test_string_array_of_the_newer_pandas(tmp_path):
    try:
        dtype = pd.StringDtype(na_value=np.nan)
    except TypeError:
        pytest.skip("this pandas has only the older string type")
    frame = pd.DataFrame({"s": pd.array(["a", None], dtype=dtype)}, index=pd.Index(["x", "y"], dtype=dtype))
    write(tmp_path, attributes={"frame": frame})
    assert_same(read_header(tmp_path).attributes["frame"], frame)


def test_arrays_that_were_read_can_be_changed(tmp_path):
    write(tmp_path)
    array = read_header(tmp_path).attributes["indices_"]
    array += 1
    assert array.tolist() == [1, 2, 3, 4]


DTYPES = st.sampled_from(["?", "i1", "<i8", ">i4", "u2", "<f2", "<f4", ">f8", "c8", "c16", "<U3", ">U2"])
KEYS = st.one_of(
    st.text(),
    st.just("__type__"),
    st.integers(),
    st.none(),
    st.tuples(st.integers(), st.text()),
    st.floats(allow_nan=False),
)
LEAVES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**200), 2**200),
    st.floats(),
    st.text(),
    hnp.arrays(DTYPES, hnp.array_shapes(min_dims=0, min_side=0, max_side=3)),
    hnp.arrays(DTYPES, ()).map(lambda array: array.astype(array.dtype.newbyteorder("="))[()]),
    st.lists(st.one_of(st.text(), st.none(), st.floats())).map(lambda items: pd.Index(items, dtype=object).to_numpy()),
)


@settings(max_examples=150, deadline=None)
@given(st.dictionaries(KEYS, st.recursive(LEAVES, lambda inner: st.lists(inner) | st.lists(inner).map(tuple)
                                           | st.dictionaries(KEYS, inner), max_leaves=12), max_size=4))  # fmt: skip
def test_any_nested_attributes_come_back_the_same(attributes):
    with tempfile.TemporaryDirectory() as folder:
        write(folder, attributes=attributes)
        assert_same(read_header(folder).attributes, attributes)


def test_registry_of_scvi_tools_comes_back_the_same(tmp_path):
    scvi = pytest.importorskip("scvi")
    from anndata import AnnData

    obs = pd.DataFrame({"batch": ["b", "a"] * 3, "context": ["x", "y", "z"] * 2}, index=[f"cell{i}" for i in range(6)])
    adata = AnnData(np.ones((6, 2), dtype=np.float32), obs=obs)
    scvi.model.SCVI.setup_anndata(adata, batch_key="batch", categorical_covariate_keys=["context"])
    model = scvi.model.SCVI(adata, n_latent=2, n_hidden=4)
    attributes = {name: value for name, value in model._get_user_attributes() if name.endswith("_")}
    assert type(attributes["registry_"]["field_registries"]) is defaultdict
    write(tmp_path, attributes=attributes, tensors=model.module.state_dict(), var_names=adata.var_names)
    header, tensors = read(tmp_path)
    assert_same(header.attributes, attributes)
    assert header.var_names == ["0", "1"]
    model.module.load_state_dict(tensors)


class Text(str):
    pass


LOOP: list = []
LOOP.append(LOOP)
REFUSED = {
    "set": ({"a": [1, {2}]}, r"attributes\['a'\]\[1\] cannot be saved: it is a builtins.set"),
    "object": ({"a": {"b": object()}}, r"attributes\['a'\]\['b'\] cannot be saved: it is a builtins.object"),
    "function": ({"a": (len,)}, r"attributes\['a'\]\[0\]"),
    "bytes": ({"a": b"x"}, "builtins.bytes"),
    "tensor": ({"a": torch.ones(1)}, "torch.Tensor.* buffer of the module"),
    "subclass": ({"a": Text("x")}, "Text"),
    "ordered": ({"a": OrderedDict(b=1)}, "OrderedDict"),
    "factory": ({"a": defaultdict(lambda: 1)}, "factory <function"),
    "key": ({"a": {frozenset(): 1}}, r"attributes\['a'\]\[key frozenset\(\)\]"),
    "dates": ({"a": np.array(["2020-01-01"], dtype="M8[D]")}, "datetime64"),
    "records": ({"a": np.zeros(1, dtype=[("x", "i4")])}, "dtype"),
    "masked": ({"a": np.ma.masked_array([1], [True])}, "MaskedArray"),
    "in an object array": ({"a": np.array([1, {2}], dtype=object)}, r"attributes\['a'\]\.flat\[1\]"),
    "in a frame": ({"a": pd.DataFrame({"x": pd.array([1], dtype="Int64")})}, r"attributes\['a'\]\['x'\]"),
    "multi-index": ({"a": pd.MultiIndex.from_tuples([(1, 2)])}, "MultiIndex"),
    "surrogate": ({"a": "\ud800"}, "not valid Unicode"),
    "surrogate key": ({"\udfff": 1}, "not valid Unicode"),
    "huge int": ({"a": 10**1000}, "more than 1024"),
    "loop": ({"a": LOOP}, "contains itself"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_other_attributes_are_refused_by_path_and_nothing_is_written(tmp_path, name):
    attributes, message = REFUSED[name]
    with pytest.raises(TypeError, match=message):
        write(tmp_path / "new", attributes=attributes)
    assert not (tmp_path / "new").exists()
    write(tmp_path)
    before = contents(tmp_path)
    with pytest.raises(TypeError, match="cannot be saved"):
        write(tmp_path, attributes=attributes, overwrite=True)
    assert contents(tmp_path) == before


def test_a_million_indices_are_small(tmp_path):
    indices = np.random.default_rng(0).permutation(10**6)
    write(tmp_path, attributes={"train_indices": indices})
    assert_same(read_header(tmp_path).attributes["train_indices"], indices)
    assert (tmp_path / JSON).stat().st_size < 1.4 * indices.nbytes


def test_tensors_come_back_the_same(tmp_path):
    base = torch.randn(4, 6, generator=torch.Generator().manual_seed(0))
    tensors = {
        **{str(dtype): (base * 10).to(dtype) for dtype in _files._DTYPE_NAMES},
        "scalar": torch.tensor(-0.0),
        "empty": torch.zeros(0, 3),
        "transposed": base.T,
        "tied": base,
        "part": base[1:3, ::2],
        "expanded": torch.ones(1).expand(5),
        "parameter": torch.nn.Parameter(torch.ones(2)),
    }
    write(tmp_path, tensors=tensors)
    header, found = read(tmp_path, expected={name: (t.dtype, t.shape) for name, t in tensors.items()})
    assert set(found) == set(header.tensors) == set(tensors)
    public = load_file(tmp_path / SAFETENSORS)
    for name, tensor in tensors.items():
        assert found[name].dtype == tensor.dtype
        assert header.tensors[name] == (tensor.dtype, tuple(tensor.shape))
        assert torch.equal(found[name], tensor.detach())
        assert torch.equal(found[name], public[name])
    found["tied"] += 1
    assert torch.equal(found["transposed"], base.T)
    assert torch.equal(read(tmp_path)[1]["tied"], base)


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({"w": np.ones(2)}, r"tensors\['w'\] is a ndarray"),
        ({"w": torch.ones(2, dtype=torch.complex64)}, r"tensors\['w'\].*complex64"),
        ({"w": torch.eye(2).to_sparse()}, r"tensors\['w'\].*sparse"),
        ({"w": torch.ones(2, device="meta")}, r"tensors\['w'\].*meta"),
        ({"__metadata__": torch.ones(2)}, "__metadata__"),
        ({3: torch.ones(2)}, "name 3"),
    ],
)
def test_other_tensors_are_refused_and_nothing_is_written(tmp_path, tensors, message):
    with pytest.raises(TypeError, match=message):
        write(tmp_path, tensors=tensors)
    assert contents(tmp_path) == {}


def test_variable_names_of_several_modalities(tmp_path):
    write(tmp_path, var_names={"rna": np.array(["A", "β"]), "protein": pd.Index(["P"])})
    assert read_header(tmp_path).var_names == {"rna": ["A", "β"], "protein": ["P"]}
    with pytest.raises(TypeError, match=r"var_names\['rna'\]\[1\] is 5"):
        write(tmp_path, var_names={"rna": ["A", 5]}, overwrite=True)


def test_exactly_two_files_that_others_may_read_and_that_repeat(tmp_path):
    write(tmp_path / "a")
    write(tmp_path / "deep" / "b", prefix="fold1_")
    first, second = contents(tmp_path / "a"), contents(tmp_path / "deep" / "b")
    assert set(first) == {JSON, SAFETENSORS}
    assert {f"fold1_{name}": raw for name, raw in first.items()} == second
    (tmp_path / "plain").touch()
    assert {path.stat().st_mode for path in (tmp_path / "a").iterdir()} == {(tmp_path / "plain").stat().st_mode}
    document = json.loads(first[JSON])
    assert document["versions"]["multipert"] == multipert.__version__
    assert set(document["versions"]) == {"multipert", "scvi-tools", "torch", "anndata", "python"}
    assert document["var_names"] == ["A", "B"]


def test_prefixes_share_a_folder_and_stay_in_it(tmp_path):
    write(tmp_path)
    write(tmp_path, prefix="b_", tensors={"w": torch.ones(1)})
    assert list(read_tensors(tmp_path, read_header(tmp_path, prefix="b_"), prefix="b_")) == ["w"]
    assert set(read(tmp_path)[1]) == set(TENSORS)
    for prefix in ("../x", "sub/", "/"):
        with pytest.raises(ValueError, match="path separator"):
            write(tmp_path, prefix=prefix)


def test_existing_files_are_kept_unless_told(tmp_path):
    write(tmp_path)
    before = contents(tmp_path)
    with pytest.raises(ValueError, match="already exists.*overwrite=True"):
        write(tmp_path, class_name="Other")
    assert contents(tmp_path) == before
    write(tmp_path, class_name="Other", overwrite=True)
    assert read_header(tmp_path).class_name == "Other"
    assert set(contents(tmp_path)) == {JSON, SAFETENSORS}


@pytest.mark.parametrize("former", [True, False])
@pytest.mark.parametrize("error", [OSError("no space left"), KeyboardInterrupt()])
@pytest.mark.parametrize("step", ["save_file", "flush 0", "flush 1", "replace 0", "replace 1", "replace all"])
def test_a_failed_save_changes_nothing(tmp_path, monkeypatch, former, error, step):
    if former:
        write(tmp_path)
    before = contents(tmp_path)
    action, _, which = step.partition(" ")
    holder, name = {"save_file": (_files, "save_file"), "flush": (_files, "_flush"), "replace": (os, "replace")}[action]
    original, calls = getattr(holder, name), []

    def fail(*arguments, **kwargs):
        calls.append(arguments)
        if which in ("", "all") or len(calls) == int(which) + 1:
            raise error
        return original(*arguments, **kwargs)

    monkeypatch.setattr(holder, name, fail)
    with pytest.raises(type(error)):
        write(tmp_path, class_name="Other", tensors={"w": torch.ones(3)}, overwrite=True)
    monkeypatch.undo()
    assert calls
    assert contents(tmp_path) == before
    if former:
        assert read(tmp_path)[0].class_name == "MTAe"


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_process_that_dies_between_the_two_moves_loses_nothing(tmp_path):
    write(tmp_path)
    before = contents(tmp_path)
    child = os.fork()
    if child == 0:
        replace, calls = os.replace, []

        def die(*arguments):
            calls.append(arguments)
            if len(calls) == 2:
                os._exit(9)
            replace(*arguments)

        os.replace = die
        write(tmp_path, class_name="Other", tensors={"w": torch.ones(3)}, overwrite=True)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 9
    with pytest.raises(CorruptModelFileError, match="do not belong together.*interrupted.*rename") as caught:
        read(tmp_path)
    former = next(name for name in contents(tmp_path) if name.endswith("former"))
    assert repr(former) in str(caught.value)
    (tmp_path / former).replace(tmp_path / SAFETENSORS)
    header, tensors = read(tmp_path)
    assert header.class_name == "MTAe"
    assert torch.equal(tensors["encoder.weight"], TENSORS["encoder.weight"])
    assert {name: contents(tmp_path)[name] for name in before} == before
    write(tmp_path, class_name="Other", overwrite=True)
    assert set(contents(tmp_path)) == {JSON, SAFETENSORS}
    assert read(tmp_path)[0].class_name == "Other"


@pytest.mark.parametrize("name", [JSON, SAFETENSORS])
def test_every_truncation_is_detected(tmp_path, name):
    write(tmp_path)
    raw = (tmp_path / name).read_bytes()
    for length in range(len(raw)):
        (tmp_path / name).write_bytes(raw[:length])
        with pytest.raises(CorruptModelFileError, match=name):
            read(tmp_path)
    for extra in (b"\0", b"\n", raw):
        (tmp_path / name).write_bytes(raw + extra)
        with pytest.raises(CorruptModelFileError, match=name):
            read(tmp_path)


@pytest.mark.parametrize("name", [JSON, SAFETENSORS])
def test_every_flipped_bit_is_detected(tmp_path, name):
    write(tmp_path)
    raw = bytearray((tmp_path / name).read_bytes())
    with (tmp_path / name).open("r+b", buffering=0) as file:
        for position in range(len(raw)):
            for bit in range(8):
                file.seek(position)
                file.write(bytes([raw[position] ^ 1 << bit]))
                with pytest.raises(CorruptModelFileError, match=name):
                    read(tmp_path)
            file.seek(position)
            file.write(raw[position : position + 1])
    read(tmp_path)


def test_altered_files_with_right_checksums_never_crash(tmp_path):
    write(tmp_path, attributes=VALUES)
    body = (tmp_path / JSON).read_bytes()[: -len(b',\n"sha256": "') - 68]
    raw = (tmp_path / SAFETENSORS).read_bytes()
    length = 8 + int.from_bytes(raw[:8], "little")
    rng = np.random.default_rng(0)
    snippets = [b"9", b"-1", b"{", b"]", b'"', b"null", b"1e999", b"[]", b"\xff", b"999999999999999999999"]
    outcomes = {"refused": 0, "read": 0}

    def mutated(text):
        text = bytearray(text)
        start = rng.integers(len(text))
        text[start : start + rng.integers(3)] = snippets[rng.integers(len(snippets))]
        return bytes(text)

    def attempt():
        try:
            read(tmp_path)
            outcomes["read"] += 1
        except ModelFileError:
            outcomes["refused"] += 1

    for _ in range(1000):
        reseal(tmp_path, mutated(body))
        attempt()
    reseal(tmp_path, body)
    for _ in range(500):
        header = mutated(raw[8:length])
        forge(tmp_path, safetensors_bytes(header, raw[length:]))
        attempt()
    assert outcomes["refused"] > 800
    assert outcomes["read"] > 20


def test_a_file_labelled_as_another_class_is_refused(tmp_path):
    write(tmp_path)
    edit(tmp_path, lambda d: d.update({"class": "TwoFactor"}))
    with pytest.raises(WrongModelClassError, match="'TwoFactor', expected 'MTAe'.*TwoFactor.load"):
        read_header(tmp_path, expected_class="MTAe")
    assert read_header(tmp_path, expected_class="TwoFactor").class_name == "TwoFactor"
    assert read_header(tmp_path).class_name == "TwoFactor"


def test_files_of_two_models_do_not_mix(tmp_path):
    write(tmp_path)
    write(tmp_path, prefix="b_", tensors={name: tensor + 1 for name, tensor in TENSORS.items()})
    (tmp_path / "b_model.safetensors").replace(tmp_path / SAFETENSORS)
    with pytest.raises(CorruptModelFileError, match="do not belong together"):
        read(tmp_path)


def test_newer_format_says_upgrade(tmp_path):
    write(tmp_path)
    edit(tmp_path, lambda d: d.update(format=2, tensors="something else", versions={"multipert": "9.1"}))
    with pytest.raises(UnsupportedFormatError, match=r"format 2.*9\.1.*up to format 1. Upgrade multipert"):
        read_header(tmp_path)


def test_missing_files_are_named_with_what_is_there(tmp_path):
    with pytest.raises(FileNotFoundError, match="'model.json'.*folder does not exist"):
        read_header(tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match="folder holds nothing"):
        read_header(tmp_path)
    write(tmp_path, prefix="fold1_")
    with pytest.raises(FileNotFoundError, match="holds fold1_model.json, fold1_model.safetensors.*`prefix`"):
        read_header(tmp_path)
    (tmp_path / "fold1_model.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match="'fold1_model.safetensors'"):
        read_tensors(tmp_path, read_header(tmp_path, prefix="fold1_"), prefix="fold1_")
    for i in range(30):
        (tmp_path / f"x{i}").touch()
    with pytest.raises(FileNotFoundError, match="and 11 more"):
        read_header(tmp_path)


class Bomb:
    def __reduce__(self):
        return (Path.touch, (Path(tempfile.gettempdir()) / "multipert-unpickled",))


def test_a_pickle_is_named_and_never_run(tmp_path):
    torch.save({"model_state_dict": {}, "attr_dict": Bomb()}, tmp_path / "model.pt")
    with pytest.raises(FileNotFoundError, match="'model.pt' is an scvi-tools pickle.*trusted=True"):
        read_header(tmp_path)
    pickled = (tmp_path / "model.pt").read_bytes()
    (tmp_path / JSON).write_bytes(pickled)
    with pytest.raises(CorruptModelFileError):
        read_header(tmp_path)
    write(tmp_path, overwrite=True)
    forge(tmp_path, pickled)
    with pytest.raises(CorruptModelFileError):
        read(tmp_path)
    assert not (Path(tempfile.gettempdir()) / "multipert-unpickled").exists()


def test_unexpected_tensors_are_listed(tmp_path):
    write(tmp_path)
    expected = {"encoder.weight": (torch.float32, (2, 4)), "bias": (torch.float32, (2,))}
    with pytest.raises(TensorMismatchError) as caught:
        read(tmp_path, expected=expected)
    message = str(caught.value)
    assert "1 missing: 'bias'" in message
    assert "1 unexpected: 'steps'" in message
    assert "1 different: 'encoder.weight' is float32 (2, 3), needed is float32 (2, 4)" in message
    with pytest.raises(TensorMismatchError, match="is float32 .* needed is float64"):
        read(tmp_path, expected={"encoder.weight": (torch.float64, (2, 3)), "steps": (torch.int64, ())})


HUGE = {
    "range of the file": (b"", {"w": {"dtype": "F32", "shape": [2**40], "data_offsets": [0, 16]}}, bytes(16)),
    "range beyond the file": (b"", {"w": {"dtype": "F32", "shape": [2**40], "data_offsets": [0, 2**42]}}, bytes(16)),
    "product that overflows": (b"", {"w": {"dtype": "F32", "shape": [2**32, 2**32], "data_offsets": [0, 0]}}, b""),
    "empty but overflowing": (b"", {"w": {"dtype": "F32", "shape": [0, 2**62, 4], "data_offsets": [0, 0]}}, b""),
    "negative": (b"", {"w": {"dtype": "F32", "shape": [-1, -4], "data_offsets": [0, 16]}}, bytes(16)),
    "many dimensions": (b"", {"w": {"dtype": "F32", "shape": [1] * 10**5, "data_offsets": [0, 4]}}, bytes(4)),
    "gap": (b"", {"w": {"dtype": "F32", "shape": [1], "data_offsets": [4, 8]}}, bytes(8)),
    "overlap": (
        b"",
        {n: {"dtype": "F32", "shape": [2], "data_offsets": [b, b + 8]} for n, b in (("w", 0), ("v", 4))},
        bytes(12),
    ),
    "overlap that fills the file": (
        b"",
        {name: {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]} for name in "wv"},
        bytes(16),
    ),
    "rest": (b"", {"w": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}, bytes(8)),
    "unknown dtype": (b"", {"w": {"dtype": "O", "shape": [1], "data_offsets": [0, 8]}}, bytes(8)),
    "long header": ((2**60).to_bytes(8, "little"), {}, b""),
    "header beyond the file": ((100).to_bytes(8, "little"), {}, b""),
    "short file": (b"\1\2", None, b""),
    "empty file": (b"", None, b""),
}


@pytest.mark.parametrize("name", HUGE)
def test_a_tensor_file_that_claims_too_much_takes_no_memory(tmp_path, monkeypatch, name):
    start, header, data = HUGE[name]
    raw = (
        start
        if header is None
        else (start + json.dumps(header).encode() + data if start else safetensors_bytes(header, data))
    )
    write(tmp_path)
    claimed = {key: [e["dtype"] if e["dtype"] != "O" else "F32", e["shape"]] for key, e in (header or {}).items()}
    edit(tmp_path, lambda d: d.update(tensors=claimed))
    forge(tmp_path, raw)
    checked = read_header(tmp_path)
    assert checked.n_bytes == len(raw)
    monkeypatch.setattr(torch, "empty", lambda *a, **k: pytest.fail("memory was taken"))
    tracemalloc.start()
    try:
        with pytest.raises(CorruptModelFileError, match=SAFETENSORS):
            read_tensors(tmp_path, checked)
        assert tracemalloc.get_traced_memory()[1] < 20 * len(raw) + 500_000
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(
    "node",
    [
        {"__type__": "ndarray", "dtype": "<f8", "shape": [2**40], "data": ""},
        {"__type__": "ndarray", "dtype": "<f8", "shape": [0, 2**62, 2**62], "data": ""},
        {"__type__": "ndarray", "dtype": "<U999999999", "shape": [1], "data": "AAAA"},
        {"__type__": "ndarray", "dtype": "<U1", "shape": [1], "data": "/////w=="},
        {"__type__": "ndarray", "dtype": "<f8", "shape": [1], "data": "AAAAAAAAAAAAAAAAAAAAAA=="},
        {"__type__": "ndarray", "dtype": "(1000000000,)f8", "shape": [1], "data": ""},
        {"__type__": "ndarray", "dtype": "|O", "shape": [1], "data": "AAAAAAAAAAA="},
        {"__type__": "ndarray", "dtype": "O", "shape": [2**40], "items": []},
        {"__type__": "ndarray", "dtype": "O", "shape": [-1, -1], "items": [1]},
        {"__type__": "ndarray"},
        {"__type__": "os.system", "items": ["true"]},
        {"__type__": ["dict"]},
        {"__type__": "dict", "items": [[[], 1]]},
        {"__type__": "dict", "items": [[1, 1], [1, 2]]},
        {"__type__": "defaultdict", "factory": "eval", "items": []},
        {"__type__": "RangeIndex", "range": [0, 5, 0], "name": None},
        {"__type__": "Categorical", "codes": [5], "categories": ["a"], "ordered": False},
        {"__type__": "Series", "index": [1], "values": [1, 2], "name": None},
        {"__type__": "float", "value": "x"},
    ],
    ids=str,
)
def test_malformed_attributes_are_refused_without_memory(tmp_path, node):
    write(tmp_path)
    edit(tmp_path, lambda d: d.update(attributes={"a": node}))
    tracemalloc.start()
    try:
        with pytest.raises(CorruptModelFileError, match="model.json.*malformed"):
            read_header(tmp_path)
        assert tracemalloc.get_traced_memory()[1] < 1_000_000
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("quotes", [b'"' + b'\\"' * 300_000, b"[" * 300_000, b'{"w":' * 300_000])
def test_a_malformed_tensor_header_is_refused(tmp_path, quotes):
    write(tmp_path)
    forge(tmp_path, safetensors_bytes(quotes))
    with pytest.raises(CorruptModelFileError, match="malformed"):
        read(tmp_path)


@pytest.mark.parametrize(
    "claimed",
    [
        {"encoder.weight": ["F32", [3, 2]], "steps": ["I64", []]},
        {"encoder.weight": ["I32", [2, 3]], "steps": ["I64", []]},
        {"encoder.bias": ["F32", [2, 3]], "steps": ["I64", []]},
        {"encoder.weight": ["F32", [2, 3]]},
        {"encoder.weight": ["F32", [2, 3]], "steps": ["I64", []], "more": ["F32", []]},
    ],
    ids=str,
)
def test_both_files_must_name_the_same_tensors(tmp_path, claimed):
    write(tmp_path)
    edit(tmp_path, lambda d: d.update(tensors=claimed))
    with pytest.raises(CorruptModelFileError, match="not those that model.json names"):
        read(tmp_path)


BODY = b'{"format": 1, "class": "MTAe", "versions": {}, "var_names": [], "tensors": {}, "safetensors": '
BODY += b'{"size": 0, "sha256": ""}, "attributes": {"a": %b}'


def test_the_malformed_texts_below_are_malformed_only_where_they_say(tmp_path):
    reseal(tmp_path, BODY % b"1")
    assert read_header(tmp_path).attributes == {"a": 1}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"[" * 100_000 + b"]" * 100_000, "nested 100002 deep"),
        (b'{"a":' * 100_000 + b"1" + b"}" * 100_000, "nested 100002 deep"),
        (b'{"b": 1, "b": 2}', "repeated keys"),
        (b'1, "class": "x"}, "class": {"b": 1', "repeated keys"),
        (b"NaN", "constant NaN"),
        (b"-Infinity", "constant -Infinity"),
        (b"1e999", "outside the range"),
        (b"9" * 5000, "malformed"),
        (b'"\xff\xfe"', "UnicodeDecodeError"),
        (b'"\n"', "malformed"),
        (b"", "malformed"),
        (b"1}]", "malformed"),
        (b'"' + b'\\"' * 300_000, "malformed"),
    ],
    ids=lambda value: value[:12],
)
def test_malformed_json_is_refused(tmp_path, text, message):
    reseal(tmp_path, BODY % text)
    with pytest.raises(CorruptModelFileError, match=message):
        read_header(tmp_path)


@pytest.mark.parametrize("member", ["format", "class", "versions", "var_names", "tensors", "safetensors", "attributes"])
@pytest.mark.parametrize("value", [None, [["x"]], "x", 5.5, True, {"x": {"y": 1}}, "absent"], ids=str)
def test_members_of_the_wrong_type_are_refused(tmp_path, member, value):
    write(tmp_path)
    if (member, value) in (("class", "x"), ("class", "absent"), ("attributes", {"x": {"y": 1}})):
        value = 5
    edit(tmp_path, lambda d: d.pop(member) if value == "absent" else d.update({member: value}))
    with pytest.raises(CorruptModelFileError, match=JSON):
        read_header(tmp_path)


def test_json_that_is_not_an_object_is_refused(tmp_path):
    body = b'["x", {"y": 1},\n"sha256": "'
    (tmp_path / JSON).write_bytes(body + hashlib.sha256(body).hexdigest().encode() + b'"\n}\n')
    with pytest.raises(CorruptModelFileError, match="malformed"):
        read_header(tmp_path)


def test_json_size_is_bounded_before_it_is_read_and_when_it_is_written(tmp_path, monkeypatch):
    write(tmp_path)
    before = contents(tmp_path)
    monkeypatch.setattr(_files, "MAX_JSON_BYTES", len(before[JSON]) - 1)
    monkeypatch.setattr(Path, "open", lambda *a, **k: pytest.fail("the file was read"))
    with pytest.raises(CorruptModelFileError, match="bytes, at most"):
        read_header(tmp_path)
    monkeypatch.undo()
    monkeypatch.setattr(_files, "MAX_JSON_BYTES", len(before[JSON]))
    with pytest.raises(ValueError, match="model.json would take .* buffers of the module"):
        write(tmp_path, attributes={"a": np.zeros(1000)}, overwrite=True)
    assert contents(tmp_path) == before


UNPICKLERS = {
    "torch": {"load"},
    "pickle": {"load", "loads", "Unpickler"},
    "cloudpickle": {"load", "loads"},
    "dill": {"load", "loads"},
    "joblib": {"load"},
}
TRUSTED = {"model/_base.py": 1}  # reads an scvi-tools pickle, only with trusted=True


def unpickling_lines(source):
    """Lines that import, or call, something that unpickles."""
    lines = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            found = node.attr in UNPICKLERS.get(node.value.id, set()) or node.attr == "read_pickle"
        elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Call):
            found = node.attr == "load" and ast.unparse(node.value.func) == "super"  # scvi-tools' own load unpickles
        elif isinstance(node, ast.ImportFrom):
            names = {alias.name for alias in node.names}
            found = bool(
                names & UNPICKLERS.get(node.module or "", set())
                or names & {"read_pickle", "_load_saved_files", "_load_legacy_saved_files"}
            )
        elif isinstance(node, ast.keyword):
            found = node.arg == "allow_pickle" and not (
                isinstance(node.value, ast.Constant) and node.value.value is False
            )
        else:
            found = False
        if found:
            lines.append(node.lineno)
    return lines


def test_the_search_for_unpickling_finds_it():
    source = "import torch\ntorch.load(f)\nfrom pickle import loads\nnp.load(f, allow_pickle=True)\nx = json.load(f)\nsuper().load(f)\n"
    assert sorted(unpickling_lines(source)) == [2, 3, 4, 6]


def test_nothing_is_unpickled_outside_the_one_trusted_place():
    root = Path(multipert.__file__).parent
    found = {path.relative_to(root).as_posix(): unpickling_lines(path.read_text()) for path in root.rglob("*.py")}
    assert len(found) > 3
    assert {name: lines for name, lines in found.items() if len(lines) > TRUSTED.get(name, 0)} == {}
