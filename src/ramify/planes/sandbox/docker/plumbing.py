"""Descriptors, signals and counters of the supervisor. Standard library only; runs inside."""

from __future__ import annotations

import contextlib
import os
import signal
import socket

_OOM_FILES = ("/sys/fs/cgroup/memory.events", "/sys/fs/cgroup/memory/memory.oom_control")


def take_stdio() -> tuple[int, int]:
    """Move the wire away from descriptors 0 and 1, where a command would inherit it."""
    in_fd, out_fd = os.dup(0), os.dup(1)
    null = os.open("/dev/null", os.O_RDWR)
    os.dup2(null, 0)
    os.dup2(null, 1)
    os.close(null)
    return in_fd, out_fd


def child_signals() -> int:
    """A descriptor that becomes readable when a child ends. SIGTERM ends this process."""
    read_fd, write_fd = os.pipe()
    os.set_blocking(read_fd, False)
    os.set_blocking(write_fd, False)
    signal.signal(signal.SIGCHLD, lambda number, frame: None)
    signal.set_wakeup_fd(write_fd, warn_on_full_buffer=False)
    signal.signal(signal.SIGTERM, lambda number, frame: os._exit(0))
    return read_fd


def pipes(*, with_stdin: bool) -> tuple[tuple[int, int, int], tuple[int, int, int]]:
    """Standard streams of a command: (its ends, our ends); no input is `/dev/null`."""
    out_r, out_w = os.pipe()
    err_r, err_w = os.pipe()
    if with_stdin:
        in_r, in_w = os.pipe()
    else:
        in_r, in_w = os.open("/dev/null", os.O_RDONLY), -1
    return (in_r, out_w, err_w), (in_w, out_r, err_r)


def end_of_terminal(fd: int) -> None:
    """End of file is a character there; the terminal itself stays with its reader."""
    with contextlib.suppress(OSError):  # the command is gone, and its terminal with it
        os.write(fd, b"\x04")
    os.close(fd)


def half_close(fd: int) -> None:
    """End the sending half of a connection and close this descriptor of it."""
    with socket.socket(fileno=fd) as sock:
        try:
            sock.shutdown(socket.SHUT_WR)
        except OSError:  # the peer closed first
            return


def oom_kills() -> int:
    """How often the kernel killed for memory in this container; 0 where it cannot be known."""
    for path in _OOM_FILES:
        try:
            with open(path, "rb") as file:
                for line in file:
                    key, _, value = line.partition(b" ")
                    if key == b"oom_kill":
                        return int(value)
        except OSError:
            continue
    return 0
