"""The home directory of a supervised CLI (``COPILOT_HOME``): one CLI at a time.

Two CLIs on one home would answer for the same sessions and silently fork their conversations, so a
home is locked. The lock belongs to the open file, which the CLI's reaper inherits: it holds even
when the gateway was killed and the CLI is still ending.
"""

from __future__ import annotations

import asyncio
import fcntl
import os
import time
from pathlib import Path

from gateway.errors import StartupError

# The part of a home that holds the conversations. With shared storage it is a link to one folder
# for all; settings, index and logs stay apart, as they are not made for several writers.
SESSION_FOLDER = "session-state"
_LOCK_FILE = ".gateway.lock"
_LOCK_POLL = 0.1  # seconds


class CliHome:
    """One home.

    Attributes:
        lock_fd: descriptor of the locked file; None unless acquired.
    """

    def __init__(self, path: Path, sessions: Path | None) -> None:
        """Describe a home; nothing is touched yet.

        Args:
            path: the directory.
            sessions: the folder shared with other CLIs for their sessions; None for its own.
        """
        self.lock_fd: int | None = None
        self._path = path
        self._sessions = sessions

    async def acquire(self, patience: float) -> None:
        """Create what is missing and lock it.

        Args:
            patience: seconds to wait while another process holds it.

        Raises:
            StartupError: it cannot be created, is held, or has sessions of its own though it shall
                share them.
        """
        deadline = time.monotonic() + patience
        self.lock_fd = self._open()
        try:
            while not self._try_lock():
                if time.monotonic() >= deadline:
                    raise StartupError(
                        f"{self._path} is used by another gateway: "
                        "give this one a state directory of its own (server.state_dir)"
                    )
                await asyncio.sleep(_LOCK_POLL)
            self._link_sessions()
        except BaseException:
            self.release()
            raise

    def release(self) -> None:
        """Unlock it; idempotent."""
        if self.lock_fd is not None:
            os.close(self.lock_fd)
            self.lock_fd = None

    def _open(self) -> int:
        try:
            self._path.mkdir(mode=0o700, parents=True, exist_ok=True)
            return os.open(self._path / _LOCK_FILE, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise StartupError(
                f"cannot use {self._path} as a CLI's home: {error.strerror}"
            ) from error

    def _try_lock(self) -> bool:
        assert self.lock_fd is not None
        try:
            fcntl.flock(self.lock_fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True

    def _link_sessions(self) -> None:
        """Make the session folder a link to the shared one, or undo that."""
        folder, sessions = self._path / SESSION_FOLDER, self._sessions
        try:
            if folder.is_symlink():
                folder.unlink()
            if sessions is None:
                return
            sessions.mkdir(mode=0o700, parents=True, exist_ok=True)
            if folder.exists():
                if any(folder.iterdir()):
                    raise StartupError(
                        f"{folder} has sessions of its own: move them to {sessions} to share them"
                    )
                folder.rmdir()
            folder.symlink_to(sessions.resolve(), target_is_directory=True)
        except OSError as error:
            raise StartupError(f"cannot link {folder} to {sessions}: {error.strerror}") from error
