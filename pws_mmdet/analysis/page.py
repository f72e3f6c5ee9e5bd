"""The parts of a report's page as HTML: its style, legend, tables and images."""

import base64
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import NamedTuple

import cv2

from .charts import FONT, INK, plotly_script, run_style

IMAGE_SIDE = 640  # pixels
# What the JavaScript of plotly calls a dash, as SVG: lengths of strokes and gaps
STROKES = {'solid': '', 'dash': '7 4', 'dashdot': '7 3 2 3', 'dot': '2 3'}
STYLE = (
    f"""
* {{ box-sizing: border-box; }}
body {{ font: 16px/1.55 {FONT}; color: {INK}; background: #fff; max-width: 1160px;
  margin: 0 auto; padding: 0 1rem 4rem; overflow-wrap: break-word; }}
h1 {{ font-size: clamp(1.35rem, 1rem + 2vw, 1.9rem); line-height: 1.25;
  margin: 1.5rem 0 1rem; }}
h2 {{ font-size: 1.4rem; margin: 3rem 0 .5rem; padding-top: .8rem;
  border-top: 2px solid {INK}; }}
h3 {{ font-size: 1.05rem; margin: 2rem 0 .25rem; }}
p {{ margin: .4rem 0; max-width: 75ch; }}
"""
    + """
section { min-width: 0; }
.note, .missing, figcaption, small, footer { color: #4a545e; font-size: .875rem; }
.bad { color: #9a2f00; font-weight: 600; }
.legend { position: sticky; top: 0; z-index: 9; display: flex; flex-wrap: wrap;
  gap: 0 1rem; max-height: 30vh; overflow-y: auto; padding: .4rem 0; background: #fff;
  border-bottom: 1px solid #d0d7de; }
.legend button { font: inherit; color: inherit; background: none; border: 0;
  padding: .15rem .3rem .15rem 0; cursor: pointer; overflow-wrap: anywhere;
  text-align: left; }
.legend button[aria-pressed=false] { opacity: .4; text-decoration: line-through; }
.swatch { vertical-align: middle; margin-right: .4rem; flex: none; }
.cards { display: grid; gap: 1rem; margin: 1rem 0 1.5rem;
  grid-template-columns: repeat(auto-fit, minmax(min(100%, 250px), 1fr)); }
.card { border: 1px solid #d0d7de; border-radius: 8px; padding: .9rem 1.1rem;
  min-width: 0; }
.card:only-child { max-width: 30rem; }
.card h3 { margin: 0 0 .5rem; overflow-wrap: anywhere; }
.card dl { display: flex; flex-wrap: wrap; gap: .5rem 2.2rem; margin: 0 0 .4rem; }
.card dd { margin: 0; font-size: 2.6rem; font-weight: 650; line-height: 1.1; }
.card dd small { font-size: 1rem; font-weight: 400; }
.card p { margin: .2rem 0 0; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; margin: .5rem 0;
  font-variant-numeric: tabular-nums; }
th, td { padding: .3rem .9rem .3rem 0; border-bottom: 1px solid #d0d7de;
  text-align: left; vertical-align: top; }
thead th { border-bottom: 2px solid #8c959f; vertical-align: bottom; }
tbody th { font-weight: 400; white-space: nowrap; }
tbody tr.main > * { font-weight: 650; }
td small { white-space: nowrap; font-weight: 400; }
.settings td { overflow-wrap: anywhere; min-width: 8rem; max-width: 26rem; }
.pair { display: grid; gap: 0 2rem; }
.pair > * { min-width: 0; }
.images { display: grid; gap: 1rem; margin: 1rem 0;
  grid-template-columns: repeat(auto-fill, minmax(min(100%, 340px), 1fr)); }
figure { margin: 0; min-width: 0; }
figure img { display: block; width: 100%; height: auto; }
figcaption { overflow-wrap: anywhere; }
code, pre { font: .875rem/1.5 ui-monospace, "DejaVu Sans Mono", monospace; }
code { overflow-wrap: anywhere; }
pre { overflow: auto; max-height: 30rem; padding: .8rem; background: #f6f8fa; }
summary { cursor: pointer; padding: .3rem 0; }
footer { margin-top: 3rem; }
@media (min-width: 720px) {
  .pair { grid-template-columns: 1fr 1fr; }
  .images.of-2 { grid-template-columns: repeat(2, 1fr); }
  .images.of-3 { grid-template-columns: repeat(3, 1fr); }
}
"""
)
# A click on the legend hides a training in all charts, or shows it again.
SCRIPT = """
document.querySelectorAll('.legend button').forEach(button => {
  button.addEventListener('click', () => {
    const shown = button.getAttribute('aria-pressed') === 'false';
    button.setAttribute('aria-pressed', shown);
    document.querySelectorAll('.js-plotly-plot').forEach(chart => {
      const traces = [...chart.data.keys()].filter(
        i => chart.data[i].meta === Number(button.dataset.run));
      if (traces.length) Plotly.restyle(chart, {visible: shown}, traces);
    });
  });
});
"""


