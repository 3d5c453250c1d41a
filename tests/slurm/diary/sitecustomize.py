"""Python imports this at its start: a script of the workflow writes down where it runs, and when it ended.

Only in the tests, whose jobs have this folder on PYTHONPATH; so a job itself says what Slurm gave it.
"""

import atexit
import json
import os
import sys
import time

KEYS = ("SLURM_JOB_ID", "CUDA_VISIBLE_DEVICES")


def script_of(words: list[str]) -> str:
    """Return the script of a command line, which scripts/start.py may run."""
    return words[2] if words[1] == "scripts/start.py" else words[1]


def note(event: str, words: list[str]) -> None:
    """Append one line to the diary."""
    entry = {
        "event": event,
        "script": script_of(words).removeprefix("scripts/").removesuffix(".py"),
        "out": words[words.index("--out") + 1],
        "time": time.time(),
        **{key: os.environ.get(key) for key in KEYS},
    }
    with open(os.environ["EIGENLOOM_DIARY"], "a", encoding="utf-8") as file:
        file.write(json.dumps(entry) + "\n")


if len(sys.orig_argv) > 1 and sys.orig_argv[1].startswith("scripts/"):
    note("start", sys.orig_argv)
    atexit.register(note, "end", sys.orig_argv)
