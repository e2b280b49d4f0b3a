"""Where caches go, and writing files so that a reader, a kill or a full disk never leaves half of one."""

from __future__ import annotations

import contextlib
import os
import secrets
from collections.abc import Iterator
from pathlib import Path


def cache_folder() -> Path:
    """Folder of what can be made again: compiled kernels and tuned choices. It may not exist yet.

    POINTLIB_CACHE names it; else it is `pointlib` in XDG_CACHE_HOME or in ~/.cache.
    """
    named = os.environ.get("POINTLIB_CACHE")
    if named:
        return Path(named)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "pointlib"


def write_file(path: str | os.PathLike[str], content: bytes | memoryview | str) -> None:
    """Write a whole file or nothing; an earlier file of that name stays intact until the new one is complete.

    The content goes to a temporary name in the same folder, is forced to the disk and then renamed. Missing folders
    are made.

    Args:
        path: The file.
        content: What it will hold; text is encoded as UTF-8.

    Raises:
        OSError: It cannot be written; the temporary file has been removed.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}-{secrets.token_hex(4)}.tmp")
    try:
        with open(temporary, "wb") as file:
            file.write(content.encode("utf-8") if isinstance(content, str) else content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise
    _sync_folder(path.parent)


@contextlib.contextmanager
def locked(lock: str | os.PathLike[str]) -> Iterator[None]:
    """Let one process of this machine at a time into the block.

    Args:
        lock: A file that stands for what is protected; it is made, and stays. Where the system has no POSIX locks,
            nobody waits: what is written with `write_file` is whole even then.
    """
    Path(lock).parent.mkdir(parents=True, exist_ok=True)
    with open(lock, "a") as file:
        try:
            import fcntl
        except ImportError:
            yield
            return
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _sync_folder(folder: Path) -> None:
    """Make the rename itself durable; some network file systems cannot, and lose nothing that was there before."""
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
