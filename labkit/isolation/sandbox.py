"""The sandbox that a learner's process runs in. Linux only; on other systems it sets the limits and nothing else.

The Linux kernel provides every layer, and none needs root. A layer that a machine lacks is left out (:func:`layers`).

    write       Landlock: only the sandbox's folder can be written; other processes cannot be signalled or traced
    processes   a PID namespace: every process ends with the sandbox; at most MAX_PROCESSES at a time
    network     a network namespace with loopback only
    memory      MAX_ADDRESSES bytes of address space per process; as root, MAX_MEMORY bytes of memory for all together
    rights      no capabilities, and no set-user-ID programs

``python -m labkit.isolation.sandbox FOLDER COMMAND...`` runs a command in it. Exit status: the command's, or 128 + signal.
"""

from __future__ import annotations

import ctypes
import os
import resource
import signal
import socket
import struct
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from fcntl import ioctl
from functools import cache
from pathlib import Path

MAX_ADDRESSES = 12 << 30
"""Bytes of address space of a process. torch maps about four times the memory that it uses."""

MAX_MEMORY = 6 << 30
"""Bytes of memory of all processes together, where control groups can be created (as root)."""

MAX_PROCESSES = 256  # and threads; two ranks on a large machine start about a hundred
MAX_FILE = 256 << 20  # bytes
FOLDER = "MINI_VLLM_LABS_SANDBOX"
"""The environment variable that tells the judge the path of the sandbox's folder."""

KEPT = ("PATH", "LANG", "LC_ALL", "LC_CTYPE", "TZ", "OMP_NUM_THREADS", "MINI_VLLM_LABS_ENVIRONMENT", "VIRTUAL_ENV", "NO_COLOR")
"""The environment variables that the learner's process inherits: no token, no proxy, nothing that makes Python load a file."""

CLONE_NEWIPC, CLONE_NEWUSER, CLONE_NEWPID, CLONE_NEWNET = 0x08000000, 0x10000000, 0x20000000, 0x40000000
PR_SET_PDEATHSIG, PR_SET_DUMPABLE, PR_CAPBSET_DROP, PR_SET_NO_NEW_PRIVS = 1, 4, 24, 38
LANDLOCK_CREATE_RULESET, LANDLOCK_ADD_RULE, LANDLOCK_RESTRICT_SELF = 444, 445, 446
WRITING = 0b1111111111110 & ~0b1100
"""Landlock's rights to change files (linux/landlock.h): all of version 1 except to execute, to read and to list."""


def sandboxed(folder: Path, command: list[str]) -> list[str]:
    """Returns the command line that runs a command in the sandbox with this folder."""
    return [sys.executable, "-P", "-m", "labkit.isolation.sandbox", str(folder), *command]


@cache
def layers() -> tuple[str, ...]:
    """Returns the names of the sandbox's layers that this machine has, besides the limits."""
    if sys.platform != "linux":
        return ()
    found = []
    if _syscall(LANDLOCK_CREATE_RULESET, None, 0, 1) > 0:
        found.append("write (Landlock)")
    child = os.fork()
    if not child:
        os._exit(0 if _unshare() else 1)
    if os.waitpid(child, 0)[1] == 0:
        found += ["processes (PID namespace)", "network (loopback alone)"]
    if _cgroup_roots():
        found.append("memory together (control group)")
    return tuple(found)


def protect_memory() -> None:
    """Forbids other processes of the same user to read this process's memory and open files (PR_SET_DUMPABLE)."""
    if sys.platform == "linux":
        _libc().prctl(PR_SET_DUMPABLE, 0, 0, 0, 0)


def end_with_parent() -> None:
    """Has the kernel kill this process when its parent ends (PR_SET_PDEATHSIG)."""
    if sys.platform == "linux":
        _libc().prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)


def run(folder: Path, command: list[str]) -> int:
    """Runs the command in the sandbox with this folder; returns its exit status, or 128 plus the number of the signal."""
    parent = os.getppid()
    with _control_group() as join:
        end_with_parent()
        if sys.platform == "linux":
            _unshare()
        child = os.fork()
        if not child:
            try:
                join()
                _restrict(folder)
                os.chdir(folder)
                os.execvpe(command[0], command, _environment(folder))
            finally:
                os._exit(127)
        os.closerange(3, 256)
        for each in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(each, lambda *_: os.kill(child, signal.SIGKILL))
        if os.getppid() != parent:  # it ended before end_with_parent()
            os.kill(child, signal.SIGKILL)
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        with suppress(OSError):  # without a PID namespace, at least the command's session ends
            os.killpg(child, signal.SIGKILL)
    return status if status >= 0 else 128 - status


def _restrict(folder: Path) -> None:
    """Applies the limits, drops all capabilities, and restricts writes to the folder."""
    os.setsid()
    for limit, most in ((resource.RLIMIT_AS, MAX_ADDRESSES), (resource.RLIMIT_FSIZE, MAX_FILE), (resource.RLIMIT_CORE, 0)):
        _limit(limit, most)
    if hasattr(resource, "RLIMIT_NPROC") and os.getuid():
        _limit(resource.RLIMIT_NPROC, MAX_PROCESSES + _count_threads())
    if sys.platform != "linux":
        return
    end_with_parent()
    libc = _libc()
    with suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("1000")
    for capability in range(64):
        libc.prctl(PR_CAPBSET_DROP, capability, 0, 0, 0)
    header, none = struct.pack("II", 0x20080522, 0), bytes(24)
    libc.capset(header, none)
    libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    _landlock(folder)


