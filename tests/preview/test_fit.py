"""`check --fit`: the fewest changes that fit, those first that leave the result as it is."""

import gc
import json
from io import StringIO

import mlx.core as mx
import pytest
from rich.console import Console
from typer.testing import CliRunner

from mlx_lm_lora_prefplus import cli
from mlx_lm_lora_prefplus.engine.memory.advice import total_memory
from mlx_lm_lora_prefplus.host.config.command_line import settings_of
from mlx_lm_lora_prefplus.host.run.load import open_run
from mlx_lm_lora_prefplus.preview import fit as fitting
from mlx_lm_lora_prefplus.preview import forecast as forecasting
from mlx_lm_lora_prefplus.preview import measure as measuring
from mlx_lm_lora_prefplus.preview import report as reporting
from mlx_lm_lora_prefplus.preview.changes import changes
from mlx_lm_lora_prefplus.preview.fit import Change, Cost, Target, fit, usable_memory
from mlx_lm_lora_prefplus.preview.forecast import SAFE_SHARE
from mlx_lm_lora_prefplus.preview.render import render
from mlx_lm_lora_prefplus.preview.report import build_report

NOW = Cost(peak=1000, weights=200, seconds=100.0, measured=True)


@pytest.fixture
def session(config):
    return lambda **changed: open_run(settings_of([config(**changed)]))[0]


def test_weights_that_cannot_be_quantised_stay_as_they_are(session, monkeypatch):
    assert "load_in_4bits: true" in texts(session())
    monkeypatch.setattr(forecasting, "GROUP", 7)
    assert "load_in_4bits: true" not in texts(session())


@pytest.mark.parametrize("words", [["16"], ["16", "--batch-size", "8"], ["16 GB"]])
def test_a_size_without_its_unit_is_told(words):
    done = CliRunner().invoke(cli.app, ["check", "run.yaml", "--fit", *words], env={"COLUMNS": "200"})
    assert done.exit_code == 2 and "is not a size. Give one such as 16GB" in done.output


@pytest.mark.parametrize("size", ["0GB", "-16GB", "900MB"])
def test_a_size_that_no_machine_has_is_refused(size):
    done = CliRunner().invoke(cli.app, ["check", "run.yaml", "--fit", size], env={"COLUMNS": "200"})
    assert done.exit_code == 2 and f"'{size}' is no machine's memory. Give at least 1GB, such as 16GB" in done.output


@pytest.mark.parametrize("name", ["8b.yaml", "8.yaml"])
def test_the_name_of_a_config_may_begin_with_a_digit(config, tmp_path, name):
    (tmp_path / name).write_bytes((tmp_path / config()).read_bytes())
    done = CliRunner().invoke(cli.app, ["check", name, "--batch-size", "2", "--fit", "64GB"])
    assert done.exit_code == 0, done.output


def test_what_a_mac_leaves_to_a_run():
    """What Metal recommends on Macs with 16, 32, 36 and 64 GB, in MB."""
    for size, megabytes in ((16, 11453), (32, 22906), (36, 28991), (64, 51540)):
        assert usable_memory(size * 10**9) / 1e6 == pytest.approx(megabytes, abs=1)
    assert usable_memory(None) == total_memory()


def cost(peak: int, seconds: float | None = 100.0, weights: int = 200) -> Cost:
    return Cost(peak, weights, seconds, True)


def first(tried: list[tuple[Change, Cost]], limit: int) -> list[str]:
    """The texts of the first combination that should fit."""
    found = (one for one in fitting._combinations(tried, NOW) if one[1].peak <= limit)
    return [change.text for change in next(found, ((), None))[0]]


LAYERS = Change("activations", {"memory": "balanced"}), cost(600, 120.0)
INPUTS = Change("activations", {"memory": "low"}), cost(400, 150.0)
HALF = Change("batch", {"batch_size": 2}), cost(590, 110.0)
QUARTER = Change("batch", {"batch_size": 1}), cost(400, 140.0)
SHORT = Change("length", {"max_seq_length": 9}, "rows are cut"), cost(300, 50.0)
ALL = [LAYERS, INPUTS, HALF, QUARTER, SHORT]


def test_the_fastest_single_change_that_leaves_the_result():
    assert first(ALL, 700) == ["batch_size: 2"]
    assert first(ALL, 500) == ["batch_size: 1"]


def test_two_changes_that_leave_the_result_go_before_one_that_does_not():
    assert first(ALL, 398) == ["memory: balanced", "batch_size: 2"]  # 200 + 800 · ½ · 0.49
    assert first(ALL, 260) == ["memory: low", "batch_size: 1"]
    assert first(ALL, 240) == ["batch_size: 1", "max_seq_length: 9"]  # 200 + 800 · ¼ · ⅛; memory: low takes longer
    assert first(ALL, 200) == []


def test_changes_of_the_weights_and_of_the_step_go_together():
    quantized = Change("weights", {"load_in_4bits": True}, "other weights"), Cost(850, 50, None, False)
    assert first([HALF, quantized], 450) == ["batch_size: 2", "load_in_4bits: true"]  # 50 + 800 · ½


def texts(session) -> list[str]:
    return [change.text for change in changes(session)]


@pytest.mark.slow
def test_what_is_open_to_a_run(session):
    found = texts(session(batch_size=4))
    assert "batch_size: 2, gradient_accumulation_steps: 2, iters: 8" in found
    assert "batch_size: 1, gradient_accumulation_steps: 4, iters: 16" in found
    assert found.index("load_in_4bits: true") > found.index("optimizer_bits: 8") > 0
    assert "batch_size: 1, gradient_accumulation_steps: 9" in texts(
        session(batch_size=3, gradient_accumulation_steps=3, iters=None, epochs=1)
    )
    assert "token_budget: 50, gradient_accumulation_steps: 2, iters: 8" in texts(session(token_budget=100))
    full = texts(session(train_type="full", optimizer="muon", batch_size=1))
    assert not [text for text in full if "4bits" in text or "batch_size" in text or "optimizer" in text]


