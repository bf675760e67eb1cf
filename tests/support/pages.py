"""A page looked at through an HTML parser."""

from __future__ import annotations

import base64
import csv
import io
from html.parser import HTMLParser

VOID = {"meta", "link", "br", "img", "hr", "input", "wbr"}


class Page(HTMLParser):
    """Tags, ids, links, CSV files and visible text of a page; refuses tags that do not match."""

    def __init__(self, text):
        super().__init__()
        self.stack, self.tags, self.ids, self.targets, self.text = [], [], [], [], []
        self.labels, self.bold, self.tables, self.files = [], [], [], {}
        self.feed(text)
        assert self.stack == []

    def handle_starttag(self, tag, attributes):
        values = dict(attributes)
        self.tags.append(tag)
        self.ids += [values["id"]] if "id" in values else []
        self.targets += [values[name] for name in ("href", "src", "xlink:href") if name in values]
        if "download" in values:
            content = base64.b64decode(values["href"].partition("base64,")[2]).decode()
            self.files[values["download"]] = list(csv.reader(io.StringIO(content)))
        self.labels += [values["aria-label"]] if values.get("role") == "img" else []
        assert not [name for name in values if name.startswith("on")]
        if tag not in VOID:
            self.stack.append(tag)
        if tag == "table":
            self.tables.append([])
        if tag == "tr":
            self.tables[-1].append([])
        if tag in ("td", "th"):
            self.tables[-1][-1].append("")

    def handle_startendtag(self, tag, attributes):
        self.handle_starttag(tag, attributes)
        self.handle_endtag(tag)

    def handle_endtag(self, tag):
        assert self.stack.pop() == tag

    def handle_data(self, data):
        if "style" in self.stack or "script" in self.stack:
            return
        self.text.append(data)
        if "b" in self.stack:
            self.bold.append(data)
        if "td" in self.stack or "th" in self.stack:
            self.tables[-1][-1][-1] += data
