"""A run of the host's `main` in a process of its own that can kill itself at a chosen instant.

    python child.py CONFIG.json KILL_AT

Instants are counted: before and after each gradient, and before, inside of and after everything that changes a file.
At instant KILL_AT (from 1; 0: never) the process gets SIGKILL. The last line tells how many there were.
"""

import json
import os
import signal
import sys
from pathlib import Path

import mlx.core as mx
import mlx_lm_lora.train as host

from mlx_lm_lora_prefplus.engine import metrics
from mlx_lm_lora_prefplus.engine.step import GradientStep
from mlx_lm_lora_prefplus.host.activate import activate


class Instants:
    def __init__(self, kill_at: int):
        self.count, self.kill_at = 0, kill_at

    def pass_one(self, before=lambda: None) -> None:
        self.count += 1
        if self.count == self.kill_at:
            before()
            sys.stdout.flush()
            os.kill(os.getpid(), signal.SIGKILL)

    def around(self, function):
        def call(*args, **kwargs):
            self.pass_one()
            result = function(*args, **kwargs)
            self.pass_one()
            return result

        return call

    def inside(self, save):
        """A file that is torn: half of it is written."""

        def call(file, *args, **kwargs):
            self.pass_one()
            save(file, *args, **kwargs)
            self.pass_one(lambda: os.truncate(file, os.path.getsize(file) // 2))
            self.pass_one()

        return call


def main() -> None:
    config, kill_at = json.loads(Path(sys.argv[1]).read_text()), int(sys.argv[2])
    instants = Instants(kill_at)
    activate(host)
    GradientStep.__call__ = instants.around(GradientStep.__call__)
    metrics.MetricsFile.write = instants.around(metrics.MetricsFile.write)
    os.fsync = instants.around(os.fsync)
    Path.replace = instants.around(Path.replace)
    Path.unlink = instants.around(Path.unlink)
    mx.save_safetensors = instants.inside(mx.save_safetensors)
    host.main(config)
    print(f"Instants: {instants.count}")


if __name__ == "__main__":
    main()
