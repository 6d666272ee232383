// Draws answers, bars, the heat map and the figures. Knows the page's elements and nothing of the engine.

import { colourHeat } from "./heat.js";

export const element = (id) => document.getElementById(id);

const ROWS = 5;
const ANNOUNCE_EVERY_MS = 1500;
const OVERLAY_SIDE = 640;

export function showProblem(error) {
  element("problem-what").textContent = error.message;
  element("problem-fix").textContent = error.fix ?? "";
  element("problem").hidden = false;
}

export function hideProblem() {
  element("problem").hidden = true;
}

export function setState(text) {
  element("engine-state").textContent = text;
}

const percent = (share) => `${(100 * share).toFixed(share < 0.9995 ? 1 : 0)} %`;
const milliseconds = (value) => (value === undefined ? "–" : `${value.toFixed(value < 10 ? 2 : 1)} ms`);

export class AnswerView {
  #classes;
  #threshold;
  #rows = [];
  #announced = "";
  #announcedAt = -Infinity;

  constructor(model) {
    this.#classes = model.classes;
    this.#threshold = model.thresholds.min_confidence;
    const list = element("top");
    list.replaceChildren();
    for (let i = 0; i < Math.min(ROWS, model.classes.length); i++) {
      const row = document.createElement("li");
      const bar = document.createElement("div");
      const name = document.createElement("span");
      const share = document.createElement("span");
      bar.className = "bar";
      row.append(bar, name, share);
      list.append(row);
      this.#rows.push({ bar, name, share });
    }
  }

  show(result) {
    const order = result.probabilities
      .map((share, index) => ({ share, index }))
      .sort((a, b) => b.share - a.share || a.index - b.index);
    this.#rows.forEach(({ bar, name, share }, i) => {
      name.textContent = this.#classes[order[i].index];
      share.textContent = percent(order[i].share);
      bar.style.setProperty("--share", order[i].share);
    });
    const sure = order[0].share >= this.#threshold;
    const best = this.#classes[order[0].index];
    const answer = element("answer");
    const share = document.createElement("small");
    share.textContent = sure ? ` ${percent(order[0].share)}` : ` perhaps ${best}, ${percent(order[0].share)}`;
    answer.replaceChildren(sure ? best : "Not sure", share);
    answer.className = sure ? "" : "unsure";
    answer.dataset.index = order[0].index;
    this.#announce(sure ? best : `Not sure, perhaps ${best}`);
  }

  /** Screen readers hear a new answer, at most every second and a half. */
  #announce(text) {
    const now = performance.now();
    if (text === this.#announced || now - this.#announcedAt < ANNOUNCE_EVERY_MS) return;
    this.#announced = text;
    this.#announcedAt = now;
    element("announcement").textContent = text;
  }
}

/** Dim what the network does not see, and lay the heat map over what it sees. */
export function drawOverlay({ width, height, visible, heat }) {
  const canvas = element("overlay");
  const scale = OVERLAY_SIDE / Math.max(width, height);
  canvas.width = Math.round(width * scale);
  canvas.height = Math.round(height * scale);
  const context = canvas.getContext("2d");
  const { x, y, width: w, height: h } = visible;
  const part = [x * scale, y * scale, w * scale, h * scale];
  context.fillStyle = "rgb(0 0 0 / 55%)";
  context.fillRect(0, 0, canvas.width, canvas.height);
  context.clearRect(...part);
  if (!heat) return;
  const small = new OffscreenCanvas(heat.width, heat.height);
  small.getContext("2d").putImageData(colourHeat(heat), 0, 0);
  context.imageSmoothingQuality = "high";
  context.drawImage(small, ...part);
}

export function clearOverlay() {
  const canvas = element("overlay");
  canvas.getContext("2d").clearRect(0, 0, canvas.width, canvas.height);
}

export function showFigures(summary, live) {
  const fps = live && summary.fps ? summary.fps.toFixed(1) : "–";
  element("figure-fps").textContent = fps;
  element("figure-p50").textContent = milliseconds(summary.infer_p50_ms);
  element("figure-p90").textContent = milliseconds(summary.infer_p90_ms);
  element("figure-total").textContent = milliseconds(summary.total_p50_ms);
  element("speed").hidden = fps === "–";
  element("fps").textContent = `${fps} frames/s`;
}

export function showTestResult(outcome) {
  const { images: n, runtime, tolerance } = outcome;
  const kind = outcome.passed ? "passed" : outcome.decoder_differs ? "differs" : "failed";
  const verdict = {
    passed: "Passed",
    differs: "Same answers, other pixels",
    failed: "Failed",
  }[kind];
  const lines = [
    `${outcome.top1_equal} of ${n} first answers are those of ${runtime}; ` +
      `${outcome.pixels_equal} of ${n} images have the same pixels, bit for bit; ` +
      `logits differ by at most ${outcome.largest_difference.toPrecision(2)} (allowed: ${tolerance.toPrecision(2)}).`,
  ];
  if (kind === "differs") {
    lines.push("This browser decodes some image files with another rounding than the reference did.");
  }
  if (kind === "failed") {
    const some = outcome.differing.slice(0, 5).join(", ");
    lines.push(`Different: ${some}. Try the other entry under "Runs on", or another browser.`);
  }
  const heading = document.createElement("p");
  heading.className = `verdict ${kind}`;
  heading.textContent = verdict;
  const paragraphs = lines.map((line) => {
    const paragraph = document.createElement("p");
    paragraph.className = "small";
    paragraph.textContent = line;
    return paragraph;
  });
  const result = element("test-result");
  result.dataset.outcome = JSON.stringify(outcome);
  result.replaceChildren(heading, ...paragraphs);
}

