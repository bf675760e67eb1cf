"""Words that were replaced stay replaced: American spelling, the field's terms, one name per option.

``python tests/test_vocabulary.py`` lists every old word, those of excluded files too.
"""

from __future__ import annotations

import ast
import io
import re
import subprocess
import tokenize
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

# Parts of words, in code and prose: `knob_names` and `KnobError` hold `knob`.
STEMS = "optim|normal|central|minim|maxim|general|initial|serial|summar|recogn|regular|visual|parametr|discret|token|"
STEMS += "random|symmetr|vector|synchron|penal|emphas|organ|standard|categor|factor|final|local|equal|util|real"
WORD = re.compile(
    rf"knobs?|(?:re|dis)?colour(?:s|ed|ing|ful)?|(?:de|re|un)?(?:{STEMS})is(?:e|ed|er|ers|es|ing|ation|ations|able)"
    r"|(?:un)?labell(?:ed|ing)|modell(?:ed|ing)|greys?|neighbour\w*|behaviours?|favour\w*|centred?s?|analysed?"
    r"|arrivals?|newcomers?|distils?|licence|artefacts?"
)
# Whole identifiers.
IDENTIFIER = re.compile(
    r"Flat|ServerHalf|ClientHalf|client_half|Beside|beside|Voice|ServerTraining|ClientTraining|RuleLine|ENTRY|near_match"
    r"|NAMESAKES|spelled_out|unwatched|untold|HeadTraining|Joining|linear_heads|unconnected|Doorkeeper|HastyClock|NoiseLaw"
    r"|OfOneSet|TestsNewClasses|KnowsLabels|SeesImages|NamesClasses|farewell|nursery|knock|foremost|likeness"
)
# Options, in strings, presets and pages.
FEW = "digits|office|pacs|camvid|fewshot|generation|images|molecules"
OPTION = re.compile(
    r"\b(?:keep_start|(?<!self\.)norm_limit|reply_limit|reply_timeout|score_every|own_statistics|statistics_images|client_rows"
    r"|(?:server|client)\.(?:batch|average|clip|anneal|optimiser)|\w+\.malicious|multikrum\.selected"
    rf"|(?:{FEW})\.(?:limit|shards|split|parts|labelled|rare|law|levels|colours|tested|bf16|passes|spread|public|mirror)"
    r"|dualadapt\.(?:start|control|balance)|startup\.(?:moving|sharpness|soft|distil|base|contrastive|ramp)"
    r"|(?:adabn|fedtrimmedavg)\.share|fednova\.epochs|dp_\w+\.side)\b|--keep\b|--patience\b|fedlab (?:knock|status)\b"
)
PARTS = re.compile(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])")

# Texts that keep an old word: names of random streams and of arrays, which decide bits and are on disk, and names of
# other libraries. Each is blanked before its file is read.
KEPT = {
    "fedlab/data/digits/proxies.py": ('"colour"',),
    "fedlab/data/images/image_sets.py": ('"unlabelled part"',),
    "fedlab/evaluation/molecule_plots.py": ("setLegendColour",),
    "fedlab/models/graphnvp_conditioners.py": (".neighbours",),
    "server/app.py": ('"initialise"',),
    "strategies/source_only.py": ('"optimiser"',),
    "tests/fedlab/models/test_graphnvp_conditioners.py": (".neighbours",),
    **{
        f"tests/strategies/test_{name}.py": ('"initialise"',)
        for name in ("participation", "dualadapt", "fedavg", "fednova", "fedprox", "scaffold", "startup")
    },
}
# Files that name old options to say what they are called now.
RENAMING = ("fedlab/config/renamed.py", "tests/fedlab/config/test_resolve.py")

# Files, and folders with a slash behind them, whose old words are still to be replaced.
EXCLUDED: tuple[str, ...] = ()
NOT_READ = ("CHANGELOG.md", "tests/test_vocabulary.py", "tests/test_docstrings.py", *RENAMING)  # they name old words


def tracked() -> list[str]:
    """Paths of every tracked text file of ours, relative to the root."""
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()
    kinds = (".py", ".md", ".toml", ".yml", ".html", ".js", ".env")
    return [
        name
        for name in listed
        if name not in NOT_READ and name.endswith(kinds) and "embedded" not in name and not (ROOT / name).is_symlink()
    ]


def options_of(table: dict, prefix: str = "") -> Iterator[str]:
    """Dotted names of all keys of a table of TOML."""
    for key, value in table.items():
        yield f"{prefix}{key}"
        if isinstance(value, dict):
            yield from options_of(value, f"{prefix}{key}.")


def old_words(name: str) -> set[str]:
    """Old words, identifiers and options of one file."""
    text = (ROOT / name).read_text(encoding="utf-8")
    for kept in KEPT.get(name, ()):
        text = text.replace(kept, re.sub(r"\w", "_", kept))
    found = {part for part in PARTS.findall(text) if WORD.fullmatch(part.lower())}
    if name.endswith(".py"):
        tokens = tokenize.generate_tokens(io.StringIO(text).readline)
        found |= {
            token.string for token in tokens if token.type == tokenize.NAME and IDENTIFIER.fullmatch(token.string)
        }
        constants = (node.value for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Constant))
        text = "\n".join(value for value in constants if isinstance(value, str))
    elif name.endswith(".toml"):
        text += "\n" + "\n".join(options_of(tomllib.loads(text)))
    return found | set(OPTION.findall(text))


FILES = tracked()
WAITING = {name for name in FILES if name.startswith(EXCLUDED)}


@pytest.mark.parametrize("name", [name for name in FILES if name not in WAITING])
def test_no_old_word_is_left(name):
    assert old_words(name) == set()


def test_the_excluded_files_are_counted():
    print(f"{len(WAITING)} of {len(FILES)} files are excluded")


@pytest.mark.parametrize("word", ["knob", "knobs", "colour", "coloured", "recolour", "optimiser", "grey", "unlabelled"])
def test_old_words_are_recognized(word):
    assert WORD.fullmatch(word)


@pytest.mark.parametrize("word", ["color", "colored", "noise", "raised", "precise", "optimizer", "distill", "center"])
def test_new_words_are_allowed(word):
    assert not WORD.fullmatch(word)


if __name__ == "__main__":
    listed = {name: words for name in FILES if (words := old_words(name))}
    print(*(f"{name}: {', '.join(sorted(words))}" for name, words in listed.items()), sep="\n")
    print(f"{sum(map(len, listed.values()))} old words in {len(listed)} files")
