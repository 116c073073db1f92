"""Small files, whole or not at all."""

from __future__ import annotations

import errno
import json
from pathlib import Path

import pytest

from scenedistill.disk import file_hash, read_json, whole_file, write_json, write_text


def test_a_record_is_written_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "stage.json"
    write_json(path, {"name": "forêt", "at": Path("a") / "b"})
    assert json.loads(path.read_text(encoding="utf-8")) == {"name": "forêt", "at": "a/b"}

    class Unwritable:
        def __str__(self) -> str:
            raise RuntimeError("no words")

    with pytest.raises(RuntimeError, match="no words"):
        write_json(path, {"name": Unwritable()})
    assert json.loads(path.read_text(encoding="utf-8"))["name"] == "forêt"
    assert [file.name for file in tmp_path.iterdir()] == ["stage.json"]


def test_what_is_no_record_reads_as_nothing(tmp_path: Path) -> None:
    for name, text in (("list", "[1]"), ("cut", '{"a": 1'), ("latin", '{"a": "\xe9"}')):
        (tmp_path / name).write_bytes(text.encode("latin-1"))
        assert read_json(tmp_path / name) == {}
    assert read_json(tmp_path / "nowhere") == {} == read_json(tmp_path)


def test_lines_end_as_they_were_written(tmp_path: Path) -> None:
    write_text(tmp_path / "a.csv", "é\r\nb\n")
    assert (tmp_path / "a.csv").read_bytes() == b"\xc3\xa9\r\nb\n"


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full, a disk that is always full")
def test_a_full_disk_leaves_what_was_there(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"old")
    (tmp_path / "a.part").symlink_to("/dev/full")
    with pytest.raises(OSError) as full, whole_file(tmp_path / "a") as file:
        file.write(b"new" * 10_000)
    assert full.value.errno == errno.ENOSPC
    assert [path.name for path in tmp_path.iterdir()] == ["a"] and (tmp_path / "a").read_bytes() == b"old"


def test_the_hash_of_a_file_is_that_of_its_content(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"abc")
    assert file_hash(tmp_path / "a") == "ba7816bf8f01cfea"  # FIPS 180-2's example
