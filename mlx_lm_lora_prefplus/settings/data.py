"""The config keys for data: where the rows are and how they become tokens."""

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field

from .marks import FUNCTIONS, LARGEST, OURS, Column, Effect, Place, Positive, Settings

RESERVED = frozenset(
    ("conversation", "messages", "tools", "tokenize", "add_generation_prompt", "continue_final_message", "return_dict")
)
"""Arguments of a chat template that users cannot set, because they come from the rows or from this package."""


def _template_kwargs(kwargs: dict[str, Any]) -> dict[str, Any]:
    if reserved := RESERVED.intersection(kwargs):
        raise ValueError(f"{', '.join(sorted(reserved))} cannot be set here. Remove it")
    return kwargs


Truncation = Literal["keep_end", "keep_start", "keep_prompt", "drop"]


class DataSettings(Settings):
    """The config keys for data. Keys and defaults are the host's, except keys marked `OURS`."""

    data: Annotated[Place, Effect.COMPARED] = "data/"
    """A folder with train, valid and test files (jsonl, json, parquet, csv), or a Hugging Face data set."""

    hf_dataset: Annotated[list[dict[str, Any]] | dict[str, Any] | None, Effect.COMPARED] = None
    """One Hugging Face data set with its splits and columns, as in mlx-lm, or a list of them."""

    streaming: Annotated[bool, Effect.COMPARED, OURS] = False
    """Read training rows during training, without writing their tokens to the disk. Use it for very large data sets.
    Requires iters, because the number of rows is unknown.
    """

    shuffle_buffer: Annotated[int, Field(ge=0, le=LARGEST), Effect.COMPARED, OURS] = 1000
    """streaming: number of rows that are kept in memory and shuffled together. 0 keeps their order."""

    prompt_format: Annotated[Literal["chat", "raw"], Effect.COMPARED, OURS] = "chat"
    """How to format rows of plain text. chat: text becomes messages for the chat template. raw: the text is used
    unchanged, with EOS at the end, and every row has the same tokens as in TRL.
    """

    max_seq_length: Annotated[Positive, Effect.DECIDES] = 2048
    """Maximum tokens of a row, prompt and completion together. `truncation` decides how longer rows are cut."""

    truncation: Annotated[Truncation, Effect.DECIDES, OURS, FUNCTIONS] = "keep_end"
    """What to cut if a row exceeds max_seq_length. keep_end keeps the end of the prompt, keep_start its
    start. keep_prompt keeps the whole prompt and cuts completions, as in TRL; rows with too long a prompt are dropped.
    drop drops every such row. Completions always keep their start.
    """

    max_prompt_length: Annotated[Positive | None, Effect.DECIDES, OURS, FUNCTIONS] = None
    """Prompt tokens to keep if a row exceeds max_seq_length (default: as many as fit beside the longer completion, but
    at least half of max_seq_length).
    """

    prompt_feature: Annotated[str | None, Effect.COMPARED, Column("paired", "unpaired", "ranked")] = None
    """The column of the prompt (default: detected)."""

    assistant_only_loss: Annotated[bool, Effect.COMPARED, OURS] = True
    """In a completion of several messages, count only the assistant's tokens in the loss: no user turns, tool output or
    template headers. A completion of one message always counts completely.
    """

    mask_thinking: Annotated[bool, Effect.COMPARED, OURS] = False
    """Exclude thoughts, such as <think> … </think> at the start of an answer, from the loss. Empty thoughts that the
    chat template adds are always excluded.
    """

    chat_template_kwargs: Annotated[dict[str, Any], AfterValidator(_template_kwargs), Effect.COMPARED, OURS] = {}
    """Further arguments of the chat template, such as {enable_thinking: true} (by default it is false). A column of the
    same name in the rows takes precedence.
    """

    chosen_feature: Annotated[str | None, Effect.COMPARED, Column("paired")] = None
    """The column of the better completion (default: detected)."""

    rejected_feature: Annotated[str | None, Effect.COMPARED, Column("paired")] = None
    """The column of the worse completion (default: detected)."""

    system_feature: Annotated[str | None, Effect.COMPARED, Column("paired", "unpaired", "ranked")] = None
    """The column of a system message (default: detected)."""

    completion_feature: Annotated[str | None, Effect.COMPARED, Column("unpaired")] = None
    """The column of the completion in unpaired rows (default: detected)."""

    label_feature: Annotated[str | None, Effect.COMPARED, Column("unpaired"), OURS] = None
    """The column that marks a completion as good or bad (default: detected)."""

    responses_feature: Annotated[str | None, Effect.COMPARED, Column("ranked"), OURS] = None
    """The column with a list of completions (default: detected)."""

    scores_feature: Annotated[str | None, Effect.COMPARED, Column("ranked"), OURS] = None
    """The column with the scores of a list (default: detected)."""

    pairing: Annotated[Literal["best_worst", "all_pairs"], Effect.DECIDES, OURS] = "best_worst"
    """How to make pairs from several scored completions: best_worst compares the best with the worst; all_pairs
    compares every two whose scores differ.
    """

    preference_score_feature: Annotated[str | None, Effect.COMPARED, Column("paired", converts=False)] = None
    """orpo: the column with a factor for the chosen log-prob in the odds (default: detected)."""
