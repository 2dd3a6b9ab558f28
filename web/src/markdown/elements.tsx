// Tokens of Markdown as elements. What a model writes becomes text and the elements named here, never HTML: every
// address is checked, pictures are links, and no attribute comes from the text.

import type { Token } from "markdown-it";
import { h } from "preact";
import type { ComponentChildren, VNode } from "preact";
import { languageOf } from "./blocks";
import { CodeView } from "./code";
import { Maths } from "./maths";
import { isSafeAddress } from "./parser";

type Attributes = Record<string, string | number | boolean>;
type Nodes = ComponentChildren[];

/** The elements that tokens may become. Headings stand below those of the page. */
const TAGS: Record<string, string> = {
  p: "p", em: "em", strong: "strong", s: "del", blockquote: "blockquote", ul: "ul", ol: "ol", li: "li",
  table: "table", thead: "thead", tbody: "tbody", tr: "tr", th: "th", td: "td",
  h1: "h3", h2: "h4", h3: "h5", h4: "h6", h5: "h6", h6: "h6",
};
const TASK = /^\[([ xX])\] /;

/** The nodes of a token list. */
export function elementsOf(tokens: readonly Token[]): Nodes {
  const stack: { token: Token | null; nodes: Nodes }[] = [{ token: null, nodes: [] }];
  for (const token of tokens) {
    const top = stack.at(-1);
    if (top === undefined) break;
    if (token.nesting === 1) {
      stack.push({ token, nodes: [] });
    } else if (token.nesting === 0) {
      top.nodes.push(...leaf(token));
    } else if (top.token !== null) {
      stack.pop();
      stack.at(-1)?.nodes.push(element(top.token, top.nodes));
    }
  }
  return stack[0]?.nodes ?? [];
}

/** The element of an opening token around its content. */
export function element(token: Token, children: Nodes): VNode {
  if (token.type === "link_open") return link(String(token.attrGet("href") ?? ""), children);
  const tag = TAGS[token.tag];
  if (tag === undefined) throw new Error(`Markdown has no element for ${token.type}`);
  if (tag === "li") return listItem(children);
  return h(tag, attributes(token), children);
}

function attributes(token: Token): Attributes {
  const start = token.tag === "ol" ? Number(token.attrGet("start") ?? 1) : 1;
  const aligned = /^text-align:(left|center|right)$/.exec(String(token.attrGet("style") ?? ""))?.[1];
  return {
    ...(start === 1 ? {} : { start }),
    ...(aligned === undefined ? {} : { class: `to-${aligned}` }),
    ...(token.tag === "th" ? { scope: "col" } : {}),
    ...(/^h[1-6]$/.test(token.tag) ? { class: `heading-${token.tag[1]}` } : {}),
  };
}

function leaf(token: Token): Nodes {
  switch (token.type) {
    case "inline":
      return elementsOf(token.children ?? []);
    case "text":
    case "text_special":
      return [token.content];
    case "softbreak":
    case "hardbreak":
      return [<br />];
    case "hr":
      return [<hr />];
    case "code_inline":
      return [<code>{token.content}</code>];
    case "code_block":
    case "fence":
      return [<CodeView runs={[]} rest={token.content} language={languageOf(token)} closed />];
    case "image":
      return [link(String(token.attrGet("src") ?? ""), ["Image: ", ...altText(token)], "picture")];
    case "maths_inline":
    case "maths_block":
      return [<Maths source={token.content} display={Boolean(token.meta?.["display"])} open={isOpen(token)} />];
    default:
      throw new Error(`Markdown has no element for ${token.type}`);
  }
}

function isOpen(token: Token): boolean {
  return Boolean(token.meta?.["open"]);
}

function altText(token: Token): Nodes {
  const nodes = elementsOf(token.children ?? []);
  return nodes.length > 0 ? nodes : [String(token.attrGet("src") ?? "")];
}

function link(address: string, children: Nodes, kind?: string): VNode {
  if (!isSafeAddress(address)) return <span>{children}</span>;
  return (
    <a href={address} title={address} target="_blank" rel="noopener noreferrer nofollow" class={kind}>
      {children}
    </a>
  );
}

/** An item; "[x] " at its beginning is a box that is ticked. */
function listItem(children: Nodes): VNode {
  const first = children[0] as VNode<{ children?: Nodes }> | undefined;
  const inner = first?.props?.children;
  const text = Array.isArray(inner) ? inner[0] : undefined;
  const task = typeof text === "string" ? TASK.exec(text) : null;
  if (task === null || first === undefined || !Array.isArray(inner)) return <li>{children}</li>;
  const done = task[1] !== " ";
  const box = <input type="checkbox" checked={done} disabled aria-label={done ? "done" : "to do"} />;
  const rest = [box, " ", (text as string).slice(task[0].length), ...inner.slice(1)];
  return <li class="task">{[h("p", {}, rest), ...children.slice(1)]}</li>;
}
