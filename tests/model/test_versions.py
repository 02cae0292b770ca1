"""Libraries that do not work together: what is said, and when."""

import os
import re
import shutil
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest
from conftest import ROOT, tiny_config, tiny_model
from transformers.dynamic_module_utils import get_class_from_dynamic_module

from modeling_salmonn import SalmonnForConditionalGeneration
from modeling_salmonn.versions_salmonn import LOWEST, MEND, find_mismatch


OLD_PEFT = f"needs peft {LOWEST['peft']} or later, but peft 0.19.1 is installed; run: {MEND}"
NEW_TRANSFORMERS = f"transformers {version('transformers')} needs peft 99.0 or later, but peft {version('peft')} is"


def claim_version(folder: Path, name: str, claimed: str) -> Path:
    """A folder in which another version of a library is registered than the one that is installed."""
    metadata = folder / f"{name}-{claimed}.dist-info" / "METADATA"
    metadata.parent.mkdir()
    metadata.write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {claimed}\n")
    return folder


def run_python(code: str, *first: Path) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(str(path) for path in first)}
    return subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)


def test_installed_versions_match() -> None:
    assert find_mismatch() is None


def test_newer_transformers_names_both_versions_and_the_mend(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("modeling_salmonn.versions_salmonn.MIN_PEFT_VERSION", "99.0")
    assert find_mismatch() == f"{NEW_TRANSFORMERS} installed; run: {MEND}"


@pytest.mark.parametrize("name", LOWEST)
def test_older_library_names_both_versions_and_the_mend(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(claim_version(tmp_path, name, "0.9"))
    assert find_mismatch() == f"SALMONN needs {name} {LOWEST[name]} or later, but {name} 0.9 is installed; run: {MEND}"


@pytest.mark.parametrize("claimed", ["2.6.0a0+git1", "2.6.0.dev20250101", "99.0+cpu"])
def test_previews_and_builds_count_as_their_release(
    claimed: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(claim_version(tmp_path, "torch", claimed))
    assert find_mismatch() is None


def test_adapter_is_not_loaded_with_an_older_peft(
    saved_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(claim_version(tmp_path, "peft", "0.19.1"))
    with pytest.raises(ImportError, match=r"but peft 0\.19\.1 is installed; run: pip install"):
        SalmonnForConditionalGeneration.from_pretrained(saved_folder)


def test_adapter_is_not_added_with_an_older_peft(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model(tiny_config())
    monkeypatch.syspath_prepend(claim_version(tmp_path, "peft", "0.19.1"))
    with pytest.raises(ImportError, match=r"but peft 0\.19\.1 is installed; run: pip install"):
        model.add_lora()


def test_first_import_warns_in_a_sentence_and_goes_on(tmp_path: Path) -> None:
    code = "import modeling_salmonn; print('goes on')"
    result = run_python(code, claim_version(tmp_path, "peft", "0.19.1"), ROOT)
    assert result.stdout == "goes on\n", result.stderr
    assert result.stderr.count(OLD_PEFT) == 1


def test_first_import_fails_with_a_sentence_where_it_cannot_work(tmp_path: Path) -> None:
    result = run_python("import modeling_salmonn", claim_version(tmp_path, "transformers", "4.57.6"), ROOT)
    last = result.stderr.strip().splitlines()[-1]
    assert last == (
        f"ImportError: SALMONN needs transformers {LOWEST['transformers']} or later, "
        f"but transformers 4.57.6 is installed; run: {MEND}"
    )


def test_code_of_a_saved_folder_warns_too(saved_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = shutil.copytree(saved_folder, tmp_path / "unmatched")  # by a name of its own, its code is imported anew
    monkeypatch.syspath_prepend(claim_version(tmp_path, "peft", "0.19.1"))
    with pytest.warns(UserWarning, match=re.escape(OLD_PEFT)):
        get_class_from_dynamic_module("configuration_salmonn.SalmonnConfig", str(folder))
