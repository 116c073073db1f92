"""Folders as users have them: unpacked archives, litter, accents, mistakes."""

from __future__ import annotations

import unicodedata
from pathlib import Path
from typing import Literal

import numpy as np
import pytest

from scenedistill.core.errors import UserError
from scenedistill.data.scenes import scan
from scenedistill.data.walk import walk_images


def fill(root: Path, **classes: int) -> Path:
    for name, count in classes.items():
        (root / name).mkdir(parents=True)
        for number in range(count):
            (root / name / f"{name}_{number}.jpg").write_bytes(b"x")
    return root


def message(source: Path) -> str:
    with pytest.raises(UserError) as caught:
        scan(source)
    assert len(str(caught.value).splitlines()) == 1
    return str(caught.value)


def test_class_folders_give_sorted_classes_and_paths(tmp_path: Path) -> None:
    index = scan(fill(tmp_path, River=2, Beach=3))
    assert index.root == tmp_path and index.root.is_absolute()
    assert index.classes == ("Beach", "River")
    assert index.paths == (
        "Beach/Beach_0.jpg",
        "Beach/Beach_1.jpg",
        "Beach/Beach_2.jpg",
        "River/River_0.jpg",
        "River/River_1.jpg",
    )
    assert index.labels.dtype == np.int64 and index.labels.tolist() == [0, 0, 0, 1, 1]
    assert len(index) == 5 and index.counts() == {"Beach": 3, "River": 2} and index.notes == ()


def test_all_endings_in_any_case_and_odd_names(tmp_path: Path) -> None:
    names = ["a.jpg", "b.JPG", "c.jpeg", "d.PNG", "e.tif", "f.TIFF", "g.webp", "h with space.JpEg", "森.png"]
    for folder in ("dense residential", "лес", "沙漠", "café's"):
        (tmp_path / folder).mkdir()
        for name in names:
            (tmp_path / folder / name).write_bytes(b"x")
    index = scan(tmp_path)
    assert index.classes == ("café's", "dense residential", "лес", "沙漠")
    assert index.paths[:9] == tuple(f"café's/{name}" for name in names)
    assert all((index.root / path).is_file() for path in index.paths)


def test_the_order_of_classes_does_not_depend_on_how_the_file_system_spells_accents(tmp_path: Path) -> None:
    for form in ("NFC", "NFD"):
        for name in ("Zoo", "École", "Etang", "Ezra"):
            (tmp_path / form / unicodedata.normalize(form, name)).mkdir(parents=True)
            (tmp_path / form / unicodedata.normalize(form, name) / "a.jpg").write_bytes(b"x")
    composed, decomposed = scan(tmp_path / "NFC").classes, scan(tmp_path / "NFD").classes
    assert composed != decomposed  # names stay as they are spelt
    assert composed == tuple(unicodedata.normalize("NFC", name) for name in decomposed)


def test_litter_is_ignored_and_other_files_are_counted(tmp_path: Path) -> None:
    fill(tmp_path, a=1, b=1)
    for litter in (".DS_Store", "Thumbs.db", "a/.DS_Store", "a/._a_0.jpg", "a/Thumbs.db", "b/desktop.ini"):
        (tmp_path / litter).write_bytes(b"x")
    fill(tmp_path / "__MACOSX", a=2)
    fill(tmp_path / ".git", hooks=1)
    index = scan(tmp_path)
    assert index.classes == ("a", "b") and len(index) == 2 and index.notes == ()
    for other in ("readme.txt", "a/labels.xml", "b/more.txt", "b/LICENSE"):
        (tmp_path / other).write_bytes(b"x")
    assert scan(tmp_path).notes == ("Ignored 4 files of other kinds (.txt: 2, .xml: 1, no ending: 1).",)


def test_a_preview_beside_the_classes_and_folders_inside_them_are_reported(tmp_path: Path) -> None:
    fill(tmp_path, a=1, b=1)
    (tmp_path / "preview.png").write_bytes(b"x")
    fill(tmp_path / "a", thumbnails=1)
    index = scan(tmp_path)
    assert len(index) == 2
    assert index.notes == (
        "Ignored 1 image beside the class folders.",
        "Ignored the folders inside a: only images directly in a class folder count.",
    )


