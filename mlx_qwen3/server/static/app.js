"use strict";
// The chat view. All model output is sanitized before it is inserted as HTML.

const byId = (id) => document.getElementById(id);
const messages = []; // {role, content, reasoning, error, note}
let running = null; // the AbortController of the current answer
let models = [];

function make(tag, className, text) {
  const element = document.createElement(tag);
  if (className) element.className = className;
  if (text !== undefined) element.textContent = text;
  return element;
}

function headers() {
  const found = { "Content-Type": "application/json" };
  const key = byId("key").value.trim();
  // a header holds bytes: the server expects those of UTF-8
  if (key) found.Authorization = `Bearer ${String.fromCharCode(...new TextEncoder().encode(key))}`;
  return found;
}

async function errorOf(response) {
  try {
    return (await response.json()).error.message;
  } catch {
    return `the server answered with status ${response.status}`;
  }
}

function fillModels() {
  const fill = (select, ability) => {
    const before = select.value;
    select.replaceChildren(...models.filter((m) => ability.some((a) => m.abilities.includes(a))).map((m) => {
      const option = make("option", "", m.id);
      option.value = m.id;
      return option;
    }));
    if (before) select.value = before;
    if (select.selectedIndex < 0) select.selectedIndex = 0;
  };
  fill(byId("model"), ["chat"]);
  const abilities = { classify: ["classify", "labels"], embed: ["embeddings"], rerank: ["rerank"], extract: ["chat"] };
  fill(byId("task-model"), abilities[byId("task").value]);
  const chosen = models.find((m) => m.id === byId("model").value);
  byId("thinking").disabled = !chosen || chosen.thinking !== "optional";
}

async function loadModels() {
  const response = await fetch("v1/models", { headers: headers() });
  if (!response.ok) {
    byId("status").textContent = await errorOf(response);
    if (response.status === 401) { byId("settings").open = true; byId("key").focus(); }
    return;
  }
  models = (await response.json()).data;
  byId("status").textContent = "";
  fillModels();
}

// ---- rendering of messages

// ids and names would shadow the elements of this page; the forbidden tags load files or look like its controls
const SANITIZED = {
  USE_PROFILES: { html: true },
  FORBID_TAGS: ["style", "form", "input", "button", "select", "textarea", "dialog", "img", "picture", "source", "video", "audio"],
  FORBID_ATTR: ["style", "id", "name", "background", "src", "srcset", "poster", "role", "tabindex", "autofocus", "accesskey"],
};

function renderMarkdown(target, text) {
  target.innerHTML = DOMPurify.sanitize(marked.parse(text, { gfm: true, breaks: false }), SANITIZED);
  for (const link of target.querySelectorAll("a")) {
    link.target = "_blank";
    link.rel = "noopener noreferrer nofollow";
  }
  for (const code of target.querySelectorAll("pre code")) hljs.highlightElement(code);
}

function button(label, action) {
  const found = make("button", "", label);
  found.type = "button";
  found.addEventListener("click", action);
  return found;
}

function view(message) {
  const index = messages.indexOf(message);
  const box = make("article", `message ${message.role}`);
  box.append(make("div", "who", message.role === "user" ? "You" : "Assistant"));
  const tools = make("div", "tools");
  if (message.role === "user") {
    box.append(make("div", "text", message.content));
    tools.append(button("Edit", () => edit(index)));
  } else {
    const reasoning = make("details", "reasoning");
    reasoning.open = message.open ?? true;
    reasoning.hidden = !message.reasoning;
    const summary = make("summary", "", "Reasoning");
    summary.addEventListener("click", () => { message.open = !reasoning.open; }); // before it opens or closes
    reasoning.append(summary, make("div", "thoughts", message.reasoning));
    const answer = make("div", "answer");
    renderMarkdown(answer, message.content);
    box.append(reasoning, answer);
    if (message.error) {
      const error = make("p", "error", message.error);
      error.setAttribute("role", "alert");
      box.append(error);
    }
    if (message.note) tools.append(make("span", "speed", message.note));
    tools.append(button("Copy", () => navigator.clipboard?.writeText(message.content)), button("Retry", () => retry(index)));
  }
  box.append(tools);
  return box;
}

const views = new Map();

function show(message) {
  if (!messages.includes(message)) return; // dropped by "New chat" while its answer arrived
  const log = byId("log");
  const atEnd = log.scrollHeight - log.scrollTop - log.clientHeight < 40;
  const fresh = view(message);
  const old = views.get(message);
  if (old) old.replaceWith(fresh);
  else log.append(fresh);
  views.set(message, fresh);
  if (atEnd || !old) log.scrollTop = log.scrollHeight;
}

function dropFrom(index) {
  for (const message of messages.splice(index)) {
    views.get(message)?.remove();
    views.delete(message);
  }
}

// ---- requests

function numberOf(id) {
  const value = byId(id).value.trim();
  return value === "" ? undefined : Number(value);
}

