"""Where the local copies of what lies in stores are, and how they are shown: as the addresses that they stand for."""

from __future__ import annotations

import os
import re
import urllib.parse
from pathlib import Path

from starflow_jax.core.storage.addresses import Address

FOLDER_VARIABLE = "STARFLOW_STORAGE"  # the folder of all copies
LIMIT_VARIABLE = "STARFLOW_STORAGE_LIMIT"  # how many gigabytes copies of what is read may take
COPIES, WORK = "copies", "work"  # folders of what is read, and of what is written
OUTLINES = "outlines"  # of runs whose arrays are not read
HUB = "hub"  # what is kept of models on the Hugging Face Hub, beside the cache of huggingface_hub
_DEFAULT_LIMIT = 100.0
_LONGEST = 200  # characters of a name of a local folder, which file systems bound
_GIGABYTE = 10**9
# The folder of a commit in the cache of huggingface_hub; neither part of the name contains "--".
_SNAPSHOT = re.compile(r"(?:/[^/\s\"':]+)*/models--([\w.-]+?)--([\w.-]+?)/snapshots/([0-9a-f]{40})(?![^/\s\"':,)])")


def storage_folder() -> Path:
    """The folder of all copies: $STARFLOW_STORAGE, or starflow_jax/storage in the user's folder of caches."""
    named = os.environ.get(FOLDER_VARIABLE, "")
    if named:
        return Path(named).absolute()
    caches = Path(os.environ.get("XDG_CACHE_HOME", ""))
    return (caches if caches.is_absolute() else Path.home() / ".cache") / "starflow_jax" / "storage"


def copies_limit() -> int:
    """How many bytes the copies of what is read may take together.

    Raises:
      ValueError: $STARFLOW_STORAGE_LIMIT is not a number above 0.
    """
    text = os.environ.get(LIMIT_VARIABLE, "")
    try:
        gigabytes = float(text) if text else _DEFAULT_LIMIT
    except ValueError:
        gigabytes = -1.0
    if not 0 < gigabytes < 1e9:
        raise ValueError(f"{LIMIT_VARIABLE} must be a number of gigabytes above 0, got {text!r}")
    return int(gigabytes * _GIGABYTE)


def local_place(address: Address, kind: str, rank: int = 0) -> Path:
    """The path of the local copy of an address; `kind` is COPIES, OUTLINES or WORK.

    Several processes of one machine that work at the same address each have a `rank`, and a folder of their own.

    A place of the kind WORK never contains another one, although one address may contain the other: the folder that
    contains the address is a single name, quoted, with "=" at its end, and the last part of the address follows.
    """
    place = storage_folder() / (f"{kind}-{rank}" if rank else kind) / address.scheme
    if kind != WORK:
        return place / address.bucket / address.key if address.key else place / address.bucket
    containing = f"{address.bucket}/{address.key}".rstrip("/").rpartition("/")[0]
    quoted = urllib.parse.quote(containing, safe="")
    pieces = [quoted[start : start + _LONGEST] for start in range(0, len(quoted), _LONGEST)] or [""]
    return place.joinpath(*(f"{piece}+" for piece in pieces[:-1]), f"{pieces[-1]}=", address.name)


def shown(text: object) -> str:
    """A text with the addresses that local copies stand for in place of their paths."""
    root = re.escape(str(storage_folder()))
    text = re.sub(
        rf"{root}/{WORK}(?:-\d+)?/([a-z][a-z0-9+.-]+)/((?:[^/\s=]+\+/)*[^/\s=]*)=/(?=[^/\s])", _containing, str(text)
    )
    text = re.sub(rf"{root}/(?:{COPIES}|{OUTLINES})/([a-z][a-z0-9+.-]+)/(?=[^/\s])", r"\1://", text)
    text = re.sub(rf"{root}/{HUB}/runs/([^/\s]+/[^/\s]+)/([0-9a-f]{{40}})-[0-9a-f]+", r"hf://\1@\2", text)
    text = _SNAPSHOT.sub(r"hf://\1/\2@\3", text)
    # A `Path` of the text of an address has lost a slash.
    return re.sub(r"\b(gs|gcs|s3|s3a|az|abfs|abfss|memory|hf):/(?=[^/\s])", r"\1://", text)


def is_hub_snapshot(path: Path) -> bool:
    """Whether a folder is in that of a commit in the cache of huggingface_hub, whose files are links that it made.

    A repository holds no links of its own: the Hub's client writes the text of one as a file.
    """
    return _SNAPSHOT.match(str(path.absolute())) is not None


def _containing(match: re.Match[str]) -> str:
    """The folder that contains an address, with its last slash, of the folder that contains its local place."""
    containing = urllib.parse.unquote(match[2].replace("+/", ""))
    return f"{match[1]}://{containing}/" if containing else f"{match[1]}://"
