// The curves of the chosen runs, in groups.
import { useMemo } from "preact/hooks";
import type { LogLine } from "../api/admin";
import { colourAt } from "../charts/colours";
import { short } from "../charts/format";
import { Legend } from "../charts/legend";
import { LineChart, type Series } from "../charts/line-chart";
import { smoothed, thinned } from "../charts/scale";
import type { FollowedRun } from "./followed";
import { type ChartPlan, groupsOf, numberKeys, pointsOf } from "./metrics";

export type Over = "step" | "tokens";
const MOST_POINTS = 500;

export function Curves({ runs, over, smooth }: { runs: readonly FollowedRun[]; over: Over; smooth: number }) {
  const keys = useMemo(() => [...new Set(runs.flatMap(({ lines }) => numberKeys(lines)))], [readSoFar(runs)]);
  const groups = groupsOf(keys, runs.length > 1);
  return (
    <>
      {groups.map(({ title, charts }) => (
        <section key={title} class="curve-group" aria-label={title}>
          <h2>{title}</h2>
          <div class="curve-grid">
            {charts.map((plan) => <Chart key={plan.title} plan={plan} runs={runs} over={over} smooth={smooth} />)}
          </div>
        </section>
      ))}
    </>
  );
}

function Chart({ plan, runs, over, smooth }: { plan: ChartPlan; runs: readonly FollowedRun[]; over: Over; smooth: number }) {
  const series = useMemo(
    () => runs.flatMap((run, place) => plan.keys.flatMap(({ key, name }, i) => curveOf(run.lines, key, name ?? run.name, place + i, over, smooth))),
    [plan.title, over, smooth, readSoFar(runs)],
  );
  const last = series.length === 1 ? series[0]?.points.at(-1)?.[1] : undefined;
  return (
    <figure class="curve-card">
      <figcaption>
        <span>{plan.title}</span>
        {last !== undefined && <b class="number">{short(last)}</b>}
      </figcaption>
      <LineChart label={plan.title} series={series} height={150} />
      {plan.keys.length > 1 && <Legend entries={series} />}
    </figure>
  );
}

/** Changes with every line that is read. */
function readSoFar(runs: readonly FollowedRun[]): string {
  return runs.map(({ next, name }) => `${name} ${next}`).join();
}

function curveOf(
  lines: readonly LogLine[], key: string, name: string, place: number, over: Over, smooth: number,
): Series[] {
  const points = pointsOf(lines, key, over);
  if (points.length === 0) return [];
  const drawn = thinned(smoothed(points, smooth), MOST_POINTS);
  const behind = smooth > 0 && points.length > 2 ? { behind: thinned(points, MOST_POINTS) } : {};
  return [{ name, points: drawn, colour: colourAt(place), ...behind }];
}
