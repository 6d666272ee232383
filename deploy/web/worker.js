// All that takes time, away from the page: decoding, resizing, inference, the self-test.
//
// Messages in: {id, task, ...}; out: {id, result} or {id, error: {what, fix}}, and {id, progress} before.

import { KitError, fetchChecked, sha256 } from "./integrity.js";
import { composeHeat } from "./heat.js";
import {
  MAX_IMAGE_PIXELS,
  MIN_IMAGE_SIDE,
  normalizePixels,
  resizeAndCrop,
  visiblePart,
} from "./preprocess.js";

const base = new URL("./", self.location.href);

let ort;
let kit; // web.json
let model; // model.json
let backend;
let session;
let heatSession;
let canvas;
let ahead = null; // what `prepare` is at

const tasks = { prepare, open, classify, selftest };

self.addEventListener("message", async ({ data }) => {
  const { id, task, ...request } = data;
  try {
    const result = await tasks[task](request, (progress) => self.postMessage({ id, progress }));
    self.postMessage({ id, result });
  } catch (error) {
    const known = error instanceof KitError || error instanceof RangeError;
    self.postMessage({
      id,
      error: known
        ? { what: error.message, fix: error.fix ?? "" }
        : { what: `The ${task} step failed: ${error?.message ?? error}.`, fix: "Reload the page and try again." },
    });
  }
});

/** Begin with what the page is going to ask for, while it is still loading itself. */
async function prepare() {
  ahead = (async () => {
    const response = await fetch(new URL("web.json", base));
    const early = await response.json();
    return { version: early.version, ...(await load(early, "wasm", 1)) };
  })();
  ahead.catch(() => {}); // `open` tries again, and reports
}

async function open(request) {
  ({ kit, model, backend } = request);
  const started = performance.now();
  let loaded = backend === "wasm" && request.threads === 1 ? await ahead?.catch(() => null) : null;
  if (loaded && loaded.version !== kit.version) {
    throw new KitError("The kit was replaced while this page loaded.", "Reload the page.");
  }
  loaded ??= await load(kit, backend, request.threads);
  ({ ort, session } = loaded);
  return { ...loaded.times, waited_ms: performance.now() - started, threads: ort.env.wasm.numThreads };
}

/** Fetch runtime and model, check them, and open the model. */
async function load(manifest, which, threads) {
  const build = manifest.runtime.builds[which];
  const file = (name) => fetchChecked(new URL(name, base), manifest.files[name]);
  const started = performance.now();
  const [runtime, binary, bytes] = await Promise.all([
    importRuntime(build.module),
    file(build.binary),
    file(manifest.models[which]),
  ]);
  runtime.env.logLevel = "error";
  runtime.env.wasm.wasmBinary = binary.buffer;
  runtime.env.wasm.numThreads = threads;
  const loaded = performance.now();
  // The file for WebAssembly is an optimized graph already.
  const opened = await createSession(runtime, bytes, which, which === "wasm" ? "disabled" : "all");
  const times = { load_ms: loaded - started, start_ms: performance.now() - loaded };
  return { ort: runtime, session: opened, times };
}

async function importRuntime(name) {
  try {
    return await import(new URL(name, base));
  } catch (error) {
    throw new KitError(
      `The runtime ${name} could not be loaded (${error.message}).`,
      "Copy the whole folder of the kit to the server, runtime/ included, and serve .js as text/javascript.",
    );
  }
}

async function createSession(runtime, bytes, which, graphOptimizationLevel) {
  try {
    return await runtime.InferenceSession.create(bytes, { executionProviders: [which], graphOptimizationLevel });
  } catch (error) {
    throw new KitError(
      `ONNX Runtime Web could not open the model with ${which} (${error?.message ?? error}).`,
      which === "wasm"
        ? "Close other tabs to free memory, then reload the page."
        : "Choose WebAssembly under Settings: not every graphics driver can run it.",
    );
  }
}

async function infer(which, input) {
  const tensor = new ort.Tensor("float32", input, model.model.input.shape);
  return which.run({ [model.model.input.name]: tensor });
}

/** Decode a file, or take a frame, and return its pixels on white, 4 bytes each. */
async function readPixels(source) {
  let bitmap = source;
  if (source instanceof Blob) {
    try {
      // Upright, and with the numbers of the file: training ignores colour profiles too.
      bitmap = await createImageBitmap(source, { imageOrientation: "from-image", colorSpaceConversion: "none" });
    } catch {
      throw new KitError(
        "This file is not an image that this browser can read, or it is damaged.",
        "Try a JPEG, PNG or WebP file.",
      );
    }
  }
  const { width, height } = bitmap;
  try {
    if (width * height > MAX_IMAGE_PIXELS) {
      throw new KitError(
        `The image has ${width} x ${height} pixels; the limit is ${MAX_IMAGE_PIXELS / 1e6} megapixels.`,
        "Scale it down and try again.",
      );
    }
    if (Math.min(width, height) < MIN_IMAGE_SIDE) {
      throw new KitError(
        `The image has ${width} x ${height} pixels; each side must be at least ${MIN_IMAGE_SIDE}.`,
        "Choose a larger image.",
      );
    }
    if (!canvas || canvas.width !== width || canvas.height !== height) canvas = new OffscreenCanvas(width, height);
    const context = canvas.getContext("2d", { willReadFrequently: true });
    context.fillStyle = "#fff";
    context.fillRect(0, 0, width, height);
    context.drawImage(bitmap, 0, 0);
    return { rgba: context.getImageData(0, 0, width, height).data, width, height };
  } finally {
    bitmap.close();
  }
}

