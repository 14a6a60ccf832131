"""The reference of a run: its identity, its log-probs on disk, and the computation of missing ones."""

import hashlib
import json
from collections.abc import Iterator, Mapping
from contextlib import nullcontext
from importlib.metadata import version
from itertools import islice

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from mlx_lm.utils import _download

from ...data.batches.packing import MEMORY, MULTIPLE, SHARING, STEPS
from ...data.batches.plan import ORDER
from ...engine.logprobs.packed import PackedPolicy
from ...engine.memory import advice as memory
from ...engine.model.adapters import adapter_layers, adapters_off, trains_only_adapters
from ...engine.model.digest import file_digest, files_digest, weights_digest
from ...engine.probe.rounding_digest import rounding_digest
from ...engine.reference.bema import BemaReference
from ...engine.reference.in_step import StepReference
from ...engine.reference.precompute import reference_logps
from ...engine.reference.source import ReferenceSource
from ...engine.reference.store import ENGINE, ReferenceStore
from ...engine.reference.tr_dpo import MovingReference
from ...plugin import Batch
from ...storage import cache_folder
from .. import trained
from .session import Session


class ReferencePass:
    """The reference of a run.

    given: a loaded reference model. It is used instead of the reference that the settings name.
    stores: split → the log-probs of its rows that are on disk; empty if the mode has no reference.
    visited: split → positions of the rows that the run uses; empty for streamed rows (see `streamed_batches`).
    in_steps: whether each training step computes the reference's log-probs of its rows. The frozen trunk then runs once
        for policy and reference.
    digest: a digest of the reference's weights. None if the mode has no reference, or if the reference must be loaded
        to compute the digest.
    """

    def __init__(self, session: Session, given: nn.Module | None = None):
        self.session, self.given = session, given
        self.used = [name for name in session.rows if name == "train" or session.evaluates(name)]
        self.stores: dict[str, ReferenceStore] = {}
        self.visited: dict[str, np.ndarray] = {}
        self.digest: str | None = None
        self.is_base = given is None and not session.resolved.settings.reference_model_path
        self.in_steps = self.is_base and trains_only_adapters(session.model) and session.shares_trunk
        if not session.resolved.needs_reference:
            return
        self.digest = self._digest()
        folder = cache_folder.folder("reference") if self.digest else None
        streamed = ("train",) if session.stream else ()
        rounding = rounding_digest(session.engine.policy) if folder else None
        for name in self.used:
            file = folder / f"{self._key(name, rounding)}.npy" if folder and name not in streamed else None
            about = {"model": session.resolved.settings.reference_model_path or session.resolved.settings.model}
            completions = session.completions(name)
            growing = name == "train" and self.in_steps
            self.stores[name] = ReferenceStore(file, len(session.rows[name]), about, completions, growing)
            self.visited[name] = np.empty(0, np.int64) if name in streamed else session.visited_rows(name)

    def forget_what_others_lack(self) -> None:
        """Discard log-probs that another machine's cache lacks, because all processes must compute the same rows.

        Every process of the run must call this.
        """
        for store in self.stores.values():
            known = store.has(np.arange(len(store.logps)))
            store.logps[known & ~self.session.ranks.known_to_all(known)] = np.nan

    def counts(self) -> tuple[int, int]:
        """Return the number of rows with log-probs on disk, and the number of rows that the run uses."""
        known = sum(int(store.has(self.visited[name]).sum()) for name, store in self.stores.items())
        return known, sum(map(len, self.visited.values()))

    def source(self, done: int = 0) -> ReferenceSource:
        """Compute missing log-probs of the rows that the run uses, except those that the training steps will compute.

        The reference is loaded only if log-probs are missing. Every process of the run must call this.

        done: the number of micro-batches that are already trained.
        """
        self.forget_what_others_lack()
        wanted = dict(self.visited)
        if self.in_steps and "train" in wanted:
            wanted["train"] = self.session.visited_rows("train", done)
        missing = {name: int((~self.stores[name].has(rows)).sum()) for name, rows in wanted.items()}
        if any(missing.values()):
            self._compute(missing, {"train": done} if self.in_steps else {})
        return reference_source(self.session, {name: self.stores.get(name) for name in self.used})

    def _compute(self, missing: dict[str, int], batches: dict[str, int]) -> None:
        """Compute missing log-probs.

        missing: split → number of rows to compute. batches: split → number of batches to visit, if not all.
        """
        session = self.session
        model = session.model if self.given is None else self.given
        if self.given is None and session.resolved.settings.reference_model_path:
            model = trained.load_reference(session.resolved.settings, session.tokenizer)
        as_reference = adapters_off(model) if model is session.model else nullcontext()
        with as_reference, memory.explained(model, session.resolved.settings):
            for name in filter(missing.get, missing):
                store = self.stores[name]
                reference_logps(
                    session.policy_of(model),
                    session.uncached(name, store.has, batches.get(name)),
                    len(session.rows[name]),
                    f"Reference, {name}",
                    store=store,
                    missing=missing[name],
                    weights=session.token_weights,
                )
        del model
        mx.clear_cache()

    def _digest(self) -> str | None:
        """Return the reference's digest (see the class docstring)."""
        settings = self.session.resolved.settings
        if self.given is not None:
            # `weights_digest` leaves out adapters, so it cannot identify a given reference that has adapters.
            return None if adapter_layers(self.given) else weights_digest(self.given)
        if not settings.reference_model_path:
            return self.session.base_digest
        try:
            return _named(settings.reference_model_path, self.session.base_digest)
        except Exception:  # a path or a name that does not exist; loading will report it
            return None

    def _key(self, split: str, rounding: str | None) -> str:
        """Return the values that determine the log-probs of a split.

        They include the batching, because padding changes how kernels round. With equal batches, the policy's first
        log-probs equal the reference's bit by bit. They also include how this machine's device and libraries round.

        rounding: see `rounding_digest`.
        """
        session = self.session
        settings, trainer = session.resolved.settings, session.resolved.trainer
        computed_by = session.engine.policy
        parts = [
            *(ENGINE, type(computed_by).__name__, getattr(computed_by, "width", None)),
            getattr(computed_by, "call_tokens", None),
            *((MULTIPLE, STEPS, SHARING, MEMORY, computed_by.costs) if isinstance(computed_by, PackedPolicy) else ()),
            *(("planned for packed rows",) if session.plans_packed else ()),
            *(version("mlx"), version("mlx-lm")),
            *(str(mx.default_device().type), mx.device_info().get("device_name")),
            *(rounding, self.digest, session.rows[split].fingerprint),
            *(session.multiple, ORDER, session.mismatched and "separate batches"),
            *(type(trainer).collate.__qualname__, trainer.reference_key(session.resolved.options)),
            *(bool(settings.token_budget), settings.token_budget or settings.batch_size),
            *((settings.seed, session.cut_at, self.in_steps and session.compiled) if split == "train" else ()),
        ]
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:32]


