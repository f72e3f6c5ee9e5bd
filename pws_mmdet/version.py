__version__ = '0.2.0'
# The oldest versions of the host libraries that the tests run on. setup.py and
# check_versions read them here.
MINIMUM_VERSIONS = dict(torch='2.1', mmengine='0.10.0', mmcv='2.0.0', mmdet='3.3.0')
