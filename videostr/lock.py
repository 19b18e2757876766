"""One process at a time in a folder: a run, an evaluation or a build is not started twice.

.lock        flock'ed while the folder is in use. The kernel ends that with the holder, however it dies.
.lock.json   who holds it, touched every `BEAT_S` seconds.

On one machine (containers of one kernel included) and on file systems with locks among hosts (NFS, CephFS, Lustre with
`-o flock`) the flock alone decides. Where locks act within a host only, or not at all (Lustre with `-o localflock`, BeeGFS, many
FUSE file systems and buckets), the other file stands in: a lock that a process of another machine left is watched for some
seconds before it is taken over, and a holder that was taken for dead ends as soon as it sees that. Two starts on two such
machines within the same beat are both let in at first; one of them then ends.
"""

from __future__ import annotations

import _thread
import contextlib
import errno
import fcntl
import json
import logging
import os
import secrets
import socket
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Self

from videostr.errors import RunFolderError, StorageError
from videostr.files import make_folder, storage, write_json

log = logging.getLogger(__name__)
LOCK, HOLDER = ".lock", ".lock.json"
BEAT_S = 5.0
"""Between two touches of `HOLDER`."""
SILENT_S = 4 * BEAT_S
"""A holder on another machine that has not touched it for so long is dead. It is watched: clocks of machines differ."""
SETTLE_S = 1.0
"""Without flock, the last one to write `HOLDER` holds the folder: seconds until all who wrote at once are done."""
TRIES, PAUSE_S = 5, 0.05
"""Of flock: a holder that is just ending, or a look of `find_holder`, is not a holder."""
NO_FLOCK = {errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOLCK, errno.ENOSYS, errno.EINVAL}


@dataclass(frozen=True, slots=True, kw_only=True)
class Holder:
    """A process that has, or had, the lock."""

    host: str
    pid: int
    """In its own pid namespace."""
    since: str
    """UTC, for people."""
    machine: str
    """Boot id: tells kernels apart, and a machine before and after a restart."""
    namespace: str
    """Of pids: a container's own."""
    started: str
    """When the process started, in ticks since boot: tells it from a later one with its pid."""
    device: int
    """File system as its kernel numbers it."""
    token: str
    """Of this taking of the lock."""

    @classmethod
    def this(cls, device: int) -> Holder:
        """Return this process as the holder of a folder on a device."""
        pid = os.getpid()
        return cls(
            host=socket.gethostname(),
            pid=pid,
            since=datetime.now(UTC).strftime("%Y-%m-%d %H:%M:%S UTC"),
            machine=_machine(),
            namespace=_namespace(),
            started=_started(pid),
            device=device,
            token=secrets.token_hex(8),
        )

    def __str__(self) -> str:
        """Return who and since when."""
        inside = self.machine == _machine() and self.namespace != _namespace()
        return f"process {self.pid}{' of a container' * inside} on {self.host} (since {self.since})"


