"""Where a run goes on from: the newest whole state in its adapter folder, if it is a state of this run."""

import dataclasses
import hashlib
import json
from pathlib import Path
from typing import Any

from mlx_lm_lora.visuals import print_info, print_warning

from ...engine.files.run_state import RunState, newest_state
from ...engine.train.snapshot import check_saved
from ...errors import UserError
from ...settings import DataSettings, Effect, RunSettings, keys_with
from ..output.previous import previous_of, told
from .references import ReferencePass
from .session import Session


def find_state(settings: RunSettings, adapter_file: Path) -> RunState | None:
    """The state beside an adapter file to go on from, if `resume` asks for it; says what it found there."""
    folder, state = adapter_file.parent, None
    if settings.resume:
        state, damaged = newest_state(folder)
        for sentence in damaged:
            print_warning(f"{sentence}. The one before it is looked for.")
        if state is None:
            print_info(f"Nothing to resume in {folder}: starting afresh.")
        else:
            check_saved(state)
            print_info(f"Resuming after iteration {state.iteration} of {state.values['iters']} ({folder})")
    resumed = state is not None
    if previous := previous_of(settings, adapter_file, resumed=resumed):
        print_warning(told(previous, settings, resumed=resumed))
    return state


REFERENCE = "weights of the reference"


def fingerprint(session: Session, planned: ReferencePass) -> dict[str, Any]:
    """What decides the results of a run, by names that a user knows; digests of what is large."""
    settings, data, tokenizer = session.resolved.settings, session.resolved.data, session.tokenizer
    inner = getattr(tokenizer, "_tokenizer", tokenizer)
    found = {
        "train_mode": session.resolved.trainer.mode,
        "weights of the model": session.base_digest,
        "tokenizer": _digest(inner.get_vocab()),
        "chat template": _digest(getattr(inner, "chat_template", None)),
        **{f"{split} rows": rows._fingerprint for split, rows in session.rows.items() if split != "test"},
        **{
            key: getattr(data if key in DataSettings.model_fields else settings, key)
            for key in keys_with(Effect.DECIDES)
        },
        "reference_model_path": session.resolved.values.get(
            "reference_model_path"
        ),  # as given: see `previous.as_begun`
        **({} if planned.is_base else {REFERENCE: planned.digest}),
        **dataclasses.asdict(session.resolved.options),
    }
    return json.loads(json.dumps(found, default=str))


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()[:32]


def check_same_run(state: RunState, found: dict[str, Any], settings: RunSettings) -> None:
    """Refuse to go on with another run than the one that was saved, or say so where `resume: force` goes on.

    Raises:
        UserError: it names all that has changed.
    """
    before = state.values["fingerprint"]
    changed = [_change(key, before, value) for key, value in found.items() if not _same(key, before, value)]
    changed += [f"{key} is gone" for key in before if key not in found]
    if before.get("train_mode") != found.get("train_mode"):
        changed = changed[:1]  # the options of another mode are others anyway
    if not changed:
        return
    if settings.resume != "force":
        raise UserError(
            f"resume: the run that was saved in {settings.adapter_path} at iteration {state.iteration} is another one: "
            f"{'; '.join(changed)}. Start it as it was, go on all the same with --resume force, or give another "
            "adapter_path."
        )
    for change in changed:
        print_warning(f"resume: force goes on although {change}")


def _same(key: str, before: dict[str, Any], now: Any) -> bool:
    """Whether a value is as before; a path may be written in another way."""
    then = before.get(key)
    if key == REFERENCE and now is None:  # it cannot be read: loading it will say why
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
