// Pages and slots by who holds them, and the memory of the cache by what lies in it.
import type { EngineState, Pool } from "../api/admin";
import { SERIES_COLOURS } from "../charts/colours";
import { bytes, whole } from "../charts/format";
import { ShareBar } from "../charts/share-bar";
import { Panel } from "../shell/panel";

const KINDS: Record<string, string> = {
  window: "windows",
  csa_entries: "CSA entries",
  hca_entries: "HCA entries",
  indexer_keys: "indexer keys",
  tails: "compressor tails",
  streams: "draft streams",
};
const COLOURS = [...SERIES_COLOURS, "var(--line-strong)"];

export function CachePanel({ state }: { state: EngineState }) {
  const { report, resident } = state;
  if (!report) {
    return <Panel title="Cache"><p class="nothing">This engine tells nothing about its cache.</p></Panel>;
  }
  const memory = Object.entries(report.cache_bytes).sort(([, a], [, b]) => b - a);
  const parts = memory.map(([kind, value], i) => ({ name: KINDS[kind] ?? kind, value, colour: COLOURS[i % COLOURS.length] ?? "" }));
  const whole_ = memory.reduce((sum, [, value]) => sum + value, 0);
  return (
    <Panel title="Cache" actions={<span class="quiet small">{report.age < 3 ? "" : `as of ${Math.round(report.age)} s ago`}</span>}>
      <div class="stack">
        <PoolBar name="Pages" note={`${whole(report.page_tokens)} tokens, ${bytes(report.pages.each)} each`} pool={report.pages} />
        <PoolBar name="Slots" note={`${bytes(report.slots.each)} each`} pool={report.slots} />
        <div class="stack tight">
          <h3 class="sub-title">Memory <span class="number">{bytes(whole_)} reserved</span></h3>
          <ShareBar label="Memory of the cache" parts={parts} format={bytes} />
          {resident !== null && <p class="quiet small">The process holds {bytes(resident)} of memory; what was never written takes none.</p>}
        </div>
      </div>
    </Panel>
  );
}

function PoolBar({ name, note, pool }: { name: string; note: string; pool: Pool }) {
  const parts = [
    { name: "running requests", value: pool.running, colour: "var(--series-1)" },
    { name: "kept prefixes", value: pool.kept, colour: "var(--series-3)" },
    { name: "free", value: pool.free, colour: "var(--sunken)" },
  ];
  return (
    <div class="stack tight">
      <h3 class="sub-title">{name} <span class="number">{note}</span></h3>
      <ShareBar label={name} parts={parts} of={pool.count} format={whole} />
    </div>
  );
}
