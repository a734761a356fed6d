"""Runs one command as its child and guarantees that nothing of it outlives the gateway.

A stand-alone program (standard library only, imports nothing of the gateway), started by
:mod:`gateway.io.process` as ``python -I -S reaper.py GRACE PARENT LOCK_FD COMMAND...``.

Why a process of its own: a gateway that is killed by SIGKILL can clean up nothing. The reaper holds
one end of a socket pair as its standard input; when the other end is gone, so is the gateway (or
it asks for a stop: both read as end of file), and the reaper ends the command: SIGTERM, ``GRACE``
seconds, SIGKILL. On Linux it is also the *child subreaper*: every orphaned descendant, however it
detached itself (``setsid``, double fork), becomes its child and is killed when the command ends.
Should the reaper itself be killed, the kernel kills the command (``PR_SET_PDEATHSIG``).

It reports on the socket, one line each: first ``pid N``, or ``failed ERRNO`` if the command cannot
be executed; in the end ``exit CODE`` or ``signal NUMBER``.
"""

import ctypes
import os
import select
import signal
import sys
import time

CONTROL_FD = 0
PR_SET_PDEATHSIG = 1
PR_SET_CHILD_SUBREAPER = 36
# The parent's end of the socket may have been inherited by a process that outlives the parent; then
# end of file never comes, and asking for the parent's pid this often (seconds) tells.
PARENT_CHECK_INTERVAL = 1.0
# A process in uninterruptible sleep does not die; give up on it after this many seconds.
SWEEP_TIMEOUT = 5.0
_STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


def _prctl(option: int, value: int) -> None:
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(option, value, 0, 0, 0)


def _report(line: str) -> None:
    try:
        os.write(CONTROL_FD, line.encode() + b"\n")
    except OSError:
        pass  # the gateway is gone: nobody to tell


def _spawn(command: list[str]) -> int:
    """Execute ``command`` in a process group of its own and return its pid.

    Raises:
        OSError: it cannot be executed.
    """
    reaper = os.getpid()
    # Closed by a successful exec; else it brings the error number.
    failure, failure_end = os.pipe()
    pid = os.fork()
    if pid:
        os.close(failure_end)
        number = os.read(failure, 16)
        os.close(failure)
        if number:
            os.waitpid(pid, 0)
            raise OSError(int(number), os.strerror(int(number)))
        return pid
    try:
        os.setpgid(0, 0)
        _prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != reaper:
            os._exit(1)
        # Python ignores these two, and ignored signals stay ignored across exec.
        signal.signal(signal.SIGPIPE, signal.SIG_DFL)
        signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
        os.dup2(os.open(os.devnull, os.O_RDONLY), CONTROL_FD)
        os.execv(command[0], command)  # noqa: S606 - there is no shell, on purpose
    except OSError as error:
        os.write(failure_end, str(error.errno).encode())
    finally:
        os._exit(127)


def _children() -> list[int]:
    """Return the pids of the direct children, the adopted ones included (Linux only)."""
    found = []
    me = os.getpid()
    if sys.platform != "linux":
        return found
    for entry in os.scandir("/proc"):
        if not entry.name.isdigit():
            continue
        try:
            file = os.open(f"/proc/{entry.name}/stat", os.O_RDONLY)
        except OSError:
            continue  # ended meanwhile
        try:
            # The name in parentheses may hold anything; the fields after it are plain.
            fields = os.read(file, 4096).rpartition(b")")[2].split()
        except OSError:
            continue
        finally:
            os.close(file)
        if int(fields[1]) == me:
            found.append(int(entry.name))
    return found


def _kill(pid: int, number: int, group: bool = False) -> None:
    try:
        (os.killpg if group else os.kill)(pid, number)
    except OSError:
        pass  # ended meanwhile


def _sweep(group: int) -> None:
    """Kill every descendant: as children die, theirs are adopted, until none is left."""
    deadline = time.monotonic() + SWEEP_TIMEOUT
    _kill(group, signal.SIGKILL, group=True)
    while time.monotonic() < deadline:
        for pid in _children():
            _kill(pid, signal.SIGKILL)
        try:
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
        except ChildProcessError:
            return
        time.sleep(0.005)


class _Reaper:
    """The state of one run: the command's pid and, in the end, its exit status."""

    def __init__(self, pid: int, grace: float, parent: int) -> None:
        self.pid = pid
        self.grace = grace
        self.parent = parent
        self.code: int | None = None

    def reap(self) -> None:
        """Collect every child that has ended, the adopted ones too, so that none is a zombie."""
        try:
            while True:
                pid, status = os.waitpid(-1, os.WNOHANG)
                if not pid:
                    return
                if pid == self.pid:
                    self.code = os.waitstatus_to_exitcode(status)
        except ChildProcessError:
            return

    def run(self, wakeup: int) -> int:
        """Wait until the command ends, or end it; return its code (negative: signal)."""
        poll = select.poll()
        poll.register(CONTROL_FD, select.POLLIN)
        poll.register(wakeup, select.POLLIN)
        deadline: float | None = None
        while True:
            self.reap()
            if self.code is not None:
                return self.code
            wait = PARENT_CHECK_INTERVAL
            if deadline is not None:
                wait = deadline - time.monotonic()
                if wait <= 0:
                    _kill(self.pid, signal.SIGKILL)
                    wait = PARENT_CHECK_INTERVAL
            stop = deadline is None and os.getppid() != self.parent
            for fd, _ in poll.poll(max(1, int(wait * 1000))):
                if fd == CONTROL_FD:
                    # Nothing is ever sent to the reaper: readable means end of file.
                    poll.unregister(CONTROL_FD)
                    stop = True
                else:
                    stop = stop or any(number in _STOP_SIGNALS for number in os.read(wakeup, 512))
            if stop and deadline is None:
                deadline = time.monotonic() + self.grace
                _kill(self.pid, signal.SIGTERM)


def main(argv: list[str]) -> int:
    """Run the command line described in the module's docstring."""
    grace, parent, lock_fd, command = float(argv[0]), int(argv[1]), int(argv[2]), argv[3:]
    # Held for as long as the reaper lives, and not by the command: see gateway.io.process.
    if lock_fd >= 0:
        os.set_inheritable(lock_fd, False)
    _prctl(PR_SET_CHILD_SUBREAPER, 1)
    wakeup, wakeup_end = os.pipe()
    os.set_blocking(wakeup_end, False)
    signal.set_wakeup_fd(wakeup_end, warn_on_full_buffer=False)
    for number in (signal.SIGCHLD, *_STOP_SIGNALS):
        signal.signal(number, lambda *_: None)
    try:
        pid = _spawn(command)
    except OSError as error:
        _report(f"failed {error.errno}")
        return 1
    _report(f"pid {pid}")
    code = _Reaper(pid, grace, parent).run(wakeup)
    _sweep(pid)
    _report(f"exit {code}" if code >= 0 else f"signal {-code}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
