import base64
import contextlib
import hashlib
import json
import math
import os
import platform
import re
import sys
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from io import BufferedReader
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import pandas as pd
import torch
from pandas.api.extensions import ExtensionArray
from safetensors.torch import save_file

FORMAT = 1
"""Number of the file format; raised when an older `multipert` could misread the files."""

MAX_JSON_BYTES = 2**30  # room for the int64 indices of 100 million cells, written as base64
MAX_TENSOR_HEADER_BYTES = 100_000_000  # the limit of the safetensors format itself
MAX_DEPTH = 32  # of nested values; an scvi-tools registry has six levels
MAX_NESTING = 4 * MAX_DEPTH  # of JSON brackets; one value takes at most three
MAX_LISTED = 20

_TAG = "__type__"
_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
_DTYPE_NAMES = {dtype: name for name, dtype in _DTYPES.items()}

TensorSpec: TypeAlias = tuple[torch.dtype, tuple[int, ...]]
VarNames: TypeAlias = Sequence[str] | Mapping[str, Sequence[str]]


class ModelFileError(ValueError):
    """A model file that cannot be read safely.

    * `CorruptModelFileError`: truncated, altered, or two files that do not belong together
    * `UnsupportedFormatError`: written by a newer `multipert`
    * `WrongModelClassError`: the files hold another model
    * `TensorMismatchError`: the tensors are not those that the model needs
    """


class CorruptModelFileError(ModelFileError):
    """A model file that is truncated or altered, or two files that do not belong together."""


class UnsupportedFormatError(ModelFileError):
    """A model file in a format newer than this version of `multipert` knows."""


class WrongModelClassError(ModelFileError):
    """A model file that holds a model of another class."""


class TensorMismatchError(ModelFileError):
    """A model file whose tensors are not those that the model needs."""


@dataclass(frozen=True)
class Header:
    """What `model.json` says about a saved model; reading it takes no tensor into memory.

    Parameters
    ----------
    class_name
        Name of the model's class.
    format
        Number of the file format.
    versions
        Versions of the packages and of Python that wrote the files.
    var_names
        Names of the variables, per modality if the model has several.
    attributes
        The attributes of the model, as they were saved.
    tensors
        Data type and shape of each tensor in `model.safetensors`.
    n_bytes
        Size of `model.safetensors`.
    sha256
        Checksum of `model.safetensors`.
    """

    class_name: str
    format: int
    versions: dict[str, str]
    var_names: list[str] | dict[str, list[str]]
    attributes: dict[str, Any]
    tensors: dict[str, TensorSpec]
    n_bytes: int
    sha256: str


class _UnsavableError(Exception):
    """What is wrong with a value; `_encode` adds where it was found."""


_NUMPY_DTYPE = re.compile(r"[<>|](b1|[iu][1248]|f[248]|c8|c16|U[1-9]\d*)")
_FACTORIES: dict[str, Any] = {
    "None": None,
    **{factory.__name__: factory for factory in (dict, list, set, tuple, str, int, float, bool)},
}


def _encode_array(array: np.ndarray, child: Callable) -> dict:
    if array.dtype == object:
        items = [child(item, f".flat[{i}]") for i, item in enumerate(array.ravel().tolist())]
        return {"dtype": "O", "shape": list(array.shape), "items": items}
    if array.dtype.str == "<U0":
        array = array.astype("<U1")
    if not _NUMPY_DTYPE.fullmatch(array.dtype.str):
        raise _UnsavableError(f"it is an array of dtype {array.dtype}")
    data = base64.b64encode(np.ascontiguousarray(array).tobytes()).decode()
    return {"dtype": array.dtype.str, "shape": list(array.shape), "data": data}


