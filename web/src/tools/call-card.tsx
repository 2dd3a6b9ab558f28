// A call of a tool in an answer: what the model wrote, what the user decides, what came back.
import { Check, Wrench, X } from "lucide";
import type { ComponentChildren } from "preact";
import { Button, Icon } from "../shell";
import type { Call } from "../store/types";
import { type LiveCall, liveCalls } from "./calls";
import { readableArguments, readableName } from "./readable";
import { toolNamed } from "./servers";
import type { ToolResult } from "./types";
import "./tools.css";

interface Properties {
  call: Call;
  /** undefined: there is none yet. */
  result: ToolResult | undefined;
  /** The model still writes. */
  isWritten: boolean;
}

export function CallCard({ call, result, isWritten }: Properties) {
  const tool = toolNamed(call.name);
  const live = liveCalls.value.get(call.id);
  const title = readableName(tool?.title ?? call.name);
  const asking = live?.decide !== undefined;
  return (
    <section class={asking ? "call asking" : "call"} aria-label={`Call of ${title}`}>
      <header>
        <Icon of={Wrench} size={16} />
        <strong>{title}</strong>
        {tool && <span class="small quiet">{readableName(tool.source)}</span>}
        <span class="space" />
        <CallState live={live} result={result} isWritten={isWritten} />
      </header>
      <Fold key={`arguments-${asking || isWritten}`} open={asking || isWritten} summary="Arguments">
        <Arguments text={call.arguments} />
      </Fold>
      {live?.decide && <Question title={title} decide={live.decide} />}
      {result && (
        <Fold open={result.failed} summary={result.failed ? "What went wrong" : `Result: ${firstLine(result.text)}`}>
          <pre class={result.failed ? "bad-text" : undefined} tabIndex={0}>{result.text}</pre>
        </Fold>
      )}
    </section>
  );
}

function Fold({ open, summary, children }: { open: boolean; summary: string; children: ComponentChildren }) {
  return (
    <details open={open}>
      <summary class="small">{summary}</summary>
      {children}
    </details>
  );
}

function Arguments({ text }: { text: string }) {
  const values = readableArguments(text);
  if (values.length === 0) return <p class="small quiet">none</p>;
  return (
    <div class="call-arguments">
      {values.map(({ name, text: value }) => (
        <div key={name}>
          {name && <span class="small quiet">{name}</span>}
          <pre tabIndex={0}>{value}</pre>
        </div>
      ))}
    </div>
  );
}

function CallState({ live, result, isWritten }: { live: LiveCall | undefined } & Omit<Properties, "call">) {
  if (live?.state.kind === "running") {
    return <span class="call-state"><span class="spinner" />{readableName(live.state.progress) || "running"}</span>;
  }
  if (live) return <span class="call-state">waits for you</span>;
  if (isWritten) return <span class="call-state"><span class="spinner" />writing</span>;
  if (!result) return <span class="call-state">not run</span>;
  const of = result.failed ? X : Check;
  return <span class={result.failed ? "call-state bad-text" : "call-state good"}><Icon of={of} size={15} />{result.failed ? "failed" : "done"}</span>;
}

function Question({ title, decide }: { title: string; decide: NonNullable<LiveCall["decide"]> }) {
  return (
    <div class="call-question" role="group" aria-label={`May the model use ${title}?`}>
      <p>May the model use <strong>{title}</strong> with these arguments?</p>
      <Button kind="primary" compact onClick={() => decide("once")}>Allow once</Button>
      <Button compact onClick={() => decide("always")}>Always in this chat</Button>
      <Button compact onClick={() => decide("deny")}>Deny</Button>
    </div>
  );
}

function firstLine(text: string): string {
  return readableName(text.split("\n").find((line) => line.trim()) ?? "");
}
