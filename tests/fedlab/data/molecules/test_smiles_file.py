"""Tables of molecules as people have them: compressed, in other encodings, quoted, with identifiers first."""

from __future__ import annotations

import bz2
import gzip
import lzma

import pytest

from fedlab.data.molecules import smiles
from fedlab.data.molecules.graphs import QM9
from fedlab.data.molecules.smiles_file import read_smiles_file
from fedlab.errors import DataError

MOLECULES = ["CCO", "c1ccccc1", "CC#N"]


def read(tmp_path, content, encoding="utf-8"):
    path = tmp_path / "some.csv"
    path.write_bytes(content if isinstance(content, bytes) else content.encode(encoding))
    return read_smiles_file(path)


def texts(found):
    return [text for _, text in found.lines]


@pytest.mark.parametrize("compress", [gzip.compress, bz2.compress, lzma.compress, bytes])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
def test_compressions_and_encodings(tmp_path, compress, encoding):
    found = read(tmp_path, compress("\n".join(["smiles", *MOLECULES]).encode(encoding)))
    assert found.lines == [(2, "CCO"), (3, "c1ccccc1"), (4, "CC#N")] and not found.column


def test_another_column_may_be_in_any_encoding(tmp_path):
    assert texts(read(tmp_path, "smiles,who\nCCO,Müller\nCC,Böhm\n", "latin-1")) == ["CCO", "CC"]


@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
@pytest.mark.parametrize("heading", ["smiles", "SMILES", "Canonical_SMILES", "smi"])
def test_a_column_that_a_heading_names_is_taken_wherever_it_is(tmp_path, delimiter, heading):
    rows = [["id", heading, "logP"], *([f"m {number}", text, "1.5"] for number, text in enumerate(MOLECULES))]
    found = read(tmp_path, "\n".join(map(delimiter.join, rows)))
    assert texts(found) == MOLECULES
    assert found.column == f"column 2, {heading!r}, of 3"


def test_quoted_fields_may_hold_line_breaks_as_in_zinc250k(tmp_path):
    found = read(tmp_path, "smiles,logP\n" + "".join(f'"{text}\n",1.5\n' for text in MOLECULES))
    assert found.lines == [(2, "CCO"), (4, "c1ccccc1"), (6, "CC#N")]


@pytest.mark.parametrize("heading", ["", "code,structure\n"])
def test_without_a_name_the_column_that_can_be_read_is_taken(tmp_path, heading):
    found = read(tmp_path, heading + "".join(f"mol{number},{text}\n" for number, text in enumerate(MOLECULES)))
    assert texts(found) == MOLECULES
    assert found.column.startswith("column 2,")


def test_molecules_are_never_taken_from_identifiers_that_look_like_them(tmp_path):
    rows = [f"{name},{text}\n" for name, text in zip(["CO", "CN", "CC"], MOLECULES, strict=True)]
    found = read(tmp_path, "name,smiles\n" + "".join(rows))
    assert texts(found) == MOLECULES
    with pytest.raises(DataError, match=r"columns 1 and 2 of .* can both be read as SMILES; write a first line with"):
        read(tmp_path, "".join(rows))


def test_the_column_is_said_once_the_molecules_are_used(tmp_path):
    path = tmp_path / "some.csv"
    path.write_text("name,smiles\nCO,CCO\nCN,CC#N\n")
    with pytest.warns(smiles.SmilesColumnWarning, match="of .*some.csv are taken from column 2, 'smiles', of 2"):
        assert smiles.load_molecules(path, QM9).smiles == ("CCO", "CC#N")


def test_blanks_separate_a_name_and_lines_without_it_are_lines_too(tmp_path):
    assert texts(read(tmp_path, "CCO ethanol, pure\nCC\n\nCC#N\tx y\n")) == ["CCO", "CC", "CC#N"]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("CCO\nCC\n".encode("utf-16-le"), "is no text: save it as UTF-8"),
        (b"PK\x03\x04\0\0more", "is a zip archive: unpack it"),
        (gzip.compress(b"CCO\n" * 50)[:-9], "cannot be read"),
        (b"\xff\xfeC", "cannot be read as utf-16, as which it begins"),
    ],
    ids=["UTF-16 without a mark", "zip", "a gzip file cut short", "UTF-16 cut short"],
)
def test_what_cannot_be_read_is_a_sentence(tmp_path, content, words):
    with pytest.raises(DataError, match=words):
        read(tmp_path, content)