function bodyOf() {
  const system = byId("system").value.trim();
  const sent = messages.filter((m) => m.role === "user" || m.content).map((m) => ({ role: m.role, content: m.content }));
  return {
    model: byId("model").value || undefined,
    messages: system ? [{ role: "system", content: system }, ...sent] : sent,
    temperature: numberOf("temperature"),
    top_p: numberOf("top-p"),
    max_tokens: numberOf("max-tokens"),
    seed: numberOf("seed"),
    chat_template_kwargs: byId("thinking").disabled ? undefined : { enable_thinking: byId("thinking").checked },
    stream: true,
    stream_options: { include_usage: true },
  };
}

async function* eventsOf(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let held = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) throw new Error("The connection was closed before the answer was complete.");
    held += value;
    const parts = held.split("\n\n");
    held = parts.pop();
    for (const part of parts) {
      const data = part.replace(/^data: /, "");
      if (data === "[DONE]") return;
      yield JSON.parse(data);
    }
  }
}

async function answer() {
  const body = bodyOf();
  const message = { role: "assistant", content: "", reasoning: "" };
  messages.push(message);
  show(message);
  running = new AbortController();
  setRunning(true);
  const began = performance.now();
  let first = 0;
  let drawn = 0;
  try {
    const response = await fetch("v1/chat/completions", {
      method: "POST", headers: headers(), body: JSON.stringify(body), signal: running.signal,
    });
    if (!response.ok) throw new Error(await errorOf(response));
    for await (const event of eventsOf(response)) {
      if (event.error) throw new Error(event.error.message);
      const delta = event.choices[0]?.delta ?? {};
      if (delta.content || delta.reasoning_content) first ||= performance.now();
      if (delta.content && !message.content && message.reasoning) message.open = false;
      message.content += delta.content ?? "";
      message.reasoning += delta.reasoning_content ?? "";
      if (event.usage) {
        first ||= performance.now(); // no text
        const seconds = (performance.now() - first) / 1000;
        const speed = seconds > 0 ? (event.usage.completion_tokens / seconds).toFixed(1) : "–";
        message.note = `${event.usage.completion_tokens} tokens, ${speed} tokens/s, first after ${((first - began) / 1000).toFixed(2)} s`;
      }
      if (performance.now() - drawn > 60) {
        show(message);
        drawn = performance.now();
      }
    }
  } catch (error) {
    message.error = error.name === "AbortError" ? "Stopped." : error.message;
  } finally {
    running = null;
    setRunning(false);
    show(message);
    byId("status").textContent = message.error ?? "Answer complete.";
  }
}

function setRunning(on) {
  byId("send").disabled = on;
  byId("stop").hidden = !on;
  byId("log").setAttribute("aria-busy", String(on));
  if (on) byId("status").textContent = "Answering…";
}

function send(event) {
  event?.preventDefault();
  const text = byId("message").value.trim();
  if (!text || running) return;
  byId("message").value = "";
  messages.push({ role: "user", content: text });
  show(messages.at(-1));
  answer();
}

function retry(index) {
  if (running) return;
  dropFrom(index);
  answer();
}

function edit(index) {
  if (running) return;
  byId("message").value = messages[index].content;
  dropFrom(index);
  byId("message").focus();
}

byId("compose").addEventListener("submit", send);
byId("message").addEventListener("keydown", (event) => {
  if (event.key === "Enter" && !event.shiftKey && !event.isComposing) send(event);
});
byId("stop").addEventListener("click", () => running?.abort());
document.addEventListener("keydown", (event) => {
  if (event.key === "Escape") running?.abort();
});
byId("clear").addEventListener("click", () => {
  running?.abort();
  dropFrom(0);
  byId("message").focus();
});
byId("key").addEventListener("change", loadModels);
byId("model").addEventListener("change", fillModels);

// ---- theme and tabs

function setTheme(theme) {
  document.documentElement.dataset.theme = theme;
  try { localStorage.setItem("theme", theme); } catch { /* storage may be closed */ }
}
let theme = null;
try { theme = localStorage.getItem("theme"); } catch { /* storage may be closed */ }
setTheme(theme ?? (matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light"));
byId("theme").addEventListener("click", () => setTheme(document.documentElement.dataset.theme === "dark" ? "light" : "dark"));

const tabs = [...document.querySelectorAll("[role=tab]")];
function selectTab(tab) {
  for (const one of tabs) {
    const on = one === tab;
    one.setAttribute("aria-selected", String(on));
    one.tabIndex = on ? 0 : -1;
    byId(one.getAttribute("aria-controls")).hidden = !on;
  }
}
for (const tab of tabs) {
  tab.addEventListener("click", () => selectTab(tab));
  tab.addEventListener("keydown", (event) => {
    if (event.key !== "ArrowRight" && event.key !== "ArrowLeft") return;
    const next = tabs[(tabs.indexOf(tab) + 1) % tabs.length];
    selectTab(next);
    next.focus();
  });
}

loadModels().catch((error) => { byId("status").textContent = error.message; });
