// The dashboard's figures: what a sample says, put where it belongs. Names come from configurations and from whoever registers
// instances: they are set as text, never as markup.

const $ = (id) => document.getElementById(id);

function make(name, className, text) {
    const node = document.createElement(name);
    if (className) node.className = className;
    if (text !== undefined) node.textContent = text;
    return node;
}

function put(node, text) {
    if (node.textContent !== text) node.textContent = text;
}

function icon(name) {
    const node = svg("svg", {class: "icon", "aria-hidden": "true"});
    node.append(svg("use", {href: "#i-" + name}));
    return node;
}

const plural = (count, one, many = one + "s") => `${show.count(count)} ${count === 1 ? one : many}`;

// A state: a shape, a word, and then a colour.
function chip(level, symbol, text) {
    const node = make("span", "chip");
    node.dataset.level = level;
    node.append(icon(symbol), make("span", "", text));
    return node;
}

// A number with what it counts.
function sum(number, unit, level) {
    const node = make("span");
    if (level) node.dataset.level = level;
    node.append(make("b", "", number), " " + unit);
    return node;
}

// Keeps the children of `parent` in step with `items`: those with the same key stay, and with them focus and openness.
function sync(parent, items, key, create, update) {
    const known = new Map([...parent.children].map((node) => [node.dataset.key, node]));
    items.forEach((item, index) => {
        const name = key(item);
        let node = known.get(name);
        known.delete(name);
        if (!node) {
            node = create(item);
            node.dataset.key = name;
        }
        if (parent.children[index] !== node) parent.insertBefore(node, parent.children[index] ?? null);
        update(node, item);
    });
    known.forEach((node) => node.remove());
}

// Builds the children of `node` anew, if what they show has changed.
function refresh(node, shown, build) {
    const mark = JSON.stringify(shown);
    if (node.shown === mark) return;
    node.shown = mark;
    node.replaceChildren(...build());
}

const STATES = {
    healthy: ["good", "good", () => "Healthy"],
    degraded: ["warn", "warn", (it) => `Degraded: ${it.total - it.good} of ${plural(it.total, "endpoint")} in trouble`],
    failing: ["bad", "bad", (it) => (it.total === 1 ? "Failing: its endpoint is in trouble" : `Failing: all ${it.total} endpoints in trouble`)],
    empty: ["bad", "none", () => "No endpoints"],
};

const BREAKERS = {
    closed: ["none", null, "closed"],
    half_open: ["warn", "half", "half-open"],
    open: ["bad", "open", "open"],
};

const EVENTS = {
    timeout_connect: "Connects that took too long",
    timeout_response_header: "Answers that took too long",
    timeout_try: "Tries given up for another",
    timeout_header_read: "Clients too slow with a request",
    timeout_idle_body: "Bodies that stood still",
    retries: "Requests sent again",
    retries_refused: "Retries refused by the budget",
    accept_errors: "Clients that could not be taken in",
    redis_errors: "Redis calls that failed",
    rate_limit_uncounted: "Requests let pass uncounted",
    log_lines_dropped: "Log lines dropped",
    panics: "Panics",
};

const status = (digit) => ({name: digit + "xx", color: "--c" + digit, value: (point) => point.classes[digit] + (digit === 1 ? point.classes[0] : 0)});

const charts = {
    traffic: new Chart($("traffic-chart"), {
        label: "Requests per second by status, over the last 5 minutes",
        series: [5, 4, 3, 2].map(status),
        stacked: true,
        scale: linear,
        format: show.rate,
    }),
    latency: new Chart($("latency-chart"), {
        label: "Latency percentiles over the last 5 minutes, on a logarithmic scale",
        series: [
            {name: "p50", color: "--p50", value: (point) => point.p50, width: 2.2},
            {name: "p90", color: "--p90", value: (point) => point.p90, width: 1.6},
            {name: "p99", color: "--p99", value: (point) => point.p99, width: 1.6, dash: "4 3"},
        ],
        scale: logarithmic,
        format: show.ms,
        ends: true,
    }),
};

// The array that the stream sends for a point, by name.
function readPoint([at, c1, c2, c3, c4, c5, c0, p50, p90, p99, inFlight, refused]) {
    // What is not known, or is no final answer, is shown with the 2xx rather than left out of the sum.
    return {at, classes: [0, 0, c2 + c1 + c0, c3, c4, c5], all: c0 + c1 + c2 + c3 + c4 + c5, p50, p90, p99, inFlight, refused};
}

