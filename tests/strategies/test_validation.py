"""Bad updates: each is refused with a sentence, and none, however mutated, reaches what a strategy holds."""

from __future__ import annotations

import copy
import logging
from contextlib import suppress

import numpy as np
import pytest
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MessageType, MetricRecord, RecordDict
from flwr.common.serde import recorddict_from_proto, recorddict_to_proto
from flwr.supercore.task_identity import TaskIdentity
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as some

from fedlab import registry
from fedlab.comm import compression
from fedlab.comm.grid import PartitionGrid
from fedlab.comm.roster import Roster
from fedlab.comm.tensors import tensor_record
from fedlab.engines import inprocess
from fedlab.engines.client_host import ClientHost, node_partitions
from fedlab.seeds import seeded
from fedlab.strategies import validation
from fedlab.strategies.dualadapt.server_loss import server_loss
from fedlab.strategies.protocol import ARRAYS, CONFIG, METRICS, ROUND, ClientContext
from fedlab.strategies.validation import MAX_EXAMPLES, InvalidUpdate, validate_arrays
from fedlab.vectorized.stacked_states import StackedStates
from mutated_replies import MUTATION, all_finite, mutate
from tables import client_functions, server_strategy
from toy import SMALL, Blobs

EXAMPLES = "num-examples"


@pytest.fixture(autouse=True, scope="module")
def quiet():
    """Flower's log: a line for each of thousands of rounds otherwise."""
    log = logging.getLogger("flwr")
    level = log.level
    log.setLevel(logging.ERROR)
    yield
    log.setLevel(level)


class Round:
    """The first round of a strategy up to its replies, from real client halves; each use starts from there again."""

    def __init__(self, strategy):
        config = registry.load_config({**SMALL, "workload": "digits", "strategy": strategy})
        workload = Blobs(client_labels=strategy == "fedavg")
        TaskIdentity.run_id, TaskIdentity.node_id, TaskIdentity.task_id = 1, 1, 1
        half = client_functions(strategy)

        def client(message, context):
            partition = context.node_config["partition-id"]
            if message.metadata.message_type == MessageType.QUERY:
                return Message(RecordDict({"identity": ConfigRecord({"partition": partition})}), reply_to=message)
            with seeded("client", partition):
                content = half.train(workload, message, ClientContext(partition, config))
            content[CONFIG] = ConfigRecord({ROUND: message.content[CONFIG][ROUND]})
            return Message(content, reply_to=message)

        local = inprocess.InProcessGrid(ClientHost(client, {}, node_partitions(2)))
        grid = PartitionGrid(Roster(local, {0: "near", 1: "far"}), min_clients=2)
        grid.wait_for_clients(0, 5)
        self.half = server_strategy(config, workload)
        with seeded("screening"):
            initial = self.half.initialize()
            self.sent = list(self.half.configure_train(1, initial, ConfigRecord(), grid))
            self.replies = grid.send_and_validate(self.sent, idle_timeout=5, check=self.check)
        self.protos = [recorddict_to_proto(reply.content) for reply in self.replies]
        self.before = copy.deepcopy(self.half.state())
        self.half.aggregate_train(1, self.copies())
        self.trained = copy.deepcopy(self.half.state())  # with the heads and mixtures of a round, if it keeps any

    def copies(self):
        replies = [copy.copy(reply) for reply in self.replies]
        for reply, proto in zip(replies, self.protos, strict=True):
            reply.content = recorddict_from_proto(proto)
        return replies

    def check(self, message, reply):
        validation.validate_reply(message, reply)
        self.half.check(reply)

    def start(self, trained=False):
        state = copy.copy(self.trained if trained else self.before)
        if "heads" in state:
            self.half.heads, self.half.mixtures = dict(state["heads"]), dict(state["mixtures"])
            self.half.onboarding = dict(state["onboarding"])
        return self.copies()

    def refusal(self, change, trained=False):
        """What is said of the first client's reply once it was changed; without the change it is accepted."""
        reply = self.start(trained)[0]
        self.check(self.sent[0], reply)
        change(reply.content)
        with pytest.raises(InvalidUpdate) as caught:
            self.check(self.sent[0], reply)
        assert "it" in str(caught.value)[:20]
        return str(caught.value)


@pytest.fixture(scope="module")
def dualadapt():
    return Round("dualadapt")


@pytest.fixture(scope="module")
def fedavg():
    return Round("fedavg")


