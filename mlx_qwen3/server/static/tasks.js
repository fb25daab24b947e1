"use strict";
// The view for classification, embeddings, reranking and extraction.

const TEXTS = { classify: "Texts, one per line", embed: "Texts, one per line", rerank: "Documents, one per line", extract: "Text" };

function showTask() {
  const task = byId("task").value;
  for (const label of document.querySelectorAll("[data-for]")) label.hidden = label.dataset.for !== task;
  byId("texts-label").textContent = TEXTS[task];
  fillModels();
}

async function post(path, body) {
  const response = await fetch(path, { method: "POST", headers: headers(), body: JSON.stringify(body) });
  if (!response.ok) throw new Error(await errorOf(response));
  return response.json();
}

function table(head, rows) {
  const found = make("table");
  const line = (cells, tag) => {
    const row = make("tr");
    row.append(...cells.map((cell) => make(tag, "", String(cell))));
    return row;
  };
  const top = make("thead");
  top.append(line(head, "th"));
  const body = make("tbody");
  body.append(...rows.map((row) => line(row, "td")));
  found.append(top, body);
  return found;
}

function cosine(a, b) {
  const dot = (x, y) => x.reduce((sum, value, i) => sum + value * y[i], 0);
  return dot(a, b) / Math.sqrt(dot(a, a) * dot(b, b));
}

const TASKS = {
  async classify(model, lines) {
    const labels = byId("labels").value.split("\n").map((label) => label.trim()).filter(Boolean);
    const body = labels.length ? { model, input: lines, labels, multi_label: byId("multi").checked } : { model, input: lines };
    const { results } = await post("v1/classify", body);
    const rows = results.flatMap((result) => result.labels.map((one, i) => [i ? "" : lines[result.index], one.label, one.score.toFixed(4)]));
    return table(["Text", "Label", "Score"], rows);
  },
  async embed(model, lines) {
    const { data } = await post("v1/embeddings", { model, input: lines });
    const vectors = data.map((row) => row.embedding);
    return table(["Cosine", ...lines.map((_, i) => i + 1)], lines.map((line, i) => [`${i + 1}. ${line}`, ...vectors.map((v) => cosine(vectors[i], v).toFixed(3))]));
  },
  async rerank(model, lines) {
    const { results } = await post("v1/rerank", { model, query: byId("query").value, documents: lines });
    return table(["Rank", "Score", "Document"], results.map((result, i) => [i + 1, result.relevance_score.toFixed(4), lines[result.index]]));
  },
  async extract(model) {
    let schema;
    try {
      schema = JSON.parse(byId("schema").value);
    } catch (error) {
      throw new Error(`The schema is not valid JSON: ${error.message}`);
    }
    const { results } = await post("v1/extract", { model, input: byId("texts").value, schema });
    return make("pre", "", JSON.stringify(results[0].data, null, 2));
  },
};

byId("task-form").addEventListener("submit", async (event) => {
  event.preventDefault();
  const lines = byId("texts").value.split("\n").map((line) => line.trim()).filter(Boolean);
  if (!lines.length) {
    byId("task-status").textContent = "Write some text first.";
    byId("texts").focus();
    return;
  }
  byId("run-task").disabled = true;
  byId("task-status").textContent = "Running…";
  byId("task-result").replaceChildren();
  const began = performance.now();
  try {
    byId("task-result").replaceChildren(await TASKS[byId("task").value](byId("task-model").value || undefined, lines));
    byId("task-status").textContent = `Done in ${((performance.now() - began) / 1000).toFixed(2)} s.`;
  } catch (error) {
    byId("task-status").textContent = error.message;
  } finally {
    byId("run-task").disabled = false;
  }
});
byId("task").addEventListener("change", showTask);
showTask();
