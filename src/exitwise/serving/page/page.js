"use strict";
const at = (id) => document.getElementById(id);
const percent = (share) => `${(100 * share).toFixed(1)} %`;
let budgets = [];
let latest = null;

function headers(more = {}) {
  const token = at("token").value.trim();
  return token ? { ...more, authorization: `Bearer ${token}` } : more;
}

async function call(path, options = {}) {
  at("error").hidden = true;
  try {
    const response = await fetch(path, { ...options, headers: headers(options.headers) });
    const said = await response.json();
    if (!response.ok) throw new Error(said.error || response.statusText);
    return said;
  } catch (error) {
    at("error").textContent = error.message;
    at("error").hidden = false;
    return null;
  }
}

function show(answer) {
  at("answer").hidden = false;
  at("class").textContent = answer.answered ? answer.class : "I don’t know";
  at("probability").textContent = answer.probability === undefined ? "" : percent(answer.probability);
  at("exits").replaceChildren(...Array.from({ length: answer.exits }, (_, k) => {
    const item = document.createElement("li");
    item.textContent = k + 1 === answer.exit ? `left at ${k + 1}` : `${k + 1}`;
    item.className = k + 1 === answer.exit ? "run here" : k + 1 < answer.exit ? "run" : "";
    return item;
  }));
  at("cost").textContent = `${percent(answer.compute)} of the full network’s MACs; confidence ${answer.confidence.toFixed(3)}`;
  at("top").replaceChildren(...(answer.top || []).map((each) => {
    const row = document.createElement("tr");
    for (const text of [each.class, percent(each.probability)]) {
      row.append(Object.assign(document.createElement("td"), { textContent: text }));
    }
    return row;
  }));
}

async function ask() {
  if (!latest) return;
  const { body, kind } = latest;
  const said = await call("/predict?top=5", { method: "POST", body, headers: { "content-type": kind } });
  if (said) show(said.answers[0]);
}

function take(file) {
  if (!file) return;
  if (at("shown").src) URL.revokeObjectURL(at("shown").src);
  at("shown").src = URL.createObjectURL(file);
  at("shown").hidden = false;
  latest = { body: file, kind: "application/octet-stream" };
  ask();
}

function dialled(said) {
  if (!said) return;
  budgets = said.budgets;
  at("images").hidden = said.takes !== "images";
  at("texts").hidden = said.takes !== "texts";
  at("dial").max = budgets.length;
  at("dial").disabled = budgets.length === 0;
  const place = budgets.findIndex((line) => line.budget === said.budget) + 1;
  at("dial").value = place;
  at("budget").textContent = place ? percent(said.budget) : "as calibrated";
  at("expected").textContent = place
    ? `on the calibration samples: accuracy ${percent(budgets[place - 1].accuracy)}` : "";
}

at("dial").addEventListener("change", async () => {
  const place = Number(at("dial").value);
  const said = await call("/budget", {
    method: "PUT",
    headers: { "content-type": "application/json" },
    body: JSON.stringify({ budget: place ? budgets[place - 1].budget : null }),
  });
  dialled(said || (await call("/budget")));
  if (said) ask();
});
at("file").addEventListener("change", () => take(at("file").files[0]));
at("ask").addEventListener("click", () => {
  latest = { body: at("text").value, kind: "text/plain;charset=utf-8" };
  ask();
});
at("tokens").addEventListener("submit", (event) => event.preventDefault());
at("token").addEventListener("change", async () => dialled(await call("/budget")));
for (const kind of ["dragover", "drop"]) {
  document.addEventListener(kind, (event) => event.preventDefault());
}
at("drop").addEventListener("dragover", () => at("drop").classList.add("over"));
at("drop").addEventListener("dragleave", () => at("drop").classList.remove("over"));
at("drop").addEventListener("drop", (event) => {
  at("drop").classList.remove("over");
  take(event.dataTransfer.files[0]);
});
call("/budget").then(dialled);
