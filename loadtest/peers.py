"""Who is compared: ringway and others, each with one thread on the proxy's core, configured to do the same. Every function
starts one of them in front of the backend and returns (port, process)."""

import base64
import hmac
import json
import os
import shutil
import subprocess
import time

from harness import LOAD_CORE, OPEN, PROXY_CORE, ROOT, example, free_port, run, wait_for_port

SECRET = "0123456789abcdef0123456789abcdef"
ORIGIN = "https://app.example.com"
LIMIT = 1_000_000  # requests a second and user: never reached, always counted

NO_LOG = "[logging]\nenabled = false\n"
QUIET = NO_LOG + "[metrics]\nenabled = false"
JWT = f'[auth.jwt]\nsecret = "{SECRET}"\n'
CORS = f'[cors]\nenabled = true\nallow_origins = ["{ORIGIN}"]\nallow_credentials = true\n'
PER_USER = f'auth = "required"\nrate_limit = {{ requests = {LIMIT}, window = "1s" }}'


def token(subject):
    """What `ringway token` makes, but ten thousand of them in no time."""
    def part(value):
        return base64.urlsafe_b64encode(value).rstrip(b"=")
    head = part(b'{"alg":"HS256","typ":"JWT"}')
    claims = part(json.dumps({"sub": subject, "exp": int(time.time()) + 3600}).encode())
    signature = part(hmac.digest(SECRET.encode(), head + b"." + claims, "sha256"))
    return b".".join((head, claims, signature)).decode()


def credentials():
    """The header fields of a signed-in page's request."""
    return f"Authorization: Bearer {token('alice')}", f"Origin: {ORIGIN}"


def tokens(count):
    """Those of so many users."""
    return [token(f"user-{index}") for index in range(count)]


def users(count):
    """wrk's script for requests of so many signed-in users in turn."""
    quoted = ",".join(f'"{each}"' for each in tokens(count))
    return f"""
        local tokens, requests, at = {{{quoted}}}, {{}}, 0
        init = function()
            for index, token in ipairs(tokens) do
                wrk.headers["Authorization"] = "Bearer " .. token
                requests[index] = wrk.format()
            end
        end
        request = function()
            at = at % #requests + 1
            return requests[at]
        end
        """


IDLE = 2048  # connections to the backend that a peer may keep


def redis_table(redis, prefix, timeout="1s"):
    """ringway's limits are counted in Redis."""
    return f'[redis]\nurl = "redis://127.0.0.1:{redis}"\nprefix = "{prefix}"\ntimeout = "{timeout}"\n'


def ringway(bench, backend, tables="", **options):
    return bench.ringway(f"http://127.0.0.1:{backend}", tables, **options)


def ringway_bare(bench, backend):
    """Counted and not logged, as the others run."""
    return ringway(bench, backend, NO_LOG, name="bare")


PGO = "ringway, bare, PGO"
PGO_BINARY = os.path.join(ROOT, "target", "pgo", "ringway")


def ringway_pgo(bench, backend):
    """The same, built by loadtest/pgo."""
    return ringway(bench, backend, NO_LOG, name="pgo", binary=PGO_BINARY)


PIPELINED = OPEN + "\npipelining = 16"


def ringway_pipelined(bench, backend):
    """Requests that are ready at once go to the backend together."""
    return ringway(bench, backend, NO_LOG, name="pipelined", policy=PIPELINED)


def ringway_pgo_pipelined(bench, backend):
    return ringway(bench, backend, NO_LOG, name="pgo-pipelined", policy=PIPELINED, binary=PGO_BINARY)


def ringway_quiet(bench, backend):
    return ringway(bench, backend, QUIET, name="quiet")


def ringway_epoll(bench, backend):
    return ringway(bench, backend, name="epoll", server='workers = 1\ndriver = "epoll"')


def ringway_policy(bench, backend):
    return ringway(bench, backend, JWT + CORS, name="policy", policy=PER_USER)


def ringway_redis(bench, backend):
    """The same with a limit on Redis."""
    limit = f'auth = "none"\nrate_limit = {{ requests = {LIMIT}, window = "1s", key = "ip" }}'
    return ringway(bench, backend, NO_LOG + redis_table(bench.redis(), "limit"), name="redis", policy=limit)


