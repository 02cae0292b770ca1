"""Reads JSON and YAML that people write or programs leave: what is wrong with them is told with file and line.

Whatever a file holds, reading it takes little time and ends in values or in a `ValueError`: nesting, aliases and
numbers have limits, and a key that is given twice is a mistake, not a choice between two values.
"""

import json
import math
import os
import re
from collections import Counter
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from reprlib import Repr
from typing import Any, NoReturn

import yaml


MAX_BYTES = 2**31  # of a file that is read as a whole
MAX_NESTING = 50  # levels; the deepest of our own files has 5
MAX_YAML_CHARACTERS = 100_000  # PyYAML takes a third of a second for them
MAX_YAML_VALUES = 100_000  # aliases can name 10 ** 9 of them in a few lines
TOO_DEEP = f"more than {MAX_NESTING} levels of nesting"
SHOWN_CHARACTERS = 300  # of a value in a message
NESTED_BRACKETS = re.compile(rf"(?:[\[{{]\s*){{{MAX_NESTING + 1}}}")
BLANKS = re.compile(r"\s*")
UTF16_MARKS = (b"\xff\xfe", b"\xfe\xff")
SHORT = Repr()
SHORT.maxstring = SHORT.maxother = 80
SHORT.maxlevel, SHORT.maxdict, SHORT.maxlist = 2, 12, 12


def read_text(path: str | os.PathLike, what: str) -> str:
    """The text of a file in UTF-8, without a byte order mark; messages call it `what`, such as a manifest."""
    file = Path(path).expanduser()
    if file.exists() and not file.is_file():
        raise ValueError(f"{path} is {'a folder' if file.is_dir() else 'a device'}; give the file of a {what}.")
    if not file.is_file():
        raise ValueError(f"There is no {what} {path}.")
    size = file.stat().st_size
    if size > MAX_BYTES:
        raise ValueError(f"{path} has {size:,} bytes, more than {MAX_BYTES:,}; is it a {what}? Cut it into several.")
    content = file.read_bytes()
    if content.startswith(UTF16_MARKS):
        raise ValueError(f"{path} is in UTF-16; save it in UTF-8.")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        wrong = content[error.start]
        raise ValueError(
            f"Line {line} of {path} is not UTF-8 (byte 0x{wrong:02x}); save the file in UTF-8."
        ) from error


def parse_json(text: str, name: str, strict: bool = True) -> Any:
    """The value of a JSON text; a `ValueError` if it is none, is nested too deeply, or has a key twice.

    Args:
        text: all of it; of several lines, messages tell which.
        name: what to call it in messages, such as `line 3 of rows.jsonl`.
        strict: refuse numbers that are not finite; our own records of losses may have them.
    """
    position = _skip_blanks(text, 0)
    value, end = _decode(text, position, name, strict)
    _require_end(text, end, name)
    return value


def parse_json_rows(text: str, file: str | os.PathLike) -> Iterator[tuple[int, Any]]:
    """The entries of `[...]` or of `{"annotation": [...]}` one by one, each with the line where it begins.

    Raises:
        ValueError: as `parse_json`, and if the text is neither of the two.
    """
    text += "\n"  # so that mistakes in a file of one line are told with it as well
    position = _skip_blanks(text, 0)
    is_object = text[position : position + 1] == "{"
    if is_object:
        position = _find_annotation(text, position, str(file))
    if text[position : position + 1] != "[":
        raise ValueError(f'{file} needs to hold a list of rows, or {{"annotation": [rows]}}.')
    line, counted = 1, 0
    for start, value in _entries(text, position, str(file), within_object=is_object):
        line, counted = line + text.count("\n", counted, start), start
        yield line, value


def read_json_object(path: str | os.PathLike, mend: str, what: str = "file") -> dict[str, Any]:
    """A file that an earlier call has written; its `ValueError` says how to `mend` one that is damaged."""
    try:
        value = parse_json(read_text(path, what) + "\n", str(path), strict=False)
    except ValueError as error:
        raise ValueError(f"{str(error).rstrip('.')}; {mend}.") from error
    if not isinstance(value, dict):
        raise ValueError(f"{path} holds {kind_of(value)}, but it needs an object with names and values; {mend}.")
    return value


