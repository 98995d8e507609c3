"""What the load tests share: servers on free ports that end with the test, CPU time by process, wrk's output."""

import collections
import contextlib
import glob
import json
import os
import re
import resource
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
BINARY = os.path.join(ROOT, "target", "release", "ringway")
PROXY_CORE, LOAD_CORE = "0", "1"
ANSWER = "pong" * 26 + "."  # and a line end: 106 bytes


def need(commands):
    """Installs the Debian packages of missing commands, or says which to install."""
    missing = [package for command, package in commands.items() if not shutil.which(command, path=os.environ["PATH"] + ":/usr/sbin")]
    if not missing:
        return
    if os.geteuid() != 0 or not shutil.which("apt-get"):
        sys.exit(f"These packages are missing: {' '.join(missing)}. Install them, or run this as root on Debian.")
    environment = dict(os.environ, DEBIAN_FRONTEND="noninteractive")
    subprocess.run(["apt-get", "update", "-qq"], check=True, env=environment)
    subprocess.run(["apt-get", "install", "-y", "-qq", "--no-install-recommends", *missing], check=True, env=environment,
                   stdout=subprocess.DEVNULL)


def build():
    """Builds the release binary."""
    subprocess.run(["cargo", "build", "--release", "--quiet", "--locked"], cwd=ROOT, check=True)


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
        self.folder = self.enter_context(tempfile.TemporaryDirectory(prefix="ringway-loadtest-"))
        return self

    def start(self, arguments, core, **options):
        process = subprocess.Popen(["taskset", "-c", core, *arguments], **options)
        self.callback(self._end, process)
        return process

    @staticmethod
    def _end(process):
        process.terminate()
        try:
            process.wait(timeout=5)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()

    def write(self, name, text):
        path = os.path.join(self.folder, name)
        with open(path, "w") as file:
            file.write(text)
        return path

    def nginx(self, name, core, http):
        """An nginx with one worker; returns its processes' ids."""
        path = self.write(f"{name}.conf", f"""
            worker_processes 1; daemon off; pid {self.folder}/{name}.pid; error_log {self.folder}/{name}.err;
            worker_rlimit_nofile 20000;
            events {{ worker_connections 10000; }}
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
        """An nginx whose answers have a body of 106 bytes, ANSWER; returns its port."""
        port = free_port()
        self.nginx("backend", LOAD_CORE, f"""
            server_tokens off;
            server {{ listen 127.0.0.1:{port} backlog=8192;
                     location / {{ default_type text/plain; return 200 "{ANSWER}\\n"; }} }}""")
        wait_for_port(port)
        return port

    def nginx_proxy(self, backend):
        """nginx as a reverse proxy that does what ringway does by default; returns (port, process)."""
        port = free_port()
        process = self.nginx("proxy", PROXY_CORE, f"""
            upstream backend {{ server 127.0.0.1:{backend}; keepalive 512; keepalive_requests 1000000000; }}
            server {{
                listen 127.0.0.1:{port} backlog=8192;
                location /api/ {{
                    proxy_pass http://backend/; proxy_http_version 1.1; proxy_set_header Connection "";
                    proxy_set_header X-Request-Id $request_id; proxy_set_header X-Forwarded-Host $http_host;
                    proxy_set_header X-Forwarded-For $proxy_add_x_forwarded_for; proxy_set_header X-Forwarded-Proto $scheme;
                    add_header X-Request-Id $request_id;
                }}
            }}""")
        wait_for_port(port)
        return port, process

    def haproxy(self, backend):
        """HAProxy with one thread that does the same; returns (port, process)."""
        port = free_port()
        path = self.write("haproxy.cfg", f"""
global
    nbthread 1
    maxconn 4000
defaults
    mode http
    timeout client 60s
    timeout server 60s
    timeout connect 5s
    option http-keep-alive
    http-reuse always
frontend front
    bind 127.0.0.1:{port}
    unique-id-format %[uuid()]
    unique-id-header X-Request-Id
    http-request set-header X-Forwarded-Host %[req.hdr(host)]
    http-request set-header X-Forwarded-Proto http
    http-request replace-path /api/(.*) /\\1
    http-response set-header X-Request-Id %[unique-id]
    default_backend back
backend back
    option forwardfor
    server one 127.0.0.1:{backend}
""")
        haproxy = shutil.which("haproxy", path=os.environ["PATH"] + ":/usr/sbin")
        process = self.start([haproxy, "-db", "-q", "-f", path], PROXY_CORE, stderr=subprocess.DEVNULL)
        wait_for_port(port)
        return port, process

    def relay(self, backend):
        """What passes bytes on without looking at them; returns (port, process)."""
        subprocess.run(["cargo", "build", "--release", "--quiet", "--locked", "--example", "relay"], cwd=ROOT, check=True)
        port = free_port()
        binary = os.path.join(ROOT, "target", "release", "examples", "relay")
        process = self.start([binary, str(port), str(backend)], PROXY_CORE)
        wait_for_port(port)
        return port, process

    def redis(self):
        """An empty Redis on the load core; returns its port."""
        port = free_port()
        self.start(["redis-server", "--port", str(port), "--bind", "127.0.0.1", "--save", "", "--appendonly", "no"],
                   LOAD_CORE, cwd=self.folder, stdout=subprocess.DEVNULL)
        wait_for_port(port)
        return port

    def ringway(self, endpoint, tables="", name="ringway", policy=OPEN, server="workers = 1"):
        """ringway with one worker, or as `server` says, its service under `policy`; returns (port, process)."""
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
        process = self.start([BINARY, "run", "--config", path], PROXY_CORE, stdout=subprocess.DEVNULL,
                             stderr=subprocess.PIPE, text=True)
        for line in process.stderr:
            event = json.loads(line)
            if event["message"] == "listening":
                return int(event["address"].rsplit(":", 1)[1]), process
        raise SystemExit("ringway did not start")


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


def resident_kib(pid):
    with open(f"/proc/{pid}/status") as file:
        return next(int(line.split()[1]) for line in file if line.startswith("VmRSS"))


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


def wrk(port, connections, seconds, path="/api/x", headers=(), script=None, may_refuse=False):
    """One round of wrk on the load core; returns good answers, and p50 and p99 in microseconds."""
    extra = [part for header in headers for part in ("-H", header)]
    extra += ["-s", script] if script else []
    command = ["taskset", "-c", LOAD_CORE, "wrk", "-t1", f"-c{connections}", f"-d{seconds}s", "--latency", *extra,
               f"http://127.0.0.1:{port}{path}"]
    output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    refused = re.search(r"Non-2xx or 3xx responses: (\d+)", output)
    if (refused and not may_refuse) or "Socket errors" in output:
        sys.exit(f"requests failed:\n{output}")
    units = {"us": 1, "ms": 1000, "s": 1_000_000}
    quantile = {name: float(value) * units[unit] for name, value, unit in re.findall(r"(50|99)%\s+([\d.]+)(us|ms|s)", output)}
    good = int(re.search(r"(\d+) requests in", output).group(1)) - (int(refused.group(1)) if refused else 0)
    return good, quantile["50"], quantile["99"]


def median(values):
    return statistics.median(values)
