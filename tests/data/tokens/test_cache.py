"""Token rows on disk."""

import pytest
from datasets.arrow_writer import ArrowWriter

from mlx_lm_lora_prefplus.data.tokens import cache
from mlx_lm_lora_prefplus.errors import UserError


@pytest.mark.parametrize("function", ["write_batch", "finalize"])
def test_a_full_disk_is_said_in_words_and_leaves_nothing(tmp_path, monkeypatch, function):
    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(ArrowWriter, function, full)
    told = "cannot be written to .*: No space left on device. .*MLX_LM_LORA_PREFPLUS_CACHE"
    with pytest.raises(UserError, match=told), cache.Writer(tmp_path, "digest", {"prompt": "int32 list"}) as writer:
        writer.write({"prompt": [[1]]})
        writer.keep({"used": 1})
    assert list(tmp_path.iterdir()) == []
