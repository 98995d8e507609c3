// The dashboard's charts: SVG, drawn anew with each sample. A chart is read with the pointer or, once it has the focus, with
// the arrow keys; what stands at that moment is in its legend.
"use strict";

const MINUTE = 60 * 1000;
const SPAN = 5 * MINUTE; // What is kept; a process that is younger is drawn over as many minutes as it has.
const GAP = 2600; // Between two points further apart than this nothing is drawn: nothing is known.

function svg(name, attributes = {}, text) {
    const node = document.createElementNS("http://www.w3.org/2000/svg", name);
    for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
    if (text !== undefined) node.textContent = text;
    return node;
}

function clock(at) {
    return new Date(at).toLocaleTimeString("en-GB");
}

// Numbers as people read them.
const show = {
    rate(value) {
        if (value == null) return "–";
        if (value >= 100000) return Math.round(value / 1000).toLocaleString("en-US") + "k";
        return value >= 99.95 || value === 0 ? Math.round(value).toLocaleString("en-US") : value < 0.05 ? "<0.1" : value.toFixed(1);
    },
    ms(value) {
        if (value == null) return "–";
        if (value < 1) return value.toFixed(2) + " ms";
        if (value < 9.95) return value.toFixed(1) + " ms";
        if (value < 999.5) return Math.round(value) + " ms";
        return (value / 1000).toFixed(value < 99950 ? 1 : 0) + " s";
    },
    percentile(it) {
        return it == null ? "–" : (it.above ? ">\u202f" : "") + show.ms(it.ms);
    },
    share(part, whole) {
        if (!(whole > 0)) return "–";
        const percent = (100 * part) / whole;
        if (percent === 0 || percent === 100) return percent + "\u202f%";
        return percent < 0.1 ? "<0.1\u202f%" : percent > 99.9 ? ">99.9\u202f%" : percent.toFixed(1) + "\u202f%";
    },
    count(value) {
        return value == null ? "–" : value.toLocaleString("en-US");
    },
    duration(ms) {
        const s = Math.max(0, Math.floor(ms / 1000));
        const parts = [[Math.floor(s / 86400), "d"], [Math.floor(s / 3600) % 24, "h"], [Math.floor(s / 60) % 60, "min"], [s % 60, "s"]];
        const first = parts.findIndex(([n]) => n > 0);
        return first < 0 ? "0 s" : parts.slice(first, first + 2).map(([n, unit]) => n + " " + unit).join(" ");
    },
};

// The round number of 1, 2, 5 times a power of ten that is not below `value`.
function roundUp(value) {
    const power = 10 ** Math.floor(Math.log10(value));
    return [1, 2, 5, 10].find((step) => step * power >= value * 0.9999) * power;
}

// From zero, in even steps.
const linear = {
    ticks(highest) {
        const step = Math.max(roundUp(Math.max(highest, 0.1) / 4), highest < 4 ? 0.1 : 1);
        const top = Math.max(1, Math.ceil(highest / step - 1e-9)) * step;
        return Array.from({length: Math.round(top / step) + 1}, (_, index) => index * step);
    },
    place: (value, ticks) => value / ticks[ticks.length - 1],
};

// From the lowest to the highest, in steps of 1, 2, 5: a p99 a hundred times the p50 leaves both readable.
const logarithmic = {
    ticks(highest, lowest) {
        let all = [];
        const first = Math.floor(Math.log10(Math.max(lowest, 0.01)));
        for (let power = first; power <= Math.ceil(Math.log10(Math.max(highest, 0.02))); power++) {
            all.push(...[1, 2, 5].map((step) => step * 10 ** power));
        }
        const from = all.findLastIndex((tick) => tick <= Math.max(lowest, 0.01) * 1.0001);
        const to = all.findIndex((tick) => tick >= highest * 0.9999);
        all = all.slice(Math.max(0, from), (to < 0 ? all.length : Math.max(to, from + 2)) + 1);
        while (all.length > 6) all = all.filter((_, index) => (all.length - 1 - index) % 2 === 0 || index === 0);
        return all;
    },
    place: (value, ticks) => {
        const low = Math.log(ticks[0]);
        return Math.max(0, (Math.log(Math.max(value, ticks[0])) - low) / (Math.log(ticks[ticks.length - 1]) - low));
    },
};

