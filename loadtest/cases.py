"""What is compared. A case starts its peers, loads them in interleaved rounds and returns rows: {peer: {figure: value}}, each
value the median of its rounds. Figures: cpu_us (CPU time for each request, or event), rps, p50_us, p99_us, p999_us, bytes."""

import json
import os
import signal
import socket
import subprocess
import threading
import typing

import peers
from harness import LOAD_CORE, Bench, cpu_nanos, example, median, raise_descriptors, resident_kib, wrk

EVENT_STREAMS, EVENT_EVERY_US = 64, 2_000
# A machine that is itself a guest pauses for some milliseconds now and then, which decides the percentiles of the round that has
# it: so an open loop has so many times the rounds, and the median is that of one without.
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
    """{peer: [{figure: value}, ...]} to {peer: {figure: median}}, with what each round measured beside it as "rounds"."""
    columns = {peer: {figure: [row[figure] for row in each] for figure in each[0]} for peer, each in rows.items()}
    return {peer: {figure: median(values) for figure, values in each.items()} | {"rounds": each} for peer, each in columns.items()}


def interleaved(started, options, load):
    """Rounds over all peers in turn; `load(port)` returns a Round."""
    rows = {peer: [] for peer in started}
    for _ in range(options.rounds):
        for peer, (port, process) in started.items():
            before = cpu_nanos(process.pid)
            done = load(port)
            rows[peer].append({"cpu_us": (cpu_nanos(process.pid) - before) / done.requests / 1000,
                               "rps": done.requests / options.seconds, "p50_us": done.p50, "p99_us": done.p99, "p999_us": done.p999})
    return medians(rows)


def closed_loop(starters, connections=64, path="/api/x", headers=(), script=""):
    """wrk: each connection sends its next request when it has its answer."""
    def run(options):
        with Bench() as bench:
            backend = bench.backend()
            started = {peer: start(bench, backend) for peer, start in options.chosen(starters).items()}
            lua = script() if callable(script) else script
            return interleaved(started, options, lambda port: wrk(bench, port, connections, options.seconds, path, headers, lua))
    return run


def upload(size):
    """wrk's script for requests with a body."""
    return f'wrk.method = "POST"\nwrk.body = string.rep("x", {size})\n'


def pace(port, rate, seconds, connections):
    """An open loop; returns what pace prints."""
    arguments = ["taskset", "-c", LOAD_CORE, example("pace"), port, "/api/x", rate, seconds, connections]
    return json.loads(subprocess.run([*map(str, arguments)], capture_output=True, check=True).stdout)


def reload(bench, peer, process, done):
    """Changes the configuration of `peer` and has it read again, twice a second, until `done`."""
    path = os.path.join(bench.folder, {"nginx": "proxy.conf", "ringway": "ringway.toml"}[peer])
    with open(path) as file:
        text = file.read()
    count = 0
    while not done.wait(0.5):
        count += 1
        changed = {"nginx": ("keepalive 512", f"keepalive {512 + count}"), "ringway": ("[services.bench.limits]",
                   f"[services.bench.timeouts]\nresponse_header = \"{60 + count}s\"\n[services.bench.limits]")}[peer]
        with open(path, "w") as file:
            file.write(text.replace(*changed))
        process.send_signal(signal.SIGHUP)


def open_loop(starters, with_reloads=False):
    """The same rate for all: 60 % of what the slowest of them can do."""
    def run(options):
        with Bench() as bench:
            backend = bench.backend()
            started = {peer: start(bench, backend) for peer, start in options.chosen(starters).items()}
            most = {peer: wrk(bench, started[peer][0], 64, options.seconds).requests / options.seconds for peer in started}
            rate = int(0.6 * min(most.values()))
            rows = {peer: [] for peer in started}
            for _ in range(OPEN_LOOP_ROUNDS * options.rounds):
                for peer, (port, process) in started.items():
                    done = threading.Event()
                    reloader = threading.Thread(target=reload, args=(bench, peer, process, done))
                    if with_reloads:
                        reloader.start()
                    before = cpu_nanos(process.pid)
                    try:
                        result = pace(port, rate, options.seconds, 256)
                    finally:
                        done.set()
                        if with_reloads:
                            reloader.join()
                    row = {"rps": result["answered"] / options.seconds, "p50_us": result["p50"], "p99_us": result["p99"],
                           "p999_us": result["p999"], "failed": result["failed"]}
                    # What a reload replaces takes its CPU time along.
                    cpu = {} if with_reloads else {"cpu_us": (cpu_nanos(process.pid) - before) / max(result["answered"], 1) / 1000}
                    rows[peer].append(cpu | row)
            return medians(rows)
    return run


