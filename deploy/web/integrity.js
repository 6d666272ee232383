// Files are used only if their SHA-256 is the one that was recorded when the kit was made.

const ATTEMPTS = 3;
const RETRY_AFTER_MS = 200;

/** What went wrong and what to do about it, in words for the person in front of the page. */
export class KitError extends Error {
  /**
   * @param {string} what Says what is wrong.
   * @param {string} fix Says what to do.
   */
  constructor(what, fix = "") {
    super(what);
    this.name = "KitError";
    this.fix = fix;
  }
}

/**
 * @param {Uint8Array} bytes
 * @returns {Promise<string>} hexadecimal
 */
export async function sha256(bytes) {
  // Browsers offer crypto.subtle on HTTPS and on localhost only; a kit may be opened over plain HTTP.
  const digest = globalThis.crypto?.subtle
    ? new Uint8Array(await crypto.subtle.digest("SHA-256", bytes))
    : sha256InScript(bytes);
  return Array.from(digest, (byte) => byte.toString(16).padStart(2, "0")).join("");
}

/**
 * Fetch a file of the kit and check it.
 * @param {URL|string} url
 * @param {{sha256: string, size_bytes: number}} expected
 * @returns {Promise<Uint8Array>}
 * @throws {KitError} If it cannot be fetched, or is not the file that was recorded.
 */
export async function fetchChecked(url, expected) {
  const name = new URL(url, globalThis.location.href).pathname.split("/").slice(-2).join("/");
  const response = await fetchPatiently(url, name);
  if (!response.ok) {
    throw new KitError(
      `The server answered ${response.status} for the file ${name}.`,
      "Copy the whole folder of the kit to the server, model/ and runtime/ included.",
    );
  }
  const bytes = new Uint8Array(await response.arrayBuffer());
  const found = await sha256(bytes);
  if (bytes.length !== expected.size_bytes || found !== expected.sha256) {
    throw new KitError(
      `The file ${name} is damaged or was changed: its SHA-256 is ${found.slice(0, 12)}…, ` +
        `${expected.sha256.slice(0, 12)}… was recorded (${bytes.length} of ${expected.size_bytes} bytes).`,
      "It was not used. Copy the kit to the server again, then reload the page.",
    );
  }
  return bytes;
}

/** Small servers refuse a connection now and then; one failure is no reason to stop. */
async function fetchPatiently(url, name) {
  for (let attempt = 1; ; attempt++) {
    try {
      return await fetch(url);
    } catch (error) {
      if (attempt === ATTEMPTS) {
        throw new KitError(
          `The file ${name} could not be loaded (${error.message}).`,
          "Check the connection and that the server still runs, then reload the page.",
        );
      }
      await new Promise((resolve) => setTimeout(resolve, RETRY_AFTER_MS * attempt));
    }
  }
}

// ------------------------------------------------------------------ SHA-256 (FIPS 180-4) without crypto.subtle

const PRIMES = firstPrimes(64);
const ROUND_CONSTANTS = Uint32Array.from(PRIMES, (prime) => fractionBits(Math.cbrt(prime)));
const START = Uint32Array.from(PRIMES.slice(0, 8), (prime) => fractionBits(Math.sqrt(prime)));

function firstPrimes(count) {
  const primes = [];
  for (let n = 2; primes.length < count; n++) {
    if (primes.every((prime) => n % prime !== 0)) primes.push(n);
  }
  return primes;
}

/** The first 32 bits behind the point; a double holds them exactly enough for these roots. */
function fractionBits(value) {
  return Math.floor((value - Math.floor(value)) * 2 ** 32);
}

const rotate = (word, bits) => (word >>> bits) | (word << (32 - bits));

export function sha256InScript(bytes) {
  const length = Math.ceil((bytes.length + 9) / 64) * 64;
  const tail = new Uint8Array(Math.min(length, 128));
  const whole = length - tail.length;
  tail.set(bytes.subarray(whole));
  tail[bytes.length - whole] = 0x80;
  const tailView = new DataView(tail.buffer);
  tailView.setUint32(tail.length - 8, Math.floor(bytes.length / 2 ** 29));
  tailView.setUint32(tail.length - 4, (bytes.length << 3) >>> 0);
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.length);

  const hash = START.slice();
  const words = new Uint32Array(64);
  for (let block = 0; block < length; block += 64) {
    const [source, offset] = block < whole ? [view, block] : [tailView, block - whole];
    for (let i = 0; i < 16; i++) words[i] = source.getUint32(offset + 4 * i);
    for (let i = 16; i < 64; i++) {
      const a = words[i - 15];
      const b = words[i - 2];
      const s0 = rotate(a, 7) ^ rotate(a, 18) ^ (a >>> 3);
      const s1 = rotate(b, 17) ^ rotate(b, 19) ^ (b >>> 10);
      words[i] = words[i - 16] + s0 + words[i - 7] + s1;
    }
    let [a, b, c, d, e, f, g, h] = hash;
    for (let i = 0; i < 64; i++) {
      const s1 = rotate(e, 6) ^ rotate(e, 11) ^ rotate(e, 25);
      const t1 = (h + s1 + ((e & f) ^ (~e & g)) + ROUND_CONSTANTS[i] + words[i]) | 0;
      const s0 = rotate(a, 2) ^ rotate(a, 13) ^ rotate(a, 22);
      const t2 = (s0 + ((a & b) ^ (a & c) ^ (b & c))) | 0;
      [h, g, f, e, d, c, b, a] = [g, f, e, (d + t1) | 0, c, b, a, (t1 + t2) | 0];
    }
    [a, b, c, d, e, f, g, h].forEach((word, i) => (hash[i] += word));
  }
  const digest = new DataView(new ArrayBuffer(32));
  hash.forEach((word, i) => digest.setUint32(4 * i, word));
  return new Uint8Array(digest.buffer);
}
