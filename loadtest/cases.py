"""What is compared. A case starts its peers, loads them in interleaved rounds and returns rows: {peer: {figure: value}}, each
value the median of its rounds. Figures: cpu_us (CPU time for each request, or event), rps, p50_us, p99_us, p999_us, bytes, failed, and
load_busy, the share of its time that the core of the load and the backend was not idle."""

import json
import os
import random
import signal
import socket
import subprocess
import threading
import typing

import peers
from harness import LOAD_CORE, Bench, core_ticks, cpu_nanos, example, median, raise_descriptors, resident_kib, samples, wrk

EVENT_STREAMS, EVENT_EVERY_US = 64, 2_000
# A machine that is itself a guest pauses for some milliseconds now and then, which decides the percentiles of the round that has
# it: so an open loop with a target has so many times the rounds, and the median is that of one without.
OPEN_LOOP_ROUNDS = 4


class Target(typing.NamedTuple):
    """`figure` of `who` is to be at most `most` times that of `versus`."""
    who: str
    versus: str
    most: float
    figure: str = "cpu_us"


class Case(typing.NamedTuple):
    title: str
    run: typing.Callable
    targets: tuple = ()


def medians(rows):
    """{peer: [{figure: value}, ...]} to {peer: {figure: median}}, or the sum of what failed, with what each round measured beside it
    as "rounds"."""
    columns = {peer: {figure: [row[figure] for row in each] for figure in each[0]} for peer, each in rows.items()}
    return {peer: {figure: sum(values) if figure == "failed" else median(values) for figure, values in each.items()} | {"rounds": each}
            for peer, each in columns.items()}


def rounds(started, count):
    """All peers in turn, so many times, in another order each time, so that none always comes after the same one; the same orders in
    each run."""
    order = random.Random(0)
    for _ in range(count):
        yield from order.sample(list(started.items()), len(started))


def interleaved(started, options, load):
    """Rounds over all peers in turn; `load(port)` returns a Round."""
    rows = {peer: [] for peer in started}
    for peer, (port, process) in rounds(started, options.rounds):
        before = cpu_nanos(process.pid)
        done = load(port)
        rows[peer].append({"cpu_us": (cpu_nanos(process.pid) - before) / done.requests / 1000,
                           "rps": done.requests / options.seconds, "p50_us": done.p50, "p99_us": done.p99, "p999_us": done.p999})
    return medians(rows)


class Load(typing.NamedTuple):
    """What is asked."""
    connections: int = 64
    path: str = "/api/x"
    headers: tuple = ()
    body: int = 0  # bytes, for a POST
    users: int = 0  # who are signed in and ask in turn

    def script(self):
        """For wrk."""
        body = f'wrk.method = "POST"\nwrk.body = string.rep("x", {self.body})\n' if self.body else ""
        return body + (peers.users(self.users) if self.users else "")

    def requests(self):
        """As they go over the line."""
        tokens = [(f"Authorization: Bearer {token}",) for token in peers.tokens(self.users)] or [()]
        length = (f"Content-Length: {self.body}",) if self.body else ()
        lines = (f"{'POST' if self.body else 'GET'} {self.path} HTTP/1.1", "Host: 127.0.0.1", *self.headers, *length)
        return [("\r\n".join(lines + token) + "\r\n\r\n" + "x" * self.body).encode() for token in tokens]


def closed_loop(starters, load=Load()):
    """wrk: each connection sends its next request when it has its answer."""
    def run(options):
        with Bench() as bench:
            backend = bench.backend()
            started = {peer: start(bench, backend) for peer, start in options.chosen(starters).items()}
            script = load.script()
            return interleaved(started, options, lambda port: ask(bench, port, options, load, script))
    return run


def ask(bench, port, options, load, script):
    """One round of wrk."""
    return wrk(bench, port, load.connections, options.seconds, load.path, load.headers, script)


