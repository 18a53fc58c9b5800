// Cases of the index: similar to a photograph, or found by words.

import { ask, formOf } from "./api.js";
import { byId, clearErrors, make, say, sentence, showError, whileWorking } from "./dom.js";

const SAME = 0.99999;

let latest = 0;

export async function showSimilar(file) {
  const list = byId("similar-cases");
  const mine = (latest += 1);
  list.replaceChildren();
  list.setAttribute("aria-busy", "true");
  try {
    const fields = { text: byId("similar-text").value, filter: byId("similar-filter").value };
    const found = await whileWorking("Looking for similar cases…", ask("/similar", { form: formOf(file, fields) }));
    if (mine !== latest) return;
    show(list, found);
  } catch (error) {
    if (mine === latest) showError(`similar cases: ${error.message}`);
  } finally {
    list.removeAttribute("aria-busy");
  }
}

export async function searchWords(event) {
  event.preventDefault();
  clearErrors();
  const text = byId("search-text").value.trim();
  const list = byId("search-cases");
  if (!text) {
    showError("give words to search for, e.g. drusen");
    byId("search-text").focus();
    return;
  }
  const query = { text };
  if (byId("search-filter").value.trim()) query.filter = byId("search-filter").value.trim();
  list.replaceChildren();
  try {
    show(list, await whileWorking("Searching…", ask("/search", { query })));
  } catch (error) {
    showError(`search: ${error.message}`);
  }
}

function show(list, found) {
  list.replaceChildren(...found.cases.map(card));
  const count = found.cases.length;
  say(
    count
      ? `${count} of ${found.searched.toLocaleString("en")} cases, nearest first.`
      : "No case fits; try other words or another filter.",
  );
}

const isLabel = (name) => name.startsWith("label.");

/** A finding that is there by its name alone, anything else with its value; absent findings are left out above. */
function words([name, value]) {
  const plain = name.replace(/^label\./, "").replaceAll("_", " ");
  return isLabel(name) && value === 1 ? plain : `${plain}: ${value}`;
}

function card(one) {
  const picture = one.thumbnail
    ? make("img", { src: `data:image/jpeg;base64,${one.thumbnail}`, alt: `Photograph of case ${one.id}`, loading: "lazy" })
    : make("p", { class: "no-picture small" }, "the picture is not at hand");
  const facts = Object.entries(one.columns).filter(([name, value]) => !(isLabel(name) && value === 0));
  return make(
    "li",
    { class: "case" },
    picture,
    make(
      "div",
      {},
      make("p", { class: "report" }, one.report ? sentence(one.report) : "No report."),
      facts.length ? make("ul", { class: "facts" }, ...facts.map((fact) => make("li", {}, words(fact)))) : null,
      make(
        "p",
        { class: "small" },
        one.score > SAME ? "the same picture" : `likeness ${one.score.toFixed(2)}`,
        make("span", { class: "id" }, one.id),
      ),
    ),
  );
}
