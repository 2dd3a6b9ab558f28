"use strict";
// Markdown to DOM nodes. What a model writes only ever becomes text nodes and the elements named here, never HTML.

const BLOCK_START = /^(```|#{1,6} |> ?|\s*[-*+] |\s*\d+[.)] )/;

function element(name, text) {
  const node = document.createElement(name);
  if (text !== undefined) node.textContent = text;
  return node;
}

function link(text, address) {
  if (!/^https?:\/\//i.test(address)) return document.createTextNode(`[${text}](${address})`);
  const node = element("a", text);
  node.href = address;
  node.target = "_blank";
  node.rel = "noopener noreferrer nofollow";
  return node;
}

// Where marks close, asked for places that only go forward: every character is looked at a few times, however a text
// that never closes what it opens is written.
class Marks {
  constructor(text) {
    this.text = text;
    this.ahead = {};
    this.runs = new Map(); // length of a run of backticks -> where such runs begin
    for (const { 0: run, index } of text.matchAll(/`+/g)) {
      if (!this.runs.has(run.length)) this.runs.set(run.length, { places: [], at: 0 });
      this.runs.get(run.length).places.push(index);
    }
    this.labelEnd = -1;
    this.addressEnd = -1;
  }

  // The first `part` at or behind `from`, Infinity if there is none.
  next(part, from) {
    const seen = this.ahead[part] ?? -1;
    if (seen >= from) return seen;
    const found = this.text.indexOf(part, from);
    return (this.ahead[part] = found < 0 ? Infinity : found);
  }

  // The next run of exactly `size` backticks.
  ticks(size, from) {
    const { places, at } = this.runs.get(size);
    let index = at;
    while (index < places.length && places[index] < from) index++;
    this.runs.get(size).at = index;
    return index < places.length ? places[index] : Infinity;
  }

  // The next ** behind a word.
  bold(from) {
    const seen = this.ahead.bold ?? -1;
    if (seen >= from) return seen;
    let at = this.text.indexOf("**", from);
    while (at >= 0 && /\s/.test(this.text[at - 1])) at = this.text.indexOf("**", at + 1);
    return (this.ahead.bold = at < 0 ? Infinity : at);
  }

  // The closing parenthesis of an address that begins behind `](` at `label`, -1 if there is none.
  address(label) {
    if (this.labelEnd === label) return this.addressEnd;
    const match = /[^()\s]+\)/y;
    match.lastIndex = label + 2;
    this.labelEnd = label;
    this.addressEnd = this.text[label + 1] === "(" && match.test(this.text) ? match.lastIndex - 1 : -1;
    return this.addressEnd;
  }
}

function isWord(char) {
  return char !== undefined && !/\s/.test(char);
}

function spanOf(name, text) {
  const node = element(name);
  addInline(node, text);
  return node;
}

// What the mark at `at` opens, as a node and the place behind it; null if it opens nothing.
function spanAt(text, at, marks) {
  if (text[at] === "`") {
    let from = at + 1;
    while (text[from] === "`") from++;
    const end = marks.ticks(from - at, from);
    return end === Infinity ? null : [element("code", text.slice(from, end).trim()), end + (from - at)];
  }
  if (text[at] === "[") {
    const end = marks.next("]", at + 1);
    if (end <= at + 1 || end > marks.next("\n", at)) return null;
    const last = marks.address(end);
    return last < 0 ? null : [link(text.slice(at + 1, end), text.slice(end + 2, last)), last + 1];
  }
  if (text[at + 1] === "*" && isWord(text[at + 2])) {
    const end = marks.bold(at + 3);
    return end === Infinity ? null : [spanOf("strong", text.slice(at + 2, end)), end + 2];
  }
  const end = marks.next("*", at + 1);
  if (end <= at + 1 || end > marks.next("\n", at) || !isWord(text[at + 1]) || !isWord(text[end - 1])) return null;
  return [spanOf("em", text.slice(at + 1, end)), end + 1];
}

function addInline(parent, text) {
  const marks = new Marks(text);
  let last = 0;
  for (const { index } of text.matchAll(/`+|[*[]/g)) {
    const span = index < last ? null : spanAt(text, index, marks);
    if (!span) continue;
    parent.append(text.slice(last, index), span[0]);
    last = span[1];
  }
  parent.append(text.slice(last));
}

function listAt(lines, at, parent) {
  const ordered = /^\s*\d/.test(lines[at]);
  const item = ordered ? /^\s*\d+[.)] (.*)/ : /^\s*[-*+] (.*)/;
  const list = parent.appendChild(element(ordered ? "ol" : "ul"));
  if (ordered) list.start = Number.parseInt(lines[at], 10);
  for (let match; at < lines.length && (match = item.exec(lines[at])); at++) {
    addInline(list.appendChild(element("li")), match[1]);
  }
  return at;
}

// Where the last block of `text` begins that may still change when more is written: what stands before it is settled.
// Only an empty line outside of a fence ends every block.
function settledEnd(text, from) {
  let end = from;
  let fenced = false;
  for (let at = from; at < text.length; ) {
    const next = text.indexOf("\n", at);
    if (next < 0) break;
    if (text.startsWith("```", at)) fenced = !fenced;
    else if (!fenced && text.slice(at, next).trim() === "") end = next + 1;
    at = next + 1;
  }
  return end;
}

function markdown(text) {
  const out = document.createDocumentFragment();
  const lines = text.replace(/\r\n?/g, "\n").split("\n");
  for (let at = 0; at < lines.length; ) {
    const line = lines[at];
    const heading = /^(#{1,6}) (.*)/.exec(line);
    if (line.trim() === "") {
      at++;
    } else if (line.startsWith("```")) {
      let end = at + 1;
      while (end < lines.length && !lines[end].startsWith("```")) end++;
      out.appendChild(element("pre")).append(element("code", lines.slice(at + 1, end).join("\n")));
      at = end + 1;
    } else if (heading) {
      addInline(out.appendChild(element(heading[1].length < 3 ? "h2" : "h3")), heading[2]);
      at++;
    } else if (/^> ?/.test(line)) {
      const quoted = [];
      while (at < lines.length && /^> ?/.test(lines[at])) quoted.push(lines[at++].replace(/^> ?/, ""));
      addInline(out.appendChild(element("blockquote")), quoted.join("\n"));
    } else if (/^\s*([-*+]|\d+[.)]) /.test(line)) {
      at = listAt(lines, at, out);
    } else {
      const words = [lines[at++]];
      while (at < lines.length && lines[at].trim() !== "" && !BLOCK_START.test(lines[at])) words.push(lines[at++]);
      addInline(out.appendChild(element("p")), words.join("\n"));
    }
  }
  return out;
}