def pace(port, rate, seconds, connections, requests, new=False):
    """An open loop; returns what pace prints, and load_busy."""
    arguments = ["taskset", "-c", LOAD_CORE, example("pace"), port, rate, seconds, connections, *["new"] * new]
    before = core_ticks(LOAD_CORE)
    done = subprocess.run([*map(str, arguments)], input=b"\0".join(requests), stdout=subprocess.PIPE, check=True)
    ticks, idle = (after - earlier for after, earlier in zip(core_ticks(LOAD_CORE), before))
    return json.loads(done.stdout) | {"load_busy": 1 - idle / ticks}


def reload(bench, peer, process, done):
    """Changes the configuration of `peer` and has it read again, twice a second, until `done`; the file is then as before."""
    path = os.path.join(bench.folder, {"nginx": "proxy.conf", "ringway": "ringway.toml"}[peer])
    with open(path) as file:
        text = file.read()
    count = 0
    while not done.wait(0.5):
        count += 1
        changed = {"nginx": (f"keepalive {peers.IDLE}", f"keepalive {peers.IDLE + count}"), "ringway": ("[services.bench.limits]",
                   f"[services.bench.timeouts]\nresponse_header = \"{60 + count}s\"\n[services.bench.limits]")}[peer]
        with open(path, "w") as file:
            file.write(text.replace(*changed))
        process.send_signal(signal.SIGHUP)
    with open(path, "w") as file:
        file.write(text)


def reloads(port):
    """How many configurations ringway has applied, and how many it has refused."""
    seen = samples(port)
    return [seen[f'api_gateway_config_reload_total{{result="{result}"}}'] for result in ("applied", "invalid")]


def open_loop(starters, load=Load(), connections=256, with_reloads=False, times=1):
    """The same rate for all, over `connections`: 60 % of what the slowest of them can do."""
    def run(options):
        with Bench() as bench:
            backend = bench.backend()
            started = {peer: start(bench, backend) for peer, start in options.chosen(starters).items()}
            script, requests, new = load.script(), load.requests(), "Connection: close" in load.headers
            most = [ask(bench, port, options, load, script).requests / options.seconds for port, _ in started.values()]
            rate = int(0.6 * min(most))
            rows = {peer: [] for peer in started}
            for peer, (port, process) in rounds(started, times * options.rounds):
                done = threading.Event()
                reloader = threading.Thread(target=reload, args=(bench, peer, process, done))
                if with_reloads:
                    reloader.start()
                before = cpu_nanos(process.pid)
                try:
                    result = pace(port, rate, options.seconds, connections, requests, new)
                finally:
                    done.set()
                    if with_reloads:
                        reloader.join()
                row = {"rps": result["answered"] / options.seconds, "p50_us": result["p50"], "p99_us": result["p99"],
                       "p999_us": result["p999"], "failed": result["failed"], "load_busy": result["load_busy"]}
                # What a reload replaces takes its CPU time along.
                cpu = {} if with_reloads else {"cpu_us": (cpu_nanos(process.pid) - before) / max(result["answered"], 1) / 1000}
                rows[peer].append(cpu | row)
            if with_reloads:
                applied, refused = reloads(started["ringway"][0])
                if refused or applied < len(rows["ringway"]):
                    raise SystemExit(f"ringway applied {applied:.0f} of the changed configurations and refused {refused:.0f}")
            return medians(rows)
    return run


def events(starters):
    """Server-Sent Events, which come when they are due, so that this is an open loop: CPU time for each event that is passed on, and
    how long after it was due it is there."""
    def run(options):
        with Bench() as bench:
            backend = peers.event_source(bench, EVENT_EVERY_US)
            started = {peer: start(bench, backend) for peer, start in options.chosen(starters).items()}
            rows = {peer: [] for peer in started}
            for peer, (port, process) in rounds(started, options.rounds):
                before = cpu_nanos(process.pid)
                arguments = ["taskset", "-c", LOAD_CORE, example("events"), "read", port, "/api/x", EVENT_STREAMS, options.seconds]
                done = json.loads(subprocess.run([*map(str, arguments)], stdout=subprocess.PIPE, check=True).stdout)
                rows[peer].append({"cpu_us": (cpu_nanos(process.pid) - before) / done["events"] / 1000, "rps": done["events"] / options.seconds,
                                   "p50_us": done["p50"], "p99_us": done["p99"], "p999_us": done["p999"]})
            return medians(rows)
    return run


