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
        Field(description="Hugging Face data sets with their splits and columns, as in mlx-lm; one or a list."),
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
        Field(description="The column that holds the prompt (default: found by itself)."),
        Effect.COMPARED,
        Column("paired", "unpaired", "ranked"),
    ] = None
    chosen_feature: Annotated[
        str | None,
        Field(description="The column that holds the better completion (default: found by itself)."),
        Effect.COMPARED,
        Column("paired"),
    ] = None
    rejected_feature: Annotated[
        str | None,
        Field(description="The column that holds the worse completion (default: found by itself)."),
        Effect.COMPARED,
        Column("paired"),
    ] = None
    system_feature: Annotated[
        str | None,
        Field(description="The column that holds a system message (default: found by itself)."),
        Effect.COMPARED,
        Column("paired", "unpaired", "ranked"),
    ] = None
    completion_feature: Annotated[
        str | None,
        Field(description="The column that holds the one completion of a row (default: found by itself)."),
        Effect.COMPARED,
        Column("unpaired"),
    ] = None
    label_feature: Annotated[
        str | None,
        Field(description="The column that says whether a completion is good (default: found by itself)."),
        Effect.COMPARED,
        Column("unpaired"),
        OURS,
    ] = None
    responses_feature: Annotated[
        str | None,
        Field(description="The column that holds a list of completions (default: found by itself)."),
        Effect.COMPARED,
        Column("ranked"),
        OURS,
    ] = None
    scores_feature: Annotated[
        str | None,
        Field(description="The column that holds their scores (default: found by itself)."),
        Effect.COMPARED,
        Column("ranked"),
        OURS,
    ] = None
    preference_score_feature: Annotated[
        str | None,
        Field(
            description="orpo: the column with a factor on the chosen log-prob in the odds (default: found by itself)."
        ),
        Effect.COMPARED,
        Column("paired", converts=False),
    ] = None
    pairing: Annotated[
        Literal["best_worst", "all_pairs"],
        Field(
            description="Which pairs are made of several scored completions: best_worst takes the best and the worst; "
            "all_pairs takes every two whose scores differ."
        ),
        Effect.DECIDES,
        OURS,
    ] = "best_worst"
    prompt_format: Annotated[
        Literal["chat", "raw"],
        Field(
            description="What becomes of rows whose prompt and completions are text: chat makes messages of them for "
            "the chat template; raw takes them as they are, with EOS at the end, and makes of every row the tokens "
            "that TRL makes."
        ),
        Effect.COMPARED,
        OURS,
    ] = "chat"
    max_seq_length: Annotated[Positive, Effect.DECIDES] = 2048
    truncation: Annotated[
        Truncation,
        Field(
            description="Which part of a prompt to keep when a row exceeds max_seq_length: its end (default), its "
            "start, or with keep_prompt all of it (TRL's rule: completions are cut instead, and a prompt that leaves "
            "them no room is left out); drop leaves the row out. Completions always keep their start."
        ),
        Effect.DECIDES,
        OURS,
        FUNCTIONS,
    ] = "keep_end"
    max_prompt_length: Annotated[
        Positive | None,
        Field(
            description="Tokens of the prompt to keep when a row exceeds max_seq_length (default: what the "
            "longer completion leaves, but no less than half of max_seq_length)."
        ),
        Effect.DECIDES,
        OURS,
        FUNCTIONS,
    ] = None
    assistant_only_loss: Annotated[
        bool,
        Field(
            description="In a completion of several messages only the assistant's own tokens count, in policy and "
            "reference: no turn of the user, no output of a tool, no header of the template. A completion of one "
            "message counts as a whole."
        ),
        Effect.COMPARED,
        OURS,
    ] = True
    mask_thinking: Annotated[
        bool,
        Field(
            description="Leave thoughts, such as <think> … </think> at the start of an answer, out of the loss. Empty "
            "ones that the chat template writes by itself never count."
        ),
        Effect.COMPARED,
        OURS,
    ] = False
    chat_template_kwargs: Annotated[
        dict[str, Any],
        AfterValidator(_template_kwargs),
        Field(
            description="What the chat template is given besides the messages, such as {enable_thinking: true} (which "
            "is false unless set here). A column of this name in the rows goes before it."
        ),
        Effect.COMPARED,
        OURS,
    ] = {}
