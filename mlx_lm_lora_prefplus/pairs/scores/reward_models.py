"""Reward models: a sequence classifier with one output, or a chat model, scored by its log-odds of Yes."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx_lm.utils import _get_classes, load_model, load_tokenizer

from ...engine.model.split_model import split_model
from ...errors import UserError
from ...evaluation.questions import Choice, right_padded
from ..prompts import Prompt
from ..sample import Answer

KEY = "reward_model"
CLASSIFIER = "ForSequenceClassification"
QUESTION = """\
Here are a request and an answer to it. Decide whether the answer is good: helpful, correct and to the point. \
A longer answer is not better for being longer.

[Request]
{prompt}

[Answer]
{answer}

Is the answer good? Reply with Yes or No."""

Reward = Callable[[Prompt, list[Answer]], list[float]]
"""Function (prompt, its answers) → their scores."""


def load_reward_model(path: str) -> Reward:
    """Load a reward model: a classifier if its config.json names one, otherwise a chat model that answers Yes or No.

    Raises:
        UserError: The model cannot be loaded, or has more than one output.
    """
    if is_classifier(path):
        return _classifier(Path(path).expanduser())
    choice = Choice(path, KEY, (("Yes", "yes"), ("No", "no")))
    return lambda prompt, answers: choice([QUESTION.format(prompt=prompt.text, answer=one.text) for one in answers])


def is_classifier(path: str) -> bool:
    """Return whether a local folder contains a sequence classifier in the format of transformers."""
    file = Path(path).expanduser() / "config.json"
    try:
        architectures = json.loads(file.read_text(encoding="utf-8")).get("architectures") or []
    except (OSError, ValueError, AttributeError):
        return False
    return any(str(name).endswith(CLASSIFIER) for name in architectures)


def _classifier(folder: Path) -> Reward:
    shapes: dict[str, tuple[int, ...]] = {}
    for file in folder.glob("model*.safetensors"):
        weights: Any = mx.load(str(file))
        shapes.update({name: value.shape for name, value in weights.items() if name.startswith("score.")})
    if "score.weight" not in shapes or shapes["score.weight"][0] != 1:
        found = shapes.get("score.weight", "none")
        raise UserError(
            f"{KEY}: {folder} is a sequence classifier whose score.weight has shape {found}. A reward model has one "
            "output: (1, hidden)."
        )

    def classes(config: dict[str, Any]) -> Any:
        model_class, args_class = _get_classes(config)

        class Classifier(model_class):
            def __init__(self, args: Any):
                super().__init__(args)
                self.score = nn.Linear(args.hidden_size, 1, bias="score.bias" in shapes)

        return Classifier, args_class

    try:  # strict: the file must contain exactly the model's weights
        model, config = load_model(folder, model_config={"tie_word_embeddings": True}, get_model_classes=classes)
        tokenizer: Any = load_tokenizer(folder, eos_token_ids=config.get("eos_token_id"))
    except Exception as error:  # the tokenizer and mlx raise many kinds of errors
        raise UserError(f"{KEY}: {folder} could not be loaded: {type(error).__name__}: {error}") from error
    model.eval()
    head: Any = model.score
    halves = split_model(model)
    if halves is None:
        raise UserError(f"{KEY}: the hidden states of {type(model).__name__} in {folder} cannot be reached.")

    def reward(prompt: Prompt, answers: list[Answer]) -> list[float]:
        tokens, last = right_padded([_conversation(tokenizer, prompt, one) for one in answers])
        hidden = halves.hidden(tokens)[mx.arange(len(answers)), last]
        return head(hidden)[:, 0].astype(mx.float32).tolist()  # pyright: ignore[reportReturnType]

    return reward


def _conversation(tokenizer: Any, prompt: Prompt, answer: Answer) -> list[int]:
    if not tokenizer.has_chat_template:
        return tokenizer.encode(f"{prompt.text}\n\n{answer.text}")
    asked = prompt.example.prompt
    messages = asked if isinstance(asked, list) else [{"role": "user", "content": prompt.text}]
    return tokenizer.apply_chat_template([*messages, {"role": "assistant", "content": answer.text}])