def idle(starters, count):
    """Resident memory of connections that were served once and wait."""
    def ask(client):
        client.sendall(b"GET /api/x HTTP/1.1\r\nHost: a\r\n\r\n")
        answer = b""
        while not answer.endswith(b"pong.\n") and not answer.endswith(b"0\r\n\r\n"):
            piece = client.recv(4096)
            if not piece:
                raise SystemExit(f"a connection was closed: {answer!r}")
            answer += piece

    def run(options):
        raise_descriptors(count + 200)
        rows = {}
        for peer, start in options.chosen(starters).items():
            with Bench() as bench:
                port, process = start(bench, bench.backend())
                clients = []
                for _ in range(100):
                    clients.append(socket.create_connection(("127.0.0.1", port)))
                    ask(clients[-1])
                before = resident_kib(process.pid)
                for _ in range(count):
                    clients.append(socket.create_connection(("127.0.0.1", port)))
                    ask(clients[-1])
                rows[peer] = {"bytes": (resident_kib(process.pid) - before) * 1024 / count}
                for client in clients:
                    client.close()
        return rows
    return run


FORWARD = {"ringway": peers.ringway, "nginx": peers.nginx, "haproxy": peers.haproxy, "pingora": peers.pingora, "caddy": peers.caddy,
           "relay": peers.relay}
SERVERS = {peer: start for peer, start in FORWARD.items() if peer != "relay"}
POLICY = {"ringway, bare": peers.ringway_bare, "ringway": peers.ringway_policy, "haproxy": peers.haproxy_policy, "nginx": peers.nginx_policy}
LARGE = SERVERS | {"nginx, 64 KiB": peers.nginx_large, "haproxy, 64 KiB": peers.haproxy_large, "haproxy, splicing": peers.haproxy_splicing}
LOCAL = {"ringway": peers.ringway, "ringway, bare": peers.ringway_bare, peers.PGO: peers.ringway_pgo, "nginx": peers.nginx,
         "haproxy": peers.haproxy, "caddy": peers.caddy}
STEADY_POLICY = {"ringway": peers.ringway_policy, "haproxy": peers.haproxy_policy, "nginx": peers.nginx_policy}
STEADY = {"ringway": peers.ringway, "nginx": peers.nginx, "haproxy": peers.haproxy}
BARE = (Target("ringway", "nginx", 0.90), Target("ringway", "haproxy", 0.85), Target("ringway", "pingora", 0.55),
        Target("ringway, bare", "relay", 1.06), Target("ringway, bare, pipelining", "relay", 1.06),
        Target(f"{peers.PGO}, pipelining", "relay", 1.06))
FORWARD_TARGETS = {64: BARE, 256: BARE, 1024: (Target("ringway", "nginx", 1.0, "p99_us"),)}

SIGNED_IN = Load(headers=(f"Origin: {peers.ORIGIN}",), users=1_000)
ANEW = Load(headers=("Connection: close",))
DOWN_1K, DOWN_1M = Load(path="/api/1k"), Load(16, "/api/1m")
UP_1K, UP_1M = Load(body=1 << 10), Load(16, "/api/up", body=1 << 20)

# ringway otherwise than it comes; by the number of connections.
LEAN = {"ringway, bare": peers.ringway_bare, "ringway, bare, pipelining": peers.ringway_pipelined, peers.PGO: peers.ringway_pgo,
        f"{peers.PGO}, pipelining": peers.ringway_pgo_pipelined}
WAYS = {64: LEAN | {"ringway, no metrics either": peers.ringway_quiet, "ringway, epoll": peers.ringway_epoll}, 256: LEAN}

