"""Find the state that a run resumes from: the newest intact one in its adapter folder, if it belongs to the
same run.
"""

import dataclasses
import hashlib
import json
from pathlib import Path
from typing import Any

from ...data.batches.plan import ORDER
from ...engine.files.run_state import RunState, newest_state
from ...engine.train.snapshot import check_saved
from ...errors import UserError
from ...settings import DataSettings, Effect, RunSettings, keys_with
from ..config.resolve import COMMAND_LINE, Resolved
from ..console import print_info, print_warning
from ..output.previous import move_warning, previous_of
from .references import ReferencePass
from .session import Session


def find_state(resolved: Resolved, adapter_file: Path) -> RunState | None:
    """Return the newest intact state in the folder of the adapter file; None if there is none or `resume` is not set.

    Print what was found, and which files of earlier runs will be moved. That there is no state is printed only if
    `resume` was typed: in a config file it also serves the first start.
    """
    settings, folder, state = resolved.settings, adapter_file.parent, None
    if settings.resume:
        state, damaged = newest_state(folder)
        for sentence in damaged:
            print_warning(f"{sentence}. Trying the state before it.")
        if state is not None:
            check_saved(state)
            print_info(f"Resuming after iteration {state.iteration} of {state.values['iters']} ({folder})")
        elif damaged or resolved.sources.get("resume") == COMMAND_LINE:
            print_info(f"Nothing to resume in {folder}: starting from the beginning.")
    resumed = state is not None
    if previous := previous_of(settings, adapter_file, resumed=resumed):
        print_warning(move_warning(previous, settings, resumed=resumed))
    return state


REFERENCE = "weights of the reference"

PACKED = "packed rows"
"""Recorded if the plan is for packed rows. Such a run keeps its plan even if a resumed part computes rows otherwise."""


def planned_packed(state: RunState) -> bool:
    """Return whether the batches of the saved run were planned for packed rows."""
    return PACKED in state.values["fingerprint"]


def fingerprint(session: Session, planned: ReferencePass) -> dict[str, Any]:
    """Return the values that determine the results of a run: name in messages → value, or digest of a large value."""
    settings, data, tokenizer = session.resolved.settings, session.resolved.data, session.tokenizer
    inner = getattr(tokenizer, "_tokenizer", tokenizer)
    identity = {
        "train_mode": session.resolved.trainer.mode,
        "weights of the model": session.base_digest,
        "tokenizer": _digest(inner.get_vocab()),
        "chat template": _digest(getattr(inner, "chat_template", None)),
        **{f"{split} rows": rows.fingerprint for split, rows in session.rows.items() if split != "test"},
        **{
            key: getattr(data if key in DataSettings.model_fields else settings, key)
            for key in keys_with(Effect.DECIDES)
        },
        # The path as the user wrote it: see `previous.as_begun`.
        "reference_model_path": session.resolved.values.get("reference_model_path"),
        **({} if planned.is_base else {REFERENCE: planned.digest}),
        **({PACKED: True} if session.plans_packed else {}),
        "order of batches in this version of mlx-lm-lora-prefplus": ORDER,
        **dataclasses.asdict(session.resolved.options),
    }
    return json.loads(json.dumps(identity, default=str))


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()[:32]


def check_same_run(state: RunState, identity: dict[str, Any], settings: RunSettings) -> None:
    """Check that the saved state belongs to this run. With `resume: force`, differences are only warnings.

    Raises:
        UserError: A value differs from the saved run. The message names every change.
    """
    before = state.values["fingerprint"]
    changed = [_change(key, before, value) for key, value in identity.items() if not _same(key, before, value)]
    changed += [f"{key} is gone" for key in before if key not in identity]
    if before.get("train_mode") != identity.get("train_mode"):
        changed = changed[:1]  # if the mode changed, its options changed too: report only the mode
    if not changed:
        return
    if settings.resume != "force":
        raise UserError(
            f"resume: the run saved in {settings.adapter_path} at iteration {state.iteration} has other settings or "
            f"data: {'; '.join(changed)}. Restore those of the saved run, use --resume force to continue anyway, or "
            "set another adapter_path."
        )
    for change in changed:
        print_warning(f"resume: force resumes although {change}")


def _same(key: str, before: dict[str, Any], now: Any) -> bool:
    """Return whether a value is unchanged. Two spellings of one path count as equal."""
    then = before.get(key)
    if key == REFERENCE and now is None:  # the reference cannot be read; loading it will report the reason
        return True
    if key == "reference_model_path" and isinstance(then, str) and isinstance(now, str):
        return then == now or Path(then).expanduser().resolve() == Path(now).expanduser().resolve()
    return then == now


def _change(key: str, before: dict[str, Any], now: Any) -> str:
    if key not in before:
        return f"{key} was not recorded"
    if " " in key or key == "tokenizer":
        return f"{key} changed"
    return f"{key} was {before[key]} and is {now}"
