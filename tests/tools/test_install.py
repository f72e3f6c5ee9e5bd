"""All files state the same versions of Python and torch."""

import re


def test_all_files_state_the_same_python_versions(root):
    setup = (root / 'setup.py').read_text()
    first, after = map(int, re.search(r'range\((\d+), (\d+)\)', setup).groups())
    assert f"python_requires='>=3.{first}'" in setup
    stated = f'Python 3.{first} to 3.{after - 1}'
    for path in ('README.md', 'docs/index.md', 'tools/install.sh'):
        found = re.findall(r'Python 3\.\d+ to\s3\.\d+', (root / path).read_text())
        assert found and {' '.join(f.split()) for f in found} == {stated}, path


def test_all_files_state_the_same_torch_version(root):
    scope = {}
    exec((root / 'pws_mmdet/version.py').read_text(), scope)
    stated = f'torch {scope["MINIMUM_VERSIONS"]["torch"]} '
    for path in ('README.md', 'docs/index.md', 'tools/install.sh'):
        assert stated + 'and later' in (root / path).read_text().replace(
            'or later', 'and later'
        ), path
