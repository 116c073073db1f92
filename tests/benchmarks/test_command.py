"""The command in a record of a benchmark is the one that was given, without private paths."""

from __future__ import annotations

import sys

import pytest

from records.command import this_command


def test_the_command_has_every_option_and_no_folder_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    words = ["/somewhere/benchmarks/steps.py", "results/steps.json", "--pixels", "64", "--data", "/private/AID"]
    monkeypatch.setattr(sys, "argv", words)
    assert this_command() == "python benchmarks/steps.py results/steps.json --pixels 64 --data AID"
