# SPDX-License-Identifier: Apache-2.0
"""Lines of calibration data: what is read, and that each error names the file, the line and what to do."""

from __future__ import annotations

from pathlib import Path

import pytest

from pyquant import calibration
from pyquant.errors import CalibrationError
from tests import checkpoints


def test_image_images_and_prompt_are_read_and_empty_lines_passed_over(tmp_path: Path) -> None:
    (tmp_path / "pictures").mkdir()
    for name in ("a.png", "b.png"):
        checkpoints.picture(tmp_path / "pictures" / name, 16, 16)
    file = tmp_path / "c.jsonl"
    file.write_text(
        '\ufeff{"image": "pictures/a.png", "prompt": "What?"}\r\n\n'
        '{"images": ["pictures/a.png", "pictures/b.png"], "prompt": "Both\u2028?"}\n'
        '{"prompt": "no image", "image": null}\n{"image": ["pictures/b.png"]}',
        encoding="utf-8",
    )
    a, b = tmp_path / "pictures" / "a.png", tmp_path / "pictures" / "b.png"
    assert calibration.read_lines(file) == [
        calibration.Line(f"{file}, line 1", "What?", (a,)),
        calibration.Line(f"{file}, line 3", "Both\u2028?", (a, b)),
        calibration.Line(f"{file}, line 4", "no image", ()),
        calibration.Line(f"{file}, line 5", None, (b,)),
    ]


WRONG = {
    "bad json": ('{"prompt": "a"}\n\n{"prompt": }', r"c\.jsonl, line 3: not valid JSON: .* at column 12"),
    "cut short": ('{"prompt": "a"}\n{"prompt": "b', r"line 2: not valid JSON"),
    "no object": ('["a"]', r'line 1: a line is an object with the keys image, images, prompt; got \["a"\]'),
    "empty object": ("{}", r"line 1: a line is an object"),
    "unknown key": ('{"prompt": "a", "video": "v.mp4"}', r"line 1: the key 'video' is not known.*\.safetensors"),
    "prompt no text": ('{"prompt": 7}', r"line 1: 'prompt' is a text that is not empty, got 7"),
    "prompt blank": ('{"prompt": "  "}', r"line 1: 'prompt' is a text that is not empty"),
    "nothing": ('{"prompt": null, "image": null}', r"line 1: a line needs a prompt, an image, or both"),
    "image number": ('{"image": 3, "prompt": "a"}', r"line 1: an image is a file name, several are a list.*got 3"),
    "image list of lists": ('{"images": [["a"]], "prompt": "a"}', r"line 1: an image is a file name"),
    "both": ('{"image": "a", "images": ["a"], "prompt": "a"}', r"line 1: 'image' and 'images' mean the same"),
    "missing image": (
        '{"prompt": "a"}\n{"image": "x.png", "prompt": "a"}',
        r"line 2: the image '.*x\.png' does not",
    ),
    "image is folder": ('{"image": ".", "prompt": "a"}', r"line 1: the image '.*' is a folder"),
    "empty file": ("", r"has no line; write one such as"),
    "blank file": (" \n\n", r"has no line"),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_is_wrong_is_said_with_its_line(name: str, tmp_path: Path) -> None:
    text, message = WRONG[name]
    (tmp_path / "c.jsonl").write_text(text, encoding="utf-8")
    with pytest.raises(CalibrationError, match=message):
        calibration.read_lines(tmp_path / "c.jsonl")


def test_a_file_that_is_missing_or_no_text_is_said(tmp_path: Path) -> None:
    with pytest.raises(CalibrationError, match=r"'.*none\.jsonl' cannot be read: No such file"):
        calibration.read_lines(tmp_path / "none.jsonl")
    (tmp_path / "c.jsonl").write_bytes(b'{"prompt": "\xff"}')
    with pytest.raises(CalibrationError, match=r"is no UTF-8 text \(byte 12\)"):
        calibration.read_lines(tmp_path / "c.jsonl")
