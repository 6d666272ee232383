// The page's program: ties sources, engine and view together.

import { facesUser, listCameras, openCamera } from "./camera.js";
import { Engine } from "./engine.js";
import { HEAT_KINDS } from "./heat.js";
import { KitError, fetchChecked } from "./integrity.js";
import { setUpOffline } from "./offline.js";
import { FrameStats } from "./stats.js";
import { checkBrowser } from "./support.js";
import {
  AnswerView,
  clearOverlay,
  drawOverlay,
  element,
  hideProblem,
  setState,
  showFigures,
  showProblem,
  showTestResult,
} from "./view.js";

const EXAMPLES = 12;

delete document.documentElement.dataset.starting;

let kit;
let model;
let engine = null;
let view;
let live = null; // {stream, paused}: what runs now; null while a still picture is shown
let still = null; // Blob of the picture that is shown
let pictureUrl = "";
const stats = new FrameStats();
const video = element("video");
const picture = element("picture");
const stage = element("stage");

// Tests and measurements read this; the page itself does not.
globalThis.edgeattnKit = { stats, results: 0, last: null, opened: null, firstAnswerAt: null };

async function loadJson(name, expected) {
  let response;
  if (expected) return JSON.parse(new TextDecoder().decode(await fetchChecked(name, expected)));
  try {
    response = await fetch(name);
    if (response.ok) return await response.json();
  } catch (error) {
    throw new KitError(
      `The file ${name} could not be read (${error.message}).`,
      "Check the connection and that the whole kit was copied, then reload the page.",
    );
  }
  throw new KitError(
    `The server answered ${response.status} for ${name}.`,
    "Make the folder with: edgeattn kit web, and serve that one; deploy/web alone has no model.",
  );
}

async function start() {
  try {
    checkBrowser();
    kit = await loadJson("web.json");
    model = await loadJson("model/model.json", kit.files["model/model.json"]);
    describeKit();
    view = new AnswerView(model);
    listHeatKinds();
    listBackends();
    const examples = loadExamples();
    examples.catch(() => {}); // reported where it is awaited
    await openEngine();
    await showExamples(await examples);
  } catch (error) {
    setState("not running");
    showProblem(error);
    return;
  }
  setUpOffline();
}

function describeKit() {
  const title = model.name.replaceAll(/[_-]+/g, " ");
  element("title").textContent = title[0].toUpperCase() + title.slice(1);
  document.title = element("title").textContent;
  if (model.description) element("description").textContent = model.description;
  element("versions").textContent =
    `Kit ${kit.version}, model ${model.model.sha256.slice(0, 12)} ` +
    `(${(model.model.size_bytes / 1e6).toFixed(2)} MB, INT8), ${kit.runtime.name} ${kit.runtime.version}`;
}

// ------------------------------------------------------------------ engine and settings

function listBackends() {
  const names = { wasm: "WebAssembly", webgpu: "WebGPU" };
  const usable = Object.keys(kit.runtime.builds).filter((name) => name === "wasm" || navigator.gpu);
  element("backend").replaceChildren(...usable.map((name) => new Option(names[name], name)));
  const most = crossOriginIsolated ? Math.min(8, navigator.hardwareConcurrency || 1) : 1;
  element("threads").replaceChildren(
    ...Array.from({ length: most }, (_, i) => new Option(String(i + 1), String(i + 1))),
  );
  element("threads-text").textContent = crossOriginIsolated
    ? ""
    : "More threads need a cross-origin isolated page: reload once it is ready for offline use.";
  for (const id of ["backend", "threads"]) element(id).addEventListener("change", () => restartEngine());
}

async function openEngine() {
  setState("loading…");
  const backend = element("backend").value;
  const threads = backend === "wasm" ? Number(element("threads").value) : 1;
  engine = await Engine.start({ kit, model, backend, threads });
  globalThis.edgeattnKit.opened = engine.opened;
  const where = backend === "wasm" ? `WebAssembly, ${threads === 1 ? "1 thread" : `${threads} threads`}` : "WebGPU";
  setState(`ready: ${where}`);
  stats.reset();
  enableControls(true);
}

function enableControls(enabled) {
  for (const id of ["camera", "file", "test", "backend", "threads"]) element(id).disabled = !enabled;
  if (element("backend").value !== "wasm") element("threads").disabled = true;
}

async function restartEngine() {
  enableControls(false);
  engine?.close();
  engine = null;
  let refused = null;
  try {
    try {
      await openEngine();
    } catch (error) {
      if (element("backend").value === "wasm") throw error;
      refused = new KitError(error.message, "WebAssembly runs the network instead.");
      element("backend").value = "wasm";
      await openEngine();
    }
    hideProblem();
    await classifyStill();
    if (refused) showProblem(refused);
  } catch (error) {
    setState("not running");
    showProblem(error);
    for (const id of ["backend", "threads"]) element(id).disabled = false;
  }
}

