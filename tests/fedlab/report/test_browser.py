"""The page in a real browser, without a network: nothing complains, tables sort, figures are there and have a size."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from dataclasses import replace
from urllib.parse import quote

import pytest

from fedlab.comparison.page import render
from pages import Page

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
QUIET = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-dev-shm-usage",
    "--virtual-time-budget=2000",
]
# What a reader does: click a head, click it again, come back to another; and how large the figures are.
VISIT = """
const button = (text) => [...document.querySelectorAll("th button")].find((one) => one.textContent === text);
const table = document.querySelector("main table");
const order = () => [...table.tBodies[0].rows].map((row) => row.cells[0].textContent.trim());
const note = [];
for (const text of ["variant", "variant", "traffic", "p, Holm"]) {
  button(text).focus();
  document.activeElement.click();
  note.push(`${button(text).closest("th").getAttribute("aria-sort")} ${location.hash} ${order()}`);
}
const shown = [...document.querySelectorAll("svg[role=img]")].filter((one) => one.checkVisibility());
const empty = shown.filter((one) => !one.getBoundingClientRect().height);
note.push(`empty ${empty.length} of ${shown.length}`, `wide ${document.documentElement.scrollWidth > innerWidth}`);
document.title = note.join(" | ");
"""

pytestmark = [
    pytest.mark.engine,
    pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium: apt-get install chromium"),
]


@pytest.fixture
def visit(tmp_path):
    """Open a page; returns what it is then, and what it said to the console."""

    def opened(text, fragment="", size="1200,900"):
        path = tmp_path / "report.html"
        path.write_text(text, encoding="utf-8")
        profile = f"--user-data-dir={tmp_path / 'profile'}"
        logged = [profile, f"--window-size={size}", "--enable-logging=stderr", "--dump-dom"]
        run = subprocess.run(
            [CHROMIUM, *QUIET, *logged, f"file://{quote(str(path))}{fragment}"],
            capture_output=True,
            text=True,
            timeout=60,
            check=True,
        )
        return run.stdout, re.findall(r"CONSOLE.*", run.stderr)

    return opened


@pytest.fixture
def page(comparison):
    return render(comparison)


def rows(dom):
    return [row[0] for row in Page(dom).tables[0][1:]]


def test_a_link_opens_the_page_sorted_and_the_console_stays_silent(page, visit):
    assert rows(page) == ["source_only", "dualadapt"]
    dom, said = visit(page, "#sort=variant")
    assert rows(dom) == ["dualadapt", "source_only"]
    assert said == []
    assert (
        '<th scope="col" data-key="variant" data-first="ascending" aria-sort="ascending"><button type="button">' in dom
    )
    assert len(re.findall(r"<th[^>]* aria-sort=", dom)) == 1


def test_what_a_script_of_others_would_do_is_refused_and_heard(page, visit):
    dom, said = visit(page.replace("</main>", "<script>document.title = 'taken'</script></main>"))
    assert "<title>taken" not in dom
    assert len(said) == 1 and "Content Security Policy" in said[0]


@pytest.mark.parametrize("size", ["1200,900", "500,900"])
def test_heads_sort_by_click_and_key_and_nothing_is_empty_or_too_wide(page, visit, size):
    free = re.sub(r"; script-src '[^']*'", "; script-src 'unsafe-inline'", page)
    dom, said = visit(free.replace("</body>", f"<script>{VISIT}</script></body>"), size=size)
    assert said == []
    title = re.search(r"<title>(.*?)</title>", dom)[1]
    assert title.split(" | ") == [
        "ascending #sort=variant dualadapt,source_only",
        "descending #sort=-variant source_only,dualadapt",
        "ascending #sort=bytes source_only,dualadapt",
        "ascending #sort=p dualadapt,source_only",  # the baseline has no p, so it comes last
        "empty 0 of 15",
        "wide false",
    ]


@pytest.mark.parametrize(("size", "in_row"), [("1200,900", True), ("500,900", False)])
def test_the_bars_of_the_classes_can_be_read_on_a_phone(comparison, tmp_path, visit, size, in_row):
    """There they stand below the client's name and take the page's width; their letters have ten pixels and more."""
    copy = shutil.copytree(comparison.directory, tmp_path / "copy")
    moved = replace(comparison, directory=copy)
    labels = {str(label): 20 + label for label in range(10)}
    split = {"clients": [{"name": name, "examples": 245, "labels": labels} for name in ("near", "far")]}
    (moved.path(moved.cells[0]) / "split.json").write_text(json.dumps(split))
    page = render(moved)
    script = """
    const bar = document.querySelector(".split .shares"), letter = bar.querySelector("text");
    const [name, at] = [bar.closest("tr").querySelector("th"), bar].map((one) => one.getBoundingClientRect());
    const main = document.querySelector("main").clientWidth;
    document.title = `${at.top < name.bottom} ${at.width > (at.top < name.bottom ? 0.5 : 0.95) * main} ` +
      `${letter.getBoundingClientRect().height >= 10} ${document.documentElement.scrollWidth > innerWidth}`;
    """
    free = re.sub(r"; script-src '[^']*'", "; script-src 'unsafe-inline'", page)
    dom, said = visit(free.replace("</body>", f"<script>{script}</script></body>"), size=size)
    assert said == []
    assert re.search(r"<title>(.*?)</title>", dom)[1] == f"{str(in_row).lower()} true true false"


def test_on_a_desk_no_table_is_cut(page, visit):
    """The heads of its many columns take two lines each."""
    script = """
    const cut = [...document.querySelectorAll(".scroll")].filter((one) => one.scrollWidth > one.clientWidth + 1);
    document.title = `${cut.length} cut: ${cut.map((one) => one.getAttribute("aria-labelledby"))}`;
    """
    free = re.sub(r"; script-src '[^']*'", "; script-src 'unsafe-inline'", page)
    dom, said = visit(free.replace("</body>", f"<script>{script}</script></body>"), size="1280,900")
    assert said == []
    assert re.search(r"<title>(.*?)</title>", dom)[1] == "0 cut: "