@pytest.mark.parametrize("nesting", ["Images", "UCMerced_LandUse/Images"])
def test_the_nesting_of_an_unpacked_archive_is_descended(tmp_path: Path, nesting: str) -> None:
    fill(tmp_path / nesting, a=2, b=1)
    (tmp_path / "readme.txt").write_bytes(b"x")
    (tmp_path / "__MACOSX").mkdir()
    index = scan(tmp_path)
    assert index.root == tmp_path / nesting and index.paths == ("a/a_0.jpg", "a/a_1.jpg", "b/b_0.jpg")
    assert f"The class folders were found in {nesting}." in index.notes


def test_a_link_to_the_data_set_leads_to_one_root(tmp_path: Path) -> None:
    fill(tmp_path / "real", a=1, b=1)
    (tmp_path / "link").symlink_to(tmp_path / "real")
    assert scan(tmp_path / "link").root == tmp_path / "real"


def test_a_link_to_itself_is_no_folder(tmp_path: Path) -> None:
    fill(tmp_path, a=1, b=1)
    for place in (tmp_path / "loop", tmp_path / "a" / "loop"):
        place.symlink_to("loop")
    index = scan(tmp_path)
    assert index.classes == ("a", "b") and [*walk_images(tmp_path)] == [tmp_path / path for path in index.paths]


def test_a_subset_is_taken_by_mask_or_positions(tmp_path: Path) -> None:
    index = scan(fill(tmp_path, a=2, b=2))
    by_mask = index.subset(np.array([False, True, False, True]))
    assert by_mask.paths == ("a/a_1.jpg", "b/b_1.jpg") and by_mask.labels.tolist() == [0, 1]
    by_position = index.subset(np.array([3, 2]))
    assert by_position.paths == ("b/b_1.jpg", "b/b_0.jpg") and by_position.classes == index.classes
    assert by_position.counts() == {"a": 0, "b": 2}
    assert len(index.subset(np.array([], dtype=np.int64))) == 0
    with pytest.raises(IndexError):
        index.subset(np.array([True]))


def test_a_missing_folder_gets_a_suggestion(tmp_path: Path) -> None:
    fill(tmp_path / "UCMerced_LandUse", a=1, b=1)
    assert message(tmp_path / "UCmerced_Landuse") == (
        f"{tmp_path}/UCmerced_Landuse does not exist. Did you mean {tmp_path}/UCMerced_LandUse?"
    )
    assert "Did you mean" not in message(tmp_path / "zzz")
    assert message(tmp_path / "no" / "such" / "AID").endswith(f"The path exists only as far as {tmp_path}.")


def test_a_file_instead_of_a_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "AID.zip").write_bytes(b"x")
    assert "AID.zip is a file; expected a folder" in message(tmp_path / "AID.zip")


def test_folders_that_are_no_data_set_are_refused(tmp_path: Path) -> None:
    assert "has no class folders: it holds no folders and no images" in message(tmp_path)
    (tmp_path / "one.jpg").write_bytes(b"x")
    (tmp_path / "two.jpg").write_bytes(b"x")
    assert "has no class folders: its 2 images lie loose" in message(tmp_path)
    fill(tmp_path, forest=3)
    assert message(tmp_path) == f"{tmp_path} has only one class (forest); a classifier needs at least two."


def test_empty_class_folders_are_named(tmp_path: Path) -> None:
    fill(tmp_path, a=1, b=0, c=2, d=0)
    (tmp_path / "d" / "notes.txt").write_bytes(b"x")
    found = message(tmp_path)
    assert found.startswith(f"2 class folders in {tmp_path} without any image")
    assert found.endswith(": b, d. Fill or remove them.")
    fill(tmp_path, **{f"e{n}": 0 for n in range(9)})
    assert "b, d, e0, e1, e2 and 6 more" in message(tmp_path)


