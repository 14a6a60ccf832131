"""Writes docs/models.md: python -m tests.engine.support_table > models.md, to be moved to docs (some minutes)."""

import sys
from importlib.metadata import version

import mlx.core as mx
import pytest

from tests.engine import in_float64, model_zoo
from tests.engine.exactness import FLOAT64, WAYS, Finding, examine, float64
from tests.paths import DOCS

INTRODUCTION = f"""\
# Model classes

Which way of computing log-probs a run takes is decided by the numbers of the loaded model at its start, not by this
table (`engine: auto`; the line `Engine:` of a run says what was chosen and why). The table is what that probe chose for
each model class of mlx-lm {version("mlx-lm")}, built small with random weights, all of it trained, and how far the
gradients then were from those of plain forwards of single, unpadded rows: the largest relative L2 difference of a
tensor. The batches differ from those of the probe: one pair longer than a sliding window (which the probe's rows are
not), uneven rows, rows of equal lengths, prompts of one token.

- **prompt once**: the prompts run once, padded (on a CPU, rows of similar lengths together); their completions continue
  from their keys and values.
- **prompt once, one by one**: the same for one prompt after the other, unpadded. For layers that keep a state, and
  models that take a mask of rows for one of heads.
- **together**: prompt and completion run together, as rows of their own.
- **plain**: as the host does it, all logits at once; what is left where nothing else is exact. In all other
  ways the head runs at completion tokens only, in blocks.

Below {FLOAT64:.0e} the float64 column shows rounding of float64. Classes above it convert to float32 inside (routers
of experts, states, norms), which the float32 column measures. Made by `python -m tests.engine.support_table`; a test
compares this table with what is chosen now. With LoRA, with DoRA (where mlx-lm has it: not on experts) and on a 4-bit
base the same ways are chosen and are as exact; mlx-lm's adapters do not work on all layers of gemma3n and kimi_k3, nor
its DoRA on afm7.

| class | way | float32 | float64 |
|---|---|---|---|"""


def in_double(name: str) -> Finding:
    """As `examine`, in float64."""
    with pytest.MonkeyPatch.context() as patch:
        in_float64.install(patch)
        return examine(float64(model_zoo.build(name)))


def row(name: str) -> str:
    """One class."""
    found, double = examine(model_zoo.build(name)), in_double(name)
    mx.clear_cache()
    assert found.way is double.way, name
    return f"| {name} | {WAYS[found.way]} | {found.error:.0e} | {double.error:.0e} |"


def _experts() -> str:
    """The section on mixtures of experts, as it is on the page."""
    page = (DOCS / "models.md").read_text(encoding="utf-8")
    return page[page.index("## Mixtures of experts") : page.index("\n## Not in the table")]


def main() -> None:
    """Print the table."""
    experts = _experts()  # before the page is written anew
    print(INTRODUCTION)
    for name in model_zoo.trainable():
        print(row(name), flush=True)
        print(name, file=sys.stderr)
    print(f"\n{experts}\n## Not in the table\n\n| class | why |\n|---|---|")
    for name, reason in sorted((model_zoo.NOT_BUILT | model_zoo.NOT_TRAINED).items()):
        print(f"| {name} | {reason} |")


if __name__ == "__main__":
    main()
