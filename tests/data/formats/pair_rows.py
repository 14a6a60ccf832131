"""A pair and a transcript that many rows become."""

from mlx_lm_lora_prefplus.data.formats.example import PAIR, Example
from tests.data.messages import bot, user

PLAIN = Example(1, [user("Q")], [[bot("A")], [bot("B")]], PAIR)
HH = "\n\nHuman: Hi\n\nAssistant: Hello\n\nHuman: Q\n\nAssistant:"
HISTORY = [user("Hi"), bot("Hello"), user("Q")]
