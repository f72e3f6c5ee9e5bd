"""Colours, lines and files that all plots share."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..utils.files import write_whole

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SUFFIXES = ('.png', '.svg')
# The colours of Okabe and Ito, for any kind of colour vision. Yellow comes last,
# because it is faint on white.
COLORS = (
    *('#0072B2', '#D55E00', '#009E73', '#CC79A7'),
    *('#E69F00', '#56B4E9', '#000000', '#F0E442'),
)
LINES = ('-', '--', '-.', ':')
MARKERS = 'os^DvPX'
# colour, line and marker of each line in figure eq6
SIDE_STYLES = (('#000000', '-', 'o'), ('#0072B2', '--', 's'), ('#D55E00', ':', '^'))


def line_style(index: int) -> dict[str, Any]:
    """Return Matplotlib's options for the line of the training of that index."""
    return dict(
        color=COLORS[index % len(COLORS)],
        linestyle=LINES[index % len(LINES)],
        marker=MARKERS[index % len(MARKERS)],
        markersize=4,
    )


def figure_path(text: str) -> Path:
    """Return the path of a figure to write; a type for argparse.

    Raises:
        argparse.ArgumentTypeError: If it does not end in .png or .svg.
    """
    path = Path(text)
    if path.suffix not in SUFFIXES:
        raise argparse.ArgumentTypeError(f'{path} must end in {" or ".join(SUFFIXES)}')
    return path


def save_figure(figure: 'Figure', path: Path) -> None:
    """Write a figure as PNG or SVG. The same figure gives the same bytes.

    Args:
        figure: The figure.
        path: The file. Its folder is made if it does not exist.
    """
    import matplotlib

    with matplotlib.rc_context({'svg.hashsalt': 'pws_mmdet'}):
        kind = path.suffix[1:]
        metadata = {'Date': None} if kind == 'svg' else None
        write_whole(
            path,
            lambda part: figure.savefig(part, format=kind, dpi=150, metadata=metadata),
        )
