# SPDX-License-Identifier: MIT
"""A small translator from digits to English number words, in plain PyTorch."""
