// Talking to the server: the key, retries when it is busy, errors in plain words.

import { byId } from "./dom.js";

const BASE = "/api/v1";
const TRIES = 4;

export class Failed extends Error {}

let key = sessionStorage.getItem("maskedclip-key") || "";
let asking = null;

/** The answer to a GET, or to a POST where a form is given. */
export async function ask(path, { form = null, query = null, signal = null, kind = "json" } = {}) {
  const address = BASE + path + (query ? `?${new URLSearchParams(query)}` : "");
  for (let tries = 1; ; tries += 1) {
    let response;
    try {
      response = await fetch(address, {
        method: form ? "POST" : "GET",
        body: form,
        signal,
        headers: key ? { "X-API-Key": key } : {},
        credentials: "omit",
      });
    } catch (error) {
      if (error.name === "AbortError") throw error;
      throw new Failed(
        form
          ? "the server closed the connection; the file may be too large, or the server may have stopped"
          : "the server cannot be reached; is it still running?",
      );
    }
    if (response.ok) return kind === "blob" ? response.blob() : response.json();
    const said = await response.json().catch(() => null);
    const message = said?.error?.message || `the server answered with status ${response.status}`;
    if (response.status === 401) {
      await askForKey(key ? message : "");
      continue;
    }
    if (response.status === 429 && tries < TRIES) {
      await new Promise((resolve) => setTimeout(resolve, 1000 * Number(response.headers.get("Retry-After") || 2)));
      continue;
    }
    throw new Failed(message);
  }
}

/** One question at a time, however many requests need the key. */
function askForKey(problem) {
  asking ??= new Promise((resolve) => {
    const dialog = byId("key-dialog");
    const error = byId("key-error");
    error.textContent = problem;
    error.hidden = !problem;
    byId("key").value = "";
    dialog.addEventListener("cancel", (event) => event.preventDefault());
    byId("key-form").onsubmit = (event) => {
      event.preventDefault();
      key = byId("key").value.trim();
      sessionStorage.setItem("maskedclip-key", key);
      dialog.close();
      asking = null;
      resolve();
    };
    dialog.showModal();
    byId("key").focus();
  });
  return asking;
}

/** A form with one file and some fields. */
export function formOf(file, fields = {}) {
  const form = new FormData();
  form.append("file", file, file.name || "pasted");
  for (const [name, value] of Object.entries(fields)) {
    if (value !== null && value !== undefined && value !== "") form.append(name, value);
  }
  return form;
}
