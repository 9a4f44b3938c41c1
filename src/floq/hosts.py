"""Runs divided over several hosts, which find one another through `jax.distributed`.

Runs do not depend on one another, so each host trains its share as a fleet of its own. Once they have agreed on who
does what, and the first has made the data that all read, the hosts part: one that is lost later takes nothing but its
own runs with it.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import jax
from jax.experimental import multihost_utils
from jax.extend.backend import clear_backends

from floq.errors import UserError

T = TypeVar("T")
FORM = "auto on a cluster that JAX knows (Slurm, MPI, Kubernetes), or ADDRESS:PORT/HOSTS/NUMBER"


@dataclass(frozen=True)
class Hosts:
    """This process among several; by default the only one."""

    index: int = 0
    count: int = 1

    def share(self, items: Sequence[T]) -> list[T]:
        """This host's part of a list: neighbours stay together, since they are likely to share data and program."""
        start, end = (len(items) * number // self.count for number in (self.index, self.index + 1))
        return list(items[start:end])


def meet(where: str, first_does: Callable[[], object] = lambda: None) -> Hosts:
    """Meet the other processes, wait until the first has done something, and part. JAX begins anew after it.

    Args:
        where: "auto", or "ADDRESS:PORT/HOSTS/NUMBER" with the address of host number 0.
        first_does: called on host 0, while the others wait. It should leave no arrays behind.

    Raises:
        UserError: `where` has neither form, there is no such cluster, or the others do not come.
    """
    found = re.fullmatch(r"([^/]+:\d+)/(\d+)/(\d+)", where)
    if where != "auto" and (found is None or int(found[3]) >= int(found[2])):
        raise UserError(f"--distributed={where}: give {FORM}, NUMBER from 0 to HOSTS - 1")
    try:
        if found is None:
            jax.distributed.initialize()
        else:
            jax.distributed.initialize(found[1], int(found[2]), int(found[3]))
        hosts = Hosts(jax.process_index(), jax.process_count())
    except (ValueError, RuntimeError) as error:
        first = str(error).strip().splitlines()[0]
        raise UserError(f"--distributed={where}: the hosts did not meet ({first}); give {FORM}") from error
    try:
        if hosts.index == 0:
            first_does()
    finally:
        multihost_utils.sync_global_devices("the first host is done")
        jax.distributed.shutdown()
        clear_backends()  # they know of the other hosts; those of training should not
    return hosts


ALONE = Hosts()