def _decode_array(node: dict) -> np.ndarray:
    shape = tuple(node["shape"])
    if node["dtype"] == "O":
        items = _decode(node["items"])
        if math.prod(shape) != len(items):
            raise ValueError(f"shape {shape} for {len(items)} items")
        array = np.empty(len(items), dtype=object)
        for i, item in enumerate(items):
            array[i] = item
        return array.reshape(shape)
    if not _NUMPY_DTYPE.fullmatch(node["dtype"]):
        raise ValueError(f"dtype {node['dtype']!r}")
    dtype, data = np.dtype(node["dtype"]), bytearray(base64.b64decode(node["data"], validate=True))
    if math.prod(shape) * dtype.itemsize != len(data):
        raise ValueError(f"shape {shape} of {dtype} for {len(data)} bytes")
    array = np.ndarray(shape, dtype, data)
    if dtype.kind == "U" and (array.reshape(-1).view(f"{dtype.str[0]}u4") > sys.maxunicode).any():
        raise ValueError("a character outside Unicode")
    return array


def _encode_dict(mapping: dict, child: Callable) -> dict:
    return {"items": [[child(key, f"[key {key!r}]"), child(item, f"[{key!r}]")] for key, item in mapping.items()]}


def _decode_dict(node: dict) -> dict:
    mapping = {_decode(key): _decode(item) for key, item in node["items"]}
    if len(mapping) != len(node["items"]):
        raise ValueError("repeated keys")
    return mapping


def _encode_defaultdict(mapping: defaultdict, child: Callable) -> dict:
    names = [name for name, factory in _FACTORIES.items() if factory is mapping.default_factory]
    if not names:
        raise _UnsavableError(f"it is a defaultdict with the factory {mapping.default_factory!r}")
    return {"factory": names[0], **_encode_dict(mapping, child)}


def _encode_strings(strings: Any, child: Callable) -> dict:
    items = [None if missing else item for item, missing in zip(strings.tolist(), strings.isna(), strict=True)]
    return {"missing": "NA" if strings.dtype.na_value is pd.NA else "nan", "items": child(items, "")}


def _decode_strings(node: dict) -> Any:
    dtype = pd.StringDtype() if node["missing"] == "NA" else pd.StringDtype(na_value=np.nan)
    return pd.array(node["items"], dtype=dtype)


def _encode_categorical(values: pd.Categorical, child: Callable) -> dict:
    categories = child(values.categories, ".categories")
    return {"codes": child(values.codes, ".codes"), "categories": categories, "ordered": values.ordered}


def _decode_categorical(node: dict) -> pd.Categorical:
    return pd.Categorical.from_codes(_decode(node["codes"]), _decode(node["categories"]), node["ordered"])


def _pandas_values(values: pd.Series | pd.Index) -> Any:
    return values.to_numpy() if isinstance(values.dtype, np.dtype) else values.array


def _encode_index(index: pd.Index | pd.Series, child: Callable) -> dict:
    return {"name": child(index.name, ".name"), "values": child(_pandas_values(index), ".values")}


def _decode_index(node: dict) -> pd.Index:
    values = _decode(node["values"])
    return pd.Index(values, dtype=values.dtype, name=_decode(node["name"]))


def _decode_series(node: dict) -> pd.Series:
    values = _decode(node["values"])
    return pd.Series(values, index=_decode(node["index"]), dtype=values.dtype, name=_decode(node["name"]))


def _encode_frame(frame: pd.DataFrame, child: Callable) -> dict:
    columns = [frame.iloc[:, i] for i in range(frame.shape[1])]
    return {
        "index": child(frame.index, ".index"),
        "columns": child(frame.columns, ".columns"),
        "values": [child(_pandas_values(column), f"[{column.name!r}]") for column in columns],
    }


def _decode_frame(node: dict) -> pd.DataFrame:
    index, values = _decode(node["index"]), _decode(node["values"])
    columns = {i: pd.Series(column, index=index, dtype=column.dtype) for i, column in enumerate(values)}
    frame = pd.DataFrame(columns, index=index)
    frame.columns = _decode(node["columns"])
    return frame


