"""Start-up hook of mlx-lm-lora-prefplus, installed at the root of site-packages together with its `.pth` line.

Every interpreter of the environment imports this file, so the file imports only `sys`. When a program imports a module
of mlx-lm-lora listed below, the hook passes the loaded module to mlx-lm-lora-prefplus, which replaces its preference
modes. No file of the host is changed.

Nothing here may break an interpreter. Every error is reported on stderr and the host runs unchanged, even if our
package exits while it is imported. Only Ctrl-C (KeyboardInterrupt) ends the program, as it would without the hook. The
`.pth` line ignores every error, so a damaged hook prints nothing; `mlx_lm_lora.prefplus doctor` reports the damage.

MLX_LM_LORA_PREFPLUS=0 turns the hook off. =strict raises errors that would otherwise be warnings.
MLX_LM_LORA_PREFPLUS_PATCH=1 also replaces the functions that programs call directly (`train_dpo`, …).
"""

import sys

PACKAGE = "mlx_lm_lora_prefplus"
SWITCH, PATCH = "MLX_LM_LORA_PREFPLUS", "MLX_LM_LORA_PREFPLUS_PATCH"

# The keys of WRAPPED in `host/originals.py`, which lists what is replaced in each module.
COMMANDS = ("mlx_lm_lora.train", "mlx_lm_lora.mcp_server")
ALWAYS = (*COMMANDS, "mlx_lm_lora.trainer.datasets")
ON_REQUEST = tuple(f"mlx_lm_lora.trainer.{mode}_trainer" for mode in ("dpo", "cpo", "orpo"))
MODULES = frozenset(ALWAYS + ON_REQUEST)

# The code that `python -m` runs for a command. It imports the real module once, under its own name and with the
# replaced functions, and copies its names and its `main` to `__main__`.
RUN_AS_MAIN = "from {0} import *\nfrom {0} import main\nif __name__ == '__main__':\n    main()\n"


def install():
    """Put the finder first on `sys.meta_path`. If it is already there (the `.pth` line may run twice), do nothing."""
    try:
        if not any(isinstance(finder, Finder) for finder in sys.meta_path):
            sys.meta_path.insert(0, Finder())
    except Exception as error:
        complain(error)


class Finder:
    """Finds the host's modules that this package changes. For every other name it returns None after one comparison."""

    def find_spec(self, name, path=None, target=None):
        """Return the spec of a host module from the other finders. This hook's loader wraps the spec's loader."""
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
        """Return the spec from the finders after this one."""
        for finder in sys.meta_path[sys.meta_path.index(self) + 1 :]:
            find_spec = getattr(finder, "find_spec", None)
            spec = find_spec(name, path, target) if find_spec else None
            if spec is not None:
                return spec
        return None


class Loader:
    """Behaves like the real loader, except in `exec_module` and `get_code`."""

    def __init__(self, real):
        self.real = real

    def __getattr__(self, name):
        if name == "real":  # called before __init__, by copy or pickle
            raise AttributeError(name)
        return getattr(self.real, name)

    def create_module(self, spec):
        """Delegate to the real loader."""
        return self.real.create_module(spec)

    def exec_module(self, module):
        """Run the host's module, then pass it to this package."""
        try:
            self.real.exec_module(module)
        except ImportError as error:
            explain(error, module)
            raise
        try:
            activate(module)
        except KeyboardInterrupt:  # Ctrl-C
            raise
        except BaseException as error:  # also SystemExit: an error here must not end the host
            complain(error)

    def get_code(self, name):
        """Return code that runs the real module's `main`. Only `python -m` (runpy) calls this method."""
        if name not in COMMANDS:
            return self.real.get_code(name)
        return compile(RUN_AS_MAIN.format(name), f"<{PACKAGE}: python -m {name}>", "exec", dont_inherit=True)


def activate(module):
    """Pass the module to the package. If the package was removed but this file remains, do nothing."""
    try:
        from mlx_lm_lora_prefplus.host.seam.install import activate as activate_seam
    except ModuleNotFoundError as error:
        if error.name in (PACKAGE, PACKAGE + ".host"):
            return
        raise
    activate_seam(module)


def explain(error, module):
    """Handle a failed import of a host module: if mlx has no backend on this machine, say so in one line.

    The host's command ends with this line. For other programs, the line is added to the error.
    """
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
    """Return whether this process was started to run the host's training command."""
    from pathlib import Path

    program = Path(sys.argv[0] if sys.argv else "").resolve()
    package = Path(getattr(module, "__file__", None) or "").resolve().parent
    own = [package / name for name in ("train.py", "__main__.py")]
    return program.name.removesuffix(".exe") == COMMANDS[0] or program in own


def switch(name=SWITCH):
    """Return the value of an environment variable; "" if it is not set."""
    import os

    return os.environ.get(name, "").strip().lower()


def complain(error):
    """Report an error on stderr, or raise it if the switch is `strict`."""
    if switch() == "strict":
        raise error
    try:
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        sys.stderr.write(
            f"[mlx-lm-lora-prefplus] not active ({reason}); mlx_lm_lora runs unchanged. "
            f"Run `mlx_lm_lora.prefplus doctor` for details. {SWITCH}=0 turns the plugin off.\n"
        )
    except Exception:  # stderr is closed or full, or the error has no text
        pass
