"""STARTUP's client side: lines 5 to 8 of the pseudo-code."""

from __future__ import annotations

from copy import deepcopy

from flwr.app import Message, RecordDict

from fedlab.strategies import aggregation
from fedlab.strategies.protocol import ClientContext, arrays_of, client_dataset, drop_none, load, round_of
from fedlab.strategies.startup.shared import TEACHER, StudentWorkload, TargetLoss, ramp_up, schedule, sgd
from fedlab.training import resolve_device, train_steps
from fedlab.workload import Workload


def train(workload: Workload, message: Message, context: ClientContext) -> RecordDict:
    """Train the student on the client's images, without labels, and return it (lines 5 to 8)."""
    config, server_round = context.config, round_of(message)
    core, options, local = config.run, config.strategy, config.client
    device = resolve_device(core.device)
    student_workload = StudentWorkload(workload, options.contrastive_weight > 0)
    student = student_workload.model()
    load(student, arrays_of(message.content), device).train()
    sent = arrays_of(message.content, TEACHER) if TEACHER in message.content else None
    teacher = load(deepcopy(student.model), sent, device) if sent else None
    data = client_dataset(workload, context, "train")
    loss = TargetLoss(workload, options, student, teacher, data, local.batch_size)
    weight = ramp_up(server_round, core.rounds) if options.distillation_warmup else 1.0
    optimizer = sgd(student, schedule(local.learning_rate, server_round, core.rounds))
    mean = None
    if not loss.empty:
        mean = train_steps(
            lambda: loss(weight),
            optimizer,
            local.local_steps(len(data)),
            name="local training",
            after_step=loss.after_step,
        )
    return aggregation.make_reply(student_workload, message, context, student.state_dict(), drop_none(loss=mean), data)
