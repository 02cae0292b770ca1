"""Upload to the Hub: what `salmonn push` does once it is known what to upload.

- weights go first, each file by itself; those that have arrived are not sent again, so that a push that was stopped
  goes on where it was when it is called again
- one commit makes all of it visible, and takes away outdated weights: no revision holds old and new files together
- whatever the Hub refuses is told with what to do
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, get_token
from huggingface_hub.errors import HfHubHTTPError, HTTPError, RepositoryNotFoundError
from huggingface_hub.utils import HFValidationError, validate_repo_id

from modeling_salmonn.checkpoint_files_salmonn import is_own_weight_file, listing
from modeling_salmonn.configuration_salmonn import SalmonnConfig
from modeling_salmonn.hub.upload import Upload


BARE_FILES = {".gitattributes", "README.md", "LICENSE"}  # what a repository has that was made in a browser
MESSAGE = "Upload model, processor and code"


def full_repo_id(api: HfApi, repo: str) -> str:
    """Hub id of a repository, with the user's name where none was given.

    Raises:
        ValueError: if the name is none, or there is no token that the Hub accepts.
    """
    require_repo_id(repo)
    if get_token() is None:
        raise ValueError(
            "An upload needs a token of the Hub that may write: call `hf auth login`, or set the variable HF_TOKEN; "
            "https://huggingface.co/settings/tokens makes one."
        )
    with _explained(api, repo):
        user = api.whoami()["name"]
    return repo if "/" in repo else f"{user}/{repo}"


def require_repo_id(repo: str) -> None:
    """Refuse, by a `ValueError`, what cannot be the name of a repository."""
    try:
        validate_repo_id(repo)
    except HFValidationError as error:
        raise ValueError(f"{repo!r} is no name of a repository ({error}); give OWNER/NAME.") from error


def open_repository(api: HfApi, repo_id: str, private: bool, revision: str | None) -> None:
    """Make the repository, and the branch, if they are not there.

    Args:
        api: client of the Hub.
        repo_id: Hub id with its owner.
        private: whether it has to be private.
        revision: branch to upload to; `main` if not given.

    Raises:
        ValueError: if there is one that is public and should not be, or that holds something else, or the token may
            not make one.
    """
    with _explained(api, repo_id):
        try:
            found = api.model_info(repo_id)
        except RepositoryNotFoundError:
            api.create_repo(repo_id, private=private or None)  # an organisation may make its own private
        else:
            _require_no_clash(repo_id, found, private)
        if revision is not None:
            api.create_branch(repo_id, branch=revision, exist_ok=True)


def upload(api: HfApi, repo_id: str, contents: Upload, revision: str | None) -> str:
    """Upload the files in one commit.

    Args:
        api: client of the Hub.
        repo_id: Hub id of a repository that is there.
        contents: what to upload.
        revision: branch to upload to; `main` if not given.

    Returns:
        Hash of the commit; of the last one if the repository has all of it already.

    Raises:
        ValueError: if the Hub refuses.
        OSError: if the connection is lost; what has arrived stays there.
    """
    additions = [CommitOperationAdd(name, content) for name, content in contents.files.items()]
    with _explained(api, repo_id):
        for addition in additions:
            if is_own_weight_file(Path(addition.path_in_repo).name):
                api.preupload_lfs_files(repo_id, [addition], revision=revision, free_memory=False)
        there = api.list_repo_files(repo_id, revision=revision)
        outdated = [name for name in there if is_own_weight_file(name) and name not in contents.files]
        operations: list[Any] = [*additions, *map(CommitOperationDelete, outdated)]
        return api.create_commit(repo_id, operations, commit_message=MESSAGE, revision=revision).oid


def _require_no_clash(repo_id: str, found: Any, private: bool) -> None:
    if private and not found.private:
        raise ValueError(
            f"{repo_id} exists and is public, which an upload does not change; make it private in its settings, or "
            "give another name."
        )
    kind = (found.config or {}).get("model_type")
    others = sorted({file.rfilename for file in found.siblings or []} - BARE_FILES)
    if others and kind != SalmonnConfig.model_type:
        raise ValueError(
            f"{repo_id} exists and holds a model of type {kind!r} ({listing(others)}), not of type "
            f"'{SalmonnConfig.model_type}'; give another name."
        )


@contextmanager
def _explained(api: HfApi, repo_id: str) -> Iterator[None]:
    """Say what to do about a refusal of the Hub, or about its silence, whatever it was asked for."""
    try:
        yield
    except HfHubHTTPError as error:
        raise ValueError(_explain_refusal(api, repo_id, error)) from error
    except (HTTPError, RuntimeError) as error:
        cause = error.__cause__  # uploads of weights end in a RuntimeError that tells nothing
        if isinstance(cause, HfHubHTTPError):
            raise ValueError(_explain_refusal(api, repo_id, cause)) from error
        if isinstance(error, HTTPError) or isinstance(cause, HTTPError):
            raise ConnectionError(
                f"The connection to {api.endpoint} failed ({cause or error}); call this again, which goes on where it "
                "was stopped."
            ) from error
        raise


def _explain_refusal(api: HfApi, repo_id: str, error: HfHubHTTPError) -> str:
    reason, status = error.server_message or str(error), error.response.status_code
    if status == 401 and not isinstance(error, RepositoryNotFoundError):
        return (
            f"The Hub does not accept the token ({reason}); call `hf auth login` again, or correct the variable "
            "HF_TOKEN, which goes before it."
        )
    if status in (401, 403, 404):
        return (
            f"The Hub does not let this token write to {repo_id} ({reason}). It is a token of "
            f"{', '.join(_owners(api))}; check the name, and whether the token has the right to write there."
        )
    return f"The Hub does not take the upload to {repo_id} ({reason}); try again later, or mend what it names."


def _owners(api: HfApi) -> list[str]:
    """The user of the token, and the organisations that it can be in the name of."""
    found = api.whoami()
    return [found["name"], *(organisation["name"] for organisation in found.get("orgs", []))]