class Chart {
    // series: [{name, color, value(point), dash, width}], the lowest first where they are stacked.
    constructor(figure, {series, stacked, scale, format, ends, label}) {
        Object.assign(this, {figure, series, stacked, scale, format, ends, label, points: [], picked: null});
        this.plot = figure.querySelector(".plot");
        this.empty = figure.querySelector(".empty");
        this.when = figure.querySelector(".when");
        this.svg = svg("svg", {role: "slider", tabindex: 0, "aria-label": label, "aria-valuemin": -300, "aria-valuemax": 0, "aria-valuenow": 0});
        this.plot.prepend(this.svg);
        this.legend = [...series].reverse().map((one) => this.entry(one));
        if (!stacked) this.legend.reverse();
        figure.querySelector(".legend").append(...this.legend.map((entry) => entry.node));
        this.svg.addEventListener("pointermove", (event) => this.pick(this.indexAt(event.offsetX)));
        this.svg.addEventListener("pointerdown", (event) => this.pick(this.indexAt(event.offsetX)));
        this.svg.addEventListener("pointerleave", () => this.pick(null));
        this.svg.addEventListener("blur", () => this.pick(null));
        this.svg.addEventListener("keydown", (event) => this.onKey(event));
        new ResizeObserver(() => this.draw()).observe(this.plot);
    }

    entry(series) {
        const node = document.createElement("li");
        const mark = svg("svg", {viewBox: "0 0 16 10", "aria-hidden": "true"});
        mark.append(
            this.stacked
                ? svg("rect", {x: 2, y: 0, width: 11, height: 10, rx: 2.5})
                : svg("path", {d: "M0 5H16", "stroke-width": series.width, "stroke-dasharray": series.dash ?? "none"}),
        );
        mark.firstChild.style[this.stacked ? "fill" : "stroke"] = `var(${series.color})`;
        const [name, value] = ["name", "value"].map((kind) => Object.assign(document.createElement("span"), {className: kind}));
        name.textContent = series.name;
        node.append(mark, name, value);
        return {node, value, series};
    }

    set(points) {
        // What was picked moves along with its moment.
        const at = this.picked === null ? null : this.points[this.picked]?.at;
        this.points = points;
        const index = at === null ? -1 : points.findIndex((point) => point.at === at);
        this.picked = index < 0 ? null : index;
        this.draw();
    }

    pick(index) {
        if (index === this.picked) return;
        this.picked = index;
        this.draw();
    }

    onKey(event) {
        const last = this.points.length - 1;
        const from = this.picked ?? last;
        const to = {ArrowLeft: from - 1, ArrowRight: from + 1, PageUp: from - 30, PageDown: from + 30, Home: 0, End: last, Escape: null}[event.key];
        if (to === undefined || last < 0) return;
        event.preventDefault();
        this.pick(to === null ? null : Math.min(last, Math.max(0, to)));
    }

    indexAt(x) {
        let nearest = null;
        this.points.forEach((point, index) => {
            if (nearest === null || Math.abs(this.x(point.at) - x) < Math.abs(this.x(this.points[nearest].at) - x)) nearest = index;
        });
        return nearest;
    }

    x(at) {
        return this.box.left + ((at - this.end + this.span) / this.span) * (this.box.right - this.box.left);
    }

    y(value) {
        return this.box.bottom - this.scale.place(value, this.ticks) * (this.box.bottom - this.box.top);
    }

    draw() {
        const {clientWidth: width, clientHeight: height} = this.plot;
        if (!width || !height) return;
        this.box = {left: 52, right: width - (this.ends ? 34 : 4), top: 8, bottom: height - 22};
        this.end = this.points.at(-1)?.at ?? Date.now();
        const age = this.end - (this.points[0]?.at ?? this.end);
        this.span = Math.min(SPAN, Math.max(1, Math.ceil((age - 2000) / MINUTE)) * MINUTE);
        const values = this.points.flatMap((point) =>
            this.stacked ? [this.series.reduce((sum, one) => sum + one.value(point), 0)] : this.series.map((one) => one.value(point)),
        ).filter((value) => value != null && (this.stacked || value > 0));
        this.ticks = this.scale.ticks(values.length ? Math.max(...values) : 1, values.length ? Math.min(...values) : 1);
        this.svg.setAttribute("viewBox", `0 0 ${width} ${height}`);
        this.svg.replaceChildren(...this.frame(width), ...(this.stacked ? this.areas() : this.lines()), ...this.cross());
        this.tell();
    }