def test_what_changes_the_result_says_so(session):
    of_pairs = {change.text: change.result for change in changes(session(loss_type="sigmoid"))}
    said = [text for text, result in of_pairs.items() if not result]
    assert said and all("batch_size" in text or "memory" in text or "grad_checkpoint" in text for text in said)
    compared = [change for change in changes(session(loss_type="exo_pair", loss_weights=None, dr_dpo_beta=1.0))]
    batches = [change for change in compared if change.group == "batch"]
    assert batches and all("compares the rows" in change.result for change in batches)


@pytest.fixture
def made_up(session, monkeypatch):
    """`fit` on a run whose memory and time are made up: (measured values) → (peak, seconds)."""
    monkeypatch.setattr(fitting, "usable_memory", lambda size: 500)

    def found(costs, **changed):
        seen = []

        def measured(run, values):
            seen.append(values)
            return cost(*costs(values))

        monkeypatch.setattr(fitting, "_measured", measured)
        base = {"time": {"training": 100.0}, "memory": {"peak": 1000, "weights": 200, "measured": True}}
        return fit(session(train_type="full", **changed), base, Target(None, lambda text: None)), seen

    return found


def test_a_combination_is_measured_before_it_is_proposed(made_up):
    """Each alone takes 600, together they should take 400 (of 450), and do."""

    def costs(values):
        return {1: 600, 2: 440}.get(len({*values} & {"batch_size", "optimizer_bits"}), 1000), 100.0

    found, seen = made_up(costs, batch_size=2)
    assert found["proposal"]["changes"]["optimizer_bits"] == 8 and found["proposal"]["measured"]
    assert found["proposal"]["peak"] == 440 and {"batch_size", "optimizer_bits"} <= {*seen[-1]}
    assert "rounded" in found["proposal"]["result"] and not found["fits"] and found["usable"] == 450


def test_one_that_does_not_fit_after_all_is_not_proposed(made_up):
    found, _ = made_up(lambda values: (600, 100.0))
    assert found["proposal"] is None or not found["proposal"]["measured"]
    assert all(row["peak"] == 600 for row in found["tried"] if row["measured"])


@pytest.mark.parametrize(("proposal", "code"), [(None, 1), ({"changes": {}}, 0)])
def test_a_run_that_nothing_makes_fit_cannot_start(config, monkeypatch, proposal, code):
    found = {"fits": False, "proposal": proposal}
    monkeypatch.setattr(
        reporting, "forecast", lambda *_: {"memory": {"fits": True, "peak": 1, "there": 9}, "fused": {}}
    )
    monkeypatch.setattr(reporting, "fit", lambda *_: found)
    done = CliRunner().invoke(cli.app, ["check", config(), "--fit", "16GB", "--json"])
    said = "no change of settings makes the run fit"
    assert done.exit_code == code and (said in str(json.loads(done.stdout)["problems"])) == bool(code)


def test_a_change_that_saves_nothing_is_no_part_of_a_proposal(made_up):
    found, _ = made_up(lambda values: (400 if "batch_size" in values else 990, 100.0))
    assert {*found["proposal"]["changes"]} == {"batch_size", "gradient_accumulation_steps", "iters"}


@pytest.mark.slow
def test_a_run_that_fits_is_left_as_it_is(config):
    called = CliRunner().invoke(cli.app, ["check", config(), "--fit", "16GB", "--json"])
    found = json.loads(called.stdout)["fit"]
    assert found["fits"] and found["size"] == 16 * 10**9 and not found["tried"] and found["proposal"] is None


@pytest.mark.slow
def test_a_proposal_holds(config, rows, monkeypatch):
    """What is proposed is checked again as a run of its own, and takes what was said."""
    name = config(batch_size=4, train_type="full", val_batches=0)
    rows("train", *({"prompt": f"w{i} " * 20, "chosen": "w20 " * 30, "rejected": "w30 " * 30} for i in range(4)))
    monkeypatch.setattr(measuring, "SECONDS", 0.0)
    monkeypatch.setattr(measuring, "FORWARD_SECONDS", 0.0)
    build_report([name])  # later reports take the results of its probe, which needs more memory than this small run
    gc.collect()
    mx.reset_peak_memory()
    of_other_tests = mx.get_active_memory()
    alone = build_report([name])["forecast"]["memory"]["peak"]
    limit = int((of_other_tests + 0.85 * (alone - of_other_tests)) / SAFE_SHARE)
    monkeypatch.setattr(fitting, "usable_memory", lambda size: limit)
    mx.reset_peak_memory()
    report = build_report(["run.yaml"], fitted=Target(None, lambda text: None))
    proposal = report["fit"]["proposal"]
    console = Console(width=100, file=StringIO())
    console.print(render(report))
    shown = console.file.getvalue()
    assert "What fits into this machine" in shown and "The smallest change that fits:" in shown
    assert all(f"{key}: " in shown for key in proposal["changes"])
    mx.reset_peak_memory()  # a run of its own begins in a new process
    again = build_report([config(train_type="full", val_batches=0, **{"batch_size": 4, **proposal["changes"]})])
    assert again["forecast"]["memory"]["peak"] <= 1.1 * limit


def test_fit_needs_the_forecast(config):
    called = CliRunner().invoke(cli.app, ["check", config(), "--fit", "--no-forecast"])
    assert called.exit_code == 2 and "--fit needs the forecast" in called.output
