// Reads resize cases from a folder (cases.json and raw pixels), writes what the page's code makes of them.
import { readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { pathToFileURL } from "node:url";

const [, , modulePath, folder] = process.argv;
const { resizeAndCrop, normalizePixels } = await import(pathToFileURL(modulePath));
for (const { name, width, height, preprocess } of JSON.parse(readFileSync(join(folder, "cases.json")))) {
  const rgb = readFileSync(join(folder, `${name}.rgb`));
  const rgba = new Uint8ClampedArray(width * height * 4).fill(255);
  for (let i = 0; i < width * height; i++) rgba.set(rgb.subarray(3 * i, 3 * i + 3), 4 * i);
  const pixels = resizeAndCrop(rgba, width, height, preprocess);
  writeFileSync(join(folder, `${name}.pixels`), pixels);
  writeFileSync(join(folder, `${name}.input`), new Uint8Array(normalizePixels(pixels, preprocess).buffer));
}
