// How the tokens were shared among the experts of each layer, and what is read of them from disk.
import { useMemo } from "preact/hooks";
import type { EngineReport } from "../api/admin";
import { bytes, percent, short, whole } from "../charts/format";
import { HeatMap, equalShares, shareStrength } from "../charts/heat-map";
import { Legend } from "../charts/legend";
import { Panel } from "../shell/panel";

export function ExpertsPanel({ experts, report }: { experts: Record<string, number[]>; report: EngineReport }) {
  const rows = useMemo(
    () => Object.entries(experts).sort(([a], [b]) => Number(a) - Number(b)).map(([layer, counts]) => loads(layer, counts)),
    [experts],
  );
  const used = rows.some(({ most }) => most > 0);
  const worst = rows.reduce((best, row) => (row.most > best.most ? row : best), { name: "", most: 0 });
  return (
    <Panel
      title="Experts"
      actions={used && <span class="quiet small">busiest: {worst.most.toFixed(1)}× its share, in {worst.name}</span>}
    >
      {used ? (
        <>
          <HeatMap
            label={`Use of ${rows[0]?.values.length ?? 0} experts in ${rows.length} layers`} rows={rows} strength={shareStrength}
            describe={(row, column) => describe(rows[row], column)}
          />
          <Legend
            entries={[
              { name: "not used", colour: "var(--sunken)" },
              { name: "an equal share", colour: "var(--series-1)" },
              { name: "three shares or more", colour: "var(--series-2)" },
            ]}
          />
        </>
      ) : (
        <p class="nothing">No token has been computed yet.</p>
      )}
      {report.streaming && <Streaming streaming={report.streaming} />}
    </Panel>
  );
}

interface Loads {
  name: string;
  /** In equal shares: 1 is what each expert would get. */
  values: number[];
  counts: number[];
  most: number;
}

function loads(layer: string, counts: number[]): Loads {
  const values = equalShares(counts);
  return { name: `layer ${layer}`, values, counts, most: Math.max(0, ...values) };
}

function describe(row: Loads | undefined, column: number): string {
  if (!row) return "";
  return `${row.name}, expert ${column}: ${whole(row.counts[column] ?? 0)} tokens, ${(row.values[column] ?? 0).toFixed(2)}× an equal share`;
}

function Streaming({ streaming }: { streaming: NonNullable<EngineReport["streaming"]> }) {
  const { used, missed, resident, bytes_read } = streaming;
  return (
    <p class="quiet small streaming">
      Experts are read from disk: {whole(resident)} are in memory, {percent(1 - missed / Math.max(1, used))} of {short(used)} uses found
      theirs there, {bytes(bytes_read)} were read.
    </p>
  );
}
