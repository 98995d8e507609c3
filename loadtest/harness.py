"""What the load tests share: servers on free ports that end with the test, CPU time by process, wrk's output."""

import collections
import contextlib
import glob
import json
import os
import re
import resource
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import typing
import urllib.request

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
BINARY = os.path.join(ROOT, "target", "release", "ringway")
PROXY_CORE, LOAD_CORE = "0", "1"
ANSWER = "pong" * 26 + "."  # and a line end: 106 bytes
BODIES = {"1k": 1 << 10, "1m": 1 << 20}

# Prints what wrk's own summary leaves out.
SUMMARY = """
done = function(summary, latency)
    io.write(string.format("summary %d %d %d\\n", latency:percentile(50), latency:percentile(99), latency:percentile(99.9)))
end
"""


def need(commands):
    """Installs the Debian packages of missing commands, or says which to install."""
    missing = [package for command, package in commands.items() if not shutil.which(command, path=os.environ["PATH"] + ":/usr/sbin")]
    if not missing:
        return
    if os.geteuid() != 0 or not shutil.which("apt-get"):
        sys.exit(f"These packages are missing: {' '.join(missing)}. Install them, or run this as root on Debian.")
    environment = dict(os.environ, DEBIAN_FRONTEND="noninteractive")
    run("apt-get", "update", "-qq", env=environment)
    run("apt-get", "install", "-y", "-qq", "--no-install-recommends", *missing, env=environment, stdout=subprocess.DEVNULL)


ENDS = signal.SIGTERM, signal.SIGALRM


def end_orderly():
    """A test that is told to end, or whose time is over, ends what it has started."""
    def ended(number, _):
        # Whoever says it twice is not to stop that.
        for each in ENDS:
            signal.signal(each, signal.SIG_IGN)
        sys.exit(f"ended by {signal.Signals(number).name}")

    for each in ENDS:
        signal.signal(each, ended)


def end(process, tell=os.kill, patience=5):
    """Ends a process, and lets it end what it has started."""
    if process.poll() is None:
        tell(process.pid, signal.SIGTERM)
    try:
        process.wait(timeout=patience)
    except subprocess.TimeoutExpired:
        tell(process.pid, signal.SIGKILL)
        process.wait()


def run(*command, **options):
    """Runs a command that has to succeed, to its end or this one's; then those that it has started are told to end as well."""
    process = subprocess.Popen(command, start_new_session=True, **options)
    try:
        status = process.wait()
    except BaseException:
        end(process, os.killpg, patience=30)
        raise
    if status:
        sys.exit(f"{' '.join(command)} failed")


def build(*examples):
    """Builds the release binary, and programs of this folder; apart, since these are built with what tests need."""
    run("cargo", "build", "--release", "--quiet", "--locked", cwd=ROOT)
    for name in examples:
        run("cargo", "build", "--release", "--quiet", "--locked", "--example", name, cwd=ROOT)


def example(name):
    """Where a program of this folder is, once it is built."""
    return os.path.join(ROOT, "target", "release", "examples", name)


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def raise_descriptors(wanted):
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(wanted, hard), hard))


# What a service says that lets everybody in.
OPEN = """auth = "none"
rate_limit = { enabled = false }"""