class FolderLock:
    """A context manager that holds a folder for this process, and makes it where there is none.

    Forked children do not hold it on.
    """

    def __init__(self, folder: Path, rename: str, *, wait: bool = False) -> None:
        """Take nothing yet.

        Args:
            folder: what to hold.
            rename: the option that names another folder, for the message.
            wait: wait until the folder is free, where it is held.
        """
        self.folder = folder
        self.when_lost: Callable[[], None] = _thread.interrupt_main
        """Called in another thread when another process took the lock, for it had taken this one for dead."""
        self.is_lost = False
        self._rename = rename
        self._wait = wait
        self._handle = -1
        self._holder: Holder | None = None
        self._is_new = False
        self._released = threading.Event()

    def __enter__(self) -> Self:
        """Take the lock.

        Raises:
            RunFolderError: another process holds it; names that, and the remedy.
            StorageError: the folder cannot be written.
        """
        self._is_new = not self.folder.exists()
        make_folder(self.folder)
        is_reported = False
        while (other := self._take()) is not None:
            if not self._wait:
                stop = f"stop it there (`kill -INT {other.pid}`), " if isinstance(other, Holder) else ""
                raise RunFolderError(
                    f"{self.folder}: in use by {other}",
                    remedy=f"wait until that ends, {stop}or choose another {self._rename}",
                )
            if not is_reported:
                log.info("waiting for %s: in use by %s", self.folder, other)
            is_reported = True
            time.sleep(1.0)
        threading.Thread(target=self._beat, name="lock", daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Give it back, and leave nothing of it in the folder."""
        self._released.set()
        if self._holder is None or os.getpid() != self._holder.pid:
            return
        with contextlib.suppress(OSError):
            if not self.is_lost and _read(self.folder) == self._holder:
                (self.folder / HOLDER).unlink()
                # Who opened the file meanwhile sees in `_flock` that it has gone.
                (self.folder / LOCK).unlink()
                if self._is_new:
                    self.folder.rmdir()  # if nothing was written
        self._drop()

    def _take(self) -> Holder | str | None:
        """Return who holds the folder; None when that is this process now."""
        with storage(self.folder / LOCK):
            has_flock = self._flock()
            if has_flock is False:
                return _read(self.folder) or "another process"
            try:
                other = _alive(self.folder, has_flock=bool(has_flock))
                if other is None:
                    me = Holder.this(self.folder.stat().st_dev)
                    write_json(self.folder / HOLDER, asdict(me))
                    if not has_flock:
                        time.sleep(SETTLE_S)
                        now = _read(self.folder)
                        other = now if now != me else None
            except BaseException:
                self._drop()
                raise
        if other is not None:
            self._drop()
            return other
        self._holder = me
        return None

    def _flock(self) -> bool | None:
        """Open and lock the file; False where another process holds it, None where the file system has no locks."""
        path = self.folder / LOCK
        for _ in range(TRIES):
            self._handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
            _close_in_children(self._handle)
            try:
                fcntl.flock(self._handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                if error.errno in NO_FLOCK:
                    return None
                self._drop()
                if error.errno not in {errno.EWOULDBLOCK, errno.EACCES}:
                    raise
                time.sleep(PAUSE_S)
                continue
            if _is_file(self._handle, path):
                return True
            self._drop()  # its holder removed it when it ended
        return False

    def _drop(self) -> None:
        handle, self._handle = self._handle, -1
        if handle >= 0:
            _open.discard(handle)
            os.close(handle)

    def _beat(self) -> None:
        path, holder = self.folder / HOLDER, self._holder
        assert holder is not None
        while not self._released.wait(BEAT_S):
            with contextlib.suppress(OSError, StorageError):
                now = _read(self.folder)
                if now is None:  # someone tidied up
                    write_json(path, asdict(holder))
                elif now != holder:
                    self.is_lost = True
                    log.error("%s: taken over by %s; this process ends", self.folder, now)
                    self.when_lost()
                    return
                else:
                    os.utime(path)


def find_holder(folder: Path) -> Holder | str | None:
    """Return who holds a folder, changing nothing; None where nobody does. May watch a file for `SILENT_S` seconds.

    Raises:
        StorageError: the lock cannot be read.
    """
    path = folder / LOCK
    with storage(path), contextlib.ExitStack() as stack:
        try:
            file = stack.enter_context(path.open("rb"))
        except (FileNotFoundError, NotADirectoryError):
            return None
        has_flock = True
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno not in NO_FLOCK:
                return _read(folder) or "another process"
            has_flock = False
        else:
            fcntl.flock(file, fcntl.LOCK_UN)
        return _alive(folder, has_flock=has_flock)


def _alive(folder: Path, *, has_flock: bool) -> Holder | None:
    """Return the holder that the folder names, if that process still runs; `has_flock`: the lock was free to take."""
    holder = _read(folder)
    if holder is None:
        return None
    if holder.machine == _machine():
        if has_flock and holder.device == folder.stat().st_dev:  # one kernel: it would have refused the lock
            return None
        if holder.namespace == _namespace():
            return holder if _started(holder.pid) == holder.started != "" else None
    return holder if _beats(folder, holder) else None


def _beats(folder: Path, holder: Holder) -> bool:
    """Return whether a process that cannot be seen from here still touches its file."""
    path = folder / HOLDER
    try:
        seen = path.stat().st_mtime_ns
        log.info("%s: watching for %g s whether %s still runs", folder, SILENT_S, holder)
        deadline = time.monotonic() + SILENT_S
        while time.monotonic() < deadline:
            time.sleep(BEAT_S / 10)
            with path.open("rb") as file:  # opened: a network file system then asks its server
                if os.fstat(file.fileno()).st_mtime_ns != seen:
                    return True
    except FileNotFoundError:  # given back
        return False
    return False


def _read(folder: Path) -> Holder | None:
    """Return what `HOLDER` says; None where there is none, or another program wrote it."""
    try:
        return Holder(**json.loads((folder / HOLDER).read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return None


def _is_file(handle: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(handle), path.stat())
    except FileNotFoundError:
        return False


def _machine() -> str:
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    except OSError:
        return socket.gethostname()


def _namespace() -> str:
    try:
        return str(Path("/proc/self/ns/pid").readlink())
    except OSError:
        return ""


def _started(pid: int) -> str:
    """Return when a process started; "" where there is none."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="ascii", errors="replace")
    except OSError:
        return ""
    return stat.rpartition(")")[2].split()[19]  # field 22; the name before it may hold spaces and brackets


_open: set[int] = set()
"""Handles of locks of this process: a forked child closes its copies, which would hold the lock on."""
_is_registered = False


def _close_in_children(handle: int) -> None:
    global _is_registered
    _open.add(handle)
    if not _is_registered:
        _is_registered = True
        os.register_at_fork(after_in_child=_close_all)


def _close_all() -> None:
    for handle in _open:
        os.close(handle)
    _open.clear()
