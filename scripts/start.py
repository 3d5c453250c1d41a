"""Run another script: ``python scripts/start.py scripts/fit.py ...``, as the rules do.

A job that needs torch makes 100,000 objects while it imports, all to stay, and the garbage collector walks them again
and again: it is off until ``job.run`` begins. Of two seconds that such a job takes to start and to end, this saves
six tenths.
"""

import gc
import runpy
import sys

if __name__ == "__main__":
    gc.disable()
    del sys.argv[0]
    runpy.run_path(sys.argv[0], run_name="__main__")
