// From decoded pixels to the network's input, bit for bit as in training.
//
// Training resizes with Pillow's antialiased filters, which work in fixed point on 8-bit pixels. A
// browser's own scaler gives other pixels on every engine, so the same arithmetic is written out here:
// coefficients in double precision, rounded to 22 bits, a horizontal pass, 8-bit pixels in between, then a
// vertical pass. Only what the centre crop keeps is computed; every computed pixel is what Pillow's is.

const PRECISION_BITS = 32 - 8 - 2;
export const MAX_IMAGE_PIXELS = 40_000_000;
export const MIN_IMAGE_SIDE = 8;

const FILTERS = {
  bilinear: { support: 1, weight: (x) => (Math.abs(x) < 1 ? 1 - Math.abs(x) : 0) },
  bicubic: { support: 2, weight: bicubic },
};

function bicubic(value) {
  const a = -0.5;
  const x = Math.abs(value);
  if (x < 1) return ((a + 2) * x - (a + 3)) * x * x + 1;
  if (x < 2) return (((x - 5) * x + 8) * x - 4) * a;
  return 0;
}

/** Round half to even, as Python's round() does for the crop's offset. */
function roundHalfEven(value) {
  const low = Math.floor(value);
  const rest = value - low;
  if (rest !== 0.5) return Math.round(value);
  return low % 2 === 0 ? low : low + 1;
}

/**
 * Size after resizing and before cropping: the short side becomes `resize`, the long one is rounded down.
 * @returns {[number, number]} width and height
 */
export function resizedSize(width, height, { size, resize }) {
  if (resize === null) return [size, size];
  if (width <= height) return [resize, Math.max(resize, Math.floor((resize * height) / width))];
  return [Math.max(resize, Math.floor((resize * width) / height)), resize];
}

/**
 * The part of an image that the network sees, in the image's own pixels.
 * @returns {{x: number, y: number, width: number, height: number}}
 */
export function visiblePart(width, height, preprocess) {
  const [newWidth, newHeight] = resizedSize(width, height, preprocess);
  const { size } = preprocess;
  const left = roundHalfEven((newWidth - size) / 2);
  const top = roundHalfEven((newHeight - size) / 2);
  return {
    x: (left * width) / newWidth,
    y: (top * height) / newHeight,
    width: (size * width) / newWidth,
    height: (size * height) / newHeight,
  };
}

/**
 * Fixed-point weights of one axis, for outputs `first` to `first + count - 1` of `outSize`.
 * @returns {{starts: Int32Array, lengths: Int32Array, weights: Int32Array, stride: number}}
 */
function coefficients(inSize, outSize, first, count, filter) {
  const scale = inSize / outSize;
  const filterScale = Math.max(scale, 1);
  const support = filter.support * filterScale;
  const stride = Math.ceil(support) * 2 + 1;
  const starts = new Int32Array(count);
  const lengths = new Int32Array(count);
  const weights = new Int32Array(count * stride);
  const exact = new Float64Array(stride);
  const step = 1 / filterScale;
  for (let out = 0; out < count; out++) {
    const center = (first + out + 0.5) * scale;
    const start = Math.max(0, Math.trunc(center - support + 0.5));
    const end = Math.min(inSize, Math.trunc(center + support + 0.5));
    let sum = 0;
    for (let i = 0; i < end - start; i++) {
      exact[i] = filter.weight((i + start - center + 0.5) * step);
      sum += exact[i];
    }
    for (let i = 0; i < end - start; i++) {
      const weight = sum === 0 ? exact[i] : exact[i] / sum;
      const scaled = weight * (1 << PRECISION_BITS);
      weights[out * stride + i] = Math.trunc(weight < 0 ? scaled - 0.5 : scaled + 0.5);
    }
    starts[out] = start;
    lengths[out] = end - start;
  }
  return { starts, lengths, weights, stride };
}

/**
 * One pass over rows: each of `count` outputs is a weighted sum along the row.
 * `pixelStep` and `lineStep` say how far apart neighbours along and across the pass lie in the source.
 */
function pass(source, sourcePixelStep, sourceLineStep, target, targetPixelStep, targetLineStep, lines, axis) {
  const { starts, lengths, weights, stride } = axis;
  const half = 1 << (PRECISION_BITS - 1);
  for (let line = 0; line < lines; line++) {
    const lineStart = line * sourceLineStep;
    let to = line * targetLineStep;
    for (let out = 0; out < starts.length; out++) {
      let from = lineStart + starts[out] * sourcePixelStep;
      const base = out * stride;
      const end = base + lengths[out];
      let red = half;
      let green = half;
      let blue = half;
      for (let k = base; k < end; k++) {
        const weight = weights[k];
        red = (red + Math.imul(source[from], weight)) | 0;
        green = (green + Math.imul(source[from + 1], weight)) | 0;
        blue = (blue + Math.imul(source[from + 2], weight)) | 0;
        from += sourcePixelStep;
      }
      // Uint8ClampedArray clips to 0..255, as Pillow does after the shift.
      target[to] = red >> PRECISION_BITS;
      target[to + 1] = green >> PRECISION_BITS;
      target[to + 2] = blue >> PRECISION_BITS;
      to += targetPixelStep;
    }
  }
}

