"use strict";
// One window at a time: what is heard and seen of it on one time axis, and a person's word on it.

const $ = (id) => document.getElementById(id);
const video = $("video"), stem = $("stem"), canvas = $("axis");
const OTHER = "#c9c15a"; // a reason that has no colour of its own
const LEFT = 120; // of the lanes' names
let colours = {}, decides = {}; // of reasons; which of them a curve decides on
let queue = [], shown = null, offset = 0, still = 0, busy = false, withoutVoices = false;

// talking to the server

async function ask(path, body) {
  const options = body === undefined ? {} : {
    method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(body),
  };
  const answer = await fetch(path, options);
  const said = await answer.json();
  if (!answer.ok) throw new Error(said.detail);
  return said;
}

async function guarded(work) {
  if (busy) return;
  busy = true;
  try {
    $("message").textContent = "";
    await work();
  } catch (error) {
    $("message").textContent = error.message;
  } finally {
    busy = false;
    document.body.dataset.settled = String(Number(document.body.dataset.settled || 0) + 1);
  }
}

function take(state) {
  queue = state.windows;
  colours = state.colours;
  decides = state.curves;
  $("reviewer").textContent = `reviewer ${state.reviewer}`;
  const done = queue.filter((w) => w.decision).length;
  $("progress").textContent = `${done} of ${queue.length} decided`;
  $("agreement").textContent = state.agreement
    .filter((a) => a.windows && (a.first === state.reviewer || a.second === state.reviewer))
    .map((a) => {
      const other = a.first === state.reviewer ? a.second : a.first;
      const kappa = a.kappa === null ? "" : `, Cohen's κ ${a.kappa.toFixed(2)}`;
      return `with ${other}: ${a.agreed} of ${a.windows}${kappa}`;
    }).join("  ·  ");
}

function drawQueue() {
  $("queue").replaceChildren(...queue.map((w) => {
    const mark = document.createElement("span");
    mark.className = [w.decision || "", shown && w.window_id === shown.window_id ? "current" : ""].join(" ");
    mark.title = `${w.seconds.toFixed(1)} s, ${w.decision || "not decided"}`;
    mark.onclick = () => guarded(() => show(w.window_id));
    return mark;
  }));
}

const undecided = () => queue.find((w) => !w.decision);

async function show(windowId) {
  shown = await ask(`api/windows/${windowId}`);
  const w = shown, mine = queue.find((q) => q.window_id === windowId);
  $("title").textContent = w.title;
  const seconds = (w.end_ms - w.start_ms) / 1000;
  $("place").textContent = `${clock(w.start_ms / 1000)} to ${clock(w.end_ms / 1000)}, ${seconds.toFixed(1)} s · ` +
    `${w.category} · ${w.tempo_bpm} bpm · ${w.url}`;
  $("why").textContent = w.why;
  const verdict = $("verdict");
  verdict.textContent = w.rules ? `rules: drop (${w.rules.replace("_", " ")})` : "rules: keep";
  verdict.style.background = colour(w.rules);
  $("yours").textContent = mine && mine.decision ? `Your decision: ${mine.decision}` : "";
  $("missing").hidden = w.media;
  video.hidden = !w.media;
  drawQueue();
  layout();
  stem.pause();
  if (!w.media) {
    video.removeAttribute("src");
    return seek(w.start_ms / 1000);
  }
  play(`media/${windowId}`, 0);
}

function play(address, shift) {
  offset = shift; // media time = video time + offset
  video.src = address;
  if (shown.stem) stem.src = `stem/${shown.window_id}`;
  hear();
  seek(shown.start_ms / 1000);
  video.play().catch(() => {}); // a browser waits for the first key or click
}

// A browser that can't play the file, or a file that isn't on the server's machine: a small copy of the window.
video.onerror = () => {
  if (shown && shown.media && !video.src.includes("/preview/")) play(`preview/${shown.window_id}`, shown.start_s);
};

async function decide(decision) {
  if (!shown) return;
  const said = { window_id: shown.window_id, decision };
  if (decision === "split") said.split_s = now();
  take(await ask("api/decisions", said));
  await onwards();
}

async function onwards() {
  const next = undecided();
  if (next) return show(next.window_id);
  await show(shown ? shown.window_id : queue[0].window_id);
  $("yours").textContent = "All windows are decided. `dvmset recurate` applies the decisions.";
}

async function undo() {
  const state = await ask("api/undo", {});
  take(state);
  if (state.undone && queue.some((w) => w.window_id === state.undone)) await show(state.undone);
  else await onwards();
}

// sound and time

const now = () => (shown.media ? video.currentTime + offset : still); // seconds of the media
const clock = (s) => `${Math.floor(s / 60)}:${(s % 60).toFixed(1).padStart(4, "0")}`;

function seek(seconds) {
  still = Math.min(shown.end_s, Math.max(shown.start_s, seconds));
  if (!shown.media) return;
  video.currentTime = Math.max(0, still - offset);
  follow();
}

