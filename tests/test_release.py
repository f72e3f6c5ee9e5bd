"""The files around the code agree with it: versions, workflows, images, configs."""

import ast
import re

import pytest
import yaml
from conftest import ROOT

from pws_mmdet import __version__

GITHUB = ROOT / '.github'
WORKFLOWS = sorted(GITHUB.glob('workflows/*.yml'))
MAKEFILE = (ROOT / 'Makefile').read_text()
METAFILE = yaml.safe_load((ROOT / 'configs/metafile.yml').read_text())


def read(path):
    return (ROOT / path).read_text()


def test_all_files_state_the_same_version():
    citation = yaml.safe_load(read('CITATION.cff'))
    assert citation['version'] == __version__
    (collection,) = METAFILE['Collections']
    assert collection['Code']['Version'] == f'v{__version__}'
    headings = re.findall(r'^## (.+)$', read('CHANGELOG.md'), re.MULTILINE)
    assert headings[:2] == [
        'Unreleased',
        f'{__version__} - {citation["date-released"]}',
    ]


def commands_of(content):
    """The commands of all steps of a workflow, or of an action."""
    jobs = content.get('jobs', {}).values()
    for job in [*jobs, content.get('runs', {})]:
        for step in job.get('steps', []):
            yield from step.get('run', '').splitlines()


@pytest.mark.parametrize(
    'path', [*WORKFLOWS, *GITHUB.glob('actions/*/action.yml')], ids=lambda p: p.stem
)
def test_workflows_call_what_exists(path):
    content = yaml.safe_load(path.read_text())
    commands = list(commands_of(content))
    assert commands
    targets = set(re.findall(r'^([a-z-]+):', MAKEFILE, re.MULTILINE))
    for command in commands:
        for made in re.findall(r'\bmake ([a-z -]+)', command):
            assert set(made.split()) <= targets, command
        for named in re.findall(r'\b(?:tools|configs|tests|docs)/[\w./-]+', command):
            assert (ROOT / named).exists(), command
    for used in re.findall(r'uses: \./(\S+)', path.read_text()):
        assert (ROOT / used / 'action.yml').is_file()


def test_the_workflow_tests_all_stacks():
    table = re.search(r"table='\n(.+?)\n'", read('tools/test_stacks.sh'), re.DOTALL)[1]
    stacks = {line.split()[0]: line.split()[1:-2] for line in table.splitlines()}
    ci = yaml.safe_load(read('.github/workflows/ci.yml'))
    rows = ci['jobs']['stack']['strategy']['matrix']['include']
    assert {row['name'] for row in rows} == set(stacks)
    for row in rows:
        assert row['python'] == stacks[row['name']][0]


def test_the_workflow_tests_the_oldest_and_a_new_python():
    ci = yaml.safe_load(read('.github/workflows/ci.yml'))
    first, *_, last = ci['jobs']['test']['strategy']['matrix']['python']
    assert f"python_requires='>={first}'" in read('setup.py')
    # MMCV does not build on 3.13, where the installer takes the forks.
    assert last == '3.12'


@pytest.mark.parametrize('path', sorted(GITHUB.glob('ISSUE_TEMPLATE/*.yml')))
def test_issue_forms_ask_something(path):
    content = yaml.safe_load(path.read_text())
    if path.stem == 'config':
        return
    assert content['name'] and content['description']
    labels = [field['attributes']['label'] for field in content['body']]
    assert labels and len(set(labels)) == len(labels)


def test_the_image_is_built_as_the_makefile_says():
    dockerfile = read('docker/Dockerfile')
    arguments = set(re.findall(r'^ARG (\w+)', dockerfile, re.MULTILINE))
    given = re.findall(r'--build-arg (\w+)=', MAKEFILE)
    assert given and set(given) <= arguments
    # The variables that it sets are those of the installer.
    command = re.search(
        r'^RUN ((?:.+\\\n)+.*tools/install\.sh)', dockerfile, re.MULTILINE
    )
    for name in re.findall(r'(PWS_\w+|FORCE_CUDA)=', command[1]):
        assert name in read('tools/install.sh')


def test_the_metafile_lists_all_configs():
    paths = [
        str(path.relative_to(ROOT))
        for path in sorted((ROOT / 'configs').rglob('*.py'))
        if path.parent.name != '_base_'
    ]
    assert [model['Config'] for model in METAFILE['Models']] == paths
    # MIM finds a config by its name alone.
    assert len({model['Name'] for model in METAFILE['Models']}) == len(paths)
    index = yaml.safe_load(read('model-index.yml'))
    assert index == {'Import': ['configs/metafile.yml']}


PAGES = [*ROOT.glob('*.md'), *ROOT.glob('configs/**/*.md')]


@pytest.mark.parametrize('page', PAGES, ids=lambda p: str(p.relative_to(ROOT)))
def test_links_lead_to_files(page):
    """`make docs` checks those of docs/."""
    for target in re.findall(r'\]\(([^()\s#]+)', page.read_text()):
        assert '://' in target or (page.parent / target).exists(), target


FOLDERS = ['configs', *(f'configs/{n}' for n in ('cifar10', 'imagenet', 'mini', 'voc'))]


@pytest.mark.parametrize('folder', FOLDERS)
def test_the_readme_of_a_folder_names_its_configs(folder):
    text = read(f'{folder}/README.md')
    patterns = [name.replace('*', '.*') for name in re.findall(r'`([\w*]+_\*)`', text)]
    for path in (ROOT / folder).glob('*.py'):
        linked = f'[{path.stem}]({path.name})' in text
        assert linked or any(re.fullmatch(p, path.stem) for p in patterns), path


@pytest.mark.parametrize('folder', FOLDERS)
def test_the_figures_of_a_readme_are_those_of_the_metafile(folder):
    models = {model['Name']: model for model in METAFILE['Models']}
    for line in read(f'{folder}/README.md').splitlines():
        row = re.match(r'\| \[(\w+)\]\(\w+\.py\) \|(.+)\|', line)
        if not row:
            continue
        model = models[row[1]]
        known = [model['Metadata'][key] for key in ('Epochs', 'Batch Size')]
        for result in model.get('Results', []):
            known += result['Metrics'].values()
        for cell in row[2].split('|'):
            if re.fullmatch(r'\d+(\.\d+)?', cell.strip()):
                assert ast.literal_eval(cell.strip()) in known, line
