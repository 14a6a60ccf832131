"""Pictures of rows, in the forms in which data sets have them."""

import io
from pathlib import Path

import numpy as np
import pytest

from mlx_lm_lora_prefplus.data.formats.detect import read_examples
from mlx_lm_lora_prefplus.data.formats.example import Example
from mlx_lm_lora_prefplus.data.sources.pictures import MARK, Picture, located, open_picture, shows_pictures
from mlx_lm_lora_prefplus.errors import UserError
from mlx_lm_lora_prefplus.settings import COLUMNS

FEATURES = dict.fromkeys(COLUMNS)
ANSWERS = {"chosen": "A cat.", "rejected": "A dog."}
ITEMS = [{"type": "image"}, {"type": "text", "text": "What is it?"}]


def user(content):
    return {"role": "user", "content": content}


def bot(text):
    return {"role": "assistant", "content": text}


def read(row, kind="paired", pictures=True) -> Example:
    _, examples = read_examples(iter([(1, row)]), "rows", FEATURES, kind, pictures=pictures)
    (example,) = examples
    assert isinstance(example, Example)
    return example


FORMS = {
    "TRL's items": {"prompt": [user(ITEMS)], "images": ["a.png"], **ANSWERS},
    "items and one picture": {"prompt": [user(ITEMS)], "image": "a.png", **ANSWERS},
    "text, as RLHF-V": {"prompt": "What is it?", "image": {"bytes": None, "path": "a.png"}, **ANSWERS},
    "an implicit prompt": {
        "images": ["a.png"],
        "chosen": [user(ITEMS), bot("A cat.")],
        "rejected": [user(ITEMS), bot("A dog.")],
    },
    "LLaMA-Factory's placeholder": {"prompt": "<image>What is it?", "images": ["a.png"], **ANSWERS},
    "in the item": {"prompt": [user([{"type": "image", "image": "a.png"}, ITEMS[1]])], **ANSWERS},
    "a path in the item": {"prompt": [user([{"type": "image", "path": "a.png"}, ITEMS[1]])], **ANSWERS},
    "OpenAI's item": {
        "prompt": [user([{"type": "image_url", "image_url": {"url": "file://a.png"}}, ITEMS[1]])],
        **ANSWERS,
    },
}


@pytest.mark.parametrize("row", FORMS.values(), ids=FORMS)
def test_every_form_gives_the_same_example(row):
    example = read(row)
    assert example.prompt == [user(f"{MARK}What is it?")]
    assert list(example.pictures) == [Picture("a.png")]
    assert [answer[-1]["content"] for answer in example.completions] == ["A cat.", "A dog."]
    assert shows_pictures(iter([(1, row)]), 1)


def test_rows_of_one_completion_have_pictures_too():
    row = {"prompt": [user(ITEMS)], "images": ["a.png"], "completion": [bot("A cat.")], "label": True}
    example = read(row, "unpaired")
    assert list(example.pictures) == [Picture("a.png")] and example.prompt == [user(f"{MARK}What is it?")]


def test_several_pictures_keep_their_places():
    look = [user("First <image> then <image>"), bot("Two."), user([ITEMS[1], {"type": "image", "image": b"3"}])]
    with pytest.raises(UserError, match="places for 3 pictures, but column 'images' contains 2"):
        read({"prompt": [user([{"type": "image"}] * 3)], "images": ["1", "2"], **ANSWERS})
    text = read({"prompt": look[:1], "images": ["1", "2"], **ANSWERS})
    assert text.prompt == [user(f"First {MARK} then {MARK}")] and [one.path for one in text.pictures] == ["1", "2"]
    mixed = [user([{"type": "image"}, "One."]), bot("A."), user([{"type": "image", "image": b"3"}, "And?"])]
    assert list(read({"prompt": mixed, "image": "1", **ANSWERS}).pictures) == [Picture("1"), Picture(None, b"3")]
    before = read({"prompt": look[2:], "images": ["1"], **ANSWERS})
    assert list(before.pictures) == [Picture("1"), Picture(None, b"3")]
    assert before.prompt == [user(f"{MARK}What is it?{MARK}")]


@pytest.mark.parametrize(
    "value",
    [b"png", {"bytes": b"png", "path": "a.png"}, "data:image/png;base64,cG5n", "data:image/png;base64, cG\r\n5n\n"],
)
def test_content_is_kept_with_the_row(value):
    assert list(read({"prompt": "What is it?", "image": value, **ANSWERS}).pictures) == [Picture(None, b"png")]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"image": "https://host/a.png"}, "is a URL, but pictures are only read from this machine"),
        ({"image": 3}, "expected a picture: a path, bytes, or an object"),
        ({"image": "data:image/png;base64,*"}, "not valid base64"),
        ({"prompt": [user([{"type": "image"}, {"type": "image"}])], "image": "a"}, "places for 2 pictures, but"),
        ({"prompt": [user([{"type": "image"}])]}, "places for 1 pictures, but column 'images' contains 0"),
        ({"prompt": "<image> or <image>?", "image": "a"}, "places for 2 pictures, but column 'image' contains 1"),
        ({"prompt": "<image> or?", "images": ["a", "b"]}, "places for 1 pictures, but column 'images' contains 2"),
        ({"prompt": "<image> What?", "images": []}, "places for 1 pictures, but column 'images' contains 0"),
        ({"prompt": [user(["<image>", *ITEMS])], "image": "a"}, "places for 2 pictures, but column 'image' contains 1"),
        ({"prompt": "What \ufffc?", "image": "a"}, "contains the character U.FFFC, which represents a picture"),
        ({"image": f"https://host/{'a' * 900}.png"}, r"https://host/a+…a+\.png is a URL"),
        ({"prompt": [user([{"type": "audio"}])]}, "sound and video cannot be read"),
        ({"chosen": [bot([{"type": "image", "image": "a"}])]}, "a completion contains a picture"),
    ],
)
def test_what_cannot_be_read_is_said(changes, said):
    with pytest.raises(UserError, match=f"rows, row 1.*{said}"):
        read({"prompt": [user("What is it?")], "chosen": [bot("A cat.")], "rejected": [bot("A dog.")], **changes})


