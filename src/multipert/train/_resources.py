"""What a run has taken of the machine."""

from __future__ import annotations

import sys

import torch


def peak_memory(device: torch.device) -> float:
    """Most memory taken so far: on a GPU by tensors, else by the whole process since it started.

    Parameters
    ----------
    device
        Where the run is.

    Returns
    -------
    Bytes; NaN where the system does not tell.
    """
    if device.type == "cuda":
        return float(torch.cuda.max_memory_allocated(device))
    try:
        import resource
    except ImportError:
        return float("nan")
    unit = 1 if sys.platform == "darwin" else 1024
    return float(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit)
