// What the engine does now: requests, speed, cache, kept prefixes, experts, drafts.
import { useRef, useState } from "preact/hooks";
import { type EngineState, engineState } from "../api/admin";
import { usePolled } from "../api/polled";
import { duration, percent, short, whole } from "../charts/format";
import { Legend } from "../charts/legend";
import { LineChart } from "../charts/line-chart";
import { Stat, Stats } from "../charts/stat";
import { ErrorNotice } from "../shell/notice";
import { PageHead } from "../shell/page-head";
import { Panel } from "../shell/panel";
import { Segments } from "../shell/segments";
import { CachePanel } from "./cache-panel";
import { DraftsPanel } from "./drafts-panel";
import { ExpertsPanel } from "./experts-panel";
import { PrefixesPanel } from "./prefixes-panel";
import { curve, joined, lastKnown, speedNow } from "./rates";
import { RequestsPanel } from "./requests-panel";
import "./engine.css";

const PAUSE = 1000;
const EXPERTS_EVERY = 5;
type Seconds = ReturnType<typeof joined>;
type Span = "60" | "300" | "900";
const SPANS: readonly { value: Span; label: string }[] = [
  { value: "60", label: "1 min" },
  { value: "300", label: "5 min" },
  { value: "900", label: "15 min" },
];

export default function EnginePage() {
  const { state, seconds, experts, error, again } = useEngine();
  return (
    <>
      <PageHead title="Engine" actions={state && <Working state={state} />} />
      <div class="page-body">
        <div class="page-inner">
          {error && <ErrorNotice>{error.message}</ErrorNotice>}
          {state?.failing && <ErrorNotice>The engine fails: {state.failing}</ErrorNotice>}
          {state && (
            <>
              <Figures state={state} seconds={seconds} />
              <RequestsPanel state={state} again={again} />
              <SpeedPanel seconds={seconds} now={state.rates.now} />
              <div class="split">
                <CachePanel state={state} />
                <PrefixesPanel state={state} />
              </div>
              {state.report && experts && <ExpertsPanel experts={experts} report={state.report} />}
              <DraftsPanel state={state} />
            </>
          )}
        </div>
      </div>
    </>
  );
}

/** The state every second; the many numbers of the experts only now and then. */
function useEngine() {
  const kept = useRef<{ seconds: Seconds; experts: Record<string, number[]> | undefined; turn: number }>({
    seconds: [], experts: undefined, turn: 0,
  });
  const { value: state, error, again } = usePolled("engine", PAUSE, async (signal) => {
    const own = kept.current;
    const wantsExperts = own.turn % EXPERTS_EVERY === 0;
    const found = await engineState(lastKnown(own.seconds), wantsExperts, signal);
    own.turn += 1;
    own.seconds = joined(own.seconds, found.rates);
    own.experts = found.report?.experts ?? own.experts;
    return found;
  });
  return { state, seconds: kept.current.seconds, experts: kept.current.experts, error, again };
}

function Working({ state }: { state: EngineState }) {
  const busy = state.requests.length + state.others > 0;
  return <span class={busy ? "badge live" : "badge"}>{busy ? "working" : "idle"}</span>;
}

function Figures({ state, seconds }: { state: EngineState; seconds: Seconds }) {
  const { counters, report, rates } = state;
  const waiting = state.requests.filter((request) => request.state === "waiting").length;
  const [hits, lookups] = [counters.prefix_hits_total ?? 0, counters.prefix_lookups_total ?? 0];
  const [read, reused] = [counters.prompt_tokens_total ?? 0, counters.reused_tokens_total ?? 0];
  const active = state.requests.length + state.others;
  return (
    <Stats>
      <Stat name="Requests" value={active} note={waiting ? `${waiting} waiting` : "none waiting"} />
      <Stat
        name="Generating" value={<>{short(speedNow(seconds, rates.now, 2))}<small> tok/s</small></>}
        note={`reading ${short(speedNow(seconds, rates.now, 1))} tok/s`}
      />
      {report && (
        <Stat
          name="Pages in use" value={percent(1 - report.pages.free / report.pages.count)}
          note={`${whole(report.pages.count - report.pages.free)} of ${whole(report.pages.count)}`}
        />
      )}
      {lookups > 0 && (
        <Stat
          name="Prefix hits" value={percent(hits / lookups)}
          note={`${percent(reused / Math.max(1, read + reused))} of tokens`}
        />
      )}
      {(counters.generated_tokens_total ?? 0) > 0 && (
        <Stat
          name="Tokens so far" value={short(counters.generated_tokens_total ?? 0)}
          note={`in ${whole(counters.ended_total ?? 0)} ${counters.ended_total === 1 ? "answer" : "answers"}`}
        />
      )}
      {(counters.steps_total ?? 0) > 0 && (
        <Stat
          name="A step" value={duration((counters.seconds_total ?? 0) / (counters.steps_total || 1))}
          note={report?.steps.split(" (")[0] ?? "on average"}
        />
      )}
    </Stats>
  );
}

/** A time before now: −3 min, −12 s. */
function before(seconds: number): string {
  return seconds > -1 ? "now" : `−${duration(-seconds).replace(/ 00 s$/, "").replace(/\.0 s$/, " s")}`;
}

function SpeedPanel({ seconds, now }: { seconds: Seconds; now: number }) {
  const [span, setSpan] = useState<Span>("300");
  const series = [
    { name: "generated", points: curve(seconds, now, Number(span), 2), colour: "var(--series-1)", filled: true },
    { name: "prompt read", points: curve(seconds, now, Number(span), 1), colour: "var(--series-2)" },
  ];
  return (
    <Panel
      title="Tokens per second"
      actions={<Segments label="Time shown" value={span} options={SPANS} onChange={setSpan} />}
    >
      <LineChart
        label="Tokens per second" series={series} height={210} from={0} range={{ low: -Number(span), high: 0 }}
        marks={[1, 0.8, 0.6, 0.4, 0.2, 0].map((share) => -share * Number(span))} formatX={before}
      />
      <Legend entries={series} />
    </Panel>
  );
}
