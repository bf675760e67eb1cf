"""Data sets named in a line, and the advice where only parts of them are there."""

from __future__ import annotations

from fedlab.data.sources import PACKAGE, DataSource, data_line, full_sets_advice

MNIST = DataSource("mnist", 6000, PACKAGE, "put mnist into FOLDER/MNIST")
USPS = DataSource("usps", 4000, PACKAGE, "put usps into FOLDER/USPS")
OPTDIGITS = DataSource("optdigits", 1200, "scikit-learn")


def test_sets_of_one_place_stand_together():
    assert data_line([MNIST, OPTDIGITS, USPS]) == (
        "training data: mnist 6,000, usps 4,000 (a part of each, in the package), optdigits 1,200 (in scikit-learn)"
    )
    assert data_line([DataSource("qm9", 118_879, "/sets/molecules")]) == (
        "training data: qm9 118,879 (in /sets/molecules)"
    )


def test_of_many_sets_some_are_named():
    assert data_line([DataSource(f"ward-{number}", 10, "/wards") for number in range(100)]) == (
        "training data: ward-0 10, ward-1 10, ward-2 10, ..., ward-99 10 (in /wards)"
    )
    line = data_line([DataSource(f"w{number}", 10, f"/w/{number}") for number in range(100)])
    assert line == "training data: w0 10 (in /w/0), w1 10 (in /w/1), w2 10 (in /w/2), ..., w99 10 (in /w/99)"


def test_the_advice_says_what_is_there_and_how_to_get_the_rest():
    assert full_sets_advice([OPTDIGITS]) == ""
    advice = full_sets_advice([MNIST, OPTDIGITS])
    assert "6,000 examples of mnist" in advice and "put mnist into FOLDER/MNIST, and set FEDLAB_DATA" in advice
    assert "optdigits" not in advice
