// Keeps every file of the kit in a cache of its own, named by the kit's version, and answers from there.
// precache.js is written with the kit; a changed version in it is what makes browsers install the new one.
"use strict";

importScripts("precache.js");

const SCOPE = new URL(self.registration.scope);
const PREFIX = `edgeattn-kit:${SCOPE.pathname}:`;
const CACHE = PREFIX + KIT.version;

const TYPES = {
  css: "text/css; charset=utf-8",
  html: "text/html; charset=utf-8",
  jpg: "image/jpeg",
  js: "text/javascript; charset=utf-8",
  json: "application/json",
  png: "image/png",
  svg: "image/svg+xml",
  txt: "text/plain; charset=utf-8",
  wasm: "application/wasm",
  webmanifest: "application/manifest+json",
};

// With these the page is cross-origin isolated, which threads in WebAssembly need, on any static server.
const HEADERS = {
  "Cross-Origin-Opener-Policy": "same-origin",
  "Cross-Origin-Embedder-Policy": "require-corp",
  "Cross-Origin-Resource-Policy": "same-origin",
  "X-Content-Type-Options": "nosniff",
};

self.addEventListener("install", (event) => event.waitUntil(fill()));
self.addEventListener("activate", (event) => event.waitUntil(takeOver()));
self.addEventListener("message", ({ data }) => {
  if (data === "activate") self.skipWaiting();
});
self.addEventListener("fetch", (event) => {
  const url = new URL(event.request.url);
  if (event.request.method !== "GET" || url.origin !== SCOPE.origin) return;
  if (!url.pathname.startsWith(SCOPE.pathname)) return;
  const name = decodeURIComponent(url.pathname.slice(SCOPE.pathname.length)) || "index.html";
  if (name in KIT.files) event.respondWith(answer(event.request, name));
});

async function fill() {
  const cache = await caches.open(CACHE);
  // One after the other: the page itself may still be loading.
  for (const [name, expected] of Object.entries(KIT.files)) {
    if (!expected.optional && !(await cache.match(key(name)))) await keep(cache, name, expected);
  }
}

async function keep(cache, name, { sha256, size_bytes }) {
  const response = await fetch(key(name), { cache: "no-cache" });
  if (!response.ok) throw new Error(`${name}: the server answered ${response.status}`);
  const bytes = await response.arrayBuffer();
  const digest = new Uint8Array(await crypto.subtle.digest("SHA-256", bytes));
  const found = Array.from(digest, (byte) => byte.toString(16).padStart(2, "0")).join("");
  if (bytes.byteLength !== size_bytes || found !== sha256) throw new Error(`${name} is not the recorded file`);
  const type = TYPES[name.split(".").pop()] ?? "application/octet-stream";
  const kept = new Response(bytes, { headers: { ...HEADERS, "Content-Type": type } });
  await cache.put(key(name), kept.clone());
  return kept;
}

const key = (name) => new URL(name, SCOPE).href;

async function takeOver() {
  for (const name of await caches.keys()) {
    if (name.startsWith(PREFIX) && name !== CACHE) await caches.delete(name);
  }
  await self.clients.claim();
}

async function answer(request, name) {
  const cache = await caches.open(CACHE);
  const kept = await cache.match(key(name));
  if (kept) return kept;
  try {
    // Evicted, or optional and asked for now.
    return await keep(cache, name, KIT.files[name]);
  } catch {
    return fetch(request);
  }
}
