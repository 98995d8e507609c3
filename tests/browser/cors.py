#!/usr/bin/env python3
"""What pages of two origins can do with a gateway, tried in a real headless Chromium.

    cors.py http://127.0.0.1:8080 http://127.0.0.1:9001 http://127.0.0.1:9002    a gateway, an allowed and a refused origin
    cors.py --stub                                                               tries itself out against a stub gateway

Serves one page on each origin, opens the one and then the other, and prints what their requests came to as one JSON object:

    {"allowed": {CASE: OUTCOME, ...}, "refused": {CASE: OUTCOME, ...}}

OUTCOME is {"status", "body", "headers"}, all that the page could read (headers in lower case, the body cut to 4 KiB), or
{"error"} where the browser let it read nothing. CASE is one of

    simple          GET /open                            sends no cookie
    credentials     GET /open, with credentials          sends the cookie `session=browser`
    preflighted     PUT /open, with X-Custom and JSON    "X-Custom" and "Content-Type" are to be allowed
    refused_method  PATCH /open                          not to be allowed
    refused_header  GET /open, with X-Refused            not to be allowed
    unauthorized    GET /private                         to be answered 401
    limited         GET /limited, up to 20 times         until one is answered 429
    sandboxed       GET /open, from a sandboxed frame    from the origin `null`
    opaque          GET /open, its answer not to be read status 0: any page may ask, so that an error elsewhere is a refusal

Names in origins and in the gateway's address all lead to 127.0.0.1. The cookie reaches a gateway on the page's own host: a
cookie knows no port. Exit status: 0 when both pages reported, 1 when they did not in time, 2 for a bad command line.

The pages report to their own servers, so that nothing waits longer than it must: `--dump-dom` would print the page at a
time that has to be guessed.
"""

import argparse
import contextlib
import ctypes
import http.server
import json
import os
import queue
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from urllib.parse import urlsplit

PAGE = """<!doctype html>
<meta charset="utf-8">
<title>CORS</title>
<body>
<script>
const {gateway, paths, next} = CONFIG;

async function ask(path, options = {}) {
    try {
        const answer = await fetch(gateway + path, {cache: "no-store", credentials: "omit", ...options});
        const body = (await answer.text()).slice(0, 4096);
        return {status: answer.status, body, headers: Object.fromEntries(answer.headers)};
    } catch (error) {
        return {error: String(error)};
    }
}

function askFromSandbox(path) {
    return new Promise((resolve) => {
        addEventListener("message", (message) => resolve(message.data), {once: true});
        const frame = document.createElement("iframe");
        frame.sandbox = "allow-scripts";
        const script = `const gateway = "${gateway}"; ${ask} ask("${path}").then((it) => parent.postMessage(it, "*"));`;
        frame.srcdoc = "<script>" + script + "</" + "script>";
        document.body.append(frame);
    });
}

async function askUntilLimited(path) {
    let outcome;
    for (let n = 0; n < 20; n++) {
        outcome = await ask(path);
        if (outcome.error || outcome.status === 429) break;
    }
    return outcome;
}

(async () => {
    const outcomes = {
        simple: await ask(paths.open),
        credentials: await ask(paths.open, {credentials: "include"}),
        preflighted: await ask(paths.open, {
            method: "PUT",
            headers: {"X-Custom": "1", "Content-Type": "application/json"},
            body: "{}",
        }),
        refused_method: await ask(paths.open, {method: "PATCH"}),
        refused_header: await ask(paths.open, {headers: {"X-Refused": "1"}}),
        unauthorized: await ask(paths.private),
        limited: await askUntilLimited(paths.limited),
        sandboxed: await askFromSandbox(paths.open),
        opaque: await ask(paths.open, {mode: "no-cors"}),
    };
    await fetch("/report", {method: "POST", body: JSON.stringify(outcomes)});
    if (next) location.href = next;
})();
</script>
"""

CHROMIUM_OPTIONS = [
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--disable-background-networking",
    "--disable-breakpad",
    "--disable-component-update",
    "--disable-default-apps",
    "--disable-extensions",
    "--disable-sync",
    "--no-default-browser-check",
    "--no-first-run",
    "--no-proxy-server",
    "--password-store=basic",
    "--host-resolver-rules=MAP * 127.0.0.1",
]

DIES_WITH_ITS_PARENT = 1  # PR_SET_PDEATHSIG, prctl(2)


