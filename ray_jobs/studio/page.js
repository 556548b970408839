// The studio: asks the API on its own origin, shows what comes back. The token comes in the address's fragment,
// which no browser sends, and stays in this tab.

const $ = (id) => document.getElementById(id);
const FILES = ["input_image", "input_video", "input_audio"];
const NUMBERS = ["seed", "seconds", "steps", "guidance", "speech_guidance"];
// Where the words of a problem belong.
const PLACE = { prompt: "prompt", media: "media", value: "settings", size: "settings", ability: "ask" };
const ERRORS = ["prompt", "speech", "media", "settings", "ask"];
const POLL_MS = 250;
const SHOWN = 24; // clips of earlier visits
const SILENCE = 1e-3; // of full scale

const state = { token: "", model: null, clips: new Map(), watched: null, shown: null, sound: null };

class ApiProblem extends Error {
  constructor(problem) {
    super(problem.detail);
    this.kind = (problem.type || "").split(":").pop();
    this.status = problem.status;
  }
}

async function api(path, options = {}) {
  const headers = { Authorization: `Bearer ${state.token}`, ...options.headers };
  let response;
  try {
    response = await fetch(`v1/${path}`, { ...options, headers });
  } catch {
    throw new ApiProblem({ type: "lost", status: 0, detail: "The server does not answer; is it still running?" });
  }
  if (response.ok) return response;
  const problem = await response.json().catch(() => ({ detail: `The server answered ${response.status}.` }));
  if (response.status === 401) showDoor(problem.detail);
  throw new ApiProblem({ status: response.status, ...problem });
}

// ---- coming in

async function enter() {
  const given = new URLSearchParams(location.hash.slice(1)).get("token");
  if (given) {
    sessionStorage.setItem("token", given);
    history.replaceState(null, "", location.pathname);
  }
  state.token = sessionStorage.getItem("token") || "";
  if (!state.token) return showDoor("");
  try {
    state.model = (await (await api("models")).json()).data[0];
  } catch (problem) {
    if (problem.status !== 401) showDoor(problem.message);
    return;
  }
  $("door").hidden = true;
  $("studio").hidden = false;
  describe(state.model);
  $("prompt").focus();
  const before = (await (await api(`videos?limit=${SHOWN}`)).json()).data;
  for (const clip of before.reverse()) remember(clip);
}

function showDoor(words) {
  sessionStorage.removeItem("token");
  $("studio").hidden = true;
  $("door").hidden = false;
  $("door-error").textContent = words;
  $("token").focus();
}

$("door-form").addEventListener("submit", (event) => {
  event.preventDefault();
  sessionStorage.setItem("token", $("token").value.trim());
  $("token").value = "";
  enter();
});
window.addEventListener("hashchange", enter);

function describe(model) {
  const trained = model.world ? `, trained on world ${model.world}` : "";
  $("facts").textContent =
    `${model.id}: ${model.size.replace("x", " × ")}, ${model.fps} frames/s, ${model.sample_rate / 1000} kHz${trained}`;
  const [width, height] = model.size.split("x").map(Number);
  $("screen").style.aspectRatio = `${width} / ${height}`;
  $("speech-field").hidden = $("speech_guidance-field").hidden = !model.speech_bytes;
  for (const name of ["seconds", "steps", "guidance", "speech_guidance"]) {
    if (model[name] !== null) $(name).placeholder = model[name];
  }
  Object.assign($("seconds"), { min: model.chunk_seconds, max: model.max_seconds, step: model.chunk_seconds });
  $("examples").replaceChildren(
    ...model.examples.map((example) => {
      const words = example.speech ? `${example.caption} “${example.speech}”` : example.caption;
      const button = Object.assign(document.createElement("button"), { type: "button", textContent: words });
      button.addEventListener("click", () => {
        $("prompt").value = example.caption;
        $("speech").value = example.speech;
        countBytes();
        complain(null);
        $("prompt").focus();
      });
      return button;
    }),
  );
  countBytes();
}

// ---- asking

const bytes = (text) => new TextEncoder().encode(text).length;

function countBytes() {
  for (const [name, room] of [["prompt", state.model.caption_bytes], ["speech", state.model.speech_bytes]]) {
    const seen = name === "prompt" ? $(name).value.replace(/"[^"]*"|“[^”]*”/g, " ") : $(name).value;
    const used = bytes(seen.trim().replace(/\s+/g, " "));
    $(`${name}-room`).textContent = `${used} of ${room} bytes`;
    $(`${name}-room`).classList.toggle("over", used > room);
  }
}

