"""The catalogue's entries are consistent, and a folder is recognised and compared with them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from scenedistill.core.errors import UserError
from scenedistill.data.known.catalogue import CATALOG, check, lookup, normalise, recognise
from scenedistill.data.scenes import SceneIndex


def index_of(counts: dict[str, int]) -> SceneIndex:
    classes = tuple(sorted(counts))
    paths = tuple(f"{name}/{i}.jpg" for name in classes for i in range(counts[name]))
    return SceneIndex(Path("/data"), paths, np.repeat(np.arange(len(classes)), [counts[c] for c in classes]), classes)


@pytest.mark.parametrize(
    ("key", "classes", "images"),
    [
        ("aid", 30, 10_000),
        ("resisc45", 45, 31_500),
        ("ucmerced", 21, 2_100),
        ("rsscn7", 7, 2_800),
        ("eurosat", 10, 27_000),
        ("whu-rs19", 19, 1_005),
        ("siri-whu", 12, 2_400),
        ("patternnet", 38, 30_400),
        ("optimal-31", 31, 1_860),
        ("rsi-cb256", 35, 24_747),
    ],
)
def test_every_entry_has_the_published_classes_and_images(key: str, classes: int, images: int) -> None:
    assert (len(CATALOG[key].classes), CATALOG[key].total) == (classes, images)


def test_every_entry_is_well_formed() -> None:
    for key, info in CATALOG.items():
        assert key == info.key == info.key.lower()
        assert info.doi.startswith("10.") and info.home.startswith("http") and info.licence
        assert all(0 < ratio < 1 for ratio in info.train_ratios)
        assert len({normalise(name) for name in info.counts}) == len(info.counts)
        assert set(info.class_aliases.values()) <= set(info.counts)
        for source in info.sources:
            assert source.url.startswith("https://") and source.folder
            assert source.md5 or source.sha256, "a source without a checksum cannot be trusted"
            assert all(c in "0123456789abcdef" for c in (source.md5 or "") + (source.sha256 or ""))
            assert len(source.md5 or "0" * 32) == 32 and len(source.sha256 or "0" * 64) == 64


@pytest.mark.parametrize("key", CATALOG)
def test_each_set_is_recognised_and_complete(key: str) -> None:
    info = CATALOG[key]
    report = check(index_of(dict(info.counts)))
    assert report.info is info and report.complete
    assert str(report) == f"this is {info.name}, complete: {info.total:,} images, {len(info.classes)} classes"


@pytest.mark.parametrize(
    "respell", [str.upper, lambda n: n.replace("_", " "), lambda n: n.replace("_", "-"), lambda n: n.title()]
)
def test_spelling_does_not_matter(respell) -> None:  # type: ignore[no-untyped-def]
    info = CATALOG["resisc45"]
    assert check(index_of({respell(name): count for name, count in info.counts.items()})).complete


def test_class_names_match_in_camel_case_and_by_alias() -> None:
    assert normalise("BareLand") == normalise("bare_land") == normalise("Bare-land ") == "bareland"
    plain = {"grass": 400, "field": 400, "industry": 400, "river or lake": 400, "forest": 400}
    assert check(index_of(plain | {"resident": 400, "parking": 400})).complete


def test_differences_are_named() -> None:
    counts = dict(CATALOG["aid"].counts)
    del counts["Airport"]
    counts |= {"Beach": 399, "Bridge": 361, "Volcano": 3}
    report = check(index_of(counts))
    assert not report.complete
    assert report.missing_classes == ("Airport",)
    assert report.unknown_classes == ("Volcano",)
    assert report.odd_counts == (("Beach", 399, 400), ("Bridge", 361, 360))
    text = str(report)
    assert "9,643 of 10,000 images, 29 of 30 classes" in text
    assert "Airport" in text and "Volcano" in text and "Beach 399 (expected 400)" in text
    assert len(text.splitlines()) == 4


def test_a_class_folder_split_in_two_spellings_counts_once() -> None:
    counts = dict(CATALOG["siri-whu"].counts)
    counts["idle_land"] = 120
    assert check(index_of(counts | {"Idle Land": 80})).complete


def test_many_differences_are_cut_short() -> None:
    report = check(index_of({name: 1 for name in CATALOG["aid"].counts}))
    assert "and 22 more" in str(report)


def test_own_data_is_not_recognised_as_a_known_set() -> None:
    own = index_of({"beach": 5, "forest": 5, "vineyard": 5, "quarry": 5, "glacier": 5})
    assert recognise(own) is None
    report = check(own)
    assert not report.complete
    assert "no data set of the catalogue (25 images)" in str(report)


def test_a_small_part_of_a_set_is_named_as_nearest() -> None:
    part = index_of({"Airport": 5, "BareLand": 5, "Viaduct": 5, "Center": 5})
    assert recognise(part) is None
    assert "nearest is AID with 4 classes in common" in str(check(part))


def test_a_given_entry_is_used_instead_of_guessing() -> None:
    report = check(index_of(dict(CATALOG["optimal-31"].counts)), CATALOG["resisc45"])
    assert report.info is CATALOG["resisc45"] and len(report.missing_classes) == 14


@pytest.mark.parametrize("name", ["aid", "AID", "NWPU-RESISC45", "nwpu", "UC Merced", "ucm", "whu_rs19", "Optimal31"])
def test_lookup_forgives_spelling(name: str) -> None:
    assert lookup(name).key in CATALOG


def test_lookup_proposes_the_nearest() -> None:
    with pytest.raises(UserError, match="Did you mean 'eurosat'"):
        lookup("eurosta")
    with pytest.raises(UserError, match="Known: aid, resisc45"):
        lookup("zzz")
