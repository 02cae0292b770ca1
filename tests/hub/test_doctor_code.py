"""The doctor on code: that of the folder, and that of other repositories, against the installed package's."""

import shutil
from pathlib import Path

import pytest
from examinations import assert_found, change_json, named

from modeling_salmonn.hub.doctor import examine, is_healthy


@pytest.fixture
def folder(saved_folder: Path, tmp_path: Path) -> Path:
    """A healthy folder of the test's own, to be changed."""
    return Path(shutil.copytree(saved_folder, tmp_path / "salmonn"))


def test_code_other_than_the_installed_warns(folder: Path) -> None:
    (folder / "qformer_salmonn.py").write_text((folder / "qformer_salmonn.py").read_text() + "\nprint('other')\n")
    (folder / "stranger.py").write_text("print('other')\n")
    checks = assert_found(folder, "code", "warning", "installed package's: qformer_salmonn.py, stranger.py", "Read it")
    assert is_healthy(checks)


def test_code_that_is_no_text_fails(folder: Path) -> None:
    (folder / "qformer_salmonn.py").write_bytes(b"\xff\xfe\x00")
    assert_found(folder, "code", "failed", "qformer_salmonn.py is no text")


def test_code_of_another_repository_is_named(folder: Path) -> None:
    auto_map = {"AutoTokenizer": [None, "stranger/code--tokens.Tokenizer"]}
    change_json(folder / "tokenizer_config.json", auto_map=auto_map)
    change_json(folder / "config.json", auto_map={"AutoModel": "stranger/code--modeling_salmonn.Model"})
    checks = examine(str(folder))
    code = named(checks, "code")
    assert code.status == "warning"
    for module in ("modeling_salmonn.py of stranger/code", "tokens.py of stranger/code"):
        assert f"{module}, which cannot be fetched" in code.detail


@pytest.mark.usefixtures("own_caches")
def test_code_of_another_repository_is_compared(folder: Path, tmp_path: Path) -> None:
    repository = tmp_path / "hub" / "models--stranger--code"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text("0" * 40)
    snapshot = repository / "snapshots" / ("0" * 40)
    snapshot.mkdir(parents=True)
    shutil.copy(folder / "configuration_salmonn.py", snapshot)
    (snapshot / "modeling_salmonn.py").write_text("print('other')\n")
    auto_map = {
        "AutoConfig": "stranger/code--configuration_salmonn.SalmonnConfig",
        "AutoModel": "stranger/code--modeling_salmonn.SalmonnForConditionalGeneration",
    }
    change_json(folder / "config.json", auto_map=auto_map)
    code = named(examine(str(folder)), "code")
    assert code.status == "warning"
    assert "installed package's: modeling_salmonn.py of stranger/code; trust" in code.detail
