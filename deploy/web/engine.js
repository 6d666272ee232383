// The page's side of the worker.

import { KitError } from "./integrity.js";

export class Engine {
  /**
   * Start a worker and open the model in it. Backend and threads belong to the worker: to change them, close
   * it and start another.
   * @param {{kit: object, model: object, backend: string, threads: number}} options
   */
  static async start(options) {
    const engine = new Engine(takeEarlyWorker(options) ?? new Worker("worker.js", { type: "module" }));
    try {
      engine.opened = await engine.#ask("open", options);
    } catch (error) {
      engine.close();
      throw error;
    }
    return engine;
  }

  #worker;
  #waiting = new Map();
  #lastId = 0;

  constructor(worker) {
    this.#worker = worker;
    this.#worker.addEventListener("message", ({ data }) => {
      const waiting = this.#waiting.get(data.id);
      if (!waiting) return;
      if (data.progress) {
        waiting.progress?.(data.progress);
        return;
      }
      this.#waiting.delete(data.id);
      if (data.error) waiting.reject(new KitError(data.error.what, data.error.fix));
      else waiting.resolve(data.result);
    });
    this.#worker.addEventListener("error", (event) => {
      const problem = new KitError(
        `The page's worker stopped (${event.message || "its program could not be loaded"}).`,
        "Reload the page; if that does not help, copy the kit to the server again.",
      );
      for (const { reject } of this.#waiting.values()) reject(problem);
      this.#waiting.clear();
    });
  }

  /** @param {ImageBitmap|Blob} source A bitmap is handed over and cannot be used afterwards. */
  classify(source, heat) {
    return this.#ask("classify", { source, heat }, { transfer: source instanceof ImageBitmap ? [source] : [] });
  }

  selftest(progress) {
    return this.#ask("selftest", {}, { progress });
  }

  close() {
    this.#worker.terminate();
    for (const { reject } of this.#waiting.values()) reject(new KitError("The engine was closed."));
    this.#waiting.clear();
  }

  #ask(task, request, { transfer = [], progress = null } = {}) {
    const id = ++this.#lastId;
    return new Promise((resolve, reject) => {
      this.#waiting.set(id, { resolve, reject, progress });
      this.#worker.postMessage({ id, task, ...request }, transfer);
    });
  }
}

/** boot.js starts a worker that already loads what the page asks for at first. */
function takeEarlyWorker({ backend, threads }) {
  const worker = globalThis.edgeattnEarlyWorker;
  globalThis.edgeattnEarlyWorker = null;
  if (worker && (backend !== "wasm" || threads !== 1)) worker.terminate();
  return backend === "wasm" && threads === 1 ? worker : null;
}
