"""Attributes of a model as JSON, and exactly back."""

import base64
import math
import re
import sys
from collections import defaultdict
from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
from pandas.api.extensions import ExtensionArray

MAX_DEPTH = 32  # of nested values; an scvi-tools registry has six levels
_TAG = "__type__"


class _UnsavableError(Exception):
    """What is wrong with a value; `encode` adds where it was found."""


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
        items = decode(node["items"])
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
    mapping = {decode(key): decode(item) for key, item in node["items"]}
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
    return pd.Categorical.from_codes(decode(node["codes"]), decode(node["categories"]), node["ordered"])


def _pandas_values(values: pd.Series | pd.Index) -> Any:
    return values.to_numpy() if isinstance(values.dtype, np.dtype) else values.array


def _encode_index(index: pd.Index | pd.Series, child: Callable) -> dict:
    return {"name": child(index.name, ".name"), "values": child(_pandas_values(index), ".values")}


def _decode_index(node: dict) -> pd.Index:
    values = decode(node["values"])
    return pd.Index(values, dtype=values.dtype, name=decode(node["name"]))


def _decode_series(node: dict) -> pd.Series:
    values = decode(node["values"])
    return pd.Series(values, index=decode(node["index"]), dtype=values.dtype, name=decode(node["name"]))


def _encode_frame(frame: pd.DataFrame, child: Callable) -> dict:
    columns = [frame.iloc[:, i] for i in range(frame.shape[1])]
    return {
        "index": child(frame.index, ".index"),
        "columns": child(frame.columns, ".columns"),
        "values": [child(_pandas_values(column), f"[{column.name!r}]") for column in columns],
    }


def _decode_frame(node: dict) -> pd.DataFrame:
    index, values = decode(node["index"]), decode(node["values"])
    columns = {i: pd.Series(column, index=index, dtype=column.dtype) for i, column in enumerate(values)}
    frame = pd.DataFrame(columns, index=index)
    frame.columns = decode(node["columns"])
    return frame


# What JSON has no word for becomes {"__type__": tag, ...}: tag -> (the one type it stands for, encoder, decoder)
_CODECS: dict[str, tuple[type, Callable[[Any, Callable], dict], Callable[[dict], Any]]] = {
    "float": (float, lambda x, child: {"value": repr(x)}, lambda node: float(node["value"])),
    "tuple": (tuple, lambda x, child: {"items": child(list(x), "")}, lambda node: tuple(decode(node["items"]))),
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
        lambda node: pd.RangeIndex(*node["range"], name=decode(node["name"])),
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


def is_unicode(text: str) -> bool:
    """Whether a text can be written as UTF-8.

    Parameters
    ----------
    text
        Any text.

    Returns
    -------
    False for a text with lone surrogates.
    """
    return text.isascii() or not any(0xD800 <= ord(character) <= 0xDFFF for character in text)


def encode(value: Any, path: str, depth: int = 0) -> Any:
    """Express a value in JSON such that `decode` gives the same value back.

    Parameters
    ----------
    value
        None, numbers, strings, lists, tuples, dicts, numpy and pandas objects of these.
    path
        Where the value stands, for messages.
    depth
        How deep it is nested.

    Returns
    -------
    What `json` can write.

    Raises
    ------
    TypeError
        If the value would not come back the same; the message names its path.
    """

    def child(inner: Any, step: str) -> Any:
        return encode(inner, path + step, depth + 1)

    kind = type(value)
    problem = f"it is a {kind.__module__}.{kind.__qualname__}"
    try:
        if depth > MAX_DEPTH:
            raise _UnsavableError(f"it is nested more than {MAX_DEPTH} deep or contains itself")
        if kind is str and not is_unicode(value):
            raise _UnsavableError(f"{value!r} is not valid Unicode")
        if kind is int and value.bit_length() > 1024:
            raise _UnsavableError(f"it is an int of {value.bit_length()} bits, more than 1024")
        if value is None or kind in (bool, int, str) or (kind is float and math.isfinite(value)):
            return value
        if kind is list:
            return [child(item, f"[{i}]") for i, item in enumerate(value)]
        if kind is dict and _TAG not in value and all(type(key) is str and is_unicode(key) for key in value):
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


def decode(node: Any) -> Any:
    """Turn parsed JSON back into the value that `encode` was given.

    Parameters
    ----------
    node
        Parsed JSON.

    Returns
    -------
    The value.
    """
    if isinstance(node, list):
        return [decode(item) for item in node]
    if isinstance(node, dict):
        if _TAG in node:
            return _CODECS[node[_TAG]][2](node)
        return {key: decode(item) for key, item in node.items()}
    if isinstance(node, float) and not math.isfinite(node):
        raise ValueError("a number outside the range of a float")
    return node