def reference_source(session: Session, stored: Mapping[str, ReferenceStore | None]) -> ReferenceSource:
    """Return the source of the reference's log-probs that the settings ask for.

    stored: split → the log-probs that are known before training; None if the mode has no reference.
    """
    options, store = session.resolved.options, stored.get("train")
    if store is None:
        return ReferenceSource(stored)
    following = None
    if getattr(options, "sync_ref_model", False):
        every, alpha = options.ref_model_sync_steps, options.ref_model_mixup_alpha
        following = MovingReference(session.policy, every, alpha, session.token_weights)
    elif getattr(options, "bema_for_ref_model", False):
        following = BemaReference(session.policy, options, session.token_weights)
    in_step = None
    if session.shares_trunk and session.engine.trunk is not None:
        in_step = StepReference(session.policy, session.engine.trunk, session.token_weights, store, following)
    return ReferenceSource(stored, following, in_step)


def streamed_batches(session: Session, reference: ReferenceSource, number: int, first: int) -> Iterator[Batch]:
    """Return the batches of a window of the stream, starting with batch `first`.

    The reference is the model without its adapters. Its log-probs are computed for each batch when the batch is used,
    and are kept until the window ends.
    """
    part = session.window(number)
    if part is None:
        return iter(())
    batches = islice(part.batches("train"), first, None)
    if not session.resolved.needs_reference:
        return batches
    rows = len(part.rows["train"])
    store = ReferenceStore(None, rows, completions=part.completions("train"))

    def compared() -> Iterator[Batch]:
        for batch in batches:
            with adapters_off(part.model), memory.explained(part.model, part.resolved.settings):
                reference_logps(part.policy, part.in_parts(batch), rows, store=store, weights=part.token_weights)
            yield batch

    return ReferenceSource({"train": store}, reference.following).fill(compared(), "train")


def _named(path: str, base_digest: str) -> str:
    """Return a digest of what `reference_model_path` names, without loading it.

    The path names adapters on the policy's base model, or another model.
    """
    file = trained.adapter_file(path)
    if file is not None:
        parts = (base_digest, file_digest(file), file_digest(file.parent / "adapter_config.json"))
        return hashlib.sha256(" ".join(parts).encode()).hexdigest()
    folder = _download(path)  # or the local folder
    return files_digest([*folder.glob("*.safetensors"), folder / "config.json"])
