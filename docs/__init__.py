# SPDX-License-Identifier: MIT
"""The page of losses, made from the docstrings, the table and the measurements: ``make docs``."""
