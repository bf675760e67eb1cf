"""Flower's private parts, continued: calls of a SuperNode that it repeats, because the answer was lost on the way.

A network that is cut may take an answer with it whose call was done. The SuperNode calls again, and Flower's SuperLink,
which has done it, then does something else: it gives no message, since it gave it away; it asks for no part of a reply,
since the ServerApp has seen the reply's head; it refuses a part that it has. Each time a round waits for a client that
has done its work, up to three minutes or the time limit of the phase, and then does without it.

**Source**: Flower 1.39, ``flwr/server/superlink/linkstate/in_memory_linkstate.py``,
``flwr/supercore/corestate/in_memory_corestate.py``, ``flwr/supernode/start_client_internal.py``.
"""

from __future__ import annotations

from typing import Any

from flwr.app import Message


def answer_repeated_calls() -> None:
    """Let the SuperLinks of this process answer a call that was done before as they did then."""
    give_messages_again()
    take_replies_again()
    take_objects_again()


def give_messages_again() -> None:
    """Give a node that asks for a message the last one again, once, if it did not say that it has it.

    A SuperNode takes one message at a time: it asks for it, for its objects, and says that it has them. If it asks anew
    before that, the message did not arrive.
    """
    from flwr.server.superlink.linkstate.in_memory_linkstate import InMemoryLinkState

    get_message_ins = InMemoryLinkState.get_message_ins

    def get(self: Any, node_id: int, limit: int | None, *, run_id: int | None = None) -> list[Message]:
        found = get_message_ins(self, node_id, limit, run_id=run_id)
        if found or limit != 1:
            return found
        with self.lock:
            again: set[str] = self.__dict__.setdefault("given_again", set())
            again.intersection_update(self.message_ins_store)
            for message_id, message in self.message_ins_store.items():
                if (
                    message.metadata.dst_node_id == node_id
                    and message_id not in again
                    and message_id in self.object_store  # until the node says that it has it
                    and message_id not in self.message_ins_id_to_message_res_id
                ):
                    again.add(message_id)
                    return [message]
        return []

    InMemoryLinkState.get_message_ins = get  # type: ignore[method-assign]


def take_replies_again() -> None:
    """Ask for the missing objects of a reply that comes again although the ServerApp has taken its head meanwhile."""
    from flwr.server.superlink.linkstate.in_memory_linkstate import InMemoryLinkState

    store = InMemoryLinkState.store_message_and_object_tree

    def stored(self: Any, message: Message, object_tree: Any, session_id: str) -> tuple[bool, list[str]]:
        with self.lock, self._lock_object_push_sessions:
            taken, missing = store(self, message, object_tree, session_id)
            root, sessions = object_tree.object_id, self._object_push_sessions
            before = sessions.get(self._object_push_session_by_root.get(root))  # until all objects are there
            if (
                taken
                or not message.metadata.reply_to_message_id
                or root != message.metadata.message_id
                or before is None
                or before.run_id != message.metadata.run_id
                or root not in self.object_store
            ):
                return taken, missing
            return True, self.preregister_object_tree(object_tree, session_id)

    InMemoryLinkState.store_message_and_object_tree = stored  # type: ignore[method-assign]


def take_objects_again() -> None:
    """Accept an object that comes again and is there: by its refusal the SuperNode would send no other."""
    from flwr.server.superlink.linkstate.in_memory_linkstate import InMemoryLinkState

    store_object = InMemoryLinkState.store_object

    def stored(self: Any, run_id: int, session_id: str, object_id: str, object_content: bytes) -> bool:
        if store_object(self, run_id, session_id, object_id, object_content):
            return True
        return bool(object_content) and self.object_store.get(object_id) == object_content

    InMemoryLinkState.store_object = stored  # type: ignore[method-assign]
