"""Runs one command for as long as whoever started the guard lives.

    python -m rnn_lab.lab.guard LOCK GRACE [--together] COMMAND...

The guard holds LOCK, so that no two run one job, and reads its standard input, whose other end the scheduler holds:
when that closes, because the scheduler asks so or was killed, the command gets SIGTERM, upon which training writes a
checkpoint, and SIGKILL after GRACE seconds. Where the guard itself is killed, the kernel kills the command (Linux).
Signals to the guard are passed on, with --together not: there whoever sends them, such as SLURM, sends them to every
process, and training that is asked to stop twice stops at once. SIGUSR2, by which SLURM announces an end to its own
program, is ignored. Exit code: the command's, 128 + number for a signal.
"""

import fcntl
import os
import select
import signal
import subprocess
import sys
import time
from pathlib import Path

from rnn_lab.system.signals import when_parent_ends

BUSY = 75
"""Exit code where another guard holds the lock (EX_TEMPFAIL)."""
TOGETHER = "--together"
_POLL_SECONDS = 0.2


def main(argv: list[str]) -> int:
    """Run `argv` = LOCK GRACE [--together] COMMAND...; the exit code."""
    together = argv[2] == TOGETHER
    lock, grace, command = Path(argv[0]), float(argv[1]), argv[3 if together else 2 :]
    held = os.open(lock, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        sys.stderr.write(f"error: {lock} is held: another process runs this job\n")
        return BUSY
    signal.signal(signal.SIGUSR2, signal.SIG_IGN)  # which the command inherits
    # The command inherits the lock: it is free only when guard and command have both ended.
    child = subprocess.Popen(command, stdin=subprocess.DEVNULL, pass_fds=(held,), preexec_fn=_die_with_me)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda _, __: None if together else child.terminate())
    code = _watch(child, grace)
    return 128 - code if code < 0 else code


def _watch(child: "subprocess.Popen[bytes]", grace: float) -> int:
    """Exit code of the command, negative for a signal."""
    killed_at: float | None = None
    while child.poll() is None:
        if killed_at is not None:
            if time.monotonic() >= killed_at:
                child.kill()
            time.sleep(_POLL_SECONDS)
        elif select.select([0], [], [], _POLL_SECONDS)[0] and not os.read(0, 1024):
            child.terminate()
            killed_at = time.monotonic() + grace
    return child.returncode


def _die_with_me() -> None:
    when_parent_ends(signal.SIGKILL)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
