"""Imported first by scripts that train or write models: where the extra `train` is missing, it says so and ends them.

It has to come before what needs the extra, as a script's imports are where it would fail.
"""

import sys
from importlib.util import find_spec

NEEDED = ("torch", "onnx")

for package in NEEDED:
    if find_spec(package) is None:
        sys.exit(f"this measurement needs {package}, which the extra 'train' brings: pip install 'lstm-serve[train]'")
