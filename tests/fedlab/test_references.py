"""Objects of this package by import path."""

from __future__ import annotations

from fedlab.errors import ConfigError
from fedlab.references import load_reference


def test_a_path_is_imported_and_anything_else_is_returned_as_it_is():
    assert load_reference("fedlab.errors:ConfigError") is ConfigError
    assert load_reference(ConfigError) is ConfigError