def test_a_placeholder_is_only_text_where_the_model_reads_no_pictures():
    row = {"prompt": "Write <image> and \ufffc", **ANSWERS}
    assert read(row, pictures=False).prompt == [user(row["prompt"])]


def test_places_keep_their_order_among_pictures_of_their_own():
    items = ["Is <image> or ", {"type": "image", "image": "own"}, " or ", {"type": "image"}, " red?"]
    example = read({"prompt": [user(items)], "images": ["1", "2"], **ANSWERS})
    assert [one.path for one in example.pictures] == ["1", "own", "2"]
    assert example.prompt == [user(f"Is {MARK} or {MARK} or {MARK} red?")]


def test_text_without_a_chat_template_has_no_place_for_a_picture():
    row = {"image": "a.png", "chosen": "What is it? A cat.", "rejected": "What is it? A dog."}
    with pytest.raises(UserError, match="only a chat template can put pictures in a prompt"):
        read(row)
    _, examples = read_examples(iter([(1, {"prompt": "What?", **row})]), "rows", FEATURES, raw=True, pictures=True)
    with pytest.raises(UserError, match="only a chat template can put pictures in a prompt"):
        list(examples)


def test_rows_without_pictures_are_read_as_by_a_text_model():
    row = {"prompt": [user("What is it?")], "images": [], "chosen": [bot("A cat.")], "rejected": [bot("A dog.")]}
    assert read(row) == read(row, pictures=False)._replace(pictures=[])
    assert not shows_pictures(iter([(1, row)]), 1)


def test_paths_begin_at_the_file_with_the_rows(tmp_path):
    (tmp_path / "a.png").write_bytes(b"png")
    assert located(Picture("a.png"), tmp_path, "rows, row 1").path == str(tmp_path / "a.png")
    with pytest.raises(UserError, match=r"rows, row 1: there is no picture .*b.png. Paths are relative to the file"):
        located(Picture("b.png"), tmp_path, "rows, row 1")
    assert located(Picture(str(tmp_path / "a.png")), Path("/elsewhere"), "") == Picture(str(tmp_path / "a.png"))


def test_a_file_url_is_decoded():
    assert list(read({"prompt": "What?", "image": "file:///a/sp%20ace.png", **ANSWERS}).pictures) == [
        Picture("/a/sp ace.png")
    ]


@pytest.mark.parametrize("value", ["iVBORw0KGgo" * 900, "iVBORw0KGgo/" * 20, "nul\0"])
def test_base64_without_its_prefix_is_no_path(value, tmp_path):
    with pytest.raises(
        UserError, match=r"rows, row 1: there is no picture .*begin with data:image/png;base64,$"
    ) as said:
        located(Picture(value), tmp_path, "rows, row 1")
    assert value[:40] in str(said.value) and len(str(said.value)) < 250 + len(str(tmp_path))


def content(image, kind) -> Picture:
    file = io.BytesIO()
    image.save(file, kind)
    return Picture(None, file.getvalue())


@pytest.mark.parametrize(("dtype", "kind"), [(np.uint16, "PNG"), (np.uint16, "TIFF"), (np.int32, "TIFF")])
def test_sixteen_bits_are_scaled_to_eight(dtype, kind):
    images = pytest.importorskip("PIL.Image")
    image = images.fromarray(np.array([[0, 257, 32768, 65535]], dtype))
    assert np.asarray(open_picture(content(image, kind)))[0, :, 0].tolist() == [0, 1, 128, 255]


@pytest.mark.parametrize(("values", "said"), [(np.float32(0.5), "floats"), (np.int32(70000), "do not fit in 16 bits")])
def test_pictures_of_an_unknown_range_are_rejected(values, said):
    images = pytest.importorskip("PIL.Image")
    image = images.fromarray(np.full((2, 2), values))
    with pytest.raises(UserError, match=f"rows, row 1: the picture in the row cannot be read: its values .*{said}"):
        open_picture(content(image, "TIFF"), "rows, row 1")


def test_a_damaged_picture_is_named_in_words():
    images = pytest.importorskip("PIL.Image")
    whole = content(images.new("RGB", (64, 64)), "PNG").content
    assert whole
    for part in (whole[:5], whole[:20], whole[:60]):
        with pytest.raises(UserError, match="row 1: the picture in the row cannot be read: ") as said:
            open_picture(Picture(None, part), "row 1")
        assert "BytesIO" not in str(said.value)
