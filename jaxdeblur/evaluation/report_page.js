// The evaluation report: draws the page from the JSON beside it. Plain browser JavaScript, no library.
"use strict";

const report = JSON.parse(document.getElementById("data").textContent);
const SVG = "http://www.w3.org/2000/svg";
const db = (x) => x.toFixed(2);
const signed = (x) => (x < 0 ? "−" : "+") + Math.abs(x).toFixed(2);
const similarity = (x) => x.toFixed(4);
const seconds = (x) => (x < 0.1 ? `${(1000 * x).toFixed(x < 0.01 ? 1 : 0)} ms` : `${x.toFixed(2)} s`);
const clamp = (x, low, high) => Math.min(high, Math.max(low, x));
// Not Math.max(...values): an engine takes only so many arguments, and videos have more frames.
const smallest = (values) => values.reduce((least, x) => Math.min(least, x), Infinity);
const largest = (values) => values.reduce((most, x) => Math.max(most, x), -Infinity);
const mean = (values) => values.reduce((sum, x) => sum + x, 0) / values.length;
/** Of a frame whose pictures were reduced to fit into the page, their size; otherwise nothing. */
const percent = (shot) => (shot.scale < 1 ? `${Math.round(100 * shot.scale)} % of its size` : "");
const explained = (shot) => shot.weights || shot.gate || shot.paths || shot.attention.length;
const SIDES = { blurred: "Blurred", restored: "Restored", sharp: "Sharp" };

/** An element: properties that start with "on" are listeners, "class" and "aria-…" are attributes. */
function h(name, properties = {}, ...children) {
  const svg = ["svg", "g", "path", "line", "circle", "rect", "text", "title"].includes(name);
  const element = svg ? document.createElementNS(SVG, name) : document.createElement(name);
  for (const [key, value] of Object.entries(properties)) {
    if (key.startsWith("on")) element.addEventListener(key.slice(2), value);
    else if (value !== null && value !== undefined && value !== false) element.setAttribute(key, value === true ? "" : value);
  }
  element.append(...children.flat(Infinity).filter((child) => child !== null && child !== undefined));
  return element;
}

/** A row of buttons of which one is pressed. */
function choice(label, options, chosen, choose) {
  const buttons = Object.entries(options).map(([value, text]) =>
    h("button", { type: "button", "aria-pressed": String(value === chosen), onclick: () => select(value) }, text));
  const select = (value) => {
    Object.keys(options).forEach((each, i) => buttons[i].setAttribute("aria-pressed", each === value));
    choose(value);
  };
  const group = h("div", { class: "choice", role: "group", "aria-label": label }, buttons);
  return Object.assign(group, { select });
}

/** Round numbers for an axis, about `count` of them between low and high. */
function ticks(low, high, count) {
  const rough = (high - low) / count || 1;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = power * [1, 2, 2.5, 5, 10].find((factor) => factor * power >= rough);
  const found = [];
  for (let x = Math.ceil(low / step) * step; x <= high + 1e-9; x += step) found.push(Number(x.toFixed(6)));
  return found;
}

/* ---------------------------------------------------------------- maps: sprites and colours */

// A sprite is one grey PNG with `count` maps of `width` x `height` below each other; a byte b of it
// stands for low + b / 255 * (high - low).
const decoded = new WeakMap();
function readSprite(sprite) {
  if (!decoded.has(sprite)) {
    decoded.set(sprite, (async () => {
      const image = new Image();
      image.src = sprite.src;
      await image.decode();
      const canvas = h("canvas", { width: image.naturalWidth, height: image.naturalHeight });
      const context = canvas.getContext("2d", { willReadFrequently: true });
      context.drawImage(image, 0, 0);
      const { data } = context.getImageData(0, 0, canvas.width, canvas.height);
      return Float32Array.from({ length: data.length / 4 }, (_, i) => sprite.low + (data[4 * i] / 255) * (sprite.high - sprite.low));
    })());
  }
  return decoded.get(sprite);
}
async function readMap(sprite, index) {
  const size = sprite.width * sprite.height;
  return (await readSprite(sprite)).subarray(index * size, (index + 1) * size);
}

