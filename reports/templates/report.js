"use strict";
(() => {
  const $ = (selector, root = document) => root.querySelector(selector);
  const $$ = (selector, root = document) => [...root.querySelectorAll(selector)];
  const root = document.documentElement;

  // Theme: the system's until the button is pressed; then remembered where the browser lets a local file remember.
  const remembered = { get: () => { try { return localStorage.getItem("quantwright-theme"); } catch { return null; } },
    set: (value) => { try { localStorage.setItem("quantwright-theme", value); } catch { /* private mode: not remembered */ } } };
  const dark = () => root.dataset.theme ? root.dataset.theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
  if (["light", "dark"].includes(remembered.get())) root.dataset.theme = remembered.get();
  const button = $("#theme");
  const say = () => button.setAttribute("aria-pressed", String(dark()));
  button.addEventListener("click", () => { root.dataset.theme = dark() ? "light" : "dark"; remembered.set(root.dataset.theme); say(); });
  say();

  // Tooltips and linked highlighting. <title> serves without a script; with one, ours replaces it.
  const tip = $("#tip");
  const text = new Map();
  for (const point of $$(".point")) { const title = $("title", point); text.set(point, title.textContent); title.remove(); }
  const light = (id, on) => {
    const row = id && document.getElementById(id);
    if (row) row.classList.toggle("lit", on);
    for (const item of $$("svg [data-row]")) {
      const svg = item.ownerSVGElement;
      item.classList.toggle("dim", on && svg.classList.contains("scatter") && item.dataset.row !== id);
    }
  };
  const show = (point, x, y) => {
    const [head, ...lines] = text.get(point).split("\n");
    const title = document.createElement("b");
    title.textContent = head;
    tip.replaceChildren(title, lines.join("\n"));
    tip.hidden = false;
    const box = tip.getBoundingClientRect();
    tip.style.left = Math.max(8, Math.min(x + 16, innerWidth - box.width - 8)) + "px";
    tip.style.top = (y + 18 + box.height > innerHeight ? y - box.height - 14 : y + 18) + "px";
    light(point.dataset.row, true);
  };
  const hide = (point) => { tip.hidden = true; light(point.dataset.row, false); };
  for (const point of $$(".point")) {
    point.addEventListener("pointermove", (event) => show(point, event.clientX, event.clientY));
    point.addEventListener("pointerleave", () => hide(point));
    point.addEventListener("focus", () => { const b = point.getBoundingClientRect(); show(point, b.left + b.width / 2, b.top + b.height / 2); });
    point.addEventListener("blur", () => hide(point));
    point.addEventListener("click", () => { const row = document.getElementById(point.dataset.row); if (row) row.scrollIntoView({ block: "center" }); });
  }
  // One tab stop a chart; the arrow keys go from point to point, left to right.
  for (const svg of $$("svg.chart")) {
    const points = $$(".point", svg).sort((a, b) => a.getBoundingClientRect().left - b.getBoundingClientRect().left || a.getBoundingClientRect().top - b.getBoundingClientRect().top);
    svg.addEventListener("keydown", (event) => {
      const step = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 }[event.key];
      const now = points.indexOf(document.activeElement);
      if (event.key === "Escape" && now >= 0) points[now].blur();
      if (!step || now < 0) return;
      event.preventDefault();
      points[now].tabIndex = -1;
      const next = points[(now + step + points.length) % points.length];
      next.tabIndex = 0;
      next.focus();
    });
  }

  // The table: sort by any column, filter by words, method and Pareto front.
  const table = $("#artifacts"), body = table.tBodies[0], all = [...body.rows];
  const heads = [...table.tHead.rows[0].cells];
  heads.forEach((head, column) => $("button", head).addEventListener("click", (event) => {
    const numeric = event.currentTarget.dataset.type === "number";
    const direction = head.getAttribute("aria-sort") === "ascending" ? -1 : 1;
    heads.forEach((other) => other.setAttribute("aria-sort", "none"));
    head.setAttribute("aria-sort", direction === 1 ? "ascending" : "descending");
    const value = (row) => row.cells[column].dataset.sort;
    const missing = (row) => value(row) === undefined || value(row) === "";
    body.append(...[...body.rows].sort((a, b) => missing(a) - missing(b) || (missing(a) ? 0 : direction *
      (numeric ? Number(value(a)) - Number(value(b)) : value(a).localeCompare(value(b), "en", { numeric: true })))));
  }));
  const filter = $("#filter"), front = $("#only-front"), count = $("#count"), boxes = $$("input[name=family]");
  const apply = () => {
    const words = filter.value.toLowerCase().split(/\s+/).filter(Boolean);
    const families = new Set(boxes.filter((box) => box.checked).map((box) => box.value));
    const hidden = new Set();
    for (const row of all) {
      row.hidden = !(families.has(row.dataset.family) && (!front.checked || row.dataset.front) && words.every((word) => row.dataset.search.includes(word)));
      if (row.hidden) hidden.add(row.id);
    }
    for (const item of $$("svg.scatter [data-row]")) item.style.display = hidden.has(item.dataset.row) ? "none" : "";
    count.textContent = hidden.size ? `${all.length - hidden.size} of ${all.length} shown` : `${all.length} rows`;
  };
  for (const input of [filter, front, ...boxes]) input.addEventListener("input", apply);
  apply();

  // The answer for other limits, by the rule of `quantwright recommend`.
  const digits = (value) => Number(value.toPrecision(3)).toLocaleString("en-US", { maximumSignificantDigits: 3 });
  const bytes = (value) => value >= 1e9 ? (value / 1e9).toFixed(2) + " GB" : value >= 1e6 ? (value / 1e6).toFixed(2) + " MB" : (value / 1e3).toFixed(1) + " kB";
  const percent = (share) => (share < 0 ? "−" : "+") + Math.abs(100 * share).toFixed(2) + " %";
  const judge = (row, limit) => {
    const checks = [];
    const check = (met, words, gap) => checks.push({ met, words, gap });
    if (limit.kl !== null) row.kl === null ? check(false, "divergence was not measured with an interval", Infinity)
      : check(row.kl <= limit.kl, `KL divergence at most ${digits(row.kl)} nats; limit ${limit.kl}`, row.kl / limit.kl - 1);
    if (limit.loss !== null) row.loss === null ? check(false, "perplexity was not measured in pairs with the source", Infinity)
      : check(row.loss <= limit.loss, `perplexity at most ${percent(row.loss)}; limit ${percent(limit.loss)}`, row.loss / limit.loss - 1);
    if (limit.memory !== null) {
      const tokens = limit.context ?? row.context ?? 0;
      const cache = row.kv ? row.kv.reduce((sum, [each, cap]) => sum + each * Math.min(tokens, cap ?? tokens), 0) : 0;
      const total = row.size + cache + row.overhead;
      if (!row.kv) check(false, "the size of its KV cache is unknown", Infinity);
      else check(total <= limit.memory, `weights ${bytes(row.size)} + KV cache ${bytes(cache)} (${tokens.toLocaleString("en-US")} tokens) + overhead ${bytes(row.overhead)} (${row.how}) = ${bytes(total)}; limit ${bytes(limit.memory)}`, total / limit.memory - 1);
    }
    if (limit.tg !== null) row.tg === null ? check(false, "decode speed was not measured with an interval", Infinity)
      : check(row.tg >= limit.tg, `decode at least ${digits(row.tg)} tokens/s; limit ${limit.tg}`, limit.tg / row.tg - 1);
    return { row, checks, missed: checks.filter((c) => !c.met) };
  };
  const line = (tag, name, words) => { const item = document.createElement(tag); item.className = name; item.textContent = words; return item; };
  for (const form of $$(".chooser")) {
    const data = JSON.parse($(`#${form.dataset.for}-data`).textContent);
    const verdict = $(`#${form.dataset.for}-verdict`);
    const read = (name, scale) => { const field = form.elements[name]; return field && field.value !== "" && Number.isFinite(field.valueAsNumber) ? field.valueAsNumber * scale : null; };
    const answer = () => {
      const limit = { kl: read("kl", 1), loss: read("loss", 0.01), memory: read("memory", 1e9), context: read("context", 1), tg: read("tg", 1) };
      const judged = [...data.rows].sort((a, b) => a.size - b.size).map((row) => judge(row, limit));
      const chosen = judged.find((j) => !j.missed.length);
      const worst = (j) => Math.max(0, ...j.missed.map((c) => c.gap));
      const nearest = judged.reduce((best, j) => (worst(j) < worst(best) || (worst(j) === worst(best) && j.missed.length < best.missed.length) ? j : best));
      const shown = chosen ?? nearest;
      for (const row of all) row.classList.toggle("picked", Boolean(chosen) && row.id === chosen.row.id);
      const list = line("ul", "checks", "");
      list.append(...shown.checks.map((c) => line("li", c.met ? "met" : "missed", c.words)));
      const pick = line("p", chosen ? "pick" : "pick none", chosen ? "" : "none of these");
      if (chosen) {
        const key = $("svg.key", document.getElementById(chosen.row.id));
        if (key) pick.append(key.cloneNode(true), " ");
        pick.append(chosen.row.label);
      }
      verdict.replaceChildren(line("p", "lead", "Within these limits, ship"), pick,
        line("p", "why", chosen ? `It is the smallest within them: ${bytes(chosen.row.size)} on disk.` : `${nearest.row.label} comes nearest:`), list);
      if (!chosen) return;
      const place = judged.indexOf(chosen), smaller = judged[place - 1], larger = judged.slice(place + 1).find((j) => !j.missed.length);
      const beside = (title, j, checks) => {
        const words = line("p", "next", "");
        words.append(line("b", "", title), ` ${j.row.label}, ${bytes(j.row.size)}: ${checks.map((c) => c.words).join("; ")}`);
        verdict.append(words);
      };
      if (smaller) beside("Next smaller:", smaller, smaller.missed);
      if (larger) beside("Next larger:", larger, larger.checks);
    };
    form.addEventListener("input", answer);
    form.addEventListener("submit", (event) => event.preventDefault());
    const first = $(".pick:not(.none)", verdict);
    if (first) { const row = data.rows.find((r) => first.textContent.trim() === r.label); if (row) document.getElementById(row.id).classList.add("picked"); }
  }

  // Everything unfolds for printing.
  addEventListener("beforeprint", () => $$("details").forEach((item) => { item.dataset.was = item.open; item.open = true; }));
  addEventListener("afterprint", () => $$("details").forEach((item) => { item.open = item.dataset.was === "true"; }));
})();