CASES = {
    **{f"forward-{count}": Case(f"bare forward, {count} connection{'s' * (count > 1)}", closed_loop(
        FORWARD | WAYS.get(count, {}), Load(count)), FORWARD_TARGETS.get(count, ())) for count in (1, 16, 64, 256, 1024)},
    "policy": Case("full policy: JWT of 1,000 users, limit per user, CORS, JSON log, metrics", closed_loop(POLICY, SIGNED_IN),
                   (Target("ringway", "haproxy", 0.50), Target("ringway", "ringway, bare", 1.15))),
    "redis": Case("limit counted in Redis", closed_loop({"ringway, bare": peers.ringway_bare, "ringway": peers.ringway_redis}),
                  (Target("ringway", "ringway, bare", 1.20),)),
    "redis-each": Case("limit of 100 a minute counted in Redis, 30,000 users with a JWT: an order for each request", closed_loop(
        {"ringway, bare": peers.ringway_bare, "ringway": peers.ringway_redis_each}, Load(users=30_000))),
    "new-connection": Case("a new connection for each request", closed_loop(SERVERS, ANEW),
                           (Target("ringway", "nginx", 1.0),)),
    "download-1k": Case("answers of 1 KiB", closed_loop(SERVERS, DOWN_1K)),
    "download-1m": Case("answers of 1 MiB, 16 connections", closed_loop(
        LARGE | {"nginx, unbuffered": peers.nginx_unbuffered}, DOWN_1M), (
            Target("ringway", "haproxy", 1.0), Target("ringway", "haproxy, 64 KiB", 1.0), Target("ringway", "haproxy, splicing", 1.0))),
    "upload-1k": Case("requests of 1 KiB", closed_loop(SERVERS, UP_1K)),
    "upload-1m": Case("requests of 1 MiB, 16 connections", closed_loop(LARGE, UP_1M)),
    "events": Case(f"Server-Sent Events, {EVENT_STREAMS} streams of {1_000_000 // EVENT_EVERY_US} a second", events(
        {"ringway": peers.ringway, "nginx": peers.nginx_unbuffered, "haproxy": peers.haproxy, "pingora": peers.pingora, "caddy": peers.caddy})),
    **{f"health-{count}": Case(f"/health, answered locally, {count} connections", closed_loop(LOCAL, Load(count, "/health")),
                               (Target("ringway", "nginx", 0.95), Target("ringway, bare", "nginx", 0.95))) for count in (64, 256)},
    "idle": Case("10,000 idle connections", idle(SERVERS, 10_000), ()),
    "steady": Case("60 % of saturation, open loop", open_loop(STEADY, times=OPEN_LOOP_ROUNDS), (Target("ringway", "nginx", 1.0, "p99_us"),)),
    "steady-policy": Case("full policy, open loop", open_loop(STEADY_POLICY, SIGNED_IN)),
    "steady-redis": Case("limit counted in Redis, open loop", open_loop({"ringway, bare": peers.ringway_bare, "ringway": peers.ringway_redis})),
    "steady-new-connection": Case("a new connection for each request, open loop", open_loop(STEADY, ANEW)),
    "steady-download-1k": Case("answers of 1 KiB, open loop", open_loop(STEADY, DOWN_1K)),
    "steady-download-1m": Case("answers of 1 MiB, open loop", open_loop(STEADY, DOWN_1M, 64)),
    "steady-upload-1k": Case("requests of 1 KiB, open loop", open_loop(STEADY, UP_1K)),
    "steady-upload-1m": Case("requests of 1 MiB, open loop", open_loop(STEADY, UP_1M, 64)),
    "reloads": Case("60 % of saturation, open loop, two reloads a second", open_loop(
        {"ringway": peers.ringway, "nginx": peers.nginx}, with_reloads=True, times=OPEN_LOOP_ROUNDS), (Target("ringway", "nginx", 1.0, "p999_us"),)),
}
