// The load of each expert at the last measurement of a run.
import { HeatMap, shareStrength } from "../charts/heat-map";
import { Panel } from "../shell/panel";
import type { FollowedRun } from "./followed";

export function LoadPanel({ runs }: { runs: readonly FollowedRun[] }) {
  return (
    <>
      {runs.map(({ name, load }) => {
        if (!load) return null;
        const rows = Object.entries(load.layers).map(([layer, values]) => ({ name: `layer ${layer}`, values }));
        return (
          <Panel
            key={name} title={runs.length > 1 ? `Load of the experts of ${name}` : "Load of the experts"}
            actions={<span class="quiet small number">at step {load.step}</span>}
          >
            <HeatMap
              label={`Load of the experts in ${rows.length} layers at step ${load.step}`} rows={rows} strength={shareStrength}
              describe={(row, column) => `${rows[row]?.name}, expert ${column}: ${rows[row]?.values[column]?.toFixed(2)}× an equal share`}
            />
          </Panel>
        );
      })}
    </>
  );
}