const RAMP = [[7, 6, 34], [62, 20, 108], [142, 37, 123], [217, 70, 98], [250, 142, 74], [252, 236, 176]];
function colour(value) {
  const at = clamp(value, 0, 1) * (RAMP.length - 1);
  const i = Math.min(Math.floor(at), RAMP.length - 2);
  return RAMP[i].map((low, k) => Math.round(low + (at - i) * (RAMP[i + 1][k] - low)));
}
const css = (value) => `rgb(${colour(value).join(" ")})`;
const rampImage = `linear-gradient(90deg, ${RAMP.map((stop) => `rgb(${stop.join(" ")})`).join(", ")})`;

/** Paints a map into a canvas; values from low to high take the colours of the ramp. */
function paint(canvas, values, width, height, low, high, seeThrough = false) {
  canvas.width = width;
  canvas.height = height;
  const image = new ImageData(width, height);
  values.forEach((value, i) => {
    const at = (value - low) / (high - low || 1);
    image.data.set([...colour(at), seeThrough ? 90 + 165 * at : 255], 4 * i);
  });
  canvas.getContext("2d").putImageData(image, 0, 0);
}

/* ---------------------------------------------------------------- the summary */

function header() {
  const { protocol } = report;
  const gains = report.videos.map((video) => video.psnr - video.psnr_blurred);
  const worst = gains.indexOf(smallest(gains));
  const tile = (name, value, unit, note, tone = "") =>
    h("div", { class: "tile" }, h("h3", {}, name), h("div", { class: `value ${tone}` }, value, h("small", {}, unit)), h("div", { class: "note" }, note));
  return [
    h("p", { class: "eyebrow" }, "Video deblurring evaluation"),
    h("h1", {}, report.title),
    h("p", { class: "lede" }, `${report.videos.length} video${report.videos.length === 1 ? "" : "s"}, ${report.scored_frames} scored frames. Protocol ${protocol.name}: ${protocol.summary}`),
    h("div", { class: "tiles" },
      tile("Gain", signed(report.gain), "dB", `${db(report.psnr_blurred)} → ${db(report.psnr)} dB PSNR`, report.gain < 0 ? "down" : "up"),
      tile("SSIM", similarity(report.ssim), "", `${similarity(report.ssim_blurred)} blurred`),
      tile("Smallest gain", signed(gains[worst]), "dB", report.videos[worst].name, gains[worst] < 0 ? "down" : ""),
      report.seconds_per_frame === null ? "" : tile("Time per frame", ...seconds(report.seconds_per_frame).split(" "), `on ${report.device}`)),
  ];
}

function summaryTable() {
  const all = report.videos.flatMap((video) => [video.psnr, video.psnr_blurred]);
  const margin = Math.max(0.5, (largest(all) - smallest(all)) * 0.06);
  const [low, high] = [smallest(all) - margin, largest(all) + margin];
  const x = (value) => `${(100 * (value - low)) / (high - low)}%`;
  const span = (row) => {
    const dot = (value, kind) => h("circle", { cx: x(value), cy: 15, r: 5, fill: `var(--${kind})` });
    return h("svg", { role: "img", "aria-label": `PSNR from ${db(row.psnr_blurred)} to ${db(row.psnr)} dB` },
      h("line", { x1: 0, x2: "100%", y1: 15, y2: 15, class: "grid" }),
      h("line", { x1: x(row.psnr_blurred), x2: x(row.psnr), y1: 15, y2: 15, "stroke-width": 3, stroke: `var(--${row.psnr < row.psnr_blurred ? "blurred" : "restored"})`, "stroke-opacity": 0.45 }),
      dot(row.psnr_blurred, "blurred"), dot(row.psnr, "restored"));
  };
  const scored = (row) => row.scored_frames ?? report.scored_frames;
  // [heading, value to sort by, cell, only on wide screens]
  const columns = [
    ["Video", (row) => row.name, (row) => h("td", {}, row.id ? h("a", { href: `#${row.id}` }, row.name) : row.name)],
    ["Scored", (row) => scored(row), (row) => h("td", { class: "wide" }, String(scored(row))), true],
    [`Blurred to restored, ${low.toFixed(1)} to ${high.toFixed(1)} dB`, null, (row) => h("td", { class: "span" }, row.id ? span(row) : "")],
    ["PSNR, dB", (row) => row.psnr, (row) => h("td", { class: "wide" }, db(row.psnr)), true],
    ["Gain", (row) => row.psnr - row.psnr_blurred, (row) => h("td", { class: row.psnr < row.psnr_blurred ? "down" : "up" }, signed(row.psnr - row.psnr_blurred))],
    ["SSIM", (row) => row.ssim, (row) => h("td", { class: "wide", title: `blurred ${similarity(row.ssim_blurred)}` }, similarity(row.ssim)), true],
    ["Flicker", (row) => row.temporal_error, (row) => h("td", { class: "wide", title: row.temporal_error === undefined ? null : "grey levels, blurred → restored" }, row.temporal_error === undefined ? "" : `${row.temporal_error_blurred.toFixed(1)} → ${row.temporal_error.toFixed(1)}`), true],
    ["Time", (row) => row.seconds_per_frame, (row) => h("td", { class: "wide" }, row.seconds_per_frame == null ? "" : seconds(row.seconds_per_frame)), true],
  ];
  const cells = (row) => h("tr", {}, columns.map(([, , cell]) => cell(row)));
  const body = h("tbody", {}, report.videos.map(cells));
  const heads = columns.map(([name, value, , wide]) => h("th", { scope: "col", class: wide ? "wide" : value ? null : "span" },
    value ? h("button", { type: "button", onclick: (event) => sort(event.currentTarget.parentNode, value) }, name) : name));
  const sort = (head, value) => {
    const down = head.getAttribute("aria-sort") !== "descending";
    heads.forEach((each) => each.removeAttribute("aria-sort"));
    head.setAttribute("aria-sort", down ? "descending" : "ascending");
    const order = [...report.videos].sort((a, b) => (value(a) > value(b) ? 1 : -1) * (down ? -1 : 1));
    body.replaceChildren(...order.map(cells));
  };
  const foot = [{ name: "Mean over videos", ...report.video_mean }, { name: "Mean over all frames", ...report.pooled }];
  return h("div", { class: "card" },
    h("div", { class: "scroll" }, h("table", {}, h("thead", {}, h("tr", {}, heads)), body, h("tfoot", {}, foot.map(cells)))),
    h("div", { class: "key" }, h("span", {}, h("i", { style: "--c: var(--blurred)" }), "blurred"), h("span", {}, h("i", { style: "--c: var(--restored)" }), "restored"),
      h("span", { class: "wide" }, "Flicker: RMS change of the error between frames, in grey levels; lower is steadier.")));
}

