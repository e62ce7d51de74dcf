"""Who is held out: each function returns train, val or test for every cell."""

from multipert.data._splithash import split_hash

from ._audit import AuditReport, audit
from ._combination import combination, inverse_combination
from ._contexttransfer import context_transfer
from ._dose import dose
from ._imbalance import imbalance
from ._manual import manual
from ._partialcontexttransfer import partial_context_transfer
from ._random import random
from ._scaling import scaling
from ._seenparts import seen_parts
from ._unseenperturbation import unseen_perturbation

__all__ = [
    "AuditReport",
    "audit",
    "combination",
    "context_transfer",
    "dose",
    "imbalance",
    "inverse_combination",
    "manual",
    "partial_context_transfer",
    "random",
    "scaling",
    "seen_parts",
    "split_hash",
    "unseen_perturbation",
]
