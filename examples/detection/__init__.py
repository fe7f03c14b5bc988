# SPDX-License-Identifier: MIT
"""A small object detector on scenes of handwritten digits, in plain PyTorch."""