class Failure(Exception):
    """The browser did not do what it was asked to."""


class QuietHandler(http.server.BaseHTTPRequestHandler):
    """Answers requests without writing about them."""

    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def answer(self, status, body, fields=()):
        body = body.encode()
        self.send_response(status)
        for name, value in fields:
            self.send_header(name, value)
        if status != 204:
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD" and status != 204:
            self.wfile.write(body)

    def read_body(self):
        return self.rfile.read(int(self.headers.get("Content-Length", 0)))


class Server(http.server.ThreadingHTTPServer):
    """A server on a loopback port, served by a thread while its context lasts."""

    daemon_threads = True

    def __init__(self, handler, port=0):
        super().__init__(("127.0.0.1", port), handler)
        self.origin = f"http://127.0.0.1:{self.server_port}"

    def __enter__(self):
        threading.Thread(target=self.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_):
        self.shutdown()
        self.server_close()

    def handle_error(self, request, client_address):
        # A browser that is done resets its connections.
        if not isinstance(sys.exc_info()[1], ConnectionError):
            super().handle_error(request, client_address)


class PageHandler(QuietHandler):
    """Serves the page, and takes its report."""

    def do_GET(self):
        if self.path != "/":
            return self.answer(404, "")
        cookie = "session=browser; Path=/; SameSite=Lax"
        page = PAGE.replace("CONFIG", json.dumps(self.server.config))
        return self.answer(200, page, [("Content-Type", "text/html"), ("Set-Cookie", cookie)])

    def do_POST(self):
        self.server.reports.put(json.loads(self.read_body()))
        self.answer(204, "")


class PageServer(Server):
    """One origin: `config` is for the page, `reports` is what came back."""

    def __init__(self, port=0):
        super().__init__(PageHandler, port)
        self.config = {}
        self.reports = queue.Queue()


@contextlib.contextmanager
def browser(command, url):
    """A Chromium of our own, with a profile of its own, that ends with this context or with this process."""
    with tempfile.TemporaryDirectory(prefix="ringway-browser-", ignore_cleanup_errors=True) as home:
        libc = ctypes.CDLL(None)
        with open(os.path.join(home, "log"), "w+", encoding="utf-8", errors="replace") as log:
            process = subprocess.Popen(
                [command, *CHROMIUM_OPTIONS, f"--user-data-dir={home}/profile", url],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env={**os.environ, "HOME": home},
                start_new_session=True,
                preexec_fn=lambda: libc.prctl(DIES_WITH_ITS_PARENT, signal.SIGKILL),
            )
            try:
                yield process, log
            finally:
                # The session is the browser's own, so that no other's can be hit; it may have ended by itself.
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
                process.wait()


def await_report(page, process, log, deadline):
    """The page's outcomes, as soon as they are there."""
    while True:
        try:
            return page.reports.get(timeout=0.1)
        except queue.Empty:
            pass
        ended = process.poll() is not None
        if ended or time.monotonic() > deadline:
            log.seek(0)
            what = f"ended with status {process.returncode}" if ended else "did not report in time"
            raise Failure(f"{page.origin}: the browser {what}:\n{log.read()[-4000:]}")


def run(command, gateway, paths, allowed, refused, timeout):
    """The outcomes for the pages `allowed` and `refused`."""
    common = {"gateway": gateway.rstrip("/"), "paths": paths}
    allowed.config = {**common, "next": refused.origin + "/"}
    refused.config = {**common, "next": None}
    deadline = time.monotonic() + timeout
    with browser(command, allowed.origin + "/") as (process, log):
        return {
            "allowed": await_report(allowed, process, log, deadline),
            "refused": await_report(refused, process, log, deadline),
        }


class StubHandler(QuietHandler):
    """A gateway as it should be, for one origin. Echoes what it was asked."""

    def lines(self):
        if self.headers.get("Origin") != self.server.allowed:
            return [("Vary", "Origin")]
        return [
            ("Access-Control-Allow-Origin", self.server.allowed),
            ("Access-Control-Allow-Credentials", "true"),
            ("Vary", "Origin"),
        ]

    def do_OPTIONS(self):
        lists = [
            ("Access-Control-Allow-Methods", "GET, PUT"),
            ("Access-Control-Allow-Headers", "Content-Type, X-Custom"),
            ("Access-Control-Max-Age", "600"),
        ]
        lines = self.lines()
        self.answer(204, "", lines + (lists if len(lines) > 1 else []))

    def do_GET(self):
        self.read_body()
        lines = self.lines()
        if len(lines) > 1:
            lines.append(("Access-Control-Expose-Headers", "X-Request-Id"))
        lines += [("X-Request-Id", "stub"), ("X-Hidden", "1"), ("Content-Type", "application/json")]
        status = {"/private": 401, "/limited": 429}.get(self.path, 200)
        if self.path == "/limited":
            self.server.limited += 1
            status = 200 if self.server.limited % 3 else 429
        echo = {"status": status, "method": self.command, "cookie": self.headers.get("Cookie")}
        self.answer(status, json.dumps(echo), lines)

    do_PUT = do_PATCH = do_GET


