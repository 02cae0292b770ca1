"""`salmonn push FOLDER REPO`."""

from pathlib import Path
from typing import Annotated

import typer
from huggingface_hub import HfApi
from huggingface_hub.utils import enable_progress_bars
from rich.console import Console
from rich.filesize import decimal
from rich.table import Table

from modeling_salmonn.commands.options import check_salmonn
from modeling_salmonn.hub.doctor import examine, is_healthy, print_report
from modeling_salmonn.hub.push import full_repo_id, open_repository, require_repo_id, upload
from modeling_salmonn.hub.upload import Upload, adapter_only, collect_files


app = typer.Typer(add_completion=False)


@app.command()
def push(
    folder: Annotated[str, typer.Argument(help="Folder of a SALMONN model.", callback=check_salmonn)],
    repo: Annotated[str, typer.Argument(help="OWNER/NAME on the Hub; your own without OWNER.")],
    private: Annotated[bool, typer.Option("--private", help="Only you, or the organisation, may see it.")] = False,
    revision: Annotated[str | None, typer.Option(help="Branch, made if it is not there; main if not given.")] = None,
    trained_only: Annotated[
        bool, typer.Option("--adapter-only", help="Only what was trained; the bases are fetched by their Hub ids.")
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Examine, and list what would be uploaded.")] = False,
) -> None:
    """Upload a model to the Hub, with its processor, code and card, once the doctor finds it healthy."""
    source, api = Path(folder), HfApi()
    if not source.is_dir():
        raise ValueError(f"There is no folder {folder}; give the folder of a SALMONN model.")
    require_repo_id(repo)
    # the owner of a bare name is asked of the Hub, which needs a token; a dry run needs none
    repo_id = repo if dry_run else full_repo_id(api, repo)
    if trained_only:
        with adapter_only(source) as reduced:
            publish(api, reduced, repo_id, private, revision, dry_run)
    else:
        publish(api, source, repo_id, private, revision, dry_run)


def publish(api: HfApi, folder: Path, repo_id: str, private: bool, revision: str | None, dry_run: bool) -> None:
    """Examine a folder, show what is to be uploaded, and upload it."""
    checks, console = examine(str(folder)), Console()
    print_report(checks, console)
    if not is_healthy(checks):
        raise ValueError(f"{folder} is not healthy, and nothing was uploaded; mend what failed above.")
    files = collect_files(folder, repo_id)
    show(files, console)
    if dry_run:
        return
    enable_progress_bars()  # which are off in all commands, but uploads take long
    open_repository(api, repo_id, private, revision)
    commit = upload(api, repo_id, files, revision)
    typer.echo(f"Uploaded to {api.endpoint}/{repo_id}/tree/{commit}; to load exactly this:")
    typer.echo(f'AutoModel.from_pretrained("{repo_id}", revision="{commit}", trust_remote_code=True)')


def show(files: Upload, console: Console) -> None:
    """List what is uploaded and what is not."""
    sizes = files.sizes()
    table = Table("file", "size")
    table.columns[1].justify = "right"
    for name, size in sizes.items():
        table.add_row(name, decimal(size))
    table.add_section()
    table.add_row(f"{len(sizes)} files", decimal(sum(sizes.values())))
    console.print(table)
    for name in files.left_out:
        console.print(f"Left out: {name}", markup=False, highlight=False)
    for part in files.unstated:
        console.print(f"README.md, to be completed: {part}", markup=False, highlight=False)