function listHeatKinds() {
  const kinds = kit.heat?.kinds ?? [];
  const choices = [["off", "Off"], ...kinds.map((kind) => [kind, HEAT_KINDS[kind].label])];
  element("heat-kinds").replaceChildren(
    ...choices.map(([value, text]) => {
      const label = document.createElement("label");
      const input = document.createElement("input");
      Object.assign(input, { type: "radio", name: "heat", value, checked: value === "off" });
      input.addEventListener("change", () => {
        describeHeat();
        classifyStill();
      });
      label.append(input, text);
      return label;
    }),
  );
  describeHeat();
}

const heatKind = () => document.querySelector('input[name="heat"]:checked').value;

function describeHeat() {
  const none = "This network has no map that could be shown.";
  const off = kit.heat ? "Costs a second run of the network for each picture, so it is off at first." : none;
  element("heat-text").textContent = HEAT_KINDS[heatKind()]?.text ?? off;
}

// ------------------------------------------------------------------ still pictures

/** Show a picture and classify it. */
async function openPicture(blob, name) {
  stopLive();
  still = blob;
  URL.revokeObjectURL(pictureUrl);
  pictureUrl = URL.createObjectURL(blob);
  picture.src = pictureUrl;
  picture.alt = name;
  picture.hidden = false;
  element("hint").hidden = true;
  clearOverlay();
  stats.reset();
  await classifyStill();
}

async function classifyStill() {
  if (!still || live || !engine) return;
  const shown = still;
  try {
    const result = await engine.classify(shown, heatKind());
    if (shown !== still || live) return; // another picture was opened meanwhile
    showResult(result);
    hideProblem();
  } catch (error) {
    if (shown !== still || live || !engine) return; // no longer wanted, or the engine was closed on purpose
    still = null;
    picture.hidden = true;
    element("hint").hidden = false;
    showProblem(error);
  }
}

function showResult(result) {
  view.show(result);
  drawOverlay(result);
  const now = performance.now();
  stats.add(now, result.times);
  const shared = globalThis.edgeattnKit;
  shared.results += 1;
  shared.last = result;
  shared.firstAnswerAt ??= now;
  if (!live || shared.results % 5 === 0) showFigures(stats.summary(), Boolean(live));
}

/** Choose the examples, and have the first one here when the engine is ready. */
async function loadExamples() {
  const { images } = await loadJson(`model/${model.reference.file}`, model.reference);
  const count = Math.min(EXAMPLES, images.length);
  // Some of each kind: the photographs may be sorted by class.
  const chosen = Array.from({ length: count }, (_, i) => images[Math.floor((i * images.length) / count)]);
  return { chosen, first: await loadPhotograph(chosen[0].file) };
}

async function loadPhotograph(file) {
  return new Blob([await fetchChecked(`model/${file}`, model.files[file])]);
}

/** Classify the first example at once, so that nobody has to find a picture first; then list them. */
async function showExamples({ chosen, first }) {
  const list = element("examples");
  list.replaceChildren();
  // One file after the other: small servers do not take many connections at a time.
  for (const [i, { file, label }] of chosen.entries()) {
    const name = label === null ? file : `photograph of ${model.classes[label]}`;
    const blob = i === 0 ? first : await loadPhotograph(file);
    const button = exampleButton(blob, name);
    if (i === 0 && !live && !still) {
      await openPicture(blob, name);
      markExample(button);
    }
    const item = document.createElement("li");
    item.append(button);
    list.append(item);
    element("examples-block").hidden = false;
  }
}

function exampleButton(blob, name) {
  const button = document.createElement("button");
  const image = document.createElement("img");
  image.src = URL.createObjectURL(blob);
  image.alt = `Example: ${name}`;
  button.type = "button";
  button.setAttribute("aria-pressed", "false");
  button.append(image);
  button.addEventListener("click", async () => {
    hideProblem();
    await openPicture(blob, name);
    markExample(button);
  });
  return button;
}

function markExample(chosen) {
  for (const button of element("examples").querySelectorAll("button")) {
    button.setAttribute("aria-pressed", "false");
  }
  chosen?.setAttribute("aria-pressed", "true");
}

// ------------------------------------------------------------------ camera and video files

async function startCamera(deviceId = "") {
  hideProblem();
  let stream;
  try {
    stream = await openCamera(deviceId);
  } catch (error) {
    showProblem(error);
    return;
  }
  stopLive();
  video.srcObject = stream;
  stage.classList.toggle("mirrored", facesUser(stream));
  const [track] = stream.getVideoTracks();
  track.addEventListener("ended", () => {
    if (live?.stream !== stream) return;
    stopLive();
    showProblem(new KitError("The camera was disconnected or switched off.", "Press Start camera to try again."));
  });
  await runLive({ stream, paused: false });
  await fillCameraList(track.getSettings().deviceId);
}

