"""Split files: the same split through every layout, every bad file named with its line."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Literal

import numpy as np
import pytest

from scenedistill.core.errors import UserError
from scenedistill.data.scenes import SceneIndex
from scenedistill.data.splits.draw import Split, make_split
from scenedistill.data.splits.files import read_split, write_split


def index_of(counts: dict[str, int], root: Path = Path("/data/Toy"), suffix: str = ".jpg") -> SceneIndex:
    classes = tuple(sorted(counts))
    paths = tuple(f"{name}/{name.lower()}_{i}{suffix}" for name in classes for i in range(1, counts[name] + 1))
    return SceneIndex(root, paths, np.repeat(np.arange(len(classes)), [counts[c] for c in classes]), classes)


TOY = index_of({"Airport": 10, "Beach": 15, "RiverLake": 20})


Layout = Literal["csv", "torchgeo", "rsp"]


def same(a: Split, b: Split) -> bool:
    return all(np.array_equal(x, y) for x, y in zip(a.parts().values(), b.parts().values(), strict=True))


@pytest.mark.parametrize("layout", ["csv", "torchgeo", "rsp"])
def test_every_layout_reads_back_the_split_it_wrote(tmp_path: Path, layout: Layout) -> None:
    split = make_split(TOY, 0.3, 4, 0.0 if layout == "rsp" else 0.3)
    written = write_split(split, TOY, tmp_path / "split.csv" if layout == "csv" else tmp_path, layout)
    for where in (tmp_path, *written):  # the folder, or any of its files
        read = read_split(where, TOY)
        assert read.hash == split.hash and same(read, split)
        assert read.train_ratio is None and read.seed is None


def test_the_hash_is_the_same_from_all_layouts(tmp_path: Path) -> None:
    split = make_split(TOY, 0.4, 9)
    hashes = {split.hash}
    for layout in ("csv", "torchgeo", "rsp"):
        folder = tmp_path / layout
        folder.mkdir()
        write_split(split, TOY, folder, layout)
        hashes.add(read_split(folder, TOY).hash)
    assert len(hashes) == 1


def test_file_names_and_lines_follow_the_layout(tmp_path: Path) -> None:
    index = index_of({"A": 2, "B": 2})
    split = make_split(index, 0.5, 0)
    assert write_split(split, index, tmp_path, "csv") == [tmp_path / "split.csv"]
    lines = (tmp_path / "split.csv").read_bytes().decode().split("\n")
    assert lines[0] == "path,label,split" and lines[-1] == "" and lines[1].startswith("A/a_1.jpg,A,")
    names = [p.name for p in write_split(split, index, tmp_path, "torchgeo")]
    assert names == ["toy-train.txt", "toy-test.txt"]
    assert (tmp_path / "toy-train.txt").read_text().splitlines() == [index.paths[i][2:] for i in split.train]
    assert write_split(split, index, tmp_path, "torchgeo", name="resisc45")[0].name == "resisc45-train.txt"
    names = [p.name for p in write_split(split, index, tmp_path, "rsp", run=3)]
    assert names == ["train_labels_55_3.txt", "valid_labels_55_3.txt"]
    first = int(split.train[1])
    expected = f"{index.paths[first][2:]} B 1"
    assert (tmp_path / "train_labels_55_3.txt").read_text().splitlines()[1] == expected


@pytest.mark.parametrize(("ratio", "token"), [(0.2, "28"), (0.1, "19"), (0.8, "82"), (0.25, "25-75")])
def test_the_rsp_file_name_holds_the_ratio(tmp_path: Path, ratio: float, token: str) -> None:
    split = make_split(TOY, ratio, 0)
    assert write_split(split, TOY, tmp_path, "rsp")[0].name == f"train_labels_{token}_0.txt"


def test_a_layout_that_cannot_hold_a_split_is_refused(tmp_path: Path) -> None:
    twins = SceneIndex(Path("/d"), ("A/1.jpg", "A/2.jpg", "B/1.jpg", "B/2.jpg"), np.array([0, 0, 1, 1]), ("A", "B"))
    split = make_split(twins, 0.5, 0)
    for layout in ("torchgeo", "rsp"):
        with pytest.raises(UserError, match=r"called '1\.jpg'.*Use csv"):
            write_split(split, twins, tmp_path, layout)
    write_split(split, twins, tmp_path, "csv")
    assert same(read_split(tmp_path, twins), split)
    with pytest.raises(UserError, match="no place for a validation part"):
        write_split(make_split(TOY, 0.5, 0, 0.2), TOY, tmp_path, "rsp")
    spaced = index_of({"storage tank": 4, "b": 4})
    with pytest.raises(UserError, match="has a space"):
        write_split(make_split(spaced, 0.5, 0), spaced, tmp_path, "rsp")
    with pytest.raises(UserError, match="Unknown split layout"):
        write_split(split, TOY, tmp_path, "xml")  # type: ignore[arg-type]


# reading what others wrote

RSP = index_of({"Airport": 2, "Beach": 2})


def write(folder: Path, **files: str) -> Path:
    for name, text in files.items():
        (folder / f"{name}.txt").write_text(text, encoding="utf-8")
    return folder


def test_a_data_set_may_be_named_like_a_part(tmp_path: Path) -> None:
    split = make_split(TOY, 0.5, 0)
    assert write_split(split, TOY, tmp_path, "torchgeo", name="train")[0].name == "train-train.txt"
    assert read_split(tmp_path, TOY).hash == split.hash


@pytest.mark.parametrize(
    ("train", "valid"),
    [
        ("airport_1.jpg Airport 0\nbeach_1.jpg Beach 1\n", "airport_2.jpg Airport 0\nbeach_2.jpg Beach 1\n"),
        ("Airport/airport_1.jpg 0\r\nBeach/beach_1.jpg 1\r\n", "Airport/airport_2.jpg 0\r\n\r\nBeach/beach_2.jpg 1"),
        # another numbering of the classes, tabs, other spelling of the class, a folder above
        ("airport_1.jpg\tairport\t5\nbeach_1.jpg\tBEACH\t2", "x/Airport/airport_2.jpg 5\nAirport\\airport_2.png 5"),
    ],
)
def test_rsp_lists_are_read_in_every_spelling(tmp_path: Path, train: str, valid: str) -> None:
    if "\\" in valid:
        valid = "x/Airport/airport_2.jpg 5\nBeach\\beach_2.jpg 2"
    write(tmp_path, train_labels_28_0=train, valid_labels_28_0=valid)
    split = read_split(tmp_path, RSP)
    assert split.train.tolist() == [0, 2] and split.val.tolist() == [] and split.test.tolist() == [1, 3]


def test_rsp_lists_may_hold_spaces_and_equal_base_names(tmp_path: Path) -> None:
    paths = ("bare land/im 1.jpg", "bare land/im 2.jpg", "sea ice/im 1.jpg", "sea ice/im 2.jpg")
    index = SceneIndex(Path("/d"), paths, np.array([0, 0, 1, 1]), ("bare land", "sea ice"))
    write(
        tmp_path,
        train="im 1.jpg bare land 0\nim 1.jpg sea ice 1\n",
        valid="im 2.jpg bare land 0\nsea ice/im 2.jpg 1\n",
    )
    assert read_split(tmp_path, index).train.tolist() == [0, 2]


def test_a_list_with_a_misleading_name_is_known_by_its_content(tmp_path: Path) -> None:
    write(tmp_path, train_labels_28_0="airport_1.jpg\nbeach_1.jpg", test_labels_28_0="airport_2.jpg\nbeach_2.jpg")
    assert read_split(tmp_path, RSP).test.tolist() == [1, 3]
    table = "path,label,split\n" + "".join(
        f"{p},{p.split('/')[0]},{'train' if '_1' in p else 'test'}\n" for p in RSP.paths
    )
    odd = tmp_path / "resisc45-train.lst"
    odd.write_text("\ufeff" + table.replace("path,label,split", "Path, Label ,SPLIT"), encoding="utf-8")
    assert read_split(odd, RSP).test.tolist() == [1, 3]


def test_several_runs_in_one_folder_need_a_file_name(tmp_path: Path) -> None:
    for run in (0, 1):
        write_split(make_split(TOY, 0.2, run), TOY, tmp_path, "rsp", run=run)
    with pytest.raises(UserError, match=r"2 splits: train_labels_28_0\.txt, train_labels_28_1\.txt"):
        read_split(tmp_path, TOY)
    assert read_split(tmp_path / "valid_labels_28_1.txt", TOY).hash == make_split(TOY, 0.2, 1).hash


def test_torchgeo_lists_of_jpg_match_a_folder_of_tif(tmp_path: Path) -> None:
    index = index_of({"Airport": 2, "Beach": 2}, suffix=".tif")
    write(tmp_path, **{"eurosat-train": "airport_1.jpg\nbeach_1.jpg\n", "eurosat-test": "airport_2.jpg\nbeach_2.jpg\n"})
    assert read_split(tmp_path, index).train.tolist() == [0, 2]


def test_other_text_files_are_left_alone(tmp_path: Path) -> None:
    write(tmp_path, README="How to use these lists.\n", classes="Airport\nBeach\n", empty="")
    write(tmp_path, train="airport_1.jpg\nbeach_1.jpg", test="airport_2.jpg\nbeach_2.jpg")
    assert read_split(tmp_path, RSP).train.tolist() == [0, 2]


GOOD = {"train": "airport_1.jpg\nbeach_1.jpg\n", "test": "airport_2.jpg\nbeach_2.jpg\n"}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"train": "airport_1.jpg\nbeech_1.jpg\n"}, r"train\.txt:2: no image 'beech_1\.jpg'.*mean 'beach_1\.jpg'"),
        ({"train": "Airport/airport_9.jpg\n"}, r"train\.txt:1: no image .*Did you mean 'Airport/airport_"),
        ({"test": "airport_2.jpg\nbeach_1.jpg\n"}, r"test\.txt:2: .*beach_1\.jpg' is already listed at .*train\.txt:2"),
        ({"train": "airport_1.jpg\n\nairport_1.jpg\n"}, r"train\.txt:3: .*already listed at .*train\.txt:1"),
        ({"train": ""}, r"train\.txt: the file is empty"),
        ({"test": " \n\n"}, r"test\.txt: the file is empty"),
        ({"train": "airport_1.jpg\n"}, r"no training image of class 'Beach'"),
        ({"test": None}, r"train\.txt: found no list of test images"),
        ({"train": "airport_1.jpg 0\nbeach_1.jpg 1\n"}, "lists of different layouts"),
        (
            {"train": "airport_1.jpg Airport 0\nbeach_1.jpg Airport 0\n", "test": "airport_2.jpg Airport 0\n"},
            r"train\.txt:2: label 'Airport' disagrees with the folder; 'Beach/beach_1\.jpg' is of 'Beach'",
        ),
        (
            {"train": "airport_1.jpg 0\nbeach_1.jpg 0\n", "test": "airport_2.jpg 0\n"},
            r"train\.txt:2: .*'Beach' has label 0, but 'Airport' had label 0 at .*train\.txt:1",
        ),
        (
            {"train": "airport_1.jpg 0\nbeach_1.jpg 1\n", "test": "airport_2.jpg 3\n"},
            r"test\.txt:1: .*'Airport' has label 3, but 'Airport' had label 0 at .*train\.txt:1",
        ),
        ({"train": "airport_1.jpg 0\nbeach_1.jpg\n", "test": "airport_2.jpg 0\n"}, r"train\.txt:2: .*as on line 1"),
        (
            {"train": "airport_1.jpg Airport 0\nsea.jpg Beach 1\n", "test": "airport_2.jpg 0"},
            r":2: no image 'sea\.jpg'",
        ),
    ],
)
def test_invalid_lists_are_refused_with_file_and_line(
    tmp_path: Path, changes: dict[str, str | None], message: str
) -> None:
    write(tmp_path, **{name: text for name, text in (GOOD | changes).items() if text is not None})
    with pytest.raises(UserError, match=message):
        read_split(tmp_path / "train.txt", RSP)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ("Airport/airport_1.jpg,Airport,training_set\n", r"split\.csv:2: split is 'training_set'"),
        ("Airport/airport_1.jpg,Beach,train\n", r"split\.csv:2: label 'Beach' disagrees .* is of 'Airport'"),
        ("Airport/airport_1.jpg,Airport,train\nNo/no.jpg,No,test\n", r"split\.csv:3: no image 'No/no\.jpg'"),
        ("Airport/airport_1.jpg,Airport,train\nBeach/beach_1.jpg,Beach,train\n", "no test image at all"),
        ("", "no training image of class 'Airport', 'Beach'"),
    ],
)
def test_an_invalid_csv_is_refused_with_file_and_line(tmp_path: Path, rows: str, message: str) -> None:
    (tmp_path / "split.csv").write_text("path,label,split\n" + rows)
    with pytest.raises(UserError, match=message):
        read_split(tmp_path, RSP)


def test_an_ambiguous_base_name_is_refused(tmp_path: Path) -> None:
    index = SceneIndex(Path("/d"), ("A/1.jpg", "A/2.jpg", "B/1.jpg", "B/2.jpg"), np.array([0, 0, 1, 1]), ("A", "B"))
    write(tmp_path, train="1.jpg\n", test="2.jpg\n")
    with pytest.raises(UserError, match=r"train\.txt:1: '1\.jpg' is ambiguous, it may be 'A/1\.jpg', 'B/1\.jpg'"):
        read_split(tmp_path, index)
    write(tmp_path, train="A/1.jpg\nB/1.jpg", test="/elsewhere/A/2.jpg\n./B/2.jpg")
    assert read_split(tmp_path, index).train.tolist() == [0, 2]


def test_a_path_without_a_split_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="does not exist"):
        read_split(tmp_path / "none.csv", TOY)
    with pytest.raises(UserError, match="holds no split"):
        read_split(tmp_path, TOY)
    (tmp_path / "list.txt").write_text("airport_1.jpg\n")
    with pytest.raises(UserError, match="neither a CSV with the header"):
        read_split(tmp_path / "list.txt", TOY)
    (tmp_path / "test.txt").write_text("airport_1.jpg\n")
    with pytest.raises(UserError, match="no list of training images"):
        read_split(tmp_path / "test.txt", TOY)
    (tmp_path / "train.txt").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UserError, match="cannot be read as UTF-8"):
        read_split(tmp_path / "train.txt", TOY)


def test_images_and_classes_left_out_are_warned_of(tmp_path: Path) -> None:
    write(tmp_path, train="airport_1.jpg\nbeach_1.jpg", test="airport_2.jpg")
    with pytest.warns(UserWarning) as caught:
        split = read_split(tmp_path, RSP)
    messages = sorted(str(w.message).split(": ")[1] for w in caught)
    assert messages == ["1 of 4 images are in no part, first 'Beach/beach_2.jpg'", "no test image of class 'Beach'"]
    assert split.test.tolist() == [1]
    write(tmp_path, **GOOD)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        read_split(tmp_path, RSP)


BLANKS = index_of({" lead": 3, "trail ": 3, "=sum(1)": 3, "back\\slash": 3})


@pytest.mark.parametrize("layout", ["csv", "torchgeo"])
def test_names_come_back_as_they_are_with_blanks_at_their_ends_and_back_slashes(tmp_path: Path, layout: Layout) -> None:
    split = make_split(BLANKS, 0.5, 0)
    write_split(split, BLANKS, tmp_path, layout)
    assert read_split(tmp_path, BLANKS).hash == split.hash


@pytest.mark.parametrize("name", [" lead", "trail ", "two words", "tab\tbed", "new\nline"])
def test_the_rsp_layout_refuses_any_blank(tmp_path: Path, name: str) -> None:
    index = index_of({name: 2, "b": 2})
    with pytest.raises(UserError, match="Use csv"):
        write_split(make_split(index, 0.5, 0), index, tmp_path, "rsp")


def test_a_line_break_in_a_name_goes_into_a_csv_alone(tmp_path: Path) -> None:
    index = index_of({"new\nline": 2, "b": 2})
    split = make_split(index, 0.5, 0)
    write_split(split, index, tmp_path / "a.csv")
    assert read_split(tmp_path / "a.csv", index).hash == split.hash
    with pytest.raises(UserError, match=r"torchgeo layout has no place for the name 'new.nline_1.jpg'"):
        write_split(split, index, tmp_path, "torchgeo")


@pytest.mark.parametrize("separator", [";", "\t", ", "])
def test_a_csv_written_by_a_spreadsheet_is_read(tmp_path: Path, separator: str) -> None:
    split = make_split(TOY, 0.4, 2)
    (written,) = write_split(split, TOY, tmp_path / "a.csv")
    text = written.read_text().replace("/", "\\").replace(",", separator)
    written.write_text(text, encoding="utf-8-sig")
    assert read_split(written, TOY).hash == split.hash


def test_two_files_whose_names_differ_by_normalisation_alone_are_two(tmp_path: Path) -> None:
    paths = ("a/A\u0308.jpg", "a/\xc4.jpg", "b/1.jpg", "b/2.jpg")
    index = SceneIndex(Path("/data/Toy"), paths, np.array([0, 0, 1, 1]), ("a", "b"))
    (tmp_path / "a.csv").write_text(
        "path,label,split\na/A\u0308.jpg,a,train\na/\xc4.jpg,a,test\nb/1.jpg,b,train\nb/2.jpg,b,test\n",
        encoding="utf-8",
    )
    assert read_split(tmp_path / "a.csv", index).train.tolist() == [0, 2]


def test_labels_without_a_letter_are_distinguished(tmp_path: Path) -> None:
    index = index_of({"+": 2, "-": 2})
    (tmp_path / "a.csv").write_text("path,label,split\n+/+_1.jpg,-,train\n", encoding="utf-8")
    with pytest.raises(UserError, match=r"label '-' disagrees with the folder"):
        read_split(tmp_path / "a.csv", index)


def test_the_folders_of_parts_are_the_split(tmp_path: Path) -> None:
    index = SceneIndex(
        tmp_path.resolve(),
        ("test/a/1.jpg", "train/a/1.jpg", "test/b/1.jpg", "train/b/2.jpg"),
        np.array([0, 0, 1, 1]),
        ("a", "b"),
        parts=np.array([2, 0, 2, 0], dtype=np.int8),
    )
    split = read_split(tmp_path, index)
    assert split.train.tolist() == [1, 3] and split.test.tolist() == [0, 2]
    write_split(split, index, tmp_path / "a.csv")
    assert read_split(tmp_path / "a.csv", index).hash == split.hash