def ringway_redis_each(bench, backend):
    """A limit for each user, so low that Redis is asked for each request: a hundredth of it is a single one."""
    limit = 'auth = "required"\nrate_limit = { requests = 100, window = "60s" }'
    return ringway(bench, backend, NO_LOG + JWT + redis_table(bench.redis(), "each"), name="redis-each", policy=limit)


def _nginx(bench, backend, http="", location=""):
    port = free_port()
    process = bench.nginx("proxy", PROXY_CORE, f"""
        upstream backend {{ server 127.0.0.1:{backend}; keepalive {IDLE}; keepalive_requests 1000000000; }}
        {http}
        server {{
            listen 127.0.0.1:{port} backlog=8192;
            location = /health {{ default_type application/json; return 200 '{{"status":"healthy"}}'; }}
            location /api/ {{
                proxy_pass http://backend/; proxy_http_version 1.1; proxy_set_header Connection "";
                proxy_set_header X-Request-Id $request_id; proxy_set_header X-Forwarded-Host $http_host;
                proxy_set_header X-Forwarded-For $proxy_add_x_forwarded_for; proxy_set_header X-Forwarded-Proto $scheme;
                proxy_request_buffering off; proxy_max_temp_file_size 0; proxy_read_timeout 600s;
                add_header X-Request-Id $request_id;
                {location}
            }}
        }}""")
    wait_for_port(port)
    return port, process


def nginx(bench, backend):
    return _nginx(bench, backend)


def nginx_policy(bench, backend):
    """All but the token, which nginx can only verify with modules that Debian does not have; its metrics are stub_status's."""
    return _nginx(bench, backend, f"""
        server {{ listen 127.0.0.1:{free_port()}; location / {{ stub_status; }} }}
        log_format json escape=json '{{"time":"$time_iso8601","request_id":"$request_id","client":"$remote_addr","method":"$request_method",'
            '"path":"$request_uri","status":$status,"duration":$request_time,"upstream":"$upstream_response_time",'
            '"instance":"$upstream_addr","bytes_in":$request_length,"bytes_out":$bytes_sent}}';
        access_log /dev/null json;
        limit_req_zone $http_authorization zone=users:10m rate={LIMIT}r/s;
        map $http_origin $allowed {{ default ""; "{ORIGIN}" $http_origin; }}""", f"""
                limit_req zone=users burst={LIMIT // 10} nodelay; limit_req_status 429;
                add_header Access-Control-Allow-Origin $allowed; add_header Access-Control-Allow-Credentials true; add_header Vary Origin;""")


def nginx_large(bench, backend):
    """With buffers as large as ringway's for long bodies."""
    buffers = "proxy_buffer_size 64k; proxy_buffers 8 64k; proxy_busy_buffers_size 128k; client_body_buffer_size 64k;"
    return _nginx(bench, backend, location=buffers)


def nginx_unbuffered(bench, backend):
    return _nginx(bench, backend, location="proxy_buffering off;")


