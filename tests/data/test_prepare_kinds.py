"""Pairs, single completions and lists, as each of the others, from settings to a batch."""

import pytest

from mlx_lm_lora_prefplus.data.batches.lengths import lengths_of
from tests.conftest import iterate_batches

from .conftest import PAIR

RANKED = [
    {
        "prompt": f"Q{i}",
        "responses": ["one", "two two", "three three three"][: 2 + i % 2],
        "scores": [2, 1, 3][: 2 + i % 2],
    }
    for i in range(4)
]
LABELLED = [{"prompt": f"Q{i}", "completion": "A" * (i + 1), "label": i % 3 == 0} for i in range(5)]
PAIRS = [{**PAIR, "prompt": f"Q{i}"} for i in range(3)]


@pytest.mark.parametrize(
    ("data", "kind", "pairing", "columns", "used"),
    [
        (PAIRS, "unpaired", "best_worst", ["prompt", "completion", "label", "row"], 6),
        (PAIRS, "ranked", "best_worst", ["prompt", "completions", "scores", "row"], 3),
        (LABELLED, "unpaired", "best_worst", ["prompt", "completion", "label", "row"], 5),
        (RANKED, "ranked", "best_worst", ["prompt", "completions", "scores", "row"], 4),
        (RANKED, "unpaired", "all_pairs", ["prompt", "completion", "label", "row"], 8),
        (RANKED, "paired", "best_worst", ["prompt", "chosen", "rejected", "row", "chosen_score", "rejected_score"], 4),
        (RANKED, "paired", "all_pairs", ["prompt", "chosen", "rejected", "row", "chosen_score", "rejected_score"], 8),
    ],
)
def test_kinds_of_rows_and_their_reports(tokenise, data, kind, pairing, columns, used):
    rows, report, _ = tokenise(data, kind=kind, pairing=pairing)
    assert rows.column_names == report.columns == columns
    assert (report.kind, report.read, report.used, report.truncated) == (kind, len(data), used, 0)
    assert len(rows) == used and set(rows.column("row").to_pylist()) == set(range(1, len(data) + 1))
    totals = lengths_of(rows)
    assert (report.prompt_tokens, report.completion_tokens) == (totals.prompt.sum(), totals.total.sum())
    labels = rows.column("label").to_pylist() if kind == "unpaired" else []
    assert (report.desirable, report.undesirable) == (labels.count(1), labels.count(0))
    best = {"paired": lambda row: row["chosen"], "ranked": lambda row: row["completions"][0]}
    good = [best[kind](row) for row in rows] if kind in best else [row["completion"] for row in rows if row["label"]]
    assert report.chosen_tokens == sum(map(len, good))
    again = tokenise(data, kind=kind, pairing=pairing)
    assert again.report.cached and again.rows.column_names == columns and list(again.rows) == list(rows)


def test_numbers_are_kept_where_all_rows_have_them(tokenise):
    data = [{**PAIR, "prompt": f"Q{i}", "margin": i / 4, "preference_prob": 0.5} for i in range(3)]
    data += [{**PAIR, "margin": 7}, {**PAIR, "chosen": "", "margin": None}]
    rows, report, _ = tokenise(data)
    assert rows.column("margin").to_pylist() == [0, 0.25, 0.5, 7] and rows.column("margin").type == "float32"
    assert rows.column_names == report.columns == ["prompt", "chosen", "rejected", "row", "margin"]
    assert report.incomplete == {"preference_prob": 3}
    again = tokenise(data)
    assert again.report.cached and again.rows.column_names == rows.column_names
    batch = next(iterate_batches(again.rows, batch_size=4, shuffle=False))
    assert list(batch.columns) == ["margin"] and batch.columns["margin"].tolist() == [0, 0.25, 0.5, 7]
    assert tokenise(data, kind="ranked").report.incomplete == {}


def test_unpaired_rows_all_the_way_to_a_batch(tokenise, chatml):
    rows, _, _ = tokenise(LABELLED, kind="unpaired")
    batch = next(iterate_batches(rows, batch_size=5, shuffle=False, mismatched=True))
    assert batch.columns["label"].tolist() == [1, 0, 0, 1, 0] and batch.tokens.shape[0] == 5
    texts = [
        chatml.decode(ids[:length])
        for one in (batch, batch.mismatched)
        for ids, length in zip(one.tokens.tolist(), one.lengths.tolist(), strict=True)
    ]
    assert ["A" * (i + 1) + "<|im_end|>\n" == text.split("assistant\n")[1] for i, text in enumerate(texts[:5])] == [
        True
    ] * 5
    assert all(
        own.split("assistant")[0] == other.split("assistant")[0]
        for own, other in zip(texts[:5], texts[5:], strict=True)
    )
    assert all(own != other for own, other in zip(texts[:5], texts[5:], strict=True))


def test_lists_all_the_way_to_a_batch(tokenise, chatml):
    rows, _, _ = tokenise(RANKED, kind="ranked")
    batch = next(iterate_batches(rows, batch_size=4, shuffle=False))
    assert batch.columns["scores"].tolist() == [2, 3, 2, 3, 1, 2, 1, 2, 1, 1, 1, 1]
    read = [
        chatml.decode(ids[:n])
        for ids, n in zip(batch.completions.tolist(), batch.completion_lengths.tolist(), strict=True)
    ]
    assert [text.removesuffix("<|im_end|>\n") for text in read] == [
        *("one", "three three three", "one", "three three three"),
        *("two two", "one", "two two", "one"),
        *("", "two two", "", "two two"),
    ]
