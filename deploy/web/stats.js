// Frames per second and percentiles over the last frames.

const KEPT = 200;
const WINDOW_MS = 3000;

/** The value below which a share of the values lies (nearest rank). */
export function percentile(values, share) {
  const sorted = [...values].sort((a, b) => a - b);
  return sorted[Math.max(0, Math.ceil(share * sorted.length) - 1)];
}

export class FrameStats {
  constructor() {
    this.reset();
  }

  reset() {
    this.ends = [];
    this.infer = [];
    this.total = [];
  }

  /** @param {number} at When the frame's result was there, in milliseconds of performance.now(). */
  add(at, times) {
    this.ends.push(at);
    this.infer.push(times.infer_ms);
    this.total.push(times.total_ms);
    for (const list of [this.ends, this.infer, this.total]) if (list.length > KEPT) list.shift();
  }

  summary() {
    const recent = this.ends.filter((end) => end >= this.ends.at(-1) - WINDOW_MS);
    const span = recent.at(-1) - recent[0];
    return {
      frames: this.infer.length,
      fps: recent.length > 1 && span > 0 ? (1000 * (recent.length - 1)) / span : null,
      infer_p50_ms: percentile(this.infer, 0.5),
      infer_p90_ms: percentile(this.infer, 0.9),
      total_p50_ms: percentile(this.total, 0.5),
    };
  }
}
