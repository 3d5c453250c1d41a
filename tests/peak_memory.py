"""How much memory a program needs at most, measured in a process of its own."""

import subprocess
import sys

# The resident peak that the system reports of a child counts its parent before the exec, too; this one does not.
REPORT = """
with open("/proc/self/status") as file:
    print("peak", next(line.split()[1] for line in file if line.startswith("VmHWM")))
"""


def peak_mb(code, *words):
    """Run a program with arguments; return its peak in MB, everything it imports included."""
    command = [sys.executable, "-c", code + REPORT, *map(str, words)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr
    return int(done.stdout.rpartition("peak ")[2]) / 1024
