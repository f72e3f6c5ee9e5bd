import base64
import json
import math
import re
import shutil
import subprocess
from html.parser import HTMLParser

import cv2
import numpy as np
import pytest
from variance_data import NAMES, write_record

pytest.importorskip('plotly', reason='the extra `report` is not installed')

from pws_mmdet.analysis.report import write_report  # noqa: E402

NAN = math.nan
MAP = 'coco/bbox_mAP'
MASK_MAP = 'coco/segm_mAP'
FIGURES = ('1b', '1a', 'eq6', '2a', '2b', 'layers')
CHARTS = ('validation', 'loss', 'lr', *FIGURES)


def write_log(work_dir, *entries, name='20260101_000000'):
    path = work_dir / name / 'vis_data' / 'scalars.json'
    path.parent.mkdir(parents=True)
    path.write_text(''.join(json.dumps(entry) + '\n' for entry in entries))


def train(step, loss=2.0, lr=0.1):
    return dict(lr=lr, loss=loss, time=0.5, epoch=1, iter=step, step=step)


def val(epoch, **metrics):
    return dict(metrics, time=0.1, step=epoch)


@pytest.fixture
def work_dirs(tmp_path):
    """A training that finished and one that diverged, both with variance records."""
    pws, normal = tmp_path / 'PWS', tmp_path / 'Normal'
    write_log(
        pws,
        train(10, 3.0, 0.01),
        train(20, 2.0),
        val(1, **{f'{MAP}_s': -1.0, MAP: 0.2}),
        train(30, 1.5),
        val(2, **{f'{MAP}_s': -1.0, MAP: 0.31, 'box/f_measure': 0.4}),
    )
    write_log(normal, train(10, 50.0), train(20, NAN), train(30, NAN))
    shift = np.array([[1], [2], [3], [4]]) * [1, 2, 3, 4]
    write_record(pws, (1, 10, 20, 30), shift=1e-9 * shift, var_w_min=shift / 10)
    write_record(
        normal,
        (1, 10, 20),
        shift=[[1, 10, 100, 1000], [2, 20, 200, 2000], [NAN] * 4],
        var_w_min=0.5,
        var_ratio_max=1.25,
    )
    return pws, normal


class Page(HTMLParser):
    """The text, headings, rows, figures and images of a page, and what it loads."""

    def __init__(self, html):
        super().__init__()
        self.loads, self.text, self.headings, self.tags = [], '', [], []
        self.rows = {}  # the cells of each row by its first cell
        self.images = re.findall('data:image/jpeg;base64,([^"]*)"', html)
        self.legend = re.findall('data-run="(.)".*?</svg>(.*?)</button>', html)
        self.figures = {}
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        if tag not in ('img', 'line', 'meta', 'br'):
            self.tags.append(tag)
        if tag == 'tr':
            self.cells = []
        if tag in ('td', 'th'):
            self.cells.append('')
        self.loads += [attrs[key] for key in ('src', 'href', 'data') if key in attrs]

    def handle_endtag(self, tag):
        if tag != 'line':
            self.tags.remove(tag)
        if tag == 'tr':
            first, *others = self.cells
            self.rows[first] = others

    def handle_data(self, data):
        if 'script' in self.tags:
            found = re.search(r'Plotly\.newPlot\(\s*"figure-(\w+)",\s*', data)
            if found:
                decode = json.JSONDecoder().raw_decode
                traces, end = decode(data, found.end())
                layout, _ = decode(data, re.compile(r',\s*').match(data, end).end())
                self.figures[found[1]] = traces, layout
        elif 'style' not in self.tags:
            self.text += data + '\n'
            if {'td', 'th'} & {*self.tags}:
                self.cells[-1] += data
            if {'h1', 'h2', 'h3'} & {*self.tags}:
                self.headings.append(data)


@pytest.fixture
def report(tmp_path):
    """Write a report; return the page."""

    def write(*work_dirs, **options):
        path = tmp_path / 'new' / 'report.html'
        write_report(work_dirs, path, **options)
        return Page(path.read_text(encoding='utf-8'))

    return write