async function fillCameraList(current) {
  const cameras = await listCameras();
  const list = element("camera-list");
  list.replaceChildren(...cameras.map(({ deviceId, label }) => new Option(label, deviceId)));
  list.value = current ?? "";
  element("camera-choice").hidden = cameras.length < 2 || !live?.stream;
}

async function openVideo(file) {
  stopLive();
  URL.revokeObjectURL(pictureUrl);
  pictureUrl = URL.createObjectURL(file);
  video.src = pictureUrl;
  video.loop = true;
  try {
    await new Promise((resolve, reject) => {
      video.onloadeddata = resolve;
      video.onerror = reject;
    });
  } catch {
    video.removeAttribute("src");
    element("hint").hidden = false;
    showProblem(
      new KitError("This video cannot be played here, or it is damaged.", "Try an MP4 (H.264) or WebM file."),
    );
    return;
  }
  await runLive({ stream: null, paused: false });
}

async function runLive(source) {
  still = null;
  picture.hidden = true;
  element("hint").hidden = true;
  video.hidden = false;
  markExample(null);
  clearOverlay();
  stats.reset();
  live = source;
  element("pause").hidden = false;
  element("pause").setAttribute("aria-pressed", "false");
  element("camera").textContent = source.stream ? "Stop camera" : "Start camera";
  try {
    await video.play();
  } catch {
    // A newer source replaced this one, or the browser pauses hidden tabs; the loop waits for frames anyway.
  }
  loop(source);
}

/** Classify the newest frame again and again; a frame that came while the network ran is taken at once. */
async function loop(source) {
  let lastFrame = -1;
  while (live === source) {
    await nextFrame(() => live !== source || (!source.paused && engine && frameNumber() !== lastFrame));
    if (live !== source) return;
    lastFrame = frameNumber();
    try {
      const result = await engine.classify(await createImageBitmap(video), heatKind());
      if (live === source) showResult(result);
    } catch (error) {
      if (live !== source || !engine) continue; // closed on purpose
      if (error.name === "InvalidStateError") continue; // the video has no frame yet
      stopLive();
      showProblem(error instanceof KitError ? error : new KitError(`The video stopped (${error.message}).`));
      return;
    }
  }
}

let framesSeen = 0;
const countsFrames = "requestVideoFrameCallback" in HTMLVideoElement.prototype;
if (countsFrames) {
  const count = () => {
    framesSeen += 1;
    video.requestVideoFrameCallback(count);
  };
  video.requestVideoFrameCallback(count);
}
const frameNumber = () => (countsFrames ? framesSeen : video.currentTime);

async function nextFrame(isReady) {
  while (!isReady()) await new Promise((resolve) => requestAnimationFrame(resolve));
}

function stopLive() {
  live?.stream?.getTracks().forEach((track) => track.stop());
  live = null;
  video.pause();
  video.srcObject = null;
  video.removeAttribute("src");
  video.hidden = true;
  stage.classList.remove("mirrored");
  clearOverlay();
  element("pause").hidden = true;
  element("camera-choice").hidden = true;
  element("camera").textContent = "Start camera";
  element("speed").hidden = true;
  element("hint").hidden = still !== null;
}

// ------------------------------------------------------------------ controls

function openFile(file) {
  if (!file || !engine) return;
  hideProblem();
  markExample(null);
  if (file.type.startsWith("video/")) openVideo(file);
  else openPicture(file, file.name);
}

element("camera").addEventListener("click", () => {
  if (live?.stream) stopLive();
  else startCamera();
});
element("camera-list").addEventListener("change", ({ target }) => startCamera(target.value));
element("file").addEventListener("change", ({ target }) => {
  openFile(target.files[0]);
  target.value = ""; // so that the same file can be opened again
});
element("pause").addEventListener("click", ({ target }) => {
  if (!live) return;
  live.paused = !live.paused;
  target.setAttribute("aria-pressed", String(live.paused));
  if (live.paused) video.pause();
  else video.play().catch(() => {});
});
element("problem-close").addEventListener("click", hideProblem);

element("test").addEventListener("click", async () => {
  const progress = element("test-progress");
  const wasPaused = live?.paused;
  if (live) live.paused = true; // the test has the engine for itself
  element("test").disabled = true;
  element("test-result").replaceChildren();
  progress.value = 0;
  progress.hidden = false;
  try {
    showTestResult(await engine.selftest(({ done, of }) => (progress.value = done / of)));
  } catch (error) {
    showProblem(error);
  }
  progress.hidden = true;
  element("test").disabled = false;
  if (live) live.paused = wasPaused;
});

addEventListener("dragover", (event) => {
  event.preventDefault();
  stage.classList.add("dropping");
});
addEventListener("dragleave", (event) => {
  if (!event.relatedTarget) stage.classList.remove("dropping");
});
addEventListener("drop", (event) => {
  event.preventDefault();
  stage.classList.remove("dropping");
  openFile(event.dataTransfer.files[0]);
});
addEventListener("paste", (event) => openFile(event.clipboardData?.files[0]));

start();
