# SPDX-License-Identifier: MIT
"""The losses as functions. :mod:`fastloss.reference` has the same in plain PyTorch."""

from . import (
    boxes,
    classification,
    detection,
    generative,
    graph,
    ranking,
    regression,
    segmentation,
    sequence,
)
from .boxes import *  # noqa: F403
from .classification import *  # noqa: F403
from .detection import *  # noqa: F403
from .generative import *  # noqa: F403
from .graph import *  # noqa: F403
from .ranking import *  # noqa: F403
from .regression import *  # noqa: F403
from .segmentation import *  # noqa: F403
from .sequence import *  # noqa: F403

__all__ = [
    *boxes.__all__,
    *classification.__all__,
    *detection.__all__,
    *generative.__all__,
    *graph.__all__,
    *ranking.__all__,
    *regression.__all__,
    *segmentation.__all__,
    *sequence.__all__,
]
