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
one (`engine: auto`). The line `Engine:` of the log shows the method and the reason. This table does not affect the
choice. It shows what was chosen for each model class of mlx-lm {version("mlx-lm")}, built small with random weights,
with all weights trained. The last columns show how far the gradients are from those of plain forward passes of single,
unpadded rows: the largest relative L2 difference of a tensor. The batches differ from those of the test at the start:
one pair longer than a sliding window, uneven rows, rows of equal lengths, and prompts of one token.

- **prompt once**: the prompts run once, padded (on a CPU, rows of similar lengths together). Their completions
  continue from their keys and values.
- **prompt once, one by one**: the same for one prompt after the other, unpadded. It is used for layers that keep a
  state, and for models that would confuse a mask of rows with one of heads.
- **together**: prompt and completion run together, as separate rows.
- **plain**: all logits at once, as in the host. It is used if nothing else is exact. With all other methods the head
  runs only at completion tokens, in blocks.

Values below {FLOAT64:.0e} in the float64 column are rounding of float64. Classes above it convert to float32 internally
(routers of experts, states, norms), which the float32 column measures. The table is made by
`python -m tests.engine.support_table`, and a test compares it with what is chosen now. With LoRA, with DoRA (where
mlx-lm supports it: not on experts) and on a 4-bit base model the same methods are chosen and are as exact. mlx-lm's
adapters do not work on all layers of gemma3n and kimi_k3, and its DoRA does not work on afm7.

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
