"""The way of a model to the Hub and back, by a server on this machine that speaks its API."""

import json
import os
import re
import shutil
import subprocess
import sys
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
from command_line import assert_one_line_error, run, run_whole
from conftest import tiny_model
from hub_server import READING_TOKEN, TOKEN, HubServer, hub_server
from huggingface_hub import ModelCard
from model_bases import randomise_adapter, save_bases
from saved_folders import INSTRUCTION

from modeling_salmonn import SalmonnConfig, SalmonnForConditionalGeneration, SalmonnProcessor
from modeling_salmonn.hub.doctor import examine, is_healthy
from modeling_salmonn.hub.upload import collect_files


pytestmark = pytest.mark.usefixtures("restored_logging", "own_caches")
REPO = "me/salmonn-tiny"
# Run without this package: the code that is run comes from the Hub.
LOAD = """
import json, sys
sys.modules["modeling_salmonn"] = None
from transformers import AutoModel, AutoProcessor, pipeline
repo, clip, text, *revisions = sys.argv[1:]
answers = []
for revision in revisions:
    options = {"revision": revision, "trust_remote_code": True}
    model = AutoModel.from_pretrained(repo, **options)
    processor = AutoProcessor.from_pretrained(repo, **options)
    pipe = pipeline("audio-text", model=repo, **options)
    inputs = processor(text=text, audio=clip, return_tensors="pt")
    output = model.generate(**inputs, max_new_tokens=8)
    answer = processor.decode(output[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    piped = pipe(clip, text=text, max_new_tokens=8)[0]["generated_text"]
    assert piped == answer.strip(), (piped, answer)
    answers.append(output.tolist())
print(json.dumps(answers))
"""


@pytest.fixture
def own_folder(saved_folder: Path, tmp_path: Path) -> Path:
    """A whole folder of the test's own."""
    return Path(shutil.copytree(saved_folder, tmp_path / "salmonn-tiny"))


def pushed_commit(output: str) -> str:
    found = re.search(r'revision="(\w{40})"', output)
    assert found is not None, output
    return found[1]


