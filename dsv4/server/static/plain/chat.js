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
  at("empty").hidden = at("examples").hidden = true;
  const article = at("talk").appendChild(element("article"));
  article.className = "user";
  article.append(element("div", text));
  article.scrollIntoView();
}

// One answer on the page: draws at most once per frame, however fast the tokens come, and less often when drawing takes
// long. Blocks that can change no more are drawn once.
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
    this.thought = this.details.appendChild(element("div")).appendChild(document.createTextNode(""));
    this.body = this.article.appendChild(element("div"));
    this.body.className = "body";
    this.settled = 0; // so much of the content stands in the body as it is
    this.open = []; // the nodes of the rest
    this.note = this.article.appendChild(element("p", "waiting"));
    this.note.className = "note";
    this.planned = false;
    this.pause = 0;
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
    setTimeout(() => requestAnimationFrame(() => this.draw()), this.pause);
  }

  draw() {
    this.planned = false;
    const began = performance.now();
    const follow = nearBottom();
    this.details.hidden = !this.reasoning;
    this.thought.appendData(this.reasoning.slice(this.thought.length));
    for (const node of this.open) node.remove();
    const settled = settledEnd(this.content, this.settled);
    this.body.append(markdown(this.content.slice(this.settled, settled)));
    this.settled = settled;
    const rest = markdown(this.content.slice(settled));
    this.open = [...rest.childNodes];
    this.body.append(rest);
    if (follow) at("talk").scrollTop = at("talk").scrollHeight;
    this.pause = 10 * (performance.now() - began); // drawing takes a tenth of the time at most
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

  offerAgain(again) {
    const button = this.note.appendChild(element("button", "Try again"));
    button.type = "button";
    button.addEventListener("click", () => {
      if (running) return;
      this.article.remove();
      again();
    });
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

function spent(usage, finish, view) {
  const counts = `${usage.prompt_tokens} + ${usage.completion_tokens} tokens, ${usage.prompt_cache_hit_tokens} cached`;
  const blank = view.content.trim() ? "" : "the answer is blank: ";
  return `${blank}${counts}, ${view.seconds()} s${finish === "length" ? ", cut off at the limit" : ""}`;
}

// What went wrong, in words: a browser only says "Failed to fetch" or "network error" when nobody answers.
function trouble(error) {
  return error instanceof TypeError ? "the server does not answer; does it still run?" : error.message;
}

async function answer() {
  const view = new AnswerView();
  const talk = messages; // "New chat" puts another list in its place
  running = new AbortController();
  at("send").hidden = true;
  at("stop").hidden = false;
  let failed = false;
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
      if (choice.finish_reason) closing = spent(event.usage, choice.finish_reason, view);
    }
    view.end(closing, closing === "the stream broke off");
  } catch (error) {
    const stopped = error.name === "AbortError";
    view.end(stopped ? `stopped after ${view.seconds()} s` : trouble(error), !stopped);
    failed = !stopped;
  } finally {
    if (view.content || view.reasoning) {
      talk.push({ role: "assistant", content: view.content, reasoning_content: view.reasoning });
    } else {
      const question = talk.pop();
      if (failed && talk === messages) {
        view.offerAgain(() => {
          messages.push(question);
          answer();
        });
      }
    }
    running = null;
    at("send").hidden = false;
    at("stop").hidden = true;
    at("text").focus();
  }
}

async function loadModels() {
  const response = await fetch("v1/models", { headers: headers() }).catch(() => ({ ok: false, status: 0 }));
  if (!response.ok) {
    await problem(response);
    return;
  }
  const { data } = await response.json();
  at("model").replaceChildren(...data.filter((model) => !model.deprecated).map((model) => new Option(model.id)));
  at("examples").replaceChildren(...(data[0]?.example_prompts ?? []).map(example));
}

function example(text) {
  const button = element("button", text);
  button.type = "button";
  button.addEventListener("click", () => {
    at("text").value = text;
    at("form").requestSubmit();
  });
  return button;
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
  at("talk").replaceChildren(at("empty"), at("examples"));
  at("empty").hidden = at("examples").hidden = false;
  at("text").focus();
});
at("key").addEventListener("change", loadModels);
loadModels();