function hint() {
  return h("p", { class: "lede" }, "Compare a frame before and after by moving over it with the mouse or a finger, or with the arrow keys on the divider. Click it to see it at full size.");
}

/* ---------------------------------------------------------------- one video */

function videoSection(video) {
  const { shots } = video;
  const section = h("section", { class: "video", id: video.id },
    h("div", { class: "head" }, h("h2", {}, video.name),
      h("p", {}, `${video.width} × ${video.height}, ${video.frames} frames, PSNR ${db(video.psnr_blurred)} → ${db(video.psnr)} dB, `,
        h("span", { class: video.psnr < video.psnr_blurred ? "down" : "up" }, `${signed(video.psnr - video.psnr_blurred)} dB`))));
  const viewer = h("div", { class: "card viewer" });
  section.append(viewer);
  const state = { shot: Math.floor((shots.length - 1) / 2), left: "blurred", right: "restored", at: 50, mode: "none", listeners: [] };
  const changed = () => state.listeners.forEach((listener) => listener());
  const show = (index) => { state.shot = clamp(index, 0, shots.length - 1); changed(); };
  const place = () => video.scored_from <= shots[state.shot].index && shots[state.shot].index < video.scored_from + video.frame_psnr.length
    ? shots[state.shot].index - video.scored_from : null;
  if (shots.length) {
    const stage = makeStage(video, state, changed);
    viewer.append(stage, controls(video, state, show, place, stage));
  }
  viewer.append(makePlot(video, state, show, shots));
  if (shots.some(explained)) viewer.append(makeExplanation(video, state, changed));
  changed();
  return section;
}

