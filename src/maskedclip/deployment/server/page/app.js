// The page: what the server is, and what happens when something is dropped, pasted, chosen or asked.

import { ask } from "./api.js";
import { searchWords, showSimilar } from "./cases.js";
import { byId, clearErrors, make, megabytes, showError } from "./dom.js";
import { askForMap, clearMap, currentFile, fade, giveUp, prepare, take } from "./photograph.js";

async function start() {
  let about;
  try {
    about = await ask("/model");
  } catch (error) {
    showError(error.message);
    giveUp(error);
    return;
  }
  prepare(about);
  const { limits } = about;
  byId("limits").textContent =
    `At most ${megabytes(limits.file_bytes)} and ${Math.round(limits.pixels / 1e6)} million pixels a photograph.`;
  byId("keeps").textContent = about.keeps_uploads
    ? "This server keeps the photographs that you give it, under random names."
    : "Photographs are read and forgotten; nothing is kept on the server.";
  byId("keeps").classList.toggle("keeps", about.keeps_uploads);
  byId("version").textContent = about.version;
  const searchable = about.index !== null;
  byId("similar").hidden = !searchable;
  const words = searchable && about.models.find((model) => model.name === about.index_model)?.texts;
  byId("search").hidden = byId("search-link").hidden = !words;
  const hint = about.filters.length
    ? `Filters name columns: ${about.filters.join(", ")}. For example: ${example(about.filters)}`
    : "This index has no column to filter by.";
  byId("filter-hint").textContent = byId("search-hint").textContent = hint;
  byId("cards").replaceChildren(...about.models.map(card));
  byId("file").disabled = false;
}

function example(columns) {
  const label = columns.find((name) => name.startsWith("label."));
  return label ? `${/^[\w.]+$/.test(label) ? label : `\`${label}\``} = 1` : `${columns[0]} is not null`;
}

function card(model) {
  const facts = [
    ["Fingerprint", model.fingerprint],
    ["Input", `${model.input_size} × ${model.input_size} px, crop: ${model.crop}`],
    ["Answers from", model.answers_from],
    ["Labels", model.labels.join(", ") || "none"],
    ["Probabilities", model.labels.length === 0 ? "none" : model.calibrated ? "calibrated on validation rows" : "not calibrated"],
    ["Leaves undecided", model.abstains ? `about ${Math.round(100 * model.abstains)} % of photographs` : "nothing"],
    ...Object.entries(model.trained_on).map(([name, value]) => [
      `Trained on: ${name.replaceAll("_", " ")}`,
      Array.isArray(value) ? value.map(number).join(" of ") : number(value),
    ]),
    ["Measured", model.measured.join("\n") || "not yet"],
  ];
  return make(
    "article",
    { class: "model-card" },
    make("h3", {}, model.name),
    make("ul", { class: "warnings" }, ...model.warnings.map((line) => make("li", {}, line))),
    make("dl", {}, ...facts.flatMap(([name, value]) => [make("dt", {}, name), make("dd", {}, value)])),
  );
}

const number = (value) => (typeof value === "number" ? value.toLocaleString("en") : String(value));

function listen() {
  const input = byId("file");
  input.addEventListener("change", () => {
    take(input.files);
    input.value = "";
  });
  let depth = 0;
  const drop = byId("drop");
  const carriesFiles = (event) => [...(event.dataTransfer?.types ?? [])].includes("Files");
  document.addEventListener("dragenter", (event) => {
    if (!carriesFiles(event)) return;
    depth += 1;
    drop.classList.add("over");
  });
  document.addEventListener("dragleave", () => {
    depth = Math.max(0, depth - 1);
    if (depth === 0) drop.classList.remove("over");
  });
  document.addEventListener("dragover", (event) => event.preventDefault());
  document.addEventListener("drop", (event) => {
    event.preventDefault();
    depth = 0;
    drop.classList.remove("over");
    if (event.dataTransfer.files.length) take(event.dataTransfer.files);
  });
  document.addEventListener("paste", (event) => {
    const files = event.clipboardData?.files;
    if (files?.length) take(files);
  });
  byId("opacity").addEventListener("input", fade);
  byId("map-clear").addEventListener("click", clearMap);
  byId("map-form").addEventListener("submit", askForMap);
  byId("similar-form").addEventListener("submit", (event) => {
    event.preventDefault();
    clearErrors();
    if (currentFile()) showSimilar(currentFile());
  });
  byId("search-form").addEventListener("submit", searchWords);
}

listen();
start();