function drawHistory(points, sample) {
    const isQuiet = !points.some((point) => point.all > 0);
    const {metrics} = sample.gateway;
    const path = sample.services[0]?.prefix;
    for (const chart of Object.values(charts)) {
        chart.empty.hidden = metrics && !isQuiet;
        chart.plot.toggleAttribute("data-empty", !chart.empty.hidden);
        chart.set(points);
        if (chart.empty.hidden) continue;
        refresh(chart.empty, [metrics, path], () => {
            if (!metrics) return ["Not counted while metrics are off. Set ", make("code", "", "metrics.enabled = true"), " and restart the gateway."];
            if (chart === charts.latency) return ["Nothing to measure yet."];
            if (!path) return ["No requests in the last five minutes."];
            return ["No requests in the last five minutes. Send one:", make("br"), make("code", "", `curl -i ${location.origin}${path}`)];
        });
    }
}

function drawTiles({traffic, gateway, workers, events}, points) {
    const known = gateway.metrics;
    const all = traffic.classes.reduce((sum, rate) => sum + rate, 0);
    put($("rate"), known ? show.rate(all) : "–");
    const peak = Math.max(0, ...points.map((point) => point.all));
    put($("rate-note"), known ? `peak ${show.rate(peak)}` : "not counted");
    for (const name of ["p50", "p90", "p99"]) {
        const [number, unit = ""] = show.percentile(traffic[name]).split(" ");
        refresh($(name), [number, unit], () => [number, make("small", "", " " + unit)]);
    }
    const isAbove = ["p50", "p90", "p99"].some((name) => traffic[name]?.above);
    put($("latency-note"), isAbove ? "above the highest of metrics.buckets nobody knows how far" : "from the request's head to the answer's end");
    put($("errors"), known ? (all > 0 ? show.share(traffic.classes[5], all) : "–") : "–");
    put($("errors-note"), known ? `${show.rate(traffic.classes[5])} /s with 5xx` : "not counted");
    $("errors-tile").dataset.level = traffic.classes[5] > all / 100 ? "bad" : "";
    put($("in-flight"), show.count(traffic.in_flight));
    put($("in-flight-note"), plural(workers.reduce((sum, worker) => sum + worker.connections, 0), "connection"));
    put($("refused"), known ? show.rate(traffic.refused) : "–");
    put($("refused-note"), {off: "counted in memory", shared: "counted in Redis", degraded: "Redis is away"}[gateway.redis.mode]);
    const happened = events.filter(([, total]) => total > 0);
    $("no-events").hidden = happened.length > 0;
    sync($("events"), happened, ([name]) => name, ([name]) => {
        const row = make("div");
        row.append(make("dt", "", EVENTS[name] ?? name), make("dd"));
        return row;
    }, (row, [, total, rate]) => put(row.lastChild, show.count(total) + (rate > 0 ? ` · ${show.rate(rate)}/s` : "")));
}

function drawServices({services, gateway, endpoints_left_out: leftOut}) {
    const troubled = services.filter((service) => service.state !== "healthy").length;
    const endpoints = services.reduce((sum, service) => sum + service.total, 0);
    put($("services-note"), services.length === 0 ? "" : troubled > 0 ? `${troubled} of ${services.length} in trouble` : `all ${services.length} healthy · ${plural(endpoints, "endpoint")}`);
    const place = $("services");
    if (services.length === 0) {
        refresh(place, "none", () => {
            const text = make("p", "empty");
            text.append("No services yet. Add one to the configuration and send the gateway a SIGHUP: ", make("br"), make("code", "", 'services.sms = { prefix = "/api/v1/sms", endpoints = ["http://127.0.0.1:9001"] }'));
            return [text];
        });
        return;
    }
    if (place.shown) {
        place.shown = undefined;
        place.replaceChildren();
    }
    sync(place, services, (service) => service.name, createService, (node, service) => updateService(node, service, gateway));
    $("left-out").hidden = leftOut === 0;
    put($("left-out"), `${plural(leftOut, "more endpoint")} in good health ${leftOut === 1 ? "is" : "are"} not listed; /api/v1/services/status has all.`);
}

function createService(service) {
    const node = make("details", "service");
    // Long lists of what is well are opened by who wants them.
    node.open = service.state !== "healthy" || service.total <= 8;
    const summary = make("summary");
    summary.append(make("h3", "", service.name), make("span", "prefix mono", service.prefix), make("span"), make("span", "sums"));
    node.append(summary);
    return node;
}