/** Two frames over each other with a divider between them. */
function makeStage(video, state, changed) {
  const left = h("img", { class: "left", alt: "", draggable: "false", decoding: "async" });
  const right = h("img", { alt: "", draggable: "false", decoding: "async" });
  const tagLeft = h("span", { class: "tag left" });
  const tagRight = h("span", { class: "tag right" });
  const tagReduced = h("span", { class: "tag left reduced", style: "top: auto; bottom: 12px" });
  const overlay = h("canvas", { hidden: true });
  const lines = h("svg", { viewBox: `0 0 ${video.width} ${video.height}`, preserveAspectRatio: "none" });
  const pin = h("span", { class: "pin", hidden: true });
  const divider = h("div", { class: "divider", role: "slider", tabindex: 0, "aria-orientation": "horizontal", "aria-valuemin": 0, "aria-valuemax": 100 });
  const stage = h("div", { class: "stage", style: `aspect-ratio: ${video.width} / ${video.height}; max-width: min(calc(82vh * ${video.width / video.height}), ${Math.max(320, 2 * video.width)}px)` },
    right, left, overlay, lines, tagLeft, tagRight, video.shots.some(percent) ? tagReduced : null, pin, divider);
  const move = (at) => {
    state.at = clamp(at, 0, 100);
    stage.style.setProperty("--at", `${state.at}%`);
    divider.setAttribute("aria-valuenow", Math.round(state.at));
    divider.setAttribute("aria-valuetext", `${Math.round(state.at)} % ${SIDES[state.left].toLowerCase()}, the rest ${SIDES[state.right].toLowerCase()}`);
    tagLeft.style.opacity = state.at < 14 ? 0 : 1;
    tagRight.style.opacity = state.at > 86 ? 0 : 1;
  };
  const where = (event) => {
    const box = stage.getBoundingClientRect();
    return [clamp((event.clientX - box.left) / box.width, 0, 1), clamp((event.clientY - box.top) / box.height, 0, 1)];
  };
  // A mouse moves the divider by hovering, a finger by dragging; either may click. Taps are told from
  // drags here, because browsers do not always give a click for a tap that follows a drag.
  let pressed = null;
  const choose = (event) => {
    const [x, y] = where(event);
    if (state.mode.startsWith("attention")) {
      state.pixel = [Math.min(video.width - 1, Math.floor(x * video.width)), Math.min(video.height - 1, Math.floor(y * video.height))];
      changed();
    } else fullSize(video, state, 100 * x < state.at ? state.left : state.right);
  };
  stage.addEventListener("pointerdown", (event) => { pressed = { x: event.clientX, y: event.clientY, moved: false }; });
  stage.addEventListener("pointermove", (event) => {
    if (pressed && Math.hypot(event.clientX - pressed.x, event.clientY - pressed.y) > 6) pressed.moved = true;
    if (event.pointerType === "mouse" || (pressed && pressed.moved)) move(100 * where(event)[0]);
  });
  stage.addEventListener("pointerup", (event) => {
    if (pressed && !pressed.moved && event.button === 0) choose(event);
    pressed = null;
  });
  stage.addEventListener("pointercancel", () => { pressed = null; });
  stage.addEventListener("touchend", (event) => { if (event.cancelable) event.preventDefault(); });
  divider.addEventListener("keydown", (event) => {
    const step = event.shiftKey ? 10 : 2;
    const target = { ArrowLeft: state.at - step, ArrowDown: state.at - step, ArrowRight: state.at + step, ArrowUp: state.at + step,
      PageDown: state.at - 10, PageUp: state.at + 10, Home: 0, End: 100 }[event.key];
    if (event.key === "Enter") fullSize(video, state, state.right);
    else if (target !== undefined) move(target);
    else return;
    event.preventDefault();
  });
  state.listeners.push(() => {
    const shot = video.shots[state.shot];
    const reduced = percent(shot) && `shown at ${percent(shot)}`;
    tagReduced.textContent = reduced;
    tagReduced.hidden = !reduced;
    for (const [image, side] of [[left, state.left], [right, state.right]]) {
      if (image.src !== shot[side]) image.src = shot[side];
      image.alt = `${SIDES[side]} frame ${shot.index + 1} of ${video.name}${reduced && `, ${reduced}`}`;
    }
    tagLeft.textContent = SIDES[state.left];
    tagRight.textContent = SIDES[state.right];
    divider.setAttribute("aria-label", `Divider between ${state.left} and ${state.right}`);
    stage.classList.toggle("picking", state.mode.startsWith("attention"));
    pin.hidden = !(state.mode.startsWith("attention") && state.pixel);
    if (state.pixel) {
      pin.style.left = `${(100 * (state.pixel[0] + 0.5)) / video.width}%`;
      pin.style.top = `${(100 * (state.pixel[1] + 0.5)) / video.height}%`;
    }
    move(state.at);
  });
  Object.assign(state, { overlay, lines });
  return stage;
}

