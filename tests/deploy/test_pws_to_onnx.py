"""The command line of pws_to_onnx.py, and its errors."""

import re
import sys
from pathlib import Path

import pytest
import torch
from small_detectors import (
    assert_onnx_detects_the_same,
    images_of,
    mask_rcnn_config,
    needs_onnx,
    onnx_session,
    small_config,
    ssd_config,
    write,
)


@pytest.fixture(scope='module')
def program(load_program):
    return load_program('tools/deployment/pws_to_onnx.py')


@needs_onnx
@pytest.mark.slow
@pytest.mark.parametrize(
    'make', [small_config, mask_rcnn_config], ids=['retinanet', 'mask_rcnn']
)
def test_fpn_detectors(make, run, root, tmp_path, digits):
    """The program checks one image; the file also works for batches and other sizes."""
    config, checkpoint, model = write(make(), tmp_path)
    image = next(Path(digits).rglob('*.[jp][pn]g'))
    process = run(
        *(sys.executable, root / 'tools/deployment/pws_to_onnx.py'),
        *(config, checkpoint, 'out.onnx', '--image', image),
    )
    assert re.search('agree in [1-9][0-9]* detections', process.stdout)
    assert ('masks' in process.stdout) == (make is mask_rcnn_config)
    session = onnx_session(tmp_path / 'out.onnx')
    for size in ((96, 96), (61, 150), (180, 96)):
        batch = images_of(digits, size)
        for some in (batch[:1], batch[:3]):
            assert_onnx_detects_the_same(session, model, some)


@needs_onnx
@pytest.mark.parametrize(
    'change, out, options, message',
    [
        (None, 'out.pth', (), 'OUT must end in .onnx'),
        (None, 'mine.onnx', (), 'mine.onnx exists: move it away'),
        (None, 'out.onnx', ('--shape', '0', '96'), '--shape must be from 1 to 32768'),
        (None, 'out.onnx', ('--image', 'no.jpg'), 'There is no image no.jpg'),
        (lambda w: w.clear(), 'out.onnx', (), 'holds no weights'),
        (
            lambda w: w.pop('backbone.conv6.conv.bias'),
            'out.onnx',
            (),
            'the weights do not fit the network: they lack backbone.conv6.conv.bias',
        ),
        (
            lambda w: w.update(more=torch.ones(1)),
            'out.onnx',
            (),
            'the weights do not fit the network: the network has no more$',
        ),
        (
            lambda w: w.update({'backbone.features.0.conv.alpha': torch.ones(3)}),
            'out.onnx',
            (),
            'the weights do not fit the network: ',
        ),
        (
            lambda w: next(iter(w.values())).fill_(torch.nan),
            'out.onnx',
            (),
            'has NaN or infinity in backbone',
        ),
        (
            lambda w: [w.pop(k) for k in list(w) if k.endswith('.alpha')],
            'out.onnx',
            (),
            'epoch_1.pth: these are the weights of a network of plain',
        ),
        (None, 'mine.onnx/out.onnx', (), 'mine.onnx is no folder'),
    ],
    ids='suffix exists shape image empty less more shapes nan kind parent'.split(),
)
def test_bad_input(
    change, out, options, message, program, tmp_path, monkeypatch, capsys
):
    config, checkpoint, model = write(ssd_config(), tmp_path)
    if change is not None:
        weights = model.state_dict()
        change(weights)
        torch.save(dict(state_dict=weights), checkpoint)
    (tmp_path / 'mine.onnx').write_text('mine')
    before = sorted(tmp_path.iterdir())
    arguments = (config, checkpoint, tmp_path / out, *options)
    error = error_of(program, monkeypatch, capsys, *arguments)
    assert re.search(message, error), error
    assert sorted(tmp_path.iterdir()) == before
    assert (tmp_path / 'mine.onnx').read_text() == 'mine'


def error_of(program, monkeypatch, capsys, *arguments):
    monkeypatch.setattr(sys, 'argv', ['pws_to_onnx.py', *map(str, arguments)])
    with pytest.raises(SystemExit) as stop:
        program.main()
    assert stop.value.code == 2
    return ' '.join(capsys.readouterr().err.split())


@pytest.mark.parametrize('name', ['onnx', 'onnxscript', 'onnxruntime'])
def test_a_missing_package_is_named_first(name, program, tmp_path, monkeypatch, capsys):
    for other in ('onnx', 'onnxscript', 'onnxruntime'):
        monkeypatch.setitem(sys.modules, other, sys)  # any module will do
    monkeypatch.setitem(sys.modules, name, None)
    error = error_of(program, monkeypatch, capsys, 'no.py', 'no.pth', 'out.onnx')
    assert f'importing {name} failed' in error
    assert "pip install -e '.[onnx]'" in error


@pytest.mark.slow
def test_a_torch_that_is_too_old_is_named_first(
    run, program, tmp_path, monkeypatch, capsys
):
    code = (
        'import torch, pws_mmdet\n'
        'del torch.library.custom_op\n'
        'import pws_mmdet.deploy\n'
    )
    process = run(sys.executable, '-W', 'ignore', '-c', code, check=False)
    last = process.stdout.splitlines()[-1]
    assert last.startswith('ImportError: pws_mmdet.deploy needs torch>=2.4')
    monkeypatch.setattr(torch, '__version__', '2.1.2+cu121')
    error = error_of(program, monkeypatch, capsys, 'no.py', 'no.pth', 'out.onnx')
    assert error.endswith('The export needs torch>=2.7, not 2.1.2+cu121')
