// What runs that sample wrote: the newest prompts, answers and rewards.
import { useState } from "preact/hooks";
import type { Sample } from "../api/admin";
import { short, whole } from "../charts/format";
import { Button } from "../shell/button";
import { Panel } from "../shell/panel";
import { Segments } from "../shell/segments";
import type { FollowedRun } from "./followed";

type Order = "new" | "worst" | "best";
const FEW = 6;

export function SamplesPanel({ runs }: { runs: readonly FollowedRun[] }) {
  const [order, setOrder] = useState<Order>("new");
  const [all, setAll] = useState(false);
  const own = runs.filter(({ samples }) => samples.length > 0);
  if (own.length === 0) return null;
  return (
    <>
      {own.map(({ name, samples }) => (
        <Panel
          key={name} title={runs.length > 1 ? `Samples of ${name}` : "Samples"}
          actions={
            <Segments
              label="Order" value={order} onChange={setOrder}
              options={[{ value: "new", label: "Newest" }, { value: "worst", label: "Worst" }, { value: "best", label: "Best" }]}
            />
          }
        >
          <div class="samples">{ordered(samples, order).slice(0, all ? undefined : FEW).map((sample, i) => <Shown key={`${sample.step} ${i}`} sample={sample} />)}</div>
          {!all && samples.length > FEW && <Button kind="quiet" compact onClick={() => setAll(true)}>Show all {samples.length}</Button>}
        </Panel>
      ))}
    </>
  );
}

function Shown({ sample }: { sample: Sample }) {
  const { reward } = sample;
  const tone = reward === undefined ? "" : reward > 0.5 ? "good" : "bad";
  return (
    <details class="sample">
      <summary>
        <b class={`number reward ${tone}`}>{reward === undefined ? "–" : short(reward)}</b>
        <span class="sample-line">{lastWords(sample.prompt ?? "")}</span>
        <span class="quiet small number">step {whole(sample.step)}{sample.length !== undefined && ` · ${whole(sample.length)} tokens`}</span>
      </summary>
      <h3 class="sub-title">Prompt</h3>
      <pre>{sample.prompt}</pre>
      <h3 class="sub-title">Answer</h3>
      <pre>{sample.answer}</pre>
    </details>
  );
}

function ordered(samples: readonly Sample[], order: Order): readonly Sample[] {
  if (order === "new") return samples;
  const sign = order === "best" ? -1 : 1;
  return [...samples].sort((a, b) => sign * ((a.reward ?? 0) - (b.reward ?? 0)));
}

/** What was asked last: prompts begin with instructions that are alike. */
function lastWords(prompt: string): string {
  const asked = prompt.split("<｜User｜>").at(-1) ?? prompt;
  return asked.replace(/<｜[^｜]*｜>|<\/?think>/g, " ").replace(/\s+/g, " ").trim().slice(0, 160) || "–";
}