def slide(page, figure, position):
    """Return the values that a slider gives the traces of a figure."""
    [slider] = page.figures[figure][1]['sliders']
    return slider['steps'][position]['args'][0]


def test_a_page_loads_nothing_from_elsewhere(report, work_dirs):
    page = report(*work_dirs, title='Plain & PWS')
    assert page.loads == []
    assert page.headings[0] == 'Plain & PWS'
    assert [*page.figures] == list(CHARTS)


def test_a_page_begins_with_the_result_and_ends_with_the_settings(report, work_dirs):
    page = report(*work_dirs)
    assert page.headings[:2] == ['Training report: PWS and Normal', 'Result']
    assert page.headings[-1] == 'Settings'
    order = ['Result', 'Loss and learning rate', 'What happened inside']
    positions = [page.headings.index(heading) for heading in order]
    assert positions == sorted(positions)
    assert len({*page.headings}) == len(page.headings)


def test_loss_and_learning_rate_are_those_of_the_log(report, work_dirs):
    page = report(*work_dirs)
    (pws, normal), layout = page.figures['loss']
    assert (pws['name'], pws['x'], pws['y']) == ('PWS', [10, 20, 30], [3, 2, 1.5])
    assert normal['name'] == 'Normal'
    assert 'Normal (2 values not finite)' in page.text
    assert normal['y'] == [50, None, None]
    assert page.figures['lr'][0][0]['y'] == [0.01, 0.1, 0.1]
    assert 'MMEngine logs the mean of the last iterations' in page.text
    assert 'from the record' not in page.text
    assert 'diverged: loss not finite from step 20' in page.text
    assert page.text.count('diverged') == 1


def test_a_resumed_training_replaces_the_steps_it_repeats(report, tmp_path):
    for name, *steps in (('20260101_000000', 10, 20, 30), ('20260102_000000', 20)):
        write_log(tmp_path / 'run', *map(train, steps), name=name)
    page = report(tmp_path / 'run')
    assert page.figures['loss'][0][0]['x'] == [10, 20]


def test_divergence_is_read_from_console_log(report, work_dirs):
    pws, _ = work_dirs
    console = pws / 'console.log'
    console.write_text('Error: Training diverged at iteration 37: loss is nan.')
    assert 'diverged at iteration 37' in report(pws).text
    console.write_text('Error: Training diverged at iteration 7: loss is nan.')
    assert 'diverged' not in report(pws).text  # a later training came further


def test_a_menu_chooses_the_metric_of_the_validations(report, work_dirs):
    page = report(*work_dirs)
    traces, layout = page.figures['validation']
    assert [(t['name'], t['x'], t['y']) for t in traces] == [
        ('PWS', [1, 2], [20, 31]),
        ('Normal', [], []),
    ]
    [menu] = layout['updatemenus']
    labels = [button['label'] for button in menu['buttons']]
    assert labels == ['box AP', 'box AP, small', 'box F-measure']
    assert menu['buttons'][2]['args'][0]['y'] == [[None, 40], []]


def test_the_table_has_the_difference_to_the_first_training(report, tmp_path):
    found = (0.31, 0.5), (0.3, 0.625), (0.325, -1)
    for name, (box, mask) in zip(('BN', 'PWS', 'GN'), found, strict=True):
        metrics = {MASK_MAP: mask, MAP: box, 'other': box}
        write_log(tmp_path / name, train(10), val(1, **metrics))
    page = report(*(tmp_path / name for name in ('BN', 'PWS', 'GN')))
    assert page.rows['box AP'] == ['31.0', '30.0 −1.0', '32.5 +1.5']
    assert page.rows['mask AP'] == ['50.0', '62.5 +12.5', '–']  # COCO's -1 is no value
    assert page.rows['other'] == ['0.31', '0.3 −0.01', '0.325 +0.015']
    assert [*page.rows][1:4] == ['box AP', 'mask AP', 'other']
    # a single dot would be no curve
    assert 'validation' not in page.figures
    assert 'There is one validation and so no curve.' in page.text


