"""DualAdapt after training: evaluation on a client, and the model that a client predicts with."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from copy import deepcopy
from typing import Any

import torch
from flwr.app import Message, RecordDict
from torch import Tensor, nn

from fedlab.config.schema import Config
from fedlab.data.dataset import ArrayDataset
from fedlab.errors import DataError
from fedlab.models.batchnorm_stats import adapt_batchnorm, encode
from fedlab.models.feature_classifier import (
    EnsembleHead,
    FeatureClassifier,
    FlattenRows,
    features_of,
    group_rows,
    head_of,
)
from fedlab.strategies.dualadapt.shared import BATCH, CONTROL, HEAD, LAST
from fedlab.strategies.protocol import (
    ARRAYS,
    METRICS,
    ClientContext,
    ModelStates,
    arrays_of,
    client_dataset,
    load,
    metrics_record,
)
from fedlab.strategies.received_models import received_model
from fedlab.training import resolve_device
from fedlab.workload import Workload


def evaluate(workload: Workload, message: Message, context: ClientContext) -> RecordDict:
    """Return the metrics of every predictor on the client's test data, each with the predictor's name appended.

    A client whose uploads are protected by secret noise reports none: its test data is not covered.
    """
    options = context.config.strategy
    if options.local_privacy != "off" and context.config.secret_noise:
        return RecordDict({METRICS: metrics_record({}, 1)})
    device = context.device
    test = client_dataset(workload, context, "test")

    def head_and_features(record: str, adapted: bool = True) -> tuple[nn.Module, ArrayDataset]:
        model = received_model(workload, arrays_of(message.content, record), device)
        if adapted:
            own = client_dataset(workload, context, "train")
            adapt_batchnorm(features_of(model), own, options.bn_images, options.bn_adaptation, device)
        z = encode(features_of(model), test, device, BATCH)
        return head_of(model), ArrayDataset({**test.columns, "x": group_rows(z, len(test))})

    def measure(head: nn.Module, data: ArrayDataset) -> dict[str, float]:
        return workload.evaluate(FlattenRows(head), data)

    heads = message.content
    metrics: dict[str, float] = {}
    global_head, data = head_and_features(ARRAYS)
    metrics |= named("global", measure(global_head, data))
    if HEAD in heads:
        local = load(deepcopy(global_head), arrays_of(message.content, HEAD), device)
        metrics |= named("local", measure(local, data)) | named(
            "average", measure(EnsembleHead(global_head, local), data)
        )
        if LAST in heads:
            last_head, last_data = head_and_features(LAST)
            metrics |= named("last", measure(EnsembleHead(last_head, local), last_data))
    if CONTROL in heads:
        metrics |= named("source_only", measure(*head_and_features(CONTROL, adapted=False)))
    return RecordDict({METRICS: metrics_record(metrics, len(test))})


def named(name: str, metrics: Mapping[str, float]) -> dict[str, float]:
    """Return a predictor's metrics, without its loss, with its name appended to theirs."""
    return {f"{metric}_{name}": value for metric, value in metrics.items() if metric != "loss"}


def prediction_states(workload: Workload, message: Message, context: ClientContext) -> ModelStates:
    """Return the arrays that this client predicts with: G with its own statistics, F_g, and its F_l if it has one."""
    local = arrays_of(message.content, HEAD) if HEAD in message.content else None
    own = client_dataset(workload, context, "train")
    return with_local_stats(workload, arrays_of(message.content), local, own, context.config)


def states_from_checkpoint(
    workload: Workload, checkpoint: Mapping[str, Any], partition: int, config: Config
) -> ModelStates:
    """Return the same from a checkpoint; with the source's statistics if the client's data is not on this machine."""
    own = None
    with suppress(DataError):
        own = workload.data(partition, "train")
    return with_local_stats(workload, checkpoint[ARRAYS], checkpoint["strategy"]["heads"].get(partition), own, config)


def with_local_stats(
    workload: Workload,
    arrays: Mapping[str, Tensor],
    local: Mapping[str, Tensor] | None,
    own: ArrayDataset | None,
    config: Config,
) -> ModelStates:
    """Return G and F_g with batch-norm statistics of ``own`` examples, and F_l, as states by record name."""
    options, device = config.strategy, resolve_device(config.run.device)
    model = load(workload.model(), arrays, device)
    if own is not None:
        adapt_batchnorm(features_of(model), own, options.bn_images, options.bn_adaptation, device)
    return {ARRAYS: model.state_dict(), **({HEAD: local} if local is not None else {})}


def predictor(workload: Workload, states: ModelStates) -> nn.Module:
    """Return the module that maps ``x`` to log-probabilities (batch, classes): F_g and F_l averaged, on G."""
    model = load(workload.model(), states[ARRAYS], torch.device("cpu"))
    local = load(deepcopy(head_of(model)), states.get(HEAD, head_of(model).state_dict()), torch.device("cpu"))
    return FeatureClassifier(features_of(model), EnsembleHead(head_of(model), local)).eval()
