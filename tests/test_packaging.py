"""The wheel: one package, with all that the checkout's folders hold; and the versions that it is installed with."""

import email
import re
import shutil
import subprocess
import sys
import zipfile

import pytest
from conftest import ROOT
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import modeling_salmonn
from modeling_salmonn.commands.extras import EXTRAS, LIBRARIES
from modeling_salmonn.versions_salmonn import LOWEST, MEND


SUBPACKAGES = ("processing", "hub", "data", "training", "evaluation", "serving", "activation", "studies", "commands")
LOCK = (ROOT / "constraints.txt").read_text().splitlines()
PYTHONS = ("3.10", "3.11", "3.12", "3.13")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    """Built from a copy: setuptools writes into the folder that it builds."""
    root = tmp_path_factory.mktemp("packaging")
    unused = shutil.ignore_patterns(".*", "__pycache__", "*.egg-info", "*.whl", "build", "dist", "tests", "benchmarks")
    shutil.copytree(ROOT, root / "source", symlinks=True, ignore=unused)
    command = [sys.executable, "-m", "pip", "wheel", ".", "--no-deps", "--no-build-isolation", "-q", "-w", root]
    result = subprocess.run(command, cwd=root / "source", capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr[-4000:]
    (file,) = root.glob("*.whl")
    assert file.name == f"modeling_salmonn-{modeling_salmonn.__version__}-py3-none-any.whl"
    return zipfile.ZipFile(file)


def test_wheel_has_one_package_at_its_top(wheel: zipfile.ZipFile) -> None:
    top = {name.split("/")[0] for name in wheel.namelist()}
    assert top == {"modeling_salmonn", f"modeling_salmonn-{modeling_salmonn.__version__}.dist-info"}


def test_wheel_holds_the_files_of_the_checkout(wheel: zipfile.ZipFile) -> None:
    expected = {f"modeling_salmonn/{path.name}": path for path in (ROOT / "modeling_salmonn").glob("*.py")}
    for name in SUBPACKAGES:
        folder = ROOT / "modeling_salmonn" / name
        files = [path for path in folder.glob("*") if path.suffix in (".py", ".json", ".yaml")]
        files += [path for path in (folder / "salmonn-smol").rglob("*") if path.is_file() and name == "hub"]
        expected |= {f"modeling_salmonn/{name}/{path.relative_to(folder)}": path for path in files}
    assert "modeling_salmonn/data/tasks.yaml" in expected
    packed = {name for name in wheel.namelist() if name.startswith("modeling_salmonn/")}
    assert packed == expected.keys()
    assert all(wheel.read(name) == path.read_bytes() for name, path in expected.items())


def test_wheel_installs_the_command_and_the_plugins_of_others(wheel: zipfile.ZipFile) -> None:
    (name,) = [name for name in wheel.namelist() if name.endswith(".dist-info/entry_points.txt")]
    lines = wheel.read(name).decode().splitlines()
    assert lines[lines.index("[console_scripts]") + 1] == "salmonn = modeling_salmonn.commands.app:app"
    model = "salmonn = modeling_salmonn.evaluation.lmms_eval_model:manifest"
    assert lines[lines.index("[lmms_eval.models]") + 1] == model
    plugin = "salmonn = modeling_salmonn.serving.vllm_plugin:register"
    assert lines[lines.index("[vllm.general_plugins]") + 1] == plugin


@pytest.fixture(scope="module")
def requirements(wheel: zipfile.ZipFile) -> list[Requirement]:
    (name,) = [name for name in wheel.namelist() if name.endswith(".dist-info/METADATA")]
    metadata = email.message_from_bytes(wheel.read(name))
    return [Requirement(line) for line in metadata.get_all("Requires-Dist", [])]


def required_by(requirements: list[Requirement], extra: str) -> set[str]:
    """Names of the libraries that an extra brings; the core's, where it is empty."""
    chosen = [requirement for requirement in requirements if is_in(requirement, extra)]
    return {canonicalize_name(requirement.name) for requirement in chosen} - {"modeling-salmonn"}


def is_in(requirement: Requirement, extra: str) -> bool:
    marker = str(requirement.marker or "")
    return f'extra == "{extra}"' in marker if extra else "extra" not in marker


def locked(python: str) -> dict[str, str]:
    """The release of each library in the lock, for a version of Python."""
    environment = {"python_version": python, "python_full_version": f"{python}.0", "sys_platform": "linux"}
    pins = [Requirement(line) for line in LOCK if not line.startswith("#")]
    chosen = [pin for pin in pins if pin.marker is None or pin.marker.evaluate(environment)]
    found = {canonicalize_name(pin.name): str(pin.specifier).removeprefix("==") for pin in chosen}
    assert len(found) == len(chosen)
    return found


def test_libraries_of_extras_are_those_of_the_metadata(requirements: list[Requirement]) -> None:
    expected = set.union(*(required_by(requirements, extra) for extra in EXTRAS))
    assert {canonicalize_name(name) for name in LIBRARIES} == expected
    assert not expected & required_by(requirements, "")


@pytest.mark.parametrize(("larger", "smaller"), [("smol", "evaluation"), ("evaluation", "training")])
def test_larger_extra_holds_the_smaller(larger: str, smaller: str, requirements: list[Requirement]) -> None:
    own = [entry for entry in requirements if entry.name == "modeling-salmonn" and is_in(entry, larger)]
    assert [entry.extras for entry in own] == [{smaller}]


def test_versions_that_are_checked_are_those_of_the_metadata(requirements: list[Requirement]) -> None:
    core = {entry.name: entry for entry in requirements if is_in(entry, "")}
    assert all(f">={lowest}" in str(core[name].specifier) for name, lowest in LOWEST.items())
    mended = [Requirement(entry) for entry in re.findall('"([^"]+)"', MEND)]
    assert {entry.name: entry.specifier for entry in mended} == {name: core[name].specifier for name in LOWEST}


def test_lock_holds_releases_and_nothing_of_a_machine() -> None:
    pinned = re.compile(r"[a-z0-9-]+==[0-9][0-9a-z.]*( ; [^/@]+)?")
    assert [line for line in LOCK if not line.startswith("#") and not pinned.fullmatch(line)] == []
    assert not any("/" in line for line in LOCK)  # in the comment neither


@pytest.mark.parametrize("python", PYTHONS)
def test_lock_meets_every_requirement(python: str, requirements: list[Requirement]) -> None:
    releases = locked(python)
    wanted = [entry for entry in requirements if entry.name != "modeling-salmonn"]
    assert [str(entry) for entry in wanted if releases[canonicalize_name(entry.name)] not in entry.specifier] == []


def test_makefile_installs_the_torch_of_the_lock() -> None:
    (release,) = re.findall(r"^RELEASE := torch==(.+)$", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert {locked(python)["torch"] for python in PYTHONS} == {release}
