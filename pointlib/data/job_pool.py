"""Sharing independent jobs out over processes, for generators of datasets."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from typing import Any, TypeVar

Job = TypeVar("Job")


def run_jobs(do: Callable[[Job], Any], jobs: Sequence[Job], workers: int) -> Iterator[None]:
    """Do all jobs, yielding after each one done.

    Args:
        do: A function of a module's top level: with several workers it runs in spawned processes.
        jobs: What can be pickled.
        workers: Processes.
    """
    workers = min(workers, len(jobs))
    if workers <= 1:
        for job in jobs:
            do(job)
            yield
        return
    # The first job here compiles what numba has to into its cache, once instead of once a worker.
    do(jobs[0])
    yield
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, mp_context=context) as pool:
        futures = [pool.submit(do, job) for job in jobs[1:]]
        try:
            for future in as_completed(futures):
                future.result()
                yield
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
