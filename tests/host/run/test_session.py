"""How a run batches its rows, what the summary says of it, and which models it refuses."""

import re
from pathlib import Path

import mlx.core as mx
import mlx_lm
import numpy as np
import pytest
from mlx_lm.models import llama

from mlx_lm_lora_prefplus.data.batches import packing
from mlx_lm_lora_prefplus.data.batches.grouping import known_lengths
from mlx_lm_lora_prefplus.data.batches.packing import pack
from mlx_lm_lora_prefplus.engine.logprobs.computed import computed_tokens, tokens_of
from mlx_lm_lora_prefplus.engine.memory.activations import MemoryChoice
from mlx_lm_lora_prefplus.engine.memory.recompute import Keep
from mlx_lm_lora_prefplus.engine.probe import select
from mlx_lm_lora_prefplus.errors import UserError
from mlx_lm_lora_prefplus.host.run import session as session_module
from mlx_lm_lora_prefplus.host.run.session import Session


@pytest.fixture
def seen(monkeypatch):
    """The `Session` of each run."""
    made: list[Session] = []

    class Kept(Session):
        def __init__(self, *given):
            super().__init__(*given)
            made.append(self)

    monkeypatch.setattr("mlx_lm_lora_prefplus.host.run.load.Session", Kept)
    return made


@pytest.fixture
def packing_rows(monkeypatch):
    """Runs pack rows, as on a GPU."""
    for module in (select, session_module):
        monkeypatch.setattr(module, "call_tokens", lambda: None)


def test_a_token_budget_takes_the_place_of_batch_size(go, seen, path_of_a_cpu):
    out, told = go(token_budget=40, iters=None, epochs=2, val_batches=1)
    batches = list(seen[0].batches("train"))
    for batch in batches:
        padded = batch.prompts.size + batch.completions.size
        assert padded <= 40 or len(batch.ids) == 1
    assert sorted(i for batch in batches for i in batch.ids.tolist()) == list(range(10))
    assert 3 < len(batches) < 10
    assert seen[0].iters == sum(len(list(seen[0].batches("train", epoch))) for epoch in (0, 1))
    assert told.train[-1]["iteration"] == seen[0].iters
    assert re.search(r"Plan: \d+ micro-batches of \d\.\d pairs on average \(token_budget 40\) \(2\.0\d epochs\)", out)
    assert "batch_size has no effect if token_budget is set" in out


@pytest.mark.parametrize("mode", ["dpo", "kto"])
def test_packed_rows_are_batched_by_their_whole_length(go, seen, path_of_a_cpu, monkeypatch, request, mode):
    """As on a GPU, but not compiled. The losses before the first update are those of rows that are not packed. In KTO
    the completions of other rows are in the row too.
    """
    apart = go(train_mode=mode, adapter_path="apart", steps_per_eval=1, iters=1)[1]
    request.getfixturevalue("packing_rows")
    monkeypatch.setattr(packing, "MULTIPLE", 1)  # rows of the test are short
    out, packed = go(train_mode=mode, steps_per_eval=1, iters=1)
    assert "in one row with its completions" in out and seen[1].packs and not seen[0].packs
    lengths = seen[1].lengths("train")
    whole = (lengths.prompt + lengths.total)[seen[1].plan("train").order]
    halves = sorted((whole[:4], whole[4:8]), key=max)
    assert max(halves[0]) <= min(halves[1]), "batches of similar rows"
    assert packed.val[0]["val_loss"] == pytest.approx(apart.val[0]["val_loss"], rel=1e-5)
    batch = next(seen[1].batches("train"))
    ids = np.array(batch.ids)
    planned = computed_tokens(seen[1].policy, lengths.prompt[ids], lengths.completions(ids))
    assert planned == tokens_of(seen[1].policy, batch)


@pytest.mark.parametrize(
    "change",
    [{"engine": "plain"}, {"efficient_long_context": True, "long_context_chunk": 8}, {"memory": "low"}],
    ids=str,
)
def test_a_resumed_run_keeps_its_plan(go, seen, packing_rows, change):
    go(iters=1, batch_size=2, save_every=1)
    out, _ = go(iters=4, batch_size=2, save_every=1, resume=True, **change)
    assert "Resuming after iteration 1" in out and seen[1].packs == ("memory" in change)
    first, second = ([ids.tolist() for ids in session.plan("train")] for session in seen)
    assert first == second


def test_a_budget_counts_packed_rows(go, seen, packing_rows):
    go(token_budget=64, iters=2, val_batches=1)
    costs = seen[0].engine.policy.costs
    assert costs.always and costs.attended < np.inf, "all batches are packed, with the cost of attention"
    for batch in seen[0].batches("train"):
        assert pack(batch, costs).tokens.size <= 64 or batch.ids.size == 1


