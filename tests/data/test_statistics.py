"""Repeated, contradictory and leaked rows, as comparing the rows themselves finds them."""

import numpy as np
import pytest

from mlx_lm_lora_prefplus.data import statistics
from mlx_lm_lora_prefplus.data.tokens.rows import TokenRows


def rows(count, seed, label=False, nested=False):
    """Short lists of few tokens, so that many are alike."""
    rng = np.random.default_rng(seed)
    draw = lambda: rng.integers(0, 2, rng.integers(0, 3)).tolist()  # noqa: E731
    table = {"prompt": [draw() for _ in range(count)]}
    if label:
        table |= {"completion": [draw() for _ in range(count)], "label": rng.integers(0, 2, count).astype(float)}
    elif nested:
        table |= {"completions": [[draw() for _ in range(rng.integers(1, 3))] for _ in range(count)]}
    else:
        table |= {side: [draw() for _ in range(count)] for side in ("chosen", "rejected")}
    return TokenRows.of([dict(zip(table, values, strict=True)) for values in zip(*table.values(), strict=True)])


def by_comparing(table):
    columns = [
        name for name in ("prompt", "chosen", "rejected", "completion", "completions") if name in table.column_names
    ]
    columns += ["label"] if "label" in table.column_names else []
    seen, opposite = [], 0
    for row in table:
        content = [row[name] for name in columns]
        other = [*content[:-1], 1 - content[-1]] if "label" in row else [content[0], *content[:0:-1]]
        opposite += other != content and other in seen
        seen.append(content)
    unlike = lambda items: len({str(item) for item in items})  # noqa: E731
    prompts = [row["prompt"] for row in table]
    return {"rows": len(seen) - unlike(seen), "prompts": len(seen) - unlike(prompts), "contradictions": opposite}


@pytest.mark.parametrize("block", [1, 7, 2**15])
@pytest.mark.parametrize("kind", [{}, {"label": True}, {"nested": True}])
def test_repeated_rows_are_counted(kind, block, monkeypatch):
    monkeypatch.setattr(statistics, "BLOCK", block)
    table = rows(120, seed=3, **kind)
    wanted = by_comparing(table)
    assert statistics._repeated(table) == wanted and wanted["rows"] > 0
    assert wanted["contradictions"] > 0 or "nested" in kind


def test_prompts_that_are_trained_on_are_counted():
    train, valid = (
        TokenRows.of([{"prompt": prompt} for prompt in prompts]) for prompts in ([[1], [2, 0]], [[2, 0], [2], [0, 2]])
    )
    (told,) = statistics._leaks({"train": train, "valid": valid})
    assert told.startswith("valid: the prompts of 1 of 3 rows are also in train")
