// Training runs: their curves while they go on, compared with each other, and what they wrote.
import { useEffect, useState } from "preact/hooks";
import { listRuns } from "../api/admin";
import { usePolled } from "../api/polled";
import { short, whole } from "../charts/format";
import { Stat, Stats } from "../charts/stat";
import { ErrorNotice } from "../shell/notice";
import { PageHead } from "../shell/page-head";
import { Panel } from "../shell/panel";
import { go, route } from "../shell/router";
import { Segments } from "../shell/segments";
import { Curves, type Over } from "./curves";
import { type FollowedRun, useFollowed } from "./followed";
import { LoadPanel } from "./load-panel";
import { mainKey } from "./metrics";
import { RunsPanel } from "./runs-panel";
import { SamplesPanel } from "./samples-panel";
import "./training.css";

const PAUSE = 5000;
const MOST_CHOSEN = 5;
type Smooth = "0" | "0.6" | "0.95";

export default function TrainingPage() {
  const { value, error } = usePolled("runs", PAUSE, listRuns);
  const [chosen, choose] = useChosen(value?.runs.map(({ name }) => name));
  const runs = useFollowed(chosen);
  const [over, setOver] = useState<Over>("step");
  const [smooth, setSmooth] = useState<Smooth>("0.6");
  const missing = runs.find((run) => run.error);
  return (
    <>
      <PageHead title="Training" />
      <div class="page-body">
        <div class="page-inner">
          {error && <ErrorNotice>{error.message}</ErrorNotice>}
          {value && !value.folder && <NoFolder />}
          {value?.folder && (
            <>
              <RunsPanel runs={value.runs} chosen={chosen} choose={choose} />
              {missing?.error && <ErrorNotice>{missing.error}</ErrorNotice>}
              {runs.length === 1 && runs[0] && <Figures run={runs[0]} />}
              {runs.length > 0 && (
                <div class="curve-options">
                  <Segments label="Horizontal axis" value={over} onChange={setOver} options={[{ value: "step", label: "Steps" }, { value: "tokens", label: "Tokens" }]} />
                  <Segments
                    label="Smoothing" value={smooth} onChange={setSmooth}
                    options={[{ value: "0", label: "As measured" }, { value: "0.6", label: "Smooth" }, { value: "0.95", label: "Smoother" }]}
                  />
                </div>
              )}
              <Curves runs={runs} over={over} smooth={Number(smooth)} />
              <LoadPanel runs={runs} />
              <SamplesPanel runs={runs} />
            </>
          )}
        </div>
      </div>
    </>
  );
}

/** The chosen runs, kept in the address so that a reload or a link shows them again; at first the newest. */
function useChosen(names: readonly string[] | undefined) {
  const query = route.value.query.get("runs");
  const chosen = query ? query.split("|").slice(0, MOST_CHOSEN) : [];
  const choose = (next: readonly string[]) => go("training", next.length ? { runs: next.slice(-MOST_CHOSEN).join("|") } : {}, { replace: true });
  const first = names?.[0];
  useEffect(() => {
    if (query === null && first !== undefined) choose([first]);
  }, [query, first]);
  return [chosen, choose] as const;
}

function Figures({ run }: { run: FollowedRun }) {
  const last = run.lines.at(-1);
  if (!last) return <p class="nothing">This run has not finished a step yet.</p>;
  const number = (key: string) => (typeof last[key] === "number" ? (last[key] as number) : undefined);
  const main = mainKey(last);
  const spikes = run.lines.filter((line) => line.spike).length;
  return (
    <Stats>
      <Stat name="Step" value={whole(last.step)} note={run.running ? "running" : "not running"} />
      {last.tokens !== undefined && <Stat name="Tokens" value={short(last.tokens)} note={String(last.phase ?? "")} />}
      {main && <Stat name={main === "next" ? "Next-token loss" : main} value={short(number(main) ?? 0)} note="at the last step" />}
      {number("accuracy") !== undefined && <Stat name="Accuracy" value={short(number("accuracy") ?? 0)} note="of the next token" />}
      {number("tokens_per_second") !== undefined && (
        <Stat name="Speed" value={short(number("tokens_per_second") ?? 0)} note="tokens per second" />
      )}
      {number("max_violation") !== undefined && <Stat name="Spikes" value={spikes} note="taken back" />}
    </Stats>
  );
}

function NoFolder() {
  return (
    <Panel title="No folder of runs">
      <p class="nothing">Start the server with <code>dsv4 serve --runs FOLDER</code>, and the runs in that folder appear here.</p>
    </Panel>
  );
}
