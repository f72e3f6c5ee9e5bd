"""Files are written whole or not at all."""

import pytest

from pws_mmdet.utils.files import check_new_path


def test_check_new_path_refuses_what_cannot_be_made(tmp_path, monkeypatch):
    assert check_new_path(tmp_path / 'new/net.pth', '.pth') == tmp_path / 'new/net.pth'
    (tmp_path / 'file').touch()
    with pytest.raises(NotADirectoryError, match='file is no folder'):
        check_new_path(tmp_path / 'file/new/net.pth', '.pth')
    (tmp_path / 'link.pth').symlink_to(tmp_path / 'nowhere/net.pth')
    with pytest.raises(FileExistsError, match='link.pth exists'):
        check_new_path(tmp_path / 'link.pth', '.pth')
    monkeypatch.setattr('os.access', lambda path, mode: False)  # root may write all
    with pytest.raises(PermissionError, match='net.pth cannot be written'):
        check_new_path(tmp_path / 'new/net.pth', '.pth')
    assert not (tmp_path / 'new').exists()
