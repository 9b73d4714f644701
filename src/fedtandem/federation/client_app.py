"""The `ClientApp`: unpacks a message, hands it to the `Site`, packs its answer."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from flwr.app import ConfigRecord, Context, Message, RecordDict
from flwr.clientapp import ClientApp

from fedtandem.config import RunConfig
from fedtandem.config.site import SiteConfig, load_site
from fedtandem.errors import ConfigError, InvalidMessage
from fedtandem.federation.consent import exactly
from fedtandem.federation.flower_messages import pack_answer, unpack_request
from fedtandem.federation.plan import site_of_client
from fedtandem.federation.site import Answer, Order, Site

SiteOf = Callable[[Context], SiteConfig]


def site_of_node(context: Context) -> SiteConfig:
    """The site's own file, named in the SuperNode's --node-config 'config="site.toml"', perhaps with 'edge="north"'.

    Raises:
        ConfigError: no file is named, it has faults, or it names another edge.
    """
    file = context.node_config.get("config")
    if not isinstance(file, str):
        raise ConfigError(
            "this SuperNode names no site file: start it with --node-config 'config=\"/path/to/site.toml\"'."
        )
    site, edge = load_site(file), context.node_config.get("edge", "")
    if edge and site.edge and edge != site.edge:
        raise ConfigError(
            f"{site.name}: its file says edge = {site.edge!r}, its SuperNode's --node-config says {edge!r}. Keep one."
        )
    return site.model_copy(update={"edge": str(edge)}) if edge else site


@dataclass(frozen=True)
class VirtualSites:
    """The sites of a simulation: every client of a run under one folder, allowing whatever the run asks for."""

    config: RunConfig
    folder: Path

    def __call__(self, context: Context) -> SiteConfig:
        """The client of one virtual node."""
        clients = sorted(self.config.clients, key=lambda client: client.name)
        client = clients[int(context.node_config["partition-id"])]
        allow = exactly(self.config, max_bytes_per_round=1 << 50)
        return site_of_client(self.config, client.name, str(self.folder / client.name), allow)


def make_client_app(site_of: SiteOf = site_of_node) -> ClientApp:
    """The app object; the same handler for every kind of message."""
    app = ClientApp()

    def answer(message: Message, context: Context) -> Message:
        try:
            order, data = unpack_request(message.content)
        except InvalidMessage as fault:
            order, data = Order("", "", "", False, ""), b""
            return Message(pack_answer(order, Answer(refusal=str(fault))), reply_to=message)
        try:
            site = Site(site_of(context))
        except ConfigError as fault:
            return Message(pack_answer(order, Answer(refusal=str(fault))), reply_to=message)
        return Message(pack_answer(order, site.answer(order, data)), reply_to=message)

    def name(message: Message, context: Context) -> Message:
        told = ConfigRecord({"name": site_of(context).name})
        return Message(RecordDict({"name": told}), reply_to=message)

    app.train()(answer)
    for kind in ("card", "fetch", "calibrate"):
        app.query(kind)(answer)
    app.query("name")(name)
    return app