@pytest.fixture(params=["dualadapt", "fedavg"])
def either(request):
    return request.getfixturevalue(request.param)


def model_of(content):
    return content["head"] if "head" in content else content[ARRAYS]


def edit(record, key, change):
    record[key] = Array(np.asarray(change(record[key].numpy())))


def first_float(record):
    return next(key for key, array in record.items() if array.dtype == "float32")


def first(change):
    """A change of the first float array of the model."""
    return lambda content: edit(model_of(content), first_float(model_of(content)), change)


def filled(value):
    def change(array):
        array = array.copy()
        array.flat[0] = value
        return array

    return first(change)


def without(content):
    del model_of(content)[next(iter(model_of(content)))]


def extra_loss(content):
    model_of(content)["other"] = Array(np.zeros(2, np.float32))


def renamed(content):
    record = model_of(content)
    record["renamed"] = record.pop(next(iter(record)))


def garbage(content):
    record = model_of(content)
    key = next(iter(record))
    record[key] = Array(record[key].dtype, record[key].shape, record[key].stype, b"garbage")


def no_record(content):
    del content["head" if "head" in content else ARRAYS]


def other_record(content):
    content["head" if "head" in content else ARRAYS] = MetricRecord({"x": 1})


MODELS = {
    "missing key": (without, "missing"),
    "extra key": (extra_loss, "unknown"),
    "renamed key": (renamed, "unknown"),
    "transposed": (first(lambda array: array[..., None]), "expected"),
    "cut": (first(lambda array: array[:-1]), "expected"),
    "double": (first(lambda array: array.astype(np.float64)), "float64"),
    "half": (first(lambda array: array.astype(np.float16)), "float16"),
    "integers": (first(lambda array: array.astype(np.int64)), "int64"),
    "text": (first(lambda array: array.astype("U5")), "cannot be read"),
    "garbage": (garbage, "cannot be read"),
    "NaN": (filled(np.nan), "NaN or infinity"),
    "inf": (filled(np.inf), "NaN or infinity"),
    "minus inf": (filled(-np.inf), "NaN or infinity"),
    "absurd norm": (first(lambda array: np.full_like(array, 1e20)), "max_update_norm_ratio"),
    "largest float": (first(lambda array: np.full_like(array, 3e38)), "max_update_norm_ratio"),
    "no record": (no_record, "has no arrays"),
    "another kind of record": (other_record, "has no arrays"),
}


@pytest.mark.parametrize(("change", "said"), MODELS.values(), ids=MODELS.keys())
def test_models_that_are_not_like_the_servers(either, change, said):
    assert said in either.refusal(change)


def put(record, key, value):
    return lambda content: content[record].__setitem__(key, value)


def drop(*names):
    def change(content):
        for name in names:
            del content[name]

    return change


COMMON = {
    "next round": (put(CONFIG, ROUND, 2), "for round 2, in round 1"),
    "round before": (put(CONFIG, ROUND, 0), "for round 0"),
    "round in words": (put(CONFIG, ROUND, "1"), "for round '1'"),
    "true for round 1": (put(CONFIG, ROUND, True), "for round True"),
    "no round": (lambda content: content[CONFIG].pop(ROUND), "for round None"),
    "no config": (drop(CONFIG), "for round None"),
    "no metrics": (drop(METRICS), "no metrics"),
    "metrics of another kind": (lambda content: content.__setitem__(METRICS, ConfigRecord()), "no metrics"),
    "NaN metric": (put(METRICS, "loss", float("nan")), "'loss' is nan"),
    "infinite metric": (put(METRICS, "loss", float("-inf")), "'loss' is -inf"),
    "list for a metric": (put(METRICS, "loss", [1.0, 2.0]), "not a finite number"),
    "no examples": (put(METRICS, EXAMPLES, 0), "0 examples"),
    "negative examples": (put(METRICS, EXAMPLES, -1), "-1 examples"),
    "a trillion examples": (put(METRICS, EXAMPLES, 10**12), "1000000000000 examples"),
    "half an example": (put(METRICS, EXAMPLES, 0.5), "0.5 examples"),
    "nothing said of examples": (lambda content: content[METRICS].pop(EXAMPLES), "None examples"),
}


@pytest.mark.parametrize(("change", "said"), COMMON.values(), ids=COMMON.keys())
def test_what_holds_for_every_reply(either, change, said):
    assert said in either.refusal(change)


