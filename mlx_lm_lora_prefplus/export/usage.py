"""Instructions for using an exported adapter, for its model card."""

_TEXTS = {
    "mlx": """```bash
mlx_lm.generate --model {base} --adapter-path . --prompt "…"
mlx_lm.server --model {base} --adapter-path .
```""",
    "pictures": """```bash
mlx_vlm.generate --model {base} --adapter-path . --image picture.png --prompt "…"
```

To write one model with its vision tower, train again with `resume: true` and `fuse: true`. `mlx_lm.fuse` drops the
tower.""",
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


def usage(form: str, base: str, pictures: bool) -> str:
    """Return commands or code that load an adapter in the format `form`.

    base: the base model. pictures: whether the adapter was trained on rows with pictures.
    """
    return _TEXTS["pictures" if pictures and form == "mlx" else form].format(base=base)
