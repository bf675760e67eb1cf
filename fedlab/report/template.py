"""The pages' templates: one skeleton and one set of macros for the page of a run and the page of a comparison."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup, escape

from fedlab.errors import plural
from fedlab.report.table_csv import table_address

FOLDER = Path(__file__).parent  # of templates, and of the script that sorts tables


def render(template: str, **values: object) -> str:
    """Render a template; names come from users and machines, and all values are escaped."""
    return _environment().get_template(template).render(values)


@cache
def _environment() -> Environment:
    """Return the environment of all templates, which keeps those that it has compiled."""
    environment = Environment(
        loader=FileSystemLoader(FOLDER),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["breakable"] = breakable
    environment.filters["in_words"] = in_words
    environment.globals["table_csv"] = table_address
    environment.globals["plural"] = plural
    return environment


def breakable(name: str) -> Markup:
    """Return a long name that a narrow page may break after an underscore, a comma or an equals sign."""
    return Markup(re.sub("([_,=])", r"\1<wbr>", str(escape(name))))


def in_words(command: str) -> Markup:
    """Return a command that a narrow page breaks between its words, and not within ``--seeds``, while there is room."""
    return Markup(" ").join(Markup("<span>{}</span>").format(word) for word in command.split(" "))
