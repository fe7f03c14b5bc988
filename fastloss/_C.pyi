# SPDX-License-Identifier: MIT
"""What csrc/torch/bindings.cpp defines."""

from torch import Tensor

Numbers = tuple[float, ...]

def pointwise(
    loss: str,
    input: Tensor,
    target: Tensor | None,
    parameters: Numbers,
    extra: Tensor | None,
    weight: Tensor | None,
    reduction: str,
    avg_factor: float | Tensor | None,
) -> Tensor: ...
def softmax(
    loss: str,
    input: Tensor,
    target: Tensor,
    parameters: Numbers,
    mask: Tensor | None,
    weight: Tensor | None,
    reduction: str,
    avg_factor: float | Tensor | None,
) -> Tensor: ...
def linear_cross_entropy(
    loss: str,
    input: Tensor,
    linear_weight: Tensor,
    linear_bias: Tensor | None,
    target: Tensor,
    parameters: Numbers,
    weight: Tensor | None,
    reduction: str,
    avg_factor: float | Tensor | None,
) -> Tensor: ...
def box_pair(
    loss: str,
    boxes1: Tensor,
    boxes2: Tensor,
    parameters: Numbers,
    device_parameter: Tensor | None,
    weight: Tensor | None,
    reduction: str,
    avg_factor: float | Tensor | None,
) -> Tensor: ...
def box_matrix(kind: str, boxes1: Tensor, boxes2: Tensor, parameters: Numbers) -> Tensor: ...
def box_crowd(
    loss: str,
    boxes: Tensor,
    target_boxes: Tensor,
    target_index: Tensor,
    batch_index: Tensor | None,
    target_batch_index: Tensor | None,
    parameters: Numbers,
    reduction: str,
) -> Tensor: ...
def pairs(
    loss: str,
    scores: Tensor,
    relevance: Tensor,
    parameters: Numbers,
    mask: Tensor | None,
    reduction: str,
) -> Tensor: ...
def policy(
    loss: str,
    log_probs: Tensor,
    old_log_probs: Tensor,
    advantages: Tensor,
    ref_log_probs: Tensor | None,
    mask: Tensor | None,
    parameters: Numbers,
    normalizer: str,
    reduction: str,
    avg_factor: float | Tensor | None,
) -> Tensor: ...
def triplet(
    loss: str,
    anchor: Tensor,
    positive: Tensor,
    negative: Tensor,
    parameters: Numbers,
    reduction: str,
) -> Tensor: ...
def batch_hard(
    loss: str, embeddings: Tensor, labels: Tensor, parameters: Numbers, reduction: str
) -> Tensor: ...
def row_pair(
    loss: str, first: Tensor, second: Tensor, parameters: Numbers, reduction: str
) -> Tensor: ...
def edges(
    loss: str, z: Tensor, pos_edge_index: Tensor, neg_edge_index: Tensor, reduction: str
) -> Tensor: ...
def contrastive(
    z1: Tensor,
    z2: Tensor,
    temperature: Tensor | float,
    mode: str,
    normalize: bool,
    positive: int,
    itself: int | None,
    reduction: str,
) -> Tensor: ...
def region(
    loss: str,
    input: Tensor,
    target: Tensor,
    parameters: Numbers,
    activation: str,
    squared_pred: bool,
    include_background: bool,
    batch: bool,
    weight: Tensor | None,
    ignore_index: int | None,
    reduction: str,
) -> Tensor: ...
def ranked_region(
    loss: str,
    input: Tensor,
    target: Tensor,
    present: bool,
    per_image: bool,
    ignore_index: int | None,
    reduction: str,
) -> Tensor: ...
def task_aligned_assignment(
    detections: tuple[Tensor, ...],
    topk: int,
    topk2: int | None,
    alpha: float,
    beta: float,
    candidate_boxes: Tensor | None,
) -> tuple[Tensor, Tensor]: ...
def task_aligned_detection_loss(
    detections: tuple[Tensor, ...],
    target_indices: Tensor,
    target_scores: Tensor,
    weight: Tensor | None,
) -> Tensor: ...
def crf(
    emissions: Tensor,
    tags: Tensor,
    transitions: Tensor,
    start_transitions: Tensor | None,
    end_transitions: Tensor | None,
    mask: Tensor | None,
    reduction: str,
) -> Tensor: ...
def crf_marginals(
    emissions: Tensor,
    transitions: Tensor,
    start_transitions: Tensor | None,
    end_transitions: Tensor | None,
    mask: Tensor | None,
) -> Tensor: ...
def crf_decode(
    emissions: Tensor,
    transitions: Tensor,
    start_transitions: Tensor | None,
    end_transitions: Tensor | None,
    mask: Tensor | None,
) -> tuple[Tensor, Tensor]: ...
def detr_matching_cost(
    logits: Tensor,
    boxes: Tensor,
    target_labels: Tensor,
    target_boxes: Tensor,
    class_cost: float,
    bbox_cost: float,
    giou_cost: float,
    alpha: float,
    gamma: float,
    kind: str,
) -> Tensor: ...
def sentence_bleu(
    candidates: Tensor,
    references: Tensor,
    max_order: int,
    smoothing: str,
    smoothing_value: float | None,
    pad_index: int,
) -> Tensor: ...
def build_info() -> dict[str, str | bool]: ...
def kernels() -> dict[str, list[str]]: ...
def empty_cache() -> None: ...
