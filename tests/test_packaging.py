"""The wheel: one package, with everything that the checkout's folders hold."""

import shutil
import subprocess
import sys
import zipfile

import pytest
from conftest import ROOT

import modeling_salmonn


SUBPACKAGES = [name for name in ("processing", "hub", "training", "smol", "evaluation") if (ROOT / name).is_dir()]


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
        files = [path for path in (ROOT / name).rglob("*") if path.suffix in (".py", ".json", ".yaml")]
        files += [path for path in (ROOT / name / "salmonn-smol").rglob("*") if path.is_file() and name == "hub"]
        expected |= {f"modeling_salmonn/{name}/{path.relative_to(ROOT / name)}": path for path in files}
    assert "modeling_salmonn/processing/prompts.json" in expected
    packed = {name for name in wheel.namelist() if name.startswith("modeling_salmonn/")}
    assert packed == expected.keys()
    assert all(wheel.read(name) == path.read_bytes() for name, path in expected.items())


def test_wheel_installs_the_command(wheel: zipfile.ZipFile) -> None:
    (name,) = [name for name in wheel.namelist() if name.endswith(".dist-info/entry_points.txt")]
    assert wheel.read(name).decode().split() == ["[console_scripts]", "salmonn", "=", "modeling_salmonn.hub.cli:app"]
