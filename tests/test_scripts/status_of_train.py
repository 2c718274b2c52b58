"""Started by test_resume.py in place of train.py, which it runs: notes the exit status that a launcher would hide."""

from __future__ import annotations

import os
import runpy
import sys
from pathlib import Path

script, folder = sys.argv[1:3]
sys.argv = [script, *sys.argv[3:]]
try:
    runpy.run_path(script, run_name="__main__")
except SystemExit as end:
    Path(folder, f"status{os.environ['RANK']}").write_text(str(end.code))
    raise
