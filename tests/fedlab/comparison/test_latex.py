"""The tables of a comparison as LaTeX: by their grammar, and typeset where LaTeX is installed."""

from __future__ import annotations

import dataclasses
import re
import shutil
import subprocess

import pytest

from fedlab.comparison.latex import escape, latex

EVIL = r"a_b%$#&{}~^\command"


@pytest.fixture
def text(comparison):
    """Tables of variants whose names are hostile, one of which begins with a bracket."""
    names = {"source_only": EVIL, "dualadapt": "[1em] best"}
    cells = [dataclasses.replace(cell, label=names.get(cell.label, cell.label)) for cell in comparison.cells]
    return latex(dataclasses.replace(comparison, cells=cells, preset=EVIL, baseline=EVIL, target=0.5))


def test_every_row_has_the_columns_that_its_table_declares(text):
    tables = re.findall(r"\\begin\{tabular\}\{(\w+)\}\n\\toprule\n(.*?)\\bottomrule", text, re.DOTALL)
    assert len(tables) == 5  # scores, clients, tests, cost to the target, cost
    for columns, body in tables:
        rows = [line for line in body.splitlines() if line != r"\midrule"]
        assert all(row.endswith(r" \\") for row in rows)
        assert {len(re.findall(r"(?<!\\)&", row)) + 1 for row in rows} == {len(columns)}
        assert len(rows) >= 2
    labels = re.findall(r"\\label\{tab:([\w-]+)\}", text)
    assert len(labels) == len(set(labels)) == len(tables)


def test_no_character_is_a_command(text):
    tables = text.split("\n\n", 1)[1]
    for mark in "±↑↓≤≥\u2212\u202f":
        assert mark not in tables
    assert not re.search(r"(?<!\\)[%#~]", tables)
    assert tables.count("{") - tables.count(r"\{") == tables.count("}") - tables.count(r"\}")
    assert escape(EVIL) == r"a\_b\%\$\#\&\{\}\textasciitilde{}\textasciicircum{}\textbackslash{}command"
    assert "{}[1em] best" in tables


def test_the_best_of_a_column_is_bold_and_a_negative_number_has_a_minus(text):
    assert re.search(r"\\textbf\{\d+\.\d \$\\pm\$ \d+\.\d\}", text)
    assert not re.search(r"& -\d", text)


def test_a_caption_explains_the_columns_of_its_own_table(text):
    scores, clients, tests, reached, cost = re.findall(r"\\caption\{(.*)\}", text)
    explained = [("rank:", scores), ("Wilcoxon:", tests), ("effect g:", tests), ("reached:", reached), ("time:", cost)]
    for words, caption in explained:
        assert [words in one for one in (scores, clients, tests, reached, cost)].count(True) == 1 and words in caption
    assert "p is exact" in tests and "Bold" in clients


def test_a_line_end_in_a_name_ends_no_comment_and_no_paragraph(comparison):
    evil = "a\n\n\\input{b}"
    text = latex(dataclasses.replace(comparison, command=f"fedlab compare toy --strategies '{evil}'", preset=evil))
    assert all(line.startswith("%") for line in text.split(r"\begin{table}")[0].splitlines() if line)
    assert r"a  \textbackslash{}input\{b\}" in text


@pytest.mark.skipif(shutil.which("pdflatex") is None, reason="needs LaTeX: apt-get install texlive-latex-base")
def test_latex_typesets_them(text, tmp_path):
    page = f"\\documentclass{{article}}\n\\usepackage{{booktabs}}\n\\begin{{document}}\n{text}\\end{{document}}\n"
    (tmp_path / "paper.tex").write_text(page)
    command = ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "paper.tex"]
    typeset = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert typeset.returncode == 0, typeset.stdout[-2000:]
    assert (tmp_path / "paper.pdf").read_bytes().startswith(b"%PDF")
