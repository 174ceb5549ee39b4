"""Addresses of models on the Hugging Face Hub, `hf://ORG/NAME[@REVISION][/FILE]`: their parts, without a network.

They are read only. Other kinds of repositories, `hf://datasets/...`, are stores as fsspec opens them.
"""

from __future__ import annotations

import dataclasses
import re
import urllib.parse

from starflow_jax.core.storage.addresses import Address, address_text, is_address

SCHEME = "hf"
_OTHER_KINDS = ("datasets", "spaces", "buckets", "kernels")
_ALLOWED = "hf://ORG/NAME, hf://ORG/NAME@REVISION or either with /FILE"
_PART = re.compile(r"[A-Za-z0-9_](?:[A-Za-z0-9._-]*[A-Za-z0-9_])?")
_LONGEST = 96  # characters of ORG/NAME, on the Hub
_REVISION = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._/-]{0,199}")
COMMIT = re.compile(r"[0-9a-f]{40}")


def is_hub_address(value: object) -> bool:
    """Whether a text, a path or an `Address` names a model on the Hub."""
    text = address_text(value)
    scheme, _, rest = text.partition("://")
    return (
        (isinstance(value, Address) or is_address(value))
        and scheme.lower() == SCHEME
        and rest.partition("/")[0] not in _OTHER_KINDS
    )


@dataclasses.dataclass(frozen=True)
class HubAddress:
    """A model on the Hub, or a file or folder of it.

    Attributes:
      repo: ORG/NAME.
      revision: a branch, a tag or a commit; None for the branch "main".
      file: path of a file or folder inside the repository, "" for all of it.
    """

    repo: str
    revision: str | None = None
    file: str = ""

    @classmethod
    def parse(cls, text: str) -> HubAddress:
        """Parses hf://ORG/NAME[@REVISION][/FILE].

        A slash in a revision is written %2F, except in refs/pr/NUMBER.

        Raises:
          ValueError: the text is not such an address.
        """
        address = Address.parse(text)
        name, *inner = address.key.split("/")
        name, at, revision = name.partition("@")
        if revision == "refs" and len(inner) > 1 and inner[0] == "pr":
            revision, inner = "/".join(["refs", *inner[:2]]), inner[2:]
        repo, revision = f"{address.bucket}/{name}", urllib.parse.unquote(revision)
        parts = (address.bucket, name)
        if (
            address.scheme != SCHEME
            or not all(_PART.fullmatch(part) and "--" not in part and ".." not in part for part in parts)
            or len(repo) > _LONGEST
            or name.endswith(".git")
        ):
            raise ValueError(f"must be {_ALLOWED}, with letters, digits, '-', '_' and '.', got {text!r}")
        if at and (not _REVISION.fullmatch(revision) or ".." in revision or "//" in revision):
            raise ValueError(f"must be {_ALLOWED}, with the name of a branch, a tag or a commit, got {text!r}")
        return cls(repo, revision or None, "/".join(inner))

    def pinned(self, commit: str) -> HubAddress:
        """The same address at a commit."""
        return dataclasses.replace(self, revision=commit)

    def __str__(self) -> str:
        revision = self.revision or ""
        if not revision.startswith("refs/pr/"):
            revision = urllib.parse.quote(revision, safe="")
        return f"{SCHEME}://{self.repo}{'@' if revision else ''}{revision}{'/' if self.file else ''}{self.file}"
