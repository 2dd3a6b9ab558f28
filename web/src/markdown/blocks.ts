// What a text in Markdown consists of, as it is drawn. Everything here is written once: a block that changes is a new
// object with the same key, so that drawing can skip what is the same object as before.

import type { Token } from "markdown-it";

export type Block = RunBlock | ListBlock | TableBlock | CodeBlock;

/** A block that is drawn as a whole: paragraph, heading, quote, formula, rule. */
export interface RunBlock {
  kind: "run";
  key: number;
  tokens: readonly Token[];
}

/** A list with the tokens of each of its items. */
export interface ListBlock {
  kind: "list";
  key: number;
  open: Token;
  items: readonly (readonly Token[])[];
}

/** A table with the tokens of its head and of each row. */
export interface TableBlock {
  kind: "table";
  key: number;
  head: readonly Token[];
  rows: readonly (readonly Token[])[];
}

/** A fenced block: runs of RUN_LINES whole lines, then the rest. `closed`: nothing follows. */
export interface CodeBlock {
  kind: "code";
  key: number;
  language: string;
  runs: readonly string[];
  rest: string;
  closed: boolean;
}

const RUN_LINES = 64;

/** Code in runs of whole lines and a rest; `runs` are those that are there already. */
export function codeRuns(text: string, runs: readonly string[] = []): { runs: readonly string[]; rest: string } {
  const more: string[] = [];
  let from = 0;
  for (let at = text.indexOf("\n"), lines = 1; at >= 0; at = text.indexOf("\n", at + 1), lines++) {
    if (lines % RUN_LINES > 0) continue;
    more.push(text.slice(from, at + 1));
    from = at + 1;
  }
  return { runs: more.length > 0 ? [...runs, ...more] : runs, rest: text.slice(from) };
}

/** The language of a fence: the first word behind its mark. */
export function languageOf(fence: Token): string {
  return /^\S*/.exec(fence.info.trim())?.[0] ?? "";
}

/** The whole text of a code block. */
export function codeText(block: Pick<CodeBlock, "runs" | "rest">): string {
  return block.runs.join("") + block.rest;
}
