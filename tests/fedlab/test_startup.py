"""What processes of ours do not import, and what the garbage collector does not look through."""

from __future__ import annotations

import subprocess
import sys

APPS = """
import sys, fedlab.launch, fedlab.server.app, fedlab.client.app
heavy = ("sqlalchemy", "fastapi", "uvicorn", "torch._dynamo", "sympy", "matplotlib")
assert not [name for name in heavy if name in sys.modules], [name for name in heavy if name in sys.modules]
"""
COLLECTOR = """
import atexit, gc
from fedlab.startup import quick_exit, quick_imports

before = gc.get_freeze_count()
with quick_imports():
    assert not gc.isenabled()
    import flwr.app
assert gc.isenabled() and gc.get_freeze_count() > before + 1000
gc.disable()
with quick_imports():
    pass
assert not gc.isenabled()

class Node:
    def __del__(self):
        print("collected")

first = Node()
first.itself = first
quick_exit()
atexit.register(print, "ended")
"""


def python(program):
    return subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True).stdout


def test_the_apps_import_neither_flowers_web_server_nor_the_compiler():
    python(APPS)


def test_imports_are_not_collected_nor_what_is_left_after_the_exit_functions():
    assert python(COLLECTOR) == "ended\n"


SETTLED = """
import gc
from fedlab.startup import settled

class Node:
    def __del__(self):
        print("collected")

def cycle():
    node = Node()
    node.itself = node

with settled() as settle:
    assert gc.get_freeze_count() > 1000
    cycle()
    gc.collect()
    before = gc.get_freeze_count()
    more = [[] for _ in range(1000)]
    settle()
    assert gc.get_freeze_count() >= before + 1000
assert gc.get_freeze_count() == 0
gc.freeze()
try:
    with settled() as settle:
        settle()
        raise KeyboardInterrupt
except KeyboardInterrupt:
    assert gc.get_freeze_count() == 0

def leave_behind():
    nodes = [[] for _ in range(200_000)]
    nodes.append(nodes)

gc.disable()
leave_behind()
with settled():
    assert gc.get_freeze_count() < 200_000
with settled():
    assert gc.get_freeze_count() > 1000
"""


def test_what_a_run_finds_is_left_out_of_collection_until_its_end_but_for_what_others_left_behind():
    assert python(SETTLED) == "collected\n"
