# SPDX-License-Identifier: MIT
"""Conditional random fields: against all paths one by one, over thousands of steps, where
probabilities leave the range of float32, decoding, and pytorch-crf.
"""

from __future__ import annotations

import itertools
import math
from types import ModuleType

import pytest
import torch
from cases import DECODING, TOLERANCES, Arguments, find_case
from support import as_float64, assert_close, check_against_oracle, gradients

import fastloss
import fastloss.functional as F
from fastloss import reference

LOSS = find_case("crf_loss-mask")
FLOAT32 = TOLERANCES[torch.float32]
SCORES = ("emissions", "transitions", "start_transitions", "end_transitions")


def chains(*shape: int, dtype: torch.dtype = torch.float64, device: str = "cpu") -> Arguments:
    """Masked sequences without their tags."""
    arguments = LOSS.arguments(shape, dtype, device=device)
    del arguments["tags"]
    return arguments


def on(device: str, arguments: Arguments) -> Arguments:
    return {name: tensor.to(device) for name, tensor in arguments.items()}


# ------------------------------------------------------------------------------ all paths by hand


def score_by_hand(arguments: Arguments, sequence: int, path: tuple[int, ...]) -> float:
    emissions, transitions, start, end = (arguments[name].tolist() for name in SCORES)
    score = start[path[0]] + end[path[-1]]
    score += sum(emissions[sequence][step][tag] for step, tag in enumerate(path))
    return score + sum(transitions[before][after] for before, after in itertools.pairwise(path))


def test_every_path_by_hand() -> None:
    """Loss, probabilities and best path from a list of all paths."""
    arguments = LOSS.arguments((6, 5, 3), torch.float64)
    tags, mask = arguments["tags"], arguments["mask"]
    given = {name: value for name, value in arguments.items() if name != "tags"}
    for package in (F, reference):
        losses = package.crf_loss(**arguments, reduction="none")
        marginals = package.crf_marginals(**given)
        best, best_score = package.crf_decode(**given)
        assert best.dtype == torch.int64
        for b, length in enumerate(mask.sum(1).tolist()):
            scores = {
                path: score_by_hand(arguments, b, path)
                for path in itertools.product(range(3), repeat=length)
            }
            total = math.log(sum(map(math.exp, scores.values())))
            right = tuple(tags[b, :length].tolist())
            assert losses[b].item() == pytest.approx(total - scores[right], rel=1e-12)
            expected = torch.zeros(5, 3, dtype=torch.float64)
            for path, score in scores.items():
                expected[range(length), path] += math.exp(score - total)
            torch.testing.assert_close(marginals[b], expected)
            winner = max(scores, key=scores.__getitem__)
            assert best[b].tolist() == [*winner, *[-1] * (5 - length)]
            assert best_score[b].item() == pytest.approx(scores[winner], rel=1e-12)


def test_reductions_follow_from_the_losses() -> None:
    arguments = LOSS.arguments((7, 6, 4), torch.float64)
    each = reference.crf_loss(**arguments, reduction="none")
    expected = {
        "sum": each.sum(),
        "mean": each.mean(),
        "token_mean": each.sum() / arguments["mask"].sum(),
    }
    for reduction, value in expected.items():
        torch.testing.assert_close(reference.crf_loss(**arguments, reduction=reduction), value)
    assert F.crf_loss(**arguments) == F.crf_loss(**arguments, reduction="mean")


# -------------------------------------------------------------------------------- numbers of tags


@pytest.mark.table
@pytest.mark.parametrize("tags", [1, 2, 8, 17, 31, 32, 33, 48, 65, 129, 260])
def test_number_of_tags(tags: int, device: str) -> None:
    """Around the widths of vectors and warps, and more than a table in shared memory holds."""
    shape = (5, 4, tags)
    arguments = LOSS.arguments(shape, device=device, requires_grad=SCORES if tags > 1 else ())
    check_against_oracle(LOSS, arguments, reduction="none")
    given = chains(*shape, dtype=torch.float32, device=device)
    wide = as_float64(given)
    assert_close(F.crf_marginals(**given), reference.crf_marginals(**wide), FLOAT32, "marginals")
    best, score = F.crf_decode(**given)
    expected, expected_score = reference.crf_decode(**wide)
    assert torch.equal(best, expected)
    assert_close(score, expected_score, FLOAT32, "score")


