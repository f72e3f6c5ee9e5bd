"""Versions of the host libraries, and what differs between them."""

import ast
import importlib
import sys
import types
from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from torch.utils.checkpoint import checkpoint

from pws_mmdet import compat
from pws_mmdet.checkpoint.unpickle import ATTRIBUTES
from pws_mmdet.version import MINIMUM_VERSIONS


class TestVersions:
    def test_the_installed_versions_are_accepted(self):
        compat.check_versions()

    @pytest.mark.parametrize('name', ['mmengine', 'mmcv', 'mmdet'])
    def test_a_missing_library_is_named(self, monkeypatch, name):
        monkeypatch.setitem(sys.modules, name, None)
        with pytest.raises(ImportError, match=rf'needs {name}>=.*mim install mmcv'):
            compat.check_versions()

    @pytest.mark.parametrize('name', ['torch', 'mmengine', 'mmcv', 'mmdet'])
    def test_a_library_that_is_too_old_is_named(self, monkeypatch, name):
        module = types.SimpleNamespace(__version__='0.1.0')
        monkeypatch.setitem(sys.modules, name, module)
        with pytest.raises(ImportError, match=rf'{name}>=.*0\.1\.0 is installed'):
            compat.check_versions()

    def test_the_oldest_versions_are_accepted(self, monkeypatch):
        for name, minimum in MINIMUM_VERSIONS.items():
            monkeypatch.setattr(f'{name}.__version__', f'{minimum}+cpu')
        compat.check_versions()

    def test_the_later_versions_of_the_forks_are_accepted(self, monkeypatch):
        monkeypatch.setattr('mmcv.__version__', '2.3.6')
        monkeypatch.setattr('mmdet.__version__', '3.5.1')
        monkeypatch.setattr('mmengine.__version__', '0.10.12')
        compat.check_versions()

    def test_an_mmcv_without_operators_is_refused(self, monkeypatch):
        monkeypatch.setitem(sys.modules, 'mmcv.ops', None)
        with pytest.raises(
            ImportError, match='lacks the compiled operators.*mmcv-lite'
        ):
            compat.check_versions()


def names_in_the_package():
    """Return the private attributes and imports, and the names that are defined."""
    used, defined = set(), set()
    for path in Path(compat.__file__).parent.rglob('*.py'):
        for node in ast.walk(ast.parse(path.read_text(encoding='utf-8'))):
            if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
                defined.add(node.name)
            elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
                defined.add(node.id)
            elif isinstance(node, ast.Attribute):
                stored = isinstance(node.ctx, ast.Store)
                of_self = isinstance(node.value, ast.Name) and node.value.id == 'self'
                (defined if stored and of_self else used).add(node.attr)
            elif isinstance(node, ast.ImportFrom) and not node.level:
                used.update(node.module.split('.'))
                used.update(alias.name for alias in node.names)
    used = {name for name in used if name.startswith('_') and name[:2] != '__'}
    return used, defined


def test_the_list_of_private_names_is_complete():
    used, defined = names_in_the_package()
    listed = {name for names in compat.PRIVATE_NAMES.values() for name in names}
    assert used - defined <= listed, 'PRIVATE_NAMES lacks some'
    in_strings = {n for names in ATTRIBUTES.values() for n in names}
    assert listed <= used | defined | in_strings, 'PRIVATE_NAMES has too many'


class TestOlderTorch:
    def test_tree_leaves(self):
        assert compat.tree_leaves(dict(a=[1, (2, 3)], b=4)) == [1, 2, 3, 4]

    def test_is_compiling(self):
        def network(x):
            return x + 1 if compat.is_compiling() else x

        x = torch.zeros(1)
        assert network(x) == 0
        assert torch.compile(network, backend='eager')(x) == 1

    def test_saves_tensors_by_hooks(self):
        def probe(x):
            probed.append(compat.saves_tensors_by_hooks())
            return x.exp()

        probed, x = [], torch.zeros(1, requires_grad=True)
        probe(x)
        checkpoint(probe, x, use_reentrant=False).backward()
        probe(x)
        assert probed == [False, True, True, False]


