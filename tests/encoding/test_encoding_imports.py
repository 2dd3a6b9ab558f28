"""The server imports this package, so it must not load torch."""

import subprocess
import sys
from pathlib import Path


def test_encoding_needs_no_torch() -> None:
    code = "import sys, dsv4.encoding; sys.exit('torch' in sys.modules or 'numpy' in sys.modules)"
    root = Path(__file__).resolve().parents[2]
    assert subprocess.run([sys.executable, "-c", code], cwd=root, check=False).returncode == 0
