"""Small files, whole or not at all."""

from __future__ import annotations

import errno
import json
import os
import sqlite3
from pathlib import Path

import numpy as np
import pytest

from scenedistill.core.disk import (
    archive_damage,
    clear_parts,
    disk_full,
    file_damage,
    file_hash,
    read_checked,
    read_json,
    whole_file,
    write_json,
    write_text,
)
from scenedistill.core.errors import Damaged


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


def test_a_file_that_is_no_record_reads_as_empty(tmp_path: Path) -> None:
    for name, text in (("list", "[1]"), ("cut", '{"a": 1'), ("latin", '{"a": "\xe9"}')):
        (tmp_path / name).write_bytes(text.encode("latin-1"))
        assert read_json(tmp_path / name) == {}
    assert read_json(tmp_path / "nowhere") == {} == read_json(tmp_path)


def test_line_endings_are_written_unchanged(tmp_path: Path) -> None:
    write_text(tmp_path / "a.csv", "é\r\nb\n")
    assert (tmp_path / "a.csv").read_bytes() == b"\xc3\xa9\r\nb\n"


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full, a disk that is always full")
def test_a_full_disk_leaves_the_old_file(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"old")
    (tmp_path / "a.part").symlink_to("/dev/full")
    with pytest.raises(OSError) as full, whole_file(tmp_path / "a") as file:
        file.write(b"new" * 10_000)
    assert full.value.errno == errno.ENOSPC
    assert [path.name for path in tmp_path.iterdir()] == ["a"] and (tmp_path / "a").read_bytes() == b"old"


def test_the_hash_of_a_file_is_that_of_its_content(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"abc")
    assert file_hash(tmp_path / "a") == "ba7816bf8f01cfea"  # FIPS 180-2's example


def test_a_checksum_detects_every_change_of_content_and_ignores_formatting(tmp_path: Path) -> None:
    path = tmp_path / "stage.json"
    content = {"oa": 0.9234, "classes": ["forêt"], "at": None}
    write_json(path, content, checksum=True)
    assert read_json(path) == read_checked(path, ("oa", "classes", "at")) == content
    text = path.read_text(encoding="utf-8")
    for changed in (
        text.replace("0.9234", "0.9235"),
        text.replace("forêt", "foret"),
        text[:-9],
        text.replace('"oa"', '"ob"'),
    ):
        path.write_text(changed, encoding="utf-8")
        assert read_json(path) == {}
        with pytest.raises(Damaged, match=r"stage\.json is damaged"):
            read_checked(path)
    path.write_text(json.dumps(json.loads(text), indent=4).replace("\n", "\r\n"), encoding="utf-8")
    assert read_json(path) == content
    path.write_text(text.replace('"checksum"', '"chfcksum"'), encoding="utf-8")
    with pytest.raises(Damaged, match="'chfcksum', which was never written there"):
        read_checked(path, ("oa", "classes", "at"))
    assert read_checked(tmp_path / "nowhere") is None
    path.write_text("[" * 100_000, encoding="utf-8")
    with pytest.raises(Damaged, match="not valid JSON"):
        read_checked(path)


def test_file_damage_names_a_changed_and_a_missing_file(tmp_path: Path) -> None:
    path = tmp_path / "a.bin"
    path.write_bytes(b"abc")
    kept = file_hash(path)
    assert file_damage(path, kept) == ""
    path.write_bytes(b"abd")
    assert file_damage(path, kept) == "a.bin is damaged: it does not fit its checksum"
    path.unlink()
    assert file_damage(path, kept) == "a.bin is missing"


def test_every_flipped_bit_of_an_archive_is_seen_or_harmless(tmp_path: Path) -> None:
    path, wanted = tmp_path / "a.npz", np.arange(40, dtype=np.float32)
    np.savez(path, a=wanted)
    assert archive_damage(path) == ""
    whole, seen = path.read_bytes(), 0
    for place in range(len(whole)):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 4]) + whole[place + 1 :])
        if archive_damage(path):
            seen += 1
            continue
        with np.load(path) as found:
            np.testing.assert_array_equal(found["a"], wanted)
    assert seen > len(whole) / 2
    for damaged in (b"", whole[:-30], b"garbage" * 30):
        path.write_bytes(damaged)
        assert "a.npz is damaged" in archive_damage(path)
    path.unlink()
    assert archive_damage(path) == "a.npz is missing"


def test_leftover_part_files_are_removed_but_recent_ones_stay(tmp_path: Path) -> None:
    for name in ("old.part", "young.part", "kept.json"):
        (tmp_path / name).write_bytes(b"")
    (tmp_path / "folder.part").mkdir()
    os.utime(tmp_path / "old.part", (0, 0))
    clear_parts(tmp_path, 3600)
    assert {path.name for path in tmp_path.iterdir()} == {"young.part", "kept.json", "folder.part"}
    clear_parts(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"kept.json", "folder.part"}


def test_a_full_disk_is_recognised_behind_other_errors() -> None:
    assert disk_full(OSError(errno.EDQUOT, "quota"))
    assert disk_full(OSError(errno.EFBIG, "File too large"))
    assert disk_full(RuntimeError("sqlite: database or disk is full"))
    limited = sqlite3.OperationalError("disk I/O error")
    limited.sqlite_errorname = "SQLITE_IOERR_WRITE"
    assert disk_full(limited) and not disk_full(sqlite3.OperationalError("disk I/O error"))
    assert disk_full(ExceptionGroup("several", [ValueError("x"), OSError(errno.ENOSPC, "full")]))
    try:
        try:
            raise OSError(errno.ENOSPC, "No space")
        except OSError:
            raise RuntimeError("unexpected pos 64 vs 0")  # noqa: B904  (as torch's writer does)
    except RuntimeError as problem:
        assert disk_full(problem)
    loop = RuntimeError("a")
    loop.__cause__, loop.__context__ = ValueError("b"), loop
    assert not disk_full(loop) and not disk_full(None)
