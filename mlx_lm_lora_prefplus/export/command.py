"""The command `mlx_lm_lora.prefplus export`."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from ..errors import UserError


class Form(StrEnum):
    """The program for which an adapter is written."""

    PEFT = "peft"
    GGUF = "gguf"
    MLX = "mlx"


def export(
    folder: Annotated[Path, typer.Argument(metavar="ADAPTER", help="Adapter folder, of a run or of PEFT.")],
    to: Annotated[
        Form,
        typer.Option(
            help="peft: for PEFT on torch, vLLM and others. gguf: for llama.cpp and Ollama. mlx: for mlx_lm, which "
            "also writes the model card of a run."
        ),
    ] = Form.PEFT,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", metavar="DIR", help="Where to write (default: ADAPTER/peft, ADAPTER/gguf)."),
    ] = None,
    base: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="The base model's name in the other program. For gguf: a GGUF file or an Ollama model "
            "(default: the model of the training run).",
        ),
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(
            metavar="PATH", help="The model of the training run, if the folder does not name it or it was moved."
        ),
    ] = None,
    push: Annotated[
        str | None, typer.Option(metavar="OWNER/NAME", help="Upload the files and the model card to the hub.")
    ] = None,
    private: Annotated[bool, typer.Option("--private", help="With --push: make the repository private.")] = False,
) -> None:
    """Write a trained adapter for other programs, with a model card. --push uploads both.

    Reads adapters of mlx-lm and of PEFT.
    """
    from .adapter import read_adapter
    from .forms import CARD, FILES, WRITERS
    from .model_card import card, write_card
    from .push import check_push
    from .push import push as upload

    if push:
        check_push(push)
    elif private:
        raise UserError("--private needs --push OWNER/NAME.")
    adapter = read_adapter(folder, model)
    target = _target(folder, output, to, is_mlx=adapter.is_mlx)
    named = base or ("./base.gguf" if to is Form.GGUF else adapter.base)
    WRITERS[to.value](adapter, target, named)
    written = write_card(target / CARD, card(adapter, to.value, adapter.base if to is Form.GGUF else named))
    print(f"Written: {target} ({', '.join(FILES[to.value])})")
    if not written:
        print(f"{target / CARD} was edited or not written by export, so it stays. Delete it to get a new one.")
    if push:
        print(f"Uploaded: {upload(target, FILES[to.value], push, private=private)}")


def _target(folder: Path, output: Path | None, to: Form, *, is_mlx: bool) -> Path:
    """Return the folder to write. is_mlx: whether the adapter's folder has mlx-lm's format already.

    Raises:
        UserError: Writing into the folder would replace the adapter of a run.
    """
    from ..engine.files.names import RECORD

    # If the folder contains a fused model, its README.md describes that model, not the adapter.
    in_place = to is Form.MLX and is_mlx and not (folder / "config.json").is_file()
    target = output or (folder if in_place else folder / to.value)
    is_own = target.resolve() == folder.resolve()
    if not (in_place and is_own) and (is_own or (target / RECORD).is_file()):
        raise UserError(f"--output: {target} contains the adapter of a run and would replace it. Give another folder.")
    return target
