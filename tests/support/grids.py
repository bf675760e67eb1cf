"""Small federations for tests: a client app of one function, and a server that is the test's own."""

from __future__ import annotations

from flwr.app import ArrayRecord, ConfigRecord, Error, Message, MessageType, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.common.constant import SUPERLINK_NODE_ID, ErrorCode
from flwr.serverapp import ServerApp

from fedlab.engines import inprocess
from fedlab.engines.client_host import ClientHost, node_partitions


def client_app(train):
    """Says its partition when asked, and answers a train message with the RecordDict of ``train(message, context)``."""
    app = ClientApp()

    @app.query()
    def query(message, context):
        identity = ConfigRecord({"partition": context.node_config["partition-id"]})
        return Message(RecordDict({"identity": identity}), reply_to=message)

    @app.train()
    def answer(message, context):
        return Message(train(message, context), reply_to=message)

    return app


def within(app, partitions, body, run_config=None, vectorize=0):
    """What ``body(grid)`` returns, run as a ServerApp is run, on an in-process grid."""
    server, found = ServerApp(), []

    @server.main()
    def main(grid, context):
        found.append(body(grid))

    host = ClientHost(app, run_config or {}, node_partitions(partitions), vectorize=vectorize)
    inprocess.run_server(server, inprocess.InProcessGrid(host), run_config or {})
    return found[0]


def to_all(nodes, **arrays):
    """A train message for each node with one ArrayRecord; all share one RecordDict, as Flower's strategies do it."""
    content = RecordDict({"arrays": ArrayRecord(dict(arrays)), "config": ConfigRecord({"server-round": 1})})
    return [Message(content, dst_node_id=node, message_type=MessageType.TRAIN) for node in nodes]


def echo(message, context):
    """The arrays that came, and the client's partition as a metric."""
    metrics = MetricRecord({"partition": context.node_config["partition-id"], "num-examples": 1})
    return RecordDict({"arrays": message.content["arrays"], "metrics": metrics})


class Unruly(inprocess.InProcessGrid):
    """A network that lists nodes in any order, answers in any order, and whose nodes come late, never, or are gone.

    That a node is gone is said as Flower's server says it: in its own name, not the node's.
    """

    def __init__(self, app, partition_of, order=(), late=frozenset(), silent=frozenset(), gone=frozenset()):
        super().__init__(ClientHost(app, {}, dict(partition_of)))
        self.nodes, self.partitions = self.host.partitions, None  # each node is asked for its partition
        self.order, self.late, self.silent, self.gone = list(order), set(late), set(silent), set(gone)
        self.asked = 0

    def get_node_ids(self):
        self.asked += 1
        return [node for node in self.nodes if not (node in self.late and self.asked < 3)]

    def pull_messages(self, message_ids):
        """The reply whose node comes first in ``order``; a silent node's never comes."""
        waiting = {
            self._waiting[number].metadata.dst_node_id: number
            for number in message_ids
            if number in self._waiting and self._waiting[number].metadata.dst_node_id not in self.silent
        }
        ready = sorted(waiting, key=lambda node: self.order.index(node) if node in self.order else -1)
        return super().pull_messages([waiting[ready[0]]]) if ready else []

    def _deliver(self, messages):
        (message,) = messages
        if message.metadata.dst_node_id not in self.gone:
            return super()._deliver(messages)
        reply = Message(Error(ErrorCode.NODE_UNAVAILABLE, "Error: Node Unavailable"), reply_to=message)
        reply.metadata.__dict__["_src_node_id"] = SUPERLINK_NODE_ID
        return [reply]
