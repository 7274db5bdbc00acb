"""Check golden vectors: `python tests/golden/run.py DIR [DIR...]`; see runner.py."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from golden.runner import main

if __name__ == "__main__":
    sys.exit(main())
