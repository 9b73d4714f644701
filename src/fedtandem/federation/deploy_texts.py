"""The files `fedtandem deploy` writes, as texts."""

from collections.abc import Sequence
from importlib.metadata import version
from typing import TYPE_CHECKING

from fedtandem.config.site import AllowConfig

if TYPE_CHECKING:
    from fedtandem.federation.deploy import Place

VERSION = version("fedtandem")
RUN_HEAD = "# The run, for the server. What clients hold stands in their own site.toml.\n"
SITE_HEAD = """# What this client is, and what it allows. No server can widen it. Check it: fedtandem doctor site.toml
# Relative paths belong to this file. States, replies and the audit log go to ./state (key: folder).
"""

CALIBRATION = """# Thresholds (fedtandem calibrate): allow counts or masked_counts above, and say what is counted.
# Where there are several edges, this site's stands beside `name` (edge = "north").
# [calibration]
# trace = "calibration.parquet"  # this site's decisions, recorded with `fedtandem trace`
# keys = "keys"                  # for --masked: NAME.pub of the other sites, as they sent them

"""


def allow(law: AllowConfig) -> str:
    """The section [allow], its keys explained."""
    send = ", ".join(f'"{what}"' for what in law.send)
    functions = ", ".join(f'"{name}"' for name in law.functions)
    return f"""
[allow]
# May leave: card (vocabulary, sizes), scores, rows (sparse next-token distributions), texts (written for public
# prompts), requests (items to be taught), weights, measurements (means on [[tests]] and times); for thresholds
# (fedtandem calibrate) counts (decisions by uncertainty), masked_counts (the same, of which only sums can be read).
send = [{send}]
max_bytes_per_round = {law.max_bytes_per_round}
max_rounds = {law.max_rounds}
functions = [{functions}]  # of your own, which a server may name as a check or a selector

"""


def environment(binaries: str) -> str:
    """Variables of every Flower process; sourced from its own folder."""
    return f"""# Source it from this folder: . ./env.sh
PATH="${{FEDTANDEM_BIN:-{binaries}}}:$PATH"
FLWR_HOME="$(pwd)/flwr"
FEDTANDEM_CACHE="$(pwd)/cache"
FLWR_TELEMETRY_ENABLED=0
FLWR_DISABLE_UPDATE_CHECK=1
FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION=1
export PATH FLWR_HOME FEDTANDEM_CACHE FLWR_TELEMETRY_ENABLED FLWR_DISABLE_UPDATE_CHECK
export FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION
"""


def connection(place: "Place") -> str:
    """How Flower's command line reaches the SuperLink; written when sourced, for it wants absolute paths."""
    return f"""mkdir -p "$FLWR_HOME"
cat > "$FLWR_HOME/config.toml" << CONNECTION
[superlink]
default = "{place.connection}"

[superlink.{place.connection}]
address = "{place.host}:{place.port}"
root-certificates = "$(pwd)/certificates/ca.pem"
CONNECTION
"""


def superlink(place: "Place") -> str:
    """The server's long-running process."""
    return f"""#!/bin/sh
# The SuperLink. Who reaches its port can submit runs: keep it on loopback or in a private network.
set -eu
cd "$(dirname "$0")"
. ./env.sh
exec flower-superlink --host "${{FEDTANDEM_BIND:-{place.host}}}" --port {place.port} \\
  --ssl-certfile certificates/own.pem --ssl-keyfile certificates/own.key --ssl-ca-certfile certificates/ca.pem \\
  --enable-supernode-auth --disable-runtime-dependency-installation --database state.db
"""


def register(names: Sequence[str], place: "Place") -> str:
    """Admits the sites' keys, each once."""
    return f"""#!/bin/sh
# Admit each site's key (keys/NAME.pub). A key that a site makes itself replaces the one written here.
set -eu
cd "$(dirname "$0")"
. ./env.sh
mkdir -p registered
for name in {" ".join(names)}; do
  [ -e "registered/$name" ] && continue
  flwr supernode register "keys/$name.pub" {place.connection} --name "$name"
  touch "registered/$name"
done
"""


def supernode(name: str, place: "Place", own_port: int) -> str:
    """A site's long-running process."""
    return f"""#!/bin/sh
# The SuperNode of {name}. After a crash it is admitted again once a minute has passed.
set -eu
cd "$(dirname "$0")"
. ./env.sh
mkdir -p "$FLWR_HOME"
superlink="${{FEDTANDEM_SUPERLINK:-{place.host}:{place.port}}}"
echo "if it does not join, this says why: fedtandem doctor $(pwd)/site.toml --superlink $superlink"
exec flower-supernode --superlink "$superlink" --port {own_port} \\
  --root-certificates certificates/ca.pem --auth-supernode-private-key key \\
  --ssl-certfile certificates/own.pem --ssl-keyfile certificates/own.key --ssl-ca-certfile certificates/ca.pem \\
  --node-config "name=\\"{name}\\" config=\\"$(pwd)/site.toml\\""
"""


def unit(what: str, script: str) -> str:
    """A systemd unit; %h/fedtandem is where the folder is put."""
    return f"""[Unit]
Description=fedtandem {what}
Wants=network-online.target
After=network-online.target

[Service]
WorkingDirectory=%h/fedtandem
ExecStart=%h/fedtandem/{script}
Restart=always
# A SuperNode is admitted again only when its old session has ended.
RestartSec=65
KillSignal=SIGTERM
TimeoutStopSec=30

[Install]
WantedBy=default.target
"""