def read_yaml_mapping(
    path: str | os.PathLike, what: str, needed: str = "map keys to values"
) -> tuple[dict[Any, Any], dict[Any, int]]:
    """The keys and values of a YAML file, and the line of each key.

    Messages call it `what`, and say what is `needed` of one that holds something else.
    """
    text = read_text(path, what)
    node = _compose(text, str(path))
    values = _construct(node, str(path))
    if not isinstance(values, dict):
        raise ValueError(f"{path} holds {kind_of(values)}; it needs to {needed}.")
    lines = {}
    for key, _ in node.value if node is not None else ():
        lines[key.value] = key.start_mark.line + 1
    return values, {key: lines.get(str(key), 1) for key in values}


def parse_yaml(text: str, name: str) -> Any:
    """The value of a YAML text, which messages call by a name."""
    return _construct(_compose(text, name), name)


def kind_of(value: Any) -> str:
    """What a value is, in words for a message."""
    kinds = {type(None): "nothing", bool: "true or false", str: "text", dict: "a mapping"}
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return "a number"
    return kinds.get(type(value), f"a {type(value).__name__}")


def shown(value: Any) -> str:
    """A value for a message, cut where it is long."""
    return SHORT.repr(value)[:SHOWN_CHARACTERS]


def _skip_blanks(text: str, position: int) -> int:
    found = BLANKS.match(text, position)
    return found.end() if found else position


def _decode(text: str, position: int, name: str, strict: bool = True) -> tuple[Any, int]:
    """The JSON value at a position, and where it ends."""
    try:
        value, end = (STRICT_DECODER if strict else DECODER).raw_decode(text, position)
    except json.JSONDecodeError as error:
        _fail_json(error.msg, text, error.pos, name)
    except RecursionError:
        _fail_json(TOO_DEEP, text, position, name)
    except ValueError as error:  # of the decoder's hooks
        _fail_json(str(error), text, position, name)
    if _is_too_deep(value, MAX_NESTING):
        _fail_json(TOO_DEEP, text, position, name)
    return value, end


def _fail_json(problem: str, text: str, position: int, name: str) -> NoReturn:
    line = text.count("\n", 0, min(position, len(text.rstrip()))) + 1
    where = f"line {line} of {name}" if "\n" in text else name
    cut = "; it seems to be cut off" if not text[position:].strip() or problem.startswith("Unterminated") else ""
    raise ValueError(f"{where} is not JSON ({problem}{cut}).")


def _entries(text: str, position: int, name: str, within_object: bool) -> Iterator[tuple[int, Any]]:
    """The values of a JSON list, each with its position."""
    position = _skip_blanks(text, position + 1)
    while text[position : position + 1] != "]":
        value, end = _decode(text, position, name)
        yield position, value
        position = _skip_blanks(text, end)
        if text[position : position + 1] == ",":
            position = _skip_blanks(text, position + 1)
            if text[position : position + 1] == "]":
                _fail_json("a comma behind the last entry", text, position, name)
        elif text[position : position + 1] != "]":
            _fail_json("Expecting ',' delimiter", text, position, name)
    if not within_object:
        _require_end(text, position + 1, name)


def _require_end(text: str, position: int, name: str) -> None:
    if _skip_blanks(text, position) != len(text):
        _fail_json("there is more behind its end", text, position, name)


def _find_annotation(text: str, position: int, name: str) -> int:
    """Where the value of `annotation` begins in an object; the object is checked as a whole."""
    value = parse_json(text, name)
    if "annotation" not in value:
        return position
    position = _skip_blanks(text, position + 1)
    while True:
        key, end = _decode(text, position, name)
        position = _skip_blanks(text, _skip_blanks(text, end) + 1)  # behind the colon
        if key == "annotation":
            return position
        _, end = _decode(text, position, name)
        position = _skip_blanks(text, _skip_blanks(text, end) + 1)  # behind the comma


