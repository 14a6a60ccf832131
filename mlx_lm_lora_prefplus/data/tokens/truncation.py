"""Truncation of rows to the maximum length."""

from ...settings import DataSettings

Ids = list[int]


def fit(
    prompt: Ids, completions: list[Ids], settings: DataSettings, bos: int | None = None, least: int = 1
) -> tuple[Ids, list[Ids]] | None:
    """Truncate a row so that the prompt and its longest completion have at most `max_seq_length` tokens together.

    The prompt is truncated first, down to `max_prompt_length` tokens (default: half of `max_seq_length`), then the ends
    of the completions. At least one token of each remains. A truncated prompt keeps its leading `bos` if at least two
    of its tokens remain. Returns None if the row is too long and `truncation` is "drop". Also returns None if
    `max_seq_length` has no room for one prompt token and `least` completion tokens.

    With `truncation` "keep_prompt" only the ends of completions are truncated. None then means that the prompt leaves
    no room for `least` completion tokens. (TRL 1.16's DPO and KTO trainers use this rule with `least` = 1.)
    """
    limit = settings.max_seq_length
    longest = max(map(len, completions))
    if len(prompt) + longest <= limit:
        return prompt, completions
    if settings.truncation == "drop":
        return None
    if settings.truncation == "keep_prompt":
        room = limit - len(prompt)
        return (prompt, [completion[:room] for completion in completions]) if room >= least else None
    floor = min(len(prompt), settings.max_prompt_length or limit // 2)
    if least > max(1, limit - 1):
        return None
    keep = max(1, min(max(limit - longest, floor), limit - least))
    room = max(1, limit - keep)
    start = prompt[:keep] if settings.truncation == "keep_start" else prompt[-keep:]
    if prompt[0] == bos and keep > 1:
        start = [bos, *start[1:]]
    return start, [completion[:room] for completion in completions]
