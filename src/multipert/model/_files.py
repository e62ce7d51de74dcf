"""Safe model files: safetensors and JSON, checked before memory is taken."""

import contextlib
import hashlib
import json
import math
import os
import platform
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from io import BufferedReader
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import torch
from safetensors.torch import save_file

from ._attributes import MAX_DEPTH, decode, encode, is_unicode

FORMAT = 1
"""Number of the file format; raised when an older `multipert` could misread the files."""

MAX_JSON_BYTES = 2**30  # room for the int64 indices of 100 million cells, written as base64
MAX_TENSOR_HEADER_BYTES = 100_000_000  # the limit of the safetensors format itself
MAX_NESTING = 4 * MAX_DEPTH  # of JSON brackets; one value takes at most three
MAX_LISTED = 20

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
        if type(name) is not str or not is_unicode(name) or name == "__metadata__":
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
        if not isinstance(name, str) or not is_unicode(name):
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
        "attributes": encode(dict(attributes), "attributes"),
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
MALFORMED = (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError)


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
    except MALFORMED as error:
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
    except MALFORMED as error:
        raise _corrupt(path, f"malformed ({error!r})") from error


def _build_header(document: dict) -> Header:
    names, attributes, file = document["var_names"], decode(document["attributes"]), document["safetensors"]
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
        except MALFORMED as error:
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
