"""What a run was trained with."""

import subprocess

from environment import revision


def test_revision(tmp_path):
    assert revision(tmp_path) == 'unknown'
    git = ['git', '-C', tmp_path, '-c', 'user.name=x', '-c', 'user.email=x@x.x']
    (tmp_path / 'configs').mkdir()
    (tmp_path / 'configs/a.py').write_text('')
    subprocess.run([*git, 'init', '-q'], check=True)
    subprocess.run([*git, 'add', '.'], check=True)
    subprocess.run([*git, 'commit', '-qm', 'a'], check=True)
    clean = revision(tmp_path)
    assert len(clean) == 10
    (tmp_path / 'notes').write_text('no code')
    assert revision(tmp_path) == clean
    (tmp_path / 'configs/a.py').write_text('x = 1')
    assert revision(tmp_path) == clean + '+'