function controls(video, state, show, place) {
  const { shots } = video;
  const readout = h("output", {});
  const slider = h("input", { type: "range", min: 0, max: shots.length - 1, value: state.shot, "aria-label": "Frame", oninput: () => show(Number(slider.value)) });
  let timer = null;
  const stop = () => { clearInterval(timer); timer = null; play.textContent = "▶"; play.setAttribute("aria-label", "Play"); };
  const play = h("button", { type: "button", class: "icon", "aria-label": "Play", onclick: () => {
    if (timer) return stop();
    timer = setInterval(() => show((state.shot + 1) % shots.length), 125);
    play.textContent = "❚❚";
    play.setAttribute("aria-label", "Pause");
  } }, "▶");
  const step = (by, label, text) => h("button", { type: "button", class: "icon", "aria-label": label, onclick: () => { stop(); show(state.shot + by); } }, text);
  state.listeners.push(() => {
    slider.value = state.shot;
    const shot = shots[state.shot];
    slider.setAttribute("aria-valuetext", `frame ${shot.index + 1}`);
    const i = place();
    readout.replaceChildren(h("b", {}, `Frame ${shot.index + 1}`), ` of ${video.frames}`,
      i === null ? ", not scored" : `, ${db(video.frame_psnr[i])} dB (${signed(video.frame_psnr[i] - video.frame_psnr_blurred[i])})`);
  });
  const pairs = { "blurred restored": "Blurred | restored", "restored sharp": "Restored | sharp", "blurred sharp": "Blurred | sharp" };
  return h("div", { class: "bar" },
    h("div", { class: "grow" }, shots.length > 1 ? [step(-1, "Previous frame", "‹"), play, step(1, "Next frame", "›"), slider] : null, readout),
    choice("Compare", pairs, "blurred restored", (pair) => { [state.left, state.right] = pair.split(" "); state.listeners.forEach((listener) => listener()); }),
    h("button", { type: "button", class: "icon", onclick: () => fullSize(video, state, state.right) }, "Full size"));
}

/** The frame at one pixel of it to one of the screen, enlarged to that if its picture was reduced; keys 1, 2 and 3 choose which version. */
function fullSize(video, state, side) {
  const shot = video.shots[state.shot];
  const image = h("img", { class: "exact" });
  image.width = video.width / window.devicePixelRatio;
  const size = percent(shot) ? `enlarged from ${percent(shot)}` : "full size";
  const set = (which) => { image.src = shot[which]; image.alt = `${SIDES[which]} frame ${shot.index + 1} of ${video.name}, ${size}`; };
  const sides = choice("Version", SIDES, side, set);
  const close = h("div", { class: "choice" }, h("button", { type: "button", onclick: () => dialog.close() }, "Close"));
  const dialog = h("dialog", { "aria-label": `Frame ${shot.index + 1} of ${video.name}, ${size}` },
    h("div", { class: "view", onpointerup: () => dialog.close() }, image), h("div", { class: "tools" }, sides, close,
      percent(shot) ? h("span", { class: "tag reduced", style: "position: static; align-self: center" }, size) : null));
  dialog.addEventListener("keydown", (event) => {
    const which = Object.keys(SIDES)[Number(event.key) - 1];
    if (which) sides.select(which);
  });
  dialog.addEventListener("close", () => dialog.remove());
  set(side);
  document.body.append(dialog);
  dialog.showModal();
}

