"""The rules of the code's structure: sizes of files, and who may import whom."""

import ast
import sys
from pathlib import Path

import pytest
from conftest import ROOT

PACKAGE = 'pws_mmdet'

# A room imports from the rooms of its own line and of the lines above it.
FLOORS = (
    ('version', 'compat', 'utils'),
    ('layers',),
    ('models',),
    ('checkpoint',),
    ('convert',),
    ('deploy', 'analysis', 'evaluation'),
    ('engine',),
    ('cli', 'deprecated', 'pretrain'),
    ('__init__',),
)

MOST_LINES_OF_A_FILE = 400
MOST_LINES_OF_A_FUNCTION = 70
MOST_LINES_OF_A_TOOL = 80

# Tools that may be longer, each with the reason.
LONG_TOOLS = {
    'tools/unite_sources.py': 'the installer runs it before the package is installed',
}


def check_empty(offenders):
    assert not offenders, '\n' + '\n'.join(offenders)


def module_name(path):
    """'layers.pws_conv' for pws_mmdet/layers/pws_conv.py; '__init__' for the root."""
    parts = path.relative_to(ROOT / PACKAGE).with_suffix('').parts
    if parts[-1] == '__init__':
        parts = parts[:-1] or parts
    return '.'.join(parts)


SOURCES = {module_name(p): p for p in sorted((ROOT / PACKAGE).rglob('*.py'))}


def parse(path):
    return ast.parse(path.read_text(encoding='utf-8'))


def imports_of(path, tree):
    """All (module, name) that a file imports; relative imports become absolute.

    The name is None for ``import module``. Imports inside functions count, too.
    """
    package = path.relative_to(ROOT).parent.parts
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, None) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            parts = [node.module] if node.module else []
            if node.level:
                parts = [*package[: len(package) + 1 - node.level], *parts]
            for alias in node.names:
                yield '.'.join(parts), alias.name


def modules_imported_by(importer, path):
    """The modules of the package that a module imports.

    An import of convert.fuse from outside of convert runs convert/__init__.py, too.
    """
    for module, name in imports_of(path, parse(path)):
        if module.split('.')[0] != PACKAGE:
            continue
        target = module.removeprefix(PACKAGE).lstrip('.')
        submodule = f'{target}.{name}'.lstrip('.')
        target = submodule if submodule in SOURCES else target or '__init__'
        yield target
        while '.' in target:
            target = target.rpartition('.')[0]
            if not f'{importer}.'.startswith(f'{target}.'):
                yield target


GRAPH = {name: set(modules_imported_by(name, p)) for name, p in SOURCES.items()}


def floor_of(module):
    room = module.split('.')[0]
    for floor, rooms in enumerate(FLOORS):
        if room in rooms:
            return floor
    raise AssertionError(f'{SOURCES[module]}: FLOORS of this test lacks {room}')


def test_imports_only_go_down():
    bad = [
        f'{module} imports {target}'
        for module, targets in GRAPH.items()
        for target in sorted(targets)
        if floor_of(target) > floor_of(module)
    ]
    check_empty(bad)


def test_rooms_of_one_floor_do_not_import_each_other():
    top = [room for floor in FLOORS[1:] for room in floor]
    bad = [
        f'{module} imports {target}'
        for module, targets in GRAPH.items()
        for target in sorted(targets)
        if floor_of(target) == floor_of(module)
        and target.split('.')[0] != module.split('.')[0]
        and module.split('.')[0] in top
    ]
    check_empty(bad)


def test_no_circle_of_imports():
    done, open_ = set(), []

    def visit(module):
        if module in open_:
            circle = [*open_[open_.index(module) :], module]
            pytest.fail(' -> '.join(circle))
        if module not in done:
            open_.append(module)
            for target in sorted(GRAPH[module]):
                visit(target)
            done.add(open_.pop())

    for module in GRAPH:
        visit(module)


def lines_of(path):
    return len(path.read_text(encoding='utf-8').splitlines())


def too_long(lengths, limit, exceptions=()):
    """Name what is too long, and the exceptions that are no longer needed."""
    bad = [
        f'{name} has {length} lines'
        for name, length in lengths.items()
        if length > limit and name not in exceptions
    ]
    bad += [
        f'{name} is no exception any more: remove it from the list'
        for name in exceptions
        if lengths.get(name, 0) <= limit
    ]
    return bad


def test_files_are_short():
    lengths = {str(p.relative_to(ROOT)): lines_of(p) for p in SOURCES.values()}
    bad = too_long(lengths, MOST_LINES_OF_A_FILE)
    check_empty(bad)


def test_functions_are_short():
    lengths = {}
    for module, path in SOURCES.items():
        for node in ast.walk(parse(path)):
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
                name, length = f'{module}.{node.name}', node.end_lineno - node.lineno
                lengths[name] = max(lengths.get(name, 0), length + 1)
    bad = too_long(lengths, MOST_LINES_OF_A_FUNCTION)
    check_empty(bad)


# Programs read arguments and print. Modules beside them do the work.
TOOLS = {
    str(p.relative_to(ROOT)): p
    for folder in ('tools', 'benchmarks')
    for p in sorted((ROOT / folder).rglob('*.py'))
    if "if __name__ == '__main__':" in p.read_text(encoding='utf-8')
}


def test_tools_are_short():
    lengths = {name: lines_of(path) for name, path in TOOLS.items()}
    bad = too_long(lengths, MOST_LINES_OF_A_TOOL, LONG_TOOLS)
    check_empty(bad)


def test_no_tool_imports_a_tool():
    tools = {path.stem for path in TOOLS.values()} | {'tools'}
    found = {
        f'{name} imports {module}'
        for name, path in TOOLS.items()
        for module, _ in imports_of(path, parse(path))
        if module.split('.')[0] in tools - set(sys.stdlib_module_names)
    }
    check_empty(sorted(found))


def private_names_in(path):
    """Private names of the package that a test imports, or takes from its modules."""
    tree = parse(path)
    imported = set()
    for module, name in imports_of(path, tree):
        if module.split('.')[0] == PACKAGE:
            yield from (part for part in (*module.split('.'), name) if is_private(part))
            imported.add(name)
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and is_private(node.attr):
            if isinstance(node.value, ast.Name) and node.value.id in imported:
                yield f'{node.value.id}.{node.attr}'


def is_private(name):
    return bool(name) and name.startswith('_') and not name.endswith('__')


@pytest.mark.parametrize(
    'path', sorted((ROOT / 'tests').rglob('*.py')), ids=lambda p: Path(p).stem
)
def test_tests_use_public_names(path):
    private = sorted(set(private_names_in(path)))
    check_empty([f'{path.relative_to(ROOT)} uses {name}' for name in private])