function hear() {
  video.muted = withoutVoices && shown.stem;
  $("listening").textContent = withoutVoices ? "hear it as it is" : "hear it without voices";
  follow();
}

function follow() { // the stem's player keeps to the picture's
  if (!video.muted || video.paused) return stem.pause();
  const wanted = now() - shown.section_s;
  if (Math.abs(stem.currentTime - wanted) > 0.15) stem.currentTime = wanted;
  if (stem.paused) stem.play().catch(() => {});
}

function step(by) {
  const at = queue.findIndex((w) => w.window_id === shown.window_id) + by;
  if (queue[at]) return show(queue[at].window_id);
}

const KEYS = {
  k: () => guarded(() => decide("keep")), d: () => guarded(() => decide("drop")),
  u: () => guarded(() => decide("unsure")), s: () => guarded(() => decide("split")), z: () => guarded(undo),
  " ": () => (video.paused ? video.play() : video.pause()), r: () => seek(shown.start_ms / 1000),
  v: () => { withoutVoices = !withoutVoices; hear(); },
  ArrowLeft: (e) => seek(now() - (e.shiftKey ? 5 : 1)), ArrowRight: (e) => seek(now() + (e.shiftKey ? 5 : 1)),
  ArrowUp: () => guarded(async () => step(-1)), ArrowDown: () => guarded(async () => step(1)),
};
document.addEventListener("keydown", (event) => {
  const act = KEYS[event.key.length === 1 ? event.key.toLowerCase() : event.key];
  if (!act || event.repeat && event.key.length === 1 || event.ctrlKey || event.metaKey || event.altKey || !shown) return;
  event.preventDefault();
  act(event);
});
for (const button of document.querySelectorAll("[data-decision]")) {
  button.onclick = () => { button.blur(); guarded(() => decide(button.dataset.decision)); };
}
$("undo").onclick = () => { $("undo").blur(); guarded(undo); };
canvas.onclick = (event) => {
  if (!shown) return;
  const box = canvas.getBoundingClientRect();
  const share = (event.clientX - box.left - LEFT) / (box.width - LEFT);
  seek(shown.start_s + Math.max(0, share) * (shown.end_s - shown.start_s));
};

// the time axis: drawn once per window onto a sheet, then the cursor over it

const sheet = document.createElement("canvas");

function colour(reason) {
  return reason in colours ? colours[reason] : OTHER;
}

function layout() {
  const scale = window.devicePixelRatio || 1;
  for (const place of [canvas, sheet]) {
    place.width = canvas.clientWidth * scale;
    place.height = canvas.clientHeight * scale;
  }
  const pen = sheet.getContext("2d");
  pen.scale(scale, scale);
  const width = canvas.clientWidth, w = shown;
  const x = (s) => LEFT + (s - w.start_s) / (w.end_s - w.start_s) * (width - LEFT);
  const room = canvas.clientHeight - 106; // what the last three lanes and the gaps leave
  const lanes = [
    ["waveform", room * 0.32, wave], ["stems, dB", room * 0.3, stems], ["curves", room * 0.38, curves],
    ["cuts", 16, cuts], ["beats", 16, beats], ["verdict", 22, fate],
  ];
  pen.font = "12px system-ui, 'DejaVu Sans', sans-serif";
  let y = 6;
  for (const [name, height, draw] of lanes) {
    pen.fillStyle = "#9aa3b2";
    pen.fillText(name, 10, y + Math.min(height / 2 + 4, 14));
    const tints = draw(pen, x, y, height, w) || [];
    tints.forEach(([text, tint], i) => { // under the lane's name
      pen.fillStyle = tint;
      pen.fillText(text, 24, y + 31 + 16 * i);
    });
    y += height + 6;
  }
  pen.fillStyle = "rgba(20, 23, 28, 0.72)"; // what lies around the window
  const a = x(w.start_ms / 1000), b = x(w.end_ms / 1000);
  pen.fillRect(LEFT, 0, a - LEFT, y - 6);
  pen.fillRect(b, 0, width - b, y - 6);
}

function wave(pen, x, y, height, w) {
  const both = Object.values(w.waves).flatMap((found) => [...found.high, ...found.low.map((low) => -low)]);
  const peak = both.reduce((most, level) => Math.max(most, level), 0.01); // quiet music fills the lane, too
  for (const [name, tint] of [["mix", "#59616f"], ["stem", "#55b8b0"]]) {
    const found = w.waves[name];
    if (!found) continue;
    pen.fillStyle = tint;
    const n = found.low.length, step = (w.end_s - w.start_s) / n;
    for (let i = 0; i < n; i++) {
      const left = x(w.start_s + i * step), top = y + height / 2 * (1 - found.high[i] / peak);
      const tall = height / 2 * (found.high[i] - found.low[i]) / peak;
      pen.fillRect(left, top, x(w.start_s + (i + 1) * step) - left + 0.4, Math.max(1, tall));
    }
  }
  return w.waves.mix ? [["mix", "#8a93a3"], ["voice-free", "#55b8b0"]] : [["no media", "#8a93a3"]];
}

