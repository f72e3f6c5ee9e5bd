"""The text of a config that a checkpoint carries is never executed."""

import runpy
import shutil
import sys

import mmengine.config
import mmengine.runner
import pytest
import torch
from conftest import ROOT
from mmdet.apis import init_detector
from mmengine.config import Config

SSD = ROOT / 'configs/mini/ssd96_vgg16_pws_digits.py'


@pytest.fixture
def program(monkeypatch, tmp_path):
    """Return a function that runs a program in this process.

    It returns the exit status. An exception of the program is raised.
    """
    for module, name in ((mmengine.runner, 'Runner'), (mmengine.config, 'DictAction')):
        monkeypatch.setattr(module, name, getattr(module, name))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv('LOCAL_RANK', '0')

    def run(path, *args):
        monkeypatch.setattr(sys, 'argv', [path, *map(str, args)])
        try:
            runpy.run_path(str(ROOT / 'tools' / path), run_name='__main__')
        except SystemExit as stop:
            return stop.code or 0
        return 0

    return run


@pytest.fixture
def config(digits, tmp_path):
    """Write the config of a training of a few steps, and return its path."""
    path = tmp_path / 'config.py'
    path.write_text(
        f'_base_ = {str(SSD)!r}\n'
        f'data = dict(num_workers=0, persistent_workers=False,\n'
        f'    dataset=dict(data_root="{digits}/"))\n'
        f'train_dataloader = dict(batch_size=6, **data)\n'
        f'val_dataloader = test_dataloader = data\n'
    )
    cfg = Config.fromfile(path)
    for one in (cfg.val_evaluator, cfg.test_evaluator):
        for metric in one if isinstance(one, list) else [one]:
            if 'ann_file' in metric:
                metric.ann_file = f'{digits}/annotations/instances_val2017.json'
    cfg.train_cfg.update(max_epochs=1, val_interval=9)
    cfg.default_hooks.checkpoint.interval = 1
    cfg.dump(path)
    return path


@pytest.fixture(scope='module')
def trained(tmp_path_factory):
    """Return the path where all tests keep the checkpoint of one training."""
    return tmp_path_factory.mktemp('trained') / 'epoch_1.pth'


@pytest.fixture
def hostile(program, config, trained, tmp_path):
    """Put code into the config texts of a checkpoint.

    Returns the checkpoint, and the file that the code would create.
    """
    work_dir = tmp_path / 'work_dir'
    if not trained.exists():
        assert program('train.py', config, '--work-dir', work_dir) == 0
        shutil.copy(work_dir / 'epoch_1.pth', trained)
    work_dir.mkdir(exist_ok=True)
    witness, checkpoint = tmp_path / 'executed', work_dir / 'epoch_1.pth'
    text = f'open({str(witness)!r}, "w").close()\nmodel = dict()\n'
    Config.fromstring(text, '.py')
    witness.unlink()  # executing the text does create the file

    content = torch.load(trained, weights_only=False)
    assert content['meta']['cfg'] and 'cfg' in content['message_hub']['runtime_info']
    content['meta'].update(cfg=text, config=text)
    content['message_hub']['runtime_info'].update(cfg=text)
    content['cfg'] = content['config'] = text
    torch.save(content, checkpoint)
    (work_dir / 'last_checkpoint').write_text(str(checkpoint))
    return checkpoint, witness


@pytest.mark.slow
@pytest.mark.parametrize('named', [True, False], ids=['named', 'latest'])
def test_resuming_runs_no_code(program, config, hostile, named):
    checkpoint, witness = hostile
    resume = ['--resume', *[checkpoint] * named, '--work-dir', checkpoint.parent]
    options = ['--cfg-options', 'train_cfg.max_epochs=2']
    assert program('train.py', config, *resume, *options) == 0
    assert (checkpoint.parent / 'epoch_2.pth').is_file()
    assert not witness.exists()


PROGRAMS = {
    'test.py': (['CONFIG', 'IN'], 0),
    'model_converters/fuse_pws.py': (['CONFIG', 'IN', 'fused'], 0),
    'model_converters/publish_backbone.py': (['IN', 'x.pth'], 0),
    'deployment/pws_to_onnx.py': (['CONFIG', 'IN', 'x.onnx'], 0),
    # These two read the checkpoint and then refuse its weights.
    'model_converters/bn_to_pws.py': (['CONFIG', 'IN', 'x.pth'], 2),
    'model_converters/official_to_pws.py': (['IN', 'x.pth'], 2),
}


@pytest.mark.slow
@pytest.mark.parametrize('path', PROGRAMS)
def test_programs_run_no_code(program, config, hostile, path, capsys):
    checkpoint, witness = hostile
    args, status = PROGRAMS[path]
    values = dict(CONFIG=config, IN=checkpoint)
    assert program(path, *(values.get(arg, arg) for arg in args)) == status
    assert not status or 'epoch_1.pth' in capsys.readouterr().err
    assert not witness.exists()


@pytest.mark.slow
def test_init_detector_runs_no_code(config, hostile):
    checkpoint, witness = hostile
    init_detector(str(config), str(checkpoint), device='cpu')
    assert not witness.exists()