function updateService(node, service, gateway) {
    const [, prefix, state, sums] = node.firstChild.children;
    if (node.state && node.state !== service.state && service.state !== "healthy") node.open = true;
    node.state = service.state;
    put(prefix, service.prefix);
    const [level, symbol, text] = STATES[service.state];
    refresh(state, [level, text(service), service.panic], () => [
        chip(level, symbol, text(service) + (service.panic && service.total > 0 ? ", all are used all the same" : "")),
    ]);
    refresh(sums, [service.rate, service.failed, service.mean_ms, service.in_flight, service.refused], () => {
        const parts = [sum(show.rate(service.rate), "/s"), sum(show.ms(service.mean_ms), "mean"), sum(show.count(service.in_flight), "in flight")];
        if (service.failed > 0) parts.splice(1, 0, sum(show.rate(service.failed), "/s failed", "bad"));
        if (service.refused > 0) parts.push(sum(show.rate(service.refused), "/s limited"));
        return parts;
    });
    const isEmpty = service.total === 0;
    if ((node.children[1]?.localName ?? "") !== (isEmpty ? "p" : "table")) {
        node.children[1]?.remove();
        node.append(isEmpty ? noEndpoints(service, gateway) : endpointTable(service));
    }
    if (!isEmpty) sync(node.children[1].tBodies[0], service.endpoints, (endpoint) => endpoint.instance, createEndpoint, (row, endpoint) => updateEndpoint(row, endpoint, service));
}

function noEndpoints(service, gateway) {
    const text = make("p", "empty");
    text.append("Requests are answered 503. ");
    if (gateway.key) text.append("List backends under ", make("code", "", "endpoints"), ", or let them register: ", make("code", "", `POST /api/v1/services/${service.name}/instances`));
    else text.append("List backends under ", make("code", "", "endpoints"), " in the configuration, or see why a name there does not resolve in the gateway's log.");
    return text;
}

const COLUMNS = [["Endpoint"], ["Health"], ["Breaker"], ["Requests/s", "n"], ["Mean answer", "n"], ["In flight", "n"], ["Weight", "n"], ["Source"]];

function endpointTable(service) {
    const table = make("table");
    table.setAttribute("role", "table");
    table.setAttribute("aria-label", "Endpoints of " + service.name);
    const head = make("tr");
    head.append(...COLUMNS.map(([name, className]) => Object.assign(make("th", className, name), {scope: "col"})));
    table.createTHead().append(head);
    table.createTBody();
    return table;
}

function createEndpoint() {
    // The roles stay those of a table where a narrow page lays it out otherwise.
    const row = make("tr");
    row.setAttribute("role", "row");
    COLUMNS.forEach(([name, className], index) => {
        const cell = make("td", ["instance", "health"][index] ?? className);
        cell.setAttribute("role", "cell");
        cell.dataset.label = name;
        row.append(cell);
    });
    return row;
}

function updateEndpoint(row, endpoint, service) {
    const [instance, health, breaker, rate, mean, inFlight, weight, source] = row.cells;
    put(instance, endpoint.instance);
    refresh(health, [endpoint.health, endpoint.check, endpoint.ejected], () => {
        const parts = [];
        if (endpoint.health === "unhealthy") parts.push(chip("bad", "bad", "Unhealthy"));
        else if (endpoint.ejected > 0) parts.push(chip("warn", "warn", "Ejected"));
        else if (endpoint.health === "healthy") parts.push(chip("good", "good", "Healthy"));
        else parts.push(chip("none", "none", "Not checked"));
        if (endpoint.check) parts.push(make("span", "why", endpoint.check));
        if (endpoint.ejected > 0) parts.push(make("span", "why", `worse than its siblings, on ${plural(endpoint.ejected, "worker")}`));
        return parts;
    });
    refresh(breaker, [service.breaker, endpoint.breaker], () => {
        if (!service.breaker) return [make("span", "none", "off")];
        const [level, symbol, text] = BREAKERS[endpoint.breaker];
        return [symbol ? chip(level, symbol, text) : make("span", "none", text)];
    });
    put(rate, show.rate(endpoint.rate));
    put(mean, show.ms(endpoint.mean_ms));
    put(inFlight, show.count(endpoint.in_flight));
    put(weight, String(endpoint.weight));
    put(source, endpoint.source);
}

