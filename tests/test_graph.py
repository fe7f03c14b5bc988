# SPDX-License-Identifier: MIT
"""What is particular to graphs: other libraries' formulas, nodes of any degree, the pairs of nodes
that are drawn, edges that are none.
"""

from __future__ import annotations

import importlib.util
import math
import sys
from collections import Counter
from collections.abc import Callable
from types import ModuleType
from typing import Any

import pytest
import torch
import torch.nn.functional as torch_functional
from cases import TOLERANCES, find_case
from support import assert_close, gradients, upstream_for
from test_memory import SLACK, allocations, step
from torch import Generator, Tensor

import fastloss.functional as F
from fastloss import reference
from fastloss.reference._sampling import negative_edges

RECONSTRUCTION = find_case("graph_reconstruction_loss")


# ------------------------------------------------------------------------ other libraries' formulas


def pyg_reconstruction(z: Tensor, positive: Tensor, negative: Tensor) -> Tensor:
    """torch_geometric.nn.GAE.recon_loss."""

    def decoded(edges: Tensor) -> Tensor:
        return (z[edges[0]] * z[edges[1]]).sum(dim=1).sigmoid()

    of_positive = -torch.log(decoded(positive) + 1e-15).mean()
    return of_positive - torch.log(1 - decoded(negative) + 1e-15).mean()


def pyg_kl(mu: Tensor, logstd: Tensor) -> Tensor:
    """torch_geometric.nn.VGAE.kl_loss."""
    logstd = logstd.clamp(max=10)
    return -0.5 * torch.mean(torch.sum(1 + 2 * logstd - mu**2 - logstd.exp() ** 2, dim=1))


def pyg_infomax(positive: Tensor, negative: Tensor) -> Tensor:
    """torch_geometric.nn.DeepGraphInfomax.loss, of what its discriminator gives."""
    of_positive = -torch.log(positive.sigmoid() + 1e-15).mean()
    return of_positive - torch.log(1 - negative.sigmoid() + 1e-15).mean()


def graphmae(x: Tensor, y: Tensor, alpha: float = 3.0) -> Tensor:
    """graphmae.models.loss_func.sce_loss."""
    x, y = torch_functional.normalize(x, dim=-1), torch_functional.normalize(y, dim=-1)
    return (1 - (x * y).sum(dim=-1)).pow(alpha).mean()


def byol(predictions: Tensor, targets: Tensor) -> Tensor:
    """Half of loss_fn of the BYOL implementations, the mean of BGRL's train_transductive."""
    cosine = torch_functional.cosine_similarity(predictions, targets.detach(), dim=-1)
    return 2 - 2 * cosine.mean()


@pytest.mark.parametrize(
    ("row", "theirs"),
    [
        ("graph_reconstruction_loss", pyg_reconstruction),
        ("variational_graph_kl_loss", pyg_kl),
        ("deep_graph_infomax_loss", pyg_infomax),
        ("scaled_cosine_error", graphmae),
        ("scaled_cosine_error-alpha", graphmae),
        ("bootstrap_latent_loss", byol),
    ],
)
def test_formula_of_another_library(row: str, theirs: Callable[..., Tensor]) -> None:
    case = find_case(row)
    arguments = case.arguments(40, torch.float64, requires_grad=True)
    mine, expected = case.loss(arguments), theirs(*arguments.values())
    torch.testing.assert_close(mine, expected)
    of_theirs = gradients(expected, arguments)
    for name, gradient in gradients(mine, arguments).items():
        torch.testing.assert_close(gradient, of_theirs[name])