def test_the_most_examples_that_are_believed(either):
    reply = either.start()[0]
    reply.content[METRICS][EXAMPLES] = MAX_EXAMPLES
    either.check(either.sent[0], reply)
    reply.content[METRICS][EXAMPLES] += 1
    with pytest.raises(InvalidUpdate, match="1,000,000,000"):
        either.check(either.sent[0], reply)


@pytest.mark.parametrize(
    "change", [put(METRICS, "more", 1.0), lambda content: content.__setitem__("more", MetricRecord())]
)
def test_fedavg_averages_every_record_and_metric_so_all_must_be_known(fedavg, change):
    assert "its records and metrics are" in fedavg.refusal(change)


def mixed(key, change):
    return lambda content: edit(content["mixture"], key, change)


def mixture_garbage(content):
    content["mixture"]["means"] = Array("float64", (2, 8), "numpy.ndarray", b"garbage")


def test_a_variance_is_not_below_0_but_its_difference_may_be():
    like = {"norm.running_var": torch.ones(2)}
    content = RecordDict({ARRAYS: ArrayRecord({"norm.running_var": torch.tensor([0.5, -0.5])})})
    with pytest.raises(InvalidUpdate, match="norm.running_var is negative somewhere"):
        validate_arrays(content, ARRAYS, like, 10.0)
    assert validate_arrays(content, ARRAYS, like, 10.0, signed=True).keys() == like.keys()


def row_of(state):
    """The record of a client that was trained at once with others."""
    rows = StackedStates({name: torch.stack([torch.zeros_like(array), array]) for name, array in state.items()})
    return RecordDict({ARRAYS: tensor_record(rows[1])})


def test_variances_of_another_domain_are_no_absurd_norm():
    like = {"weight": torch.ones(100), "norm.running_var": torch.ones(32)}
    state = {"weight": torch.ones(100), "norm.running_var": torch.full((32,), 200.0)}  # a norm of 1131 beside 11.5
    for content in (RecordDict({ARRAYS: ArrayRecord(state)}), row_of(state)):
        assert validate_arrays(content, ARRAYS, like, 10.0).keys() == like.keys()
    state["norm.running_var"] = torch.full((32,), 1e5)
    for content in (RecordDict({ARRAYS: ArrayRecord(state)}), row_of(state)):
        with pytest.raises(InvalidUpdate, match="the norm of its arrays is 1.79e\\+03, 156 times the server's"):
            validate_arrays(content, ARRAYS, like, 10.0)


MIXTURES = {
    "weights that sum to 2": (mixed("log_weights", lambda a: a + np.log(2)), "sum to 2"),
    "weights of 0": (mixed("log_weights", lambda a: np.full_like(a, -np.inf)), "sum to nan"),
    "NaN weights": (mixed("log_weights", lambda a: a * np.nan), "sum to nan"),
    "a variance of 0": (mixed("variances", lambda a: a * 0), "variances must be above 0"),
    "negative variances": (mixed("variances", lambda a: -a), "variances must be above 0"),
    "NaN variances": (mixed("variances", lambda a: a * np.nan), "NaN or infinity"),
    "infinite means": (mixed("means", lambda a: a + np.inf), "NaN or infinity"),
    "unsorted quantiles": (mixed("quantiles", lambda a: a[::-1].copy()), "not sorted"),
    "NaN quantiles": (mixed("quantiles", lambda a: a * np.nan), "quantiles"),
    "no quantiles": (mixed("quantiles", lambda a: a[:0]), "quantiles"),
    "too many quantiles": (mixed("quantiles", lambda a: np.zeros(257)), "quantiles"),
    "quantiles in a table": (mixed("quantiles", lambda a: a[None]), "quantiles"),
    "more components": (mixed("means", lambda a: np.concatenate([a, a])), "expected (2"),
    "narrower means": (mixed("means", lambda a: a[:, :-1].copy()), ""),
    "single precision": (mixed("means", lambda a: a.astype(np.float32)), "not float64"),
    "text": (mixed("means", lambda a: a.astype("U5")), ""),
    "garbage": (mixture_garbage, ""),
    "another name": (lambda c: c["mixture"].__setitem__("mean", c["mixture"].pop("means")), "holds"),
    "no mixture": (drop("mixture"), ""),
    "another kind of record": (lambda c: c.__setitem__("mixture", MetricRecord()), ""),
}


@pytest.mark.parametrize("trained", [False, True], ids=["first round", "later"])
@pytest.mark.parametrize(("change", "said"), MIXTURES.values(), ids=MIXTURES.keys())
def test_mixtures_that_are_none(dualadapt, change, said, trained):
    assert said in dualadapt.refusal(change, trained)


