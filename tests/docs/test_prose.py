"""No quaint or private phrase in the pages, docstrings, comments and messages: each has a standard one."""

import ast
import io
import re
import tokenize
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.paths import DOCS, ROOT

PREFERRED = {
    r"(is|are|was|were|be) (told|said)": "name who reports what: 'the run reports', 'the message names'",
    r"(gives?|giving) way": "is cut first, is replaced by",
    r"heeds?": "respects, uses",
    r"by (itself|themselves)": "automatically; alone; individually",
    r"so (many|much)": "the quantity: 'this many', 'N tokens'",
    r"that (is|are) there": "that exists",
    r"as it was before": "as before",
    r"stands? (in|alone)": "is in, replaces",
    r"in turn": "alternately, one after the other",
    r"laps": "micro-batches",
    r"(trained|[0-9][0-9,.]*( million| billion)?) numbers": "parameters",
    r"go(es)? before": "takes precedence over, is added before",
    r"likelier": "more likely",
    r"for ever": "forever, without end",
    r"anew|afresh": "again, from the start",
    r"shall": "must, should",
    r"save for": "except for",
    r"mend(s|ed)?": "fix",
    r"and the like": "and similar",
    r"by heart": "overfit",
    r"in silence": "without a message",
    r"watchers?": "health check, warning",
    r"middling": "median",
    r"in pieces|pieces of": "in chunks, chunks of",
    r"learnt": "learned",
    r"whence|thereof|wherein|whilst|thereby|upon": "plain words",
    r"sick": "unhealthy, diverging",
    r"takes? the room": "needs the space",
    r"of one's own": "your own, custom",
    r"(is|are) whole": "intact, complete",
    r"(is|are) not there": "does not exist, is missing",
    r"under way": "current, running",
    r"in force": "in use, of the run",
    r"alike": "equal, similar",
    r"pieces?": "chunk, part",
    r"takes? in": "adds, updates",
    r"holds? (no|an?|the|all|rows|weights)": "contains",
    r"(?<!there )is no (adapter|config|file|folder|key|log-prob|loss|mapping|model|number|pair|tensor)": "is not a",
    r"(log-probs?|log-ratios?|nats|pairs|rows|s|tokens) a (batch|micro-batch|pair|row|step|token)": "per token",
    r"what became of": "the counts of",
    r"leads nowhere": "does not exist",
    r"way (back|out)": "the command that undoes it",
    r"to the letter": "exactly",
}
"""A phrase (regular expression, whole words, any case) → what to write instead."""

BANNED = {re.compile(rf"\b(?:{phrase})\b", re.IGNORECASE): better for phrase, better in PREFERRED.items()}
PACKAGE = ROOT / "mlx_lm_lora_prefplus"
FILES = [ROOT / "README.md", *sorted(DOCS.rglob("*.md")), *sorted(PACKAGE.rglob("*.py"))]
CODE = re.compile(r"^```.*?^```|`[^`\n]*`|^    .*?$|\]\([^)]*\)", re.MULTILINE | re.DOTALL)


def texts(path: Path) -> Iterator[tuple[int, str]]:
    """(line, text) of what a person reads in a file: without code, except for its comments, docstrings and messages."""
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".md":
        yield 1, CODE.sub(lambda code: re.sub(r"[^\n]", "", code[0]), text)
        return
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type == tokenize.COMMENT:
            yield token.start[0], token.string
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and " " in node.value:
            yield node.lineno, node.value


def hits(text: str, line: int = 1) -> list[str]:
    """What to change in a text, with the line."""
    return [
        f"{line + text[: found.start()].count(chr(10))}: “{found[0]}” → {better}"
        for phrase, better in BANNED.items()
        for found in phrase.finditer(text)
    ]


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_it_is_plain(path: Path):
    assert not [hit for line, text in texts(path) for hit in hits(text, line)]


def test_a_banned_phrase_is_found():
    assert hits("one\nThe name is told.") == [
        "2: “is told” → name who reports what: 'the run reports', 'the message names'",
    ]
    assert not hits("The run reports the name.")


def test_comments_docstrings_and_messages_are_read(tmp_path):
    file = tmp_path / "module.py"
    file.write_text('"""Said anew."""\n# shall\nshall = f"{1} by itself"\nkey = "laps"\n', encoding="utf-8")
    assert [text for _, text in texts(file)] == ["# shall", "Said anew.", " by itself"]
    page = tmp_path / "page.md"
    page.write_text("Plain `shall` words.\n\n```text\nshall\n```\n\n    shall\n", encoding="utf-8")
    assert not hits(next(texts(page))[1])