@pytest.fixture
def torchvision(tmp_path, monkeypatch):
    """Return a function that replaces torchvision by a package with some code.

    mmpretrain counts as installed.
    """
    for name in [n for n in sys.modules if n.split('.')[0] == 'torchvision']:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, 'mmpretrain', types.ModuleType('mmpretrain'))
    monkeypatch.syspath_prepend(tmp_path)

    def write(text):
        (tmp_path / 'torchvision').mkdir()
        (tmp_path / 'torchvision/__init__.py').write_text(text)
        (tmp_path / 'torchvision/part.py').write_text('')

    yield write
    for name in [n for n in sys.modules if n.split('.')[0] == 'torchvision']:
        del sys.modules[name]


class TestTorchvision:
    def test_one_that_works_is_not_changed(self, torchvision, monkeypatch):
        torchvision('import torchvision.part')
        monkeypatch.setattr(torch.library, 'Library', None)
        compat.allow_broken_torchvision()
        module = sys.modules['torchvision']
        compat.allow_broken_torchvision()
        assert sys.modules['torchvision'] is module

    def test_without_mmpretrain_it_is_not_imported(self, torchvision, monkeypatch):
        torchvision('import torchvision.part')
        monkeypatch.setitem(sys.modules, 'mmpretrain', None)
        compat.allow_broken_torchvision()
        assert 'torchvision' not in sys.modules

    def test_other_errors_are_raised(self, torchvision):
        torchvision("raise RuntimeError('CUDA versions differ')")
        with pytest.raises(RuntimeError, match='CUDA versions differ'):
            compat.allow_broken_torchvision()

    @pytest.mark.skipif(
        not hasattr(torch.library, 'register_fake'),
        reason='what torchvision calls is new in torch 2.4',
    )
    def test_one_without_its_compiled_part_is_imported(
        self, torchvision, run, tmp_path
    ):
        torchvision(
            'import torch, torchvision.part\n'
            'for name in ("nms", "qnms"):\n'
            '    torch.library.register_fake("torchvision::" + name)(lambda *x: x[0])\n'
        )
        (tmp_path / 'mmpretrain.py').write_text('')
        code = (  # in a process of its own, in which no operator is declared yet
            'import sys\n'
            'from pws_mmdet import compat\n'
            'sys.path.insert(0, ".")\n'
            'compat.allow_broken_torchvision()\n'
            'assert "torchvision.part" in sys.modules\n'
        )
        run(sys.executable, '-W', 'ignore', '-c', code)


class TestMmpretrain:
    @pytest.mark.parametrize('name', ['mmpretrain', 'torchvision'])
    def test_a_missing_package_is_named(self, monkeypatch, name):
        for module in ('mmpretrain', 'torchvision'):
            there = None if module == name else types.ModuleType(module)
            monkeypatch.setitem(sys.modules, module, there)
        with pytest.raises(ImportError, match=rf'{name} failed.*install -e .*pretrain'):
            compat.import_mmpretrain()

    def test_reading_a_config_raises_our_error(self, monkeypatch, root):
        """MMEngine replaces the text of an ImportError in custom_imports."""
        monkeypatch.delitem(sys.modules, 'pws_mmdet.pretrain', raising=False)
        monkeypatch.setitem(sys.modules, 'mmpretrain', None)
        with pytest.raises(RuntimeError, match=r'pip install -e .*pretrain'):
            Config.fromfile(root / 'configs/imagenet/resnet50_pws_in1k.py')

    def test_an_installed_mmpretrain_is_imported(self):
        pytest.importorskip('mmpretrain', reason='the extra `pretrain` is missing')
        importlib.import_module('pws_mmdet.pretrain')
        transforms = importlib.import_module('mmpretrain.datasets.transforms')
        assert transforms.RandomCrop
