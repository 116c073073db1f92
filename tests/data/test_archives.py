"""Archives made to do harm are refused whole; good ones are unpacked wherever they were packed."""

from __future__ import annotations

import io
import random
import stat
import tarfile
import zipfile
from pathlib import Path

import pytest

from scenedistill.core.errors import UserError
from scenedistill.data.known.archives import extract
from scenedistill.data.known.transfer import Limits

BODY = random.Random(0).randbytes(300_000)


def zip_of(files: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return buffer.getvalue()


def tar_of(*members: tarfile.TarInfo | str, mode: str = "w:gz") -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode=mode) as archive:  # type: ignore[call-overload]
        for member in members:
            if isinstance(member, str):
                member = tarfile.TarInfo(member)
                member.size = 5
            archive.addfile(member, io.BytesIO(b"x" * member.size))
    return buffer.getvalue()


def special(kind: bytes, link: str = "") -> tarfile.TarInfo:
    member = tarfile.TarInfo("a/evil.jpg")
    member.type, member.linkname = kind, link
    return member


def symlink_in_zip() -> bytes:
    info = zipfile.ZipInfo("a/evil.jpg")
    info.create_system = 3
    info.external_attr = (stat.S_IFLNK | 0o777) << 16
    return _zip_with(info, b"/etc/passwd")


def _zip_with(info: zipfile.ZipInfo, data: bytes) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a/fine.jpg", b"fine")
        archive.writestr(info, data, zipfile.ZIP_DEFLATED)
    return buffer.getvalue()


def encrypted_zip() -> bytes:
    data = bytearray(zip_of({"a/1.jpg": b"x"}))
    data[6] |= 1  # the flag in the local header
    data[data.index(b"PK\x01\x02") + 8] |= 1  # and in the directory
    return bytes(data)


def zip_named(name: bytes) -> bytes:
    """A zip with a name that zipfile would not write as it is."""
    return zip_of({"Q" * len(name): b"evil"}).replace(b"Q" * len(name), name)


def lying_zip() -> bytes:
    """Claims a member of 5 bytes that unpacks to more."""
    data = bytearray(_zip_with(zipfile.ZipInfo("a/big.jpg"), b"0" * 100_000))
    at = data.rindex(b"PK\x01\x02") + 24
    data[at : at + 4] = (5).to_bytes(4, "little")
    return bytes(data)


