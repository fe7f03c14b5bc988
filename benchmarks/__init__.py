# SPDX-License-Identifier: MIT
"""Benchmarks: ``python -m benchmarks.run`` from the project's folder, or ``make bench``.

Run as a module so that the folder is on Python's path: the losses, their inputs and the bytes they
move come from the table of the tests, ``tests/cases.py``, and from nowhere else.
"""

import os

# The profiler that counts allocations and launches writes its stages to stderr, into the progress
# bar; it reads its verbosity once, when torch is imported.
os.environ.setdefault("KINETO_LOG_LEVEL", "99")