def _haproxy(bench, backend, front="", tail="", tune="", apart=""):
    port = free_port()
    path = bench.write("haproxy.cfg", f"""
global
    nbthread 1
    maxconn 10200
    no strict-limits
    {tune}
    log stdout format raw local0
defaults
    mode http
    timeout client 600s
    timeout server 600s
    timeout connect 5s
    option http-keep-alive
    http-reuse always
frontend front
    bind 127.0.0.1:{port} backlog 8192
    http-request return status 200 content-type application/json string {{"status":"healthy"}} if {{ path /health }}
    unique-id-format %[uuid()]
    unique-id-header X-Request-Id
{front}
    http-request set-header X-Forwarded-Host %[req.hdr(host)]
    http-request set-header X-Forwarded-Proto http
    http-request set-path %[path,bytes(4)]
    http-response set-header X-Request-Id %[unique-id]
{tail}
    default_backend back
backend back
    option forwardfor
    server one 127.0.0.1:{backend}
{apart}
""")
    program = shutil.which("haproxy", path=os.environ["PATH"] + ":/usr/sbin")
    process = bench.start([program, "-db", "-q", "-f", path], PROXY_CORE, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    wait_for_port(port)
    return port, process


def haproxy(bench, backend):
    return _haproxy(bench, backend)


def haproxy_large(bench, backend):
    """With buffers as large as ringway's for long bodies."""
    return _haproxy(bench, backend, tune="tune.bufsize 65536")


def haproxy_splicing(bench, backend):
    """Bodies go from socket to socket in the kernel."""
    return _haproxy(bench, backend, front="    option splice-request\n    option splice-response")


def haproxy_policy(bench, backend):
    """A verified token with an expiry, a limit per user, a JSON log, CORS, metrics for Prometheus."""
    return _haproxy(bench, backend, f"""
    log global
    log-format '{{"time":"%[date,utime(%Y-%m-%dT%H:%M:%SZ)]","request_id":"%ID","client":"%ci","method":"%HM","path":"%[var(txn.path),json]","user":"%[var(txn.sub),json]","status":%ST,"duration":%Ta,"upstream":%Tr,"instance":"%b/%s","bytes_in":%U,"bytes_out":%B}}'
    http-request set-var(txn.path) path
    http-request set-var(txn.origin) req.hdr(origin)
    http-request set-var(txn.bearer) http_auth_bearer
    http-request set-var(txn.alg) var(txn.bearer),jwt_header_query('$.alg')
    http-request deny deny_status 401 unless {{ var(txn.alg) -m str HS256 }}
    http-request deny deny_status 401 unless {{ var(txn.bearer),jwt_verify(txn.alg,"{SECRET}") -m int 1 }}
    http-request set-var(txn.exp) var(txn.bearer),jwt_payload_query('$.exp','int')
    http-request set-var(txn.now) date()
    http-request deny deny_status 401 if {{ var(txn.exp),sub(txn.now) -m int lt 0 }}
    http-request set-var(txn.sub) var(txn.bearer),jwt_payload_query('$.sub')
    stick-table type string len 64 size 100k expire 10s store http_req_rate(1s)
    http-request track-sc0 var(txn.sub)
    http-request deny deny_status 429 if {{ sc_http_req_rate(0) gt {LIMIT} }}
    http-request set-header X-User-Id %[var(txn.sub)]""", f"""
    http-response set-header Access-Control-Allow-Origin %[var(txn.origin)] if {{ var(txn.origin) -m str {ORIGIN} }}
    http-response set-header Access-Control-Allow-Credentials true
    http-response add-header Vary Origin""", apart=f"""
frontend metrics
    bind 127.0.0.1:{free_port()}
    http-request use-service prometheus-exporter""")


def caddy(bench, backend):
    port = free_port()
    path = bench.write("Caddyfile", f"""
{{
    admin off
    auto_https off
    log {{
        output discard
    }}
}}
http://127.0.0.1:{port} {{
    respond /health `{{"status":"healthy"}}` 200
    handle_path /api/* {{
        header X-Request-Id {{http.request.uuid}}
        reverse_proxy 127.0.0.1:{backend} {{
            header_up X-Request-Id {{http.request.uuid}}
            flush_interval -1
            transport http {{
                keepalive_idle_conns_per_host {IDLE}
            }}
        }}
    }}
}}""")
    process = bench.start(["caddy", "run", "--config", path, "--adapter", "caddyfile"], PROXY_CORE,
                          env=dict(os.environ, HOME=bench.folder, GOMAXPROCS="1"), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    wait_for_port(port)
    return port, process


PINGORA_TARGET = os.path.join(ROOT, "target", "pingora")


def build_pingora():
    run("cargo", "build", "--release", "--quiet", "--locked", cwd=os.path.join(ROOT, "loadtest", "pingora"),
        env=dict(os.environ, CARGO_TARGET_DIR=PINGORA_TARGET))


def pingora(bench, backend):
    port = free_port()
    binary = os.path.join(PINGORA_TARGET, "release", "pingora-peer")
    process = bench.start([binary, str(port), str(backend)], PROXY_CORE, stderr=subprocess.DEVNULL)
    wait_for_port(port)
    return port, process


def relay(bench, backend):
    """What passes bytes on without looking at them: the floor."""
    port = free_port()
    process = bench.start([example("relay"), str(port), str(backend)], PROXY_CORE)
    wait_for_port(port)
    return port, process


def event_source(bench, every_us):
    """A backend that sends each client a Server-Sent Event so often; its port."""
    port = free_port()
    bench.start([example("events"), "serve", str(port), str(every_us)], LOAD_CORE)
    wait_for_port(port)
    return port
