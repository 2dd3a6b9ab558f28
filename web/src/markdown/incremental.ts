// Markdown that grows. What can change no more is read once: whole blocks, and of a list, a table or a fence that is
// still open its items, rows and lines. Only the rest is read again with every update.
//
// In CommonMark a block is final when another one follows it on a line that is complete. The last line is complete
// when its line break is there: "#" may still become "#tag".

import type { Env, Token } from "markdown-it";
import { codeRuns, languageOf } from "./blocks";
import type { Block, CodeBlock, ListBlock, TableBlock } from "./blocks";
import { MarkdownParser, splitAt } from "./parser";
import type { Span } from "./parser";

/** The blocks of a text: those that stay as they are, and those that the next words may change. */
export interface Rendering {
  settled: readonly Block[];
  open: readonly Block[];
}

/** A list, table or fence that later lines may continue. `prefix`: what must stand before these lines so that they are
 * read as its continuation. */
type Container =
  | { kind: "list"; block: ListBlock; prefix: "" }
  | { kind: "table"; block: TableBlock; prefix: string }
  | { kind: "code"; block: CodeBlock; prefix: ""; fence: Fence };

interface Fence {
  mark: string;
  indent: number;
}

/** One text that is drawn while it is written. */
export class MarkdownStream {
  private text = "";
  private offset = 0;
  private builder: Builder;

  constructor(private readonly parser: MarkdownParser = sharedParser()) {
    this.builder = new Builder(parser);
  }

  /** Takes the whole text so far. done: no more follows. A text that does not continue the last one begins anew. */
  update(text: string, done: boolean): Rendering {
    const clean = normalised(text);
    if (!clean.startsWith(this.text)) this.reset();
    this.text = clean;
    const complete = done ? clean.length : clean.lastIndexOf("\n") + 1;
    if (complete > this.offset || done) this.settle(clean.slice(this.offset, complete), done);
    const rest = clean.slice(this.offset);
    return { settled: this.builder.blocks, open: done ? [] : this.builder.preview(rest) };
  }

  private settle(source: string, done: boolean): void {
    this.offset += this.builder.absorb(source, done);
    if (!done || !this.builder.hasReferences) return;
    // a definition at the end also makes links of what was drawn before it
    this.builder = new Builder(this.parser);
    this.offset = this.builder.absorb(this.text, true);
  }

  private reset(): void {
    this.text = "";
    this.offset = 0;
    this.builder = new Builder(this.parser);
  }
}

let shared: MarkdownParser | undefined;

function sharedParser(): MarkdownParser {
  return (shared ??= new MarkdownParser());
}

function normalised(text: string): string {
  const lines = text.includes("\r") ? text.replace(/\r\n?/g, "\n") : text;
  return lines.includes("\0") ? lines.replaceAll("\0", "\ufffd") : lines;
}

/** Turns source into blocks, and knows which container is open. */
class Builder {
  readonly blocks: Block[] = [];
  private container: Container | null = null;
  private nextKey = 0;
  private env: Env = { streaming: true };

  constructor(private readonly parser: MarkdownParser) {}

  get hasReferences(): boolean {
    return Object.keys(this.env.references ?? {}).length > 0;
  }

  /** The blocks that `source`, which is behind all that was absorbed, makes now; changes nothing. */
  preview(source: string): readonly Block[] {
    const copy = new Builder(this.parser);
    copy.container = this.container;
    copy.nextKey = this.nextKey;
    copy.env = { ...this.env, references: { ...this.env.references } };
    copy.take(source);
    return copy.blocks;
  }

  /** Takes what is final of `source`, everything if it is `done`; returns how many characters. */
  absorb(source: string, done: boolean): number {
    if (!done) return this.takeFinal(source);
    this.env["streaming"] = false;
    this.take(source);
    return source.length;
  }

  /** All of `source` as blocks. */
  private take(source: string): void {
    const { spans, text } = this.read(this.takeCode(source));
    for (const span of spans) this.add(span, text);
    this.close();
  }

