# SPDX-License-Identifier: MIT
"""Plain-PyTorch twins of :mod:`fastloss.functional`: same names, same signatures, same meaning.

They are the oracle of the tests, and they compute where no kernel does: on devices without one,
under ``torch.func`` transforms and for derivatives of higher order.
"""

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
