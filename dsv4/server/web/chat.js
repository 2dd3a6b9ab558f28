"use strict";
// The chat page: one conversation, kept in this page only, over the same interface every other client uses.

const at = (id) => document.getElementById(id);
let messages = [];
let running = null;

function headers() {
  const key = at("key").value;
  return { "content-type": "application/json", ...(key ? { authorization: `Bearer ${key}` } : {}) };
}

function nearBottom() {
  const talk = at("talk");
  return talk.scrollHeight - talk.scrollTop - talk.clientHeight < 80;
}

function showQuestion(text) {
  at("empty").hidden = true;
  const article = at("talk").appendChild(element("article"));
  article.className = "user";
  article.append(element("div", text));
  article.scrollIntoView();
}

// One answer on the page: draws at most once per frame, however fast the tokens come.
class AnswerView {
  constructor() {
    this.reasoning = "";
    this.content = "";
    this.began = performance.now();
    this.article = at("talk").appendChild(element("article"));
    this.details = this.article.appendChild(element("details"));
    this.details.hidden = true;
    this.details.open = true;
    this.summary = this.details.appendChild(element("summary", "Thinking"));
    this.thought = this.details.appendChild(element("div"));
    this.body = this.article.appendChild(element("div"));
    this.body.className = "body";
    this.note = this.article.appendChild(element("p", "waiting"));
    this.note.className = "note";
    this.planned = false;
  }

  add(delta) {
    this.reasoning += delta.reasoning_content || "";
    if (delta.content && !this.content && this.reasoning) {
      this.details.open = false;
      this.summary.textContent = `Thought for ${this.seconds()} s`;
    }
    this.content += delta.content || "";
    this.plan();
  }

  plan() {
    if (this.planned) return;
    this.planned = true;
    requestAnimationFrame(() => this.draw());
  }

  draw() {
    this.planned = false;
    const follow = nearBottom();
    this.details.hidden = !this.reasoning;
    this.thought.textContent = this.reasoning;
    this.body.replaceChildren(markdown(this.content));
    if (follow) at("talk").scrollTop = at("talk").scrollHeight;
  }

  seconds() {
    return ((performance.now() - this.began) / 1000).toFixed(1);
  }

  end(text, failed) {
    if (!this.content && this.reasoning) this.summary.textContent = `Thought for ${this.seconds()} s`;
    this.note.textContent = text;
    this.note.classList.toggle("error", Boolean(failed));
    this.draw();
  }
}

async function* events(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { done, value } = await reader.read();
    if (done) return;
    const parts = (rest + value).split("\n\n");
    rest = parts.pop();
    for (const part of parts) {
      if (part === "data: [DONE]") return;
      if (part.startsWith("data: ")) yield JSON.parse(part.slice(6));
    }
  }
}

async function problem(response) {
  if (response.status === 401) at("key-label").hidden = false;
  try {
    return (await response.json()).error.message;
  } catch {
    return `the server answered ${response.status}`;
  }
}

function spent(usage, finish, seconds) {
  const counts = `${usage.prompt_tokens} + ${usage.completion_tokens} tokens, ${usage.prompt_cache_hit_tokens} cached`;
  return `${counts}, ${seconds} s${finish === "length" ? ", cut off at the limit" : ""}`;
}

async function answer() {
  const view = new AnswerView();
  const talk = messages; // "New chat" puts another list in its place
  running = new AbortController();
  at("send").hidden = true;
  at("stop").hidden = false;
  const body = { model: at("model").value, messages: talk, stream: true, reasoning_effort: at("mode").value };
  try {
    const response = await fetch("v1/chat/completions", {
      method: "POST", headers: headers(), body: JSON.stringify(body), signal: running.signal,
    });
    if (!response.ok) throw new Error(await problem(response));
    let closing = "the stream broke off";
    for await (const event of events(response)) {
      if (event.error) throw new Error(event.error.message);
      const choice = event.choices[0];
      view.note.textContent = view.content ? "writing" : view.reasoning ? "thinking" : "waiting";
      view.add(choice.delta);
      if (choice.finish_reason) closing = spent(event.usage, choice.finish_reason, view.seconds());
    }
    view.end(closing, closing === "the stream broke off");
  } catch (error) {
    view.end(error.name === "AbortError" ? `stopped after ${view.seconds()} s` : error.message, error.name !== "AbortError");
  } finally {
    if (view.content || view.reasoning) {
      talk.push({ role: "assistant", content: view.content, reasoning_content: view.reasoning });
    } else {
      talk.pop();
    }
    running = null;
    at("send").hidden = false;
    at("stop").hidden = true;
    at("text").focus();
  }
}

async function loadModels() {
  const response = await fetch("v1/models", { headers: headers() });
  if (!response.ok) {
    await problem(response);
    return;
  }
  const { data } = await response.json();
  at("model").replaceChildren(...data.filter((model) => !model.deprecated).map((model) => new Option(model.id)));
}

function fit() {
  at("text").style.height = "auto";
  at("text").style.height = `${at("text").scrollHeight + 2}px`;
}

at("form").addEventListener("submit", (event) => {
  event.preventDefault();
  const text = at("text").value.trim();
  if (!text || running) return;
  at("text").value = "";
  fit();
  messages.push({ role: "user", content: text });
  showQuestion(text);
  answer();
});
at("text").addEventListener("input", fit);
at("text").addEventListener("keydown", (event) => {
  if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
    event.preventDefault();
    at("form").requestSubmit();
  }
});
at("stop").addEventListener("click", () => running?.abort());
at("new").addEventListener("click", () => {
  running?.abort();
  messages = [];
  at("talk").replaceChildren(at("empty"));
  at("empty").hidden = false;
  at("text").focus();
});
at("key").addEventListener("change", loadModels);
loadModels();
