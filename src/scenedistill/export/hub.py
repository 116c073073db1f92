"""Put exported files into a repository on the Hugging Face hub."""

from __future__ import annotations

import re
from pathlib import Path

from scenedistill.core.errors import UserError
from scenedistill.inference.exported import CARD, README, RECORD
from scenedistill.runs.find import EXPORTED

BESIDE = (README, CARD, RECORD)


def check_name(name: str) -> None:
    """Look at the name before the work and not after.

    Raises:
        UserError: not of the form USER/NAME.
    """
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", name):
        raise UserError(f"--push_to is {name!r}; expected USER/NAME, such as anna/table1-aid.")


def push(folder: Path, name: str, *, endpoint: str | None = None) -> str:
    """Upload an export and give its address. A new repository is private until you open it; who you are the hub learns
    from `hf auth login` or from HF_TOKEN.

    Networks that an earlier export has left in the repository, and this one has not, are deleted in the same commit.

    Args:
        folder: of `export`; nothing but its files is sent.
        name: `USER/NAME` of the repository, made when it is not there.
        endpoint: address of the hub, where it is another.

    Raises:
        UserError: the hub cannot be reached, or refuses.
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
    except Exception as problem:  # of the hub's client, and of whatever library it speaks through
        reason = (str(problem).splitlines() or [type(problem).__name__])[0][:200]
        raise UserError(
            f"{name} could not be written to the hub: {reason}. The files are in {folder}; "
            "log in with `hf auth login`, or upload them by hand."
        ) from problem
    return str(address)
