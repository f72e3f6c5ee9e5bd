"""Find the files of the repository that come with the package: configs and programs.

They are in the root of a checkout. A wheel has them in `pws_mmdet/.mim`, where MIM
looks for them.
"""

import shlex
from pathlib import Path

PACKAGE = Path(__file__).parents[1]


def find_file(path: str, package: Path = PACKAGE) -> Path:
    """Return the path of a file or folder below `tools/` or `configs/`.

    Args:
        path: Its path in the repository, such as 'tools/train.py'.
        package: Folder of the package.

    Raises:
        FileNotFoundError: If the package came without it.
    """
    # The wheel first: site-packages may have a folder "tools" of another package.
    candidates = [package / '.mim' / path, package.parent / path]
    for candidate in candidates:
        if candidate.exists():
            return candidate
    raise FileNotFoundError(
        f'The pws_mmdet in {package} came without {path}: there is no '
        f'{" nor ".join(map(str, candidates))}. Reinstall it'
    )


def shown_path(path: str) -> str:
    """Return a path of the repository as a command line takes it.

    It is relative if the file is in the current folder, as in a checkout. It is
    `path` itself if the package came without the file.

    Args:
        path: As for `find_file`.
    """
    try:
        found = find_file(path)
    except FileNotFoundError:
        return path
    here = Path.cwd()
    if found.is_relative_to(here):
        found = found.relative_to(here)
    return shlex.quote(str(found))
