"""Every message on docs/troubleshooting.md is a message of the package (or named here as one of another program)."""

import ast
import re

from tests.paths import DOCS, ROOT

PAGE = (DOCS / "troubleshooting.md").read_text("utf-8")
OF_OTHERS = {
    "invalid choice: 'simpo'",
    "libgomp.so.1: cannot open shared object file",
    "libcudart.so… cannot open shared object file",
    "KeyError: 'max_recommended_working_set_size'",
    "[Primitive::vjp] Not implemented for CustomKernel",
}
"""Messages of argparse, the dynamic loader, mlx-lm-lora and MLX."""


def messages() -> list[str]:
    """The text of every string in the package; … stands for each value in an f-string."""
    found = []
    for file in (ROOT / "mlx_lm_lora_prefplus").rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text("utf-8"))):
            if isinstance(node, ast.JoinedStr):
                found.append("".join(str(one.value) if isinstance(one, ast.Constant) else "…" for one in node.values))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                found.append(node.value)
    return found


def quoted() -> list[str]:
    """The messages of the page: code of more than two words at the start of the row of a table."""
    cells = re.findall(r"^\| ([^|]*)\|", PAGE, re.MULTILINE)
    codes = [code for cell in cells for code in re.findall(r"`([^`]+)`", cell)]
    return [code for code in codes if len(code.split()) > 2 and code not in OF_OTHERS]


def test_messages_are_those_of_the_package():
    texts = "\n".join(messages())
    parts = [(code, part.strip()) for code in quoted() for part in code.split("…")]
    missing = [code for code, part in parts if part.strip("();:, ") not in texts]
    assert len(quoted()) > 20 and not missing