/** PSNR over time: drawn at the width it is shown at, so that text keeps its size. */
function makePlot(video, state, show, shots) {
  const box = h("div", { class: "plot" });
  const svg = h("svg", { role: "img", "aria-label": `PSNR of every frame of ${video.name}, blurred and restored` });
  const reading = h("span", {}, "dB");
  box.append(h("div", { class: "title" }, h("h3", {}, "PSNR over time, ", reading),
    h("div", { class: "key" }, h("span", {}, h("i", { style: "--c: var(--blurred)" }), "blurred"), h("span", {}, h("i", { style: "--c: var(--restored)" }), "restored"))), svg);
  const { frame_psnr: restored, frame_psnr_blurred: blurred, scored_from: from } = video;
  const all = [...restored, ...blurred];
  const room = Math.max(0.25, (largest(all) - smallest(all)) * 0.08);
  const [low, high] = [smallest(all) - room, largest(all) + room];
  const [top, bottom, leftEdge] = [10, 144, 38];
  let x = null;
  const draw = () => {
    const width = svg.clientWidth || 800;
    const last = Math.max(1, restored.length - 1);
    x = (i) => (restored.length === 1 ? (leftEdge + width) / 2 : leftEdge + 6 + (i / last) * (width - leftEdge - 18));
    const y = (value) => bottom - ((value - low) / (high - low)) * (bottom - top);
    const line = (values) => values.map((value, i) => `${i ? "L" : "M"}${x(i).toFixed(1)} ${y(value).toFixed(1)}`).join("");
    const dots = (values, kind) => (values.length > 40 ? [] : values.map((value, i) => h("circle", { cx: x(i), cy: y(value), r: 2.5, fill: `var(--${kind})` })));
    const index = state.listeners.length && shots.length ? shots[state.shot].index - from : -1;
    svg.replaceChildren(
      ...ticks(low, high, 4).flatMap((value) => [h("line", { class: "grid", x1: leftEdge, x2: width, y1: y(value), y2: y(value) }),
        h("text", { x: leftEdge - 8, y: y(value) + 4, "text-anchor": "end" }, String(value))]),
      ...ticks(from + 1, from + restored.length, Math.min(8, width / 90)).filter(Number.isInteger).map((frame) =>
        h("text", { x: x(frame - 1 - from), y: bottom + 20, "text-anchor": "middle" }, String(frame))),
      h("path", { d: `${line(restored)}L${[...blurred].map((value, i) => `${x(i).toFixed(1)} ${y(value).toFixed(1)}`).reverse().join("L")}Z`, fill: "var(--restored)", "fill-opacity": 0.09 }),
      h("path", { class: "line", d: line(blurred), stroke: "var(--blurred)" }), h("path", { class: "line", d: line(restored), stroke: "var(--restored)" }),
      ...dots(blurred, "blurred"), ...dots(restored, "restored"),
      ...(0 <= index && index < restored.length ? [h("line", { class: "now", x1: x(index), x2: x(index), y1: top - 6, y2: bottom }),
        h("circle", { cx: x(index), cy: y(restored[index]), r: 5, fill: "var(--restored)" }), h("circle", { cx: x(index), cy: y(blurred[index]), r: 5, fill: "var(--blurred)" })] : []));
  };
  const nearest = (event) => {
    const at = event.clientX - svg.getBoundingClientRect().left;
    return restored.reduce((best, _, i) => (Math.abs(x(i) - at) < Math.abs(x(best) - at) ? i : best), 0);
  };
  svg.addEventListener("pointermove", (event) => {
    const i = nearest(event);
    reading.textContent = `frame ${from + i + 1}: ${db(blurred[i])} → ${db(restored[i])} dB (${signed(restored[i] - blurred[i])})`;
  });
  svg.addEventListener("pointerleave", () => { reading.textContent = "dB"; });
  svg.addEventListener("click", (event) => {
    if (!shots.length) return;
    const wanted = from + nearest(event);
    show(shots.reduce((best, shot, i) => (Math.abs(shot.index - wanted) < Math.abs(shots[best].index - wanted) ? i : best), 0));
  });
  state.listeners.push(draw);
  new ResizeObserver(draw).observe(svg);
  return box;
}

/* ---------------------------------------------------------------- what the network did */

