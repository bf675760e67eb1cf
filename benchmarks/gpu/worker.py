"""A process that does tasks one after another: a line of JSON in for each, lines of JSON out for its rows.

A part of the benchmark that kills its process, or leaves a GPU that answers no more, costs its own row and no other.
"""

from __future__ import annotations

import json
import os
import sys
import traceback
from collections.abc import Iterator
from dataclasses import asdict
from pkgutil import resolve_name
from typing import Any, TextIO

from benchmarks.gpu.rows import Row


def perform(function: str, options: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield the rows of one task as values of JSON; the last is ``{"end": message}``, "" where nothing went wrong."""
    try:
        for row in resolve_name(function)(**options):
            assert isinstance(row, Row)
            yield {"row": asdict(row)}
    except Exception as error:
        traceback.print_exc()
        text = " ".join(str(error).split())  # the cause may stand in a later line
        yield {"end": f"{type(error).__name__}: {text}"[:2000]}
    else:
        yield {"end": ""}


def private_output() -> TextIO:
    """Return this process's standard output as a file of its own; all that is printed goes to standard error."""
    output = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    return output


def main() -> None:
    """Do the tasks that come in until the input ends."""
    output = private_output()
    for line in sys.stdin:
        task = json.loads(line)
        for answer in perform(task["function"], task["options"]):
            print(json.dumps(answer), file=output, flush=True)


if __name__ == "__main__":
    main()