def _without_doubles(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        ((double, _),) = Counter(key for key, _ in pairs).most_common(1)
        raise ValueError(f"the key {shown(double)} is given twice")
    return found


def _whole_number(text: str) -> int:
    if len(text) > 20 or not -(2**63) <= int(text) < 2**63:
        raise ValueError(f"the number {text[:24]} has more than 64 bits")
    return int(text)


def _finite_number(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"{text[:24]} is no finite number")
    return number


def _is_too_deep(value: Any, levels: int) -> bool:
    if not isinstance(value, (dict, list)):
        return False
    inner = value.values() if isinstance(value, dict) else value
    return levels == 0 or any(_is_too_deep(entry, levels - 1) for entry in inner)


def _compose(text: str, name: str) -> Any:
    """The nodes of a YAML text; `None` for an empty one."""
    if len(text) > MAX_YAML_CHARACTERS:
        raise ValueError(f"{name} has {len(text):,} characters; YAML of ours has at most {MAX_YAML_CHARACTERS:,}.")
    nested = NESTED_BRACKETS.search(text)  # which would exhaust the stack of PyYAML
    if nested is not None:
        line = text.count("\n", 0, nested.start()) + 1
        raise ValueError(f"Line {line} of {name} has {TOO_DEEP}.")
    try:
        node = yaml.SafeLoader(text).get_single_node()
    except yaml.MarkedYAMLError as error:
        raise _yaml_error(error, name) from error
    except (yaml.YAMLError, RecursionError) as error:  # characters that YAML does not allow
        reason = "nested too deeply" if isinstance(error, RecursionError) else " ".join(str(error).split())
        raise ValueError(f"{name} is not YAML: {reason}.") from error
    if node is not None:
        _check_node(node, name, 0, 0)
    return node


def _check_node(node: Any, name: str, level: int, counted: int) -> int:
    """Refuse keys that are given twice, deep nesting, and aliases that stand for too much; counts the values."""
    line = node.start_mark.line + 1
    if level > MAX_NESTING or counted > MAX_YAML_VALUES:
        raise ValueError(
            f"Line {line} of {name} has {TOO_DEEP}, or aliases that stand for more than {MAX_YAML_VALUES:,} values; "
            "write it out."
        )
    counted += 1
    if isinstance(node, yaml.ScalarNode):
        return counted
    children = node.value
    if isinstance(node, yaml.MappingNode):
        _refuse_double_keys(node, name)
        children = chain.from_iterable(node.value)  # keys and values
    for child in children:
        counted = _check_node(child, name, level + 1, counted)
    return counted


def _refuse_double_keys(node: Any, name: str) -> None:
    lines: dict[str, int] = {}
    for key, _ in node.value:
        line = key.start_mark.line + 1
        if not isinstance(key, yaml.ScalarNode):
            raise ValueError(f"Line {line} of {name} has a key that is no word; write key: value.")
        if key.value in lines:
            first = lines[key.value]
            raise ValueError(f"Line {line} of {name} gives the key {shown(key.value)} again, after line {first}.")
        lines[key.value] = line


def _construct(node: Any, name: str) -> Any:
    if node is None:
        return None
    try:
        return yaml.SafeLoader("").construct_document(node)
    except yaml.MarkedYAMLError as error:
        raise _yaml_error(error, name) from error
    except (ValueError, LookupError, AttributeError, TypeError, OverflowError) as error:  # PyYAML's, of odd values
        raise ValueError(f"{name} has a value that cannot be read ({error}); put it into quotes.") from error


def _yaml_error(error: yaml.MarkedYAMLError, name: str) -> ValueError:
    mark = error.problem_mark or error.context_mark
    line = f"line {mark.line + 1} of {name}" if mark is not None else name
    problem = str(error.problem or error.context)
    hint = "; indent with blanks, not with tabs" if r"\t" in problem else ""
    return ValueError(f"{line} is not YAML: {problem}{hint}.")


DECODER = json.JSONDecoder(object_pairs_hook=_without_doubles, parse_int=_whole_number)
STRICT_DECODER = json.JSONDecoder(
    object_pairs_hook=_without_doubles,
    parse_int=_whole_number,
    parse_float=_finite_number,
    parse_constant=_finite_number,
)
