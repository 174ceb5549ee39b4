"""The local folder of this process for a run at an address, beside those of all processes of `jax.distributed`."""

from __future__ import annotations

from pathlib import Path

import jax

from starflow_jax.core.storage.addresses import Address, address_text
from starflow_jax.core.storage.store import open_store
from starflow_jax.core.storage.working_folder import interrupt, tell
from starflow_jax.training.distributed.agreement import gather_texts
from starflow_jax.training.hosts.host_folder import Group, HostFolder


def host_folder(address: Path | str, doing: str) -> HostFolder:
    """The local folder of this process, with sentences on standard error. A collective.

    When the address is taken over by another command, the first process is interrupted as by Ctrl-C.

    Raises:
      ValueError, StoreError: see `HostFolder`.
    """
    group = Group(jax.process_index(), jax.process_count(), gather_texts)
    return HostFolder(open_store(Address.parse(address_text(address))), doing, group, say=tell, lost=interrupt)
