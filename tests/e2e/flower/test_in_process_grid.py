"""The grid of the tests does what a running Flower does; this fails first when Flower moves the names it sets."""

from flwr.app import ConfigRecord, Message, RecordDict
from flwr.supercore.task_identity import TaskIdentity

from fedtandem.config import RunConfig
from fedtandem.federation.flower_names import ASK_NAME


def test_a_message_reaches_its_node_and_its_reply_comes_back(tiny, federation) -> None:  # type: ignore[no-untyped-def]
    config: RunConfig = tiny()
    grid = federation(config).grid
    assert list(grid.get_node_ids()) == [101, 102]
    ids = list(grid.push_messages([Message(RecordDict(), node, ASK_NAME) for node in grid.get_node_ids()]))
    replies = {reply.metadata.src_node_id: reply for reply in grid.pull_messages(ids)}
    assert [replies[node].metadata.reply_to_message_id for node in (101, 102)] == ids
    assert replies[102].content["name"] == ConfigRecord({"name": "clinic-b"})
    assert TaskIdentity.node_id == 1
    assert list(grid.pull_messages(ids)) == []