@pytest.mark.table
@pytest.mark.parametrize("absent", ["start_transitions", "end_transitions", "mask", "all"])
def test_scores_that_are_not_given(absent: str, device: str) -> None:
    names = SCORES[2:] if absent == "all" else (absent,)
    for shape in ((5, 1, 3), (6, 5, 4)):
        arguments = LOSS.arguments(shape, device=device, requires_grad=SCORES)
        arguments["tags"] = arguments["tags"].clamp(min=0)
        for name in names:
            del arguments[name]
        check_against_oracle(LOSS, arguments, reduction="mean")
        given = {name: value.detach() for name, value in arguments.items() if name != "tags"}
        best, _ = F.crf_decode(**given)
        assert torch.equal(best, reference.crf_decode(**as_float64(given))[0])


# ----------------------------------------------------------------------------------------- length


@pytest.mark.parametrize("scale", [0.1, 1.0, 30.0])
def test_thousands_of_steps(scale: float) -> None:
    """The sum over all paths is far beyond any float, and no digit is lost on the way."""
    arguments = LOSS.arguments((3, 4096, 5))
    for name in SCORES:
        arguments[name] = (scale * arguments[name]).requires_grad_()
    loss = check_against_oracle(LOSS, arguments, reduction="none")
    assert loss.isfinite().all()
    given = {name: value.detach() for name, value in arguments.items() if name != "tags"}
    wide = as_float64(given)
    assert_close(F.crf_marginals(**given), reference.crf_marginals(**wide), FLOAT32, "marginals")
    best, score = F.crf_decode(**given)
    expected, expected_score = reference.crf_decode(**wide)
    assert_close(score, expected_score, FLOAT32, "score")
    assert (best == expected).float().mean() > 0.999  # but for ties in float32


# ---------------------------------------------------------------- beyond the range of probabilities


def forbidding(device: str = "cpu", scale: float = 1.0) -> Arguments:
    """What comes first forbids what comes later, and that allows nothing else: at the middle step
    the only path there is has a probability below any that float32 holds.
    """
    emissions = torch.zeros(4, 5, 3)
    emissions[0, 1] = torch.tensor([0.0, -300.0, -400.0])
    emissions[0, 3] = torch.tensor([-900.0, 0.0, 0.0])
    emissions[1, 2] = torch.tensor([0.0, -90.0, -1000.0])
    emissions[1, 4] = torch.tensor([-900.0, -300.0, 0.0])
    emissions[2, 0] = torch.tensor([1.0, 2.0, 3.0])
    emissions[3, 4] = torch.tensor([-1e4, 1e4, 0.0])
    transitions = torch.full((3, 3), -1e4) + 1e4 * torch.eye(3)
    transitions[0, 1] = -500.0
    tags = torch.tensor([[1] * 5, [2] * 5, [0, 0, 1, 1, 1], [0, 0, 0, 1, 1]])
    mask = torch.ones(4, 5, dtype=torch.bool)
    mask[2, 3:] = False
    names = ("emissions", "tags", "transitions", "mask")
    values = (scale * emissions, tags, scale * transitions, mask)
    return on(device, dict(zip(names, values, strict=True)))


@pytest.mark.table
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("scale", [0.01, 0.2, 1.0])
def test_probabilities_below_the_smallest_float(
    scale: float, dtype: torch.dtype, device: str
) -> None:
    arguments = forbidding(device, scale * (10 if dtype == torch.float64 else 1))
    for name in SCORES[:2]:
        arguments[name] = arguments[name].to(dtype).requires_grad_()
    for reduction in ("none", "mean"):
        loss = check_against_oracle(LOSS, arguments, f"{scale}", reduction=reduction)
        assert loss.isfinite().all()
    without = {name: value.detach() for name, value in arguments.items()}
    expected = reference.crf_loss(**as_float64(without), reduction="none")
    assert_close(F.crf_loss(**without, reduction="none"), expected, FLOAT32, "loss alone")
    del without["tags"]
    expected = reference.crf_marginals(**as_float64(without))
    assert_close(F.crf_marginals(**without), expected, FLOAT32, "marginals")