def test_a_single_training_shows_its_best_validation(report, tmp_path):
    entries = [val(i, **{MAP: ap}) for i, ap in enumerate((0.2, 0.4, 0.3), 1)]
    write_log(tmp_path / 'run', train(10), *entries)
    page = report(tmp_path / 'run')
    assert page.headings[0] == 'Training report: run'
    assert 'box AP\n30.0\nafter epoch 3; best box AP 40.0 after epoch 2' in page.text
    assert page.rows['box AP'] == ['30.0', '40.0 epoch 2']
    assert page.legend == []  # there is nothing to tell apart


@pytest.mark.parametrize(
    'metrics, main, others',
    [
        (
            {'pascal_voc/mAP': 0.805, 'pascal_voc/AP50': 0.805},
            ('mAP', '80.5'),
            {'AP50': '80.5'},
        ),
        (
            {'accuracy/top5': 99.5, 'accuracy/top1': 91.25},
            ('top-1 accuracy', '91.2'),
            {'top-5 accuracy': '99.5'},
        ),
        ({'lvis/bbox_AP': 0.25, 'lvis/bbox_APr': 0.125}, ('box AP', '25.0'), {}),
        ({'a/loss': 12.3456, 'b': 1}, ('a/loss', '12.35'), {'b': '1'}),
    ],
)
def test_metrics_of_other_evaluations(report, tmp_path, metrics, main, others):
    entry = dict(lr=0.1, loss=1.0, iter=10, step=10)  # a training of iterations
    write_log(tmp_path / 'run', entry, val(10, **metrics))
    page = report(tmp_path / 'run')
    assert '\n'.join([*main, 'after iteration 10']) in page.text
    for name, value in others.items():
        assert page.rows[name] == [value]


def test_the_last_test_counts_if_there_was_no_validation(report, tmp_path):
    write_log(tmp_path / 'run', train(10, 0.5))
    assert 'loss\n0.500\nnot validated' in report(tmp_path / 'run').text
    for time, ap in (('20260102_000000', 0.3), ('20260103_000000', 0.4)):
        path = tmp_path / f'run/test/{time}/{time}.json'
        path.parent.mkdir(parents=True)
        path.write_text(json.dumps({MAP: ap, 'time': 0.1}))
    (tmp_path / 'run/test/20260103_000000/predictions.json').write_text('[]')
    assert 'box AP\n40.0\ntested' in report(tmp_path / 'run').text


def test_figures_over_layers_slide_through_the_steps(report, work_dirs):
    page = report(*work_dirs)
    traces, layout = page.figures['1b']
    assert [t['x'] for t in traces] == [list(NAMES)] * 2
    assert traces[1]['name'] == 'Normal'
    assert 'Normal (4 values not finite)' in page.text
    # at the first step of 3 or more, a tenth of all, where the warm-up is over
    assert traces[1]['y'] == [2, 20, 200, 2000]
    assert layout['yaxis']['type'] == 'log'
    assert layout['xaxis']['title']['text'] == 'layer'
    assert layout['yaxis']['title']['text'] == 'Var<sub>o</sub>[n E[ΔW<sub>o</sub>]]'
    [slider] = layout['sliders']
    assert [step['label'] for step in slider['steps']] == ['1', '10', '20', '30']
    pws, normal = slide(page, '1b', 1)['y']
    assert np.allclose(pws, [2e-9, 4e-9, 6e-9, 8e-9])
    assert normal == [2, 20, 200, 2000]
    # There are gaps where values are not finite, and after the end of a training.
    assert [slide(page, '1b', i)['y'][1] for i in (2, 3)] == [[None] * 4] * 2
    ends = slide(page, '1a', 0)
    assert ends['y'][1] == [1] * 4
    assert ends['error_y.array'][1] == [0.25] * 4
    assert ends['error_y.arrayminus'][1] == [0] * 4


