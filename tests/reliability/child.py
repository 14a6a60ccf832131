"""The host's command in a process of its own, to which something happens at a chosen instant.

    python child.py CONFIG.json INSTANT WHAT [FLAG …]

Instants are counted: before and after each gradient and each batch of the reference pass, and before, inside of and
after everything that changes a file. INSTANT counts from 1; 0: never; reference:3 and step:3 count those of the
reference pass and of the gradients alone. WHAT happens then: a signal (SIGKILL, SIGTERM, SIGINT), `disk` (from then on
no file can be written) or `memory` (MLX asks for 8 GB, and the kernel gives this process no more than 1). The last line
tells how many instants there were. CHILD_SLEEP: seconds that each gradient takes longer.
"""

import os
import resource
import signal
import sys
import time
from pathlib import Path

import mlx.core as mx
import mlx_lm_lora.train as host

from mlx_lm_lora_prefplus.engine.files import metrics_file as metrics
from mlx_lm_lora_prefplus.engine.reference.store import ReferenceStore
from mlx_lm_lora_prefplus.engine.train.gradient import GradientStep
from mlx_lm_lora_prefplus.host.seam.install import activate


class Instants:
    def __init__(self, chosen: str, what: str):
        self.part, _, number = chosen.rpartition(":")
        self.count, self.chosen, self.what = 0, int(number), what

    def pass_one(self, before=lambda: None, part: str = "") -> None:
        self.count += self.part in ("", part)
        if self.count != self.chosen or self.part not in ("", part):
            return
        sys.stdout.flush()
        if self.what == "disk":
            resource.setrlimit(resource.RLIMIT_FSIZE, (64, resource.RLIM_INFINITY))
        elif self.what == "memory":
            pages = int(Path("/proc/self/statm").read_text().split()[0])
            limit = pages * resource.getpagesize() + (1 << 30)
            resource.setrlimit(resource.RLIMIT_AS, (limit, resource.RLIM_INFINITY))
            mx.eval(mx.ones((1 << 16, 1 << 15)))
        else:
            before()
            os.kill(os.getpid(), signal.Signals[self.what])

    def around(self, function, part: str = ""):
        def call(*args, **kwargs):
            self.pass_one(part=part)
            result = function(*args, **kwargs)
            self.pass_one(part=part)
            return result

        return call

    def inside(self, save):
        """A file that is torn: half of it is written."""

        def call(file, *args, **kwargs):
            self.pass_one()
            save(file, *args, **kwargs)
            self.pass_one(lambda: os.truncate(file, Path(file).stat().st_size // 2))
            self.pass_one()

        return call


def slower(function):
    def call(*args):
        time.sleep(float(os.environ.get("CHILD_SLEEP", "0")))
        return function(*args)

    return call


def main() -> None:
    config, instant, what, *flags = sys.argv[1:]
    instants = Instants(instant, what)
    activate(host)
    GradientStep.__call__ = instants.around(slower(GradientStep.__call__), "step")
    ReferenceStore.add = instants.around(ReferenceStore.add, "reference")
    metrics.MetricsFile.write = instants.around(metrics.MetricsFile.write)
    os.fsync = instants.around(os.fsync)
    Path.replace = instants.around(Path.replace)
    Path.unlink = instants.around(Path.unlink)
    mx.save_safetensors = instants.inside(mx.save_safetensors)
    sys.argv = ["mlx_lm_lora.train", "--config", config, *flags]
    host.main()
    print(f"Instants: {instants.count}")


if __name__ == "__main__":
    main()