  private takeFinal(source: string): number {
    const rest = this.takeCode(source);
    const { spans, text, prefix } = this.read(rest);
    const known = text.before(uncertainLine(spans, text));
    const certain = spans.filter((span) => span.start < known.count);
    const last = certain.at(-1);
    if (last === undefined) return source.length - rest.length;
    for (const span of certain.slice(0, -1)) this.add(span, text);
    return source.length - rest.length + Math.max(0, this.hold(last, known) - prefix);
  }

  /** The spans of `source` as the continuation of the container; text: what their lines count, prefix: how much of it
   * stands before `source`. Closes a container that is not continued. */
  private read(source: string): { spans: Span[]; text: Lines; prefix: number } {
    const prefix = this.container?.prefix ?? "";
    const spans = this.parser.spans(prefix + source, this.env);
    return { spans, text: new Lines(prefix + source), prefix: prefix.length };
  }

  /** Adds a span that is final; it continues the container, or closes it. */
  private add(span: Span, text: Lines): void {
    const first = span.tokens[0];
    if (first === undefined) return;
    if (!this.continues(span)) this.close();
    if (LISTS.has(first.type)) this.extendList(first, itemsOf(span), Infinity);
    else if (first.type === "table_open") this.extendTable(span, text);
    else this.addWhole(span, first);
  }

  private addWhole(span: Span, first: Token): void {
    const key = this.nextKey++;
    if (first.type === "fence") {
      const closed = this.env["streaming"] !== true || isClosed(span, first);
      this.blocks.push({ kind: "code", key, language: languageOf(first), ...codeRuns(first.content), closed });
    } else {
      this.blocks.push({ kind: "run", key, tokens: this.parser.inline(span.tokens, this.env) });
    }
  }

  /** Takes what is final of the last span; returns where the rest begins. */
  private hold(span: Span, text: Lines): number {
    const first = span.tokens[0];
    if (first === undefined) return 0;
    if (LISTS.has(first.type)) {
      if (!this.continues(span)) this.close();
      const items = itemsOf(span);
      this.extendList(first, items, items.length - 1);
      return text.startOf(items.at(-1)?.[0]?.map?.[0] ?? span.start);
    }
    if (first.type === "fence" && !isClosed(span, first)) {
      this.openCode(span, first, text);
      return text.length;
    }
    if (first.type === "table_open" && span.end === text.count) {
      if (!this.continues(span)) this.close();
      this.extendTable(span, text);
      return text.length;
    }
    if (first.type === "fence" || (span.end < text.count && first.type !== "code_block")) {
      this.add(span, text);
      this.close();
      return text.startOf(span.end);
    }
    this.close();
    return text.startOf(span.start);
  }

  private continues(span: Span): boolean {
    const first = span.tokens[0];
    if (this.container?.kind === "table") return first?.type === "table_open" && span.start === 0;
    if (this.container?.kind !== "list" || span.start > 0) return false;
    const { open } = this.container.block;
    return first?.type === open.type && first.markup === open.markup;
  }

  private close(): void {
    if (this.container === null) return;
    const { block, kind } = this.container;
    this.blocks.push(kind === "code" ? { ...block, closed: this.env["streaming"] !== true } : block);
    this.container = null;
  }

  private extendList(open: Token, items: Token[][], count: number): void {
    const taken = items.slice(0, count).map((item) => this.parser.inline(item, this.env));
    const old = this.container?.kind === "list" ? this.container.block : null;
    if (old === null && taken.length === 0) return;
    const known = old ?? { kind: "list", key: this.nextKey++, open, items: [] };
    const block = taken.length > 0 ? { ...known, items: [...known.items, ...taken] } : known;
    this.container = { kind: "list", block, prefix: "" };
  }

  private extendTable(span: Span, text: Lines): void {
    const parts = splitAt(span.tokens.slice(1, -1), 1);
    const rows = splitAt(parts[1]?.slice(1, -1) ?? [], 2).map((row) => this.parser.inline(row, this.env));
    if (this.container?.kind === "table") {
      const { block } = this.container;
      if (rows.length > 0) this.container = { ...this.container, block: { ...block, rows: [...block.rows, ...rows] } };
      return;
    }
    const head = this.parser.inline(parts[0] ?? [], this.env);
    const prefix = text.slice(span.start, span.start + 2);
    this.container = { kind: "table", block: { kind: "table", key: this.nextKey++, head, rows }, prefix };
  }

