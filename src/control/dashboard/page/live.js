// The dashboard's line to the gateway: one stream of Server-Sent Events, read with fetch() since an EventSource cannot show a key.
// It is opened again whenever it ends, and what is on the screen meanwhile is marked as old.

const KEY = "ringway-admin-key";
const THEME = "ringway-theme";
const SILENCE = 5000; // A sample comes each second; without one for so long the line is dead.
const RETRY_FIRST = 500;
const RETRY_MOST = 15000;
const HIDDEN_MOST = 60000; // A tab that nobody sees gives its place away after so long.

let points = [];
let sample = null;
let abort = null;
let retry = RETRY_FIRST;
let timer = 0;

// A browser may forbid storage; then the page remembers for itself.
const memory = new Map();

function recall(kind, key) {
    try {
        return window[kind].getItem(key);
    } catch {
        return memory.get(key) ?? null;
    }
}

function remember(kind, key, value) {
    try {
        if (value === null) window[kind].removeItem(key);
        else window[kind].setItem(key, value);
    } catch {
        memory.set(key, value);
    }
}

function setState(state, text, more = "") {
    $("state").dataset.state = state;
    put($("state-text"), text);
    // Apart from what is read out: it changes each second.
    put($("state-more"), more);
    $("board").toggleAttribute("data-stale", state !== "live");
}

async function connect() {
    clearTimeout(timer);
    abort?.abort();
    const own = (abort = new AbortController());
    const key = recall("sessionStorage", KEY);
    let watchdog = 0;
    const feed = () => {
        clearTimeout(watchdog);
        watchdog = setTimeout(() => own.abort(), SILENCE);
    };
    try {
        feed();
        const headers = {Accept: "text/event-stream", ...(key ? {"X-API-Key": key} : {})};
        const answer = await fetch("/dashboard/events", {headers, cache: "no-store", credentials: "omit", signal: own.signal});
        if (answer.status === 401 || (answer.status === 400 && key)) {
            remember("sessionStorage", KEY, null);
            return askForKey(key ? "This is not the admin key. Check it and try again." : "");
        }
        if (!answer.ok) {
            const problem = await answer.json().catch(() => ({}));
            return later(problem.detail ?? `The gateway answered ${answer.status}.`, 1000 * Number(answer.headers.get("Retry-After") ?? 0));
        }
        await read(answer.body.getReader(), feed);
        // It ended in good order: the gateway goes down, hands over, or has another key.
        if (own === abort) later("");
    } catch {
        if (own === abort) later("");
    } finally {
        clearTimeout(watchdog);
    }
}

async function read(reader, feed) {
    const decoder = new TextDecoder();
    let text = "";
    for (;;) {
        const {done, value} = await reader.read();
        if (done) return;
        feed();
        text += decoder.decode(value, {stream: true});
        for (let end = text.indexOf("\n\n"); end >= 0; end = text.indexOf("\n\n")) {
            const lines = text.slice(0, end).split("\n");
            text = text.slice(end + 2);
            const field = (name) => lines.find((line) => line.startsWith(name + ": "))?.slice(name.length + 2) ?? "";
            take(field("event"), JSON.parse(field("data")));
        }
    }
}

function take(event, data) {
    if (event === "history") {
        const fresh = data.points.map(readPoint);
        // After an upgrade the next process knows only its own time; what this page saw before is still true.
        const since = fresh[0]?.at ?? Infinity;
        points = [...points.filter((point) => point.at < since), ...fresh];
    } else if (event === "sample") {
        sample = data;
        const point = data.point && readPoint(data.point);
        if (point && !(points.at(-1)?.at >= point.at)) points.push(point);
        points = points.filter((one) => one.at >= data.at - SPAN);
        retry = RETRY_FIRST;
        $("door").hidden = true;
        $("board").hidden = false;
        $("forget").hidden = !recall("sessionStorage", KEY);
        setState("live", "Live");
        drawSample(sample, points);
    }
}

// Tries again after a while, longer each time, and says so.
function later(why, atLeast = 0) {
    const wait = Math.max(atLeast, retry * (0.75 + Math.random() / 2));
    retry = Math.min(retry * 2, RETRY_MOST);
    const until = Date.now() + wait;
    const tell = () => {
        const left = Math.max(1, Math.ceil((until - Date.now()) / 1000));
        const last = sample ? `Connection lost, last figures from ${clock(sample.at)}.` : "No connection to the gateway.";
        setState("lost", why || last, `Trying again in ${left} s.`);
        if (sample) document.title = "not live · ringway";
        timer = setTimeout(() => (Date.now() >= until ? connect() : tell()), Math.min(1000, Math.max(50, until - Date.now())));
    };
    clearTimeout(timer);
    tell();
}

function askForKey(error) {
    sample = null;
    points = [];
    $("board").hidden = true;
    $("forget").hidden = true;
    $("door").hidden = false;
    put($("about"), "");
    put($("door-error"), error);
    $("key").toggleAttribute("aria-invalid", error !== "");
    setState("closed", "Key needed");
    document.title = "ringway";
    $("key").value = "";
    $("key").focus();
}

$("door-form").addEventListener("submit", (event) => {
    event.preventDefault();
    const key = $("key").value.trim();
    // What cannot stand in a header field is no key.
    if (!/^[\x21-\x7e]+$/.test(key)) return askForKey(key ? "A key has no spaces and no letters beyond ASCII." : "Type the key first.");
    remember("sessionStorage", KEY, key);
    setState("connecting", "Connecting");
    connect();
});

$("forget").addEventListener("click", () => {
    remember("sessionStorage", KEY, null);
    connect();
});

const prefersDark = matchMedia("(prefers-color-scheme: dark)");

function theme() {
    const chosen = recall("localStorage", THEME);
    if (chosen) document.documentElement.dataset.theme = chosen;
    const isDark = chosen ? chosen === "dark" : prefersDark.matches;
    put($("theme"), isDark ? "Light" : "Dark");
    $("theme").setAttribute("aria-label", isDark ? "Switch to light colours" : "Switch to dark colours");
    return isDark;
}

$("theme").addEventListener("click", () => {
    remember("localStorage", THEME, theme() ? "light" : "dark");
    theme();
});
prefersDark.addEventListener("change", theme);
theme();

let away = 0;
document.addEventListener("visibilitychange", () => {
    clearTimeout(away);
    if (!document.hidden && abort === null) {
        setState("connecting", "Connecting");
        connect();
    } else if (document.hidden) {
        away = setTimeout(() => {
            const own = abort;
            abort = null;
            clearTimeout(timer);
            own?.abort();
        }, HIDDEN_MOST);
    }
});

connect();
