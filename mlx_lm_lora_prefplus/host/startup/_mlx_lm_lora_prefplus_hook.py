"""Start-up hook of mlx-lm-lora-prefplus, installed at the root of site-packages beside its `.pth` line.

Every interpreter of the environment imports this file, so it imports only `sys` and does one thing: when
somebody imports one of the modules of mlx-lm-lora below, and only then, it hands the module that has just been
loaded to mlx-lm-lora-prefplus, which takes over its preference modes. No file of the host is touched, and nothing
here may break an interpreter: every error is reported on stderr and the host runs unchanged, even if our package
exits while it is imported. Only Ctrl-C (KeyboardInterrupt) ends the program, as it would without us. The `.pth` line
ignores every error, so that a damaged hook is silent; `mlx_lm_lora.prefplus doctor` names the damage.

MLX_LM_LORA_PREFPLUS=0 turns it off; =strict raises what would be a warning.
MLX_LM_LORA_PREFPLUS_PATCH=1 extends it to the functions that programs call directly (`train_dpo`, …).
"""

import sys

PACKAGE = "mlx_lm_lora_prefplus"
SWITCH, PATCH = "MLX_LM_LORA_PREFPLUS", "MLX_LM_LORA_PREFPLUS_PATCH"

# The keys of `host/seam/install.py`'s WRAPPED, which says what of each is wrapped.
COMMANDS = ("mlx_lm_lora.train", "mlx_lm_lora.mcp_server")
ALWAYS = (*COMMANDS, "mlx_lm_lora.trainer.datasets")
ON_REQUEST = tuple(f"mlx_lm_lora.trainer.{mode}_trainer" for mode in ("dpo", "cpo", "orpo"))
MODULES = frozenset(ALWAYS + ON_REQUEST)

# What `python -m` runs of a command: the real module is imported once, under its own name and with the
# seam in it, and its names and its `main` are lent to `__main__`.
RUN_AS_MAIN = "from {0} import *\nfrom {0} import main\nif __name__ == '__main__':\n    main()\n"


def install():
    """Put the finder first on `sys.meta_path`, once however often the line runs."""
    try:
        if not any(isinstance(finder, Finder) for finder in sys.meta_path):
            sys.meta_path.insert(0, Finder())
    except Exception as error:
        complain(error)


class Finder:
    """Knows a few modules. For every other name it answers None after one look."""

    def find_spec(self, name, path=None, target=None):
        """The spec that the other finders give for a module of the host, with our loader around theirs."""
        if name not in MODULES:
            return None
        try:
            if switch() == "0" or (name in ON_REQUEST and switch(PATCH) != "1"):
                return None
            spec = self.ask_others(name, path, target)
            if spec is not None and spec.loader is not None:
                spec.loader = Loader(spec.loader)
            return spec
        except Exception as error:
            complain(error)
            return None

    def ask_others(self, name, path, target):
        """What the finders behind this one say."""
        for finder in sys.meta_path[sys.meta_path.index(self) + 1 :]:
            find_spec = getattr(finder, "find_spec", None)
            spec = find_spec(name, path, target) if find_spec else None
            if spec is not None:
                return spec
        return None


class Loader:
    """The real loader in everything but two methods."""

    def __init__(self, real):
        self.real = real

    def __getattr__(self, name):
        if name == "real":  # asked before __init__, by copy or pickle
            raise AttributeError(name)
        return getattr(self.real, name)

    def create_module(self, spec):
        """Leave it to the real loader."""
        return self.real.create_module(spec)

    def exec_module(self, module):
        """Run the host's module, then let ours at it."""
        try:
            self.real.exec_module(module)
        except ImportError as error:
            explain(error, module)
            raise
        try:
            activate(module)
        except KeyboardInterrupt:  # from the person at the keyboard
            raise
        except BaseException as error:  # SystemExit too: what we raise must not end the host
            complain(error)

    def get_code(self, name):
        """Asked for by `python -m` (runpy) alone: code that runs the real module's `main`."""
        if name not in COMMANDS:
            return self.real.get_code(name)
        return compile(RUN_AS_MAIN.format(name), f"<{PACKAGE}: python -m {name}>", "exec", dont_inherit=True)


def activate(module):
    """Hand the module to the package. If the package is gone while this file still stands, do nothing."""
    try:
        from mlx_lm_lora_prefplus.host.seam.install import activate as activate_seam
    except ModuleNotFoundError as error:
        if error.name in (PACKAGE, PACKAGE + ".host"):
            return
        raise
    activate_seam(module)


def explain(error, module):
    """Where the host's module failed because mlx has no backend here, say so: its command ends with that one line."""
    try:
        from mlx_lm_lora_prefplus.backend import problem

        found = problem()
    except KeyboardInterrupt:
        raise
    except BaseException:
        return
    if found and is_command(module):
        raise SystemExit("[ERROR] " + found) from None
    if found:
        error.add_note(found)


def is_command(module):
    """Whether this process was started to run the host's training command."""
    from pathlib import Path

    program = Path(sys.argv[0] if sys.argv else "").resolve()
    package = Path(getattr(module, "__file__", None) or "").resolve().parent
    own = [package / name for name in ("train.py", "__main__.py")]
    return program.name.removesuffix(".exe") == COMMANDS[0] or program in own


def switch(name=SWITCH):
    """The value of an environment variable; "" where it is not set."""
    import os

    return os.environ.get(name, "").strip().lower()


def complain(error):
    """Say on stderr what went wrong, or raise it where the switch says strict."""
    if switch() == "strict":
        raise error
    try:
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        sys.stderr.write(
            f"[mlx-lm-lora-prefplus] not active ({reason}); mlx_lm_lora runs as it is. "
            f"`mlx_lm_lora.prefplus doctor` says more; {SWITCH}=0 turns this off.\n"
        )
    except Exception:  # stderr is closed or full, or the error has no text: there is nobody to tell
        pass