  private openCode(span: Span, first: Token, text: Lines): void {
    this.close();
    const indent = /^ */.exec(text.slice(span.start, span.start + 1))?.[0].length ?? 0;
    const block: CodeBlock = {
      kind: "code", key: this.nextKey++, language: languageOf(first), ...codeRuns(first.content), closed: false,
    };
    this.container = { kind: "code", block, prefix: "", fence: { mark: first.markup, indent } };
  }

  /** Takes the lines of an open fence; returns what follows its end. */
  private takeCode(source: string): string {
    if (this.container?.kind !== "code") return source;
    const { block, fence } = this.container;
    const end = closingLine(source, fence.mark);
    const lines = end === null ? source : source.slice(0, end.start);
    const inner = fence.indent > 0 ? lines.replace(new RegExp(`^ {1,${fence.indent}}`, "gm"), "") : lines;
    // the beginning of the closing fence is no code
    const begun = end === null && this.env["streaming"] === true;
    const shown = begun ? withoutBegunFence(inner, fence.mark) : inner;
    const grown = { ...block, ...codeRuns(block.rest + shown, block.runs) };
    this.container = { ...this.container, block: grown };
    if (end === null) return "";
    this.container = null;
    this.blocks.push({ ...grown, closed: true });
    return source.slice(end.end);
  }
}

const LISTS = new Set(["bullet_list_open", "ordered_list_open"]);

/** A text by its lines. */
class Lines {
  private readonly starts: number[] = [0];

  constructor(private readonly text: string) {
    for (let at = text.indexOf("\n"); at >= 0; at = text.indexOf("\n", at + 1)) this.starts.push(at + 1);
    if (text.endsWith("\n")) this.starts.pop();
  }

  get count(): number {
    return this.starts.length;
  }

  get length(): number {
    return this.text.length;
  }

  startOf(line: number): number {
    return this.starts[line] ?? this.text.length;
  }

  isEmpty(line: number): boolean {
    return this.slice(line, line + 1).trim() === "";
  }

  /** The lines before one of them. */
  before(line: number): Lines {
    return line >= this.count ? this : new Lines(this.text.slice(0, this.startOf(line)));
  }

  slice(start: number, end: number): string {
    return this.text.slice(this.startOf(start), this.startOf(end));
  }
}

/** The line of a last block that may turn out to continue the block before it: maths whose end is not written yet. */
function uncertainLine(spans: readonly Span[], text: Lines): number {
  const last = spans.at(-1);
  const open = last?.tokens[0]?.meta?.["open"] === true;
  return last !== undefined && open && last.start > 0 && !text.isEmpty(last.start - 1) ? last.start : Infinity;
}

function itemsOf(span: Span): Token[][] {
  return splitAt(span.tokens.slice(1, -1), 1);
}

/** Whether the last line of a fence's span is its end: the span is longer than its content and the opening line. */
function isClosed(span: Span, fence: Token): boolean {
  const lines = fence.content === "" ? 0 : fence.content.split("\n").length - Number(fence.content.endsWith("\n"));
  return span.end - span.start - 1 > lines;
}

/** The line that closes a fence, as a range of `text`. */
function closingLine(text: string, mark: string): { start: number; end: number } | null {
  const char = mark.startsWith("~") ? "~" : "`";
  const line = new RegExp(`^ {0,3}${char}{${mark.length},}[ \\t]*(?:\\n|$)`, "gm");
  const match = line.exec(text);
  return match && { start: match.index, end: match.index + match[0].length };
}

function withoutBegunFence(text: string, mark: string): string {
  const last = text.slice(text.lastIndexOf("\n") + 1);
  return last !== "" && mark.startsWith(last.trimStart()) && last.trim() !== "" ? text.slice(0, -last.length) : text;
}