def test_torch_geometric(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("aiohttp", "psutil", "requests", "xxhash"):  # for downloads: it asks for no more
        if importlib.util.find_spec(name) is None:
            monkeypatch.setitem(sys.modules, name, ModuleType(name))
    nn = pytest.importorskip("torch_geometric.nn")
    arguments = RECONSTRUCTION.arguments(40, torch.float64)
    autoencoder = nn.VGAE(torch.nn.Identity())
    torch.testing.assert_close(
        F.graph_reconstruction_loss(**arguments), autoencoder.recon_loss(*arguments.values())
    )
    mu, logstd = find_case("variational_graph_kl_loss").arguments(40, torch.float64).values()
    torch.testing.assert_close(
        F.variational_graph_kl_loss(mu, logstd), autoencoder.kl_loss(mu, logstd)
    )


# ----------------------------------------------------------------------------------- reconstruction


def check_graph(z: Tensor, positive: Tensor, negative: Tensor, device: str) -> None:
    """Loss and gradient of float32 against the oracle's of float64, reduced and not."""
    tensors = [tensor.to(device) for tensor in (z, positive, negative)]
    for reduction in ("none", "mean"):
        mine = tensors[0].detach().float().requires_grad_()
        expected = tensors[0].detach().double().requires_grad_()
        loss = F.graph_reconstruction_loss(mine, *tensors[1:], reduction)
        oracle = reference.graph_reconstruction_loss(expected, *tensors[1:], reduction)
        assert_close(loss, oracle, TOLERANCES[torch.float32], "loss")
        upstream = upstream_for(oracle)
        (gradient,) = torch.autograd.grad(loss, mine, upstream.float())
        (of_oracle,) = torch.autograd.grad(oracle, expected, upstream)
        assert_close(gradient, of_oracle, TOLERANCES[torch.float32], "gradient")


@pytest.mark.table
@pytest.mark.parametrize("features", [0, 1, 16, 33, 130])
def test_node_of_many_edges_and_nodes_of_none(features: int, device: str) -> None:
    generator = Generator().manual_seed(features)
    z = torch.randn(9, features, generator=generator) / max(features, 1) ** 0.25
    positive = torch.stack((torch.full((150,), 4), torch.randint(2, 7, (150,))))
    negative = torch.tensor([[4, 4, 3], [4, 6, 3]])  # loops count from both ends
    check_graph(z, positive, negative, device)


def test_many_edges_between_few_nodes() -> None:
    """Sorted in several parts."""
    generator = Generator().manual_seed(0)
    positive = torch.randint(50, (2, 60_000), generator=generator)
    negative = torch.randint(50, (2, 50_000), generator=generator)
    check_graph(torch.randn(51, 8, generator=generator), positive, negative, "cpu")


@pytest.mark.table
def test_one_side_may_be_empty(device: str) -> None:
    z = torch.randn(4, 3, device=device, requires_grad=True)
    edges = torch.tensor([[0, 1], [2, 1]], device=device)
    nothing = edges[:, :0]
    both = [
        F.graph_reconstruction_loss(z, edges, nothing),
        F.graph_reconstruction_loss(z, nothing, edges),
    ]
    together = F.graph_reconstruction_loss(z, edges, edges)
    torch.testing.assert_close(together, both[0] + both[1])
    for pairs in (nothing, None):
        loss = F.graph_reconstruction_loss(z, nothing, pairs)
        (gradient,) = torch.autograd.grad(loss, z)
        assert loss.item() == 0
        assert gradient.eq(0).all()
    empty = torch.zeros(0, 3, device=device, requires_grad=True)
    assert F.graph_reconstruction_loss(empty, nothing).item() == 0


def test_logits_do_not_saturate(device: str) -> None:
    z = torch.tensor([[100.0], [100.0]], device=device, requires_grad=True)
    edge = torch.tensor([[0], [1]], device=device)
    loss = F.graph_reconstruction_loss(z, edge[:, :0], edge)
    (gradient,) = torch.autograd.grad(loss, z)
    assert loss.item() == 1e4
    assert gradient.tolist() == [[100.0], [100.0]]


def test_no_features_of_edges_are_in_memory() -> None:
    """The gradient, and a few integers per edge: the ends twice and what sorts them."""
    for edges in (20_000, 40_000):
        arguments = RECONSTRUCTION.arguments((edges, 1000, 64), requires_grad=True)
        step(RECONSTRUCTION, arguments)
        arguments["z"].grad = None
        pairs = edges + arguments["neg_edge_index"].shape[1]
        allocated = allocations(step, RECONSTRUCTION, arguments)
        assert allocated <= arguments["z"].nbytes + 2 * 8 * pairs + 4 * 1001 + SLACK


# -------------------------------------------------------------------------------------- drawn pairs


def drawn(nodes: int, edges: Tensor, count: int, seed: int) -> Tensor:
    """The pairs of many calls."""
    generator = Generator().manual_seed(seed)
    found = [negative_edges(edges, nodes, generator) for _ in range(count)]
    return torch.cat(found, 1)


def test_all_free_pairs_are_drawn_alike() -> None:
    edges = torch.tensor([[0, 3, 3, 1, 2, 0, 3], [1, 3, 2, 0, 3, 1, 2]])  # some twice, one a loop
    pairs = Counter((i, j) for i, j in drawn(4, edges, 2000, 0).T.tolist())
    taken = set(zip(*edges.tolist(), strict=True))
    free = {(i, j) for i in range(4) for j in range(4) if i != j} - taken
    assert set(pairs) == free
    expected = sum(pairs.values()) / len(free)
    assert all(abs(count - expected) < 5 * math.sqrt(expected) for count in pairs.values())


def test_pairs_are_drawn_among_many_nodes() -> None:
    generator = Generator().manual_seed(1)
    nodes = 100_000
    edges = torch.randint(nodes, (2, 5000), generator=generator, dtype=torch.int32)
    pairs = drawn(nodes, edges, 4, 2)
    assert pairs.shape == (2, 20_000)
    assert pairs.min() >= 0
    assert pairs.max() < nodes
    assert not pairs[0].eq(pairs[1]).any()
    taken = set(zip(*edges.tolist(), strict=True))
    assert not taken.intersection(zip(*pairs.tolist(), strict=True))
    for side in pairs.double():
        assert abs(side.mean() / nodes - 0.5) < 0.01


def test_the_generator_decides() -> None:
    z = torch.randn(50, 4)
    edges = torch.randint(50, (2, 30))
    losses = [
        F.graph_reconstruction_loss(z, edges, generator=Generator().manual_seed(seed)).item()
        for seed in (1, 2, 1)
    ]
    assert losses[0] == losses[2] != losses[1]
    torch.manual_seed(3)
    first = F.graph_reconstruction_loss(z, edges)
    torch.manual_seed(3)
    assert F.graph_reconstruction_loss(z, edges) == first
    given = negative_edges(edges, 50, Generator().manual_seed(1))
    assert F.graph_reconstruction_loss(z, edges, given).item() == losses[0]


def test_pairs_are_drawn_under_compile() -> None:
    torch._dynamo.reset()
    compiled = torch.compile(F.graph_reconstruction_loss, backend="aot_eager", fullgraph=True)
    z = torch.randn(50, 4, requires_grad=True)
    edges = torch.randint(50, (2, 30))
    losses = {compiled(z, edges).item() for _ in range(3)}
    assert len(losses) == 3
    assert torch.autograd.grad(compiled(z, edges), z)[0].isfinite().all()


def test_graph_without_a_free_pair() -> None:
    edges = torch.tensor([[0, 1, 1], [1, 0, 1]])
    with pytest.raises(ValueError, match="graph_reconstruction_loss: neg_edge_index must be given"):
        F.graph_reconstruction_loss(torch.zeros(2, 3), edges)
    F.graph_reconstruction_loss(torch.zeros(3, 3), edges)


# ------------------------------------------------------------------------------------------- errors


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.int32, torch.int64])
@pytest.mark.parametrize("reduction", ["none", "mean", "sum"])
@pytest.mark.parametrize("requires_grad", [False, True])
def test_end_of_an_edge_that_is_no_node(
    dtype: torch.dtype, reduction: str, requires_grad: bool
) -> None:
    z = torch.randn(5, 3, requires_grad=requires_grad)
    fine = torch.tensor([[0, 4, 2], [1, 4, 3]], dtype=dtype)
    for value in (5, 200) if dtype == torch.uint8 else (5, -1):
        wrong = fine.clone()
        wrong[1, 2] = value
        message = rf"must hold nodes in \[0, 5\), got {value} at position \[1, 2\]$"
        for name, lists in (
            ("pos_edge_index", (wrong, fine)),
            ("neg_edge_index", (fine, wrong)),
            ("pos_edge_index", (wrong, None)),
        ):
            with pytest.raises(IndexError, match=rf"^graph_reconstruction_loss: {name} {message}"):
                F.graph_reconstruction_loss(z, *lists, reduction)


