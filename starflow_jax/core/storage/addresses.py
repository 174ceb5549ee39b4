"""Addresses of object stores, `gs://bucket/key`: what is one, its parts, and its text, which is never changed.

`pathlib` would turn `gs://b/x` into the local path `gs:/b/x`, so that an address is never made a `Path`.
"""

from __future__ import annotations

import dataclasses
import os
import re

# Two letters at least: C:/x is a drive of Windows. `gs:/b` is an address that lost a slash.
_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+):/(/?)")


def is_address(text: object) -> bool:
    """Whether a text or a path is an address: a scheme of at least two letters, a colon and a slash."""
    return isinstance(text, str | os.PathLike) and _SCHEME.match(os.fspath(text)) is not None


def address_text(text: object) -> str:
    """The text of an address with both of its slashes, which a `Path` would have lost one of."""
    return _SCHEME.sub(r"\1://", str(text), count=1)


def parts_of_scale(text: str) -> tuple[str, str]:
    """An address without the temporal scale of an autoencoder at its end, and that end (":0.6"); "" without one."""
    scaled = re.fullmatch(r"(.+[^/])(:\d*\.?\d+)", text)
    return (text, "") if scaled is None else (scaled[1], scaled[2])


def refuse_address(name: str, value: object, why: str = "") -> None:
    """Raises ValueError, naming the field, where a value is an address and only a path is allowed."""
    if is_address(value):
        reason = f": {why}" if why else ""
        raise ValueError(f"{name} must be a path of a file system, got the address {address_text(value)!r}{reason}")


@dataclasses.dataclass(frozen=True)
class Address:
    """An object or a folder in a store.

    Attributes:
      scheme: such as "gs"; bucket: the first part; key: the rest without slashes at its ends, "" for the whole bucket.
    """

    scheme: str
    bucket: str
    key: str = ""

    @classmethod
    def parse(cls, text: str) -> Address:
        """Parses SCHEME://BUCKET/KEY.

        Raises:
          ValueError: the text is not such an address, or contains what could be a secret.
        """
        match = _SCHEME.match(text)
        allowed = "an address SCHEME://BUCKET/KEY, such as gs://bucket/runs/a"
        if match is None or not match[2]:
            raise ValueError(f"must be {allowed}, got {text!r}")
        bucket, _, key = text[match.end() :].partition("/")
        if "@" in bucket or "?" in text:
            # The text is not repeated: it may contain a password or a signature.
            raise ValueError(f"must be {allowed}, without a user, a password or a query: credentials are read from the "
                             "store's own environment variables and files")  # fmt: skip
        parts = [part for part in key.split("/") if part]
        if not bucket or any(part in (".", "..") for part in parts) or not text.isprintable() or "\\" in text:
            raise ValueError(f"must be {allowed}, without '.', '..' and unprintable characters, got {text!r}")
        return cls(match[1].lower(), bucket, "/".join(parts))

    def __str__(self) -> str:
        return f"{self.scheme}://{self.bucket}/{self.key}" if self.key else f"{self.scheme}://{self.bucket}"

    def __truediv__(self, name: str) -> Address:
        return dataclasses.replace(self, key="/".join(part for part in (self.key, name.strip("/")) if part))

    @property
    def name(self) -> str:
        """The last part."""
        return self.key.rpartition("/")[2] or self.bucket

    @property
    def parent(self) -> Address:
        """The folder that contains it; the bucket is its own parent."""
        return dataclasses.replace(self, key=self.key.rpartition("/")[0])