def _limit(which: int, most: int) -> None:
    hard = resource.getrlimit(which)[1]
    most = most if hard == resource.RLIM_INFINITY else min(most, hard)
    with suppress(ValueError, OSError):  # macOS refuses some
        resource.setrlimit(which, (most, most))


def _count_threads() -> int:
    """The number of processes and threads of this user, all of which RLIMIT_NPROC counts."""
    count, user = 0, os.getuid()
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            if process.stat().st_uid == user:
                count += len(list((process / "task").iterdir()))
    return count


def _landlock(folder: Path) -> None:
    version = _syscall(LANDLOCK_CREATE_RULESET, None, 0, 1)
    if version <= 0:
        return
    writing = WRITING | (0b10000000000000 if version >= 2 else 0) | (0b100000000000000 if version >= 3 else 0)
    # handled_access_fs, handled_access_net, scoped: signals and abstract sockets of processes outside
    rules = struct.pack("QQQ", writing, 0, 0b11 if version >= 6 else 0)[: 24 if version >= 6 else 16 if version >= 4 else 8]
    ruleset = _syscall(LANDLOCK_CREATE_RULESET, rules, len(rules), 0)
    places = [folder, *(Path("/dev") / name for name in ("null", "zero", "shm"))]
    for place in places:
        try:
            opened = os.open(place, os.O_PATH | os.O_CLOEXEC)
        except OSError:
            continue
        allowed = writing if place.is_dir() else writing & 0b100000000000010
        _syscall(LANDLOCK_ADD_RULE, ruleset, 1, struct.pack("=Qi", allowed, opened), 0)
        os.close(opened)
    if ruleset < 0 or _syscall(LANDLOCK_RESTRICT_SELF, ruleset, 0) < 0:
        os._exit(126)
    os.close(ruleset)


def _unshare() -> bool:
    """Creates namespaces for processes, network and shared memory, in a user namespace if necessary; returns whether it could."""
    user, group = os.getuid(), os.getgid()
    spaces = CLONE_NEWIPC | CLONE_NEWPID | CLONE_NEWNET
    if _libc().unshare(spaces) and _libc().unshare(spaces | CLONE_NEWUSER):
        return False
    with suppress(OSError):
        Path("/proc/self/setgroups").write_text("deny")
        Path("/proc/self/uid_map").write_text(f"{user} {user} 1")
        Path("/proc/self/gid_map").write_text(f"{group} {group} 1")
    with suppress(OSError), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        ioctl(any_socket, 0x8914, struct.pack("16sH14s", b"lo", 1, b""))  # SIOCSIFFLAGS, IFF_UP
    return True


def _cgroup_roots() -> list[Path]:
    """The folders where control groups for processes and for memory can be created; empty unless this is root."""
    root = Path("/sys/fs/cgroup")
    roots = [root] if (root / "cgroup.subtree_control").is_file() else [root / "pids", root / "memory"]
    return roots if os.getuid() == 0 and all(os.access(each, os.W_OK) for each in roots) else []


@contextmanager
def _control_group() -> Iterator[Callable[[], None]]:
    """Creates a control group with the limits on all processes together; yields a function by which the child joins the group."""
    groups = []
    limits = {"pids.max": MAX_PROCESSES, "memory.max": MAX_MEMORY, "memory.limit_in_bytes": MAX_MEMORY}
    for root in _cgroup_roots():
        for old in root.glob("mini-vllm-labs-*"):
            if not Path("/proc", old.name.rpartition("-")[2]).exists():  # the process that created it was killed
                with suppress(OSError):
                    old.rmdir()
        group = root / f"mini-vllm-labs-{os.getpid()}"
        with suppress(OSError):
            group.mkdir(exist_ok=True)
            groups.append(group)
            for name, most in limits.items():
                if (group / name).exists():
                    (group / name).write_text(str(most))

    def join() -> None:
        for group in groups:
            with suppress(OSError):
                (group / "cgroup.procs").write_text("0")

    try:
        yield join
    finally:
        for group in groups:
            with suppress(OSError):
                group.rmdir()


def _environment(folder: Path) -> dict[str, str]:
    kept = {name: os.environ[name] for name in KEPT if name in os.environ}
    return kept | {
        "HOME": str(folder),
        "TMPDIR": str(folder),
        "NUMBA_CACHE_DIR": str(folder / "numba"),
        "PYTHONDONTWRITEBYTECODE": "1",
        "HF_HUB_OFFLINE": "1",
    }


@cache
def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)


def _syscall(number: int, *arguments: object) -> int:
    syscall = _libc().syscall
    syscall.restype = ctypes.c_long
    return int(syscall(ctypes.c_long(number), *arguments))


if __name__ == "__main__":
    sys.exit(run(Path(sys.argv[1]), sys.argv[2:]))
