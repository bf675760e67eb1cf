"""A SuperLink's store of objects without its network: Flower's own; a test pushes replies object by object."""

from __future__ import annotations

from types import SimpleNamespace

from flwr.common.serde import metadata_to_proto
from flwr.proto.message_pb2 import ConfirmMessageReceivedResponse, PullObjectResponse
from flwr.proto.message_pb2 import Message as ProtoMessage
from flwr.proto.runtime_pb2 import PullAppMessagesResponse
from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects, get_object_tree
from flwr.supercore.object_store.in_memory_object_store import InMemoryObjectStore
from flwr.supercore.run import Run
from flwr.superlink.grid.http_grid import HttpGrid

RUN_ID = 1


class ObjectLink:
    """What a ServerApp's grid asks of a SuperLink, answered from Flower's in-memory store of objects.

    ``nodes`` are those that are connected; ``sent`` the messages that were pushed. Without ``verify`` the store takes
    objects that are not what their id says, as Flower's does not.
    """

    def __init__(self, nodes, verify=True):
        self.store, self.nodes, self.sent = InMemoryObjectStore(verify), list(nodes), {}
        self.replies, self.trees, self.reads, self.on_push = {}, {}, 0, lambda message: None
        self.grid = HttpGrid(token="a token")
        self.grid.set_run(Run.create_empty(run_id=RUN_ID))
        self.grid._client = self
        self.grid.push_messages = self.push

    def push(self, messages):
        """As ``HttpGrid.push_messages``; ``on_push`` may answer each message at once."""
        ids = []
        for message in messages:
            message.metadata.__dict__["_message_id"] = message.object_id
            self.sent[message.object_id] = message
            ids.append(message.object_id)
            self.on_push(message)
        return ids

    def keep(self, message):
        """Keep the objects of a message until its node has taken it."""
        self.store.preregister(RUN_ID, get_object_tree(message))
        self.put({key: part.deflate() for key, part in get_all_nested_objects(message).items()})

    def announce(self, root, head, change=lambda contents, tree: (contents, tree)):
        """Announce a reply and return its objects: its root, and the metadata by which Flower's server knows it.

        ``change(contents, tree)`` returns others than those that Flower's client would send.
        """
        contents = {key: part.deflate() for key, part in get_all_nested_objects(root).items()}
        contents, tree = change(contents, get_object_tree(root))
        self.store.preregister(RUN_ID, tree)
        head.__dict__["_message_id"] = tree.object_id
        self.replies[head.reply_to_message_id] = head
        self.trees[head.reply_to_message_id] = tree
        return contents

    def answer(self, reply, head=None):
        """Announce a reply and push all its objects."""
        self.put(self.announce(reply, head or reply.metadata))

    def put(self, contents):
        """Push objects."""
        for key, content in contents.items():
            if key in self.store:  # an object that no tree names is not taken
                self.store.put(key, content)

    # --- the Runtime API ---

    def GetNodes(self, request):
        return SimpleNamespace(nodes=[SimpleNamespace(node_id=node) for node in self.nodes])

    def PullMessages(self, request):
        found = [self.replies.pop(one) for one in list(request.message_ids) if one in self.replies]
        protos = [ProtoMessage(metadata=metadata_to_proto(head)) for head in found]
        trees = [self.trees[head.reply_to_message_id] for head in found]
        return PullAppMessagesResponse(messages_list=protos, message_object_trees=trees)

    def PullObject(self, request):
        self.reads += 1
        content = self.store.get(request.object_id)
        return PullObjectResponse(
            object_found=content is not None, object_available=bool(content), object_content=content or b""
        )

    def ConfirmMessageReceived(self, request):
        self.store.delete(request.message_object_id)
        return ConfirmMessageReceivedResponse()