@pytest.mark.table
def test_scores_of_minus_infinity_forbid(device: str) -> None:
    """As long as something is left; what is forbidden has no gradient."""
    arguments = LOSS.arguments((4, 5, 4), device=device)
    arguments["transitions"][1, 2] = arguments["start_transitions"][3] = -math.inf
    arguments["tags"] = torch.where(arguments["mask"], 0, -1)
    finite = {
        name: value.clamp(min=-1e30) if value.is_floating_point() else value
        for name, value in arguments.items()
    }
    for name in SCORES:
        arguments[name].requires_grad_()
        finite[name] = finite[name].double().requires_grad_()
    loss = F.crf_loss(**arguments)
    expected = reference.crf_loss(**finite)
    assert_close(loss, expected, FLOAT32, "loss")
    expected_gradients = gradients(expected, finite)
    for name, gradient in gradients(loss, arguments).items():
        assert_close(gradient, expected_gradients[name], FLOAT32, f"gradient of {name}")
    del arguments["tags"], finite["tags"]
    assert torch.equal(F.crf_decode(**arguments)[0], reference.crf_decode(**finite)[0])


# ------------------------------------------------------------------------------------------ masks


@pytest.mark.table
@pytest.mark.parametrize("dtype", [torch.bool, torch.uint8, torch.int32, torch.int64])
def test_masked_steps_are_as_if_they_were_not_there(dtype: torch.dtype, device: str) -> None:
    arguments = LOSS.arguments((6, 5, 4), device=device, requires_grad=SCORES)
    mask = arguments["mask"]
    arguments["mask"] = mask.to(dtype) * (1 if dtype == torch.bool else 3)
    with torch.no_grad():
        arguments["emissions"][~mask] = torch.nan
    arguments["tags"][~mask] = torch.iinfo(torch.int64).max
    loss = F.crf_loss(**arguments, reduction="none")
    found = gradients(loss, arguments, torch.ones(6))
    total = {name: torch.zeros_like(arguments[name]) for name in SCORES}
    for b, length in enumerate(mask.sum(1).tolist()):
        alone = {name: arguments[name].detach().clone().requires_grad_() for name in SCORES}
        emissions = alone["emissions"]
        alone["emissions"] = emissions[b : b + 1, :length]
        one = F.crf_loss(**alone, tags=arguments["tags"][b : b + 1, :length], reduction="sum")
        assert_close(loss[b], one, FLOAT32, f"loss of sequence {b}")
        alone["emissions"] = emissions
        for name, gradient in gradients(one, alone, torch.ones(())).items():
            total[name] += gradient
    for name, gradient in found.items():
        assert_close(gradient, total[name], FLOAT32, f"gradient of {name}")
    assert not found["emissions"][~mask].any()
    given = {name: arguments[name].detach() for name in (*SCORES, "mask")}
    assert not F.crf_marginals(**given)[~mask].any()
    assert (F.crf_decode(**given)[0] == -1).equal(~mask)


@pytest.mark.table
def test_nan_stays_in_its_sequence(device: str) -> None:
    arguments = LOSS.arguments((9, 5, 4), device=device, requires_grad=["emissions"])
    clean = F.crf_loss(**arguments, reduction="none")
    with torch.no_grad():
        arguments["emissions"][5, 0, 2] = torch.nan
    loss = F.crf_loss(**arguments, reduction="none")
    (gradient,) = gradients(loss, arguments).values()
    assert loss.isnan().nonzero().flatten().tolist() == [5]
    assert gradient.isnan().flatten(1).any(1).nonzero().flatten().tolist() == [5]
    assert torch.equal(loss[:5], clean[:5])
    given = {name: arguments[name].detach() for name in (*SCORES, "mask")}
    tags, scores = F.crf_decode(**given)
    assert (tags.eq(-1)).equal(~arguments["mask"])  # some tag, never one that does not exist
    assert tags.max() < 4
    assert scores.isnan().nonzero().flatten().tolist() == [5]


# -------------------------------------------------------------------------------------- marginals


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_probabilities_are_the_gradient_of_the_sum_over_all_paths(dtype: torch.dtype) -> None:
    arguments = LOSS.arguments((6, 7, 5), dtype, requires_grad=["emissions"])
    tags, mask = arguments["tags"], arguments["mask"]
    (gradient,) = gradients(
        F.crf_loss(**arguments, reduction="sum"), arguments, torch.ones(())
    ).values()
    del arguments["tags"]
    marginals = F.crf_marginals(**arguments)
    one_hot = torch.nn.functional.one_hot(tags.clamp(min=0), 5) * mask.unsqueeze(2)
    assert_close(marginals - one_hot, gradient, TOLERANCES[dtype], "gradient")
    torch.testing.assert_close(marginals.sum(2), mask.to(dtype), rtol=0, atol=1e-6)
    assert marginals.requires_grad


# --------------------------------------------------------------------------------------- decoding


