"""Unpack archives that may be malicious."""

# not left to the standard library: tarfile's filters allow links, zipfile renames names that lead out of the folder
# instead of refusing them, and neither detects decompression bombs or clashing names

from __future__ import annotations

import lzma
import shutil
import stat
import tarfile
import unicodedata
import zipfile
import zlib
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import IO

from rich.progress import Progress

from scenedistill.core.errors import UserError
from scenedistill.data.known.transfer import CHUNK, Limits, byte_progress

_DAMAGED = (zipfile.BadZipFile, tarfile.TarError, zlib.error, lzma.LZMAError, EOFError, NotImplementedError)


def extract(archive: Path, target: Path, *, limits: Limits | None = None, progress: bool = True) -> None:
    """Unpack a zip or tar file (any compression) to the new folder `target`, all or nothing.

    Only plain files and folders with relative names are accepted; anything else is refused, and nothing of such an
    archive is kept. Permissions and owners are not taken over; macOS's `__MACOSX` is left out.

    Raises:
        UserError: no archive, damaged, encrypted, over the limits, or malicious (absolute names, `..`, links,
            devices, names that clash), or `target` exists.
    """
    limits = limits or Limits()
    if target.exists():
        raise UserError(f"{target} exists already; move it away or choose another folder.")
    temporary = target.parent / f".unpacking-{target.name}"
    try:
        if temporary.exists():
            shutil.rmtree(temporary)  # left by an interrupted run
        temporary.mkdir(parents=True)
        with byte_progress("unpacking", progress) as bar:
            _unpack(archive, temporary, limits, bar)
        temporary.rename(target)
    except _DAMAGED as error:
        raise UserError(f"{archive} is damaged ({error}); remove it and download it again.") from error
    except OSError as error:
        raise UserError(f"Cannot unpack {archive} to {target}: {error}.") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _unpack(archive: Path, folder: Path, limits: Limits, bar: Progress) -> None:
    packed = archive.stat().st_size
    task = bar.add_task("", total=None)
    names = _Names()
    count = total = 0
    for name, size, is_folder, open_member in _members(archive):
        path = names.accept(name, is_folder)
        count, total = count + 1, total + size
        if count > limits.files or total > limits.unpacked_bytes or total > limits.ratio * packed:
            raise UserError(
                f"{archive} unpacks to more than {limits.files:,} files, {limits.unpacked_bytes:,} bytes or "
                f"{limits.ratio:g} times its size; refused, as it may be made to fill the disk."
            )
        if path is None:
            continue
        place = folder / path
        if is_folder:
            place.mkdir(parents=True, exist_ok=True)
            continue
        place.parent.mkdir(parents=True, exist_ok=True)
        with open_member() as source, place.open("xb") as file:
            written = 0
            while chunk := source.read(CHUNK):
                written += len(chunk)
                if written > size:
                    raise UserError(f"{archive}: {name!r} is longer than the archive says; refused.")
                file.write(chunk)
        bar.update(task, completed=total)


def _members(archive: Path) -> Iterator[tuple[str, int, bool, Callable[[], IO[bytes]]]]:
    """Yield (name, bytes, is a folder, open) of each member; anything but files and folders is refused."""
    with archive.open("rb") as file:
        start = file.read(32)
    if start.startswith(b"PK"):
        with zipfile.ZipFile(archive) as zipped:
            for info in zipped.infolist():
                if info.flag_bits & 1:
                    raise UserError(f"{archive}: {info.filename!r} is encrypted; unpack it by hand.")
                kind = stat.S_IFMT(info.external_attr >> 16)
                if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
                    raise UserError(f"{archive}: {info.filename!r} is a link or device; refused as unsafe.")
                # zipfile cuts a name at NUL, so look at what was really written
                yield info.orig_filename, info.file_size, info.is_dir(), partial(zipped.open, info)
    elif tarfile.is_tarfile(archive):
        with tarfile.open(archive) as tar:
            for member in tar:
                if not (member.isreg() or member.isdir()):
                    raise UserError(f"{archive}: {member.name!r} is a link or device; refused as unsafe.")
                yield member.name, member.size, member.isdir(), partial(_open_tar, tar, member)
            if tar.fileobj is not None:
                tar.fileobj.read(1 << 20)  # the end of the stream, where compressors keep their own checksum
    else:
        raise UserError(
            f"{archive} is neither a zip nor a tar file; it begins with {start!r}. If that looks like a web page, the "
            "address leads to a page and not to the file."
        )


def _open_tar(tar: tarfile.TarFile, member: tarfile.TarInfo) -> IO[bytes]:
    file = tar.extractfile(member)
    assert file is not None  # a plain file always opens
    return file


class _Names:
    """Checks the names of an archive's members: each must be safe, and clash with no other on any file system."""

    def __init__(self) -> None:
        self.files: set[str] = set()
        self.folders: set[str] = set()

    def accept(self, name: str, is_folder: bool) -> PurePosixPath | None:
        """Return the relative path to write to; None for a member that is skipped."""
        path = PurePosixPath(name.replace("\\", "/"))
        odd = any(ord(letter) < 32 for letter in name)
        if odd or ".." in path.parts or PureWindowsPath(name).anchor or not (path.parts or is_folder):
            raise UserError(
                f"The archive holds a file named {name!r}, which leads out of its folder; refused as unsafe."
            )
        if "__MACOSX" in path.parts or path.name == ".DS_Store":
            return None
        key = PurePosixPath(unicodedata.normalize("NFC", str(path)).casefold())
        above = {str(parent) for parent in key.parents}
        clash = str(key) in self.files or above & self.files or (not is_folder and str(key) in self.folders)
        if clash:
            raise UserError(f"The archive holds {name!r} twice, or as a file and as a folder; refused.")
        self.folders |= above
        (self.folders if is_folder else self.files).add(str(key))
        return path
