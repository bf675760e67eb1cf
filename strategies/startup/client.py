"""STARTUP's client side: lines 5 to 8 of the pseudo-code."""

from __future__ import annotations

from copy import deepcopy

from flwr.app import Context, Message, RecordDict

from fedlab.config.schema import ClientTraining, Core, build
from fedlab.strategies import aggregation
from fedlab.strategies.protocol import arrays_of, client_dataset, drop_none, load, round_of
from fedlab.strategies.startup.shared import TEACHER, Knobs, StudentWorkload, TargetLoss, ramp_up, schedule, sgd
from fedlab.training import resolve_device, train_steps
from fedlab.workload import Workload


def train(workload: Workload, message: Message, context: Context) -> RecordDict:
    """Train the student on the client's images, without labels, and return it (lines 5 to 8)."""
    flat, server_round = context.run_config, round_of(message)
    core, knobs, local = build(Core, "", flat), build(Knobs, "startup", flat), build(ClientTraining, "client", flat)
    device = resolve_device(core.device)
    student_workload = StudentWorkload(workload, knobs.contrastive > 0)
    student = student_workload.model()
    load(student, arrays_of(message.content), device).train()
    sent = arrays_of(message.content, TEACHER) if TEACHER in message.content else None
    teacher = load(deepcopy(student.model), sent, device) if sent else None
    data = client_dataset(workload, context, "train")
    loss = TargetLoss(workload, knobs, student, teacher, data, local.batch)
    weight = ramp_up(server_round, core.rounds) if knobs.ramp else 1.0
    optimizer = sgd(student, schedule(local.learning_rate, server_round, core.rounds))
    mean = None
    if not loss.empty:
        mean = train_steps(
            lambda: loss(weight), optimizer, local.steps, name="local training", after_step=loss.after_step
        )
    return aggregation.make_reply(student_workload, message, context, student.state_dict(), drop_none(loss=mean), data)
