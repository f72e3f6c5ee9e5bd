"""Tests of tools/unite_sources.py."""

import shutil
from pathlib import Path

import mmcv
import pytest
import torch
from torch.utils import cpp_extension

FOLDER = 'mmcv/ops/csrc/pytorch'


@pytest.fixture
def program(load_program):
    return load_program('tools/unite_sources.py')


@pytest.fixture
def write(tmp_path):
    """Return a function that writes a file of a source tree."""

    def write(name, text):
        path = tmp_path / FOLDER / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        return path

    return write


@pytest.mark.parametrize(
    ('text', 'names'),
    [
        ('int f(int n) { return g(n); }', {'f'}),
        ('int f(int n);', set()),
        ('template <typename T, int N = (2 > 1)>\nT f(T x) { if (x) { y(); } }', {'f'}),
        ('static const int size = 3;', {'size'}),
        ('const int sizes[] = {1, 2};\nint f() {}', {'sizes', 'f'}),
        ('int n = f(1);', {'n'}),
        ('struct A { int inside; };', {'A'}),
        ('enum class E { one, two };', {'E'}),
        ('typedef float real;', {'real'}),
        ('using real = float;\nusing at::Tensor;', {'real'}),
        ('namespace a { namespace { int f() {} } }\nint g() {}', {'f', 'g'}),
        ('extern "C" { int f() {} }', {'f'}),
        ('__global__ void __launch_bounds__(512) f(int n) {}', {'f'}),
        ('// int f() {}\n/* int g() {} */ const char* h = "int i() {";', {'h'}),
        ('#define TWO(x) \\\n  int x() {}\nint f() {}', {'f'}),
        ('void A::f() {}', {'A::f'}),
        ('int f() {}\nint g() {}', {'f', 'g'}),
    ],
)
def test_names_defined_at_file_level_are_found(program, write, text, names):
    assert program.read_source(write('a.cpp', text)).names == names


def units_of(program, write, units, **texts):
    sources = [program.read_source(write(f'{k}.cpp', t)) for k, t in texts.items()]
    return [[s.path.stem for s in g] for g in program.group(sources, units)]


def test_files_with_a_common_name_are_in_different_units(program, write):
    units = units_of(program, write, 2, a='int f() {}', b='int g() {}', c='int f() {}')
    assert len(units) == 2
    assert not any({'a', 'c'} <= set(unit) for unit in units)


def test_clashes_make_more_units(program, write):
    texts = dict(a='int f() {}', b='int f() {}', c='int f() {}')
    assert len(units_of(program, write, 1, **texts)) == 3


def test_declarations_do_not_clash(program, write):
    texts = dict(a='int f(int);', b='int f(int n) { return n; }', c='int f(int);')
    assert units_of(program, write, 1, **texts) == [['a', 'b', 'c']]


@pytest.mark.parametrize(
    'last',
    [
        '#ifndef min\n#define min(a, b) ((a) < (b) ? (a) : (b))\n#endif',
        '#include <vector>\nusing namespace std;',
    ],
)
def test_a_file_that_breaks_later_files_is_last_in_its_unit(program, write, last):
    texts = dict(a=last, b='int f() { return min(1, 2); }')
    assert units_of(program, write, 1, **texts) == [['b', 'a']]
    assert len(units_of(program, write, 1, **texts, c=last)) == 2


def test_a_macro_clashes_with_other_uses_of_its_name(program, write):
    macro = '#define SIZE 3'
    assert len(units_of(program, write, 1, a=macro, b='int f() { return SIZE; }')) == 2
    assert len(units_of(program, write, 1, a=macro, b='#define SIZE 4')) == 2
    assert len(units_of(program, write, 1, a=macro, b=macro)) == 1
    undefined = '\n#undef SIZE'
    texts = dict(a=macro + undefined, b='#define SIZE 4' + undefined)
    assert len(units_of(program, write, 1, **texts)) == 1


def test_units_have_about_the_same_size(program, write):
    texts = {f'f{i}': f'int f{i}() {{ {"n++;" * i} }}' for i in range(40)}
    units = units_of(program, write, 4, **texts)
    sizes = [sum(int(name[1:]) for name in unit) for unit in units]
    assert len(sizes) == 4 and max(sizes) < 1.1 * min(sizes)


