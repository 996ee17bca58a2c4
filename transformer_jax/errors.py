"""Bad input: one sentence that names the cause and the remedy."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class BadInput(ValueError):
    """The user asked for something that cannot be done; the message says why and what would work.

    The command line prints the message alone and exits with code 2.
    """


def unknown(kind: str, name: str, known: Iterable[str]) -> BadInput:
    """The error for a name that is not there, with the nearest one that is."""
    known = sorted(set(known))
    close = difflib.get_close_matches(str(name), known, n=1)
    hint = f"did you mean {close[0]!r}?" if close else f"choose from {', '.join(known) or 'none'}."
    return BadInput(f"Unknown {kind} {name!r}: {hint}")
