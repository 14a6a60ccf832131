"""A model with a vision tower is known by its config."""

import pytest

from mlx_lm_lora_prefplus.host import vision


@pytest.mark.parametrize(("content", "there"), [('{"vision_config": {"depth": 1}}', True), ("{}", False), ("{", False)])
def test_a_vision_tower_is_read_from_the_config(tmp_path, content, there):
    (tmp_path / "config.json").write_text(content)
    assert vision.has_vision(str(tmp_path)) == there


@pytest.mark.parametrize("model", ["/no/such/folder", "./x", "a/b/c", "no_such_model"])
def test_without_a_config_no_vision_tower_is_known(model):
    assert not vision.has_vision(model)