def test_undo_restores_the_sources(program, write, tmp_path):
    texts = {
        'nms.cpp': 'int a() {}',
        'roi_align.cpp': 'int b() {}',
        'cpu/nms.cpp': 'int c() {}',
        'cuda/bind.cpp': 'int d() {}',
        'cuda/nms.cu': 'int e() {}',
        'cuda/roi_align.cu': 'int e() {}',
    }
    for name, text in texts.items():
        write(name, text)
    folder = tmp_path / FOLDER

    def sources(extension):
        found = folder.rglob(f'*{extension}')
        return {p.relative_to(folder).as_posix() for p in found}

    # A second call, as after an interruption, changes nothing.
    for _ in range(2):
        program.unite(tmp_path, units=1)
        assert sources('.cpp') == {'united_0.cpp', 'cuda/united_0.cpp'}
        assert sources('.cu') == {'cuda/united_0.cu', 'cuda/united_1.cu'}
        assert (folder / 'united_0.cpp').read_text() == (
            '#include "cpu/nms.cpp.hpp"\n'
            '#include "nms.cpp.hpp"\n'
            '#include "roi_align.cpp.hpp"\n'
        )
        # The compiler looks for a quoted path beside the unit.
        assert (folder / 'cuda/united_0.cu').read_text() == '#include "nms.cu.hpp"\n'

    program.undo(tmp_path)
    assert sources('.cpp') | sources('.cu') == set(texts)
    assert all((folder / name).read_text() == text for name, text in texts.items())


def test_a_folder_without_sources_is_an_error(program, tmp_path):
    with pytest.raises(FileNotFoundError, match='no sources of operators'):
        program.unite(tmp_path, units=1)


# The bindings of these operators. MMCV's own pybind.cpp takes a minute to compile.
BINDING = r"""
#include <torch/extension.h>
using at::Tensor;
Tensor nms(Tensor boxes, Tensor scores, float iou_threshold, int offset);
void roi_align_forward(Tensor input, Tensor rois, Tensor output, Tensor argmax_y,
                       Tensor argmax_x, int aligned_height, int aligned_width,
                       float spatial_scale, int sampling_ratio, int pool_mode,
                       bool aligned);
void roi_align_backward(Tensor grad_output, Tensor rois, Tensor argmax_y,
                        Tensor argmax_x, Tensor grad_input, int aligned_height,
                        int aligned_width, float spatial_scale, int sampling_ratio,
                        int pool_mode, bool aligned);
PYBIND11_MODULE(TORCH_EXTENSION_NAME, m) {
  m.def("nms", &nms);
  m.def("roi_align_forward", &roi_align_forward);
  m.def("roi_align_backward", &roi_align_backward);
}
"""


@pytest.mark.slow
def test_united_operators_compute_the_same(program, tmp_path):
    root = Path(mmcv.__file__).parents[1]
    shutil.copytree(root / FOLDER, tmp_path / 'all' / FOLDER)
    program.undo(tmp_path / 'all')
    folder = tmp_path / FOLDER
    (folder / 'cpu').mkdir(parents=True)
    for name in ('nms.cpp', 'cpu/nms.cpp', 'roi_align.cpp', 'cpu/roi_align.cpp'):
        if not (tmp_path / 'all' / FOLDER / name).is_file():
            pytest.skip('the installed mmcv came without its sources')
        # load() below needs file names that differ even without their folders.
        target = folder / name.replace('cpu/', 'cpu/of_cpu_')
        shutil.copy(tmp_path / 'all' / FOLDER / name, target)
    if not shutil.which('c++') or not shutil.which('ninja'):
        pytest.skip('there is no compiler')
    (folder / 'binding.cpp').write_text(BINDING)

    def compute(sources):
        build = tmp_path / f'build{len(sources)}'
        build.mkdir()
        ops = cpp_extension.load(
            f'operators_of_{len(sources)}_files',
            [str(path) for path in sources],
            extra_cflags=['-g0', '-O2', '-w'],
            extra_include_paths=[str(root / 'mmcv/ops/csrc/common')],
            build_directory=str(build),
        )
        generator = torch.Generator().manual_seed(0)
        corners = torch.rand(200, 2, generator=generator) * 40
        boxes = torch.cat([corners, corners + 5 + corners.flip(0) / 4], 1)
        scores = torch.rand(200, generator=generator)
        features = torch.randn(1, 3, 50, 50, generator=generator)
        rois = torch.cat([torch.zeros(200, 1), boxes], 1)
        output, grad = torch.zeros(200, 3, 7, 7), torch.zeros_like(features)
        weight = torch.randn(output.shape, generator=generator)
        none = torch.zeros(0)
        how = (7, 7, 1.0, 2, 1, True)  # the average of 2 x 2 samples, aligned
        ops.roi_align_forward(features, rois, output, none, none, *how)
        ops.roi_align_backward(weight, rois, none, none, grad, *how)
        return ops.nms(boxes, scores, 0.5, 0), output, grad

    separate = compute(sorted(folder.rglob('*.cpp')))
    units = program.unite(tmp_path, units=1)
    assert len(units) == 1
    united = compute(units)
    assert 10 < len(united[0]) < 190 and united[1].std() > 0.1 and united[2].std() > 0.1
    for one, other in zip(separate, united, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=0)
