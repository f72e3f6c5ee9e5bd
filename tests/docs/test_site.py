"""The documentation as a reader sees it: in a browser, without a network."""

import functools
import importlib
import subprocess
import sys
import threading
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

import pytest
from conftest import ROOT
from devtools import find_browser, opened_tab

for module in ('latex2mathml', 'material', 'mkdocs', 'mkdocstrings', 'nbconvert'):
    pytest.importorskip(module, reason='the extra `docs` is not installed')

pytestmark = pytest.mark.slow

# What is wrong with the page that is open, as a list of sentences
FIND_FAULTS = r"""(() => {
    const faults = [];
    const all = selector => [...document.querySelectorAll(selector)];
    if (all('h1').length !== 1) faults.push(all('h1').length + ' titles');
    for (const image of all('article img'))
        if (!image.complete || !image.naturalWidth) faults.push('lacks ' + image.src);
    for (const equation of all('.equation')) {
        const box = equation.querySelector('math')?.getBoundingClientRect();
        if (!box || box.width < 5 || box.height < 5)
            faults.push('does not draw ' + equation.textContent);
    }
    const article = document.querySelector('article').cloneNode(true);
    for (const code of article.querySelectorAll('code, pre, annotation')) code.remove();
    const source = /\$[^$\n]+\$|\\[a-z]+\b|:\w+:`|``/g;
    for (const raw of article.textContent.match(source) ?? [])
        faults.push('shows the source ' + raw);
    const excess = document.documentElement.scrollWidth - innerWidth;
    if (excess > 0) faults.push(excess + ' pixels too wide');
    return faults;
})()"""


@pytest.fixture(scope='module')
def site(tmp_path_factory):
    """Build the site, strictly; return its folder."""
    folder = tmp_path_factory.mktemp('site')
    command = [sys.executable, '-m', 'mkdocs', 'build', '--strict', '-d', str(folder)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return folder


class QuietHandler(SimpleHTTPRequestHandler):
    def log_message(self, *args):
        pass


@pytest.fixture(scope='module')
def tab(site, tmp_path_factory):
    """A tab of a browser, and the address of the site."""
    browser = find_browser()
    if browser is None:
        pytest.skip('Chromium is not installed')
    handler = functools.partial(QuietHandler, directory=site)
    server = ThreadingHTTPServer(('127.0.0.1', 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    with opened_tab(browser, tmp_path_factory.mktemp('profile')) as tab:
        yield tab, f'http://127.0.0.1:{server.server_port}/'
    server.shutdown()
    server.server_close()


def test_pages_are_drawn_and_load_nothing_from_elsewhere(site, tab):
    tab, address = tab
    pages = [path.relative_to(site).parent for path in site.rglob('index.html')]
    assert len(pages) > 25
    faults, equations, images = [], 0, 0
    for page in sorted(pages):
        url = f'{address}{page}/'.replace('/./', '/')
        tab.resize(1280, 900)
        tab.open(url)
        assert tab.run('location.href') == url
        faults += [f'{page}: {fault}' for fault in tab.run(FIND_FAULTS)]
        tab.resize(390, 844)
        faults += [f'{page}, on a phone: {fault}' for fault in tab.run(FIND_FAULTS)]
        equations += tab.run("document.querySelectorAll('.equation math').length")
        images += tab.run("document.querySelectorAll('article img').length")
        faults += [f'{page}: {c}' for c in [*tab.complaints, *tab.failures]]
        tab.complaints.clear()
        tab.failures.clear()
    tab.open(address, 'networkIdle')  # scripts may load something later
    faults += [*tab.complaints, *tab.failures]
    assert not faults, '\n'.join(faults)
    assert equations > 12 and images > 10
    local = (address, 'data:', 'blob:', 'about:')
    assert [u for u in tab.requests if not u.startswith(local)] == []


def test_the_search_finds_a_name_of_the_api(tab):
    tab, address = tab
    tab.open(f'{address}?q=VarianceMonitorHook')
    found = """new Promise(resolve => {
        const look = () => {
            const first = document.querySelector('.md-search-result__item');
            first ? resolve(first.textContent) : setTimeout(look, 50);
        };
        look();
    })"""
    assert 'VarianceMonitorHook' in tab.run(found)


def test_every_public_name_is_on_the_page_of_the_api(site):
    page = (site / 'api/index.html').read_text()
    rooms = [path.parent.name for path in ROOT.glob('pws_mmdet/*/__init__.py')]
    missing = []
    for room in {*rooms} - {'pretrain', 'utils'}:  # mmpretrain may be missing
        module = importlib.import_module(f'pws_mmdet.{room}')
        names = (f'pws_mmdet.{room}.{name}' for name in module.__all__)
        missing += [name for name in names if f'id="{name}"' not in page]
    assert not missing