# What JSON has no word for becomes {"__type__": tag, ...}: tag -> (the one type it stands for, encoder, decoder)
_CODECS: dict[str, tuple[type, Callable[[Any, Callable], dict], Callable[[dict], Any]]] = {
    "float": (float, lambda x, child: {"value": repr(x)}, lambda node: float(node["value"])),
    "tuple": (tuple, lambda x, child: {"items": child(list(x), "")}, lambda node: tuple(_decode(node["items"]))),
    "dict": (dict, _encode_dict, _decode_dict),
    "defaultdict": (
        defaultdict,
        _encode_defaultdict,
        lambda node: defaultdict(_FACTORIES[node["factory"]], _decode_dict(node)),
    ),
    "ndarray": (np.ndarray, _encode_array, _decode_array),
    "scalar": (
        np.generic,
        lambda x, child: _encode_array(np.asarray(x), child),
        lambda node: _decode_array(node)[()],
    ),
    "strings": (pd.arrays.StringArray, _encode_strings, _decode_strings),
    "Categorical": (pd.Categorical, _encode_categorical, _decode_categorical),
    "Index": (pd.Index, _encode_index, _decode_index),
    "CategoricalIndex": (pd.CategoricalIndex, _encode_index, _decode_index),
    "RangeIndex": (
        pd.RangeIndex,
        lambda x, child: {"range": [x.start, x.stop, x.step], "name": child(x.name, ".name")},
        lambda node: pd.RangeIndex(*node["range"], name=_decode(node["name"])),
    ),
    "Series": (
        pd.Series,
        lambda x, child: {"index": child(x.index, ".index"), **_encode_index(x, child)},
        _decode_series,
    ),
    "DataFrame": (pd.DataFrame, _encode_frame, _decode_frame),
}
_TAG_OF = {kind: tag for tag, (kind, _, _) in _CODECS.items()}


def _tag_of(value: Any) -> str | None:
    if isinstance(value, np.generic):
        return "scalar"
    if isinstance(value, ExtensionArray) and isinstance(value.dtype, pd.StringDtype):
        return "strings"
    return _TAG_OF.get(type(value))


def _is_unicode(text: str) -> bool:
    return text.isascii() or not any(0xD800 <= ord(character) <= 0xDFFF for character in text)


def _encode(value: Any, path: str, depth: int = 0) -> Any:
    """Express a value in JSON; a value that would not come back the same is a TypeError that names its path."""

    def child(inner: Any, step: str) -> Any:
        return _encode(inner, path + step, depth + 1)

    kind = type(value)
    problem = f"it is a {kind.__module__}.{kind.__qualname__}"
    try:
        if depth > MAX_DEPTH:
            raise _UnsavableError(f"it is nested more than {MAX_DEPTH} deep or contains itself")
        if kind is str and not _is_unicode(value):
            raise _UnsavableError(f"{value!r} is not valid Unicode")
        if kind is int and value.bit_length() > 1024:
            raise _UnsavableError(f"it is an int of {value.bit_length()} bits, more than 1024")
        if value is None or kind in (bool, int, str) or (kind is float and math.isfinite(value)):
            return value
        if kind is list:
            return [child(item, f"[{i}]") for i, item in enumerate(value)]
        if kind is dict and _TAG not in value and all(type(key) is str and _is_unicode(key) for key in value):
            return {key: child(item, f"[{key!r}]") for key, item in value.items()}
        tag = _tag_of(value)
        if tag is not None:
            return {_TAG: tag, **_CODECS[tag][1](value, child)}
    except _UnsavableError as error:
        problem = str(error)
    raise TypeError(
        f"{path} cannot be saved: {problem}. Model files keep None, bool, int, float, str, list, tuple, dict, "
        "numpy arrays and scalars, and pandas Index, Series, DataFrame and Categorical, of numbers or strings; "
        "keep anything else as a buffer of the module or as text."
    )


