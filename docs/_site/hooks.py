"""Hooks of MkDocs: links out of docs/, names of the API, equations, the notebook.

The pages are Markdown that a repository browser shows, too. So links are relative
paths, equations are between dollar signs, and names of the package are code.
"""

import ast
import html
import logging
import os
import re
from pathlib import Path

from latex2mathml.converter import convert
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

log = logging.getLogger('mkdocs.hooks')  # a warning fails a strict build

ROOT = Path(__file__).resolve().parents[2]
NOTEBOOK = 'tutorial.ipynb'
API_PAGE = 'api.md'
FENCE = re.compile(r'^( *)(```+|~~~+).*?^\1\2 *$', re.MULTILINE | re.DOTALL)
LINK = re.compile(r'(?<!!)\[(?P<text>[^\[\]]+)\]\((?P<target>[^()\s]+)\)')
EQUATION = re.compile(
    r'<(span|div) class="arithmatex">\\[(\[](.*?)\\[)\]]</\1>', re.DOTALL
)
# Headings, links and blocks of code, in which a name does not become a link
LEFT_ALONE = re.compile(r'(<(a|h[1-6]|pre)\b.*?</\2>)', re.DOTALL)
# `NAME`, `NAME(arguments)` and `pws_mmdet.MODULE.NAME`
CODE = re.compile(r'<code>(?:pws_mmdet\.(?:\w+\.)*)?(\w+)(?:\([^<]*\))?</code>')


def on_config(config: MkDocsConfig) -> None:
    """Put a link to the repository below each page, if it is known."""
    if not (ROOT / 'docs' / NOTEBOOK).is_file():
        config.nav = [entry for entry in config.nav or [] if 'Tutorial' not in entry]
    if url := repository():
        config.extra['social'] = [
            dict(icon='fontawesome/brands/git-alt', link=url, name='Source code')
        ]


def repository() -> str | None:
    """Return the URL of the repository, which GitHub Actions knows."""
    server, name = (os.environ.get(f'GITHUB_{k}') for k in ('SERVER_URL', 'REPOSITORY'))
    return f'{server}/{name}' if server and name else None


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Make a page of the notebook. It is not executed."""
    notebook = files.get_file_from_path(NOTEBOOK)
    if notebook is not None:
        from nbconvert import MarkdownExporter

        text, resources = MarkdownExporter().from_filename(notebook.abs_src_path)
        images = resources.get('outputs', {})
        for name, content in {'tutorial.md': text, **images}.items():
            files.append(File.generated(config, name, content=content))
    return files


def on_page_markdown(markdown: str, page: Page, **_: object) -> str:
    """Replace links to files that are no part of the site."""
    folder = (ROOT / 'docs' / page.file.src_uri).parent
    parts, end = [], 0
    for fence in FENCE.finditer(markdown):
        parts += [_replace_links(markdown[end : fence.start()], folder), fence[0]]
        end = fence.end()
    return ''.join([*parts, _replace_links(markdown[end:], folder)])


def _replace_links(text: str, folder: Path) -> str:
    return LINK.sub(lambda found: _replace_link(found, folder), text)


def _replace_link(found: re.Match, folder: Path) -> str:
    text, (target, mark, anchor) = found['text'], found['target'].partition('#')
    if not target or ':' in target:
        return found[0]
    if target == NOTEBOOK:
        return f'[{text}](tutorial.md{mark}{anchor})'
    path = Path(os.path.normpath(folder / target))
    in_site = path.is_relative_to(ROOT / 'docs') and not path.is_dir()
    if in_site:  # MkDocs checks that it exists.
        return found[0]
    if not path.is_relative_to(ROOT) or not path.exists():
        log.warning(f"{folder}: there is no {target}, to which '{text}' links")
    name = path.relative_to(ROOT).as_posix()
    if url := repository():
        kind = 'tree' if path.is_dir() else 'blob'
        commit = os.environ.get('GITHUB_SHA', 'HEAD')
        return f'[{text}]({url}/{kind}/{commit}/{name}{mark}{anchor})'
    named = text.strip('`') in name
    return f'`{name}`' if named else f'{text} (`{name}`)'


def on_page_content(content: str, page: Page, **_: object) -> str:
    """Draw equations, and link names of the package to the API."""
    content = EQUATION.sub(lambda found: _draw(found, page), content)
    # re.split returns the text before a match and its two groups, in turns.
    parts = LEFT_ALONE.split(content)
    texts = [CODE.sub(_link_name, text) for text in parts[::3]]
    kept = [*parts[1::3], '']
    return ''.join(part for pair in zip(texts, kept, strict=True) for part in pair)


def _draw(found: re.Match, page: Page) -> str:
    """Make MathML, which browsers draw without a script, of an equation."""
    display = 'inline' if found[1] == 'span' else 'block'
    drawn = convert(html.unescape(found[2]).strip(), display=display)
    if '\\' in re.sub(r'<annotation.*?</annotation>', '', drawn):
        log.warning(f'{page.file.src_uri}: no MathML for {found[2]}')
    return f'<{found[1]} class="equation">{drawn}</{found[1]}>'


def _link_name(found: re.Match) -> str:
    room = API.get(found[1])
    if room is None:
        return found[0]
    # mkdocs-autorefs turns it into a link, and warns if there is no such anchor.
    return f'<autoref identifier="{room}.{found[1]}">{found[0]}</autoref>'


def _public_names() -> dict[str, str]:
    """Return the modules that ``api.md`` documents, by the names in their __all__."""
    rooms = re.findall(r'^::: (\S+)', (ROOT / 'docs' / API_PAGE).read_text(), re.M)
    found = {}
    for room in rooms:
        source = ROOT.joinpath(*room.split('.'), '__init__.py').read_text()
        for node in ast.parse(source).body:
            if (
                isinstance(node, ast.Assign)
                and ast.unparse(node.targets[0]) == '__all__'
            ):
                found |= dict.fromkeys(ast.literal_eval(node.value), room)
    return found


API = _public_names()