def test_a_reference_of_its_own_packs_as_the_policy_does(go, seen, packing_rows, model_folder):
    """Otherwise the two would round differently."""
    go(token_budget=64, iters=1, val_batches=0)
    costs = seen[0].policy_of(mlx_lm.load(str(model_folder))[0]).costs
    assert costs == seen[0].engine.policy.costs and costs.always and costs.longest > 0


def test_to_need_less_memory_matters_more_than_packed_rows(go, seen, packing_rows, monkeypatch):
    """Packed rows are longer. Here they would not fit with all activations."""
    longest = []

    def choose(settings, model, batch, part, row):
        longest.append(row)
        return MemoryChoice(Keep.ALL if row == min(longest) else Keep.INPUTS)

    monkeypatch.setattr(session_module, "choose_memory", choose)
    go(iters=1)
    assert max(longest) > min(longest)
    assert not seen[0].packs and seen[0].engine.policy.keep is Keep.ALL


@pytest.mark.slow
def test_rows_that_stand_alone_are_told(go):
    assert "All micro-batches contain only one example" in go(loss_type="aot", token_budget=1)[0]
    assert "only one example" not in go(loss_type="aot", adapter_path="other")[0]


@pytest.mark.slow
def test_more_layers_than_there_are_is_told(go):
    assert "num_layers 99: the model has only 2 layers. All of them get adapters." in go(num_layers=99)[0]
    assert "All of them" not in go(num_layers=2, adapter_path="other")[0]


@pytest.mark.parametrize(
    ("asked", "kept"),
    [
        ({"memory": "balanced"}, "keeping the outputs of linear layers"),
        ({"grad_checkpoint": True}, "keeping the inputs of layers"),
        ({"engine": "plain", "memory": "low"}, "keeping the inputs of layers"),
        ({}, None),
    ],
    ids=str,
)
def test_what_layers_keep_is_what_the_settings_ask_for(go, seen, asked, kept):
    out, _ = go(iters=1, val_batches=0, **asked)
    engine = next(line for line in out.splitlines() if "Engine:" in line)
    assert ("keeping" in engine) is (kept is not None) and (kept or "") in engine
    assert seen[0].policy.keep.value == (kept or "keeping all activations").removeprefix("keeping ")


def test_a_second_start_on_the_same_model_does_not_probe(go, monkeypatch, tmp_path):
    monkeypatch.setenv("MLX_LM_LORA_PREFPLUS_CACHE", str(tmp_path / "cache"))
    first, _ = go(iters=1, val_batches=0)
    monkeypatch.setattr(select, "_probe", None)
    second, _ = go(iters=1, val_batches=0, adapter_path="other")
    line = re.compile("Engine: .*")
    assert line.search(first)[0] == line.search(second)[0]


def test_the_plan_is_what_is_trained(go, seen):
    go(iters=2, val_batches=1)
    planned = [ids.tolist() for ids in seen[0].plan("train")]
    assert [batch.ids.tolist() for batch in seen[0].batches("train")] == planned
    assert seen[0].visited_rows("train").tolist() == planned[0] + planned[1]
    assert seen[0].visited_rows("valid").tolist() == [0, 1, 2]


def test_the_summary_says_how_much_is_padding(go, seen):
    out, _ = go()
    found = re.search(r"Plan: 4 micro-batches of 4 pairs .*; padding adds (\d+)% to the tokens", out)
    batches = list(seen[0].batches("train"))
    padded = 0
    for batch in batches:
        for part in seen[0].in_parts(batch):
            lengths = known_lengths(part)
            completions = lengths.completions.reshape(2, -1)
            padded += computed_tokens(seen[0].engine.policy, lengths.prompts, completions)
    real = sum(
        (batch.completion_lengths.sum() + batch.prompt_lengths[: len(batch.ids)].sum()).item() for batch in batches
    )
    assert int(found[1]) / 100 == pytest.approx(padded / real - 1, abs=0.006)


def test_a_model_without_a_gradient_is_told_at_the_start(go, monkeypatch, tmp_path):
    """As of rwkv7 on Metal. It is told again when the result of the probe is known, and also without a probe."""
    monkeypatch.setenv("MLX_LM_LORA_PREFPLUS_CACHE", str(tmp_path / "cache"))  # other tests have another llama
    own = llama.Model.__call__

    def without_gradient(self, *given, **more):
        logits = own(self, *given, **more)
        return mx.view(mx.view(logits, mx.int32), mx.float32)

    monkeypatch.setattr(llama.Model, "__call__", without_gradient)
    for changes in ({}, {}, {"engine": "plain"}):
        with pytest.raises(UserError, match="cannot be trained on this device.* no gradient .* View float32. Choose"):
            go(**changes)
    assert not Path("adapters/adapters.safetensors").exists()
