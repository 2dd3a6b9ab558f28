// Maths in Markdown: $a$, $$a$$, \(a\) and \[a\], as models write it. The rules only find where maths begins and ends;
// KaTeX reads what stands between.

import type { MarkdownIt, StateBlock, StateInline } from "markdown-it";

interface Fence {
  open: string;
  close: string;
  display: boolean;
}

// the longer mark first: $$ also begins with $
const DOLLARS: Fence = { open: "$$", close: "$$", display: true };
const DOLLAR: Fence = { open: "$", close: "$", display: false };
const BRACKETS: Fence = { open: "\\[", close: "\\]", display: true };
const PARENTHESES: Fence = { open: "\\(", close: "\\)", display: false };
const FENCES = [DOLLARS, DOLLAR, BRACKETS, PARENTHESES];

/** What the rules remember of one text, so that a text full of marks that nothing closes is read once. */
class Unclosed {
  private readonly marks = new WeakMap<object, Map<string, number>>();

  /** Whether an earlier search from before `at` has found no end of `mark`. */
  has(state: object, mark: string, at: number): boolean {
    const from = this.marks.get(state)?.get(mark);
    return from !== undefined && from <= at;
  }

  add(state: object, mark: string, from: number): void {
    const known = this.marks.get(state) ?? new Map<string, number>();
    this.marks.set(state, known.set(mark, Math.min(from, known.get(mark) ?? from)));
  }
}

/** Adds the rules; their tokens are `maths_inline` and `maths_block`. A block without an end is maths only while more
 * text is expected (`env.streaming`), with `meta.open`. */
export function addMaths(parser: MarkdownIt): void {
  const unclosed = new Unclosed();
  // lines up to which a block found no end: one that begins in between finds none either
  const endless = new WeakMap<StateBlock, number>();
  const inline = (state: StateInline, silent: boolean): boolean => inlineMaths(state, silent, unclosed);
  const block = (state: StateBlock, start: number, end: number, silent: boolean): boolean =>
    blockMaths(state, { start, end, silent, ends: endless });
  parser.inline.ruler.before("escape", "maths", inline);
  parser.block.ruler.before("fence", "maths", block, { alt: ["paragraph", "reference", "blockquote", "list"] });
}

function inlineMaths(state: StateInline, silent: boolean, unclosed: Unclosed): boolean {
  const first = state.src[state.pos];
  if (first !== "$" && first !== "\\") return false;
  const fence = FENCES.find(({ open }) => state.src.startsWith(open, state.pos));
  if (fence === undefined || unclosed.has(state, fence.open, state.pos)) return false;
  const from = state.pos + fence.open.length;
  // "$ 5" is money, and so is the first of "$5 and $6", whose second dollar follows a space
  if (fence === DOLLAR && /^\s?$/.test(state.src[from] ?? "")) return false;
  const end = closing(state.src, from, state.posMax, fence);
  if (end < 0) {
    unclosed.add(state, fence.open, state.pos);
    return false;
  }
  const source = state.src.slice(from, end).trim();
  if (source === "") return false;
  if (!silent) {
    const token = state.push("maths_inline", "", 0);
    token.content = source;
    token.meta = { display: fence.display };
  }
  state.pos = end + fence.close.length;
  return true;
}

/** Where the end mark of a formula stands that begins at `from`; -1 if there is none before `max`. */
function closing(text: string, from: number, max: number, fence: Fence): number {
  for (let at = from; at < max; at++) {
    if (text.startsWith(fence.close, at) && (fence !== DOLLAR || closesDollar(text, from, at))) {
      return at + fence.close.length <= max ? at : -1;
    }
    if (text[at] === "\\") at++;
  }
  return -1;
}

function closesDollar(text: string, from: number, at: number): boolean {
  const doubled = text[at + 1] === "$" || text[at - 1] === "$";
  return at > from && !doubled && !/\s/.test(text[at - 1] ?? " ") && !/\d/.test(text[at + 1] ?? "");
}

interface BlockSearch {
  start: number;
  end: number;
  silent: boolean;
  ends: WeakMap<StateBlock, number>;
}

function blockMaths(state: StateBlock, { start, end, silent, ends }: BlockSearch): boolean {
  if ((state.sCount[start] ?? 0) - state.blkIndent >= 4) return false;
  const opening = lineAt(state, start);
  const fence = [DOLLARS, BRACKETS].find(({ open }) => opening.startsWith(open));
  if (fence === undefined) return false;
  if (fence === BRACKETS && start < (ends.get(state) ?? 0) && !opening.includes(fence.close)) return false;
  const found = blockEnd(state, start, end, fence);
  if ("none" in found) {
    if (fence === BRACKETS) ends.set(state, found.none);
    return false;
  }
  if (silent) return true;
  const lines = [opening.slice(fence.open.length)];
  if (found.line > start) lines.push(state.getLines(start + 1, found.line + 1, state.sCount[start] ?? 0, false));
  const text = lines.join("\n").trimEnd();
  const token = state.push("maths_block", "", 0);
  token.block = true;
  token.content = (found.open ? text : text.slice(0, -fence.close.length)).trim();
  token.map = [start, found.line + 1];
  token.meta = { display: true, open: found.open };
  state.line = found.line + 1;
  return true;
}

/** The last line of a block of maths, which has no empty line inside; `none`: the line at which the search ended. */
function blockEnd(
  state: StateBlock, start: number, end: number, fence: Fence,
): { line: number; open: boolean } | { none: number } {
  for (let line = start; line < end; line++) {
    if (line > start && (state.isEmpty(line) || (state.sCount[line] ?? 0) < state.blkIndent)) return { none: line };
    const text = lineAt(state, line).trimEnd();
    const from = line === start ? fence.open.length : 0;
    const at = text.indexOf(fence.close, from);
    // text behind the end belongs to a paragraph with maths inside
    if (at >= 0) return at + fence.close.length === text.length ? { line, open: false } : { none: line };
  }
  return state.env["streaming"] === true ? { line: end - 1, open: true } : { none: end };
}

function lineAt(state: StateBlock, line: number): string {
  return state.src.slice((state.bMarks[line] ?? 0) + (state.tShift[line] ?? 0), state.eMarks[line]);
}
