"""A stand-in for the Copilot CLI's process: arguments, ready line and signals, but no protocol.

Its conduct is chosen by environment variables, so that a test needs no other file.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

SCRIPT = """\
import json, os, signal, socket, subprocess, sys, time
from pathlib import Path

args = sys.argv[1:]
mode = os.environ.get("STANDIN", "")
if "--version" in args:
    print(os.environ.get("STANDIN_VERSION", "GitHub Copilot CLI 9.8.7."))
    sys.exit(int(os.environ.get("STANDIN_VERSION_STATUS", "0")))
if "--help" in args:
    print("--no-auto-update")
    sys.exit(0)
home = Path(os.environ["COPILOT_HOME"])
with (home / "starts.jsonl").open("a") as log:
    log.write(json.dumps({"pid": os.getpid(), "args": args, "env": dict(os.environ)}) + "\\n")
if mode == "broken":
    print("token is", os.environ["COPILOT_CONNECTION_TOKEN"], file=sys.stderr)
    print("no model for you", file=sys.stderr)
    sys.exit(7)
if mode == "broken-once" and not (home / "tried").exists():
    (home / "tried").touch()
    sys.exit(1)
if mode == "stubborn":
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
if mode == "slow":
    while not (home / "go").exists():
        time.sleep(0.01)
if mode == "family":
    # A daemon: double fork, session and process group of its own.
    code = "import os, sys, time; os.setsid(); os.fork() and os._exit(0); "
    code += "open(sys.argv[1], 'w').write(str(os.getpid())); os.rename(sys.argv[1], sys.argv[2]); "
    code += "time.sleep(600)"
    subprocess.Popen([sys.executable, "-c", code, str(home / "tmp"), str(home / "daemon")])
listener = socket.socket()
listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
listener.bind(("127.0.0.1", int(args[args.index("--port") + 1])))
listener.listen()
if mode == "chatty":
    sys.stderr.write("x" * 300_000 + "\\n" + "y" * 300_000)
    sys.stderr.flush()
print("CLI server listening on port", listener.getsockname()[1], flush=True)
while True:
    time.sleep(600)
"""


def make_standin(path: Path) -> Path:
    """Write the stand-in as an executable and return its path."""
    path.write_text(f"#!{sys.executable} -IS\n{SCRIPT}")
    path.chmod(0o755)
    return path


def is_alive(pid: int) -> bool:
    """Return whether a process runs; a zombie does not."""
    try:
        return "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return False


def command_line(pid: int) -> str:
    """Return the arguments of a process, as everybody on the machine may read them."""
    return Path(f"/proc/{pid}/cmdline").read_text()


def working_directory(pid: int) -> Path:
    """Return where a process runs."""
    return Path(f"/proc/{pid}/cwd").readlink()


def descendants(root: int) -> list[int]:
    """Return the pids of all processes below ``root``."""
    parents: dict[int, int] = {}
    for entry in os.scandir("/proc"):
        if entry.name.isdigit():
            try:
                stat = Path(entry.path, "stat").read_text()
            except OSError:
                continue
            parents[int(entry.name)] = int(stat.rpartition(")")[2].split()[1])
    found = [root]
    for pid in found:
        found.extend(child for child, parent in parents.items() if parent == pid)
    return found[1:]
