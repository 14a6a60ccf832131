"""A run's life in any order: start, kill, resume, damage a file, change a setting, start twice, move the folder.

    python -m tests.reliability.life [--examples N] [--seed S]

What must hold after every step: no file under its own name is torn, unless this script tore it; no weights are lost; a
refusal names its cause. At the end the run goes on to the bytes of one that was left alone, or says which damaged file
keeps it from that, and a fresh run with the same cache ends with those bytes.
"""

import argparse
import shutil
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import hypothesis
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test

from tests.reliability.walk import CODES, Walk, make_world, torn_file

KINDS = ("kill", "SIGTERM", "EIO", "ENOSPC")


class Life(RuleBasedStateMachine):
    """One folder of adapters, and what happens to it. `walk` is set before the machine runs."""

    walk: Walk
    count = 0

    def __init__(self):
        super().__init__()
        Life.count += 1
        self.folder = self.walk.fresh(f"life-{Life.count}")
        self.adapters = "adapters"
        self.damaged: set[str] = set()
        self.numbered: dict[str, bytes] = {}

    def start(self, number: int = 0, kind: str = "", **changes):
        ended = self.walk.run(self.folder, number, kind, resume=True, adapter_path=self.adapters, **changes)
        assert "Traceback" not in ended.out, ended.out
        return ended

    def files(self, *patterns: str) -> list[Path]:
        return sorted(file for pattern in patterns for file in self.folder.glob(pattern) if file.is_file())

    @rule(number=st.integers(1, 150), kind=st.sampled_from(KINDS))
    def train_and_meet_a_fault(self, number, kind):
        ended = self.start(number, kind)
        assert ended.code in CODES.get(kind, {1}) | {0, 1}, ended.out

    @rule()
    def train(self):
        self.check_end(self.start())

    @rule(which=st.integers(0, 99), place=st.floats(0, 0.999), zero=st.booleans())
    def damage(self, which, place, zero):
        files = self.files(f"{self.adapters}/state-*.safetensors", "cache/*/*.npy", "cache/*/*.arrow", "cache/*/*.json")
        if not files:
            return
        file = files[which % len(files)]
        content = bytearray(file.read_bytes())
        at = int(place * len(content))
        content[at:] = bytes(len(content) - at) if zero else bytes([content[at] ^ 16]) + content[at + 1 :]
        file.write_bytes(content)
        self.damaged.add(file.name)

    @precondition(lambda self: self.files(f"{self.adapters}/state-*.safetensors") and not self.damaged)
    @rule()
    def change_a_setting(self):
        before = {file: file.read_bytes() for file in self.files(f"{self.adapters}/*.safetensors")}
        ended = self.start(learning_rate=5e-3)
        assert ended.code == 1 and "learning_rate" in ended.out, ended.out
        assert all(file.read_bytes() == content for file, content in before.items())

    @rule()
    def start_twice_at_once(self):
        first = self.walk.start(self.folder, resume=True, adapter_path=self.adapters, name="first")
        second = self.walk.start(self.folder, resume=True, adapter_path=self.adapters, name="second")
        ended = [process.wait() for process in (first, second)]
        for one in ended:
            assert "Traceback" not in one.out, one.out
            if one.code and not self.damaged:
                assert one.code == 1 and "two runs in one folder" in one.out, one.out
        assert self.damaged or 0 in [one.code for one in ended], [one.out for one in ended]

    @rule()
    def move_the_folder(self):
        if (self.folder / self.adapters).is_dir():
            other = "adapters" if self.adapters != "adapters" else "adapters-moved"
            (self.folder / self.adapters).rename(self.folder / other)
            self.adapters = other

    @invariant()
    def nothing_is_torn_or_lost(self):
        if not self.damaged:
            assert not torn_file(self.folder)
        now = {file.name: file.read_bytes() for file in self.files("**/[0-9]*_adapters.safetensors")}
        assert self.damaged or set(self.numbered) <= set(now), "numbered adapters are gone"
        self.numbered = now

    def check_end(self, ended) -> None:
        if ended.code:
            assert ended.code == 1 and any(name in ended.out for name in self.damaged), ended.out
            return
        weights = (self.folder / self.adapters / "adapters.safetensors").read_bytes()
        assert weights == self.walk.weights, ended.out

    def teardown(self):
        try:
            self.check_end(self.start())
            self.adapters = "adapters-fresh"
            fresh = self.start()
            assert fresh.code == 0, fresh.out
            self.check_end(fresh)
        finally:
            shutil.rmtree(self.folder, ignore_errors=True)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--examples", type=int, default=50)
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--seed", type=int, default=0)
    chosen = parser.parse_args(arguments)
    settings = hypothesis.settings(
        max_examples=chosen.examples,
        stateful_step_count=chosen.steps,
        deadline=None,
        database=None,
        suppress_health_check=list(hypothesis.HealthCheck),
        phases=[hypothesis.Phase.generate],
        print_blob=False,
    )
    with tempfile.TemporaryDirectory(prefix="prefplus-life-") as temporary:
        make_world(Path(temporary))
        Life.walk = Walk(Path(temporary), "dpo")
        run_state_machine_as_test(hypothesis.seed(chosen.seed)(Life), settings=settings)
    print(f"{Life.count} lives of up to {chosen.steps} steps: every promise held")
    return 0


if __name__ == "__main__":
    sys.exit(main())