def test_folders_of_parts_are_one_data_set_that_is_split_already(tmp_path: Path) -> None:
    fill(tmp_path / "Set" / "train", a=2, b=1)
    fill(tmp_path / "Set" / "Validation", a=1, b=1)
    fill(tmp_path / "Set" / "test", b=2)
    fill(tmp_path / "Set" / "test", **{"c-a": 1}).joinpath("c-a").rename(tmp_path / "Set" / "test" / "a")
    index = scan(tmp_path)
    assert index.classes == ("a", "b") and index.counts() == {"a": 4, "b": 4}
    assert index.paths[:4] == ("Validation/a/a_0.jpg", "test/a/c-a_0.jpg", "train/a/a_0.jpg", "train/a/a_1.jpg")
    assert index.parts is not None and index.parts.tolist() == [1, 2, 0, 0, 1, 2, 2, 0]
    assert index.notes[0] == "They were found in Set."
    assert index.notes[1].startswith("The folders are a split: 3 in train, 2 in Validation, 3 in test. ")
    assert index.subset(np.array([1, 2])).parts.tolist() == [2, 0]  # type: ignore[union-attr]


def test_folders_beside_those_of_the_parts_are_ignored_and_named(tmp_path: Path) -> None:
    for name in ("train", "test", "masks", "more"):
        fill(tmp_path / name, a=1, b=1)
    index = scan(tmp_path)
    assert len(index) == 4 and "Ignored masks, more beside them." in index.notes
    fill(tmp_path / "training", a=1, b=1)
    assert "the class folders lie one level deeper" in message(tmp_path)


def test_without_test_images_the_validation_folder_is_the_test_part(tmp_path: Path) -> None:
    fill(tmp_path / "train", a=1, b=1)
    fill(tmp_path / "val", a=1, b=1)
    index = scan(tmp_path)
    assert index.parts is not None and index.parts.tolist() == [0, 2, 0, 2]
    assert "val is the test part" in index.notes[0]


def test_a_class_is_one_whatever_the_normalisation_of_its_folder_in_each_part(tmp_path: Path) -> None:
    forms: dict[str, Literal["NFC", "NFD"]] = {"train": "NFC", "test": "NFD"}
    for part, form in forms.items():
        fill(tmp_path / part, **{unicodedata.normalize(form, "Äcker"): 1, "b": 1})
    assert [*scan(tmp_path).counts().values()] == [2, 2]


def test_parts_inside_the_class_folders_are_refused_with_the_expected_nesting(tmp_path: Path) -> None:
    for name in ("a", "b"):
        fill(tmp_path / name, train=1, test=1)
    assert f"Expected them the other way round ({tmp_path / 'train' / 'a'})" in message(tmp_path)


def test_class_folders_one_level_deeper_are_reported(tmp_path: Path) -> None:
    fill(tmp_path / "rgb", a=1, b=1)
    fill(tmp_path / "infrared", a=1, b=1)
    assert "the class folders lie one level deeper" in message(tmp_path)


def test_classes_called_train_and_test_are_classes(tmp_path: Path) -> None:
    assert scan(fill(tmp_path, train=1, test=1)).parts is None


def test_classes_that_differ_only_by_normalisation_are_refused(tmp_path: Path) -> None:
    for form in ("NFC", "NFD"):
        (tmp_path / unicodedata.normalize(form, "Forêt")).mkdir()
        (tmp_path / unicodedata.normalize(form, "Forêt") / "a.jpg").write_bytes(b"x")
    if len(list(tmp_path.iterdir())) == 1:
        pytest.skip("this file system does not tell the two names apart")
    assert r"'Fore\u0302t', 'For\xeat'" in message(tmp_path)