@pytest.mark.table
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_the_score_of_the_best_tags_is_theirs(dtype: torch.dtype, device: str) -> None:
    arguments = chains(9, 6, 5, dtype=dtype, device=device)
    tags, score = F.crf_decode(**arguments)
    assert score.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    wide = as_float64(arguments)
    expected, _ = reference.crf_decode(**wide)
    for b, length in enumerate(arguments["mask"].sum(1).tolist()):
        path, best = (tuple(row[b, :length].tolist()) for row in (tags, expected))
        by_hand = score_by_hand(wide, b, path)
        # Scores of few digits have ties.
        assert by_hand == pytest.approx(score_by_hand(wide, b, best), rel=1e-12)
        assert score[b].item() == pytest.approx(by_hand, rel=1e-5)
    assert (tags == -1).equal(~arguments["mask"])


@pytest.mark.table
def test_of_equally_good_tags_the_smaller_one(device: str) -> None:
    """Whole numbers, which float32 adds exactly, with ties everywhere."""
    generator = torch.Generator().manual_seed(0)
    for tags in (3, 20):
        shapes = ((50, 6, tags), (tags, tags), (tags,), (tags,))
        scores = [torch.randint(3, shape, generator=generator).float() for shape in shapes]
        given = on(device, dict(zip(SCORES, scores, strict=True)))
        for found, expected in zip(
            F.crf_decode(**given), reference.crf_decode(**given), strict=True
        ):
            assert torch.equal(found, expected)


@pytest.mark.table
def test_strides_of_what_is_decoded(device: str) -> None:
    dense = chains(7, 6, 5, dtype=torch.float32, device=device)
    expected = F.crf_decode(**dense)
    strided = {
        "emissions": dense["emissions"].permute(2, 0, 1).contiguous().permute(1, 2, 0),
        "transitions": dense["transitions"].t().contiguous().t(),
        "start_transitions": dense["start_transitions"].repeat_interleave(2)[::2],
        "end_transitions": dense["end_transitions"].repeat_interleave(2)[::2],
        "mask": dense["mask"].t().contiguous().t(),
    }
    for found, wanted in zip(F.crf_decode(**strided), expected, strict=True):
        assert torch.equal(found, wanted)


def test_decoding_has_no_gradient_and_changes_nothing() -> None:
    arguments = DECODING.arguments(9, requires_grad=True)
    before = {name: value.detach().clone() for name, value in arguments.items()}
    tags, score = F.crf_decode(**arguments)
    assert not tags.requires_grad
    assert not score.requires_grad
    for name, value in before.items():
        assert torch.equal(arguments[name], value)


def test_no_sequences_to_decode() -> None:
    tags, score = F.crf_decode(torch.zeros(0, 4, 3), torch.zeros(3, 3))
    assert tags.shape == (0, 4)
    assert score.shape == (0,)
    assert F.crf_marginals(torch.zeros(0, 4, 3), torch.zeros(3, 3)).shape == (0, 4, 3)


def test_decoding_in_torchs_machinery() -> None:
    arguments = DECODING.arguments(9)
    expected = F.crf_decode(**arguments)
    compiled = torch.compile(F.crf_decode, fullgraph=True, backend="aot_eager")
    for found, wanted in zip(compiled(**arguments), expected, strict=True):
        assert torch.equal(found, wanted)
    values = [arguments[name] for name in (*SCORES, "mask")]
    torch.library.opcheck(
        torch.ops.fastloss.crf_decode_forward.default,
        values,
        test_utils=("test_schema", "test_faketensor"),
    )
    torch.library.opcheck(torch.ops.fastloss.crf_decode.default, values)
    several = torch.func.vmap(lambda x: F.crf_decode(**{**arguments, "emissions": x})[0])(
        torch.stack((arguments["emissions"], -arguments["emissions"]))
    )
    assert torch.equal(several[0], expected[0])
    for found, wanted in zip(
        F.crf_decode(**{name: value.to("meta") for name, value in arguments.items()}),
        expected,
        strict=True,
    ):
        assert (found.shape, found.dtype, found.stride()) == (
            wanted.shape,
            wanted.dtype,
            wanted.stride(),
        )


# ------------------------------------------------------------------------------------- the module


@pytest.fixture
def torchcrf() -> ModuleType:
    return pytest.importorskip("torchcrf")