def test_figures_over_steps_slide_through_the_layers(report, work_dirs):
    page = report(*work_dirs)
    (pws, normal), layout = page.figures['2a']
    [slider] = layout['sliders']
    assert [step['label'] for step in slider['steps']] == list(NAMES)
    assert slider['active'] == 2
    assert 'PWS (γ = 0); Normal (γ = 0)' in page.text
    assert (pws['x'], pws['y']) == ([1, 10, 20, 30], [0.3, 0.6, 0.9, 1.2])
    assert (normal['x'], normal['y']) == ([1, 10, 20], [0.5] * 3)
    assert slide(page, '2a', 3)['y'][0] == [0.4, 0.8, 1.2, 1.6]


def test_figures_eq6_and_layers(report, work_dirs):
    page = report(*work_dirs)
    traces, layout = page.figures['eq6']
    assert 'title' not in layout['xaxis']
    assert layout['xaxis2']['title']['text'] == 'layer'
    names = [trace['name'] for trace in traces]
    assert names == ['measured', 'equation (5)', 'equation (6)'] * 2
    traces, layout = page.figures['layers']
    assert len(traces) == 4
    assert traces[1]['z'][2] == [2, 2.301, None]
    assert traces[1]['customdata'][2] == [100, 200, None]
    assert traces[1]['y'] == list(NAMES)


def test_a_long_record_shows_100_steps(report, tmp_path):
    steps = range(1, 1001, 3)
    write_record(tmp_path / 'run', steps, shift=np.array(steps)[:, None])
    page = report(tmp_path / 'run')
    [slider] = page.figures['1b'][1]['sliders']
    labels = [int(step['label']) for step in slider['steps']]
    assert len(labels) == 100
    assert (labels[0], labels[-1]) == (1, 1000)
    for i in (0, 50, 99):
        assert slide(page, '1b', i)['y'] == [[labels[i]] * 4]
    # There is no log: loss and learning rate are those of the record.
    assert 'Of single iterations, as VarianceMonitorHook recorded it.' in page.text
    assert page.figures['lr'][0][0]['y'][0] == 0.1


def test_a_training_without_a_log_takes_the_loss_from_its_record(
    report, work_dirs, tmp_path
):
    write_record(tmp_path / 'short', (1, 2))
    text = report(*work_dirs, tmp_path / 'short').text
    assert 'of single iterations, from the record: short.' in text


def test_a_training_without_a_record_has_no_figures_of_the_variance(
    report, work_dirs, tmp_path
):
    pws, _ = work_dirs
    write_log(tmp_path / 'plain', train(10))
    page = report(pws, tmp_path / 'plain')
    assert len(page.figures['loss'][0]) == 2
    assert len(page.figures['1b'][0]) == 1
    assert f'{tmp_path / "plain"} holds no record of Variance' in page.text
    page = report(tmp_path / 'plain')
    assert [*page.figures] == ['loss', 'lr']
    assert 'default_hooks.variance.type=VarianceMonitorHook' in page.text


def test_missing_figures_of_different_models_have_a_reason(report, work_dirs, tmp_path):
    pws, _ = work_dirs
    other = tmp_path / 'other'
    write_record(other, (1, 10), ('conv1', 'conv2'), var_y=NAN)
    page = report(pws, other)
    assert [*page.figures] == ['validation', 'loss', 'lr', 'eq6', 'layers']
    assert page.text.count("'other' has no layer of the names of those of 'PWS'") == 4


def test_each_training_has_one_colour(report, work_dirs, tmp_path):
    """Also in the charts that lack the first training, which has no record."""
    write_log(tmp_path / 'first', train(10))
    page = report(tmp_path / 'first', *work_dirs)
    for name in ('loss', '1a', '1b', '2a'):
        for trace in page.figures[name][0]:
            index = ['first', 'PWS', 'Normal'].index(trace['name'])
            assert trace['meta'] == index
            assert trace['line']['color'] == ('#0072B2', '#D55E00', '#009E73')[index]
    assert page.legend == [('0', 'first'), ('1', 'PWS'), ('2', 'Normal')]