def narrower(content):
    for key in ("means", "variances"):
        edit(content["mixture"], key, lambda array: array[:, :-1].copy())


@pytest.mark.parametrize("trained", [False, True], ids=["first round", "later"])
def test_a_whole_mixture_of_narrower_features(dualadapt, trained):
    dualadapt.refusal(narrower, trained)


# --- any mutation -----------------------------------------------------------------------------------------------------


@pytest.mark.engine
@pytest.mark.filterwarnings("ignore")
@settings(max_examples=1000, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True, database=None)
@given(
    mutations=some.lists(MUTATION, min_size=1, max_size=4),
    name=some.sampled_from(["dualadapt", "dualadapt", "fedavg"]),
    trained=some.booleans(),
    onboarding_round=some.booleans(),
)
def test_no_mutated_reply_breaks_a_round_or_what_a_strategy_holds(
    dualadapt, fedavg, mutations, name, trained, onboarding_round
):
    federation = {"dualadapt": dualadapt, "fedavg": fedavg}[name]
    half, (bad, good) = federation.half, federation.start(trained)
    if name == "dualadapt":
        half.onboarding_round = trained and onboarding_round  # then only the mixture of a late joiner is looked at
        if half.onboarding_round:
            del half.heads[0], half.mixtures[0]
    for mutation in mutations:
        with suppress(Exception):  # what was spoilt before cannot always be spoilt again
            mutate(bad.content, *mutation)
    try:
        bad.content = compression.decode(bad.content)
        federation.check(federation.sent[0], bad)
    except Exception as error:  # as PartitionGrid.send_and_validate does
        usable = [] if str(error) or type(error) is AssertionError else pytest.fail(f"no sentence: {error!r}")
    else:
        usable = [bad]
    try:
        arrays, _ = half.aggregate_train(1, usable if getattr(half, "onboarding_round", False) else [*usable, good])
        if arrays is not None:
            assert all_finite(dict(arrays.to_torch_state_dict()))
        if name == "dualadapt":
            assert all_finite(half.heads) and all_finite(half.mixtures)
            if half.heads:
                assert server_loss(half.trainer, half.heads, half.mixtures, half.options, 2)(0).isfinite()
    finally:
        half.onboarding_round = False


# --- replies that are rows of stacked states ---


def rows(**changes):
    """Records of three clients that were trained at once."""
    arrays = {"w": torch.ones(3, 2, 2), "running_var": torch.ones(3, 2), "n": torch.arange(3)}
    states = StackedStates({**arrays, **changes})
    return [RecordDict({ARRAYS: tensor_record(state)}) for state in states]


LIKE = {"w": torch.ones(2, 2), "running_var": torch.ones(2), "n": torch.tensor(0)}


def test_valid_rows_are_accepted_without_being_made():
    for content in rows():
        validate_arrays(content, ARRAYS, LIKE, 10.0)
        assert all("tensor" not in array.__dict__ for array in content[ARRAYS].values())


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"w": torch.stack([torch.ones(2, 2), torch.full((2, 2), torch.nan), torch.ones(2, 2)])}, "arrays/w holds NaN"),
        ({"w": torch.tensor([1.0, 1e6, 1.0])[:, None, None].expand(3, 2, 2)}, "norm of its arrays"),
        ({"running_var": torch.tensor([[1.0, 1.0], [1.0, -1.0], [1.0, 1.0]])}, "running_var is negative"),
    ],
)
def test_a_bad_row_is_refused_and_the_others_are_not(changes, reason):
    good, bad, other = rows(**changes)
    for content in (good, other):
        validate_arrays(content, ARRAYS, LIKE, 10.0)
    with pytest.raises(InvalidUpdate, match=reason):
        validate_arrays(bad, ARRAYS, LIKE, 10.0)


@pytest.mark.parametrize(
    ("like", "reason"),
    [
        ({**LIKE, "w": torch.ones(4)}, r"arrays/w is torch.float32 \(2, 2\); expected torch.float32 \(4,\)"),
        ({**LIKE, "w": torch.ones(2, 2).double()}, "expected torch.float64"),
        ({"w": LIKE["w"]}, "other names"),
    ],
)
def test_rows_of_another_kind_are_refused(like, reason):
    with pytest.raises(InvalidUpdate, match=reason):
        validate_arrays(rows()[0], ARRAYS, like, 10.0)
