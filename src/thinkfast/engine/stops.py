"""Stop strings without decoding every token: a table says which tokens can complete one, the text decides.

Usage: ``table = stop_table(pieces, ("\\n\\n",)); cut = find_stop(text, ("\\n\\n",))``.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

_PARTIAL = "\ufffd"


def stop_table(pieces: Sequence[str], stop: Sequence[str], size: int) -> Tensor:
    """[size] bool: True for every token after which one of ``stop`` may stand complete at the text's end or before.

    ``pieces`` are the tokens decoded one by one. A token that decodes to nothing or to a broken character by itself
    may show its text in company; and decoders swallow a leading space, so a stop string that ends in white space can
    be completed by any token.
    """
    last = {s[-1] for s in stop}
    anything = any(c.isspace() for c in last)
    may = [anything or not piece or _PARTIAL in piece or not last.isdisjoint(piece) for piece in pieces]
    table = torch.zeros(size, dtype=torch.bool)
    table[: len(may)] = torch.tensor(may[:size])
    return table


def find_stop(text: str, stop: Sequence[str]) -> int | None:
    """Where the first stop string in ``text`` begins; None if there is none."""
    found = [place for s in stop if (place := text.find(s)) >= 0]
    return min(found, default=None)