def compose(names: Sequence[str], place: "Place") -> str:
    """Everything in containers on one machine; nobody has run it yet on several."""
    image = f"""    image: fedtandem-flower:{VERSION}
    build:
      dockerfile_inline: |
        FROM python:3.11-slim
        RUN pip install --no-cache-dir 'fedtandem[flower]=={VERSION}'
"""
    nodes = "".join(
        f"""  {name}:
{image}    environment: {{FEDTANDEM_BIN: /usr/local/bin, FEDTANDEM_SUPERLINK: "superlink:{place.port}"}}
    volumes: ["./sites/{name}:/site"]
    command: /site/supernode.sh
    depends_on: [superlink]
    restart: always
"""
        for name in names
    )
    return f"""# docker compose up --build -d
# docker compose exec superlink /server/register.sh
# docker compose exec superlink sh -c 'cd /server && . ./env.sh && fedtandem run run.toml \\
#   --connection {place.connection} --keys keys --output run'
services:
  superlink:
{image}    environment: {{FEDTANDEM_BIN: /usr/local/bin, FEDTANDEM_BIND: 0.0.0.0}}
    volumes: ["./server:/server"]
    command: /server/superlink.sh
    restart: always
{nodes}"""


def loopback(names: Sequence[str], place: "Place") -> str:
    """The whole federation on this machine."""
    return f"""#!/bin/sh
# The whole federation on this machine: SuperLink, keys, {len(names)} SuperNodes, the run. Ends what it started.
#   ./loopback.sh               a new run, in server/run
#   ./loopback.sh --resume      go on with it after a fault
#   ./loopback.sh calibrate --budget 10%     thresholds in place of the run, in server/policy.json
set -eu
cd "$(dirname "$0")"
here=$(pwd)
mkdir -p logs
FLWR_SUPEREXEC_TASK_POLL_INTERVAL=0.5
export FLWR_SUPEREXEC_TASK_POLL_INTERVAL
pids="" superlink=""
start() {{ # start NAME COMMAND: in the background, its process id in logs/NAME.pid
  "$2" > "logs/$1.log" 2>&1 &
  echo $! > "logs/$1.pid"
  pids="$! $pids"
}}
keep() {{ # keep NAME COMMAND: as start, and again when it ends: after a crash a SuperNode is refused for a minute
  (
    trap 'kill "$child" 2> /dev/null; wait "$child"; exit' TERM
    while :; do
      "$2" &
      child=$!
      echo "$child" > "logs/$1.pid"
      wait "$child" || true
      sleep 10 &
      child=$!
      wait "$child" || true
    done
  ) > "logs/$1.log" 2>&1 &
  pids="$! $pids"
}}
stop() {{ # the SuperLink last: who could not take leave of it is refused for a minute
  trap - EXIT INT TERM
  for group in "$pids" "$superlink"; do
    for pid in $group; do kill "$pid" 2> /dev/null || true; done
    for pid in $group; do wait "$pid" 2> /dev/null || true; done
  done
}}
trap stop EXIT
trap 'exit 130' INT TERM

start superlink server/superlink.sh
superlink=$pids pids=""
cd server && . ./env.sh && cd "$here"
python - << 'WAIT'
import socket, sys, time
for _ in range(1800):  # three minutes: a busy machine starts it slowly
    try:
        socket.create_connection(("{place.host}", {place.port}), 1).close()
        sys.exit()
    except OSError:
        time.sleep(0.1)
sys.exit("the SuperLink does not answer: see logs/superlink.log")
WAIT
server/register.sh > logs/register.log 2>&1 || {{ cat logs/register.log; exit 5; }}
for name in {" ".join(names)}; do keep "$name" "sites/$name/supernode.sh"; done
cd server
if [ "${{1:-}}" = calibrate ]; then
  shift
  python -m fedtandem calibrate run.toml --connection {place.connection} --keys keys "$@"
else
  python -m fedtandem run run.toml --connection {place.connection} --keys keys --output run "$@"
fi
"""


def readme(run: str, names: Sequence[str], place: "Place") -> str:
    """What to do, in order."""
    sites = "\n".join(f"- `sites/{name}/` goes to the machine of {name}." for name in names)
    return f"""# Run {run!r} across sites

Try it on this machine first: `./loopback.sh`.

1. On every machine: `pip install 'fedtandem[flower]=={VERSION}'`. In `env.sh`, or as FEDTANDEM_BIN, say where its
   programs are.
2. `server/` stays at the server. It holds the sites' *public* keys (`keys/NAME.pub`), to which their names are bound.
{sites}
3. The keys and certificates here are for a trial: everybody who has this folder has them. For real sites each makes its
   own key (`ssh-keygen -t ecdsa -b 384 -N '' -f key`) and sends `key.pub`, which replaces `server/keys/NAME.pub`; the
   server's certificate comes from a CA that the sites trust (`certificates/ca.pem` at each site), with the server's
   name or address as SAN. The trial's expire after 30 days.
4. Each site edits `site.toml`: where its model, its private rows and its copy of the public set lie, and what may leave
   (`[allow]`). Then `fedtandem doctor site.toml --superlink {place.host}:{place.port}` says what is still amiss.
5. Server: `./superlink.sh` (or `superlink.service`), then `./register.sh`, once.
6. Each site: `./supernode.sh` (or `supernode.service`).
7. Server: `cd server && . ./env.sh && fedtandem run run.toml --connection {place.connection} --keys keys --output run`.
   After any fault: the same with `--resume`.
8. Thresholds: the same command with `calibrate run.toml ... --budget 10%` in place of `run ... --output run`, once the
   sites allow it and have recorded decisions (`[calibration]` in `site.toml`). For `--masked` each site's `keys/` holds
   the public keys of the others, as these sent them: not the copies that came with this folder.
9. Each site: `fedtandem inspect state/audit.jsonl` shows all that left it. Its tuned model lies under `state/runs/`.
"""
