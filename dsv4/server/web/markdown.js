"use strict";
// Markdown to DOM nodes. What a model writes only ever becomes text nodes and the elements named here, never HTML.

const INLINE = /(`+)([^`]|[^`][\s\S]*?[^`])\1(?!`)|\*\*(\S(?:[\s\S]*?\S)?)\*\*|\*(\S(?:[^*\n]*\S)?)\*|\[([^\]\n]+)\]\(([^()\s]+)\)/g;
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

function addInline(parent, text) {
  let last = 0;
  for (const match of text.matchAll(INLINE)) {
    parent.append(text.slice(last, match.index));
    last = match.index + match[0].length;
    if (match[1]) parent.append(element("code", match[2].trim()));
    else if (match[3]) addInline(parent.appendChild(element("strong")), match[3]);
    else if (match[4]) addInline(parent.appendChild(element("em")), match[4]);
    else parent.append(link(match[5], match[6]));
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
