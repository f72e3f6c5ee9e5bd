#!/usr/bin/env python3
"""Unite the C++ and CUDA sources of MMCV, so that its operators compile faster.

The compiler spends most of the time on torch's headers, which it reads again for each
file. This program writes a few units that include all files, so that the compiler reads
the headers once for each unit. Files that define the same name at file level go to
different units.

    python tools/unite_sources.py SOURCE [--units 4] [--cuda-units 8]
    python tools/unite_sources.py SOURCE --undo

SOURCE is an unpacked source distribution of mmcv or onedl-mmcv. Its setup.py does not
change: it compiles files by their extension, and the original files get another one.
The program needs only Python.
"""

import argparse
import re
from dataclasses import dataclass, field
from pathlib import Path

FOLDER = 'mmcv/ops/csrc/pytorch'
SUFFIX = '.hpp'  # for the original files: setup.py does not compile headers
UNIT = 'united_'  # prefix of the units' names

_NOISE = re.compile(
    r'//[^\n]*|/\*.*?\*/|"(?:\\.|[^"\\\n])*"|\'(?:\\.|[^\'\\\n])+\'', re.DOTALL
)
_DIRECTIVE = re.compile(r'^[ \t]*#[ \t]*(\w+)[ \t]*(.*)$', re.MULTILINE)
_KIND = re.compile(r'\b(?:struct|class|union|enum(?:\s+class)?)\s+([\w:]+)')
_CALLED = re.compile(r'([\w:~]+)\s*\(')
_ATTRIBUTES = ('__launch_bounds__', '__attribute__', '__align__', 'alignas', 'defined')


@dataclass
class Source:
    """What a file defines and uses.

    Args:
        path: Path of the file.
        size: Number of characters of code.
        names: Names that it defines at file level or in a namespace.
        macros: Text of each macro that it defines and does not undefine.
        words: All identifiers in it.
        opens_namespace: Whether it holds `using namespace` at file level.
    """

    path: Path
    size: int = 0
    names: set[str] = field(default_factory=set)
    macros: dict[str, str] = field(default_factory=dict)
    words: set[str] = field(default_factory=set)
    opens_namespace: bool = False

    @property
    def comes_last(self) -> bool:
        """Whether it can break later files: `#define min` or `using namespace std`."""
        return self.opens_namespace or any(m != m.upper() for m in self.macros)

    def clashes_with(self, other: 'Source') -> bool:
        """Whether the two files must be in different units."""
        return (
            (self.comes_last and other.comes_last)
            or not self.names.isdisjoint(other.names)
            or (not self.comes_last and self._changes(other))
            or (not other.comes_last and other._changes(self))
        )

    def _changes(self, other: 'Source') -> bool:
        return any(
            name in other.words and other.macros.get(name) != text
            for name, text in self.macros.items()
        )


def read_source(path: Path) -> Source:
    """Find what a C++ or CUDA file defines.

    It does not parse C++. It counts braces and looks at the words before them. If it
    finds a name that is none, a file may only go to another unit.
    """
    text = path.read_text(encoding='utf-8', errors='replace').replace('\\\n', ' ')
    text = _NOISE.sub(lambda m: ' ' if m[0].startswith('/') else '""', text)
    source = Source(
        path,
        size=len(text),
        words=set(re.findall(r'\b[A-Za-z_]\w*', text)),
        names=_names_at_file_level(_DIRECTIVE.sub('', text)),
        opens_namespace=bool(re.search(r'^using\s+namespace\b', text, re.MULTILINE)),
    )
    for directive, rest in _DIRECTIVE.findall(text):
        name, body = re.match(r'(\w*)(.*)', rest).groups()
        if directive == 'define':
            source.macros[name] = ' '.join(body.split())
        elif directive == 'undef':
            source.macros.pop(name, None)
    return source


def _names_at_file_level(text: str) -> set[str]:
    names, statement, inside, closed = set(), '', 0, False
    for part in re.split(r'([{};])', text):
        if inside:
            inside += (part == '{') - (part == '}')
            closed = not inside
        elif part == '{':
            if re.search(r'\bnamespace\b|\bextern\s*""\s*$', statement):
                statement = ''  # names in a namespace count as file level
            else:
                names |= _defined(statement)
                inside = 1
        elif part in (';', '}'):
            # A declaration such as `int f(int);` may be repeated, but not
            # a definition such as `int n = f(1);`.
            if not closed and ('(' not in statement.split('=')[0] or '=' in statement):
                names |= _defined(statement)
            statement, closed = '', False
        elif closed and part.strip() and not part.strip().startswith(','):
            statement, closed = part, False  # no semicolon ends a function
        else:
            statement += part
    return names


