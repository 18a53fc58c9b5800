// Photographs that were given: their findings by each model, and heat maps over them.

import { ask, formOf } from "./api.js";
import { showSimilar } from "./cases.js";
import { byId, clearErrors, make, percent, say, sentence, showError, signed, whileWorking } from "./dom.js";

const photographs = [];
let about = null;
let known, unknown;
const ready = new Promise((resolve, reject) => [known, unknown] = [resolve, reject]);
ready.catch(() => {}); // told by the page already; each photograph tells it again
let current = null;
let latestMap = 0;

export function prepare(server) {
  about = server;
  const select = byId("map-model");
  select.replaceChildren(
    ...server.models.filter((model) => model.texts).map((model) => make("option", { value: model.name }, model.name)),
  );
  const several = server.models.length > 1 && select.options.length > 1;
  for (const element of document.querySelectorAll(".compare-only")) element.hidden = !several;
  byId("map-controls").hidden = select.options.length === 0;
  const labels = new Set(server.models.flatMap((model) => model.labels));
  byId("map-labels").replaceChildren(...[...labels].map((label) => make("option", { value: label })));
  known();
}

/** The server did not say what it is: photographs that wait for it are told so. */
export function giveUp(error) {
  unknown(error);
}

/** Take files one after another; the first is shown as soon as it is read. */
export async function take(files) {
  clearErrors();
  const list = [...files];
  let done = 0;
  for (const file of list) {
    const message = list.length > 1 ? `Reading photograph ${done + 1} of ${list.length}…` : "Reading the photograph…";
    try {
      await whileWorking(message, read(file));
    } catch (error) {
      showError(`${file.name || "the pasted picture"}: ${error.message}`);
    }
    done += 1;
  }
}

async function read(file) {
  await ready; // a photograph may be dropped before the page knows its server
  const limit = about.limits.file_bytes;
  if (file.size > limit) {
    throw new Error(`the file has ${(file.size / 2 ** 20).toFixed(1)} MB, this server takes ${(limit / 2 ** 20).toFixed(0)} MB`);
  }
  const able = about.models.filter((model) => model.labels.length);
  const answers = await Promise.all(
    able.map((model) => ask("/findings", { form: formOf(file, { model: model.name }) })),
  );
  const photograph = { file, answers, source: await sourceOf(file), maps: new Map() };
  photographs.push(photograph);
  addThumbnail(photograph);
  byId("results").hidden = false;
  show(photograph);
  byId("results-title").focus({ preventScroll: true });
  byId("results").scrollIntoView({ block: "start" });
}

/** What an image element can show: the file itself, or the server's PNG of it (DICOM, TIFF). */
async function sourceOf(file) {
  try {
    (await createImageBitmap(file)).close();
    return URL.createObjectURL(file);
  } catch {
    return URL.createObjectURL(await ask("/preview", { form: formOf(file), kind: "blob" }));
  }
}

function addThumbnail(photograph) {
  const name = photograph.file.name || "pasted";
  photograph.button = make(
    "button",
    { type: "button", class: "thumbnail", "aria-pressed": "false", onclick: () => show(photograph) },
    make("img", { src: photograph.source, alt: "" }),
    make("span", {}, name),
  );
  byId("strip").append(photograph.button);
  byId("strip").hidden = photographs.length < 2;
}

function show(photograph) {
  current = photograph;
  for (const other of photographs) other.button.setAttribute("aria-pressed", String(other === photograph));
  const name = photograph.file.name || "pasted";
  byId("photo").src = photograph.source;
  byId("photo").alt = `The photograph ${name}`;
  clearMap();
  const info = photograph.answers[0]?.results[0].photograph;
  byId("photo-facts").textContent = info
    ? `${info.name}, ${info.kind}, ${info.size.width} × ${info.size.height} px. For the model: ${info.notes.join(", ")}.`
    : name;
  byId("panels").replaceChildren(...photograph.answers.map((answer) => panel(answer, photograph)));
  if (photograph.answers.length === 0) {
    byId("panels").replaceChildren(make("p", { class: "message" }, "This model has no texts and no head: it gives no findings."));
  }
  announce(photograph);
  if (about.index !== null) showSimilar(photograph.file);
}

function announce(photograph) {
  const said = photograph.answers.map((answer) => {
    const first = answer.results[0].findings[0];
    const by = photograph.answers.length > 1 ? `${answer.model}: ` : "";
    return answer.results[0].abstained ? `${by}undecided` : `${by}first ${first.label}, ${amount(first, answer)}`;
  });
  say(`${photograph.file.name || "Photograph"}: ${said.join("; ") || "read"}.`);
}

