"""Instructions for using an exported adapter, for its model card."""

_TEXTS = {
    "mlx": """```bash
mlx_lm.generate --model {base} --adapter-path . --prompt "…"
mlx_lm.server --model {base} --adapter-path .
```""",
    "peft": """```python
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

base = AutoModelForCausalLM.from_pretrained("{base}")
model = PeftModel.from_pretrained(base, "THIS FOLDER OR REPOSITORY")
tokenizer = AutoTokenizer.from_pretrained("{base}")
```""",
    "gguf": """Load the adapter together with a GGUF of `{base}`, of any quantisation.

```bash
llama-server -m base.gguf --lora adapter.gguf           # llama.cpp
llama-export-lora -m base.gguf --lora adapter.gguf -o merged.gguf   # one file, also for LM Studio
ollama create my-model -f Modelfile                     # Ollama; FROM in the Modelfile names the base
```""",
}


def usage(form: str, base: str) -> str:
    """Return commands or code that load an adapter in the format `form`. base: the base model."""
    return _TEXTS[form].format(base=base)
