"""JSON files are validated whole: whatever they hold, they are read as what they should be, or refused in one line."""

import os
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lit_gen.core.errors import UserError
from lit_gen.core.records import MAX_DEPTH, parse_json, read_each, read_json, read_record
from lit_gen.core.text import for_csv, for_figure, for_markdown, is_printable, printable, shorten


def nested(depth: int) -> str:
    return "[" * depth + "]" * depth


def test_texts_that_no_file_of_ours_holds_are_refused() -> None:
    assert parse_json(nested(MAX_DEPTH)) is not None
    for text in (nested(MAX_DEPTH + 1), nested(100_000), "9" * 21, '{"a": -' + "1" * 500 + "}", "{", "", "\ufeff{}"):
        with pytest.raises(ValueError):
            parse_json(text)
    assert parse_json("18446744073709551615") == 2**64 - 1
    assert parse_json("[NaN, 1e999]")[1] == float("inf")


def test_files_that_are_no_files_are_named(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "folder").mkdir()
    (tmp_path / "zero").symlink_to("/dev/zero")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    (tmp_path / "bytes").write_bytes(b'{"a": "\xe9"}')
    (tmp_path / "list").write_text("[]")
    (tmp_path / "large").write_text(" " * 100 + "{}")
    for path in sorted(tmp_path.iterdir()):
        with pytest.raises(UserError) as error:
            read_record(path, "do this", limit=100)
        assert str(error.value).startswith(f"{path}: ") and str(error.value).endswith("; do this")
    with pytest.raises(FileNotFoundError):
        read_json(tmp_path / "none", "do this")


def test_damaged_ones_are_left_out_until_none_is_left() -> None:
    def read(number: int) -> int:
        if number % 2:
            raise UserError(f"{number} is odd")
        return number

    with pytest.warns(UserWarning) as said:
        assert read_each(range(5), read, "so it goes") == [0, 2, 4]
    assert [str(warning.message) for warning in said] == ["1 is odd; so it goes", "3 is odd; so it goes"]
    with pytest.raises(UserError, match=r"^1 is odd \(and 1 more"):
        read_each([1, 3], read, "so it goes")
    assert read_each([], read, "so it goes") == []


@settings(max_examples=200, derandomize=True, deadline=None)
@given(
    st.text(st.characters(codec=None), max_size=30) | st.text("\x1b\x07[]$^{}_|`*<\\=+-@\n\r\ud800\u202e", max_size=12)
)
def test_any_text_can_be_shown(text: str) -> None:
    from matplotlib.cbook import is_math_text

    for shown in (printable(text), for_figure(text), for_markdown(text)):
        assert is_printable(shown)
        shown.encode()
    assert printable(text) == text or not is_printable(text)
    assert not is_math_text(for_figure(text)) and not for_figure(text).startswith("_")
    assert for_csv(printable(text))[:1] not in {"=", "+", "-", "@"} - {""} or not text
    assert "|" not in for_markdown(text).replace("\\|", "") and "<" not in for_markdown(text).replace("\\<", "")
    assert printable(text, lines=True).replace("\n", "").isprintable() or "\t" in text or not text.isascii()


def test_long_names_stay_apart() -> None:
    one, other = "x" * 500 + "a", "x" * 500 + "b"
    assert len(shorten(one, 80)) == 80 and shorten(one, 80) != shorten(other, 80)
    assert shorten("short", 80) == "short"
