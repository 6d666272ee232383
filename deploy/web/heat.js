// From the model's extra outputs to one map of values in [0, 1].

/** What the page says about each kind of map. */
export const HEAT_KINDS = {
  evidence: {
    label: "Evidence",
    text:
      "Bright: places that speak for the first answer. It is the classifier's own weights applied before " +
      "the last pooling (a class activation map), so its mean is the answer's score.",
  },
  attention: {
    label: "Attention gates",
    text:
      "Bright: places where the attention modules let more of the signal through than elsewhere, averaged " +
      "over all modules. It shows what the gates do, not what the answer rests on.",
  },
};

/**
 * @param {Object<string, {data: Float32Array, dims: number[]}>} outputs Of the model with its heat part.
 * @param {{evidence: ?string, attention: string[]}} names Which outputs are what.
 * @param {string} kind
 * @param {number} classIndex Whose evidence.
 * @returns {{width: number, height: number, values: Float32Array}}
 */
export function composeHeat(outputs, names, kind, classIndex) {
  if (kind === "evidence") {
    const { data, dims } = outputs[names.evidence];
    const [, , height, width] = dims;
    const area = height * width;
    const values = data.slice(classIndex * area, (classIndex + 1) * area);
    // What speaks against the answer is shown as nothing.
    return { width, height, values: stretch(values.map((value) => Math.max(0, value))) };
  }
  const maps = names.attention.map((name) => outputs[name]);
  const width = Math.max(...maps.map(({ dims }) => dims[3]));
  const height = Math.max(...maps.map(({ dims }) => dims[2]));
  const sum = new Float32Array(width * height);
  for (const { data, dims } of maps) {
    const mean = data.reduce((total, value) => total + value, 0) / data.length || 1;
    addScaled(sum, width, height, data, dims[3], dims[2], 1 / mean);
  }
  return { width, height, values: stretch(sum) };
}

/** Add a map, scaled up bilinearly, to a larger one. */
function addScaled(sum, width, height, map, mapWidth, mapHeight, factor) {
  for (let y = 0; y < height; y++) {
    const v = Math.min(mapHeight - 1, Math.max(0, ((y + 0.5) * mapHeight) / height - 0.5));
    const top = Math.floor(v);
    const below = Math.min(mapHeight - 1, top + 1);
    for (let x = 0; x < width; x++) {
      const u = Math.min(mapWidth - 1, Math.max(0, ((x + 0.5) * mapWidth) / width - 0.5));
      const left = Math.floor(u);
      const right = Math.min(mapWidth - 1, left + 1);
      const upper = map[top * mapWidth + left] * (1 - u + left) + map[top * mapWidth + right] * (u - left);
      const lower = map[below * mapWidth + left] * (1 - u + left) + map[below * mapWidth + right] * (u - left);
      sum[y * width + x] += factor * (upper * (1 - v + top) + lower * (v - top));
    }
  }
}

/** Map the range between the 2nd and the 98th percentile to [0, 1]. */
function stretch(values) {
  const sorted = values.slice().sort();
  const from = sorted[Math.floor(0.02 * (sorted.length - 1))];
  const to = sorted[Math.ceil(0.98 * (sorted.length - 1))];
  return values.map((value) => (to > from ? Math.min(1, Math.max(0, (value - from) / (to - from))) : 0));
}

// Dark blue over violet and orange to pale yellow: brightness rises all the way, so the map also reads
// without colour vision.
const STOPS = [
  [0, 12, 8, 60],
  [0.35, 120, 28, 109],
  [0.65, 229, 92, 48],
  [0.85, 251, 180, 26],
  [1, 252, 255, 200],
];

/**
 * Colour a map; weak places are transparent, so that the picture is seen.
 * @returns {ImageData}
 */
export function colourHeat({ width, height, values }) {
  const image = new ImageData(width, height);
  values.forEach((value, i) => {
    const upper = Math.max(1, STOPS.findIndex(([at]) => at >= value));
    const [start, ...low] = STOPS[upper - 1];
    const [end, ...high] = STOPS[upper];
    const share = (value - start) / (end - start);
    for (let c = 0; c < 3; c++) image.data[4 * i + c] = low[c] + share * (high[c] - low[c]);
    image.data[4 * i + 3] = 255 * (0.25 + 0.5 * value);
  });
  return image;
}
