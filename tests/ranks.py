"""Processes for the tests of collectives: started once, joined to a fresh gloo group for every job.

Whatever a job does, a test ends: collectives give up after SECONDS, and processes that say nothing are killed after
twice as long.
"""

from __future__ import annotations

import multiprocessing as mp
import os
import pickle
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

SECONDS = 20


class Ranks:
    """Runs functions on every rank of a group: ``ranks(2, job, 1.0)`` returns ``[job(1.0), job(1.0)]``, by rank."""

    def __init__(self, folder: Path) -> None:
        self._folder, self._jobs = folder, 0
        self._workers: list[tuple[Any, Connection]] = []
        # One process imports everything, the others are its forks.
        method = "forkserver" if "forkserver" in mp.get_all_start_methods() else "spawn"
        self._context = mp.get_context(method)
        if method == "forkserver":
            self._context.set_forkserver_preload(["mmrobust", "torch._dynamo"])

    def __call__(self, world: int, job: Callable[..., Any], *arguments: Any) -> list[Any]:
        while len(self._workers) < world:
            self._workers.append(self._start())
        self._jobs += 1
        connections = [connection for _, connection in self._workers[:world]]
        for rank, connection in enumerate(connections):
            meeting = str(self._folder / f"job{self._jobs}")
            connection.send_bytes(pickle.dumps((rank, world, meeting, job, arguments)))
        end, answers = time.monotonic() + 2 * SECONDS, []
        for connection in connections:
            try:
                fine = connection.poll(max(end - time.monotonic(), 0.0))
                answers.append(pickle.loads(connection.recv_bytes()) if fine else (False, "no answer"))
            except EOFError:
                answers.append((False, "its process ended"))
        failed = [f"rank {rank}: {answer}" for rank, (fine, answer) in enumerate(answers) if not fine]
        if failed:
            self.close()  # what is left of them may be anything
        assert not failed, "\n".join(failed)
        return [answer for _, answer in answers]

    def _start(self) -> tuple[Any, Connection]:
        here, there = self._context.Pipe()
        process = self._context.Process(target=_serve, args=(there,), daemon=True)
        process.start()
        there.close()
        return process, here

    def close(self) -> None:
        for process, connection in self._workers:
            connection.close()  # ends it, unless it hangs
            process.join(timeout=1.0)
            process.kill()
            process.join()
            process.close()
        self._workers.clear()


def _serve(connection: Connection) -> None:
    torch.set_num_threads(1)
    warnings.simplefilter("error")
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")  # the name of the machine may lead nowhere
    while True:
        try:
            rank, world, meeting, job, arguments = pickle.loads(connection.recv_bytes())
        except EOFError:
            return
        try:
            with _group(rank, world, meeting):
                answer = True, job(*arguments)
        except Exception:
            answer = False, traceback.format_exc()
        connection.send_bytes(pickle.dumps(answer))


@contextmanager
def _group(rank: int, world: int, meeting: str) -> Iterator[None]:
    limit = timedelta(seconds=SECONDS)
    dist.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=world, timeout=limit)
    try:
        yield
    finally:
        dist.destroy_process_group()


def part(x: Any, sizes: tuple[int, ...]) -> Any:
    """Return this rank's rows of a tensor that holds the rows of all ranks."""
    start = sum(sizes[: dist.get_rank()])
    return x[start : start + sizes[dist.get_rank()]]
