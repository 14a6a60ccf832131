"""Lines of the summary of a run, apart from a run."""

import pytest

from mlx_lm_lora_prefplus.data.tokens.rows import TokenRows
from mlx_lm_lora_prefplus.host.config.resolve import resolve
from mlx_lm_lora_prefplus.host.run import findings, summary
from mlx_lm_lora_prefplus.plugin.manager import load_registry


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (
            {"train_mode": "simpo", "beta": 3.0, "gamma_beta_ratio": 0.55},
            "simpo (beta 3.0, label_smoothing 0.0, simpo_gamma 1.65, ",
        ),
        ({"train_mode": "dpo", "loss_weights": [2.0]}, "2·sigmoid (beta 0.1, "),
        ({"train_mode": "dpo", "loss_type": "sigmoid, sft"}, "1·sigmoid + 1·sft (beta 0.1, "),
        ({"train_mode": "kto", "beta": 1e-12}, "kto (beta 1e-12, "),
    ],
)
def test_the_objective(given, said):
    assert summary.objective(resolve(given, load_registry(), read_file=False)).startswith(said)


@pytest.mark.parametrize(
    ("scores", "said"), [([[2.0, 1.0]] * 3, None), ([[2.0, 1.0], [1.0, 1.0], [0.0, 1.0]], "2 of 3")]
)
def test_scores_that_do_not_order_the_pair(scores, said):
    rows = TokenRows.of([{"chosen_score": chosen, "rejected_score": rejected} for chosen, rejected in scores])
    told = findings.unordered_scores(rows)
    assert len(told) == bool(said) and all(str(said) in one for one in told)