function panel(answer, photograph) {
  const result = answer.results[0];
  const title = photograph.answers.length > 1 ? `Findings by ${answer.model}` : "What the model sees";
  const model = about.models.find((one) => one.name === answer.model);
  const lines = result.findings.map((finding) => line(finding, answer, model));
  return make(
    "section",
    { class: "panel", "aria-label": title },
    make("h3", {}, title),
    result.abstained
      ? make("p", { class: "message warning" }, make("strong", {}, "The model abstains. "), "It is not certain enough of any finding here.")
      : null,
    answer.calibrated
      ? make("p", { class: "small" }, "Calibrated: of photographs given 70 %, about 70 of 100 had the finding on the validation set.")
      : make("p", { class: "message warning" }, make("strong", {}, "Not calibrated. "), "The numbers put findings in order; 0.70 does not mean 70 of 100."),
    make("p", { class: "small" }, answer.kind === "exclusive" ? "Just one of these holds; together they make 1." : "Each finding is judged by itself."),
    make("ol", { class: "findings" }, ...lines),
  );
}

const amount = (finding, answer) =>
  finding.probability === null
    ? `score ${finding.score.toFixed(2)}`
    : answer.calibrated
      ? percent(finding.probability)
      : finding.probability.toFixed(2);

function line(finding, answer, model) {
  const bar = make("span", { class: `bar ${answer.calibrated ? "" : "uncalibrated"}`, "aria-hidden": "true" }, make("span", { class: "fill" }));
  bar.firstChild.style.width = `${100 * (finding.probability ?? 0)}%`;
  const state = !finding.certain ? "undecided" : finding.found ? "present" : "";
  return make(
    "li",
    { class: `finding ${finding.certain ? "" : "uncertain"}` },
    make("span", { class: "name" }, sentence(finding.label), state ? make("span", { class: `chip ${state}` }, state) : null),
    make("span", { class: "amount" }, amount(finding, answer)),
    bar,
    model?.texts
      ? make(
          "button",
          {
            type: "button",
            class: "where",
            "aria-label": `Show where ${finding.label} is, by ${answer.model}`,
            "aria-pressed": "false",
            onclick: (event) => showMap(finding.label, answer.model, event.currentTarget),
          },
          "Where?",
        )
      : null,
  );
}

export function askForMap(event) {
  event.preventDefault();
  const text = byId("map-text").value.trim();
  clearErrors();
  if (!text) {
    showError("give a finding or words to look for in the photograph, e.g. drusen");
    byId("map-text").focus();
    return;
  }
  showMap(text, byId("map-model").value, null);
}

async function showMap(text, model, button) {
  if (button?.getAttribute("aria-pressed") === "true") {
    clearMap();
    return;
  }
  const photograph = current;
  const mine = (latestMap += 1);
  const name = `${model}\n${text}`;
  clearErrors();
  try {
    if (!photograph.maps.has(name)) {
      const form = formOf(photograph.file, { text, model });
      photograph.maps.set(name, await whileWorking(`Looking where ${text} is…`, ask("/map", { form })));
    }
    if (mine !== latestMap || photograph !== current) return;
    const map = photograph.maps.get(name);
    press(button);
    const heat = byId("heat");
    heat.src = `data:image/png;base64,${map.image}`;
    heat.alt = `Heat map of ${text}`;
    heat.hidden = false;
    byId("opacity-line").hidden = false;
    fade();
    byId("map-text").value = text;
    const strongest = Math.max(...map.grid.flat());
    byId("map-legend").textContent =
      strongest > map.low
        ? `Bright: where the photograph is most like “${text}”, at most ${signed(strongest)} (cosine${map.contrast ? " above a normal fundus" : ""}), by ${map.model}.`
        : `Nowhere is the photograph nearer to “${text}” than to a normal fundus, says ${map.model}.`;
    say(strongest > map.low ? `Heat map of ${text} shown.` : `Nothing of ${text} was found.`);
  } catch (error) {
    showError(`heat map: ${error.message}`);
  }
}

export function clearMap() {
  latestMap += 1;
  byId("heat").hidden = true;
  byId("heat").removeAttribute("src");
  byId("opacity-line").hidden = true;
  byId("map-legend").textContent = "";
  press(null);
}

function press(button) {
  for (const other of document.querySelectorAll(".where")) other.setAttribute("aria-pressed", String(other === button));
}

export function fade() {
  const share = Number(byId("opacity").value);
  byId("heat").style.opacity = String(share / 100);
  byId("opacity-value").textContent = `${share} %`;
}

export const currentFile = () => current?.file ?? null;
