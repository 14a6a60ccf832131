"""Real shapes: the parameters of a model built here are as many as the model on the hub has."""

import mlx.core as mx
import pytest
from mlx.utils import tree_flatten

from mlx_lm_lora_prefplus.bench import architectures
from mlx_lm_lora_prefplus.bench.measure import Method, measure
from mlx_lm_lora_prefplus.bench.workloads import Workload, make_base
from mlx_lm_lora_prefplus.errors import UserError
from tests.bench.test_command import call

pytestmark = pytest.mark.slow

PARAMETERS = {
    "qwen2.5-0.5b": 494_032_768,
    "qwen3-0.6b": 596_049_920,
    "llama-3.2-1b": 1_235_814_400,
    "qwen3-4b": 4_022_468_096,
    "llama-3.1-8b": 8_030_261_248,
    "qwen3-30b-a3b": 30_532_122_624,
}
"""As the model cards and the index files of the weights on the hub state them."""


@pytest.mark.parametrize("name", architectures.ARCHITECTURES)
def test_a_shape_has_the_parameters_of_its_model(name):
    model = architectures.build(name, architectures.layers_of(name))  # lazy: nothing is computed
    assert sum(value.size for _, value in tree_flatten(model.parameters())) == PARAMETERS[name]


@pytest.fixture
def small(monkeypatch):
    """A shape that a test can afford, of a class that the table names."""
    arguments = {**architectures.ARCHITECTURES["qwen3-0.6b"], "hidden_size": 64, "intermediate_size": 64}
    arguments |= {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16, "vocab_size": 50}
    monkeypatch.setitem(architectures.ARCHITECTURES, "small", arguments)


def test_a_slice_is_measured_against_the_host(small):
    workload = Workload("x", "cpo", 5, 4, 4, pairs=2, shape="small", layers=2)
    row = measure(workload, Method(repeat=1))
    assert (row["shape"], row["layers"]) == ("small", 2) and "hidden" not in row
    assert row["gradient_error"] < 1e-4


def test_weights_have_the_dtype_and_the_bits(small):
    workload = Workload("x", "cpo", 5, 4, 4, shape="small", layers=1, dtype="bfloat16")
    model = make_base(workload)
    assert {value.dtype for _, value in tree_flatten(model.parameters())} == {mx.bfloat16}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--shape", "gpt-5"], "no shape gpt-5. Choose one of qwen2.5-0.5b"),
        (["--shape", "qwen3-4b", "--layers", "37"], "qwen3-4b has 36 layers"),
        (["--shape", "qwen3-4b", "--hidden", "64"], "Remove --model, --hidden"),
        (["--dtype", "int8"], "no dtype int8"),
    ],
)
def test_what_cannot_be_built_is_refused(words, message):
    error = call(*words).exception
    assert isinstance(error, UserError) and message in str(error)
