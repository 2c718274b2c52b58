"""Read whole tables from text files: CSV, TSV, JSON, JSON Lines."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from peftlib.errors import UserError, nearest
from peftlib.files import Twice, each_once

#: What to do about a quote that is not closed, here or above.
_OF_QUOTES = 'quotes that belong to a text stand twice, inside of others: """Hello"", she said", or write JSON Lines'
_OF_DELIMITERS = "write commas in a .csv file, and tabs in a .tsv file"
#: File suffix -> column separator.
DELIMITERS = {".csv": ",", ".tsv": "\t"}


@dataclass(frozen=True)
class Table:
    """Rows and columns.

    Attributes:
        source: where the rows come from, for messages.
        rows: per row its place in the source, for messages, and its values in column order; None for missing ones.
        classes: class names in order, if the source declares them.
        texts: names of the text columns, if the source declares them.
    """

    source: str
    columns: list[str]
    rows: list[tuple[str, list[Any]]]
    classes: tuple[str, ...] | None = None
    texts: tuple[str, ...] | None = None

    def index_of(self, name: str, hint: str = "") -> int:
        """Return the index of a column.

        Args:
            hint: appended to the message if it is missing.

        Raises:
            UserError: it is missing or ambiguous.
        """
        if name not in self.columns:
            raise UserError(
                f"{self.source}: no column {name!r}{nearest(name, self.columns)} (there are: "
                f"{', '.join(self.columns) or 'none'}){hint}"
            )
        if self.columns.count(name) > 1:
            raise UserError(f"{self.source}: more than one column is called {name!r}; rename the others")
        return self.columns.index(name)

    def index_for_flag(self, name: str, flag: str) -> int:
        """Return the index of a column that the user names, or could name, by a flag.

        Raises:
            UserError: it is missing or ambiguous.
        """
        delimiter = DELIMITERS.get(Path(self.source).suffix.lower())
        header = "" if delimiter is None else ", or write a first line with the columns' names"
        other = _other_delimiter(self.columns[0], delimiter) if delimiter and len(self.columns) == 1 else None
        if other is not None and name not in self.columns:
            raise UserError(f"{self.source}: has {other} between its columns; {_OF_DELIMITERS}")
        return self.index_of(name, f"; name it in {flag}{header}")


def read_delimited(
    path: Path,
    delimiter: str,
    columns: tuple[str, ...] | None = None,
    *,
    quoted: bool = True,
    broken: bool = False,
) -> Table:
    """Read a CSV or TSV file in UTF-8, with or without a byte order mark.

    Args:
        columns: columns of a file without a header; None reads the header.
        quoted: whether double quotes quote; in GLUE's files they are ordinary characters.
        broken: skip rows with another number of fields than the header.

    Raises:
        UserError: the content is not such a table.
        OSError: the file cannot be read.
    """
    name = "comma" if delimiter == "," else "tab"
    way = f"a text with a {name} or a line break in it stands in double quotes"
    if not quoted:
        way = f"fields are separated by single {name}s and not quoted"
    rows: list[tuple[str, list[Any]]] = []
    # Without quotes a row is a line, and a field beyond csv's limit of 131,072 characters cannot be a text.
    limits = _texts_of_any_length() if quoted else nullcontext()
    with limits, _in_utf8(path), path.open(encoding="utf-8-sig", newline="") as file:
        how: Literal[0, 3] = csv.QUOTE_MINIMAL if quoted else csv.QUOTE_NONE
        reader = csv.reader(file, delimiter=delimiter, quoting=how, strict=quoted)
        try:
            first = (row for row in reader if "".join(row).strip())
            header = [name.strip() for name in next(first, [])] if columns is None else list(columns)
            for row in reader:
                if not row or (len(row) < len(header) and not "".join(row).strip()):
                    continue  # a blank line, as at the end of hand-made files
                if broken and len(row) != len(header):
                    continue
                if len(row) != len(header):
                    if len(header) == 1 and (other := _other_delimiter(header[0], delimiter)):
                        raise UserError(f"{path}: has {other} between its columns; {_OF_DELIMITERS}")
                    found, wanted = f"{path}, line {reader.line_num}: {len(row)} fields", len(header)
                    whose = f"the header has {wanted}" if columns is None else f"there are {wanted} columns"
                    raise UserError(f"{found} where {whose}; {way}")
                if quoted and delimiter == "\t" and any("\t" in field and "\n" in field for field in row):
                    # Few tools quote in TSV: a text that begins with a quote would swallow all rows up to the next one.
                    ends = f"{path}, line {reader.line_num}: ends a quoted text with tabs and line breaks in it"
                    raise UserError(f"{ends}; {_OF_QUOTES}")
                rows.append((f"line {reader.line_num}", list(row)))
        except csv.Error as error:  # for instance a quote that is never closed, or a lone carriage return
            way = (
                f"; {_OF_QUOTES}" if quoted and ("expected after" in str(error) or "end of data" in str(error)) else ""
            )
            raise UserError(f"{path}, line {reader.line_num}: {error}{way}") from error
    while len(header) > 1 and rows and not "".join(rows[-1][1]).strip():
        rows.pop()  # bare delimiters, as spreadsheets write below a table
    return Table(str(path), header, rows)


