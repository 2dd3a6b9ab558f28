// Markdown on a page, whole or while it is written.

import type { Token } from "markdown-it";
import { Component } from "preact";
import type { ComponentChildren, VNode } from "preact";
import { useEffect, useRef, useState } from "preact/hooks";
import type { Block, ListBlock, TableBlock } from "./blocks";
import { CodeView } from "./code";
import { element, elementsOf } from "./elements";
import { MarkdownStream } from "./incremental";
import type { Rendering } from "./incremental";
import "./markdown.css";

/** Blocks in one section: the browser lays out and paints a section only near what is visible. */
const SECTION = 24;
/** Drawing takes at most a fifth of the time, however long the open block is. */
const REST = 4;
const LONGEST_REST = 1000;

interface Properties {
  text: string;
  /** More is being written. */
  streaming?: boolean;
}

/** A text in Markdown, drawn as text and the elements of elements.tsx. */
export function Markdown({ text, streaming = false }: Properties) {
  const { settled, open } = useRendering(text, streaming);
  const sections: VNode[] = [];
  let from = 0;
  for (; from + SECTION <= settled.length; from += SECTION) {
    sections.push(<Section key={from} blocks={settled.slice(from, from + SECTION)} />);
  }
  // a block that settles stays in its section and keeps its element
  const last = [...settled.slice(from), ...open];
  return (
    <div class={streaming ? "markdown growing" : "markdown"}>
      {sections}
      {last.length > 0 && <Section key={from} blocks={last} />}
    </div>
  );
}

/** The blocks of a text. While it is written they are read once a frame at most, and less often when drawing is slow. */
function useRendering(text: string, streaming: boolean): Rendering {
  const state = useRef<Drawing | null>(null);
  const [, redraw] = useState(0);
  state.current ??= new Drawing(() => redraw((count) => count + 1));
  useEffect(() => () => state.current?.stop(), []);
  return state.current.take(text, streaming);
}

/** When to read a text that grows. */
class Drawing {
  private readonly stream = new MarkdownStream();
  private shown: Rendering | null = null;
  private text = "";
  private whole = false;
  private timer: ReturnType<typeof setTimeout> | null = null;
  private rest = 0;

  constructor(private readonly redraw: () => void) {}

  /** What to draw now of a text; plans to read the rest of it. */
  take(text: string, streaming: boolean): Rendering {
    const changed = text !== this.text || this.whole === streaming;
    this.text = text;
    this.whole = !streaming;
    if (this.shown === null || (changed && this.whole)) this.shown = this.stream.update(text, this.whole);
    else if (changed) this.plan();
    return this.shown;
  }

  stop(): void {
    if (this.timer !== null) clearTimeout(this.timer);
    this.timer = null;
  }

  private plan(): void {
    this.timer ??= setTimeout(() => requestAnimationFrame(() => this.draw()), this.rest);
  }

  private draw(): void {
    if (this.timer === null) return;
    this.timer = null;
    if (this.whole) return;
    const began = performance.now();
    this.shown = this.stream.update(this.text, false);
    this.redraw();
    // behind the frame: with the layout that it needed
    setTimeout(() => {
      this.rest = Math.min(REST * (performance.now() - began), LONGEST_REST);
    });
  }
}

/** Blocks one after another; drawn again only where one of them is another object. */
class Section extends Component<{ blocks: readonly Block[] }> {
  override shouldComponentUpdate(next: { blocks: readonly Block[] }): boolean {
    const { blocks } = this.props;
    return next.blocks.length !== blocks.length || next.blocks.some((block, index) => block !== blocks[index]);
  }

  override render(): ComponentChildren {
    const { blocks } = this.props;
    return (
      <div class="section" style={{ "--blocks": blocks.length }}>
        {blocks.map((block) => <BlockView key={block.key} block={block} />)}
      </div>
    );
  }
}

class BlockView extends Component<{ block: Block }> {
  override shouldComponentUpdate(next: { block: Block }): boolean {
    return next.block !== this.props.block;
  }

  override render(): ComponentChildren {
    const { block } = this.props;
    switch (block.kind) {
      case "run":
        return elementsOf(block.tokens);
      case "list":
        return listOf(block);
      case "table":
        return tableOf(block);
      case "code":
        return <CodeView runs={block.runs} rest={block.rest} language={block.language} closed={block.closed} />;
    }
  }
}

/** Tokens that are drawn once: an item of a list, a row of a table. */
class Once extends Component<{ tokens: readonly Token[] }> {
  override shouldComponentUpdate(next: { tokens: readonly Token[] }): boolean {
    return next.tokens !== this.props.tokens;
  }

  override render(): ComponentChildren {
    return elementsOf(this.props.tokens);
  }
}

function listOf(block: ListBlock): VNode {
  return element(block.open, block.items.map((item, index) => <Once key={index} tokens={item} />));
}

function tableOf(block: TableBlock): VNode {
  return (
    <div class="table" tabIndex={0} role="region" aria-label="Table">
      <table>
        {elementsOf(block.head)}
        <tbody>{block.rows.map((row, index) => <Once key={index} tokens={row} />)}</tbody>
      </table>
    </div>
  );
}