def _decode(node: Any) -> Any:
    if isinstance(node, list):
        return [_decode(item) for item in node]
    if isinstance(node, dict):
        if _TAG in node:
            return _CODECS[node[_TAG]][2](node)
        return {key: _decode(item) for key, item in node.items()}
    if isinstance(node, float) and not math.isfinite(node):
        raise ValueError("a number outside the range of a float")
    return node


def _paths(dir_path: str | os.PathLike, prefix: str) -> tuple[Path, Path, Path]:
    """Tensors, JSON, and the former tensors that an interrupted save leaves behind."""
    if Path(f"{prefix}model").name != f"{prefix}model":
        raise ValueError(f"prefix {prefix!r} contains a path separator; put the folder into dir_path.")
    folder = Path(dir_path)
    return (
        folder / f"{prefix}model.safetensors",
        folder / f"{prefix}model.json",
        folder / f".{prefix}model.safetensors.former",
    )


def _require_file(path: Path) -> None:
    if path.is_file():
        return
    found = sorted(entry.name for entry in path.parent.iterdir()) if path.parent.is_dir() else None
    if found is None:
        listing = "the folder does not exist"
    else:
        listing = f"the folder holds {', '.join(found[:MAX_LISTED]) or 'nothing'}"
        listing += f" and {len(found) - MAX_LISTED} more" if len(found) > MAX_LISTED else ""
    message = f"There is no {path.name!r} in {str(path.parent)!r}; {listing}."
    pickled = path.with_suffix(".pt").name
    if found and pickled in found:
        message += (
            f" {pickled!r} is an scvi-tools pickle, which can run any code when it is read: only "
            "`load(..., trusted=True)` reads it, for files whose origin you know."
        )
    else:
        message += " Check `dir_path` and `prefix`."
    raise FileNotFoundError(message)


def _corrupt(path: Path, found: str) -> CorruptModelFileError:
    return CorruptModelFileError(
        f"{str(path)!r}: {found}. The file is truncated or was altered: copy it again, or save the model again."
    )


def _versions() -> dict[str, str]:
    packages = ("multipert", "scvi-tools", "torch", "anndata")
    return {**{package: version(package) for package in packages}, "python": platform.python_version()}


