"""What the loop reports and when: validations, saves, the best adapters, early stopping, metrics."""

import json

from mlx_lm_lora_prefplus.engine.files.metrics_file import MetricsFile
from mlx_lm_lora_prefplus.engine.files.run_state import StateFiles, newest_state
from mlx_lm_lora_prefplus.trainers import CPO
from tests.engine.train.small_run import run


def test_order_of_events_counts_micro_batches():
    _, events = run(gradient_accumulation_steps=3)
    assert [event[:2] for event in events] == [
        ("validate", 1),
        ("report", 2),
        ("validate", 3),
        ("report", 4),
        ("save", 4),
        ("validate", 6),
        ("report", 6),
        ("save", None),
    ]


def test_early_stopping_waits_for_its_patience(monkeypatch, capsys):
    """The validation loss, made up here, is best at its second time."""
    values = iter([3.0, 1.0, 2.0, 2.5, 1.5, 0.5])
    monkeypatch.setattr(type(CPO), "evaluate", lambda *_, **__: {"loss": next(values)})
    _, events = run(iters=30, steps_per_eval=2, early_stopping_patience=2)
    assert [event[1] for event in events if event[0] == "validate"] == [1, 2, 4, 6]
    assert [event for event in events if event[0] == "save"] == [("save", 4), ("save", None)]
    assert (
        "2 validations without a better objective (lower is better) than 1.000 at iteration 2"
        in capsys.readouterr().out
    )


def test_the_best_adapters_are_kept(monkeypatch, capsys):
    values = iter([0.5, 0.7, 0.6, 0.9])
    monkeypatch.setattr(type(CPO), "evaluate", lambda *_, **__: {"loss": 1.0, "rewards/accuracies": next(values)})
    _, events = run(iters=6, steps_per_eval=2, save_best="rewards/accuracies")
    kept = [i for i, event in enumerate(events) if event[0] == "best"]
    assert len(kept) == 3
    assert (
        "Best rewards/accuracies (higher is better) so far: 0.900 at iteration 6, kept in best."
        in capsys.readouterr().out
    )


def test_metrics_hold_every_report(tmp_path):
    run(iters=6, batch_size=10, max_grad_norm=1.0, metrics=MetricsFile(tmp_path))
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [(line["iteration"], line["split"]) for line in lines] == [
        *((1, "valid"), (2, "train"), (3, "valid"), (4, "train"), (6, "valid"), (6, "train"))
    ]
    wanted = {"loss", "rewards/chosen", "rewards/accuracies", "nll_loss", "grad_norm", "learning_rate"}
    wanted |= {"tokens_per_second", "peak_memory", "trained_tokens", "updates", "skipped_updates"}
    assert wanted <= set(lines[1])
    assert lines[1]["grad_norm"] > 0 and lines[1]["updates"] == 2
    assert {"loss", "rewards/margins", "seconds"} <= set(lines[0])
    assert [line["rows"] for line in lines] == [10, 20, 10, 20, 10, 20], "what the figures are means over"


def test_a_finished_run_has_nothing_left(tmp_path):
    run(states=StateFiles(tmp_path, 2), iters=4)
    state, _ = newest_state(tmp_path)
    _, events = run(resumed=state, iters=4)
    assert events == []
    _, events = run(resumed=state, iters=6)
    assert [event[:2] for event in events if event[0] != "save"] == [("validate", 6), ("report", 6)]


def test_the_progress_bar_says_training(capsys):
    run(iters=1)
    assert "Training: 100%" in capsys.readouterr().err
