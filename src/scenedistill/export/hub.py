"""Upload exported files to a repository on the Hugging Face hub."""

from __future__ import annotations

import re
from pathlib import Path

from scenedistill.core.errors import UserError
from scenedistill.inference.exported import CARD, README, RECORD
from scenedistill.runs.find import EXPORTED

BESIDE = (README, CARD, RECORD)


def check_name(name: str) -> None:
    """Check the name of a repository, so that a wrong one is reported before the export.

    Raises:
        UserError: the name is not of the form USER/NAME.
    """
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", name):
        raise UserError(f"--push_to is {name!r}; expected USER/NAME, such as anna/table1-aid.")


def push(folder: Path, name: str, *, endpoint: str | None = None) -> str:
    """Upload an export to the hub. The login is that of `hf auth login` or HF_TOKEN.

    A new repository is private. Networks of an earlier export that are not part of this one are deleted from the
    repository in the same commit.

    Args:
        folder: folder of the export; only exported files in it are uploaded.
        name: `USER/NAME` of the repository, which is created if necessary.
        endpoint: address of another hub.

    Returns:
        The address of the repository.

    Raises:
        UserError: the name is invalid, huggingface_hub is not installed, or the upload fails.
    """
    check_name(name)
    try:
        from huggingface_hub import HfApi
    except ImportError as problem:
        raise UserError("--push_to needs huggingface_hub: `pip install 'scenedistill[use]'` brings it.") from problem
    hub = HfApi(endpoint=endpoint)
    try:
        address = hub.create_repo(name, private=True, exist_ok=True)
        earlier = RECORD in hub.list_repo_files(name)
        hub.upload_folder(
            repo_id=name,
            folder_path=folder,
            allow_patterns=[*EXPORTED, *BESIDE],
            delete_patterns=list(EXPORTED) if earlier else None,
            commit_message="Export of scenedistill",
        )
    except Exception as problem:  # the hub's client and its HTTP library raise many kinds
        reason = (str(problem).splitlines() or [type(problem).__name__])[0][:200]
        raise UserError(
            f"{name} could not be written to the hub: {reason}. The files are in {folder}; "
            "log in with `hf auth login`, or upload them by hand."
        ) from problem
    return str(address)