def _savable_tensors(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Contiguous tensors on the CPU, none of which shares memory with another."""
    savable: dict[str, torch.Tensor] = {}
    storages = set()
    for name, tensor in tensors.items():
        if type(name) is not str or not _is_unicode(name) or name == "__metadata__":
            raise TypeError(f"tensors has the name {name!r}; names are strings of valid Unicode, not '__metadata__'.")
        if not isinstance(tensor, torch.Tensor):
            raise TypeError(f"tensors[{name!r}] is a {type(tensor).__qualname__}, not a torch.Tensor.")
        if tensor.layout is not torch.strided or tensor.is_meta or tensor.dtype not in _DTYPE_NAMES:
            raise TypeError(
                f"tensors[{name!r}] cannot be saved: {tensor.dtype}, {tensor.layout}, on {tensor.device}. Model files "
                f"keep dense tensors of {', '.join(str(dtype) for dtype in _DTYPE_NAMES)}; convert it."
            )
        tensor = tensor.detach().cpu().contiguous()
        storage = tensor.untyped_storage().data_ptr()
        savable[name] = tensor.clone() if storage in storages else tensor  # older safetensors refuse to share
        storages.add(storage)
    return savable


def _plain_names(names: Sequence[str], path: str) -> list[str]:
    for i, name in enumerate(names):
        if not isinstance(name, str) or not _is_unicode(name):
            raise TypeError(f"{path}[{i}] is {name!r}; the names of variables are strings of valid Unicode.")
    return [str(name) for name in names]


def write_model(
    dir_path: str | os.PathLike,
    *,
    prefix: str = "",
    class_name: str,
    tensors: Mapping[str, torch.Tensor],
    attributes: Mapping[str, Any],
    var_names: VarNames,
    overwrite: bool = False,
) -> None:
    """Write a model as `model.safetensors` and `model.json`, flat in a folder.

    Both files are written under other names first and then moved into place, so that a failed or interrupted save
    leaves the former pair. If the process dies between the two moves, reading says so and names the file that holds
    the former tensors.

    Parameters
    ----------
    dir_path
        Folder, made if absent.
    prefix
        Put before both file names, so that several models can share a folder.
    class_name
        Name of the model's class, compared when the model is read.
    tensors
        Parameters and buffers by name. Tensors that share memory are written once each.
    attributes
        What else the model needs: nested dicts, lists, tuples, numbers, strings, numpy and pandas objects.
    var_names
        Names of the variables, per modality if there are several.
    overwrite
        Replace a model that is already there.

    Raises
    ------
    ValueError
        If a model is already there and `overwrite` is false.
    TypeError
        If a value cannot be written such that it comes back the same; the message names its place. Nothing is
        written.

    Examples
    --------
    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     write_model(
    ...         folder,
    ...         class_name="MTAe",
    ...         tensors={"weight": torch.ones(2, 3)},
    ...         attributes={"n_latent": 3},
    ...         var_names=["A", "B"],
    ...     )
    ...     header = read_header(folder, expected_class="MTAe")
    ...     weight = read_tensors(folder, header)["weight"]
    >>> header.attributes, header.tensors
    ({'n_latent': 3}, {'weight': (torch.float32, (2, 3))})
    >>> weight.sum()
    tensor(6.)
    """
    tensors_path, json_path, former_path = _paths(dir_path, prefix)
    there = [path.name for path in (tensors_path, json_path) if path.exists()]
    if there and not overwrite:
        raise ValueError(
            f"{' and '.join(there)} already exists in {str(json_path.parent)!r}. Please provide another directory or "
            "prefix for saving, or pass overwrite=True."
        )
    savable = _savable_tensors(tensors)
    document = {
        "format": FORMAT,
        "class": class_name,
        "versions": _versions(),
        "var_names": {name: _plain_names(v, f"var_names[{name!r}]") for name, v in var_names.items()}
        if isinstance(var_names, Mapping)
        else _plain_names(var_names, "var_names"),
        "tensors": {name: [_DTYPE_NAMES[tensor.dtype], list(tensor.shape)] for name, tensor in savable.items()},
        "attributes": _encode(dict(attributes), "attributes"),
    }
    json_path.parent.mkdir(parents=True, exist_ok=True)
    new_tensors, new_json = (path.with_name(f".{path.name}.new") for path in (tensors_path, json_path))
    try:
        for path in (new_tensors, new_json):
            path.unlink(missing_ok=True)  # left by a process that died
        new_json.touch(exist_ok=False)
        save_file(savable, new_tensors)
        new_tensors.chmod(new_json.stat().st_mode)  # safetensors lets only the owner read
        with new_tensors.open("rb") as file:
            document["safetensors"] = {"size": new_tensors.stat().st_size, "sha256": _sha256(file)}
        raw = _seal(document)
        if len(raw) > MAX_JSON_BYTES:
            raise ValueError(
                f"{json_path.name} would take {len(raw):,} bytes, more than the {MAX_JSON_BYTES:,} that are read back. "
                "Keep large arrays as buffers of the module."
            )
        new_json.write_bytes(raw)
        for path in (new_tensors, new_json):
            _flush(path)
        _replace_pair(new_tensors, new_json, tensors_path, json_path, former_path)
        _flush(json_path.parent)
    finally:
        for path in (new_tensors, new_json):
            path.unlink(missing_ok=True)


def _replace_pair(new_tensors: Path, new_json: Path, tensors_path: Path, json_path: Path, former_path: Path) -> None:
    """Move both files into place, or neither."""
    had_tensors = tensors_path.exists()
    former_path.unlink(missing_ok=True)
    if had_tensors:
        with contextlib.suppress(OSError):  # some file systems have no hard links: then there is no way back
            former_path.hardlink_to(tensors_path)
    try:
        new_tensors.replace(tensors_path)
        new_json.replace(json_path)
    except BaseException:
        if not new_tensors.exists():  # the first move was made, the second was not
            if former_path.exists():
                former_path.replace(tensors_path)
            elif not had_tensors:
                tensors_path.unlink()
        former_path.unlink(missing_ok=True)
        raise
    former_path.unlink(missing_ok=True)


def _flush(path: Path) -> None:
    """Have the system write a file, or a folder's entries, to the disk."""
    if path.is_dir() and os.name == "nt":
        return  # a folder cannot be opened there
    descriptor = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _sha256(file: BufferedReader) -> str:
    return hashlib.file_digest(file, "sha256").hexdigest()


# The JSON ends with the checksum of every byte before it. All formats keep this ending, so that an altered file is
# told from one in a newer format.
_SEAL_START, _SEAL_END = b',\n"sha256": "', b'"\n}\n'
_SEAL_LENGTH = 64 + len(_SEAL_END)


def _seal(document: dict) -> bytes:
    members = (
        f"{json.dumps(name)}: {json.dumps(value, ensure_ascii=False, allow_nan=False)}"
        for name, value in document.items()
    )
    body = b"{\n" + ",\n".join(members).encode() + _SEAL_START
    return body + hashlib.sha256(body).hexdigest().encode() + _SEAL_END


_JSON_STRING = re.compile(rb'"(?:[^"\\]++|\\.)*+"?', re.DOTALL)


def _parse_json(raw: bytes) -> dict:
    """Parse a JSON object strictly; anything wrong is a ValueError."""
    # Measured before parsing: the parser's own limit depends on the stack and can be lifted by other packages.
    codes = np.frombuffer(_JSON_STRING.sub(b"", raw), dtype=np.uint8)
    opening, closing = np.isin(codes, list(b"[{")), np.isin(codes, list(b"]}"))
    nesting = np.cumsum(opening.astype(np.int8) - closing, dtype=np.int32).max(initial=0)
    if nesting > MAX_NESTING:
        raise ValueError(f"nested {nesting} deep, at most {MAX_NESTING} is allowed")

    def unique(pairs: list[tuple[str, Any]]) -> dict:
        members = dict(pairs)
        if len(members) != len(pairs):
            raise ValueError("an object with repeated keys")
        return members

    def refuse(constant: str) -> None:
        raise ValueError(f"the constant {constant}")

    document = json.loads(raw.decode("utf-8"), object_pairs_hook=unique, parse_constant=refuse)
    if not isinstance(document, dict):
        raise ValueError("not a JSON object")
    return document


# What parsing and building from a malformed document can raise.
_MALFORMED = (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError)


def read_header(dir_path: str | os.PathLike, *, prefix: str = "", expected_class: str | None = None) -> Header:
    """Read and check `model.json`; no tensor is read and nothing is unpickled.

    Parameters
    ----------
    dir_path
        Folder of the model.
    prefix
        The prefix with which the model was saved.
    expected_class
        Name of the class that the model must have.

    Returns
    -------
    The class, versions, variable names and attributes, and what the tensor file must hold.

    Raises
    ------
    FileNotFoundError
        If there is no such file; the message lists what the folder holds.
    CorruptModelFileError
        If the file is truncated or altered, or is not a model file.
    UnsupportedFormatError
        If a newer `multipert` wrote the file.
    WrongModelClassError
        If the file holds a model of another class.

    Examples
    --------
    >>> read_header("nowhere")
    Traceback (most recent call last):
    FileNotFoundError: There is no 'model.json' in 'nowhere'; the folder does not exist. Check `dir_path` and `prefix`.
    """
    path = _paths(dir_path, prefix)[1]
    _require_file(path)
    size = path.stat().st_size
    if size > MAX_JSON_BYTES:
        raise _corrupt(path, f"{size:,} bytes, at most {MAX_JSON_BYTES:,} are expected")
    with path.open("rb") as file:
        raw = file.read(size)
    body, seal = raw[:-_SEAL_LENGTH], raw[-_SEAL_LENGTH:]
    if not body.endswith(_SEAL_START) or seal != hashlib.sha256(body).hexdigest().encode() + _SEAL_END:
        raise _corrupt(path, f"its {len(raw):,} bytes do not have the checksum that must stand at their end")
    try:
        document = _parse_json(raw)
        found_format, found_class = document["format"], document["class"]
        if type(found_format) is not int or type(found_class) is not str or found_format < 1:
            raise ValueError(f"format {found_format!r}, class {found_class!r}")
    except _MALFORMED as error:
        raise _corrupt(path, f"malformed ({error!r})") from error
    if found_format > FORMAT:
        raise UnsupportedFormatError(
            f"{str(path)!r} has format {found_format}, written with {document.get('versions')}; this version of "
            f"multipert ({version('multipert')}) reads up to format {FORMAT}. Upgrade multipert."
        )
    if expected_class is not None and found_class != expected_class:
        raise WrongModelClassError(
            f"{str(path)!r} holds a model of class {found_class!r}, expected {expected_class!r}. "
            f"Load it with {found_class}.load, or check `dir_path` and `prefix`."
        )
    try:
        return _build_header(document)
    except _MALFORMED as error:
        raise _corrupt(path, f"malformed ({error!r})") from error


def _build_header(document: dict) -> Header:
    names, attributes, file = document["var_names"], _decode(document["attributes"]), document["safetensors"]
    texts = [file["sha256"], *document["versions"].values()]
    lists = names.values() if isinstance(names, dict) else [names]
    if not all(type(part) is list and all(type(name) is str for name in part) for part in lists):
        raise ValueError("var_names are not lists of strings")
    if type(attributes) is not dict or type(file["size"]) is not int or not all(type(text) is str for text in texts):
        raise ValueError("a member of the wrong type")
    return Header(
        class_name=document["class"],
        format=document["format"],
        versions=dict(document["versions"]),
        var_names=names,
        attributes=attributes,
        tensors={name: (_DTYPES[dtype], tuple(shape)) for name, (dtype, shape) in document["tensors"].items()},
        n_bytes=file["size"],
        sha256=file["sha256"],
    )


def read_tensors(
    dir_path: str | os.PathLike,
    header: Header,
    *,
    prefix: str = "",
    expected: Mapping[str, TensorSpec] | None = None,
    device: str | torch.device = "cpu",
) -> dict[str, torch.Tensor]:
    """Read `model.safetensors` after its size, checksum, names, data types and shapes were found right.

    Parameters
    ----------
    dir_path
        Folder of the model.
    header
        What `read_header` returned for the same folder and prefix.
    prefix
        The prefix with which the model was saved.
    expected
        Data type and shape of each tensor that the model needs.
    device
        Where the tensors are put.

    Returns
    -------
    The tensors by name.

    Raises
    ------
    FileNotFoundError
        If there is no such file; the message lists what the folder holds.
    CorruptModelFileError
        If the file is truncated or altered, or does not belong to the JSON file.
    TensorMismatchError
        If the tensors are not the expected ones.

    Examples
    --------
    See `write_model`.
    """
    path, json_path, former_path = _paths(dir_path, prefix)
    _require_file(path)
    if expected is not None:
        _check_expected(path, header.tensors, expected)
    with path.open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        if size != header.n_bytes or _sha256(file) != header.sha256:
            raise _not_a_pair(path, json_path, former_path, header, size)
        try:
            layout = _read_layout(file, size)
            if {name: spec for name, (spec, _) in layout.items()} != header.tensors:
                raise ValueError(f"its tensors are not those that {json_path.name} names")
        except _MALFORMED as error:
            raise _corrupt(path, f"malformed ({error!r})") from error
        return {name: _read_tensor(file, spec, start).to(device) for name, (spec, start) in layout.items()}


def _check_expected(path: Path, found: Mapping[str, TensorSpec], expected: Mapping[str, TensorSpec]) -> None:
    def spec(dtype: torch.dtype, shape: Sequence[int]) -> str:
        return f"{str(dtype).removeprefix('torch.')} {tuple(shape)}"

    missing = [repr(name) for name in expected if name not in found]
    unexpected = [repr(name) for name in found if name not in expected]
    different = [
        f"{name!r} is {spec(*found[name])}, needed is {spec(*needed)}"
        for name, needed in expected.items()
        if name in found and spec(*found[name]) != spec(*needed)
    ]
    kinds = {"missing": missing, "unexpected": unexpected, "different": different}
    problems = [
        f"{len(names)} {kind}: {', '.join(names[:MAX_LISTED])}{', ...' if len(names) > MAX_LISTED else ''}"
        for kind, names in kinds.items()
        if names
    ]
    if problems:
        raise TensorMismatchError(
            f"{str(path)!r} does not hold the {len(expected)} tensors that the model needs; {'; '.join(problems)}. The "
            "model was saved with other settings or by another version of its class: load it with that version."
        )


def _not_a_pair(path: Path, json_path: Path, former_path: Path, header: Header, size: int) -> CorruptModelFileError:
    message = (
        f"{str(path)!r} ({size:,} bytes) and {json_path.name!r} (which names {header.n_bytes:,} bytes and their "
        "checksum) do not belong together: one was truncated, altered or replaced, or a save was interrupted."
    )
    if former_path.is_file() and former_path.stat().st_size == header.n_bytes:
        with former_path.open("rb") as file:
            if _sha256(file) == header.sha256:
                return CorruptModelFileError(
                    f"{message} {former_path.name!r} holds the tensors of the model before that save: rename it to "
                    f"{path.name!r} to have that model back."
                )
    return CorruptModelFileError(f"{message} Copy both files again, or save the model again.")


def _read_layout(file: BufferedReader, size: int) -> dict[str, tuple[TensorSpec, int]]:
    """Data type, shape and position of each tensor; nothing larger than the header is read."""
    file.seek(0)
    length = int.from_bytes(file.read(8), "little")
    if size < 8 or length > min(size - 8, MAX_TENSOR_HEADER_BYTES):
        raise ValueError(f"a header of {length:,} bytes in a file of {size:,}")
    entries = _parse_json(file.read(length))
    entries.pop("__metadata__", None)
    layout, position = {}, 8 + length
    for name, entry in sorted(entries.items(), key=lambda item: item[1]["data_offsets"]):
        dtype, shape, (begin, end) = _DTYPES[entry["dtype"]], entry["shape"], entry["data_offsets"]
        if len(shape) > 32 or not all(type(n) is int and 0 <= n < 2**63 for n in (*shape, begin, end)):
            raise ValueError(f"{name!r} has the shape {shape} at {begin}:{end}")
        if math.prod(max(n, 1) for n in shape) >= 2**63 or math.prod(shape) * dtype.itemsize != end - begin:
            raise ValueError(f"{name!r} has the shape {shape} of {dtype} in {end - begin:,} bytes")
        if 8 + length + begin != position:
            raise ValueError(f"{name!r} leaves a gap or overlaps another tensor")
        layout[name] = ((dtype, tuple(shape)), position)
        position += end - begin
    if position != size:
        raise ValueError(f"tensors up to byte {position:,} in a file of {size:,}")
    return layout


def _read_tensor(file: BufferedReader, spec: TensorSpec, start: int) -> torch.Tensor:
    dtype, shape = spec
    tensor = torch.empty(shape, dtype=dtype)
    file.seek(start)
    file.readinto(tensor.reshape(-1).view(torch.uint8).numpy())  # type: ignore[arg-type]
    return tensor
