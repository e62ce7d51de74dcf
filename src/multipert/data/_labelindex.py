"""Conditions found among many distinct ones by search."""

from __future__ import annotations

import torch

from multipert import _keys


class LabelIndex:
    """Distinct conditions, sorted column by column, so that a batch is compared with a few of them only.

    The tables of a tree are built once: level after level, a row's node is found by its node above and its next value. For
    `L` conditions and `B` cells that takes O(L log L) time once, O(B log L) for a batch, and O(L) memory, on the device of
    the conditions.

    Parameters
    ----------
    codes
        Codes of the conditions, shape `(L, n_slots)`, -1 for control and padding.
    doses
        Their doses, same shape, 0 for control and padding.

    Examples
    --------
    >>> known = LabelIndex(torch.tensor([[-1, -1], [0, -1], [0, 3]]), torch.tensor([[0.0, 0.0], [1.0, 0.0], [1.0, 2.0]]))
    >>> known.find(torch.tensor([[0], [0], [-1]]), torch.tensor([[1.0], [5.0], [0.0]])).tolist()
    [1, -1, 0]
    """

    def __init__(self, codes: torch.Tensor, doses: torch.Tensor) -> None:
        self.codes, self.doses = codes, doses
        self._values: list[torch.Tensor] = []
        self._nodes: list[torch.Tensor] = []
        node = torch.zeros(len(codes), dtype=torch.long, device=codes.device)
        for column in _columns(codes.long(), doses):
            values = torch.unique(column)
            branch = node * len(values) + torch.searchsorted(values, column)
            nodes, node = torch.unique(branch, return_inverse=True)
            self._values.append(values)
            self._nodes.append(nodes)
        # the first of equal conditions
        rows = torch.arange(len(codes), device=codes.device)
        self._first = torch.full_like(rows, len(codes)).scatter_reduce_(0, node, rows, "amin")

    def is_of(self, codes: torch.Tensor, doses: torch.Tensor) -> bool:
        """Whether these very tensors were indexed."""
        return self.codes is codes and self.doses is doses

    def find(self, codes: torch.Tensor, doses: torch.Tensor) -> torch.Tensor:
        """Position of each condition of a batch.

        Parameters
        ----------
        codes
            Codes, shape `(B, any number of slots)`, on any device.
        doses
            Doses, same shape.

        Returns
        -------
        Positions among the indexed conditions, the first of equal ones, shape `(B,)`, on their device; -1 where there is
        none. Slots that one side lacks count as padding.
        """
        device, n_slots = self.codes.device, self.codes.shape[1]
        codes, doses = codes.to(device).long(), doses.to(self.doses)
        more = max(0, n_slots - codes.shape[1])
        beyond = (codes[:, n_slots:] != _keys.PAD) | (doses[:, n_slots:] != 0)
        found = ~beyond.any(1)
        codes = torch.nn.functional.pad(codes[:, :n_slots], (0, more), value=_keys.PAD)
        doses = torch.nn.functional.pad(doses[:, :n_slots], (0, more), value=0)
        node = torch.zeros(len(codes), dtype=torch.long, device=device)
        for column, values, nodes in zip(_columns(codes, doses), self._values, self._nodes, strict=True):
            branch, known = _place(values, column)
            node, reached = _place(nodes, node * len(values) + branch)
            found = found & known & reached
        return torch.where(found, self._first[node], -1)


def _columns(codes: torch.Tensor, doses: torch.Tensor) -> list[torch.Tensor]:
    return [table[:, slot].contiguous() for table in (codes, doses) for slot in range(codes.shape[1])]


def _place(values: torch.Tensor, wanted: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Where each wanted value is in a sorted list, or would be, and whether it is there."""
    at = torch.searchsorted(values, wanted).clamp(max=len(values) - 1)
    return at, values[at] == wanted
