"""Files of SMILES: headings, refused lines, the cache, and files that are not there."""

from __future__ import annotations

import warnings

import pytest
import torch

from fedlab.data.digits.datasets import EmbeddedSetWarning
from fedlab.data.molecules import smiles
from fedlab.data.molecules.graphs import QM9, ZINC
from fedlab.errors import DataError


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """A cache folder of the test's own, and nothing read before."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    smiles.load_molecules.cache_clear()
    yield tmp_path / "cache" / "fedlab" / "molecules"
    smiles.load_molecules.cache_clear()


@pytest.fixture
def write(tmp_path):
    def file(text):
        path = tmp_path / "some.smi"
        path.write_text(text)
        return path

    return file


def same(first, second):
    return all(
        torch.equal(one, other) if isinstance(one, torch.Tensor) else one == other
        for one, other in zip(vars(first).values(), vars(second).values(), strict=True)
    )


def test_a_heading_blank_lines_and_further_columns_do_not_matter(write):
    found = smiles.load_molecules(write("SMILES,logP\nOCC,1.0\n\nc1ccccc1 benzene\nC[NH3+]\tx\n"), QM9)
    assert found.smiles == ("CCO", "c1ccccc1", "C[NH3+]")
    assert found.decoded_smiles == ("CCO", "c1ccccc1", "CN")
    assert found.scaffolds == ("", "c1ccccc1", "")
    assert found.bonds.shape == (3, 9, 9) and found.lossy_flags.tolist() == [0, 0, 1]
    assert not found.skipped


def test_lines_that_are_no_molecules_are_set_aside_with_number_and_reason(write, cache):
    path = write("smiles\nCC\nC1CC\nCCCCCCCCCC\nCCl\nCO\n")
    with pytest.warns(
        smiles.SkippedLinesWarning, match="3 of 5 molecules of .*some.smi were set aside: line 3: 'C1CC' is no SMI"
    ):
        found = smiles.load_molecules(path, QM9)
    assert found.smiles == ("CC", "CO")
    assert [(one.line, one.smiles) for one in found.skipped] == [(3, "C1CC"), (4, "CCCCCCCCCC"), (5, "CCl")]
    (aside,) = (cache / "set-aside").iterdir()
    rows = [line.split("\t") for line in aside.read_text().splitlines()]
    assert rows[0] == ["line", "smiles", "reason"]
    assert rows[2] == ["4", "CCCCCCCCCC", "it has 10 heavy atoms, and graphs of this set hold 9"]


def test_a_file_without_one_molecule_is_an_error(write, tmp_path):
    with pytest.raises(DataError, match="no molecule that could be used: line 1: 'C1CC' is no SMILES"):
        smiles.load_molecules(write("C1CC\nXx\n"), QM9)
    smiles.load_molecules.cache_clear()
    with pytest.raises(DataError, match="no molecule that could be used: it is empty"):
        smiles.load_molecules(write("smiles\n\n"), QM9)
    with pytest.raises(DataError, match="none.smi cannot be read"):
        smiles.load_molecules(tmp_path / "none.smi", QM9)
    (tmp_path / "bytes.smi").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(DataError, match="bytes.smi cannot be read as utf-16"):
        smiles.load_molecules(tmp_path / "bytes.smi", QM9)


def test_a_limit_counts_lines_and_an_order_is_one_of_two(write):
    path = write("N#CC(C)O\nCC\nCO\n")
    assert smiles.load_molecules(path, QM9, limit=2).smiles == ("CC(O)C#N", "CC")
    assert smiles.load_molecules(path, QM9).atoms[0].tolist() == [1, 0, 0, 0, 2, 4, 4, 4, 4]
    assert smiles.load_molecules(path, QM9, order="canonical").atoms[0].tolist() == [0, 0, 2, 0, 1, 4, 4, 4, 4]


def test_some_of_them_can_be_taken(write):
    found = smiles.load_molecules(write("CC\nC1CC1\nCO\n"), QM9).select([2, 1])
    assert found.smiles == ("CO", "C1CC1") and found.scaffolds == ("", "C1CC1")
    assert found.atoms[0].tolist()[:3] == [0, 2, 4] and len(found) == 2


# --- the cache ---


@pytest.fixture
def counted(monkeypatch):
    """Short files are cached too; how often one was parsed."""
    calls, parse = [], smiles._parse

    def spy(*arguments):
        calls.append(1)
        return parse(*arguments)

    monkeypatch.setattr(smiles, "PARALLEL_LINES", 3)
    monkeypatch.setattr(smiles.joblib, "Parallel", lambda n_jobs: lambda tasks: [f(*a, **k) for f, a, k in tasks])
    monkeypatch.setattr(smiles, "_parse", spy)
    return calls


TEXT = "CC\nC1CC1\nC1CC\nC[N+](C)(C)C\nCO\n"


def read(path):
    smiles.load_molecules.cache_clear()
    with pytest.warns(smiles.SkippedLinesWarning):
        return smiles.load_molecules(path, QM9)


def test_a_long_file_is_parsed_once(write, cache, counted):
    first, second = read(write(TEXT)), read(write(TEXT))
    assert len(counted) == 1 and same(first, second)
    assert first.decoded_smiles == ("CC", "C1CC1", "", "CO")
    assert len(list(cache.glob("some-*.npz"))) == 1


def test_another_content_or_alphabet_is_another_file(write, cache, counted):
    read(write(TEXT))
    read(write(TEXT + "CCC\n"))
    with pytest.warns(smiles.SkippedLinesWarning):
        smiles.load_molecules(write(TEXT), ZINC)
    assert len(counted) == 3 and len(list(cache.glob("some-*.npz"))) == 3


@pytest.mark.parametrize("damage", [lambda path: path.write_bytes(path.read_bytes()[:200]), lambda p: p.write_text("")])
def test_a_damaged_cache_is_parsed_again(write, cache, counted, damage):
    first = read(write(TEXT))
    damage(next(cache.glob("some-*.npz")))
    assert same(first, read(write(TEXT)))
    assert len(counted) == 2


def test_no_cache_is_no_error(write, tmp_path, monkeypatch, counted):
    (tmp_path / "taken").write_text("a file where the folder would be")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "taken"))
    smiles.load_molecules.cache_clear()
    with pytest.warns(smiles.SkippedLinesWarning, match="could not be written"):
        assert len(smiles.load_molecules(write(TEXT), QM9)) == 4


def test_processes_together_find_what_one_does(write, monkeypatch):
    path = write("CC\nC1CC\nCO\nCCN\nCCF\n")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        one = smiles.load_molecules(path, QM9)
        monkeypatch.setattr(smiles, "CHUNK_LINES", 2)
        smiles.load_molecules.cache_clear()
        assert same(one, smiles.load_molecules(path, QM9))


# --- where sets are ---


def test_sets_are_found_inside_the_package_or_below_a_root(tmp_path):
    assert smiles.molecule_file("qm9", "train", None).name == "qm9_train.smi"
    assert len(smiles.molecule_file("qm9", "train", None).read_text().splitlines()) == 5001
    with pytest.warns(EmbeddedSetWarning, match="no folder of qm9"):
        assert smiles.molecule_file("qm9", "train", tmp_path) == smiles.molecule_file("qm9", "train", None)
    with pytest.raises(DataError, match=r"expected FOLDER/molecules/zinc_subset_test.smi; put the set there"):
        smiles.molecule_file("zinc", "test", None)
    (tmp_path / "molecules").mkdir()
    with pytest.raises(DataError, match=r"expected .*molecules/qm9_train.smi.*or unset data.root"):
        smiles.molecule_file("qm9", "train", tmp_path)
    (tmp_path / "molecules" / "zinc_subset_train.smi").write_text("CCO\n")
    assert smiles.molecule_file("zinc", "train", tmp_path).read_text() == "CCO\n"
    with pytest.raises(DataError, match="no set of molecules 'qm8'; did you mean 'qm9'"):
        smiles.molecule_file("qm8", "train", None)
    with pytest.raises(DataError, match="no split 'trian'; did you mean 'train'"):
        smiles.molecule_file("qm9", "trian", None)
