# SPDX-License-Identifier: MIT
"""The page of losses by task, as text: from docstrings, signatures, the table and measurements."""

from __future__ import annotations

import importlib
import inspect
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from docs.curves import has_curves
from fastloss import functional
from tests.cases import CASES

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "losses.md"
FOLDER = ROOT / "docs" / "pictures"
MEASUREMENTS = ROOT / "benchmarks" / "results" / "cpu.json"

HEAD = """\
<!-- Made by `make docs` from the docstrings; change those. -->
# The losses, by task

Every loss is a function in `fastloss.functional` and a module in `fastloss`, takes `reduction`
(`"none"`, `"mean"` or `"sum"`), and has a twin in plain PyTorch in `fastloss.reference`.
`help(fastloss.functional.NAME)` tells the rest: shapes, dtypes, errors, an example.

The pictures show the loss, and its slope beside it. The times are of forward and backward to a
scalar in float32, and how many times as fast that is as eager PyTorch (or the library the loss is
known from) and as `torch.compile`: {machine}.
"""

# Where each task finds its loss; a name counts once its function is there.
TASKS: dict[str, tuple[str, ...]] = {
    "image classification": (
        *("cross_entropy", "binary_cross_entropy_with_logits", "softmax_focal_loss"),
        "asymmetric_loss",
    ),
    "object detection": (
        *("complete_box_iou_loss", "scylla_box_iou_loss", "wise_box_iou_loss"),
        *("normalized_wasserstein_loss", "repulsion_loss", "distribution_focal_loss"),
        *("task_aligned_assignment", "task_aligned_detection_loss"),
        *("sigmoid_focal_loss", "quality_focal_loss", "varifocal_loss", "pairwise_box_iou"),
        "detr_matching_cost",
        *("probabilistic_iou_loss", "object_keypoint_similarity_loss"),
    ),
    "semantic segmentation": (
        *("cross_entropy", "dice_loss", "dice_cross_entropy_loss", "tversky_loss"),
        *("focal_tversky_loss", "generalized_dice_loss", "lovasz_softmax_loss"),
    ),
    "language modelling": ("linear_cross_entropy", "cross_entropy", "nll_loss"),
    "text classification": ("cross_entropy", "binary_cross_entropy_with_logits"),
    "sequence labelling": ("crf_loss", "cross_entropy"),
    "translation": ("cross_entropy", "linear_cross_entropy", "nll_loss"),
    "sequence generation": (
        *("minimum_risk_loss", "policy_gradient_loss", "self_critical_loss", "sentence_bleu"),
        *("ppo_loss", "grpo_loss"),
    ),
    "graphs": (
        *("graph_reconstruction_loss", "scaled_cosine_error", "info_nce_loss"),
        *("deep_graph_infomax_loss", "bootstrap_latent_loss", "variational_graph_kl_loss"),
        "mse_loss",
    ),
    "generative networks": (
        *("lsgan_discriminator_loss", "wasserstein_discriminator_loss", "gradient_penalty"),
        *("non_saturating_discriminator_loss", "hinge_discriminator_loss", "mse_loss"),
    ),
    "ranking and retrieval": (
        *("triplet_margin_loss", "batch_hard_triplet_loss", "margin_ranking_loss"),
        *("ranknet_loss", "lambda_loss", "approx_ndcg_loss", "neural_ndcg_loss"),
        *("list_net_loss", "list_mle_loss", "ndcg"),
    ),
    "regression and forecasting": (
        *("mse_loss", "huber_loss", "smooth_l1_loss", "l1_loss", "log_cosh_loss", "rmse_loss"),
        "quantile_loss",
    ),
}


def page() -> str:
    """The whole page."""
    measured = json.loads(MEASUREMENTS.read_text(encoding="utf-8"))
    machine = measured["machine"]
    place = f"{machine['cpu']}, {machine['threads']} threads, {machine['instruction_set']}"
    parts = [HEAD.format(machine=place), _task_table()]
    for file in functional_files():
        parts.append(_chapter(file, measured["cases"]))
    return "\n".join(parts)


def functional_files() -> list[Any]:
    """The files of the package, a task each, in the order in which it lists their functions."""
    names = dict.fromkeys(getattr(functional, name).__module__ for name in functional.__all__)
    return [importlib.import_module(name) for name in names]


def _task_table() -> str:
    rows = ["| task | losses |", "| --- | --- |"]
    for task, names in TASKS.items():
        links = [_link(name) for name in names if name in functional.__all__]
        if links:
            rows.append(f"| {task} | {', '.join(links)} |")
    return "\n".join([*rows, ""])