class Section(NamedTuple):
    """A section of the page.

    Args:
        heading: Its heading, HTML.
        parts: What comes below, HTML.
    """

    heading: str
    parts: Sequence[str]


def render_page(title: str, labels: Sequence[str], sections: Sequence[Section]) -> str:
    """Return a page that loads nothing from elsewhere.

    Args:
        title: Its title, text.
        labels: The labels of the trainings, in the order of their colours. Several
            get a legend, which stays in sight.
        sections: Its sections.
    """
    body = '\n'.join(
        f'<section><h2>{heading}</h2>\n{"".join(parts)}</section>'
        for heading, parts in sections
    )
    legend = _legend(labels) if len(labels) > 1 else ''
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<title>{escape(title)}</title>\n<style>{STYLE}</style>\n'
        f'<script>{plotly_script()}</script></head>\n'
        f'<body><h1>{escape(title)}</h1>\n{legend}{body}\n'
        f'<script>{SCRIPT}</script></body></html>\n'
    )


def paragraph(text: str, kind: str = '') -> str:
    """Return a text as a paragraph of a class."""
    return f'<p{_class(kind)}>{escape(text)}</p>\n'


def table(
    head: Sequence[str],
    rows: Sequence[Sequence[str]],
    kind: str = '',
    bold: Sequence[int] = (),
) -> str:
    """Return a table.

    Args:
        head: Its first row, HTML.
        rows: The others, HTML. The first cell names the row.
        kind: The class of the table.
        bold: The positions of the rows that matter most.
    """
    top = ''.join(f'<th scope="col">{cell}</th>' for cell in head)
    body = '\n'.join(
        f'<tr{_class("main" if i in bold else "")}><th scope="row">{first}</th>'
        f'{"".join(f"<td>{cell}</td>" for cell in cells)}</tr>'
        for i, (first, *cells) in enumerate(rows)
    )
    return (
        f'<div class="scroll"><table{_class(kind)}><thead><tr>{top}</tr></thead>\n'
        f'<tbody>{body}</tbody></table></div>\n'
    )


def details(summary: str, text: str) -> str:
    """Return a text that a click opens."""
    return (
        f'<details><summary>{escape(summary)}</summary>'
        f'<pre>{escape(text)}</pre></details>\n'
    )


def swatch(index: int) -> str:
    """Return a piece of the line of the training of that index."""
    color, dash = run_style(index)
    return (
        '<svg class="swatch" width="28" height="10" aria-hidden="true"><line x1="0" '
        f'y1="5" x2="28" y2="5" stroke="{color}" stroke-width="3" '
        f'stroke-dasharray="{STROKES[dash]}"/></svg>'
    )


def image(path: Path, caption: str) -> str:
    """Return an image with its longer side at most IMAGE_SIDE pixels.

    Args:
        path: The image.
        caption: Its caption, HTML.

    Raises:
        ValueError: If the file is no image.
    """
    pixels = cv2.imread(str(path))
    if pixels is None:
        raise ValueError(f'{path} is no image')
    scale = IMAGE_SIDE / max(pixels.shape[:2])
    if scale < 1:
        size = [max(1, round(scale * side)) for side in pixels.shape[1::-1]]
        pixels = cv2.resize(pixels, size, interpolation=cv2.INTER_AREA)
    _, jpeg = cv2.imencode('.jpg', pixels, [cv2.IMWRITE_JPEG_QUALITY, 85])
    data = base64.b64encode(jpeg.tobytes()).decode()
    return (
        f'<figure><img src="data:image/jpeg;base64,{data}" alt="{escape(path.name)}" '
        f'width="{pixels.shape[1]}" height="{pixels.shape[0]}">'
        f'<figcaption>{caption}</figcaption></figure>'
    )


def _legend(labels: Sequence[str]) -> str:
    buttons = ''.join(
        f'<button type="button" data-run="{i}" aria-pressed="true" '
        f'title="Hide or show in all charts">{swatch(i)}{escape(label)}</button>'
        for i, label in enumerate(labels)
    )
    return f'<nav class="legend" aria-label="Trainings">{buttons}</nav>\n'


def _class(kind: str) -> str:
    return f' class="{kind}"' if kind else ''