def manifest(tmp_path: Path, text: str, encoding: str = "utf-8") -> Path:
    fill(tmp_path / "data", a=2, b=2)
    (tmp_path / "list.csv").write_bytes(text.encode(encoding))
    return tmp_path / "list.csv"


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
@pytest.mark.parametrize("newline", ["\n", "\r\n"])
def test_a_manifest_gives_paths_and_classes(tmp_path: Path, encoding: str, newline: str) -> None:
    rows = ["path, label,split", "data/b/b_0.jpg,wasser,x", "data/a/a_1.jpg,büro,y", "./data/a/a_0.jpg, wasser,z"]
    index = scan(manifest(tmp_path, newline.join(rows), encoding))
    assert index.root == tmp_path and index.classes == ("büro", "wasser")
    assert index.paths == ("data/a/a_1.jpg", "data/a/a_0.jpg", "data/b/b_0.jpg")
    assert index.labels.tolist() == [0, 1, 1]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("file,class\nx,y\n", "has the columns file, class; expected path,label"),
        ("", "has the columns (none); expected path,label"),
        ("path,label\n", "lists no image"),
        ("path,label\ndata/a/a_0.jpg,a\ndata/b/b_0.jpg,\n", "line 3: the label is empty"),
        ("path,label\n,a\n", "line 2: the path is empty"),
        ("path,label\ndata/a/a_0.jpg\n", "line 2: the label is empty"),
        ("path,label\ndata/a/a_0.jpg,a\n./data/a/a_0.jpg,b\n", "line 3: data/a/a_0.jpg is listed a second time"),
        ("path,label\n/data/a/a_0.jpg,a\n", "line 2: /data/a/a_0.jpg is an absolute path"),
        ("path,label\ndata/a/a_0.jpg,a\ndata/a/zz.jpg,b\n", "names 1 missing file: data/a/zz.jpg"),
        ("path,label\ndata/a/a_0.jpg,a\ndata/a/a_1.jpg,a\n", "has only one class (a)"),
    ],
)
def test_a_manifest_with_a_mistake_is_refused_with_its_line(tmp_path: Path, text: str, expected: str) -> None:
    assert expected in message(manifest(tmp_path, text))


@pytest.mark.parametrize(
    "text", ["path;label\n{};a\n{};b\n", "path\tlabel\n{}\ta\n{}\tb\n", "Path, Label\n{}, a\n{}, b\n"]
)
def test_a_manifest_written_by_a_spreadsheet_is_read(tmp_path: Path, text: str) -> None:
    index = scan(manifest(tmp_path, text.format("data/a/a_0.jpg", r"data\b\b_0.jpg")))
    assert index.paths == ("data/a/a_0.jpg", "data/b/b_0.jpg") and index.classes == ("a", "b")


@pytest.mark.parametrize(
    "path", ["../outside.jpg", "data/../../outside.jpg", r"..\outside.jpg", r"data\..\..\outside.jpg"]
)
def test_a_manifest_reaches_no_file_outside_its_folder(tmp_path: Path, path: str) -> None:
    (tmp_path / "outside.jpg").write_bytes(b"secret")
    inner = tmp_path / "inner"
    inner.mkdir()
    found = message(manifest(inner, f"path,label\n{path},a\ndata/b/b_0.jpg,b\n"))
    assert "line 2" in found and "leaves the folder of the CSV. Put the CSV into a folder above the images" in found


@pytest.mark.parametrize("path", [r"C:\data\a.jpg", r"C:a.jpg", r"\\server\share\a.jpg"])
def test_an_absolute_windows_path_is_refused(tmp_path: Path, path: str) -> None:
    assert "is an absolute path" in message(manifest(tmp_path, f"path,label\n{path},a\n"))


def test_a_path_of_a_manifest_is_taken_as_it_is_written(tmp_path: Path) -> None:
    fill(tmp_path / "data", **{" lead": 1})
    index = scan(manifest(tmp_path, "path,label\ndata/ lead/ lead_0.jpg,a\n data/b/b_0.jpg ,b\n"))
    assert index.paths == ("data/ lead/ lead_0.jpg", "data/b/b_0.jpg")


def test_a_binary_manifest_is_refused(tmp_path: Path) -> None:
    (tmp_path / "list.csv").write_bytes(b"path,label\n\xff\xfe,a\n")
    found = message(tmp_path / "list.csv")
    assert "cannot be read as a UTF-8 CSV file" in found and found.endswith(
        "Save it as UTF-8 (in a spreadsheet: CSV UTF-8)."
    )
