"use strict";
// The figures of a report: values at the pointer, and steps or time in place of tokens. A figure's points are in its CSV
// link, the places of its axes in its svg. Without this script the page loses nothing else.
(() => {
  const AXES = { tokens: "tokens", step: "steps", seconds: "time" };
  const MOST_VALUES = 16;

  /** Three significant digits and a suffix, as on the drawn axes: 512, 1.2K, 4.1B. */
  function short(count) {
    let power = 0;
    while (Math.abs(count) >= 999.5 && power < 4) [count, power] = [count / 1000, power + 1];
    return `${Number(count.toPrecision(3))}${["", "K", "M", "B", "T"][power]}`;
  }

  function timeUnit(seconds) {
    return seconds >= 7200 ? [3600, "hours"] : seconds >= 120 ? [60, "minutes"] : [1, "seconds"];
  }

  function value(text) {
    return Number(text).toLocaleString("en", { maximumSignificantDigits: 5 });
  }

  function cells(text) {
    const rows = [[]];
    for (const [, quoted, plain, end] of text.matchAll(/(?:"((?:[^"]|"")*)"|([^",\n]*))(,|\n|$)/g)) {
      rows.at(-1).push(quoted === undefined ? plain : quoted.replaceAll('""', '"'));
      if (end === "\n") rows.push([]);
    }
    return rows;
  }

  function ticks(low, high, logarithmic) {
    const found = [];
    if (logarithmic) {
      const parts = high < 1000 * low ? [1, 2, 5] : [1];
      for (let power = Math.floor(Math.log10(low)); power <= Math.log10(high); power++) {
        found.push(...parts.map((part) => part * 10 ** power));
      }
    } else {
      const least = (high - low) / 6;
      const power = 10 ** Math.floor(Math.log10(least));
      const step = power * ([1, 2, 5].find((part) => part * power >= least) ?? 10);
      for (let count = Math.ceil(low / step); count * step <= high; count++) found.push(count * step);
    }
    return found.filter((one) => one >= low && one <= high);
  }

  /** The value of `axis` at a drawn place, between the rows of a run. */
  function between(rows, at, axis) {
    const after = rows.findIndex((row) => row.at >= at);
    if (after <= 0) return (after ? rows.at(-1) : rows[0])[axis];
    const [a, b] = [rows[after - 1], rows[after]];
    return a[axis] + ((b[axis] - a[axis]) * (at - a.at)) / (b.at - a.at);
  }

  /** Moves all that is drawn in a group to other places along x. */
  function move(group, to) {
    const uses = [...group.querySelectorAll("use")].filter((use) => Number(use.getAttribute("x")));
    for (const path of group.querySelectorAll("path")) {
      if (uses.some((use) => use.getAttribute("href") === `#${path.id}`)) continue; // the shape of a marker
      const moved = path.getAttribute("d").replace(/([ML]) (\S+)/g, (_, how, x) => `${how} ${to(Number(x)).toFixed(2)}`);
      path.setAttribute("d", moved);
    }
    for (const one of [...uses, ...group.querySelectorAll("text")]) {
      one.setAttribute("x", to(Number(one.getAttribute("x"))).toFixed(2));
      one.removeAttribute("transform");
    }
  }

  class Chart {
    constructor(figure, svg, link) {
      [this.figure, this.svg, this.drawn] = [figure, svg, svg.innerHTML];
      [this.left, this.top, this.right, this.bottom] = svg.dataset.box.split(" ").map(Number);
      const [low, high, scale] = svg.dataset.x.split(" ");
      this.logarithmic = scale === "log";
      [this.low, this.high] = [this.scaled(Number(low)), this.scaled(Number(high))];
      const href = link.getAttribute("href");
      const [head, ...lines] = cells(decodeURIComponent(href.slice(href.indexOf(",") + 1)));
      this.native = head[1]; // what x is without this script: tokens, or step in a forecast
      const axes = this.native === "tokens" ? Object.keys(AXES) : [this.native];
      this.columns = head.slice(1 + axes.length);
      this.runs = new Map();
      for (const [run, ...numbers] of lines.filter((line) => line.length === head.length)) {
        const row = { values: numbers.slice(axes.length) };
        for (const [index, axis] of axes.entries()) row[axis] = Number(numbers[index] || NaN);
        this.runs.set(run, [...(this.runs.get(run) ?? []), { ...row, at: row[this.native] }]);
      }
      this.rows = [...this.runs.values()].flat();
      this.tip = document.createElement("div");
      this.tip.className = "tip";
      this.tip.hidden = true;
      figure.append(this.tip);
      for (const kind of ["pointermove", "pointerdown"]) svg.addEventListener(kind, (event) => this.point(event));
      svg.addEventListener("pointerleave", () => this.leave());
      this.show("tokens");
    }

    scaled(x) {
      return this.logarithmic ? Math.log10(x) : x;
    }

    has(axis) {
      return this.rows.every((row) => Number.isFinite(row[axis]) && (!this.logarithmic || row[axis] > 0));
    }

    show(axis) {
      this.svg.innerHTML = this.drawn;
      this.crosshair = null;
      this.axis = this.has(axis) ? axis : this.native;
      const width = this.right - this.left;
      const place = (at) => this.left + (width * (this.scaled(at) - this.low)) / (this.high - this.low);
      let x = (row) => place(row.at);
      if (this.axis !== this.native) {
        // The new axis has its first and last point where the tokens had theirs.
        const ends = (name) => [Math.min, Math.max].map((end) => end(...this.rows.map((row) => row[name])));
        const [first, last] = ends("at").map(place);
        const [low, high] = ends(axis).map((end) => this.scaled(end));
        const to = (one) => (high > low ? first + ((last - first) * (this.scaled(one) - low)) / (high - low) : first);
        const drawn = (from) => this.low + ((from - this.left) / width) * (this.high - this.low);
        for (const group of this.svg.querySelectorAll("g[data-run]")) {
          const rows = this.runs.get(group.dataset.run);
          const at = (from) => (this.logarithmic ? 10 ** drawn(from) : drawn(from));
          if (rows) move(group, (from) => to(between(rows, at(from), axis)));
        }
        const perUnit = (high - low) / (last - first || 1);
        const limits = [this.left, this.right].map((at) => low + (at - first) * perUnit);
        this.drawAxis(axis, ...limits.map((end) => (this.logarithmic ? 10 ** end : end)), to);
        x = (row) => to(row[axis]);
      }
      for (const row of this.rows) row.x = x(row);
    }

    drawAxis(axis, low, high, to) {
      const group = this.svg.querySelector('g[data-axis="x"]');
      const [grid, texts] = [group.querySelector("path[clip-path]"), [...group.querySelectorAll("text")]];
      const label = texts.pop();
      const [unit, name] = axis === "seconds" ? timeUnit(high) : [1, "steps"];
      label.textContent = axis === "seconds" ? `${name} of updates and evaluations` : name;
      if (this.logarithmic) label.textContent += ", log scale";
      const marks = ticks(Math.max(low / unit, this.logarithmic ? low / unit : 0), high / unit, this.logarithmic);
      if (!marks.length) marks.push(high / unit); // a figure of one point
      group.replaceChildren(label);
      for (const tick of texts.length ? marks : []) {
        const at = to(tick * unit).toFixed(2);
        const [line, words] = [grid.cloneNode(), texts[0].cloneNode()];
        line.setAttribute("d", `M ${at} ${this.bottom} V ${this.top}`);
        words.setAttribute("x", at);
        words.removeAttribute("transform");
        words.textContent = short(tick);
        group.append(line, words);
      }
    }

    colour(run, column) {
      const groups = [...this.svg.querySelectorAll("g[data-column]")];
      const group = groups.find((one) => one.dataset.run === run && one.dataset.column === column);
      const style = group?.querySelector("use, path[clip-path]")?.style;
      return style?.stroke || style?.fill || "transparent";
    }

    point(event) {
      const box = this.svg.getBoundingClientRect();
      const x = ((event.clientX - box.left) * this.svg.viewBox.baseVal.width) / box.width;
      const nearest = (rows) => rows.reduce((a, b) => (Math.abs(b.x - x) < Math.abs(a.x - x) ? b : a));
      const near = nearest(this.rows);
      this.tip.replaceChildren();
      // Of several runs, what they share: the same step is another time in each.
      for (const axis of Object.keys(AXES)) {
        if ((this.runs.size === 1 && near[axis] >= 0) || axis === this.axis) this.line(...this.words(axis, near[axis]));
      }
      const found = [];
      for (const [run, rows] of this.runs) {
        for (const [index, column] of this.columns.entries()) {
          const known = rows.filter((row) => row.values[index] !== "");
          const words = [this.runs.size > 1 ? run : "", this.columns.length > 1 || this.runs.size === 1 ? column : ""];
          const drawn = known.length && x >= known[0].x - 8 && x <= known.at(-1).x + 8; // a line begins, and ends
          if (drawn) found.push([words, nearest(known).values[index], this.colour(run, column)]);
        }
      }
      for (const [words, text, colour] of found.slice(0, MOST_VALUES)) {
        this.line(words.filter(Boolean).join(": "), value(text), colour);
      }
      if (found.length > MOST_VALUES) this.line(`${found.length - MOST_VALUES} more in the CSV`, "");
      this.tip.hidden = false;
      const left = (near.x / this.svg.viewBox.baseVal.width) * box.width;
      const flipped = left > box.width / 2;
      this.tip.style.left = flipped ? "" : `${left + 12}px`;
      this.tip.style.right = flipped ? `${box.width - left + 12}px` : "";
      this.tip.style.top = `${box.top - this.figure.getBoundingClientRect().top + 8}px`;
      this.crosshair ??= this.svg.appendChild(document.createElementNS(this.svg.namespaceURI, "path"));
      this.crosshair.setAttribute("class", "crosshair");
      this.crosshair.setAttribute("d", `M ${near.x} ${this.top} V ${this.bottom}`);
    }

    words(axis, at) {
      if (axis !== "seconds") return [AXES[axis], axis === "step" ? at.toLocaleString("en") : short(at)];
      const [unit, name] = timeUnit(at);
      return [name, value(at / unit)];
    }

    line(words, text, colour) {
      const [row, swatch, name, number] = ["div", "i", "span", "b"].map((tag) => document.createElement(tag));
      if (colour) swatch.style.background = colour;
      [name.textContent, number.textContent] = [words, text];
      row.append(...(colour ? [swatch] : []), name, number);
      this.tip.append(row);
    }

    leave() {
      this.tip.hidden = true;
      this.crosshair?.remove();
      this.crosshair = null;
    }
  }

  function chartOf(figure) {
    const [svg, link] = [figure.querySelector("svg[data-box]"), figure.querySelector("a.csv")];
    return svg && link ? [new Chart(figure, svg, link)] : [];
  }

  const charts = [...document.querySelectorAll("figure")].flatMap(chartOf);
  const offered = Object.keys(AXES).filter((axis) => charts.some((chart) => chart.has(axis)));
  const buttons = new Map();

  function choose(axis) {
    for (const chart of charts) chart.show(axis);
    for (const [name, button] of buttons) button.setAttribute("aria-pressed", name === axis);
    try {
      sessionStorage.setItem("axis", axis); // a page that is watched loads itself again
    } catch {
      // A browser may keep nothing for a file.
    }
  }

  if (offered.length > 1) {
    const bar = document.createElement("div");
    bar.className = "axis";
    bar.setAttribute("role", "group");
    bar.setAttribute("aria-label", "Horizontal axis of the figures");
    for (const axis of offered) {
      const button = document.createElement("button");
      button.textContent = AXES[axis];
      button.addEventListener("click", () => choose(axis));
      buttons.set(axis, button);
      bar.append(button);
    }
    document.body.append(bar);
    let kept = null;
    try {
      kept = sessionStorage.getItem("axis");
    } catch {
      // As above.
    }
    choose(offered.includes(kept) ? kept : "tokens");
  }

  const folded = [];
  addEventListener("beforeprint", () => {
    folded.push(...document.querySelectorAll("details:not([open])"));
    for (const one of folded) one.open = true;
  });
  addEventListener("afterprint", () => {
    for (const one of folded.splice(0)) one.open = false;
  });
})();
