"""The house rules for all files of the package: sizes, docstrings, and what may import what.

Which folder may import which other one is a contract in `pyproject.toml`, kept by `lint-imports`.
"""

import ast
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import pytest
from conftest import ROOT

from modeling_salmonn.commands.extras import LIBRARIES


PACKAGE = ROOT / "modeling_salmonn"
BESIDE = [ROOT / "processing", ROOT / "hub"]
INSIDE = [
    PACKAGE / name for name in ("data", "training", "evaluation", "serving", "activation", "studies", "commands")
]
FILES = sorted(path for folder in (PACKAGE, *BESIDE, *INSIDE) for path in folder.glob("*.py"))
MODEL_FILES = [path for path in FILES if path.parent in (PACKAGE, BESIDE[0]) and path.name != "__main__.py"]
RECIPES = sorted((ROOT / "recipes" / "salmonn_smol").glob("*.py"))
SILENT_FILES = [path for path in FILES + RECIPES if path.parent != PACKAGE / "commands"]
MAX_FILE_LINES, MAX_MODELING_LINES, MAX_FUNCTION_LINES, MAX_TRAINING_FILES = 400, 600, 80, 12
# Of no extra, and named by the error that asks for one: decoders of audio, and clients of what is asked for.
OPTIONAL = LIBRARIES | {"av", "torchcodec", "openai", "vllm"}


def named(path: Path) -> str:
    return str(path.relative_to(ROOT))


each_file = pytest.mark.parametrize("path", FILES + RECIPES, ids=named)


def functions(tree: ast.AST) -> list[ast.FunctionDef | ast.AsyncFunctionDef]:
    return [node for node in ast.walk(tree) if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))]


def imported_modules(path: Path, tree: ast.AST) -> Iterator[str]:
    """Full names of the modules that a file of the package imports, and of what it takes from them."""
    package = module_of(path).split(".")
    if path.name != "__init__.py":
        package.pop()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        if isinstance(node, ast.ImportFrom):
            above = package[: len(package) + 1 - node.level] if node.level else []
            module = ".".join([*above, *filter(None, [node.module])])
            yield module
            yield from (f"{module}.{alias.name}" for alias in node.names)


def module_of(path: Path) -> str:
    """`modeling_salmonn.hub.doctor` of hub/doctor.py."""
    parts = list(path.relative_to(ROOT).with_suffix("").parts)
    if parts[0] != PACKAGE.name:
        parts.insert(0, PACKAGE.name)
    return ".".join(parts).removesuffix(".__init__")


@each_file
def test_file_is_short(path: Path) -> None:
    limit = MAX_MODELING_LINES if path.name.startswith("modeling_") else MAX_FILE_LINES
    assert len(path.read_text().splitlines()) <= limit


@each_file
def test_functions_are_short(path: Path) -> None:
    lengths = {node.name: (node.end_lineno or 0) - node.lineno + 1 for node in functions(ast.parse(path.read_text()))}
    assert {name: length for name, length in lengths.items() if length > MAX_FUNCTION_LINES} == {}


@each_file
def test_public_names_have_docstrings(path: Path) -> None:
    tree = ast.parse(path.read_text())
    documented = [node for node in tree.body if isinstance(node, (ast.ClassDef, ast.FunctionDef))]
    without = [node.name for node in documented if not node.name.startswith("_") and not ast.get_docstring(node)]
    assert without == []
    assert ast.get_docstring(tree)


@pytest.mark.parametrize("path", SILENT_FILES, ids=named)
def test_only_the_command_line_prints(path: Path) -> None:
    calls = [node.func for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)]
    assert "print" not in {call.id for call in calls if isinstance(call, ast.Name)}


@pytest.mark.parametrize("path", FILES, ids=named)
def test_functions_import_nothing_but_optional_libraries(path: Path) -> None:
    for function in functions(ast.parse(path.read_text())):
        for name in imported_modules(path, function):
            assert name.split(".")[0] in OPTIONAL, f"{function.name} imports {name}"


@pytest.mark.parametrize("path", MODEL_FILES, ids=named)
def test_files_of_the_model_import_no_folder_but_processing(path: Path) -> None:
    names = set(imported_modules(path, ast.parse(path.read_text())))
    folders = {name.split(".")[1] for name in names if name.startswith("modeling_salmonn.")}
    assert not folders & {folder.name for folder in [*BESIDE[1:], *INSIDE]}


def test_no_files_import_each_other_in_a_circle() -> None:
    modules = {module_of(path): path for path in FILES}
    graph = {}
    for module, path in modules.items():
        imported = set(imported_modules(path, ast.parse(path.read_text())))
        graph[module] = imported & modules.keys() - {module, PACKAGE.name}
    TopologicalSorter(graph).prepare()  # raises for a circle, and names it


def test_training_has_few_files() -> None:
    assert len([path for path in FILES if path.parent == PACKAGE / "training"]) <= MAX_TRAINING_FILES
