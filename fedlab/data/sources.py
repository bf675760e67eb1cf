"""Data sets as a run finds them: which one, how many examples, where, and whether all of it is there."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby

from fedlab.errors import name_list, plural

PACKAGE = "the package"


@dataclass(frozen=True)
class DataSource:
    """A data set that training examples come from.

    Attributes
    ----------
    name
        Name of the set or of one of its domains.
    examples
        Number of its examples that the run reads to train on, before they are divided among clients.
    place
        Where it is: ``PACKAGE``, a library, or a folder or file.
    missing
        Where only a part of the published set is there: how to get all of it, a clause with FOLDER for the data root;
        empty where all of it is there.
    """

    name: str
    examples: int
    place: str
    missing: str = ""


def describe_sources(sources: Sequence[DataSource]) -> str:
    """Return all sets in one line: name and number of training examples, then where they are; of many places a few.

    >>> part, whole = DataSource("mnist", 6000, PACKAGE, "put it there"), DataSource("optdigits", 1200, "scikit-learn")
    >>> describe_sources([part, whole])
    'mnist 6,000 (a part of it, in the package), optdigits 1,200 (in scikit-learn)'
    """
    groups = []
    for (place, is_part), found in groupby(_by_place(sources), _place):
        names = [f"{source.name} {source.examples:,}" for source in found]
        part = f"a part of {'it' if len(names) == 1 else 'each'}, " if is_part else ""
        groups.append(f"{name_list(names)} ({part}in {place})")
    return name_list(groups)


def data_line(sources: Sequence[DataSource]) -> str:
    """Return the first line of a run about its data."""
    return f"training data: {describe_sources(sources)}"


def full_sets_advice(sources: Iterable[DataSource]) -> str:
    """Return how to get the full sets where only parts of them are there, a sentence; "" where all of them are."""
    parts = [source for source in sources if source.missing]
    if not parts:
        return ""
    have = " and ".join(f"{plural(source.examples, 'example')} of {source.name}" for source in parts)
    remedies = "; ".join(dict.fromkeys(source.missing for source in parts))
    return (
        f"these options are made for the full data, and this run trains on the part in {parts[0].place}: {have}. "
        f"For all of it, {remedies}, and set FEDLAB_DATA=FOLDER or data.root=FOLDER"
    )


def _place(source: DataSource) -> tuple[str, bool]:
    return source.place, bool(source.missing)


def _by_place(sources: Sequence[DataSource]) -> list[DataSource]:
    """Return the sets with those of one place together, in the order in which places first appear."""
    order: dict[tuple[str, bool], int] = {}
    for source in sources:
        order.setdefault(_place(source), len(order))
    return sorted(sources, key=lambda source: order[_place(source)])
