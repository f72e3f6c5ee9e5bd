"""Packaging of pws_mmdet. `tools/install.sh` also installs what it needs."""

import shutil
from pathlib import Path

from setuptools import find_packages, setup
from setuptools.command.build_py import build_py

ROOT = Path(__file__).parent


class BuildWithMim(build_py):
    """Copy configs and tools into the built package, where MIM looks for them.

    The source tree is not changed.
    """

    def run(self):
        super().run()
        if self.editable_mode:
            return
        target = Path(self.build_lib, 'pws_mmdet', '.mim')
        shutil.rmtree(target, ignore_errors=True)
        ignore = shutil.ignore_patterns('__pycache__', '*.py[cod]')
        for folder in ('configs', 'tools'):
            shutil.copytree(ROOT / folder, target / folder, ignore=ignore)
        shutil.copy(ROOT / 'model-index.yml', target)


def read(path):
    return (ROOT / path).read_text(encoding='utf-8')


scope = {}
exec(read('pws_mmdet/version.py'), scope)
minimum = {name: f'{name}>={v}' for name, v in scope['MINIMUM_VERSIONS'].items()}


report = ['plotly']
demo = ['scikit-learn', *report]
# nbclient and ipykernel run docs/tutorial.ipynb
tests = ['hypothesis', 'ipykernel', 'nbclient', 'pytest', 'pytest-xdist']
# Pinned: another version may ask for other code.
lint = [
    'codespell==2.4.3',
    'mypy==2.4.1',
    'ruff==0.17.6',
    'tomli; python_version < "3.11"',  # with it codespell reads pyproject.toml
]
docs = [
    'latex2mathml>=3.78',
    'mkdocs>=1.6,<2',  # Material for MkDocs needs MkDocs 1
    'mkdocs-material>=9.7',
    'mkdocstrings-python>=2',
    'nbconvert>=7',
    # The last mkdocstrings for Python 3.10 does not work with later versions.
    'pymdown-extensions<12; python_version < "3.11"',
]
cluster = ['submitit>=1.5.1']
# name: function of pws_mmdet/cli.py
scripts = {
    'pws-convert': 'convert',
    'pws-fuse': 'fuse',
    'pws-gamma': 'gamma',
    'pws-norm-free': 'norm_free',
    'pws-onnx': 'onnx',
    'pws-report': 'report',
    'pws-summarize': 'summarize',
}
onnx = ['onnx>=1.16', 'onnxruntime>=1.18', 'onnxscript']

setup(
    name='pws_mmdet',
    version=scope['__version__'],
    description='Norm-free detectors for MMDetection: '
    'Parametric Weights Standardization',
    long_description=read('README.md'),
    long_description_content_type='text/markdown',
    license='Apache-2.0',
    classifiers=[
        'Development Status :: 4 - Beta',
        'Intended Audience :: Science/Research',
        *(f'Programming Language :: Python :: 3.{minor}' for minor in range(10, 14)),
        'Topic :: Scientific/Engineering :: Artificial Intelligence',
    ],
    packages=find_packages(include=['pws_mmdet', 'pws_mmdet.*']),
    package_data={'pws_mmdet': ['py.typed']},
    cmdclass={'build_py': BuildWithMim},
    entry_points={
        'console_scripts': [
            f'{name} = pws_mmdet.cli:{f}' for name, f in scripts.items()
        ]
    },
    python_requires='>=3.10',
    # mmcv, mmdet and mmengine are not listed: the maintained forks (onedl-mmcv, ...)
    # have the same modules but other package names, and mmcv must be compiled for the
    # installed torch. `import pws_mmdet` checks the modules and says what to install.
    install_requires=[
        'numpy',
        'packaging',
        'pycocotools',
        'setuptools<81',  # later versions lack pkg_resources, which mmengine imports
        minimum['torch'],
        'tqdm',
    ],
    extras_require={
        'cluster': cluster,
        'demo': demo,
        'docs': docs,
        'lint': lint,
        'mim': [
            f'{minimum["mmcv"]},<2.2.0',  # mmdet 3.3 refuses later ones
            f'{minimum["mmdet"]},<3.4',
            f'{minimum["mmengine"]},<1.0',
        ],
        'onnx': onnx,
        'pretrain': [
            'mmpretrain>=1.2.0,<2',
            'torchvision',
        ],  # mmpretrain does not declare it
        'report': report,
        'tests': [*cluster, *demo, *onnx, *tests],
    },
)
