"""Show how far long work is, and how long the rest takes."""

from typing import Any

from tqdm import tqdm


def progress_bar(*args: Any, **kwargs: Any) -> tqdm:
    """Return tqdm's bar, on stderr. It shows nothing where stderr is no terminal.

    Args:
        *args, **kwargs: As of ``tqdm``.
    """
    return tqdm(*args, **{'disable': None, 'leave': False, **kwargs})
