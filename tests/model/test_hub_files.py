"""The rules for files that saving copies into a folder.

`trust_remote_code` follows relative imports by regular expressions over lines, flattens all files into one folder,
and asks the user for every other import that is not under `try`.
"""

import ast
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import ROOT
from transformers.dynamic_module_utils import check_imports, get_relative_import_files

from modeling_salmonn.configuration_salmonn import AUTO_MAP, CUSTOM_PIPELINES


# What the README has users install, and what comes with these.
REQUIRED_PACKAGES = {"torch", "transformers", "peft", "safetensors", "numpy", "soundfile", "soxr", "httpx"}
REQUIRED_PACKAGES |= {"huggingface_hub", "packaging"}
PROCESSOR_MODULES = {"processing_salmonn", "feature_extraction_salmonn"}
FOLDERS = (ROOT / "modeling_salmonn", ROOT / "processing")


def own_imports(tree: ast.AST) -> list[ast.ImportFrom]:
    return [node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and node.level]


def reachable(files: set[Path]) -> set[Path]:
    """The files and all that they import from their folders."""
    found: set[Path] = set()
    while new := files - found:
        found |= new
        imports = [(file, node.module) for file in new for node in own_imports(ast.parse(file.read_text()))]
        imported = {file.parent / f"{module}.py" for file, module in imports}
        files = {file for file in imported if file.is_file()}
    return found


def entry_files() -> set[Path]:
    """The files that a saved folder's configuration names."""
    classes = [*AUTO_MAP.values(), *(pipeline["impl"] for pipeline in CUSTOM_PIPELINES.values())]
    models = {ROOT / "modeling_salmonn" / f"{name.split('.')[0]}.py" for name in classes}
    return models | {ROOT / "processing" / f"{module}.py" for module in PROCESSOR_MODULES}


HUB_FILES = sorted(reachable(entry_files()))
each_hub_file = pytest.mark.parametrize("path", HUB_FILES, ids=lambda path: str(path.relative_to(ROOT)))


def other_imports(tree: ast.AST, guarded: bool = False) -> Iterator[tuple[str, bool]]:
    """Top-level name of each absolute import, and whether it is under `try`."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name.split(".")[0], guarded) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and not node.level:
            yield str(node.module).split(".")[0], guarded
        else:
            yield from other_imports(node, guarded or isinstance(node, ast.Try))


@each_hub_file
def test_hub_file_imports_its_own_kind_by_name_from_its_folder(path: Path) -> None:
    for node in own_imports(ast.parse(path.read_text())):
        assert node.level == 1, f"line {node.lineno} imports from a parent folder"
        assert node.module is not None, f"line {node.lineno} is `from . import`, which is not followed"
        assert "." not in node.module, f"line {node.lineno} imports from a subfolder"
        assert node.col_offset == 0, f"line {node.lineno} imports inside a block"
        assert (path.parent / f"{node.module}.py").is_file(), f"line {node.lineno} imports a file that is not there"
        assert all(alias.name != "*" for alias in node.names), f"line {node.lineno} imports everything"


@each_hub_file
def test_hub_file_needs_listed_packages_alone(path: Path) -> None:
    imported = list(other_imports(ast.parse(path.read_text())))
    assert "modeling_salmonn" not in {name for name, _ in imported}
    needed = {name for name, guarded in imported if not guarded and name not in sys.stdlib_module_names}
    assert needed <= REQUIRED_PACKAGES


@each_hub_file
def test_hub_file_has_no_text_that_reads_as_an_import(path: Path) -> None:
    text = path.read_text()
    tree = ast.parse(text)
    imports = {node.lineno for node in ast.walk(tree) if isinstance(node, (ast.Import, ast.ImportFrom))}
    alike = re.compile(r"[\s#]*(from\s+\.|from\s+\S+\s+import\b|import\s)")
    lines = enumerate(text.splitlines(), start=1)
    assert [line for number, line in lines if alike.match(line) and number not in imports] == []


@each_hub_file
def test_hub_file_imports_nothing_at_run_time(path: Path) -> None:
    names = {node.id for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Name)}
    names |= {node.attr for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Attribute)}
    assert not names & {"import_module", "__import__", "find_spec"}


@each_hub_file
def test_hub_file_compares_no_instances_with_its_own_classes(path: Path) -> None:
    """From a folder, each entry file becomes a package of its own, with classes of its own."""
    tree = ast.parse(path.read_text())
    own = {alias.asname or alias.name for node in own_imports(tree) for alias in node.names}
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "isinstance":
            compared = {name.id for name in ast.walk(node.args[1]) if isinstance(name, ast.Name)}
            assert not compared & own, f"line {node.lineno} compares with a class of another file"


@each_hub_file
def test_hub_file_satisfies_transformers(path: Path) -> None:
    """What transformers itself finds and asks for."""
    check_imports(path)
    found = {Path(name).resolve() for name in get_relative_import_files(path)}
    assert found == {file.resolve() for file in reachable({path}) - {path}}


def test_basenames_are_unique() -> None:
    by_name: dict[str, set[Path]] = {}
    for path in (path for folder in FOLDERS for path in folder.glob("*.py") if path.name != "__init__.py"):
        by_name.setdefault(path.name, set()).add(path.resolve())
    assert {name: paths for name, paths in by_name.items() if len(paths) > 1} == {}


def test_saved_folder_holds_the_code_that_is_reachable(saved_folder: Path) -> None:
    saved = {path.name: path.read_bytes() for path in saved_folder.rglob("*.py")}
    assert saved == {path.name: path.read_bytes() for path in HUB_FILES}
