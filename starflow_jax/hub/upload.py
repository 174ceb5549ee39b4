"""Uploads a folder to the Hugging Face Hub in one commit."""

from __future__ import annotations

from pathlib import Path

from starflow_jax.core.storage.hub_addresses import COMMIT, HubAddress
from starflow_jax.core.storage.hub_client import called, hub_api, hub_library, is_offline
from starflow_jax.core.storage.retries import Retries

# Files of an earlier publication, which go where the new one has no file of that name.
_OURS = (
    "model*.safetensors", "model.safetensors.index.json", "starflow.json", "model.json", "calibration.json",
    "autoencoder*", "autoencoder/*", "text_encoder/*", "flow/*", "checkpoints/*", "inverse/*",
)  # fmt: skip


def check_login(to: HubAddress) -> None:
    """Raises ValueError where nothing can be uploaded: the package or the login is missing, or calls are forbidden."""
    library = hub_library()
    if is_offline():
        raise ValueError(f"{to} cannot be written while HF_HUB_OFFLINE is set")
    if not library.get_token():
        raise ValueError(f"{to} is written with a login: hf auth login, or the variable HF_TOKEN")


def upload(folder: Path, to: HubAddress, *, private: bool, revision: str | None, message: str) -> HubAddress:
    """Makes the repository if there is none, and replaces what an earlier publication wrote, in one commit.

    Args:
      folder: every file of it is uploaded.
      private: whether a new repository is private; revision: the branch, made if there is none; None for "main".

    Returns:
      The address with the commit.

    Raises:
      ValueError: the Hub refuses. StoreError: the Hub is not reached, or the connection breaks.
    """
    api, once = hub_api(), Retries(attempts=1)  # the client repeats what may be repeated
    called(to, lambda: api.create_repo(to.repo, private=private, exist_ok=True), once)
    if revision is not None:
        called(to, lambda: api.create_branch(to.repo, branch=revision, exist_ok=True), once)
    commit = called(
        to,
        lambda: api.upload_folder(
            repo_id=to.repo,
            folder_path=folder,
            revision=revision,
            commit_message=message,
            delete_patterns=list(_OURS),
        ),
        once,
    )
    if not COMMIT.fullmatch(str(commit.oid)):
        raise ValueError(f"{to} was written, and the Hub named no commit")
    return to.pinned(str(commit.oid))
