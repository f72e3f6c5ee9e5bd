"""Show how far long work is, and how long the rest takes."""

from typing import Any

from tqdm import tqdm


def progress_bar(*args: Any, **kwargs: Any) -> tqdm:
    """Return tqdm's bar, on stderr. It shows nothing where stderr is no terminal.

    Args:
        *args, **kwargs: As of ``tqdm``.
    """
    return tqdm(*args, **{'disable': None, 'leave': False, **kwargs})


def stage_bar(stage: str, count: int) -> tqdm:
    """Return a bar of stages that differ so much that no rest can be estimated.

    Args:
        stage: What the first stage does.
        count: The number of stages.
    """
    text = '{desc} (step {n_fmt} of {total_fmt}), {elapsed} so far'
    return progress_bar(desc=stage, initial=1, total=count, bar_format=text)


def next_stage(bar: tqdm, stage: str) -> None:
    """Show that the next stage of a ``stage_bar`` begins.

    Args:
        bar: The bar.
        stage: What the stage does.
    """
    bar.update()
    bar.set_description_str(stage)
