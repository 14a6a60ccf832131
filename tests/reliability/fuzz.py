"""What fuzz tests share: odd values, damage to bytes, and what is done with any bad input."""

import contextlib
import os
import random
import signal
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mlx_lm_lora_prefplus.errors import UserError

SECONDS = 30
"""No single input may take longer."""

LONGEST_MESSAGE = 2500

TEXTS = (
    *("", " ", "\n", "\x00", "\ud800", "\udfff\ud800", "é", "\u202e", "\ufeff", "﷽" * 99, "x" * 3000, "a\r\nb"),
    *("<s>", "</s>", "<|im_end|>", "<think>", "Human: ", "\n\nAssistant:", "\n\nHuman:\n\nAssistant:"),
    *("<extra_id_1>User\n", "\n" * 3000, "{{ messages }}", "{{ ''.__class__.__mro__ }}", "true", "nan", "[1]", '{"x"'),
)
NUMBERS = (True, False, 0, 1, -1, 2, 99, 10**11, 10**400, 0.5, -0.0, 1e308, float("nan"), float("inf"), -float("inf"))


def damaged(content: bytes, random: random.Random) -> bytes:
    """Bits flipped, bytes put in or taken out, or the end cut off, one to three times."""
    found = bytearray(content)
    for _ in range(random.randint(1, 3)):
        at = random.randrange(len(found) + 1)
        how = random.randrange(4)
        if how == 0 and at < len(found):
            found[at] ^= 1 << random.randrange(8)
        elif how == 1:
            del found[at:]
        elif how == 2:
            found[at:at] = random.choice(
                [b"\xff", b"\x00", b"[", b"{", b'"', b"\n", b",", b"NaN", b"1e999", b"9" * 5000]
            )
        else:
            del found[at : at + random.randrange(20)]
    return bytes(found)


@contextlib.contextmanager
def told_or_fine(case: Any, tally: dict[str, int]) -> Iterator[None]:
    """Whatever is done inside of it works, or ends in a UserError that can be printed and read, within seconds."""

    def too_long(*_: Any) -> None:
        raise TimeoutError(f"longer than {SECONDS} s")

    before = signal.signal(signal.SIGALRM, too_long)
    signal.alarm(SECONDS)
    try:
        yield
        tally["taken"] += 1
    except UserError as error:
        text = str(error)
        text.encode()
        assert text and len(text) < LONGEST_MESSAGE and "Traceback" not in text, ascii(case)
        tally["refused"] += 1
    except Exception as error:
        raise AssertionError(f"{ascii(case)[:2000]}\n{traceback.format_exc()[-2000:]}") from error
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def contents(folder: Path, *left_out: Path) -> dict[str, bytes]:
    """Every file beneath a folder."""
    return {
        str(file): file.read_bytes()
        for root, _, names in os.walk(folder)
        for file in (Path(root) / name for name in names)
        if not any(file.is_relative_to(one) for one in left_out)
    }
