"""Uploads a folder to the Hugging Face Hub in one commit."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from starflow_jax.core.storage.hub_addresses import COMMIT, HubAddress
from starflow_jax.core.storage.hub_client import called, hub_api, hub_library, is_offline
from starflow_jax.core.storage.retries import Retries
from starflow_jax.hub.published_folder import PUBLISHED_FILE

# Files of an earlier publication, which go where the new one has no file of that name.
_OURS = (
    "model*.safetensors", "model.safetensors.index.json", "starflow.json", "model.json", "calibration.json",
    "config.json", "autoencoder*", "text_encoder/*", "flow/*", "checkpoints/*", "inverse/*", "origin.json",
)  # fmt: skip
_OF_A_NEW_ONE = (".gitattributes", ".gitignore", "README.md", "LICENSE")  # which the page of the Hub makes
_PARAMETERS = re.compile(r"(flow/)?checkpoints/\d+/params/.+")  # of a run, or of a model folder


def check_login(to: HubAddress) -> None:
    """Raises ValueError where nothing can be uploaded: the package or the login is missing, or calls are forbidden."""
    library = hub_library()
    if is_offline():
        raise ValueError(f"{to} cannot be written while HF_HUB_OFFLINE is set")
    if not library.get_token():
        raise ValueError(f"{to} is written with a login: hf auth login, or the variable HF_TOKEN")


def check_repository(to: HubAddress, *, private: bool, revision: str | None) -> None:
    """Checks that an upload replaces nothing but an earlier publication, and shows nothing that is to be private.

    Args:
      private, revision: see `upload`.

    Raises:
      ValueError: the repository is public and `private` is asked for, or it holds files of somebody else, or the Hub
        refuses. StoreError: the Hub is not reached.
    """
    now = _information(to, None)
    if now is None:
        return
    if private and not now.private:
        raise ValueError(
            f"{to} is a public repository: private makes new ones only, and its page on the Hub has the switch"
        )
    branch = now if revision is None else _information(to, revision) or now
    names = {str(sibling.rfilename) for sibling in branch.siblings or ()}
    if names - set(_OF_A_NEW_ONE) and PUBLISHED_FILE not in names and not any(map(_PARAMETERS.fullmatch, names)):
        raise ValueError(
            f"{to} must be new or empty or hold an earlier publication, and it holds other files, such as "
            f"{min(names - set(_OF_A_NEW_ONE))[:100]!r}"
        )


def _information(to: HubAddress, revision: str | None) -> Any:
    """What the Hub knows of a repository at a branch; None where there is no such repository or branch."""
    errors = hub_library().errors

    def asked() -> Any:
        try:
            return hub_api().model_info(to.repo, revision=revision)
        except errors.GatedRepoError:
            raise
        except (errors.RepositoryNotFoundError, errors.RevisionNotFoundError):
            return None

    return called(to, asked)


def upload(folder: Path, to: HubAddress, *, private: bool, revision: str | None, message: str) -> HubAddress:
    """Makes the repository if there is none, and replaces what an earlier publication wrote, in one commit.

    Args:
      folder: every file of it is uploaded.
      private: whether a new repository is private, see `check_repository`.
      revision: the branch, made if there is none; None for "main".

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
