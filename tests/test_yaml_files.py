"""YAML files: bounded, plain, and compared with what was written."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from scenedistill.core.errors import Damaged, UserError
from scenedistill.core.yaml_files import check_size, read_yaml, write_yaml

LAUGHS = "\n".join(
    [
        "a0: &a0 [x, x, x, x, x, x, x, x, x, x]",
        *(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 12)),
    ]
)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (LAUGHS, "stands for more than 100,000 values"),
        ("a: &a [*a]", "stands for more than 100,000 values"),
        (f"a: {'[' * 3000}", "nested too deeply|is not valid YAML"),
        ("a: !!python/object/apply:os.system [ls]", "is not valid YAML"),
        ("a: 2001-99-99", "is not valid YAML"),
        ("? [1, 2]\n: 3", "is not valid YAML"),
        ("- 1\n- 2", "holds no settings"),
        ("", "holds no settings"),
        ("a: " + "x" * 1_000_001, "settings have 1,000,000 at most"),
        ("a: \x00", "is not valid YAML"),
    ],
    ids=[
        "aliases",
        "itself",
        "nested",
        "a Python tag",
        "no date",
        "a list as a name",
        "a list",
        "empty",
        "long",
        "nul",
    ],
)
def test_files_that_are_no_plain_settings_are_refused_at_once(text: str, reason: str, tmp_path: Path) -> None:
    path = tmp_path / "settings.yaml"
    path.write_text(text, encoding="utf-8")
    started = time.monotonic()
    with pytest.raises(UserError, match=reason) as refused:
        read_yaml(path)
    assert time.monotonic() - started < 20 and "\n" not in str(refused.value)


def test_a_binary_or_missing_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_bytes(b"a: \xff\xfe")
    with pytest.raises(UserError, match="not UTF-8"):
        read_yaml(tmp_path / "a.yaml")
    with pytest.raises(UserError, match="cannot be read"):
        read_yaml(tmp_path / "b.yaml")
    check_size(tmp_path / "a.yaml")  # left to who reads them
    check_size(tmp_path / "b.yaml")


def test_ordinary_yaml_aliases_are_accepted(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("base: &b {lr: 0.1}\nmine: {<<: *b, epochs: 2}\n", encoding="utf-8")
    assert read_yaml(tmp_path / "a.yaml")["mine"] == {"lr": 0.1, "epochs": 2}


def test_a_checksum_detects_changed_values_but_not_formatting(tmp_path: Path) -> None:
    path = tmp_path / "settings.yaml"
    write_yaml(path, "ratio: 0.5\nname: forêt\n")
    assert read_yaml(path, unchanged=True) == {"ratio": 0.5, "name": "forêt"} == read_yaml(path)
    text = path.read_text(encoding="utf-8")
    for changed in (text.replace("0.5", "0.6"), text[:-3]):
        path.write_text(changed, encoding="utf-8")
        with pytest.raises(Damaged, match="damaged or was changed"):
            read_yaml(path, unchanged=True)
    assert read_yaml(path)["ratio"] == 0.5
    path.write_text("ratio: 0.7\n", encoding="utf-8")  # from before there were checksums
    assert read_yaml(path, unchanged=True) == {"ratio": 0.7}