def events(starters):
    """Server-Sent Events: CPU time for each event that is passed on."""
    def run(options):
        with Bench() as bench:
            backend = peers.event_source(bench, EVENT_EVERY_US)
            started = {peer: start(bench, backend) for peer, start in options.chosen(starters).items()}
            rows = {peer: [] for peer in started}
            for _ in range(options.rounds):
                for peer, (port, process) in started.items():
                    before = cpu_nanos(process.pid)
                    arguments = ["taskset", "-c", LOAD_CORE, example("events"), "read", port, "/api/x", EVENT_STREAMS, options.seconds]
                    count = int(subprocess.run([*map(str, arguments)], capture_output=True, check=True).stdout)
                    rows[peer].append({"cpu_us": (cpu_nanos(process.pid) - before) / count / 1000, "rps": count / options.seconds})
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
STEADY = {"ringway": peers.ringway, "nginx": peers.nginx, "haproxy": peers.haproxy}
BARE = (Target("ringway", "nginx", 0.90), Target("ringway", "haproxy", 0.85), Target("ringway", "pingora", 0.55),
        Target("ringway, bare", "relay", 1.06), Target("ringway, bare, pipelining", "relay", 1.06),
        Target(f"{peers.PGO}, pipelining", "relay", 1.06))

# ringway otherwise than it comes; by the number of connections.
LEAN = {"ringway, bare": peers.ringway_bare, "ringway, bare, pipelining": peers.ringway_pipelined, peers.PGO: peers.ringway_pgo,
        f"{peers.PGO}, pipelining": peers.ringway_pgo_pipelined}
WAYS = {64: LEAN | {"ringway, no metrics either": peers.ringway_quiet, "ringway, epoll": peers.ringway_epoll}, 256: LEAN}

CASES = {
    **{f"forward-{count}": Case(f"bare forward, {count} connection{'s' * (count > 1)}", closed_loop(
        FORWARD | WAYS.get(count, {}), count), BARE if count in (64, 256) else ()) for count in (1, 16, 64, 256, 1024)},
    "policy": Case("full policy: JWT of 1,000 users, limit per user, CORS, JSON log, metrics", closed_loop(
        POLICY, headers=(f"Origin: {peers.ORIGIN}",), script=lambda: peers.users(1_000)),
                   (Target("ringway", "haproxy", 0.50), Target("ringway", "ringway, bare", 1.15))),
    "redis": Case("limit counted in Redis", closed_loop({"ringway, bare": peers.ringway_bare, "ringway": peers.ringway_redis}),
                  (Target("ringway", "ringway, bare", 1.20),)),
    "redis-each": Case("limit of 100 a minute counted in Redis, 30,000 users with a JWT: an order for each request", closed_loop(
        {"ringway, bare": peers.ringway_bare, "ringway": peers.ringway_redis_each}, script=lambda: peers.users(30_000))),
    "new-connection": Case("a new connection for each request", closed_loop(SERVERS, headers=("Connection: close",)),
                           (Target("ringway", "nginx", 1.0),)),
    "download-1k": Case("answers of 1 KiB", closed_loop(SERVERS, path="/api/1k")),
    "download-1m": Case("answers of 1 MiB, 16 connections", closed_loop(
        LARGE | {"nginx, unbuffered": peers.nginx_unbuffered}, 16, path="/api/1m"), (
            Target("ringway", "haproxy", 1.0), Target("ringway", "haproxy, 64 KiB", 1.0), Target("ringway", "haproxy, splicing", 1.0))),
    "upload-1k": Case("requests of 1 KiB", closed_loop(SERVERS, script=upload(1 << 10))),
    "upload-1m": Case("requests of 1 MiB, 16 connections", closed_loop(LARGE, 16, path="/api/up", script=upload(1 << 20))),
    "events": Case(f"Server-Sent Events, {EVENT_STREAMS} streams of {1_000_000 // EVENT_EVERY_US} a second", events(
        {"ringway": peers.ringway, "nginx": peers.nginx_unbuffered, "haproxy": peers.haproxy, "pingora": peers.pingora, "caddy": peers.caddy})),
    **{f"health-{count}": Case(f"/health, answered locally, {count} connections", closed_loop(LOCAL, count, path="/health"),
                               (Target("ringway", "nginx", 0.95),)) for count in (64, 256)},
    "idle": Case("10,000 idle connections", idle(SERVERS, 10_000), ()),
    "steady": Case("60 % of saturation, open loop", open_loop(STEADY), (Target("ringway", "nginx", 1.0, "p99_us"),)),
    "reloads": Case("60 % of saturation, open loop, two reloads a second", open_loop({"ringway": peers.ringway, "nginx": peers.nginx}, True),
                    (Target("ringway", "nginx", 1.0, "p999_us"),)),
}
