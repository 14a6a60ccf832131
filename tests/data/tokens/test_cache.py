"""Token rows on disk."""

import pyarrow
import pytest

from mlx_lm_lora_prefplus.data.tokens import cache
from mlx_lm_lora_prefplus.errors import UserError


@pytest.mark.parametrize("function", ["write_batch", "close"])
def test_a_full_disk_is_said_in_words_and_leaves_nothing(tmp_path, monkeypatch, function):
    def full(*_, **__):
        raise OSError(28, "No space left on device")

    class Full:
        """A stream of a full disk."""

        def __getattr__(self, name):
            return full if name == function else lambda *_: None

    monkeypatch.setattr(pyarrow.ipc, "new_stream", lambda *_: Full())
    told = "cannot be written to .*: No space left on device. .*MLX_LM_LORA_PREFPLUS_CACHE"
    with pytest.raises(UserError, match=told), cache.Writer(tmp_path, "digest", {"prompt": "int32 list"}) as writer:
        writer.write({"prompt": [[1]]})
        writer.keep({"used": 1})
    assert list(tmp_path.iterdir()) == []