def _other_delimiter(header: str, delimiter: str) -> str | None:
    """What a header of a single column seems to have in place of the delimiter; None if nothing does."""
    others = {";": "semicolons", "\t": "tabs", ",": "commas"}
    return next((name for other, name in others.items() if other != delimiter and other in header), None)


@contextmanager
def _texts_of_any_length() -> Iterator[None]:
    """Lift csv's limit on field length: long texts are truncated, not refused. It is global, so restore it."""
    before = csv.field_size_limit(2**31 - 1)
    try:
        yield
    finally:
        csv.field_size_limit(before)


@contextmanager
def _in_utf8(path: Path) -> Iterator[None]:
    try:
        yield
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 (byte {_first_not_utf8(path)}); convert the file to UTF-8") from error


def _first_not_utf8(path: Path) -> int:
    """The place of the byte in the file: an error while reading counts from the start of a chunk of it."""
    try:
        path.read_bytes().decode("utf-8")
    except UnicodeDecodeError as error:
        return error.start
    raise RuntimeError(f"{path} has changed while it was read")


def read_json(path: Path) -> Table:
    """Read a JSON list of objects, or JSON Lines.

    Raises:
        UserError: the content is neither.
        OSError: the file cannot be read.
    """
    with _in_utf8(path):
        text = path.read_text(encoding="utf-8-sig")
    found: list[tuple[str, Any]] = []
    place = "line 1"
    try:
        if text.lstrip().startswith("["):
            rows = json.loads(text, object_pairs_hook=each_once)
            found = [(f"row {number}", row) for number, row in enumerate(rows, 1)]
        else:
            for number, line in enumerate(text.split("\n"), 1):
                place = f"line {number}"
                if line.strip():
                    found.append((place, json.loads(line, object_pairs_hook=each_once)))
    except json.JSONDecodeError as error:
        at = f"line {error.lineno}" if text.lstrip().startswith("[") else place
        raise UserError(
            f"{path}, {at}: not valid JSON ({error.msg}); expected one object per line, or a list of objects"
        ) from error
    except Twice as error:
        raise UserError(f"{path}{'' if text.lstrip().startswith('[') else f', {place}'}: {error}") from error
    except ValueError as error:  # a number with more digits than Python parses
        raise UserError(f"{path}, {place}: {str(error).split(';')[0]}; write it as a string") from error
    except RecursionError as error:
        raise UserError(f"{path}: not a table; expected one object per line, or a list of objects") from error
    for place, row in found:
        if not isinstance(row, dict):
            raise UserError(f"{path}, {place}: not an object with columns ({str(row)[:40]!r})")
    if len(found) == 1 and found[0][1] and all(isinstance(value, list | dict) for value in found[0][1].values()):
        raise UserError(f"{path}: has a single object of columns; expected one object per row, in a list or on lines")
    columns = list(dict.fromkeys(name for _, row in found for name in row))
    return Table(str(path), columns, [(place, [row.get(name) for name in columns]) for place, row in found])


def short(value: Any) -> str:
    """Return the value's `repr`, shortened for a one-line message."""
    text = repr(value)
    return text if len(text) < 60 else f"{text[:50]}…"


def is_blank(value: Any) -> bool:
    """Return whether a field is missing, or an empty text."""
    return value is None or (isinstance(value, str) and not value.strip())


def and_also(places: list[str]) -> str:
    """Return " (and 2 more: line 5, line 9)" for the other places of a mistake; empty if there are none."""
    shown = ", ".join(places[:10]) + (", …" if len(places) > 10 else "")
    return f" (and {len(places):,} more: {shown})" if places else ""


def refuse_halves(text: str, what: str) -> None:
    """Refuse a lone surrogate, which JSON allows: half of a character, from a text that was cut in UTF-16.

    Raises:
        UserError: the text contains one.
    """
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise UserError(f"{what} has half a character at {error.start}; repair it or remove the row") from error