SMALL = Limits(files=20, unpacked_bytes=1_000_000)
HOSTILE = {
    "zip slip": (zip_of({"../evil.jpg": b"x"}), "leads out"),
    "zip slip inside": (zip_of({"a/../../evil.jpg": b"x"}), "leads out"),
    "zip slip with backslashes": (zip_named(rb"a\..\..\evil.jpg"), "leads out"),
    "zip absolute": (zip_of({"/evil.jpg": b"x"}), "leads out"),
    "zip drive": (zip_of({"C:evil.jpg": b"x"}), "leads out"),
    "zip share": (zip_named(rb"\\host\share\evil.jpg"), "leads out"),
    "zip NUL": (zip_named(b"a/evil.jpg\x00.txt"), "leads out"),
    "zip symlink": (symlink_in_zip(), "link or device"),
    "zip encrypted": (encrypted_zip(), "encrypted"),
    "zip clash": (zip_of({"a/1.jpg": b"x", "A/1.JPG": b"y"}), "twice"),
    "zip clash by accents": (zip_of({"a/\u00e9.jpg": b"x", "a/e\u0301.jpg": b"y"}), "twice"),
    "zip file as folder": (zip_of({"a": b"x", "a/1.jpg": b"y"}), "file and as a folder"),
    "zip folder as file": (zip_of({"a/1.jpg": b"y", "a": b"x"}), "file and as a folder"),
    "zip bomb by ratio": (_zip_with(zipfile.ZipInfo("a/bomb.jpg"), bytes(900_000)), "unpacks to more"),
    "zip bomb by size": (zip_of({"a/1.jpg": bytes(1_000_001)}), "unpacks to more"),
    "zip bomb by number": (zip_of({f"a/{i}.jpg": b"" for i in range(21)}), "unpacks to more"),
    "zip that lies": (lying_zip(), "damaged|longer"),
    "tar slip": (tar_of("../evil.jpg"), "leads out"),
    "tar absolute": (tar_of("/evil.jpg"), "leads out"),
    "tar symlink": (tar_of(special(tarfile.SYMTYPE, "/etc/passwd")), "link or device"),
    "tar symlink to a folder": (tar_of(special(tarfile.SYMTYPE, "/tmp"), "a/evil.jpg/x"), "link or device"),
    "tar hard link": (tar_of("a/1.jpg", special(tarfile.LNKTYPE, "a/1.jpg")), "link or device"),
    "tar device": (tar_of(special(tarfile.CHRTYPE)), "link or device"),
    "tar fifo": (tar_of(special(tarfile.FIFOTYPE)), "link or device"),
    "tar clash": (tar_of("a/1.jpg", "a/1.jpg"), "twice"),
    "truncated zip": (zip_of({"a/1.jpg": BODY})[:-40], "damaged"),
    "zip with a flipped bit": (zip_of({"a/1.jpg": BODY}).replace(BODY[99:120], b"?" * 21), "damaged"),
    "truncated tar": (tar_of("a/1.jpg", mode="w")[:514], "damaged"),
    "truncated tar.gz": (tar_of("a/1.jpg")[:-12], "damaged|neither"),
    "web page": (b"<!DOCTYPE html><title>Sign in</title>", "neither a zip nor a tar .*DOCTYPE"),
    "nothing": (b"", "neither a zip nor a tar"),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_hostile_archives_leave_nothing_behind(tmp_path: Path, case: str) -> None:
    data, message = HOSTILE[case]
    inner = tmp_path / "x" / "y"
    inner.mkdir(parents=True)
    (inner / "archive").write_bytes(data)
    with pytest.raises(UserError, match=message):
        extract(inner / "archive", inner / "out", limits=SMALL, progress=False)
    assert [p for p in tmp_path.rglob("*") if p.is_file()] == [inner / "archive"]
    assert not (inner / "out").exists() and not Path("/evil.jpg").exists()


def test_a_tar_bomb_is_refused(tmp_path: Path) -> None:
    bomb = tarfile.TarInfo("a/bomb.jpg")
    bomb.size = 900_000
    (tmp_path / "archive").write_bytes(tar_of(bomb))
    with pytest.raises(UserError, match="unpacks to more"):
        extract(tmp_path / "archive", tmp_path / "out", limits=SMALL, progress=False)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("mode", ["w", "w:gz", "w:bz2", "w:xz"])
def test_tars_of_every_compression_are_unpacked_without_special_modes(tmp_path: Path, mode: str) -> None:
    folder = tarfile.TarInfo("a")
    folder.type, folder.mode = tarfile.DIRTYPE, 0o000
    setuid = tarfile.TarInfo("./a/2.jpg")
    setuid.size, setuid.mode, setuid.uid = 3, 0o6777, 0
    (tmp_path / "archive").write_bytes(tar_of(folder, "a/1.jpg", setuid, "a/.DS_Store", mode=mode))
    extract(tmp_path / "archive", tmp_path / "out", progress=False)
    assert sorted(p.name for p in (tmp_path / "out" / "a").iterdir()) == ["1.jpg", "2.jpg"]
    assert (tmp_path / "out" / "a" / "2.jpg").read_bytes() == b"xxx"
    assert not (tmp_path / "out" / "a" / "2.jpg").stat().st_mode & (stat.S_ISUID | stat.S_ISGID | stat.S_IXUSR)


def test_a_zip_with_windows_names_and_folders_is_unpacked(tmp_path: Path) -> None:
    data = zip_named(b"Set\\sea ice\\1.jpg")
    (tmp_path / "archive").write_bytes(data)
    extract(tmp_path / "archive", tmp_path / "out", progress=False)
    assert (tmp_path / "out" / "Set" / "sea ice" / "1.jpg").read_bytes() == b"evil"
    (tmp_path / "archive").write_bytes(zip_of({"a/": b"", "a/\u00e9\u4e2d.jpg": b"1", "a/b/": b""}))
    extract(tmp_path / "archive", tmp_path / "two", progress=False)
    assert sorted(p.name for p in (tmp_path / "two" / "a").iterdir()) == ["b", "\u00e9\u4e2d.jpg"]


def test_an_existing_folder_is_not_overwritten(tmp_path: Path) -> None:
    (tmp_path / "archive").write_bytes(zip_of({"a/1.jpg": b"x"}))
    (tmp_path / "out").mkdir()
    with pytest.raises(UserError, match="exists already"):
        extract(tmp_path / "archive", tmp_path / "out", progress=False)
