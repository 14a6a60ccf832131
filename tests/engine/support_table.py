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

At its start, a run tests on the loaded model which methods of computing log-probs are exact, and chooses the fastest
one (`engine: auto`). The line `Engine:` of the log shows the method and the reason.

The table shows what was chosen for each model class of mlx-lm {version("mlx-lm")}; it does not affect the choice. The
models were small, with random weights, and all weights were trained. The last two columns show how far the gradients
are from those of plain forward passes of single, unpadded rows: the largest relative L2 difference of a tensor. They
were measured on other batches than those of the test at the start: a pair longer than a sliding window, rows of
different lengths, rows of equal lengths, and prompts of one token.

- **prompt once**: the prompts run once, padded (on a CPU, rows of similar lengths together). Their completions
  continue from their keys and values.
- **prompt once, one by one**: the same, but each prompt runs alone and unpadded. It is used for layers that keep a
  state, and for models that would take a mask of rows for a mask of heads.
- **together**: prompt and completion run together, as separate rows.
- **plain**: all logits at once, as in the host. It is used if nothing else is exact. With all other methods the head
  runs only at completion tokens, in blocks.

Values below {FLOAT64:.0e} in the float64 column are rounding of float64. Classes with larger values compute some
parts in float32 (routers of experts, states, norms). The table is made by `python -m tests.engine.support_table`, and
a test compares it with what is chosen now. LoRA, DoRA (which mlx-lm does not support on experts) and a 4-bit base
model lead to the same choices with the same precision. mlx-lm's adapters do not work on all layers of gemma3n and
kimi_k3, and its DoRA does not work on afm7.

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
    experts = _experts()  # before the page is overwritten
    print(INTRODUCTION)
    for name in model_zoo.trainable():
        print(row(name), flush=True)
        print(name, file=sys.stderr)
    print(f"\n{experts}\n## Not in the table\n\n| class | why |\n|---|---|")
    for name, reason in sorted((model_zoo.NOT_BUILT | model_zoo.NOT_TRAINED).items()):
        print(f"| {name} | {reason} |")


if __name__ == "__main__":
    main()
