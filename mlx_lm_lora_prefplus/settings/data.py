"""The config keys for data: where the rows are and how they become tokens."""

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from .marks import FUNCTIONS, LARGEST, OURS, Column, Effect, Place, Positive

RESERVED = frozenset(
    ("conversation", "messages", "tools", "tokenize", "add_generation_prompt", "continue_final_message", "return_dict")
)
"""Arguments of a chat template that users cannot set, because they come from the rows or from this package."""


def _template_kwargs(kwargs: dict[str, Any]) -> dict[str, Any]:
    if reserved := RESERVED.intersection(kwargs):
        raise ValueError(f"{', '.join(sorted(reserved))} cannot be set here. Remove it")
    return kwargs


Truncation = Literal["keep_end", "keep_start", "keep_prompt", "drop"]


class DataSettings(BaseModel):
    """The config keys for data. Keys and defaults are the host's, except keys marked `OURS`."""

    model_config = ConfigDict(frozen=True, extra="ignore", protected_namespaces=())

    data: Annotated[Place, Effect.COMPARED] = "data/"
    hf_dataset: Annotated[
        list[dict[str, Any]] | dict[str, Any] | None,
        Field(description="One Hugging Face data set with its splits and columns, as in mlx-lm, or a list of them."),
        Effect.COMPARED,
    ] = None
    streaming: Annotated[
        bool,
        Field(
            description="Read training rows during training, without writing their tokens to the disk. Use it for very "
            "large data sets. Requires iters, because the number of rows is unknown."
        ),
        Effect.COMPARED,
        OURS,
    ] = False
    shuffle_buffer: Annotated[
        int,
        Field(
            ge=0,
            le=LARGEST,
            description="streaming: number of rows that are kept in memory and shuffled together. 0 keeps their order.",
        ),
        Effect.COMPARED,
        OURS,
    ] = 1000
    prompt_feature: Annotated[
        str | None,
        Field(description="The column of the prompt (default: detected)."),
        Effect.COMPARED,
        Column("paired", "unpaired", "ranked"),
    ] = None
    chosen_feature: Annotated[
        str | None,
        Field(description="The column of the better completion (default: detected)."),
        Effect.COMPARED,
        Column("paired"),
    ] = None
    rejected_feature: Annotated[
        str | None,
        Field(description="The column of the worse completion (default: detected)."),
        Effect.COMPARED,
        Column("paired"),
    ] = None
    system_feature: Annotated[
        str | None,
        Field(description="The column of a system message (default: detected)."),
        Effect.COMPARED,
        Column("paired", "unpaired", "ranked"),
    ] = None
    completion_feature: Annotated[
        str | None,
        Field(description="The column of the completion in unpaired rows (default: detected)."),
        Effect.COMPARED,
        Column("unpaired"),
    ] = None
    label_feature: Annotated[
        str | None,
        Field(description="The column that marks a completion as good or bad (default: detected)."),
        Effect.COMPARED,
        Column("unpaired"),
        OURS,
    ] = None
    responses_feature: Annotated[
        str | None,
        Field(description="The column with a list of completions (default: detected)."),
        Effect.COMPARED,
        Column("ranked"),
        OURS,
    ] = None
    scores_feature: Annotated[
        str | None,
        Field(description="The column with the scores of a list (default: detected)."),
        Effect.COMPARED,
        Column("ranked"),
        OURS,
    ] = None
    preference_score_feature: Annotated[
        str | None,
        Field(description="orpo: the column with a factor for the chosen log-prob in the odds (default: detected)."),
        Effect.COMPARED,
        Column("paired", converts=False),
    ] = None
    pairing: Annotated[
        Literal["best_worst", "all_pairs"],
        Field(
            description=(
                "How to make pairs from several scored completions: best_worst compares the best with the "
                "worst; all_pairs compares every two whose scores differ."
            )
        ),
        Effect.DECIDES,
        OURS,
    ] = "best_worst"
    prompt_format: Annotated[
        Literal["chat", "raw"],
        Field(
            description=(
                "How to format rows of plain text. chat: text becomes messages for the chat template. raw: the"
                " text is used unchanged, with EOS at the end, and every row has the same tokens as in TRL."
            )
        ),
        Effect.COMPARED,
        OURS,
    ] = "chat"
    max_seq_length: Annotated[Positive, Effect.DECIDES] = 2048
    truncation: Annotated[
        Truncation,
        Field(
            description=(
                "What to cut if a row exceeds max_seq_length. keep_end (default) keeps the end of the prompt,"
                " keep_start its start. keep_prompt keeps the whole prompt and cuts completions, as in TRL;"
                " rows with too long a prompt are dropped. drop drops every such row. Completions always "
                "keep their start."
            )
        ),
        Effect.DECIDES,
        OURS,
        FUNCTIONS,
    ] = "keep_end"
    max_prompt_length: Annotated[
        Positive | None,
        Field(
            description=(
                "Prompt tokens to keep if a row exceeds max_seq_length (default: as many as fit beside the "
                "longer completion, but at least half of max_seq_length)."
            )
        ),
        Effect.DECIDES,
        OURS,
        FUNCTIONS,
    ] = None
    assistant_only_loss: Annotated[
        bool,
        Field(
            description=(
                "In a completion of several messages, count only the assistant's tokens in the loss: no user "
                "turns, tool output or template headers. A completion of one message always counts "
                "completely."
            )
        ),
        Effect.COMPARED,
        OURS,
    ] = True
    mask_thinking: Annotated[
        bool,
        Field(
            description=(
                "Exclude thoughts, such as <think> … </think> at the start of an answer, from the loss. Empty"
                " thoughts that the chat template adds are always excluded."
            )
        ),
        Effect.COMPARED,
        OURS,
    ] = False
    chat_template_kwargs: Annotated[
        dict[str, Any],
        AfterValidator(_template_kwargs),
        Field(
            description=(
                "Further arguments of the chat template, such as {enable_thinking: true} (by default it is "
                "false). A column of the same name in the rows takes precedence."
            )
        ),
        Effect.COMPARED,
        OURS,
    ] = {}
