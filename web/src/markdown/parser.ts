// The Markdown of models: CommonMark with tables, strikethrough, bare links and maths. HTML is text.

import MarkdownItConstructor from "markdown-it";
import type { Env, MarkdownIt, StateInline, Token } from "markdown-it";
import { addMaths } from "./maths-rules";

/** Longer runs of text are no prose. They stay as they are: looking for marks in them takes time that grows faster
 * than their length. */
const LONGEST_INLINE = 10_000;
const SAFE_ADDRESS = /^(?:https?:\/\/|mailto:)/i;
const LINE_BREAK = /<br\s*\/?>/iy;

/** Whether a link may lead there: other pages and mail, never scripts, data or files. */
export function isSafeAddress(address: string): boolean {
  return SAFE_ADDRESS.test(address.trim());
}

/** One top-level block: its tokens, and its first line and the line behind it. */
export interface Span {
  tokens: Token[];
  start: number;
  end: number;
}

/** Reads Markdown in two steps, so that blocks that are not shown again need no second one. */
export class MarkdownParser {
  private readonly blocks: MarkdownIt;
  private readonly inlines: MarkdownIt;

  constructor(longest = LONGEST_INLINE) {
    this.blocks = build(longest);
    this.inlines = build(longest);
    this.inlines.core.ruler.disable(["normalize", "block"]);
  }

  /** The top-level blocks of a text with line ends \n; their inline content is not read yet. */
  spans(text: string, env: Env): Span[] {
    const tokens: Token[] = [];
    this.blocks.block.parse(text, this.blocks, env, tokens);
    return splitTop(tokens);
  }

  /** Reads the inline content of tokens, in place, and returns them. */
  inline(tokens: Token[], env: Env): Token[] {
    const state = new this.inlines.core.State("", this.inlines, env);
    state.tokens = tokens;
    this.inlines.core.process(state);
    return tokens;
  }
}

function build(longest: number): MarkdownIt {
  const parser = new MarkdownItConstructor({ html: false, linkify: true, breaks: true });
  // only what has a scheme: "utils.py" and "3.14" are no links
  parser.linkify.set({ fuzzyLink: false, fuzzyEmail: false, fuzzyIP: false });
  parser.validateLink = isSafeAddress;
  addMaths(parser);
  parser.inline.ruler.before("autolink", "line_break", lineBreak);
  parser.core.ruler.at("inline", (state) => {
    for (const token of state.tokens) {
      if (token.type !== "inline") continue;
      token.children ??= [];
      if (token.content.length <= longest) {
        state.md.inline.parse(token.content, state.md, state.env, token.children);
      } else {
        const text = new state.Token("text", "", 0);
        text.content = token.content;
        token.children.push(text);
      }
    }
  });
  return parser;
}

/** <br>, the one tag that models need: cells of a table have no other way to break a line. */
function lineBreak(state: StateInline, silent: boolean): boolean {
  LINE_BREAK.lastIndex = state.pos;
  if (state.src[state.pos] !== "<" || !LINE_BREAK.test(state.src)) return false;
  if (!silent) state.push("hardbreak", "br", 0);
  state.pos = LINE_BREAK.lastIndex;
  return true;
}

function splitTop(tokens: Token[]): Span[] {
  return splitAt(tokens, 0).map((part) => {
    const [start, end] = part[0]?.map ?? [0, 0];
    return { tokens: part, start, end };
  });
}

/** The parts of a token list that are complete at one level. */
export function splitAt(tokens: readonly Token[], level: number): Token[][] {
  const parts: Token[][] = [];
  let from = 0;
  for (const [index, token] of tokens.entries()) {
    if (token.level !== level || token.nesting === 1) continue;
    parts.push(tokens.slice(from, index + 1));
    from = index + 1;
  }
  return parts;
}