def _defined(statement: str) -> set[str]:
    statement = _without_template(statement.strip())
    if not statement or re.match(r'using\b[^=]*$', statement):
        return set()
    head = statement if 'operator' in statement else statement.split('=')[0]
    if '(' in head:
        called = [n for n in _CALLED.findall(head) if n not in _ATTRIBUTES]
        return set(called[:1])
    if kind := _KIND.search(head):
        return {kind[1]}
    words = re.findall(r'[A-Za-z_]\w*', re.sub(r'\[.*', '', head))
    return set(words[-1:]) if len(words) > 1 else set()


def _without_template(statement: str) -> str:
    while match := re.match(r'template\s*<', statement):
        depth, end = 1, match.end()
        while depth and end < len(statement):
            depth += {'<': 1, '>': -1}.get(statement[end], 0)
            end += 1
        statement = statement[end:].strip()
    return statement


def group(sources: list[Source], units: int) -> list[list[Source]]:
    """Distribute files over units of about the same size.

    Args:
        sources: The files.
        units: Number of units. If files clash, there can be more.

    Returns:
        The files of each unit, in the order of their inclusion.
    """
    groups: list[list[Source]] = [[] for _ in range(units)]
    for source in sorted(sources, key=lambda s: (-s.size, s.path)):
        free = [g for g in groups if not any(source.clashes_with(s) for s in g)]
        if not free:
            groups.append([])
            free = groups[-1:]
        min(free, key=lambda g: sum(s.size for s in g)).append(source)
    return [sorted(g, key=lambda s: (s.comes_last, s.path)) for g in groups if g]


def unite(root: Path, units: int, cuda_units: int | None = None) -> list[Path]:
    """Write the units of a source tree and rename the original files.

    Args:
        root: The unpacked source distribution.
        units: Least number of units of C++.
        cuda_units: Least number of units of CUDA (default: ``units``).

    Returns:
        The paths of the units.

    Raises:
        FileNotFoundError: If there are no sources of operators.
    """
    undo(root)
    folder = Path(root, FOLDER)
    kinds = (
        (folder, ('*.cpp', 'cpu/*.cpp'), '.cpp', units),
        (folder / 'cuda', ('*.cpp',), '.cpp', 1),
        (folder / 'cuda', ('*.cu',), '.cu', cuda_units or units),
    )
    written = []
    for place, patterns, extension, count in kinds:
        paths = [path for pattern in patterns for path in sorted(place.glob(pattern))]
        for i, members in enumerate(group([read_source(p) for p in paths], count)):
            unit = place / f'{UNIT}{i}{extension}'
            unit.write_text(
                ''.join(
                    f'#include "{s.path.relative_to(place).as_posix()}{SUFFIX}"\n'
                    for s in members
                )
            )
            written.append(unit)
        for path in paths:
            path.rename(f'{path}{SUFFIX}')
    if not written:
        raise FileNotFoundError(f'{folder} holds no sources of operators')
    return written


def undo(root: Path) -> None:
    """Restore the original files and remove the units."""
    folder = Path(root, FOLDER)
    for unit in folder.rglob(f'{UNIT}*'):
        unit.unlink()
    for extension in ('.cpp', '.cu'):
        for path in folder.rglob(f'*{extension}{SUFFIX}'):
            path.rename(str(path).removesuffix(SUFFIX))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('source', type=Path, help='unpacked source distribution')
    parser.add_argument('--units', type=int, default=4, help='of C++ (default: 4)')
    parser.add_argument('--cuda-units', type=int, help='of CUDA (default: as --units)')
    parser.add_argument('--undo', action='store_true', help='restore the files')
    args = parser.parse_args()
    if args.undo:
        undo(args.source)
        return
    for unit in unite(args.source, args.units, args.cuda_units):
        print(unit, len(unit.read_text().splitlines()), 'files')


if __name__ == '__main__':
    main()
