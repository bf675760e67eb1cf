"""A worker process: reads one JSON task per line from stdin, writes one result per line, exits when stdin closes.

python -m fedlab.comparison.worker < requests > answers
"""

from __future__ import annotations

import json
import os
import sys
import threading
from pathlib import Path
from queue import SimpleQueue


def main() -> None:
    """Run tasks until stdin closes."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what a library prints is no answer
    requests: SimpleQueue[str] = SimpleQueue()

    def listen() -> None:
        for line in sys.stdin:
            requests.put(line)
        os._exit(0)  # whoever started us has closed the pipe, or was killed: a cell resumes from its last round

    threading.Thread(target=listen, daemon=True).start()
    from fedlab.comparison import cells
    from fedlab.comparison.work import read_work
    from fedlab.errors import FedlabError

    while True:
        request = json.loads(requests.get())
        try:
            error = cells.run_cell(Path(request["path"]), read_work(request["work"]))
        except FedlabError as refused:  # a plug-in that this process cannot find
            error = str(refused)
        answers.write(json.dumps({"error": error}) + "\n")
        answers.flush()


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:  # SIGTERM, once the run has noted that it was interrupted
        os._exit(1)
