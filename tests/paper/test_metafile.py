"""configs/metafile.yml is what make_metafile.py writes."""

import pytest
from conftest import ROOT
from metafile import make_metafile


@pytest.mark.slow  # it reads all configs
def test_the_metafile_is_true_to_the_configs():
    published = (ROOT / 'configs/metafile.yml').read_text()
    assert make_metafile() == published, 'run tools/paper/make_metafile.py'