def load_in_a_clean_process(hub: HubServer, home: Path, clip: Path, *revisions: str) -> list[list[list[int]]]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "PYTHONPATH"))}
    environment = kept | {"HF_ENDPOINT": hub.url, "HF_HOME": str(home), "HF_HUB_DISABLE_XET": "1"}
    command = [sys.executable, "-c", LOAD, REPO, str(clip), INSTRUCTION, *revisions]
    done = subprocess.run(command, env=environment, cwd=home.parent, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    answers: list[list[list[int]]] = json.loads(done.stdout.splitlines()[-1])
    return answers


def local_answer(folder: Path, clip: Path) -> list[list[int]]:
    model = SalmonnForConditionalGeneration.from_pretrained(folder)
    processor = SalmonnProcessor.from_pretrained(folder)
    inputs = processor(text=INSTRUCTION, audio=str(clip), return_tensors="pt")
    return model.generate(**inputs, max_new_tokens=8).tolist()


def save_with_hub_bases(hub: HubServer, config: SalmonnConfig, processor: SalmonnProcessor, folder: Path) -> Path:
    """A whole folder of a model whose config names bases that are on the Hub."""
    model = tiny_model(deepcopy(config))
    for name, path in save_bases(model, folder.parent / "bases").items():
        repo_id = f"bases/{name.partition('_')[0]}"
        hub.add_folder(repo_id, Path(path))
        setattr(model.config, name, repo_id)
    model.add_lora()
    randomise_adapter(model)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


def test_pushed_revisions_answer_as_their_folders_in_a_clean_process(
    hub: HubServer, own_folder: Path, wav_file: Path, tmp_path: Path
) -> None:
    first_answer = local_answer(own_folder, wav_file)
    first = pushed_commit(run_whole("push", own_folder, REPO))
    model = SalmonnForConditionalGeneration.from_pretrained(own_folder)
    with torch.no_grad():
        model.model.projector.weight.mul_(-3)
    model.save_pretrained(own_folder)
    second = pushed_commit(run_whole("push", own_folder, REPO))
    second_answer = local_answer(own_folder, wav_file)
    assert first_answer != second_answer
    answers = load_in_a_clean_process(hub, tmp_path / "home", wav_file, first, second)
    assert answers == [first_answer, second_answer]


def test_pushed_adapter_answers_as_its_folder_in_a_clean_process(
    hub: HubServer,
    bucket_config: SalmonnConfig,
    bucket_processor: SalmonnProcessor,
    wav_file: Path,
    tmp_path: Path,
) -> None:
    folder = save_with_hub_bases(hub, bucket_config, bucket_processor, tmp_path / "whole")
    commit = pushed_commit(run_whole("push", folder, REPO, "--adapter-only"))
    files = hub.files(REPO)
    assert {"connector.safetensors", "adapter_model.safetensors", "hashes.json"} < files.keys()
    assert "model.safetensors" not in files
    answers = load_in_a_clean_process(hub, tmp_path / "home", wav_file, commit)
    assert answers == [local_answer(folder, wav_file)]
    assert ModelCard(files["README.md"].decode()).data.base_model == ["bases/speech", "bases/audio", "bases/text"]


def test_pushed_repository_is_healthy(hub: HubServer, own_folder: Path) -> None:
    run_whole("push", own_folder, REPO)
    checks = examine(REPO)
    assert is_healthy(checks), checks
    assert json.loads(hub.files(REPO)["adapter_config.json"])["base_model_name_or_path"] == REPO
    assert (own_folder / "adapter_config.json").read_bytes() != hub.files(REPO)["adapter_config.json"]


def test_push_goes_on_where_it_was_stopped(hub: HubServer, own_folder: Path) -> None:
    hub.room = 1
    result = run("push", own_folder, REPO)
    assert result.exit_code == 1
    assert "Storage limit reached" in result.stderr
    assert hub.files(REPO).keys() == {".gitattributes"}  # nothing half
    hub.room = 10
    run_whole("push", own_folder, REPO)
    assert len(hub.received) == 2
    assert set(hub.received.values()) == {1}


def test_push_of_what_is_there_makes_no_commit(hub: HubServer, own_folder: Path) -> None:
    first = pushed_commit(run_whole("push", own_folder, REPO))
    assert pushed_commit(run_whole("push", own_folder, REPO)) == first


def test_push_takes_outdated_weights_away(hub: HubServer, own_folder: Path) -> None:
    hub.add(REPO, {"config.json": b'{"model_type": "salmonn"}', "connector.safetensors": b"", "notes.md": b"Mine."})
    run_whole("push", own_folder, REPO)
    assert "connector.safetensors" not in hub.files(REPO)
    assert hub.files(REPO)["notes.md"] == b"Mine."


def test_push_to_a_branch_leaves_main_alone(hub: HubServer, own_folder: Path) -> None:
    run_whole("push", own_folder, REPO, "--revision", "trial")
    assert "model.safetensors" in hub.files(REPO, "trial")
    assert "model.safetensors" not in hub.files(REPO, "main")


def test_name_without_owner_is_the_users(hub: HubServer, own_folder: Path) -> None:
    run_whole("push", own_folder, "salmonn-tiny", "--private")
    assert hub.repositories[REPO].private


def test_dry_run_lists_and_uploads_nothing(hub: HubServer, own_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HF_TOKEN")
    for name in ("optimizer.bin", "checkpoint-3/config.json", ".env", "bad_clips.txt"):
        (own_folder / name).parent.mkdir(exist_ok=True)
        (own_folder / name).write_text("{}")
    output = run_whole("push", own_folder, REPO, "--dry-run")
    assert re.search(r"model\.safetensors +│ +\d+\.\d kB", output)
    left_out = re.findall(r"Left out: (.+)", output)
    assert left_out == [".env", "bad_clips.txt", "checkpoint-3/config.json", "optimizer.bin"]
    assert "README.md, to be completed: the metadata have no license" in output
    assert hub.repositories == {}


def refused(folder: Path, *options: Any, repo: str = REPO) -> str:
    result = run("push", folder, repo, *options)
    assert result.exit_code == 1, result.output
    assert isinstance(result.exception, SystemExit)
    return str(result.stderr)


def test_push_without_a_token_is_refused_at_once(
    hub: HubServer, own_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", str(own_folder / "none"))
    assert_one_line_error(run("push", own_folder, REPO), "`hf auth login`, or set the variable HF_TOKEN")
    monkeypatch.setenv("HF_TOKEN", "hf_invented")
    assert_one_line_error(run("push", own_folder, REPO), "does not accept the token", "HF_TOKEN")


@pytest.mark.parametrize("repo", ["me/two/three", "me/salmonn tiny", "me/-x"])
def test_push_to_what_is_no_name_is_refused(hub: HubServer, own_folder: Path, repo: str) -> None:
    assert "no name of a repository" in refused(own_folder, repo=f"{repo}")


def test_push_is_refused_where_the_token_may_not_write(
    hub: HubServer, own_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "not let this token write to other/salmonn (You don't have" in refused(own_folder, repo="other/salmonn")
    monkeypatch.setenv("HF_TOKEN", READING_TOKEN)
    hub.add(REPO)
    assert "a token of reader; check the name" in refused(own_folder)
    assert hub.files(REPO).keys() == {".gitattributes"}


def test_push_is_refused_where_the_name_is_taken(hub: HubServer, own_folder: Path) -> None:
    hub.add(REPO, {"config.json": b'{"model_type": "llama"}', "model.safetensors": b""})
    assert "exists and holds a model of type 'llama' (config.json, model.safetensors)" in refused(own_folder)
    hub.add("me/public")
    assert "exists and is public" in refused(own_folder, "--private", repo="me/public")


def test_lost_connection_is_told_in_a_line(own_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with hub_server() as server:
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", server.url)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    assert_one_line_error(run("push", own_folder, REPO), "The connection to http://127.0.0.1:", "call this again")


def test_clips_of_recorded_answers_are_pushed_wherever_they_are(own_folder: Path, wav_file: Path) -> None:
    (own_folder / "clips").mkdir()
    for name in ("clip.wav", "clips/a.wav", "clips/LICENSE", "other.wav"):
        shutil.copy(wav_file, own_folder / name)
    cases = [{"audio": name, "text": "What?", "answer": "A tone."} for name in ("clip.wav", "clips/a.wav")]
    (own_folder / "golden_answers.json").write_text(json.dumps({"cases": cases}))
    upload = collect_files(own_folder, REPO)
    assert {"golden_answers.json", "clip.wav", "clips/a.wav", "clips/LICENSE"} < upload.files.keys()
    assert upload.left_out == ["other.wav"]


def test_unhealthy_folder_is_not_pushed(hub: HubServer, own_folder: Path) -> None:
    config = json.loads((own_folder / "config.json").read_text())
    (own_folder / "config.json").write_text(json.dumps(config | {"audio_token_id": 7}))
    assert "is not healthy, and nothing was uploaded" in refused(own_folder)
    assert hub.repositories == {}


def test_adapter_on_bases_that_others_lack_is_refused(
    hub: HubServer, saved_folder: Path, adapter_folder: Path
) -> None:
    assert "speech_model_id None" in refused(saved_folder, "--adapter-only")
    assert "set Hub ids there, or push a whole model" in refused(adapter_folder)


def test_adapter_on_bases_with_other_weights_is_refused(
    hub: HubServer, bucket_config: SalmonnConfig, bucket_processor: SalmonnProcessor, tmp_path: Path
) -> None:
    folder = save_with_hub_bases(hub, bucket_config, bucket_processor, tmp_path / "whole")
    model = SalmonnForConditionalGeneration.from_pretrained(folder)
    with torch.no_grad():
        model.lm_head.weight.add_(1)
    model.save_pretrained(folder)
    assert "have other weights than this folder (lm_head.weight)" in refused(folder, "--adapter-only")
    run_whole("push", folder, REPO)


def test_push_of_a_missing_folder_is_refused(hub: HubServer) -> None:
    assert "There is no folder me/salmonn" in refused(Path("me/salmonn"))
