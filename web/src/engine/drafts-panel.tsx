// Speculative decoding: how many drafted tokens were right, over time.
import { useEffect, useRef } from "preact/hooks";
import type { EngineState } from "../api/admin";
import { percent, whole } from "../charts/format";
import { LineChart } from "../charts/line-chart";
import type { Point } from "../charts/scale";
import { Panel } from "../shell/panel";

const KEPT = 300;

interface Count {
  second: number;
  drafted: number;
  accepted: number;
}

export function DraftsPanel({ state }: { state: EngineState }) {
  const seen = useRef<Count[]>([]);
  const now: Count = {
    second: state.rates.now,
    drafted: state.counters.drafted_total ?? 0,
    accepted: state.counters.accepted_total ?? 0,
  };
  useEffect(() => {
    seen.current = [...seen.current.filter(({ second }) => second > now.second - KEPT), now];
  }, [now.second, now.drafted]);
  if (!state.report?.speculates) return null;
  const points = shares([...seen.current, now]);
  return (
    <Panel title="Drafts" actions={<span class="quiet small">{whole(now.accepted)} of {whole(now.drafted)} accepted since the start</span>}>
      {now.drafted === 0 ? (
        <p class="nothing">No token has been drafted yet.</p>
      ) : (
        <>
          <p class="draft-share"><b class="number">{percent(now.accepted / now.drafted)}</b> <span class="quiet">of drafts were right</span></p>
          {points.length > 1 && (
            <LineChart
              label="Share of accepted drafts" height={140} from={0} to={1} formatY={percent} formatX={(x) => (x === 0 ? "now" : `−${Math.round(-x)} s`)}
              series={[{ name: "accepted", points, colour: "var(--series-3)", filled: true }]}
            />
          )}
        </>
      )}
    </Panel>
  );
}

/** Of the drafts between two looks, the share that was accepted; looks without drafts are left out. */
function shares(counts: readonly Count[]): Point[] {
  const last = counts.at(-1)?.second ?? 0;
  return counts.flatMap((count, i) => {
    const before = counts[i - 1];
    const drafted = before ? count.drafted - before.drafted : 0;
    return before && drafted > 0 ? [[count.second - last, (count.accepted - before.accepted) / drafted] as Point] : [];
  });
}