@pytest.mark.parametrize("name", ["pos_edge_index", "neg_edge_index"])
def test_edges_that_are_none(name: str) -> None:
    arguments: dict[str, Any] = RECONSTRUCTION.arguments(5)

    def expect(error: type[Exception], value: object, text: str) -> None:
        given = {**arguments, name: value}
        if name == "pos_edge_index":
            given.pop("neg_edge_index")  # to be drawn: the message is the same
        with pytest.raises(error, match=rf"^graph_reconstruction_loss: {name} must .*{text}"):
            F.graph_reconstruction_loss(**given)

    for shape in ((3, 5), (5, 2), (2,), (2, 5, 1), ()):
        expect(ValueError, torch.zeros(shape, dtype=torch.int64), r"shape \(2, edges\), got \[")
    for dtype in (torch.float32, torch.bool, torch.int8, torch.complex64):
        expect(TypeError, torch.zeros(2, 5).to(dtype), "int64, got ")
    expect(ValueError, torch.zeros(2, 5, dtype=torch.int64, device="meta"), "on z's device cpu")
    expect(TypeError, [[0], [1]], "Tensor, got list")


def test_nodes_and_generator_that_are_none() -> None:
    edges = torch.zeros(2, 1, dtype=torch.int64)
    for shape in ((3,), (2, 3, 4), ()):
        with pytest.raises(ValueError, match=r"z must have shape \(nodes, features\), got \["):
            F.graph_reconstruction_loss(torch.zeros(shape), edges)
    with pytest.raises(TypeError, match=r"generator must be a torch\.Generator or None, got int"):
        F.graph_reconstruction_loss(torch.zeros(3, 2), edges, generator=7)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("function", "names"),
    [
        (F.scaled_cosine_error, ("x", "y")),
        (F.bootstrap_latent_loss, ("predictions", "targets")),
        (F.variational_graph_kl_loss, ("mu", "logstd")),
    ],
)
def test_rows_that_do_not_fit(function: Callable[..., Tensor], names: tuple[str, str]) -> None:
    first, second = names
    for shape in ((3, 5), (1, 4), (4,), (2, 3, 4)):
        with pytest.raises(ValueError, match=f"{second} must have the shape of {first}, .*3, 4"):
            function(torch.zeros(3, 4), torch.zeros(shape))
    with pytest.raises(ValueError, match=rf"{first} must have shape \(..., features\)"):
        function(torch.tensor(1.0), torch.tensor(1.0))
    with pytest.raises(TypeError, match=f"{second} must be float"):
        function(torch.zeros(3, 4), torch.zeros(3, 4, dtype=torch.int64))
    with pytest.raises(ValueError, match=f"{second} must be on {first}'s device"):
        function(torch.zeros(3, 4), torch.zeros(3, 4, device="meta"))
    with pytest.raises(TypeError, match=f"{first} must be a Tensor"):
        function(3, torch.zeros(3, 4))