def test_settings_are_read_from_the_work_dir(report, work_dirs):
    pws, normal = work_dirs
    (pws / 'ssd_pws.py').write_text("a = 1\nconv = 'PWS'\n")
    (normal / 'ssd.py').write_text('a = 1\nconv = None\n')
    lines = """    CUDA available: {}
{}    PyTorch: 2.9\n    MMEngine: 0.10.7\n    seed: {}\n    GPU number: 2\n"""
    for folder, *values in (
        (pws, True, '    GPU 0,1: NVIDIA H100\n', 0),
        (normal, False, '', 1),
    ):
        (folder / '20260101_000000/20260101_000000.log').write_text(
            lines.format(*values)
        )
    page = report(*work_dirs)
    for name, *values in (
        ('config', 'ssd_pws', 'ssd'),
        ('device', 'NVIDIA H100', 'CPU'),
        ('seed', '0', '1'),
        ('processes', '2', '2'),
        ('PyTorch', '2.9', '2.9'),
        ('MMEngine', '0.10.7', '0.10.7'),
        ('started', '2026-01-01 00:00', '2026-01-01 00:00'),
        ('last logged step', '30', '30'),
        ('time of a step', '0.5 s (median)', '0.5 s (median)'),
        ('watched steps', '4', '3'),
    ):
        assert page.rows[name] == values
    assert "-conv = 'PWS'\n+conv = None" in page.text


def write_image(path, blue, shape=(20, 30)):
    path.parent.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(path), np.full((*shape, 3), (blue, 0, 0), np.uint8))


def blues(page):
    images = [np.frombuffer(base64.b64decode(p), np.uint8) for p in page.images]
    images = [cv2.imdecode(p, cv2.IMREAD_COLOR) for p in images]
    return [round(p[:, :, 0].mean(), -1) for p in images], [p.shape for p in images]


def test_the_last_images_of_detections_are_shown(report, work_dirs, tmp_path):
    pws, _ = work_dirs
    write_image(pws / 'curves.png', 0)  # MMDetection did not draw it
    for step in (90, 100, 110):
        name = f'20260101_000000/vis_data/vis_image/val_img_{step}.png'
        write_image(pws / name, step)
    write_image(pws / 'test/20260102_000000/images/1.jpg', 200, (1280, 640))
    colors, shapes = blues(report(*work_dirs, images=3))
    assert colors == [100, 110, 200]
    assert shapes[-1] == (640, 320, 3)
    page = report(*work_dirs)
    assert len(page.images) == 4
    assert 'Detections' in page.headings
    assert 'There are no images of detections of Normal. ' in page.text
    assert 'CHECKPOINT --work-dir WORK_DIR/test --show-dir images' in page.text
    page = report(pws, images=0)
    assert not page.images and 'no images' not in page.text
    write_image(tmp_path / 'mine/1.png', 250)
    page = report(pws, image_dirs=[tmp_path / 'mine'])
    assert blues(page)[0] == [250]


def test_images_of_several_trainings_are_beside_each_other(report, work_dirs):
    pws, normal = work_dirs
    for i, names in ((1, 'abc'), (100, 'bcd')):
        for k, name in enumerate(names):
            path = work_dirs[i > 1] / f'test/20260102_000000/images/{name}.png'
            write_image(path, i + 20 * k)
    page = report(pws, normal)
    # b of both, c of both
    assert blues(page)[0] == [20, 100, 40, 120]


def test_labels_are_escaped(report, work_dirs):
    label = '</script><b>γ & co'
    page = report(*work_dirs, labels=[label, 'x'])
    assert page.text.count(label) >= 2
    assert 'b' not in page.tags and len(page.figures) == 9


def test_the_same_trainings_give_the_same_file(report, work_dirs, tmp_path):
    contents = set()
    for _ in range(2):
        report(*work_dirs)
        contents.add((tmp_path / 'new/report.html').read_bytes())
    assert len(contents) == 1