def modules(torchcrf: ModuleType, batch_first: bool) -> tuple[torch.nn.Module, fastloss.CRF]:
    torch.manual_seed(0)
    theirs = torchcrf.CRF(4, batch_first=batch_first)
    mine = fastloss.CRF(4, batch_first=batch_first)
    mine.load_state_dict(theirs.state_dict())
    return theirs, mine


@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize("masked", [False, True])
def test_the_module_is_pytorch_crfs(torchcrf: ModuleType, batch_first: bool, masked: bool) -> None:
    """Names, order of arguments, reductions, decoding; one import is all that changes."""
    theirs, mine = modules(torchcrf, batch_first)
    arguments = LOSS.arguments((5, 7, 4))
    emissions, tags = arguments["emissions"], arguments["tags"].clamp(min=0)
    mask = arguments["mask"] if masked else None
    if not batch_first:
        emissions, tags = emissions.transpose(0, 1), tags.transpose(0, 1)
        mask = None if mask is None else mask.transpose(0, 1)
    given = torch.ones(tags.shape, dtype=torch.bool) if mask is None else mask  # it warns of uint8
    for reduction in ("none", "sum", "mean", "token_mean"):
        results = []
        for module, with_mask in ((theirs, given), (mine, mask)):
            leaf = emissions.clone().requires_grad_()
            likelihood = module(leaf, tags, with_mask, reduction)
            upstream = torch.linspace(0.5, 2, likelihood.numel()).view(likelihood.shape)
            inputs = [leaf, *module.parameters()]
            results.append([likelihood, *torch.autograd.grad(likelihood, inputs, upstream)])
        for expected, found in zip(*results, strict=True):
            torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(mine(emissions, tags, mask), theirs(emissions, tags, given))
    assert mine.decode(emissions, mask) == theirs.decode(emissions, given)
    if masked:
        assert mine.decode(emissions, mask=mask.to(torch.uint8)) == mine.decode(emissions, mask)
    assert repr(fastloss.CRF(4)) == repr(torchcrf.CRF(4)) == "CRF(num_tags=4)"


def test_parameters_are_pytorch_crfs(torchcrf: ModuleType) -> None:
    theirs, mine = torchcrf.CRF(4), fastloss.CRF(4)
    shapes = {name: value.shape for name, value in theirs.named_parameters()}
    assert {name: value.shape for name, value in mine.named_parameters()} == shapes
    torch.manual_seed(3)
    mine.reset_parameters()
    torch.manual_seed(3)
    theirs.reset_parameters()
    for name, value in theirs.state_dict().items():
        assert torch.equal(mine.state_dict()[name], value)
        assert value.abs().max() <= 0.1


@pytest.mark.parametrize("batch_first", [False, True])
def test_module_calls_the_functions(batch_first: bool) -> None:
    module = fastloss.CRF(4, batch_first=batch_first)
    arguments = LOSS.arguments((5, 7, 4))
    inputs = [arguments[name] for name in ("emissions", "tags", "mask")]
    given = inputs if batch_first else [tensor.transpose(0, 1) for tensor in inputs]
    scores = {name: getattr(module, name) for name in SCORES[1:]}
    emissions, tags, mask = inputs
    expected = -F.crf_loss(emissions, tags, mask=mask, reduction="sum", **scores)
    assert torch.equal(module(*given), expected)
    marginals = module.marginals(given[0], given[2])
    assert torch.equal(
        marginals if batch_first else marginals.transpose(0, 1),
        F.crf_marginals(emissions, mask=mask, **scores),
    )
    best, _ = F.crf_decode(emissions, mask=mask, **scores)
    found = module.decode(given[0], given[2])
    assert [len(row) for row in found] == mask.sum(1).tolist()
    assert [*itertools.chain(*found)] == best[mask].tolist()
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
    assert_close(compiled(*given), expected, FLOAT32, "compiled")
    if batch_first:
        assert repr(module) == "CRF(num_tags=4, batch_first=True)"


def test_training_finds_the_tags() -> None:
    """A field alone learns that tags take turns."""
    torch.manual_seed(0)
    crf = fastloss.CRF(3, batch_first=True)
    tags = torch.arange(12).remainder(3).expand(8, 12)
    emissions = torch.zeros(8, 12, 3)
    optimizer = torch.optim.Adam(crf.parameters(), lr=0.2)
    losses = []
    for _ in range(60):
        optimizer.zero_grad()
        loss = -crf(emissions, tags, reduction="token_mean")
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.02 * losses[0]
    assert crf.decode(emissions[:1]) == [tags[0].tolist()]