/** Source positions of the nearest-neighbour filter, accumulated in double precision as Pillow does. */
function nearestPositions(inSize, outSize, first, count) {
  const step = inSize / outSize;
  const positions = new Int32Array(count);
  let place = step * 0.5;
  for (let out = 0; out < first + count; out++) {
    if (out >= first) positions[out - first] = Math.min(inSize - 1, Math.trunc(place));
    place += step;
  }
  return positions;
}

function nearest(rgba, width, height, newWidth, newHeight, left, top, size) {
  const columns = nearestPositions(width, newWidth, left, size);
  const rows = nearestPositions(height, newHeight, top, size);
  const pixels = new Uint8ClampedArray(size * size * 3);
  let to = 0;
  for (const row of rows) {
    for (const column of columns) {
      const from = (row * width + column) * 4;
      pixels[to++] = rgba[from];
      pixels[to++] = rgba[from + 1];
      pixels[to++] = rgba[from + 2];
    }
  }
  return pixels;
}

/**
 * Resize and crop around the centre.
 * @param {Uint8ClampedArray|Uint8Array} rgba Decoded pixels, 4 bytes each; alpha is ignored.
 * @param {number} width
 * @param {number} height
 * @param {{size: number, resize: ?number, interpolation: string}} preprocess As in model.json.
 * @returns {Uint8ClampedArray} size x size x 3, row by row
 * @throws {RangeError} If the filter is not known or the image is too elongated to be resized.
 */
export function resizeAndCrop(rgba, width, height, preprocess) {
  const { size, interpolation } = preprocess;
  const [newWidth, newHeight] = resizedSize(width, height, preprocess);
  if (newWidth * Math.max(height, newHeight) > MAX_IMAGE_PIXELS) {
    throw new RangeError(`An image of ${width} x ${height} pixels is too elongated. Crop it and try again.`);
  }
  const left = roundHalfEven((newWidth - size) / 2);
  const top = roundHalfEven((newHeight - size) / 2);
  if (interpolation === "nearest" || (newWidth === width && newHeight === height)) {
    return nearest(rgba, width, height, newWidth, newHeight, left, top, size);
  }
  const filter = FILTERS[interpolation];
  if (!filter) {
    throw new RangeError(`model.json asks for the interpolation "${interpolation}", which this page lacks.`);
  }

  // Rows that the vertical pass reads; the horizontal pass makes these only.
  const vertical = coefficients(height, newHeight, top, size, filter);
  const firstRow = vertical.starts[0];
  const lastRow = vertical.starts[size - 1] + vertical.lengths[size - 1];
  const lines = lastRow - firstRow;
  let wide = new Uint8ClampedArray(lines * size * 3);
  if (newWidth === width) {
    for (let line = 0; line < lines; line++) {
      for (let x = 0; x < size; x++) {
        const from = ((firstRow + line) * width + left + x) * 4;
        wide.set(rgba.subarray(from, from + 3), (line * size + x) * 3);
      }
    }
  } else {
    const horizontal = coefficients(width, newWidth, left, size, filter);
    pass(rgba.subarray(firstRow * width * 4), 4, width * 4, wide, 3, size * 3, lines, horizontal);
  }
  const pixels = new Uint8ClampedArray(size * size * 3);
  if (newHeight === height) {
    // No vertical pass: a window of one row with weight one would be the same, and slower.
    wide = wide.subarray((top - firstRow) * size * 3);
    pixels.set(wide.subarray(0, pixels.length));
    return pixels;
  }
  for (let i = 0; i < size; i++) vertical.starts[i] -= firstRow;
  pass(wide, size * 3, 3, pixels, size * 3, 3, size, vertical);
  return pixels;
}

/**
 * Scale to [0, 1], subtract the mean, divide by the deviation, each step in float32; channels first.
 * @param {Uint8ClampedArray} pixels size x size x 3
 * @param {{size: number, mean: number[], std: number[]}} preprocess
 * @returns {Float32Array} 3 x size x size
 */
export function normalizePixels(pixels, { size, mean, std }) {
  const area = size * size;
  const input = new Float32Array(3 * area);
  for (let channel = 0; channel < 3; channel++) {
    // There are 256 values only. Math.fround rounds each step to float32, as NumPy does.
    const table = new Float32Array(256);
    const shift = Math.fround(mean[channel]);
    const deviation = Math.fround(std[channel]);
    for (let value = 0; value < 256; value++) {
      table[value] = Math.fround(Math.fround(value / 255) - shift) / deviation;
    }
    for (let i = 0, from = channel, to = channel * area; i < area; i++, from += 3, to++) {
      input[to] = table[pixels[from]];
    }
  }
  return input;
}
