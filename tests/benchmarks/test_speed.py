"""The speed benchmark measures the rivals that are named, and tells by its exit status if one is missing."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Mapping
from typing import Any

import pytest

from scenedistill.experiments.bench.speed import SpeedResult


@pytest.mark.parametrize(("words", "count"), [(["--rivals", "timm-tuned", "textbook-default"], 2), ([], 6)])
def test_named_rivals_are_measured_or_all(words: list[str], count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    speed = importlib.import_module("speed")
    asked: list[str] = []

    def bench(_: object, config: Any, *, more: Mapping[str, object], **__: object) -> SpeedResult:
        assert config.pixels == [32]
        asked.extend(more)
        return SpeedResult("speed", "c", "2026-01-01", {}, {}, "AID", "large", 1, 8, "fp32", 1.0, 1.0, ())

    monkeypatch.setattr(speed, "bench", bench)
    monkeypatch.setattr(sys, "argv", ["speed.py", *words, "--pixels", "[32]"])
    with pytest.raises(SystemExit) as ended:
        speed.main()
    assert asked == words[1:] if words else len(asked) == count
    assert ended.value.code == 1, "no loop was measured"
