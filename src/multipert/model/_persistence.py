"""Models to and from the safe files."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import anndata
import mudata
import torch
from anndata import AnnData
from scvi.model._utils import parse_device_args

from multipert.data._checks import check_genes, is_on_disk

from ._files import MALFORMED, ModelFileError, read_header, read_tensors, write_model

if TYPE_CHECKING:
    from os import PathLike

    from mudata import MuData

    from ._base import PerturbationModel

_PICKLE = "model.pt"
_SETUP_METHODS = ("setup_anndata", "setup_mudata")


def save(
    model: PerturbationModel, dir_path: str | PathLike, prefix: str, *, overwrite: bool, save_anndata: bool
) -> None:
    """Write a model's files.

    Parameters
    ----------
    model
        The model.
    dir_path
        The folder.
    prefix
        Put before the names of the files.
    overwrite
        Whether files of that name may be replaced.
    save_anndata
        Whether to write its data beside them.

    Raises
    ------
    ValueError
        If files exist that may not be replaced, or the data cannot be written; nothing is written then.
    """
    if save_anndata:
        if model.adata is None:
            raise ValueError("save_anndata=True, but the model was loaded without data.")
        if isinstance(model.adata, AnnData) and is_on_disk(model.adata):
            raise ValueError(
                "save_anndata=True, but the expression of the model's data stays in files, which would be written anew; save "
                "without it, and pass `adata` to load (multipert.data.read_backed)."
            )
    attributes = {key: value for key, value in vars(model).items() if key.endswith("_") and not key.startswith("_")}
    write_model(
        dir_path,
        prefix=prefix,
        class_name=type(model).__name__,
        tensors=model.module.state_dict(),
        attributes=attributes,
        var_names=list(model.get_var_names()),
        overwrite=overwrite,
    )
    if save_anndata:
        model.adata.write(Path(dir_path) / _data_name(model.registry_, prefix))


def load(
    cls: type[PerturbationModel],
    dir_path: str | PathLike,
    adata: Any,
    accelerator: str,
    device: int | str,
    prefix: str,
) -> PerturbationModel:
    """Read a model's files; see :meth:`multipert.model.PerturbationModel.load`.

    Parameters
    ----------
    cls
        The class that the files must hold.
    dir_path
        The folder.
    adata
        Data to bind, None to look for saved data, False for none.
    accelerator
        As in Lightning.
    device
        As in scvi-tools.
    prefix
        What stands before the names of the files.

    Returns
    -------
    The model.
    """
    header = read_header(dir_path, prefix=prefix, expected_class=cls.__name__)
    attributes = dict(header.attributes)
    foreign = [name for name in attributes if not name.endswith("_") or name.startswith("_")]
    if foreign:
        raise ModelFileError(
            f"The files in {str(dir_path)!r} set {foreign[0]!r}, which is no attribute of a saved model."
        )
    try:
        saved_registry, arguments = attributes.pop("registry_"), attributes.pop("init_params_")["non_kwargs"]
        # on the meta device a network takes no memory, so shapes are compared before any is taken
        with torch.device("meta"):
            model = cls(None, saved_registry, **arguments)
        if saved_registry["setup_method_name"] not in _SETUP_METHODS:
            raise ValueError(f"setup method {saved_registry['setup_method_name']!r}")
    except MALFORMED as error:
        raise ModelFileError(
            f"The files in {str(dir_path)!r} do not describe a {cls.__name__} ({error}); save the model again."
        ) from error
    module = model.module
    needed = {name: (value.dtype, tuple(value.shape)) for name, value in module.state_dict().items()}
    fitted = {name: spec for name, spec in header.tensors.items() if name in module.fitted}
    target = parse_device_args(accelerator, device, return_device="torch", validate_single_device=True)[2]
    tensors = read_tensors(dir_path, header, prefix=prefix, expected={**needed, **fitted}, device=target)
    module.load_state_dict(tensors, assign=True)
    module.eval()
    for name, value in attributes.items():
        setattr(model, name, value)
    data = _saved_data(dir_path, saved_registry, prefix) if adata is None else adata
    if data is not False and data is not None:
        bind(model, data)
    return model


def bind(model: PerturbationModel, data: AnnData | MuData) -> None:
    """Give a model that was loaded without data an AnnData to work on.

    Parameters
    ----------
    model
        The model.
    data
        Data with the model's genes, in their order.
    """
    check_genes(model._setup.as_anndata(data).var_names, model.get_var_names())
    setup = getattr(type(model), model.registry_["setup_method_name"])
    setup(data, source_registry=model.registry_, **model.registry_["setup_args"])
    model._adata = data
    model._adata_manager = model._get_most_recent_anndata_manager(data, required=True)
    model._register_manager_for_instance(model._adata_manager)


def registry(dir_path: str | PathLike, prefix: str) -> dict:
    """The registry of a saved model.

    Parameters
    ----------
    dir_path
        The folder.
    prefix
        What stands before the names of the files.

    Returns
    -------
    The registry.
    """
    return read_header(dir_path, prefix=prefix).attributes["registry_"]


def is_pickle(dir_path: str | PathLike, prefix: str) -> bool:
    """Whether the folder holds a model in scvi-tools' own format, and none in ours.

    Parameters
    ----------
    dir_path
        The folder.
    prefix
        What stands before the names of the files.

    Returns
    -------
    True for a folder with a pickle only.
    """
    folder = Path(dir_path)
    return (folder / f"{prefix}{_PICKLE}").exists() and not (folder / f"{prefix}model.json").exists()


def _data_name(saved_registry: dict, prefix: str) -> str:
    return f"{prefix}{'mdata.h5mu' if saved_registry.get('setup_method_name') == 'setup_mudata' else 'adata.h5ad'}"


def _saved_data(dir_path: str | PathLike, saved_registry: dict, prefix: str) -> AnnData | MuData | None:
    path = Path(dir_path) / _data_name(saved_registry, prefix)
    if not path.exists():
        return None
    return mudata.read_h5mu(path) if path.suffix == ".h5mu" else anndata.read_h5ad(path)