def try_out(command, timeout):
    """Runs against the stub, and checks that each outcome is what the stub is written for."""
    with Server(StubHandler) as stub, PageServer() as allowed, PageServer() as refused:
        stub.allowed = allowed.origin
        stub.limited = 0
        paths = {"open": "/open", "private": "/private", "limited": "/limited"}
        outcomes = run(command, stub.origin, paths, allowed, refused, timeout)
    expected = {
        "simple": (200, "GET", None),
        "credentials": (200, "GET", "session=browser"),
        "preflighted": (200, "PUT", None),
        "refused_method": None,
        "refused_header": None,
        "unauthorized": (401, "GET", None),
        "limited": (429, "GET", None),
        "sandboxed": None,
    }
    wrong = [f"{page}: opaque" for page in outcomes if outcomes[page]["opaque"].get("status") != 0]
    for case, answer in expected.items():
        if "error" not in outcomes["refused"][case]:
            wrong.append(f"refused: {case}")
        outcome = outcomes["allowed"][case]
        if answer is None:
            good = "error" in outcome
        else:
            echo = json.loads(outcome.get("body", "{}"))
            seen = (outcome.get("status"), echo.get("method"), echo.get("cookie"))
            headers = outcome.get("headers", {})
            good = seen == answer and headers.get("x-request-id") == "stub" and "x-hidden" not in headers
        if not good:
            wrong.append(f"allowed: {case}")
    return outcomes, wrong


def port_of(origin):
    """The port of an origin that a page is to be served on."""
    parts = urlsplit(origin)
    if parts.scheme != "http" or not parts.port or origin != f"http://{parts.hostname}:{parts.port}":
        raise argparse.ArgumentTypeError(f"must be http://HOST:PORT, in lower case: {origin}")
    return parts.port


def arguments():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("gateway", nargs="?", help="the gateway's address as the pages see it")
    parser.add_argument("allowed", nargs="?", help="the origin that may: http://HOST:PORT, the port free")
    parser.add_argument("refused", nargs="?", help="the origin that may not")
    parser.add_argument("--stub", action="store_true", help="try this program itself")
    parser.add_argument("--open", default="/open", help="instead of /open")
    parser.add_argument("--private", default="/private", help="instead of /private")
    parser.add_argument("--limited", default="/limited", help="instead of /limited")
    parser.add_argument("--timeout", type=float, default=60, help="seconds for all of it (60)")
    parser.add_argument("--chromium", default="chromium", help="the browser's command (chromium)")
    options = parser.parse_args()
    if not options.stub and options.refused is None:
        parser.error("a gateway and two origins are needed, or --stub")
    return parser, options


def main():
    parser, options = arguments()
    # A polite end goes through the contexts, which take the browser along.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    if shutil.which(options.chromium) is None:
        sys.exit(f"{options.chromium} is not there: apt-get install chromium")
    wrong = []
    try:
        if options.stub:
            outcomes, wrong = try_out(options.chromium, options.timeout)
        else:
            try:
                ports = [port_of(options.allowed), port_of(options.refused)]
            except argparse.ArgumentTypeError as error:
                parser.error(str(error))
            paths = {"open": options.open, "private": options.private, "limited": options.limited}
            with PageServer(ports[0]) as allowed, PageServer(ports[1]) as refused:
                allowed.origin, refused.origin = options.allowed, options.refused
                outcomes = run(options.chromium, options.gateway, paths, allowed, refused, options.timeout)
    except (Failure, OSError) as error:
        sys.exit(f"cors.py: {error}")
    print(json.dumps(outcomes, indent=2, sort_keys=True))
    if wrong:
        sys.exit("not as the stub is written: " + ", ".join(wrong))


if __name__ == "__main__":
    main()