// What is said stands in quotes; quotes inside it would end it.
function wholePrompt() {
  const caption = $("prompt").value.trim();
  const speech = $("speech-field").hidden ? "" : $("speech").value.replace(/["“”]/g, "").trim();
  return speech ? `${caption} "${speech}"` : caption;
}

function fieldsOf(seed) {
  const fields = { prompt: wholePrompt() };
  for (const name of NUMBERS) {
    const value = $(name).value.trim();
    if (value && !$(name).closest("[hidden]")) fields[name] = value;
  }
  if (seed !== undefined) fields.seed = String(seed);
  return fields;
}

const newSeed = () => crypto.getRandomValues(new Uint32Array(1))[0] >>> 1;

async function make(fields, files) {
  complain(null);
  const form = new FormData();
  for (const [name, value] of Object.entries(fields)) form.append(name, value);
  for (const [name, file] of Object.entries(files)) form.append(name, file);
  const anyFile = Object.keys(files).length > 0;
  const json = { body: JSON.stringify(fields), headers: { "Content-Type": "application/json" } };
  const clip = await (await api("videos", { method: "POST", ...(anyFile ? { body: form } : json) })).json();
  remember(clip, { fields, files });
  return clip;
}

async function ask(many) {
  const seeds = many === 1 ? [undefined] : Array.from({ length: many }, newSeed);
  const files = Object.fromEntries(FILES.map((name) => [name, $(name).files[0]]).filter(([, file]) => file));
  await askEach(seeds.map((seed) => [fieldsOf(seed), files]));
}

async function askEach(requests) {
  try {
    for (const [index, [fields, files]] of requests.entries()) {
      const clip = await make(fields, files);
      if (index === 0) watch(clip.id);
    }
  } catch (problem) {
    complain(problem);
  }
}

// The clip that is shown, with other seeds.
function askAnew(many) {
  const entry = state.clips.get(state.shown);
  const again = entry.request || { fields: { prompt: entry.clip.prompt, seconds: String(entry.clip.seconds) }, files: {} };
  askEach(Array.from({ length: many }, () => [{ ...again.fields, seed: String(newSeed()) }, again.files]));
}

function complain(problem) {
  for (const name of ERRORS) $(`${name}-error`).textContent = "";
  for (const name of ["prompt", "speech"]) $(name).removeAttribute("aria-invalid");
  if (!problem) return;
  const ofSpeech = problem.kind === "prompt" && /^the speech/.test(problem.message);
  const place = ofSpeech ? "speech" : PLACE[problem.kind] || "ask";
  $(`${place}-error`).textContent = problem.message;
  if (place === "media") $("begin").open = true;
  if (place === "settings") $("settings").open = true;
  if (place === "prompt" || place === "speech") {
    $(place).setAttribute("aria-invalid", "true");
    $(place).focus();
  }
}

// ---- clips so far

function remember(clip, request) {
  const entry = { clip, request, blob: null, item: document.createElement("li") };
  state.clips.set(clip.id, entry);
  const button = Object.assign(document.createElement("button"), { type: "button" });
  const words = Object.assign(document.createElement("span"), { className: "words" });
  words.append(document.createElement("b"), document.createElement("span"));
  const [width, height] = state.model.size.split("x").map(Number);
  button.append(Object.assign(document.createElement("canvas"), { width, height }), words);
  button.addEventListener("click", () => (state.clips.get(clip.id).blob ? show(clip.id, true) : watch(clip.id)));
  entry.item.append(button);
  $("clips").prepend(entry.item);
  $("past").hidden = false;
  label(entry);
  follow(entry);
}

function label(entry) {
  const [words, facts] = entry.item.querySelectorAll("b, span span");
  words.textContent = entry.clip.prompt;
  facts.textContent = statusWords(entry.clip);
  entry.item.classList.toggle("failed", entry.clip.status === "failed");
}

function statusWords(clip) {
  if (clip.status === "completed") return `seed ${clip.seed}`;
  if (clip.status === "failed") return "failed";
  return clip.status === "queued" ? "waits for its turn" : `${clip.progress} %`;
}

async function follow(entry) {
  try {
    while (entry.clip.status === "queued" || entry.clip.status === "in_progress") {
      await new Promise((wake) => setTimeout(wake, POLL_MS));
      entry.clip = await (await api(`videos/${entry.clip.id}`)).json();
      label(entry);
      if (state.watched === entry.clip.id) showProgress(entry.clip);
    }
    if (entry.clip.status === "failed") throw new ApiProblem({ type: "ask", detail: entry.clip.error.message });
    entry.blob = await (await api(`videos/${entry.clip.id}/content`)).blob();
    await drawThumbnail(entry);
    if (state.watched === entry.clip.id) await show(entry.clip.id, true);
  } catch (problem) {
    if (state.watched !== entry.clip.id) return;
    $("making").hidden = true;
    complain(problem);
  }
}

function watch(id) {
  state.watched = id;
  showProgress(state.clips.get(id).clip);
}

function showProgress(clip) {
  const waits = clip.status === "queued" || clip.status === "in_progress";
  $("making").hidden = !waits;
  $("progress").value = clip.progress;
  $("progress-words").textContent = waits ? `Making “${clip.prompt}”: ${statusWords(clip)}` : "";
}

async function drawThumbnail(entry) {
  const film = Object.assign(document.createElement("video"), { muted: true, preload: "auto" });
  film.src = URL.createObjectURL(entry.blob);
  await new Promise((done) => {
    film.addEventListener("loadeddata", () => (film.currentTime = film.duration / 2), { once: true });
    film.addEventListener("seeked", done, { once: true });
    film.addEventListener("error", done, { once: true });
  });
  const canvas = entry.item.querySelector("canvas");
  canvas.getContext("2d").drawImage(film, 0, 0, canvas.width, canvas.height);
  URL.revokeObjectURL(film.src);
}

// ---- the clip that is shown

async function show(id, play) {
  const { clip, blob } = state.clips.get(id);
  state.shown = state.watched = id;
  for (const [other, entry] of state.clips) {
    entry.item.firstChild.setAttribute("aria-current", String(other === id));
  }
  const video = $("video");
  if (video.src) URL.revokeObjectURL(video.src);
  video.src = URL.createObjectURL(blob);
  $("making").hidden = $("empty").hidden = true;
  video.hidden = $("about").hidden = false;
  $("about-prompt").textContent = clip.prompt;
  $("about-facts").textContent =
    `seed ${clip.seed}, ${clip.seconds} s, made in ${clip.model_s.toFixed(1)} s, sha256 ${clip.sha256.slice(0, 12)}…`;
  Object.assign($("download"), { href: video.src, download: `${clip.model}_${clip.seed}.mp4` });
  state.sound = null;
  try {
    // an offline context decodes without a gesture of the user
    const context = new OfflineAudioContext(1, 1, state.model.sample_rate);
    state.sound = (await context.decodeAudioData(await blob.arrayBuffer())).getChannelData(0);
  } catch {
    // a clip without sound has no waveform
  }
  const loudest = state.sound ? loudestOf(state.sound) : 0;
  if (loudest < SILENCE) $("about-facts").textContent += ", silent";
  $("wave").hidden = !state.sound;
  drawWave();
  if (play) video.play().catch(() => {}); // a browser may want a gesture first; the controls are there
}

const loudestOf = (sound) => sound.reduce((most, x) => Math.max(most, Math.abs(x)), 0);

function drawWave() {
  const canvas = $("wave");
  if (!state.sound || canvas.hidden) return;
  const scale = window.devicePixelRatio || 1;
  canvas.width = Math.round(canvas.clientWidth * scale);
  canvas.height = Math.round(canvas.clientHeight * scale);
  const style = getComputedStyle(document.documentElement);
  const [played, ahead] = [style.getPropertyValue("--accent"), style.getPropertyValue("--wave")];
  const context = canvas.getContext("2d");
  const loudest = Math.max(0.02, loudestOf(state.sound));
  const bar = 2 * scale;
  const count = Math.floor(canvas.width / (1.5 * bar));
  const share = $("video").currentTime / ($("video").duration || 1);
  for (let i = 0; i < count; i++) {
    const from = Math.floor((i * state.sound.length) / count);
    const to = Math.floor(((i + 1) * state.sound.length) / count);
    let peak = 0;
    for (let n = from; n < to; n++) peak = Math.max(peak, Math.abs(state.sound[n]));
    const height = Math.max(bar, (peak / loudest) * canvas.height);
    context.fillStyle = i / count <= share ? played : ahead;
    context.fillRect(i * 1.5 * bar, (canvas.height - height) / 2, bar, height);
  }
  context.fillStyle = style.getPropertyValue("--ink");
  context.fillRect(Math.min(canvas.width - scale, share * canvas.width), 0, scale, canvas.height);
}

function animate() {
  drawWave();
  if (!$("video").paused) requestAnimationFrame(animate);
}
$("video").addEventListener("play", animate);
for (const event of ["seeked", "pause", "loadedmetadata"]) $("video").addEventListener(event, drawWave);
window.addEventListener("resize", drawWave);
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", drawWave);
$("wave").addEventListener("pointerdown", (event) => {
  $("video").currentTime = (event.offsetX / $("wave").clientWidth) * $("video").duration;
});

// ---- buttons and keys

$("ask").addEventListener("submit", (event) => {
  event.preventDefault();
  ask(1);
});
document.addEventListener("keydown", (event) => {
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey) && !$("studio").hidden) {
    event.preventDefault();
    ask(1);
  }
});
$("again").addEventListener("click", () => askAnew(1));
$("variations").addEventListener("click", () => askAnew(4));
$("keep-seed").addEventListener("click", () => {
  $("seed").value = state.clips.get(state.shown).clip.seed;
  $("settings").open = true;
  summarise();
  $("seed").focus();
});
$("clear-files").addEventListener("click", () => {
  for (const name of FILES) $(name).value = "";
  summarise();
});

// What is chosen stays visible when the details are closed.
function summarise() {
  $("given").textContent = FILES.map((name) => $(name).files[0]?.name).filter(Boolean).join(", ");
  $("set").textContent = NUMBERS.filter((name) => $(name).value).map((name) => `${name} ${$(name).value}`).join(", ");
}
for (const name of [...FILES, ...NUMBERS]) $(name).addEventListener("input", summarise);
for (const name of ["prompt", "speech"]) $(name).addEventListener("input", countBytes);

enter();