# -------------------------------------------------------------------------------------- the others


def test_logits_of_other_shapes(device: str) -> None:
    positive = torch.randn(7, device=device, requires_grad=True)
    negative = torch.randn(3, 4, device=device, requires_grad=True)
    for reduction in ("mean", "sum"):
        mine = F.deep_graph_infomax_loss(positive, negative, reduction)
        theirs = reference.deep_graph_infomax_loss(positive, negative, reduction)
        torch.testing.assert_close(mine, theirs)
        for found, expected in zip(
            torch.autograd.grad(mine, (positive, negative)),
            torch.autograd.grad(theirs, (positive, negative)),
            strict=True,
        ):
            torch.testing.assert_close(found, expected)
    with pytest.raises(ValueError, match="neg_logits must have the shape of pos_logits"):
        F.deep_graph_infomax_loss(positive, negative, "none")


@pytest.mark.table
def test_rows_that_nearly_agree(device: str) -> None:
    """1 - cos of float32 rows is exact to the last digits where a difference would have none."""
    generator = Generator().manual_seed(5)
    x = torch.randn(20, 33, generator=generator)
    y = (3 * x + 1e-4 * torch.randn(20, 33, generator=generator)).to(device)
    x = x.to(device)
    for alpha in (1.0, 3.0):
        mine, expected = (rows.detach().requires_grad_() for rows in (x, x.double()))
        loss = F.scaled_cosine_error(mine, y, alpha, "none")
        oracle = reference.scaled_cosine_error(expected, y.double(), alpha, "none")
        torch.testing.assert_close(loss.double(), oracle, rtol=1e-2, atol=0)
        (gradient,) = torch.autograd.grad(loss.sum(), mine)
        (of_oracle,) = torch.autograd.grad(oracle.sum(), expected)
        allowed = 5e-3 * float(of_oracle.abs().max())
        torch.testing.assert_close(gradient.double(), of_oracle, rtol=0, atol=allowed)


