"""Numbers for records."""

import math
from typing import Any


def round_numbers(value: Any, digits: int = 5) -> Any:
    """Round the numbers of a record; None stands for what is not finite.

    JSON has no NaN.
    """
    if isinstance(value, dict):
        return {key: round_numbers(part, digits) for key, part in value.items()}
    if isinstance(value, list):
        return [round_numbers(part, digits) for part in value]
    if isinstance(value, float):
        return float(f'{value:.{digits}g}') if math.isfinite(value) else None
    return value