function line(pen, x, w, values, tint, place, width = 1.6) {
  pen.strokeStyle = tint;
  pen.lineWidth = width;
  pen.beginPath();
  values.forEach((value, i) => {
    if (value === null) return; // not separated: a gap
    const s = w.curves.first_s + i, from = x(Math.max(s, w.start_s));
    if (i && values[i - 1] !== null) pen.lineTo(from, place(value));
    else pen.moveTo(from, place(value));
    pen.lineTo(x(Math.min(s + 1, w.end_s)), place(value));
  });
  pen.stroke();
}

function stems(pen, x, y, height, w) {
  const place = (db) => y + height * Math.min(1, Math.max(0, db / -60));
  const tints = { vocals: "#e08a4c", drums: "#6ea8fe", bass: "#a889c9", other: "#55b8b0" };
  const names = Object.keys(w.curves.stems_db);
  for (const name of names) line(pen, x, w, w.curves.stems_db[name], tints[name] || OTHER, place, name === "vocals" ? 2.2 : 1.2);
  return names.map((name) => [name, tints[name] || OTHER]);
}

function curves(pen, x, y, height, w) {
  const place = (share) => y + height * (1 - Math.min(1, Math.max(0, share)));
  const limits = w.thresholds;
  for (const [share, tint] of [[limits.voice_ratio_max, colour(decides.voice_ratio)], [limits.music_min, colour(decides.music)]]) {
    pen.strokeStyle = tint;
    pen.lineWidth = 1;
    pen.setLineDash([4, 4]);
    pen.beginPath();
    pen.moveTo(x(w.start_s), place(share));
    pen.lineTo(x(w.end_s), place(share));
    pen.stroke();
    pen.setLineDash([]);
  }
  const drawn = ["music", "speech", "singing", "voice_ratio"]
    .map((name) => [name, name in decides ? colour(decides[name]) : "#e4e7ec"]);
  for (const [name, tint] of drawn) line(pen, x, w, w.curves[name], tint, place, name === "voice_ratio" ? 2.2 : 1.4);
  const gaps = w.curves.voice_ratio.includes(null) ? [["gap: not separated", "#9aa3b2"]] : [];
  return [...drawn.map(([name, tint]) => [name.replace("_", " "), tint]), ["- - limits", "#9aa3b2"], ...gaps];
}

function ticks(pen, times, x, y, height, tint) {
  pen.fillStyle = tint;
  for (const s of times) pen.fillRect(x(s) - 0.75, y, 1.5, height);
}

const cuts = (pen, x, y, height, w) => ticks(pen, w.cuts_s, x, y, height, "#e4e7ec");
const beats = (pen, x, y, height, w) => ticks(pen, w.beats_s, x, y + 3, height - 3, "#8a93a3");

function fate(pen, x, y, height, w) {
  let from = 0;
  const named = [];
  w.reasons.forEach((reason, i) => {
    if (i + 1 < w.reasons.length && w.reasons[i + 1] === reason) return;
    const a = x(Math.max(w.curves.first_s + from, w.start_s)), b = x(Math.min(w.curves.first_s + i + 1, w.end_s));
    pen.fillStyle = colour(reason);
    pen.fillRect(a, y, b - a - 0.5, height);
    const left = a < x(w.start_ms / 1000) && b > x(w.start_ms / 1000) + 60 ? x(w.start_ms / 1000) : a; // the word lies in the window
    named.push([reason ? reason.replace("_", " ") : "keep", left, b]);
    from = i + 1;
  });
  pen.fillStyle = "#10141a";
  for (const [text, a, b] of named) if (pen.measureText(text).width < b - a - 8) pen.fillText(text, a + 5, y + 14);
}

function tick() {
  if (shown && sheet.width) {
    const t = now(), end = shown.end_ms / 1000;
    if (!video.paused && t >= end && t < end + 0.5) video.pause();
    follow();
    const pen = canvas.getContext("2d"), scale = window.devicePixelRatio || 1;
    pen.setTransform(1, 0, 0, 1, 0, 0);
    pen.clearRect(0, 0, canvas.width, canvas.height);
    pen.drawImage(sheet, 0, 0);
    pen.setTransform(scale, 0, 0, scale, 0, 0);
    pen.fillStyle = "#ffffff";
    const place = LEFT + (t - shown.start_s) / (shown.end_s - shown.start_s) * (canvas.clientWidth - LEFT);
    if (place >= LEFT) pen.fillRect(place - 1, 0, 2, canvas.clientHeight);
    $("clock").textContent = `${clock(t)} of ${clock(end)}`;
  }
  requestAnimationFrame(tick);
}

window.addEventListener("resize", () => shown && layout());
guarded(async () => {
  take(await ask("api/queue"));
  await onwards();
});
tick();
