"""Where the rows are and how they become tokens: the config keys of data."""

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from .marks import FUNCTIONS, LARGEST, OURS, Column, Effect, Place, Positive

RESERVED = frozenset(
    ("conversation", "messages", "tools", "tokenize", "add_generation_prompt", "continue_final_message", "return_dict")
)
"""What a chat template is given by the rows themselves, or by this package."""


def _template_kwargs(kwargs: dict[str, Any]) -> dict[str, Any]:
    if reserved := RESERVED.intersection(kwargs):
        raise ValueError(f"{', '.join(sorted(reserved))} cannot be set here; leave it out")
    return kwargs


Truncation = Literal["keep_end", "keep_start", "keep_prompt", "drop"]


class DataSettings(BaseModel):
    """Where the rows are and how they become tokens. Keys and defaults are the host's unless they are marked `OURS`."""

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
            description="Read training rows while training goes on, without a copy of their tokens on the disk: for "
            "data sets that are too large for one. Needs iters, since the number of rows is not known."
        ),
        Effect.COMPARED,
        OURS,
    ] = False
    shuffle_buffer: Annotated[
        int,
        Field(
            ge=0,
            le=LARGEST,
            description="streaming: rows that are read, kept in memory and shuffled at a time; 0 keeps their order.",
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
        Field(description="orpo: the column with a factor on the chosen log-prob in the odds (default: detected)."),
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
                "How to format rows of plain text. chat: they become messages for the chat template. raw: the"
                " text is used as it is, with EOS at the end, and every row has the tokens that TRL produces."
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
                " keep_start its start. keep_prompt keeps the whole prompt and cuts completions, as TRL does;"
                " a row whose prompt leaves no room is dropped. drop drops the row. Completions always keep "
                "their start."
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
                "Prompt tokens to keep if a row exceeds max_seq_length (default: what the longer completion "
                "leaves, but at least half of max_seq_length)."
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
                "In a completion of several messages, count only the assistant's own tokens, for policy and "
                "reference: no user turns, no output of tools, no headers of the template. A completion of "
                "one message always counts as a whole."
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
                " thoughts that the chat template adds never count."
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
                "Further arguments of the chat template, such as {enable_thinking: true} (false unless set "
                "here). A column of this name in the rows takes precedence."
            )
        ),
        Effect.COMPARED,
        OURS,
    ] = {}