function softmax(logits) {
  const top = Math.max(...logits);
  const powers = Array.from(logits, (value) => Math.exp(value - top));
  const sum = powers.reduce((total, value) => total + value, 0);
  return powers.map((value) => value / sum);
}

function indexOfMax(values) {
  let best = 0;
  values.forEach((value, i) => (best = value > values[best] ? i : best));
  return best;
}

/** `heat` is "off", "evidence" or "attention"; the maps are computed only where they are shown. */
async function classify({ source, heat = "off" }) {
  const started = performance.now();
  const { rgba, width, height } = await readPixels(source);
  const read = performance.now();
  const input = normalizePixels(resizeAndCrop(rgba, width, height, model.preprocess), model.preprocess);
  const prepared = performance.now();
  const outputs = await infer(session, input);
  const logits = outputs[model.model.output.name].data;
  const inferred = performance.now();
  const top = indexOfMax(logits);
  let map = null;
  if (heat !== "off" && kit.heat?.kinds.includes(heat)) map = await makeHeat(input, heat, top);
  const finished = performance.now();
  return {
    logits: Array.from(logits),
    probabilities: softmax(logits),
    top,
    width,
    height,
    visible: visiblePart(width, height, model.preprocess),
    heat: map,
    times: {
      read_ms: read - started,
      resize_ms: prepared - read,
      infer_ms: inferred - prepared,
      heat_ms: finished - inferred,
      total_ms: finished - started,
    },
  };
}

async function makeHeat(input, kind, top) {
  if (!heatSession) {
    // The model's bytes and the part's, one after the other, are a model with more outputs.
    const [whole, part] = await Promise.all(
      [kit.heat.model, kit.heat.file].map((name) => fetchChecked(new URL(name, base), kit.files[name])),
    );
    const joined = new Uint8Array(whole.length + part.length);
    joined.set(whole);
    joined.set(part, whole.length);
    heatSession = await createSession(ort, joined, backend, "all");
  }
  return composeHeat(await infer(heatSession, input), kit.heat.outputs, kind, top);
}

/** Compare with what was recorded when the kit was made: pixels bit by bit, logits, first answer. */
async function selftest(_, report) {
  const folder = new URL("model/", base);
  const text = await fetchChecked(new URL(model.reference.file, folder), model.reference);
  const reference = JSON.parse(new TextDecoder().decode(text));
  const outcome = {
    runtime: reference.runtime,
    tolerance: reference.tolerance,
    images: reference.images.length,
    pixels_equal: 0,
    top1_equal: 0,
    within_tolerance: 0,
    largest_difference: 0,
    differing: [],
  };
  const { preprocess } = model;
  for (const [number, image] of reference.images.entries()) {
    const bytes = await fetchChecked(new URL(image.file, folder), model.files[image.file]);
    const { rgba, width, height } = await readPixels(new Blob([bytes]));
    const pixels = resizeAndCrop(rgba, width, height, preprocess);
    const pixelsEqual = (await sha256(new Uint8Array(pixels.buffer))) === image.pixels_sha256;
    const outputs = await infer(session, normalizePixels(pixels, preprocess));
    const logits = outputs[model.model.output.name].data;
    const difference = Math.max(...image.logits.map((value, i) => Math.abs(value - logits[i])));
    const sameTop = indexOfMax(logits) === image.top1;
    outcome.pixels_equal += pixelsEqual;
    outcome.top1_equal += sameTop;
    outcome.within_tolerance += difference <= reference.tolerance;
    outcome.largest_difference = Math.max(outcome.largest_difference, difference);
    if (!sameTop || !pixelsEqual || !(difference <= reference.tolerance)) outcome.differing.push(image.file);
    report({ done: number + 1, of: reference.images.length });
  }
  const n = outcome.images;
  const equalAnswers = outcome.top1_equal === n;
  outcome.passed = equalAnswers && outcome.pixels_equal === n && outcome.within_tolerance === n;
  // Some browsers decode JPEG with another rounding than the decoder that the reference was made with.
  outcome.decoder_differs = equalAnswers && outcome.pixels_equal < n;
  return outcome;
}
