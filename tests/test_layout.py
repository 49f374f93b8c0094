"""The code has the layout that CONTRIBUTING.md draws: the order of imports, short modules, one home for each fact."""
import ast
import re

import pytest

from conftest import REPOSITORY

TOP = sorted(REPOSITORY.glob("*.py"))
PRE_PROCESSING = sorted((REPOSITORY / "pre-processing").glob("*.py"))
OTHERS = sorted([*(REPOSITORY / "benchmarks").glob("*.py"), *(REPOSITORY / "demo").glob("*.py")])
TREES = {path: ast.parse(path.read_text()) for path in (*TOP, *PRE_PROCESSING, *OTHERS)}
LONGEST_MODULE, LONGEST_FUNCTION, MOST_PARAMETERS = 400, 60, 7
SHARED = {"command_line", "conventions", "labels", "ray_cluster"}  # what pre-processing imports from the top level
HOMES = {
    "conventions": ["__frame_", "_aligned", "no face found", "preprocessing.json", "labels.csv",
                    "annotation_training.pkl", "annotation_validation.pkl", "annotation_test.pkl"],
    "experiment": ["args.json", "search_args.json", "training.csv"],
    "checkpoint": ["checkpoint_best.pt", "checkpoint_last.pt", "checkpoint_previous.pt"],
    "target_folder": ["failures.csv"],
}


def drawing():
    """Return the lines of the drawing in CONTRIBUTING.md, each a list of modules; the last one holds the scripts."""
    block = re.search(r"```\n(.*?)```", (REPOSITORY / "CONTRIBUTING.md").read_text(), re.DOTALL)[1]
    lines = [line for line in block.splitlines() if not line.startswith("pre-processing/")]
    return [re.split(r"  +", line)[0].split(", ") for line in lines]


def imports(tree):
    """Return the names of the modules that a module imports, at its top or in its functions."""
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names.add(node.module.split(".")[0])
    return names


def pre_processing_scripts():
    return {path.stem for path in PRE_PROCESSING if '__name__ == "__main__"' in path.read_text()}


def test_modules_import_only_from_earlier_lines_of_the_drawing():
    lines, own = drawing(), {path.stem for path in TOP}
    assert sorted(sum(lines, [])) == sorted(own), "CONTRIBUTING.md draws other modules than there are"
    order, scripts = {name: place for place, name in enumerate(sum(lines, []))}, set(lines[-1])
    for path in TOP:
        imported = imports(TREES[path]) & own
        assert not imported & scripts, f"{path.name} imports the script {imported & scripts}"
        later = [name for name in imported if order[name] >= order[path.stem]]
        assert not later, f"{path.name} imports {later}, which are drawn after it"


def test_pre_processing_stands_alone():
    own, top = {path.stem for path in PRE_PROCESSING}, {path.stem for path in TOP}
    assert not own & top
    for path in PRE_PROCESSING:
        imported = imports(TREES[path])
        assert imported & top <= SHARED, f"{path.name} imports {imported & top - SHARED}"
        assert not imported & pre_processing_scripts(), f"{path.name} imports a script"
    users = {path.stem for path in TOP if imports(TREES[path]) & own}
    assert users == {"scoring"}


def test_helpers_of_the_tests_import_no_script():
    scripts = set(drawing()[-1]) | pre_processing_scripts()
    for path in (REPOSITORY / "tests").glob("*.py"):
        if not path.name.startswith("test_"):
            assert not imports(ast.parse(path.read_text())) & scripts, path.name


@pytest.mark.parametrize("path", TREES, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_modules_and_functions_are_short(path):
    assert len(path.read_text().splitlines()) <= LONGEST_MODULE
    for node in ast.walk(TREES[path]):
        if isinstance(node, ast.FunctionDef):
            parameters = len(node.args.posonlyargs + node.args.args + node.args.kwonlyargs)
            assert parameters <= MOST_PARAMETERS, f"{node.name} has {parameters} parameters"
            lines = node.end_lineno - node.lineno + 1
            assert lines <= LONGEST_FUNCTION, f"{node.name} has {lines} lines"


def texts(tree):
    """Yield the strings in a module but its docstrings, also the parts of f-strings."""
    docstrings = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in docstrings:
            yield node.value


def says(tree, fact):
    """Return whether a module has a fact as a string of its own or as a part of a name; sentences may speak of it."""
    return any(fact == text or (fact in text and " " not in text.strip()) for text in texts(tree))


@pytest.mark.parametrize("home", HOMES)
def test_names_of_files_have_one_home(home):
    for path, tree in TREES.items():
        if path.parent.name != "demo":
            said = [fact for fact in HOMES[home] if says(tree, fact)]
            assert said == (HOMES[home] if path.stem == home else []), f"{path.name}; the home is {home}.py"