@pytest.fixture
def chromium(tmp_path):
    """Open a page in a browser without a window; return a screenshot and its DOM."""
    names = ('chromium', 'chromium-browser', 'google-chrome')
    browser = next(filter(None, map(shutil.which, names)), None)
    if browser is None:
        pytest.skip(f'none of {", ".join(names)} is installed')

    def open_page(path, width):
        # A window cannot be as narrow as a phone, but a frame can.
        frame = path.with_name('frame.html')
        frame.write_text(
            f'<body style="margin: 0"><iframe src="{path.name}" style="border: 0; '
            f'width: {width}px; height: 6000px"></iframe><script>'
            'onmessage = e => document.title = e.data</script></body>'
        )
        shot = tmp_path / 'shot.png'
        command = [
            browser,
            '--headless',
            '--no-sandbox',  # root has to
            '--disable-gpu',
            '--disable-dev-shm-usage',
            f'--user-data-dir={tmp_path / "profile"}',
            '--enable-logging=stderr',
            '--window-size=1440,6000',
            '--virtual-time-budget=5000',
            f'--screenshot={shot}',
            '--dump-dom',
            frame.as_uri(),
        ]
        process = subprocess.run(command, capture_output=True, text=True, timeout=120)
        errors = [line for line in process.stderr.splitlines() if 'CONSOLE' in line]
        assert not errors
        found = json.loads(re.search('<title>(.*?)</title>', process.stdout)[1])
        return cv2.imread(str(shot)).astype(int), found

    return open_page


# What a script in the page finds after the page has loaded
LOOK = """<script>window.addEventListener('load', async () => {
    const look = {};
    const figure = document.getElementById('figure-1b');
    await Plotly.restyle(figure, ...figure.layout.sliders[0].steps[1].args);
    look.shown = figure.data[1].y;
    look.ends = figure.layout.yaxis.range.map(v => 10 ** v);
    const box = name => document.querySelector(name).getBoundingClientRect();
    look.overflow = document.documentElement.scrollWidth - innerWidth;
    look.result = box('.card dd').top;
    look.curve = box('#figure-validation').top;
    look.narrowest = Math.min(...[...document.querySelectorAll('.js-plotly-plot')].map(
        chart => chart.getBoundingClientRect().width));
    look.drawn = [...document.querySelectorAll('.js-plotly-plot')].filter(
        chart => chart.querySelector('.point, .hm')).map(chart => chart.id);
    look.buttons = [...new Set([...document.querySelectorAll('.modebar-btn')].map(
        button => button.dataset.title))];
    document.querySelectorAll('.legend button')[1].click();
    look.hidden = [...document.querySelectorAll('.js-plotly-plot')].filter(
        chart => chart.data.some(t => t.visible === false)).map(chart => chart.id);
    parent.postMessage(JSON.stringify(look), '*');
});</script></body>"""


@pytest.mark.slow
@pytest.mark.parametrize('width', [1440, 390])
def test_a_browser_draws_it(report, work_dirs, tmp_path, chromium, width):
    """On a desktop and on a phone: its charts, its sliders and its legend work."""
    report(*work_dirs, labels=['a-name-without-a-space-' * 3, 'Normal'])
    page = tmp_path / 'new/report.html'
    text = page.read_text(encoding='utf-8')
    page.write_text(text.replace('</body>', LOOK), encoding='utf-8')
    image, look = chromium(page, width)
    # the blue of the first training, and the orange of the second one; BGR
    for color in ((178, 114, 0), (0, 94, 213)):
        assert (np.abs(image - color).max(2) < 20).sum() > 200
    assert look['overflow'] <= 0  # nobody scrolls sideways
    assert look['result'] < min(700, look['curve'])  # on the first screen
    assert look['narrowest'] > 300
    assert look['drawn'] == [f'figure-{name}' for name in CHARTS]
    # nothing is sent, either
    assert look['buttons'] == ['Download plot as a PNG', 'Reset axes']
    assert look['hidden'] == [
        f'figure-{name}' for name in CHARTS if name not in ('eq6', 'layers')
    ]
    low, high = look['ends']
    assert look['shown'] == [2, 20, 200, 2000]
    assert low < 2e-9 and 2000 < high < 1e6
