# SPDX-License-Identifier: MIT
"""What the docstrings say of allRank, and pytorch-metric-learning: values and gradients of the same
lists and batches.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor

import fastloss.functional as F

PADDED = -1.0
SCHEMES = {
    "ndcg_loss1": "ndcgLoss1_scheme",
    "ndcg_loss2": "ndcgLoss2_scheme",
    "ndcg_loss2pp": "ndcgLoss2PP_scheme",
    "lambda_rank": "lambdaRank_scheme",
    "ranknet": "rankNet_scheme",
}


@pytest.fixture(scope="module")
def allrank() -> Iterator[ModuleType]:
    """allRank's losses. They take a constant and a function from modules that import clients of
    cloud storage: stand-ins have these two.
    """
    with pytest.MonkeyPatch.context() as patch:
        for name, attribute, value in (
            ("allrank.data.dataset_loading", "PADDED_Y_VALUE", PADDED),
            ("allrank.models.model_utils", "get_torch_device", lambda: torch.device("cpu")),
        ):
            stand_in = ModuleType(name)
            setattr(stand_in, attribute, value)
            patch.setitem(sys.modules, name, stand_in)
        yield pytest.importorskip("allrank.models.losses")


def lists(distinct: bool = False) -> tuple[Tensor, Tensor, Tensor]:
    """Scores, relevance and mask; something is relevant in every list. (Their pads are at the end;
    scores are small, for floors under probabilities are theirs alone.)
    """
    generator = torch.Generator().manual_seed(8)
    scores = torch.randn(5, 19, generator=generator, dtype=torch.float64)
    relevance = torch.randint(5, (5, 19), generator=generator).double()
    if distinct:
        relevance = torch.rand(5, 19, generator=generator, dtype=torch.float64).argsort(1).double()
    relevance[:, 0] = relevance.amax() + 1
    lengths = torch.tensor([19, 12, 7, 15, 3])
    return scores, relevance, torch.arange(19) < lengths[:, None]


def check(
    mine: Callable[[Tensor], Tensor],
    theirs: Callable[[Tensor], Tensor],
    at: Tensor,
    tolerance: float = 1e-6,
) -> None:
    """Losses agree in value and gradient."""
    found, expected = at.clone().requires_grad_(), at.clone().requires_grad_()
    loss, wanted = mine(found), theirs(expected)
    torch.testing.assert_close(loss, wanted.to(loss.dtype), rtol=tolerance, atol=tolerance)
    loss.backward()
    wanted.backward()
    assert expected.grad is not None
    scale = expected.grad.abs().max().item()
    assert scale > 0
    torch.testing.assert_close(
        found.grad, expected.grad, rtol=10 * tolerance, atol=tolerance * scale
    )


@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("k", [None, 6])
@pytest.mark.parametrize("scheme", SCHEMES)
def test_lambda_loss(allrank: ModuleType, scheme: str, k: int | None, reduction: str) -> None:
    scores, relevance, mask = lists()
    options: dict[str, Any] = {"k": k, "sigma": 1.5, "mu": 5.0, "reduction": reduction}
    check(
        lambda x: F.lambda_loss(x, relevance, scheme=scheme, mask=mask, **options),
        lambda x: allrank.lambdaLoss(
            x, relevance.where(mask, PADDED), weighing_scheme=SCHEMES[scheme], **options
        ),
        scores,
    )


@pytest.mark.parametrize(
    ("function", "name", "offset", "distinct", "tolerance"),
    [
        (F.ranknet_loss, "rankNet", 0.0, False, 1e-5),
        (F.approx_ndcg_loss, "approxNDCGLoss", 1.0, False, 1e-5),  # they return -NDCG
        (F.neural_ndcg_loss, "neuralNDCG", 1.0, False, 1e-4),  # up to fifty rounds in float32
        (F.list_net_loss, "listNet", 0.0, False, 1e-5),
        (F.list_mle_loss, "listMLE", 0.0, True, 1e-5),  # they shuffle what is equally relevant
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_other_losses_of_lists(
    allrank: ModuleType,
    function: Callable[..., Tensor],
    name: str,
    offset: float,
    distinct: bool,
    tolerance: float,
) -> None:
    scores, relevance, mask = lists(distinct)
    check(
        lambda x: function(x, relevance, mask=mask),
        # (They take float32 alone.)
        lambda x: offset + getattr(allrank, name)(x.float(), relevance.where(mask, PADDED).float()),
        scores,
        tolerance,
    )


@pytest.mark.parametrize("margin", [0.3, None])
def test_batch_hard_triplets(margin: float | None) -> None:
    library = pytest.importorskip("pytorch_metric_learning")
    assert library is not None
    from pytorch_metric_learning.distances import LpDistance
    from pytorch_metric_learning.losses import TripletMarginLoss
    from pytorch_metric_learning.miners import BatchHardMiner
    from pytorch_metric_learning.reducers import MeanReducer

    generator = torch.Generator().manual_seed(2)
    embeddings = torch.randn(40, 12, generator=generator, dtype=torch.float64)
    labels = torch.randint(6, (40,), generator=generator)
    labels[7] = 99  # alone: no anchor
    distance = LpDistance(normalize_embeddings=False)
    miner = BatchHardMiner(distance=distance)
    loss = TripletMarginLoss(
        margin=margin or 0.0,
        smooth_loss=margin is None,
        distance=distance,
        reducer=MeanReducer(),
    )
    check(
        lambda x: F.batch_hard_triplet_loss(x, labels, margin),
        lambda x: loss(x, labels, miner(x, labels)),
        embeddings,
    )
