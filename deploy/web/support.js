// What the page needs of a browser.

import { KitError } from "./integrity.js";

// A small module that uses one 128-bit instruction: the runtime's build needs these.
const SIMD_PROBE = Uint8Array.of(
  0, 97, 115, 109, 1, 0, 0, 0, 1, 5, 1, 96, 0, 1, 123, 3, 2, 1, 0, 10, 10, 1, 8, 0, 65, 0, 253, 15, 253, 98, 11,
);

/**
 * Check that this browser can run the network, before anything large is loaded.
 * @throws {KitError} If it cannot.
 */
export function checkBrowser() {
  if (typeof WebAssembly !== "object") {
    throw new KitError(
      "This browser has WebAssembly switched off or does not have it, and the network runs in it.",
      "Switch it on (some hardened modes disable it), or use a current Chrome, Edge, Firefox or Safari.",
    );
  }
  if (!WebAssembly.validate(SIMD_PROBE)) {
    throw new KitError(
      "This browser's WebAssembly lacks the 128-bit SIMD instructions that the network needs.",
      "Update the browser: Chrome and Edge 91, Firefox 89 and Safari 16.4 have them, and newer ones.",
    );
  }
  if (typeof OffscreenCanvas !== "function") {
    throw new KitError(
      "This browser cannot draw in the background (OffscreenCanvas), which reading images needs.",
      "Update the browser: Chrome and Edge 69, Firefox 105 and Safari 16.4 can, and newer ones.",
    );
  }
}