class Bench(contextlib.ExitStack):
    """Starts servers in a folder of its own; ends them, by process id, when it is left."""

    def __enter__(self):
        super().__enter__()
        end_orderly()
        self.folder = self.enter_context(tempfile.TemporaryDirectory(prefix="ringway-loadtest-"))
        return self

    def start(self, arguments, core, **options):
        process = subprocess.Popen(["taskset", "-c", core, *arguments], **options)
        self.callback(end, process)
        return process

    def write(self, name, text):
        path = os.path.join(self.folder, name)
        with open(path, "w") as file:
            file.write(text)
        return path

    def nginx(self, name, core, http):
        """An nginx with one worker; returns its processes' ids."""
        path = self.write(f"{name}.conf", f"""
            user root; worker_processes 1; daemon off; pid {self.folder}/{name}.pid; error_log {self.folder}/{name}.err;
            worker_rlimit_nofile 20000;
            events {{ worker_connections 20000; }}
            http {{
                access_log off; keepalive_requests 1000000000; client_max_body_size 0;
                client_body_temp_path {self.folder}/{name}-body; proxy_temp_path {self.folder}/{name}-proxy;
                fastcgi_temp_path {self.folder}/{name}-f; uwsgi_temp_path {self.folder}/{name}-u; scgi_temp_path {self.folder}/{name}-s;
                {http}
            }}""")
        nginx = shutil.which("nginx", path=os.environ["PATH"] + ":/usr/sbin")
        process = self.start([nginx, "-c", path], core, stderr=subprocess.DEVNULL)
        return process

    def backend(self):
        """An nginx whose answers have a body of 106 bytes, ANSWER; of a kibibyte and a mebibyte at /1k and /1m; at /up
        a body is read to its end before it is answered. Returns its port."""
        port = free_port()
        for name, size in BODIES.items():
            self.write(name, "x" * size)
        self.nginx("backend", LOAD_CORE, f"""
            server_tokens off; sendfile on; etag off; open_file_cache max=10;
            server {{ listen 127.0.0.1:{port} backlog=8192;
                     location / {{ default_type text/plain; return 200 "{ANSWER}\\n"; }}
                     location = /up {{ client_body_buffer_size 2m; proxy_pass_request_body off; proxy_set_header Content-Length "";
                                      proxy_pass http://127.0.0.1:{port}/x; }}
                     location /1 {{ root {self.folder}; }} }}""")
        wait_for_port(port)
        return port

    def redis(self):
        """An empty Redis on the load core; returns its port."""
        port = free_port()
        self.start(["redis-server", "--port", str(port), "--bind", "127.0.0.1", "--save", "", "--appendonly", "no"],
                   LOAD_CORE, cwd=self.folder, stdout=subprocess.DEVNULL)
        wait_for_port(port)
        return port

    def ringway(self, endpoint, tables="", name="ringway", policy=OPEN, server="workers = 1", under=(), binary=BINARY):
        """ringway with one worker, or as `server` says, its service under `policy`, started by the command `under`; returns (port, process)."""
        path = self.write(f"{name}.toml", f"""
[server]
host = "127.0.0.1"
port = 0
{server}
{tables}
[services.bench]
prefix = "/api"
endpoints = ["{endpoint}"]
{policy}
[services.bench.limits]
body_bytes = 0
""")
        process = self.start([*under, binary, "run", "--config", path], PROXY_CORE, stdout=subprocess.DEVNULL,
                             stderr=subprocess.PIPE, text=True)
        said = ""
        for line in process.stderr:
            said += line
            event = json.loads(line) if line.startswith("{") else {}
            if event.get("message") == "listening":
                return int(event["address"].rsplit(":", 1)[1]), process
        raise SystemExit(f"ringway did not start:\n{said}")


def wait_for_port(port):
    deadline = time.monotonic() + 10
    while True:
        try:
            return socket.create_connection(("127.0.0.1", port), timeout=1).close()
        except OSError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.02)


def family(pid):
    """A process and its children."""
    pids = [pid]
    for path in glob.glob(f"/proc/{pid}/task/*/children"):
        with open(path) as file:
            for child in file.read().split():
                pids += family(int(child))
    return pids


def cpu_nanos(pid):
    """CPU time of all threads of a process and its children (schedstat, first field)."""
    total = 0
    for member in family(pid):
        for path in glob.glob(f"/proc/{member}/task/*/schedstat"):
            with contextlib.suppress(FileNotFoundError), open(path) as file:
                total += int(file.read().split()[0])
    return total


def core_ticks(core):
    """How many ticks of the clock a core has had, and in how many of them it had nothing to do."""
    with open("/proc/stat") as file:
        ticks = next([int(field) for field in line.split()[1:9]] for line in file if line.startswith(f"cpu{core} "))
    return sum(ticks), ticks[3] + ticks[4]


def resident_kib(pid):
    """Resident memory of a process and its children."""
    total = 0
    for member in family(pid):
        with open(f"/proc/{member}/status") as file:
            total += next(int(line.split()[1]) for line in file if line.startswith("VmRSS"))
    return total


def samples(port):
    """The gateway's metrics: {sample: value}, summed over their `worker` label."""
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics") as answer:
        lines = answer.read().decode().splitlines()
    found = collections.Counter()
    for line in lines:
        if not line.startswith("#"):
            sample, value = line.rsplit(" ", 1)
            found[re.sub(r"\{worker=.*?\}", "", sample)] += float(value)
    return found


class Round(typing.NamedTuple):
    """What one round of load measured: good answers, and percentiles of their times in microseconds."""
    requests: int
    p50: float
    p99: float
    p999: float


def wrk(bench, port, connections, seconds, path="/api/x", headers=(), script="", may_refuse=False):
    """One round of wrk on the load core, with `script` as its Lua."""
    extra = [part for header in headers for part in ("-H", header)]
    command = ["taskset", "-c", LOAD_CORE, "wrk", "-t1", f"-c{connections}", f"-d{seconds}s", *extra,
               "-s", bench.write(f"wrk-{port}.lua", script + SUMMARY), f"http://127.0.0.1:{port}{path}"]
    output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    refused = re.search(r"Non-2xx or 3xx responses: (\d+)", output)
    if (refused and not may_refuse) or "Socket errors" in output:
        sys.exit(f"requests failed:\n{output}")
    good = int(re.search(r"(\d+) requests in", output).group(1)) - (int(refused.group(1)) if refused else 0)
    return Round(good, *map(int, re.search(r"summary (\d+) (\d+) (\d+)", output).groups()))


def median(values):
    return statistics.median(values)
