// Small helpers: elements, messages, numbers.

export const byId = (id) => document.getElementById(id);

/** An element with attributes and children; text is never read as HTML. */
export function make(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (value === null || value === undefined || value === false) continue;
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else element.setAttribute(name, value === true ? "" : value);
  }
  element.append(...children.filter((child) => child !== null && child !== undefined));
  return element;
}

export function say(message) {
  byId("status").textContent = message;
}

let working = 0;

/** Shows that something is going on until the promise has settled. */
export async function whileWorking(message, promise) {
  working += 1;
  byId("working").hidden = false;
  say(message);
  try {
    return await promise;
  } finally {
    working -= 1;
    if (working === 0) byId("working").hidden = true;
  }
}

export function clearErrors() {
  byId("errors").replaceChildren();
}

export function showError(message) {
  const box = make("p", { class: "message error" }, make("strong", {}, "That did not work: "), message);
  byId("errors").append(box);
  box.scrollIntoView({ block: "nearest" });
  say("");
}

export const sentence = (text) => text.charAt(0).toUpperCase() + text.slice(1);

export function megabytes(bytes) {
  const value = bytes / 2 ** 20;
  return `${value >= 10 ? Math.round(value) : Number(value.toPrecision(2))} MB`;
}

export const signed = (value) => `${value < 0 ? "−" : "+"}${Math.abs(value).toFixed(2)}`;

export const percent = (value) => (value > 0.995 && value < 1 ? "> 99" : value < 0.005 && value > 0 ? "< 1" : Math.round(100 * value)) + " %";
