"""The data of the builders: tables as YAML in `tables/`, each of which says what it holds."""

from functools import cache
from pathlib import Path
from typing import Any

from modeling_salmonn.data.text_files import read_yaml_mapping


FOLDER = Path(__file__).parent / "tables"


@cache
def read_table(name: str) -> dict[str, Any]:
    """The table of a name."""
    values, _ = read_yaml_mapping(FOLDER / f"{name}.yaml", "table")
    return values