def _link(name: str) -> str:
    return f"[`{name}`](#{name})"


def _chapter(file: Any, cases: list[dict[str, Any]]) -> str:
    title, *rest = _paragraphs(inspect.getdoc(file) or "")
    parts = [f"## {file.__name__.rpartition('.')[2].capitalize()}\n", f"{title}\n"]
    parts.extend(f"{paragraph}\n" for paragraph in rest)
    parts.extend(_section(name, cases) for name in file.__all__)
    return "\n".join(parts)


def _section(name: str, cases: list[dict[str, Any]]) -> str:
    function = getattr(functional, name)
    summary, *rest = _paragraphs((inspect.getdoc(function) or "").partition("\nArgs:")[0])
    sources = [paragraph for paragraph in rest if _is_source(paragraph)]
    modules = dict.fromkeys(case.module for case in CASES if case.function == name and case.module)
    parts = [f"### {name}", summary]
    if has_curves(name):
        parts.append(f"![{name}]({FOLDER.name}/{name}.svg)")
    parts.extend(paragraph for paragraph in rest if paragraph not in sources)
    parts.append(f"```text\n{_signature(name)}\n```")
    facts = [f"Module: `fastloss.{module}`." for module in modules]
    facts.extend(f"Source: {_with_links(source)}" for source in sources)
    facts.extend(_times(name, cases))
    parts.append("  \n".join(facts))
    return "".join(f"{part}\n\n" for part in parts if part).rstrip("\n") + "\n"


def _paragraphs(docstring: str) -> list[str]:
    """The paragraphs in Markdown; lists keep their lines."""
    found = []
    for paragraph in docstring.strip().split("\n\n"):
        lines = paragraph.strip().split("\n")
        joined = "\n".join(lines) if lines[0].startswith("- ") else " ".join(lines)
        # Roles of Sphinx become links within the page, or plain names.
        joined = re.sub(r":func:`(?:\w+\.)*(\w+)`", lambda m: _link(m[1]), joined)
        joined = re.sub(r":\w+:`([\w.]+)`", r"`\1`", joined)
        found.append(re.sub(r"``(.+?)``", r"`\1`", joined))
    return found


def _is_source(paragraph: str) -> bool:
    """Whether it ends with a year, or with the number of arXiv or doi."""
    return re.search(r"((19|20)\d\d|arXiv \d{4}\.\d{4,5}|doi 10\.\S+)\.$", paragraph) is not None


def _with_links(source: str) -> str:
    source = re.sub(r"arXiv (\d{4}\.\d{4,5})", r"[arXiv \1](https://arxiv.org/abs/\1)", source)
    return re.sub(r"doi (10\.\S+)\.$", r"[doi \1](https://doi.org/\1).", source)


def _signature(name: str) -> str:
    parameters = inspect.signature(getattr(functional, name)).parameters.values()
    words, star = [], False
    for parameter in parameters:
        if parameter.kind is parameter.KEYWORD_ONLY and not star:
            words.append("*")
            star = True
        has_default = parameter.default is not parameter.empty
        default = repr(parameter.default).replace("'", '"')
        words.append(f"{parameter.name}={default}" if has_default else parameter.name)
    one_line = f"{name}({', '.join(words)})"
    if len(one_line) <= 88:
        return one_line
    return "\n".join(_wrapped(name, words))


def _wrapped(name: str, words: list[str]) -> Iterator[str]:
    line, indent = f"{name}(", " " * 4
    yield line
    line = indent
    for word in words:
        if len(line) + len(word) + 2 > 88:
            yield line.rstrip()
            line = indent
        line += f"{word}, "
    yield line.rstrip()
    yield ")"


def _times(name: str, cases: list[dict[str, Any]]) -> Iterator[str]:
    """A line per measurement of the function."""
    rows = {case.id for case in CASES if case.function == name}
    for case in cases:
        # Against another loss stands what a call costs, not how fast a loss is.
        if case["loss"] not in rows or case["limit"] is None:
            continue
        timing = case["fastloss"]["timing"]["ms"]
        against = [
            f"{_rounded(case[key])}× {who}"
            for key, who in (
                ("speedup_over_eager", "eager"),
                ("speedup_over_compiled", "torch.compile"),
            )
            if case[key] is not None
        ]
        yield f"Time: {case['title']}: {_rounded(timing)} ms, {', '.join(against)}."


def _rounded(value: float) -> str:
    """Two significant digits, without an exponent."""
    digits = f"{value:.2g}"
    return f"{float(digits):g}" if "e" in digits else digits