@pytest.mark.table
def test_rows_without_a_direction(device: str) -> None:
    """They are at right angles to all others, and their gradient is torch's."""
    x = torch.tensor([[0.0, 0.0], [1e-14, 0.0], [3.0, 4.0]], device=device)
    y = torch.tensor([[3.0, 4.0], [3.0, 4.0], [0.0, 0.0]], device=device)
    mine, theirs = x.clone().requires_grad_(), x.clone().requires_grad_()
    loss, expected = F.scaled_cosine_error(mine, y, 2.0), graphmae(theirs, y, 2.0)
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(
        torch.autograd.grad(loss, mine)[0], torch.autograd.grad(expected, theirs)[0]
    )


def test_targets_are_constant() -> None:
    rows = [torch.randn(3, 4, requires_grad=True) for _ in range(2)]
    F.bootstrap_latent_loss(*rows).backward()
    assert rows[0].grad is not None
    assert rows[1].grad is None


@pytest.mark.table
def test_divergence_near_and_far(device: str) -> None:
    """Near σ = 1 it is σ's deviation squared; the logarithm is held at 10."""
    small = torch.tensor([[1e-5], [-1e-3], [0.3], [-0.4]], device=device)
    loss = F.variational_graph_kl_loss(torch.zeros_like(small), small, "none").double()
    double = 2 * small.double().squeeze(-1)
    torch.testing.assert_close(loss, (double.expm1() - double) / 2, rtol=1e-5, atol=1e-15)
    large = torch.tensor([9.0, 10.0, 10.5, 1e4], device=device, requires_grad=True)
    loss = F.variational_graph_kl_loss(torch.zeros_like(large), large, "sum")
    (gradient,) = torch.autograd.grad(loss, large)
    expected = [math.exp(18) - 1, math.exp(20) - 1, 0.0, 0.0]
    torch.testing.assert_close(gradient.tolist(), expected, rtol=1e-6, atol=0)