    frame(width) {
        const {left, right, bottom} = this.box;
        const nodes = [];
        this.ticks.forEach((tick, index) => {
            const y = Math.round(this.y(tick));
            nodes.push(svg("line", {class: index ? "grid" : "base", x1: left, x2: right, y1: y, y2: y}));
            nodes.push(svg("text", {x: left - 8, y: y + 4, "text-anchor": "end"}, this.format(tick).replace(/(\.\d*[1-9])0+(?= |$)|\.0+(?= |$)/, "$1")));
        });
        const isShort = this.span === MINUTE;
        const steps = isShort ? 3 : this.span / MINUTE;
        for (let step = 0; step <= steps; step++) {
            // Where there is no room for all, every other one from the left on.
            if (width < 460 && (steps - step) % 2 === 1 && step > 0 && steps > 3) continue;
            const ago = (step * this.span) / steps;
            const anchor = step === steps ? "start" : step ? "middle" : "end";
            const text = (isShort && step < steps ? `${ago / 1000} s` : `${ago / MINUTE} min`) + (step === steps ? " ago" : "");
            nodes.push(svg("text", {x: this.x(this.end - ago), y: bottom + 17, "text-anchor": anchor}, step ? text : "now"));
        }
        return nodes;
    }

    // Runs of points without a gap and, for lines, without a missing value.
    runs(value) {
        const runs = [];
        let before = null;
        this.points.forEach((point, index) => {
            if (value && value(point) == null) {
                before = null;
                return;
            }
            if (before === null || point.at - before > GAP) runs.push([]);
            runs.at(-1).push(index);
            before = point.at;
        });
        return runs;
    }

    areas() {
        const floor = this.points.map(() => 0);
        return this.series.map((series) => {
            const top = this.points.map((point, index) => floor[index] + series.value(point));
            const at = (index, level) => `${this.x(this.points[index].at).toFixed(1)} ${this.y(level[index]).toFixed(1)}`;
            const d = this.runs().map((run) =>
                "M" + run.map((index) => at(index, top)).join("L") + "L" + [...run].reverse().map((index) => at(index, floor)).join("L") + "Z",
            ).join("");
            top.forEach((level, index) => (floor[index] = level));
            const path = svg("path", {d});
            path.style.fill = `var(${series.color})`;
            return path;
        });
    }

    lines() {
        const nodes = [];
        const ends = [];
        for (const series of this.series) {
            const d = this.runs(series.value).map((run) =>
                "M" + run.map((index) => `${this.x(this.points[index].at).toFixed(1)} ${this.y(series.value(this.points[index])).toFixed(1)}`).join("L") +
                (run.length === 1 ? "h.1" : ""),
            ).join("");
            const path = svg("path", {class: "line", d, "stroke-width": series.width, "stroke-dasharray": series.dash ?? "none"});
            path.style.stroke = `var(${series.color})`;
            nodes.push(path);
            const last = this.points.length ? series.value(this.points.at(-1)) : null;
            if (this.ends && last != null) ends.push({series, y: this.y(last)});
        }
        // Each line's name at its end, none over another.
        ends.sort((a, b) => b.y - a.y).forEach((end, index) => {
            end.y = Math.min(end.y, index ? ends[index - 1].y - 13 : this.box.bottom);
            const text = svg("text", {class: "end", x: this.box.right + 6, y: end.y + 4}, end.series.name);
            text.style.fill = `var(${end.series.color})`;
            nodes.push(text);
        });
        return nodes;
    }

    cross() {
        const point = this.points[this.picked];
        if (!point) return [];
        const x = Math.round(this.x(point.at)) + 0.5;
        return [svg("line", {class: "cross", x1: x, x2: x, y1: this.box.top, y2: this.box.bottom})];
    }

    tell() {
        const point = this.points[this.picked] ?? this.points.at(-1);
        const whole = point && this.stacked ? this.series.reduce((sum, one) => sum + one.value(point), 0) : 0;
        const values = this.legend.map(({value, series}) => {
            const number = point && this.empty.hidden ? series.value(point) : null;
            const text = number == null ? "–" : this.stacked ? `${this.format(number)} · ${show.share(number, whole)}` : this.format(number);
            if (value.textContent !== text) value.textContent = text;
            return `${series.name} ${text}`;
        });
        const when = this.picked !== null && point ? clock(point.at) : this.span === MINUTE ? "last minute" : `last ${this.span / MINUTE} minutes`;
        if (this.when.textContent !== when) this.when.textContent = when;
        if (!point) return;
        this.svg.setAttribute("aria-valuenow", Math.round((point.at - this.end) / 1000));
        this.svg.setAttribute("aria-valuetext", `${clock(point.at)}: ${values.join(", ")}`);
    }
}