function makeExplanation(video, state, changed) {
  const first = video.shots.find(explained);
  const options = { none: "Nothing" };
  if (first.weights) options.weights = "Blending weights wₙ";
  if (first.gate) options.gate = "Gate";
  if (first.paths) options.paths = "Blur paths";
  first.attention.forEach((block, i) => { options[`attention ${i}`] = `Attention, ${block.name}`; });
  const body = h("div", { class: "body" });
  const settings = { opacity: 0.8, stretch: true, map: 0 };
  let drawing = 0;

  // The colours over the frame, with their legend.
  const lay = async (sprite, index, fullScale, names, mine) => {
    const values = await readMap(sprite, index);
    if (mine !== drawing) return null;
    let [low, high] = fullScale ?? [0, largest(values)];
    if (fullScale && settings.stretch) { low = smallest(values); high = largest(values); }
    paint(state.overlay, values, sprite.width, sprite.height, low, high, true);
    state.overlay.style.opacity = settings.opacity;
    state.overlay.hidden = false;
    return h("div", { class: "legend" },
      h("span", {}, names[0](low)), h("span", { class: "ramp", style: `background: ${rampImage}` }), h("span", {}, names[1](high)),
      fullScale ? h("label", {}, h("input", { type: "checkbox", ...(settings.stretch ? { checked: true } : {}), onchange: (event) => { settings.stretch = event.target.checked; changed(); } }), "stretch the colours") : null,
      h("label", {}, "opacity", h("input", { type: "range", min: 0, max: 1, step: 0.02, value: settings.opacity, "aria-label": "Opacity of the overlay",
        oninput: (event) => { settings.opacity = Number(event.target.value); state.overlay.style.opacity = settings.opacity; } })));
  };

  const weights = async (shot, mine) => {
    const values = await readMap(shot.weights, 0);
    const legend = await lay(shot.weights, 0, [0, 1], [(low) => `${low.toFixed(2)}: least from this frame`, (high) => `${high.toFixed(2)}: most from this frame`], mine);
    return [legend, h("p", {}, `wₙ of dynamic temporal blending (eq. 2), averaged over channels. Here ${(100 * mean(values)).toFixed(0)} % comes from the frame itself and the rest from earlier frames.`)];
  };

  const gate = async (shot, mine) => {
    const values = await readMap(shot.gate, 0);
    const legend = await lay(shot.gate, 0, [0, 1], [(low) => `${low.toFixed(2)}: least along the path`, (high) => `${high.toFixed(2)}: most along the path`], mine);
    return [legend, h("p", {}, `The share of the frame deconvolved along its blur paths, ${(100 * mean(values)).toFixed(0)} % on average here; the rest comes from the base, which does not use paths.`)];
  };

  const paths = (shot) => {
    state.lines.append(h("path", { class: "line under", d: shot.paths }), h("path", { class: "line", d: shot.paths }));
    return [h("p", {}, "Each line shows how the image moved there while the shutter was open, estimated from the frames alone and drawn at its true length; a dot means no motion.")];
  };

  const attention = async (shot, i, mine) => {
    const block = shot.attention[i];
    settings.map = Math.min(settings.map, block.spatial.count - 1);
    const legend = await lay(block.spatial, settings.map, null, [() => "0", (high) => `${high.toFixed(1)} times uniform`], mine);
    const maps = h("div", { class: "maps", role: "group", "aria-label": "Spatial attention maps" });
    for (let m = 0; m < block.spatial.count; m += 1) {
      const values = await readMap(block.spatial, m);
      const canvas = h("canvas", {});
      const peak = largest(values);
      paint(canvas, values, block.spatial.width, block.spatial.height, 0, peak);
      maps.append(h("button", { type: "button", "aria-pressed": String(m === settings.map), "aria-label": `Spatial map ${m + 1}`, onclick: () => { settings.map = m; changed(); } },
        canvas, h("span", {}, h("b", {}, String(m + 1)), `${peak.toFixed(1)}×`)));
    }
    const offsets = block.offsets.map((offset) => (offset > 0 ? `+${offset}` : String(offset)));
    const most = largest(block.temporal.flat());
    const bars = block.temporal.map((map, n) => {
      const wide = 90 / map.length;
      const labelled = map.length <= 9 ? offsets : offsets.map((text, k) => (k === 0 || k === map.length - 1 || block.offsets[k] === 0 ? text : ""));
      return h("svg", { role: "img", "aria-label": `Temporal map ${n + 1}: ${map.map((weight, k) => `frame ${offsets[k]}: ${weight.toFixed(2)}`).join(", ")}` },
        h("text", { x: 0, y: 40 }, String(n + 1)),
        map.map((weight, k) => [
          h("rect", { x: `${8 + (k + 0.1) * wide}%`, width: `${wide * 0.8}%`, y: 40 - (24 * weight) / most, height: Math.max(1, (24 * weight) / most), rx: 2, class: block.offsets[k] === 0 ? "current" : "other" },
            h("title", {}, `frame ${offsets[k]}: ${weight.toFixed(3)}`)),
          map.length <= 9 ? h("text", { x: `${8 + (k + 0.5) * wide}%`, y: 36 - (24 * weight) / most, "text-anchor": "middle" }, weight.toFixed(2)) : null,
          h("text", { x: `${8 + (k + 0.5) * wide}%`, y: 54, "text-anchor": "middle" }, labelled[k])]));
    });
    return [
      h("p", {}, "Each spatial map shows where a frame's features are gathered (eq. 1), each temporal map how the frames of the window are weighted (eq. 3), and every pixel mixes the combinations of both (eq. 5). Each map is labelled with its number and its largest weight, as a multiple of a uniform weight."),
      legend, maps,
      h("div", { class: "panels" },
        h("div", {}, h("h3", {}, `${block.temporal.length} temporal map${block.temporal.length === 1 ? "" : "s"} over the window`), h("div", { class: "bars" }, bars)),
        h("div", {}, h("h3", {}, "The mix at one pixel"), await pixelMix(block)))];
  };

  const pixelMix = async (block) => {
    const [M, N] = [block.spatial.count, block.temporal.length];
    const number = (axis, size, label) => h("label", {}, label, " ", h("input", { type: "number", min: 0, max: size - 1, value: state.pixel ? state.pixel[axis] : "", "aria-label": `Pixel ${label}`,
      onchange: (event) => {
        const pixel = state.pixel ? [...state.pixel] : [Math.floor(video.width / 2), Math.floor(video.height / 2)];
        pixel[axis] = clamp(Math.round(Number(event.target.value)), 0, size - 1);
        state.pixel = pixel;
        changed();
      } }));
    const chooser = h("div", { class: "legend" }, number(0, video.width, "x"), number(1, video.height, "y"));
    if (!state.pixel) return [h("p", {}, `Click a pixel of the frame, or enter its position, to see its ${M} × ${N} weights.`), chooser];
    const { width, height } = block.mix;
    const all = await readSprite(block.mix);
    const cell = Math.min(height - 1, Math.floor((state.pixel[1] * height) / video.height)) * width + Math.min(width - 1, Math.floor((state.pixel[0] * width) / video.width));
    const mix = Array.from({ length: M * N }, (_, k) => all[k * width * height + cell]);
    const peak = largest(mix);
    const best = mix.indexOf(peak);
    const grid = h("div", { class: "mix", role: "img", "aria-label": `Weights of the ${M * N} combinations`, style: `grid-template-columns: max-content repeat(${M}, minmax(14px, 34px))` },
      h("div", { class: "name" }, "n \\ m"), Array.from({ length: M }, (_, m) => h("div", { class: "name" }, String(m + 1))),
      Array.from({ length: N }, (_, n) => [h("div", { class: "name" }, String(n + 1)), Array.from({ length: M }, (_, m) => {
        const weight = mix[m * N + n];
        return h("div", { style: `background: ${css(weight / (peak || 1))}`, title: `spatial ${m + 1}, temporal ${n + 1}: ${weight.toFixed(3)}` });
      })]));
    // A map is kept in 255 steps, and where M N weights are alike each may be less than half of one.
    const most = peak > 0 ? `Largest: spatial map ${Math.floor(best / N) + 1} with temporal map ${(best % N) + 1}, weight ${peak.toFixed(3)}` : "All weights are too small to distinguish here";
    return [chooser, grid, h("p", {}, `${most}; a uniform weight would be ${(1 / (M * N)).toFixed(M * N < 1000 ? 3 : 5)}.`)];
  };

  state.listeners.push(async () => {
    const mine = (drawing += 1);
    const shot = video.shots[state.shot];
    const [kind, index] = state.mode.split(" ");
    let content = [];
    state.lines.replaceChildren();
    if (kind === "weights" && shot.weights) content = await weights(shot, mine);
    else if (kind === "gate" && shot.gate) content = await gate(shot, mine);
    else if (kind === "attention" && shot.attention[index]) content = await attention(shot, Number(index), mine);
    else {
      state.overlay.hidden = true;
      if (kind === "paths" && shot.paths) content = paths(shot);
    }
    if (mine === drawing) body.replaceChildren(...content.flat().filter(Boolean));
  });
  return h("div", { class: "explain" }, h("div", { class: "legend" }, h("h3", {}, "Show on the frame"),
    choice("Show on the frame", options, "none", (mode) => { state.mode = mode; changed(); })), body);
}

/* ---------------------------------------------------------------- the page */

function footer() {
  const { checkpoint, dataset, protocol, device, made } = report;
  const name = dataset.variant ? `${dataset.name} (${dataset.variant})` : dataset.name;
  const versions = Object.entries(report.versions).map(([name, version]) => `${name} ${version}`).join(", ");
  const rows = { Checkpoint: checkpoint.source, "Data set": name, Protocol: protocol.name, Device: device, Versions: versions, Made: made };
  return h("footer", {}, h("dl", {}, Object.entries(rows).flatMap(([name, value]) => [h("dt", {}, name), h("dd", {}, value)])),
    h("p", {}, "Scores were computed from the original frames. The pictures on this page are compressed, and if a video has too many frames to show, evenly spaced ones are shown. ",
      "Scores by different protocols are not comparable."));
}

document.getElementById("page").replaceChildren(...header(), summaryTable(), hint(), ...report.videos.map(videoSection), footer());
