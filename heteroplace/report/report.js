"use strict";
(() => {
const $ = id => document.getElementById(id);
const root = $("placements");
if (!root) { document.documentElement.dataset.ready = "true"; return; }

// ---- Elements: names only ever become text nodes -------------------------------------------
function el(tag, props, ...children) {
  const node = document.createElement(tag);
  for (const [key, value] of Object.entries(props || {})) {
    if (key.startsWith("on")) node.addEventListener(key.slice(2), value);
    else if (key === "class") node.className = value;
    else node.setAttribute(key, value);
  }
  for (const child of children) if (child !== null) node.append(child);
  return node;
}
const count = n => n.toLocaleString("en");
const show = n => n === null ? "–" : n.toLocaleString("en", { maximumSignificantDigits: 5 });

// ---- What is packed in the page ------------------------------------------------------------
async function unpacked(text) {
  const bytes = Uint8Array.from(atob(text), c => c.charCodeAt(0));
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
  return new Response(stream).text();
}
const packed = id => $(id).textContent.trim();

async function start() {
  const L = JSON.parse(await unpacked(packed("listed")));
  const drawings = JSON.parse(packed("drawings"));
  const template = await unpacked(packed("template"));
  const pairs = L.pairs.map(([key, name, sizes, values, steps], at) => ({
    at, key, name, sizes, steps, ...Object.fromEntries(L.columns.map((column, i) => [column, values[i]])),
    text: `${name} ${sizes} ${key}`.toLowerCase(), pictured: key in drawings,
  }));
  const more = (a, b) => a === null || b === null ? null : a - b;
  for (const pair of pairs) {
    pair.unmet = more(pair.unmet_left, pair.unmet_right);
    pair.waste = more(pair.waste_left, pair.waste_right);
    pair.cost = more(pair.cost_left, pair.cost_right);
  }
  const order = {
    unmet: pair => pair.unmet, waste: pair => pair.waste, cost: pair => pair.cost,
    seconds: pair => pair.seconds_right, gpus: pair => pair.gpus,
  };
  const keep = {
    all: () => true, pictured: pair => pair.pictured,
    unmet: pair => pair.unmet > 0, waste: pair => pair.waste > 0,
    equal: pair => pair.unmet === 0 && pair.waste === 0 && pair.cost === 0,
    unproven: pair => !pair.proven,
  };
  let found = [], limit = 0, chosen = null;

  // ---- The list ----------------------------------------------------------------------------
  function label(pair) {
    const difference = (value, word) => value === null ? "" : value === 0 ? `same ${word}` : `${show(Math.abs(value))} ${value > 0 ? "more" : "fewer"} ${word}`;
    return [difference(pair.unmet, "unmet"), difference(pair.waste, "wasted")].filter(Boolean).join(", ");
  }
  function option(pair, place) {
    return el("li", { role: "option", id: `pair-${pair.at}`, "aria-selected": String(pair === chosen), "data-place": place },
      el("span", { class: "what" }, pair.name), el("span", { class: "sizes" }, pair.sizes),
      el("span", { class: "sizes" }, label(pair) + (pair.pictured ? "" : " · no picture")));
  }
  function extend() {
    const from = limit;
    limit = Math.min(found.length, limit + 60);
    $("list").append(...found.slice(from, limit).map((pair, i) => option(pair, from + i)));
    $("more").hidden = limit >= found.length;
  }
  // "seed 2" is one thing where instances have a seed; other words may be anywhere.
  const labelled = /([a-z_]\w*)[ =](-?\d+(?:\.\d+)?)(?![\w.])/g;
  const labels = new Set(pairs.flatMap(pair => [...pair.text.matchAll(labelled)].map(found => found[1])));
  function sought(text) {
    const values = [];
    const rest = text.toLowerCase().replace(/\s*=\s*|\s+/g, " ").replace(labelled, (all, label, value) => {
      if (!labels.has(label)) return all;
      values.push([label, value]);
      return "";
    });
    const words = rest.split(" ").filter(Boolean);
    return pair => words.every(word => pair.text.includes(word)) &&
      values.every(([label, value]) => [...pair.text.matchAll(labelled)].some(found => found[1] === label && Number(found[2]) === Number(value)));
  }
  function filter() {
    const fits = sought($("find").value), by = order[$("sort").value], good = keep[$("keep").value];
    found = pairs.filter(pair => good(pair) && fits(pair));
    const least = value => value === null ? -Infinity : value;
    if (by) found.sort((a, b) => least(by(b)) - least(by(a)) || a.at - b.at);
    $("list").replaceChildren();
    limit = 0;
    extend();
    $("list").scrollTop = 0;
    $("found").textContent = found.length ? `${count(found.length)} of ${count(pairs.length)} instances` : "No instance fits; change the filter.";
  }
  function choose(pair) {
    chosen = pair;
    for (const item of $("list").querySelectorAll("[aria-selected=true]")) item.setAttribute("aria-selected", "false");
    const item = $(`pair-${pair.at}`);
    if (item) {
      item.setAttribute("aria-selected", "true");
      const top = item.offsetTop - $("list").offsetTop;
      if (top < $("list").scrollTop || top + item.offsetHeight > $("list").scrollTop + $("list").clientHeight) $("list").scrollTop = top - 40;
      $("list").setAttribute("aria-activedescendant", item.id);
    }
    describe(pair);
    return picture(pair);
  }
  function move(by) {
    const to = Math.max(0, Math.min(found.length - 1, found.indexOf(chosen) + by));
    while (to >= limit && limit < found.length) extend();
    if (found[to]) choose(found[to]);
  }
  $("list").addEventListener("click", event => {
    const item = event.target.closest("[role=option]");
    if (item) choose(found[Number(item.dataset.place)]);
  });
  $("list").addEventListener("keydown", event => {
    const by = { ArrowDown: 1, ArrowUp: -1, PageDown: 10, PageUp: -10, Home: -Infinity, End: Infinity }[event.key];
    if (by === undefined || event.ctrlKey || event.metaKey || event.altKey) return;
    event.preventDefault();
    move(by);
  });
  $("more").addEventListener("click", extend);
  for (const id of ["find", "sort", "keep"]) $(id).addEventListener("input", filter);

  // ---- The chosen one: values, then both pictures --------------------------------------------
  function describe(pair) {
    const row = (head, ...cells) => el("tr", {}, el("th", { scope: "row" }, head), ...cells.map(cell => el("td", { class: "n" }, cell)));
    const head = ["", L.left, L.right, "no plan below"].map((text, i) => el("th", i ? { scope: "col", class: "n" } : { scope: "col" }, text));
    const also = [["unmet, GPUs", "unmet"], ["wasted of high tiers, GPUs", "waste"], ["time, seconds", "seconds"]];
    const lines = also.map(([words, name]) => row(words, show(pair[name + "_left"]), show(pair[name + "_right"]), ""));
    lines.push(row("status", pair.status_left === null ? "–" : L.statuses[pair.status_left], L.statuses[pair.status_right], ""));
    const known = { unmet: "unmet, GPUs", minimum: "below the minimum, GPUs", repair: "still broken, GPUs" };
    const words = name => {
      const [, kind, level] = /^(\w+)(?:\[(.+)\])?$/.exec(name) || [null, name];
      return (known[kind] || kind) + (level === undefined ? "" : `, priority ${level}`);
    };
    lines.push(...pair.steps.map(([name, left, right, bound], i) => row(`step ${i + 1}: ${words(name)}`, show(left), show(right), show(bound))));
    $("chosen").replaceChildren(el("h3", {}, pair.name), el("p", { class: "soft" }, pair.sizes),
      el("div", { class: "scroll" }, el("table", {}, el("thead", {}, el("tr", {}, ...head)), el("tbody", {}, ...lines))));
    $("command").textContent = pair.pictured ? "" : `${L.command} --instance ${/^[\w.-]+$/.test(pair.key) ? pair.key : `'${pair.key.replaceAll("'", `'\\''`)}'`}`;
    $("nopicture").hidden = pair.pictured;
    $("pair").hidden = !pair.pictured;
  }
  const frames = [$("left"), $("right")];
  let latest = 0;
  const sheet = `<style>body{background:var(--card)}main{padding:8px}.card{border:0;padding:0}header.card,.head,[aria-labelledby=h-groups],[aria-labelledby=h-find] .tools,[aria-labelledby=h-find] h2,#h-map{display:none}
main{display:flex;flex-direction:column;gap:10px}.view{display:contents}.card{margin:0}[aria-labelledby=h-map]{order:1}[aria-labelledby=h-find]{order:2}#details{order:3;position:static;max-height:300px;overflow:auto;box-shadow:none;border-radius:0}#hint{font-size:.85rem}</style>`;
  async function picture(pair) {
    const turn = ++latest;
    root.dataset.drawn = "";
    if (!pair.pictured) return;
    const [common, ...plans] = JSON.parse(await unpacked(drawings[pair.key]));
    if (turn !== latest) return;
    const safe = data => JSON.stringify(data).replace(/[<>&\u2028\u2029]/g, c => "\\u" + c.charCodeAt(0).toString(16).padStart(4, "0"));
    const [before, rest] = [template.indexOf("@TITLE@"), template.indexOf("@DATA@")];
    await Promise.all(frames.map((frame, side) => new Promise(done => {
      frame.onload = () => { fitted(frame); done(); };
      frame.srcdoc = template.slice(0, before).replace("</head>", "") + "placement" + template.slice(before + 7, rest).replace("</head>", sheet + "</head>") +
        safe({ ...common, ...plans[side] }) + template.slice(rest + 6);
    })));
    if (turn !== latest) return;
    together();
    $("spot").value = "";
    root.dataset.drawn = pair.key;
  }
  // A frame is as tall as its page, so that only one thing scrolls.
  function fitted(frame) {
    const inside = frame.contentDocument, size = () => {
      const height = inside.querySelector("main").getBoundingClientRect().height + 2;
      frame.style.height = Math.ceil(height) + "px";
    };
    size();
    new ResizeObserver(size).observe(inside.querySelector("main"));
  }
  // What is done in one picture is done in the other: both have the same tree at the same place.
  function together() {
    frames.forEach((frame, side) => {
      const here = frame.contentDocument, other = frames[1 - side];
      const there = () => other.contentDocument, view = () => other.contentWindow;
      const canvas = here.getElementById("picture");
      const mirrored = (kind, make) => canvas.addEventListener(kind, event => {
        if (!event.isTrusted) return;
        const a = canvas.getBoundingClientRect(), target = there().getElementById("picture"), b = target.getBoundingClientRect();
        const scale = b.width / a.width;
        target.dispatchEvent(make(event, { clientX: b.left + (event.clientX - a.left) * scale, clientY: b.top + event.clientY - a.top, bubbles: true, cancelable: true }));
      });
      mirrored("click", (event, at) => new (view().MouseEvent)("click", at));
      mirrored("pointermove", (event, at) => new (view().PointerEvent)("pointermove", { ...at, pointerType: event.pointerType }));
      mirrored("pointerleave", (event, at) => new (view().PointerEvent)("pointerleave", at));
      canvas.addEventListener("keydown", event => {
        if (event.isTrusted) there().getElementById("picture").dispatchEvent(new (view().KeyboardEvent)("keydown", { key: event.key, ctrlKey: event.ctrlKey, metaKey: event.metaKey, altKey: event.altKey, cancelable: true }));
      });
      here.addEventListener("click", event => {
        const button = event.isTrusted && event.target.closest("#crumbs button, #services button, #inside-of button");
        if (!button) return;
        const list = button.closest("ol, ul"), place = [...list.children].indexOf(button.closest("li"));
        const same = there().querySelector(list.id ? "#" + list.id : "#inside-of ul");
        const twin = same && same.children[place] && same.children[place].querySelector("button");
        if (twin) twin.click();
      }, true);
    });
  }
  function seek(enter) {
    for (const frame of frames) {
      const inside = frame.contentDocument, input = inside && inside.getElementById("find");
      if (!input) continue;
      if (!enter) { input.value = $("spot").value; input.dispatchEvent(new frame.contentWindow.Event("input")); }
      else input.dispatchEvent(new frame.contentWindow.KeyboardEvent("keydown", { key: "Enter" }));
    }
    if (enter) $("spot").value = frames[0].contentDocument.getElementById("find").value;
  }
  $("spot").addEventListener("input", () => seek(false));
  $("spot").addEventListener("keydown", event => { if (event.key === "Enter") seek(true); });

  // On a narrow screen both lie at the same place, and one is shown: flip between them.
  const flips = [$("flip-left"), $("flip-right")];
  flips.forEach((button, side) => button.addEventListener("click", () => {
    flips.forEach((each, at) => each.setAttribute("aria-pressed", String(at === side)));
    document.querySelector(".pair").dataset.side = side ? "right" : "left";
  }));

  filter();
  const first = found.find(pair => pair.pictured) || found[0];
  if (first) await choose(first);
}

start().catch(error => {
  $("found").textContent = typeof DecompressionStream === "undefined"
    ? "This browser is too old to unpack the pictures; the figures and tables above do not need it."
    : `The pictures cannot be shown: ${error.message}`;
}).finally(() => { document.documentElement.dataset.ready = "true"; });
})();
