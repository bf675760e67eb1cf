"""Lines of a SMILES file: compression, encoding, delimiter, heading and the column of the molecules are found.

A column is chosen by its heading where one names SMILES, else by its content: the one column that RDKit can read. A
column of identifiers may look like molecules ("CO", "CN"), so two such columns are an error and no guess.
"""

from __future__ import annotations

import bz2
import codecs
import csv
import gzip
import io
import lzma
import re
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from rdkit import Chem, rdBase

from fedlab.errors import DataError

COMPRESSIONS: dict[bytes, Callable[[bytes], bytes]] = {
    b"\x1f\x8b": gzip.decompress,
    b"BZh": bz2.decompress,
    b"\xfd7zXZ\x00": lzma.decompress,
}
MARKS = {
    codecs.BOM_UTF8: "utf-8-sig",
    codecs.BOM_UTF32_LE: "utf-32",  # before UTF-16, whose mark it begins with
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}
DELIMITERS = "\t;,"
SAMPLE = 50  # rows by which the delimiter and the column are chosen
HEADING = re.compile(r"^(canonical|isomeric|iso|cx)?[ _-]?(smiles?|smi)([ _-]?(string|code))?$", re.IGNORECASE)
WORD = re.compile(r"^[A-Za-z][A-Za-z _.-]*$")

Row = tuple[int, list[str]]  # number of a line, from 1, and its fields


@dataclass(frozen=True)
class SmilesLines:
    """Molecules of a file as text.

    Attributes
    ----------
    lines
        Number of each line, from 1, and its SMILES.
    column
        Which of several columns they were taken from, for people; "" where that is the first.
    """

    lines: list[tuple[int, str]]
    column: str = ""


def read_smiles_file(path: Path) -> SmilesLines:
    """Read a SMILES file: plain, gzip, bzip2 or xz; one molecule a line, or a table with a column of SMILES.

    Raises
    ------
    DataError
        When the file cannot be read, is no text, or has no column of SMILES, or more than one and no heading.
    """
    try:
        content = path.read_bytes()
        for magic, decompress in COMPRESSIONS.items():
            if content.startswith(magic):
                content = decompress(content)
    except (OSError, EOFError, lzma.LZMAError, zlib.error) as error:
        raise DataError(f"the SMILES file {path} cannot be read: {error}") from None
    rows = _rows(_decode(content, path))
    if not rows:
        return SmilesLines([])
    column, has_heading = _column(rows, path)
    heading = rows[0][1][column] if has_heading else ""
    lines = [(number, fields[column]) for number, fields in rows[has_heading:] if len(fields) > column]
    chosen = f"column {column + 1}{f', {heading!r}' if heading else ''}, of {len(rows[0][1])}"
    return SmilesLines([line for line in lines if line[1]], chosen if column else "")


def _decode(content: bytes, path: Path) -> str:
    encoding = next((name for mark, name in MARKS.items() if content.startswith(mark)), "utf-8")
    try:
        text = content.decode(encoding)
    except UnicodeDecodeError as error:
        if encoding != "utf-8":
            raise DataError(
                f"the SMILES file {path} cannot be read as {encoding}, as which it begins: {error}"
            ) from None
        text = content.decode("latin-1")  # SMILES are ASCII; what is not is in another column
    if "\0" in text:
        zipped = content.startswith(b"PK\x03\x04")
        remedy = "it is a zip archive: unpack it" if zipped else "save it as UTF-8 (it may be UTF-16 without its mark)"
        raise DataError(f"the SMILES file {path} is no text: {remedy}")
    return text


def _rows(text: str) -> list[Row]:
    """Return the fields of each line that is not blank."""
    for delimiter in DELIMITERS:
        if len({len(fields) for _, fields in _table(text, delimiter, SAMPLE)} - {1}) == 1 and all(
            len(fields) > 1 for _, fields in _table(text, delimiter, SAMPLE)
        ):
            return _table(text, delimiter)
    numbered = enumerate(text.splitlines(), start=1)
    split = [(number, re.sub(r"[,;]", " ", line).replace('"', " ").split()) for number, line in numbered]
    return [(number, fields) for number, fields in split if fields]


def _table(text: str, delimiter: str, limit: int = 0) -> list[Row]:
    """Return the rows of delimited text, the first ``limit`` unless it is 0; quoted fields may hold line breaks."""
    reader, found, start = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter), list[Row](), 1
    try:
        for fields in reader:
            stripped = [field.strip() for field in fields]
            if any(stripped):
                found.append((start, stripped))
            start = reader.line_num + 1
            if limit and len(found) == limit:
                break
    except csv.Error:  # a field too long for a table: a stray quote
        return []
    return found


def _column(rows: Sequence[Row], path: Path) -> tuple[int, bool]:
    """Return the column of the SMILES, and whether the first row is a heading."""
    first = rows[0][1]
    named = [index for index, name in enumerate(first) if HEADING.match(name)]
    exact = [index for index in named if first[index].lower() == "smiles"]
    if named:
        return (exact or named)[0], True
    width = max(len(fields) for _, fields in rows[:SAMPLE])
    if width == 1:
        return 0, False
    with rdBase.BlockLogs():
        sample = [fields for _, fields in rows[1:SAMPLE]] or [first]
        counts = [sum(_is_smiles(fields, index) for fields in sample) for index in range(width)]
        usable = [index for index, count in enumerate(counts) if 2 * count >= len(sample)]
        if len(usable) > 1:
            raise DataError(
                f"columns {' and '.join(str(index + 1) for index in usable)} of {path} can both be read as SMILES; "
                "write a first line with the columns' names, 'smiles' for the molecules"
            )
        column = usable[0] if usable else max(range(width), key=lambda index: (counts[index], -index))
        heading = bool(usable) and not _is_smiles(first, column) and bool(WORD.match(first[column]))
    return column, heading


def _is_smiles(fields: Sequence[str], index: int) -> bool:
    return len(fields) > index and bool(fields[index]) and Chem.MolFromSmiles(fields[index]) is not None
