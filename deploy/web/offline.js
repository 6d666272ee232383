// Keeps the kit in this browser, so that it opens with no network.

import { element } from "./view.js";

export async function setUpOffline() {
  const say = (text) => (element("offline").textContent = text);
  if (!("serviceWorker" in navigator)) {
    say(
      isSecureContext
        ? "This browser cannot keep the page for use without a network."
        : "Served over HTTPS (or on localhost), the page also works without a network.",
    );
    return;
  }
  say("Keeping the page for use without a network…");
  try {
    const registration = await navigator.serviceWorker.register("sw.js");
    registration.addEventListener("updatefound", () => followInstall(registration, say));
    if (registration.installing) followInstall(registration, say);
    if (registration.waiting && registration.active) offerUpdate(registration.waiting);
    await navigator.serviceWorker.ready;
    say("Ready for use without a network.");
    document.documentElement.dataset.offline = "ready";
  } catch (error) {
    say(`The page could not be kept for use without a network (${error.message}). It works as long as the server runs.`);
  }
}

function followInstall(registration, say) {
  const worker = registration.installing;
  worker.addEventListener("statechange", () => {
    if (worker.state === "installed" && navigator.serviceWorker.controller) offerUpdate(worker);
    if (worker.state === "redundant" && !registration.active) {
      say("The page could not be kept for use without a network: a file is missing or damaged, or storage is full.");
    }
  });
}

function offerUpdate(worker) {
  element("update").hidden = false;
  element("update-now").addEventListener("click", () => {
    navigator.serviceWorker.addEventListener("controllerchange", () => location.reload());
    worker.postMessage("activate");
  });
}
