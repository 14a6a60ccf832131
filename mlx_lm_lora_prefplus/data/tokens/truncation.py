"""Rows that are too long → rows that fit."""

from ...settings import DataSettings

Ids = list[int]


def fit(
    prompt: Ids, completions: list[Ids], settings: DataSettings, bos: int | None = None, least: int = 1
) -> tuple[Ids, list[Ids]] | None:
    """Cut a row so that the prompt and any of its completions have at most `max_seq_length` tokens together.

    The prompt gives way first, down to `max_prompt_length` tokens (default: half of `max_seq_length`); then
    the ends of the completions. One token of each remains whatever the settings, and a prompt that begins with
    `bos` still does where two tokens of it fit. None if the row is too long and `truncation` is "drop", or if `least`
    tokens of the completions do not fit beside one of the prompt.

    With `truncation` "keep_prompt" the prompt never gives way: the end of each completion is cut, and None means that
    the prompt leaves no room for `least` tokens in `max_seq_length` (the rule of TRL 1.16's DPO and KTO trainers, where
    `least` is 1).
    """
    limit = settings.max_seq_length
    longest = max(map(len, completions))
    if len(prompt) + longest <= limit:
        return prompt, completions
    if settings.truncation == "drop":
        return None
    if settings.truncation == "keep_prompt":
        room = limit - len(prompt)
        return (prompt, [one[:room] for one in completions]) if room >= least else None
    floor = min(len(prompt), settings.max_prompt_length or limit // 2)
    if least > max(1, limit - 1):
        return None
    keep = max(1, min(max(limit - longest, floor), limit - least))
    room = max(1, limit - keep)
    kept = prompt[:keep] if settings.truncation == "keep_start" else prompt[-keep:]
    if prompt[0] == bos and keep > 1:
        kept = [bos, *kept[1:]]
    return kept, [completion[:room] for completion in completions]
