"""Runs divided over several hosts, which find one another through `jax.distributed`.

Runs do not depend on one another, so each host trains its share as a fleet of its own. Once they have agreed on who
does what, and the first has made the data that all read, the hosts part: one that is lost later takes nothing but its
own runs with it.
"""

import re
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import jax
from jax._src.distributed import global_state  # nothing public tells who one is without starting a backend

from floq.utils.errors import UserError

T = TypeVar("T")
FORM = "auto on a cluster that JAX knows (Slurm, MPI, Kubernetes), or ADDRESS:PORT/HOSTS/NUMBER"
FIRST_IS_DONE, ALL_KNOW = "floq/first_is_done", "floq/all_know"
POLL_SECONDS, PART_SECONDS = 5, 300


@dataclass(frozen=True)
class Hosts:
    """This process among several; by default the only one."""

    index: int = 0
    count: int = 1

    def share(self, items: Sequence[T]) -> list[T]:
        """Return this host's part of a list; neighbours, which are likely to share data and program, stay together."""
        start, end = (len(items) * number // self.count for number in (self.index, self.index + 1))
        return list(items[start:end])


def meet(
    where: str, first_does: Callable[[], object] = lambda: None, note: Callable[[str], object] = lambda text: None
) -> Hosts:
    """Meet the other processes, wait until the first has done something, and part. No backend of JAX is started.

    JAX waits five minutes for hosts that do not come, and then aborts the process; nothing can be caught.

    Args:
        where: "auto", or "ADDRESS:PORT/HOSTS/NUMBER" with the address of host number 0.
        first_does: called on host 0, while the others wait for as long as it takes.
        note: called with a line about what is waited for.

    Raises:
        UserError: `where` has neither form, there is no such cluster, or host 0 has failed.
    """
    found = re.fullmatch(r"([^/]+:\d+)/(\d+)/(\d+)", where)
    if where != "auto" and (found is None or int(found[3]) >= int(found[2])):
        raise UserError(f"--distributed={where}: give {FORM}, NUMBER from 0 to HOSTS - 1")
    try:
        if found is None:
            jax.distributed.initialize()
        else:
            note(
                f"host    {int(found[3]) + 1} of {found[2]}: waiting for the others at {found[1]}, five minutes at most"
            )
            jax.distributed.initialize(found[1], int(found[2]), int(found[3]))
    except (ValueError, RuntimeError) as error:
        first = str(error).strip().splitlines()[0]
        raise UserError(f"--distributed={where}: the hosts did not meet ({first}); give {FORM}") from error
    hosts, client = Hosts(global_state.process_id, global_state.num_processes or 1), global_state.client
    assert client is not None
    try:
        if hosts.index == 0:
            _announce(client, first_does)
        else:
            note("host    waiting for the first to bring the data")
            _await_first(client)
    finally:
        client.wait_at_barrier(ALL_KNOW, 1000 * PART_SECONDS)
        jax.distributed.shutdown()
        global_state.process_id, global_state.num_processes = 0, 1  # from here on, JAX is alone
    return hosts


def _announce(client: Any, first_does: Callable[[], object]) -> None:
    """Do what the first host does, and tell the others how it went."""
    try:
        first_does()
    except BaseException as error:
        client.key_value_set(FIRST_IS_DONE, f"failed: {error}")
        raise
    client.key_value_set(FIRST_IS_DONE, "done")


def _await_first(client: Any) -> None:
    while True:
        asked = time.monotonic()
        try:
            answer = client.blocking_key_value_get(FIRST_IS_DONE, 1000 * POLL_SECONDS)
        except Exception:
            if time.monotonic() - asked < POLL_SECONDS / 2:
                raise  # not that it took too long: the first host is gone
            continue
        if answer != "done":
            raise UserError(f"the first host has {answer}")
        return


ALONE = Hosts()
