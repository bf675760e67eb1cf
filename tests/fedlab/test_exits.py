"""Calls of sys.exit in code of others are errors; the process's own end is passed on."""

from __future__ import annotations

import sys
from types import SimpleNamespace

import pytest

from fedlab.exits import SystemExitError, exits_as_errors


@pytest.mark.parametrize(("code", "text"), [(3, r"sys.exit\(3\)"), ("why", r"sys.exit\('why'\)"), (None, r"exit\(\)")])
def test_a_call_of_sys_exit_is_an_error_with_its_place(code, text):
    @exits_as_errors()
    def somebodys():
        sys.exit(code)

    with pytest.raises(SystemExitError, match=rf"{text} was called in .*test_exits.py:\d+; raise an") as caught:
        somebodys()
    assert isinstance(caught.value.__cause__, SystemExit)


@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError])
def test_every_other_end_is_passed_on(error):
    with pytest.raises(error), exits_as_errors():
        raise error


@pytest.mark.parametrize("package", ["flwr.supercore.exit", "ray._raylet", "submitit.core"])
def test_the_end_of_the_process_by_a_handler_of_signals_is_passed_on(package):
    module = SimpleNamespace(__name__=package)
    exec("import sys\ndef handler():\n    sys.exit(0)\n", vars(module))
    with pytest.raises(SystemExit), exits_as_errors():
        module.handler()
