"""Warnings about data that MMDetection takes, although they look wrong."""

from ...utils.log import warn


class Oddities:
    """Counts oddities of each kind, and keeps the first case for the warning."""

    def __init__(self) -> None:
        self._found: dict[str, tuple[int, str]] = {}

    def add(self, kind: str, case: str = '') -> None:
        """Count a case.

        Args:
            kind: A sentence for all cases of this kind, with the placeholders
                ``{number}`` and ``{first}``.
            case: The words for ``{first}``, if this case is the first one.
        """
        number, first = self._found.get(kind, (0, case))
        self._found[kind] = number + 1, first

    def __str__(self) -> str:
        return ' '.join(
            kind.format(number=number, first=first)
            for kind, (number, first) in self._found.items()
        )

    def warn(self, source: str) -> None:
        """Log one warning with all sentences, if there are any.

        Args:
            source: The file that the cases are from.
        """
        if self._found:
            warn(f'{source}: {self}')
