// Cameras, and what to say where there is none.

import { KitError } from "./integrity.js";

const REASONS = {
  NotAllowedError: [
    "The camera was refused: the browser or the system does not let this page use it.",
    "Allow the camera in the address bar's site settings, then press Start camera again.",
  ],
  NotFoundError: [
    "No camera was found.",
    "Connect one, or open an image or a video file instead.",
  ],
  NotReadableError: [
    "The camera is there but could not be started; another program may be using it.",
    "Close that program, then press Start camera again.",
  ],
  OverconstrainedError: [
    "The chosen camera is no longer there.",
    "Choose another camera, or press Start camera again.",
  ],
};

/**
 * @param {string} [deviceId] Of a camera that was chosen.
 * @returns {Promise<MediaStream>}
 * @throws {KitError}
 */
export async function openCamera(deviceId = "") {
  if (!navigator.mediaDevices?.getUserMedia) {
    throw isSecureContext
      ? new KitError("This browser has no access to cameras.", "Open an image or a video file instead.")
      : new KitError(
          "Browsers give the camera to secure pages only, and this one came over plain HTTP.",
          "Open it by https://, or on the same machine by http://localhost. Image files work here too.",
        );
  }
  const wanted = deviceId ? { deviceId: { exact: deviceId } } : { facingMode: { ideal: "environment" } };
  try {
    return await navigator.mediaDevices.getUserMedia({
      audio: false,
      video: { ...wanted, width: { ideal: 640 }, height: { ideal: 480 } },
    });
  } catch (error) {
    const [what, fix] = REASONS[error.name] ?? [
      `The camera could not be started (${error.message || error.name}).`,
      "Open an image or a video file instead.",
    ];
    throw new KitError(what, fix);
  }
}

/** Cameras by name; names are known only after one was allowed. */
export async function listCameras() {
  const devices = await navigator.mediaDevices.enumerateDevices();
  return devices
    .filter(({ kind, deviceId }) => kind === "videoinput" && deviceId)
    .map(({ deviceId, label }, i) => ({ deviceId, label: label || `Camera ${i + 1}` }));
}

/** Whether a stream comes from a camera that faces the user, whose picture people expect mirrored. */
export function facesUser(stream) {
  const facing = stream.getVideoTracks()[0]?.getSettings().facingMode;
  return facing === "user";
}