function drawWorkers({workers, skew, gateway}) {
    put($("skew"), skew == null || workers.length < 2 ? "" : `busiest ${skew.toFixed(2)} × the mean`);
    const most = Math.max(1, ...workers.map((worker) => worker.connections));
    const numbered = workers.map((worker, index) => ({...worker, index}));
    sync($("workers").tBodies[0], numbered, (worker) => String(worker.index), (worker) => {
        const row = make("tr");
        const load = make("div", "load");
        const track = make("span", "track");
        track.append(make("i"));
        load.append(track, make("span"));
        row.append(make("td", "", String(worker.index)), make("td"), make("td", "n"), make("td", "n"));
        row.cells[1].append(load);
        return row;
    }, (row, worker) => {
        const [track, text] = row.cells[1].firstChild.children;
        track.firstChild.style.width = (100 * worker.connections) / most + "%";
        put(text, show.count(worker.connections));
        put(row.cells[2], show.count(worker.in_flight));
        put(row.cells[3], gateway.metrics ? show.rate(worker.rate) : "–");
    });
}

function drawGateway({at, gateway, workers}) {
    const {redis, reloads} = gateway;
    put($("about"), `${gateway.version} · ${gateway.driver} · ${plural(workers.length, "worker")} · up ${show.duration(at - gateway.started)}`);
    const onError = {local: "each gateway counts its share", allow: "requests pass uncounted", deny: "requests are refused"}[redis.on_error];
    const facts = {
        Redis: {off: "off: limits are counted in memory", shared: "shared: one count for all gateways", degraded: `degraded: ${onError}`}[redis.mode],
        Configuration: `generation ${gateway.generation}` + (gateway.adopted < workers.length ? `, on ${gateway.adopted} of ${plural(workers.length, "worker")}` : ""),
        Reloads: `${reloads.applied} applied, ${reloads.invalid} refused` + (reloads.failed ? ", the last one too" : ""),
        Phase: gateway.phase,
        Build: `${gateway.version} (${gateway.commit})`,
        Process: `${gateway.pid}, since ${new Date(gateway.started).toLocaleString("sv-SE")}`,
        "Dashboards open": `${gateway.viewers} of 32, each in flight on a worker` + (gateway.key ? "" : "; no key is asked for"),
    };
    sync($("facts"), Object.entries(facts), ([name]) => name, ([name]) => {
        const row = make("div");
        row.append(make("dt", "", name), make("dd"));
        return row;
    }, (row, [, text]) => put(row.lastChild, text));
}

// What somebody has to know before anything else, the worst first.
function noticesOf({gateway, services, workers}) {
    const notices = [];
    const names = (state) => services.filter((service) => service.state === state).map((service) => service.name);
    const list = (all) => all.slice(0, 4).join(", ") + (all.length > 4 ? ` and ${all.length - 4} more` : "");
    const failing = [...names("failing"), ...names("empty")];
    if (failing.length) notices.push(["bad", "bad", `Every endpoint is in trouble: ${list(failing)}.`]);
    if (gateway.phase !== "serving") notices.push(["warn", "warn", gateway.phase === "unready" ? "The gateway is about to go down: load balancers are told to send new clients elsewhere." : "The gateway is going down: requests in flight finish, new clients are not taken in."]);
    if (gateway.reloads.failed) notices.push(["warn", "warn", "The last configuration was refused; the one before is served. The gateway's log and `ringway check` say why."]);
    if (gateway.redis.mode === "degraded") notices.push(["warn", "warn", `Redis does not answer ${gateway.redis.workers_degraded < workers.length ? `on ${gateway.redis.workers_degraded} of ${workers.length} workers` : ""}`.trim() + ": rate limits are decided as redis.on_error says."]);
    if (!gateway.metrics) notices.push(["info", "info", "Metrics are off: request rates, statuses, latency and rate-limit refusals are not counted. Set metrics.enabled = true (METRICS_ENABLED) and restart the gateway."]);
    return notices;
}

function drawNotices(notices) {
    sync($("notices"), notices, ([, , text]) => text, ([level, symbol, text]) => {
        const node = make("li", "notice");
        node.dataset.level = level;
        node.append(icon(symbol), make("span", "", text));
        return node;
    }, () => {});
}

function drawSample(sample, points) {
    drawNotices(noticesOf(sample));
    drawTiles(sample, points);
    drawHistory(points, sample);
    drawServices(sample);
    drawWorkers(sample);
    drawGateway(sample);
    const trouble = sample.services.filter((service) => service.state !== "healthy").length;
    const all = sample.traffic.classes.reduce((sum, rate) => sum + rate, 0);
    document.title = (trouble ? `${trouble} in trouble · ` : sample.gateway.metrics ? `${show.rate(all)}/s · ` : "") + "ringway";
}
