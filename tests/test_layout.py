"""The code has the layout that README.md and CONTRIBUTING.md draw: folders and the order of imports, short modules, one
home for each fact."""
import ast
import re
import subprocess

import pytest

from conftest import REPOSITORY

PACKAGE = "first_impressions"
# Each folder imports from those before it, never from one beside or after it.
ORDER = (("common",), ("jobs", "networks"), ("data", "extraction"), ("evaluation", "prediction"), ("training",))
LEVEL = {folder: level for level, folders in enumerate(ORDER) for folder in folders}
ROOT = sorted(REPOSITORY.glob("*.py"))
MODULES = sorted((REPOSITORY / PACKAGE).rglob("*.py"))
PRE_PROCESSING = sorted((REPOSITORY / "pre-processing").glob("*.py"))
OTHERS = sorted([*(REPOSITORY / "benchmarks").glob("*.py"), *(REPOSITORY / "demo").glob("*.py")])
TREES = {path: ast.parse(path.read_text()) for path in (*ROOT, *MODULES, *PRE_PROCESSING, *OTHERS)}
LONGEST_MODULE, LONGEST_FUNCTION, MOST_PARAMETERS = 400, 60, 7
MOST_ROOT_MODULES, MOST_ROOT_ENTRIES = 8, 28
HOMES = {
    "constants": ["__frame_", "_aligned", "no face found", "preprocessing.json", "labels.csv",
                  "annotation_training.pkl", "annotation_validation.pkl", "annotation_test.pkl"],
    "experiment": ["args.json", "search_args.json", "training.csv"],
    "checkpoint": ["checkpoint_best.pt", "checkpoint_last.pt", "checkpoint_previous.pt"],
    "target_folder": ["failures.csv"],
}


def imports(tree):
    """Return the dotted names of the modules that a module imports, at its top or in its functions."""
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, "relative import"
            names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return names


def scripts():
    return {path.stem for path in (*ROOT, *PRE_PROCESSING) if '__name__ == "__main__"' in path.read_text()}


def test_the_root_holds_what_people_run_and_nothing_else():
    entries = {line.split("/")[0] for line in subprocess.run(
        ["git", "ls-files"], cwd=REPOSITORY, capture_output=True, text=True, check=True).stdout.splitlines()}
    assert len(ROOT) <= MOST_ROOT_MODULES and len(entries) <= MOST_ROOT_ENTRIES
    assert {path.stem for path in ROOT} == scripts() - {path.stem for path in PRE_PROCESSING}


def test_the_tree_in_the_readme_is_true():
    block = re.search(r"## Where things are\n.*?```\n(.*?)```", (REPOSITORY / "README.md").read_text(), re.DOTALL)[1]
    drawn, folder = set(), ""
    for line in block.splitlines():
        names = line.strip().split("   ")[0].split()
        for name in names:
            path = (folder if line.startswith("  ") else "") + name
            assert (REPOSITORY / path).exists(), f"{path} of the README's tree is not there"
            drawn.add(path.rstrip("/"))
        folder = names[0] if not line.startswith("  ") else folder
    assert {path.name for path in ROOT} <= drawn
    assert {f"{PACKAGE}/{name}" for name in LEVEL} <= drawn
    assert {name.name for name in (REPOSITORY / PACKAGE).iterdir() if (name / "__init__.py").exists()} == set(LEVEL)


def test_an_installed_package_has_all_its_files():
    config = (REPOSITORY / "pyproject.toml").read_text()
    patterns = ast.literal_eval(re.search(r'package-data]\n"\*" = (\[.*])', config)[1])
    others = [path for path in (REPOSITORY / PACKAGE).rglob("*.*") if path.suffix not in (".py", ".pyc")]
    assert others and [path for path in others if not any(map(path.match, patterns))] == []


def test_imports_go_one_way_and_never_to_the_root():
    own = {path.stem for path in (*ROOT, *PRE_PROCESSING)}
    for path in MODULES:
        folder = path.parent.name
        for name in imports(TREES[path]):
            parts = name.split(".")
            assert parts[0] not in own, f"{path.name} imports {name}, a module of the root"
            if parts[0] == PACKAGE and len(parts) > 1 and parts[1] in LEVEL and folder in LEVEL:
                assert parts[1] == folder or LEVEL[parts[1]] < LEVEL[folder], f"{folder}/{path.name} imports {name}"


def test_no_module_imports_a_script_but_the_two_that_people_import():
    for path in (*ROOT, *PRE_PROCESSING, *OTHERS):
        imported = imports(TREES[path]) & (scripts() - {"dataset", "model_architectures"})
        assert not imported, f"{path.name} imports the script {imported}"


def test_only_the_four_scripts_beside_the_root_touch_the_path():
    lines = set()
    for path in (*ROOT, *MODULES, *PRE_PROCESSING):
        touching = [line for line in path.read_text().splitlines() if "sys.path" in line]
        if path.stem in scripts() and path in PRE_PROCESSING:
            assert len(touching) == 1, path.name
            lines |= set(touching)
        else:
            assert not touching or path.name == "worker_pool.py", path.name
    assert len(lines) == 1


def test_helpers_of_the_tests_import_no_script():
    for path in (REPOSITORY / "tests").glob("*.py"):
        if not path.name.startswith("test_"):
            assert not imports(ast.parse(path.read_text())) & scripts(), path.name


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
