// What a context costs: memory of the cache and operations for a token, beside DeepSeek-V3.2.
import type { Architecture, ContextCost } from "../api/admin";
import { bytes, decimalBytes, percent, short } from "../charts/format";
import { Legend } from "../charts/legend";
import { LineChart } from "../charts/line-chart";
import { TableScroll } from "../charts/table-scroll";
import { Panel } from "../shell/panel";

const OWN = "var(--series-1)";
const PEER = "var(--series-2)";
const MARKS = [0.25, 0.5, 0.75, 1].map((share) => share * 2 ** 20);

export function CostPanel({ name, architecture: { contexts } }: { name: string; architecture: Architecture }) {
  const curves = (own: keyof ContextCost, peer: keyof ContextCost) => [
    { name, colour: OWN, points: contexts.map((row) => [row.tokens, row[own]] as const), filled: true },
    { name: "V3.2", colour: PEER, points: contexts.map((row) => [row.tokens, row[peer]] as const) },
  ];
  return (
    <Panel title="What a context costs">
      <div class="split">
        <figure class="cost">
          <figcaption class="sub-title">Cache of one sequence</figcaption>
          <LineChart label="Cache of one sequence" series={curves("kv_bytes", "v32_kv_bytes")} from={0} marks={MARKS} formatX={context} formatY={decimalBytes} height={170} />
        </figure>
        <figure class="cost">
          <figcaption class="sub-title">Operations for one token</figcaption>
          <LineChart label="Operations for one token" series={curves("flops_per_token", "v32_flops_per_token")} from={0} marks={MARKS} formatX={context} height={170} />
        </figure>
      </div>
      <Legend entries={[{ name, colour: OWN }, { name: "DeepSeek-V3.2", colour: PEER }]} />
      <TableScroll label="Cost by length of the context">
        <table class="data-table">
          <thead>
            <tr>
              <th scope="col">Context</th>
              {["Cache", "V3.2", "smaller", "Operations", "V3.2", "share"].map((head, i) => <th key={i} scope="col" class="right">{head}</th>)}
            </tr>
          </thead>
          <tbody>
            {contexts.map((row) => (
              <tr key={row.tokens}>
                <td>{context(row.tokens)}</td>
                <td class="right">{bytes(row.kv_bytes)}</td>
                <td class="right quiet">{bytes(row.v32_kv_bytes)}</td>
                <td class="right">{row.kv_times_smaller.toFixed(1)}×</td>
                <td class="right">{short(row.flops_per_token)}</td>
                <td class="right quiet">{short(row.v32_flops_per_token)}</td>
                <td class="right">{row.flops_share < 0.001 ? "< 0.1 %" : percent(row.flops_share)}</td>
              </tr>
            ))}
          </tbody>
        </table>
      </TableScroll>
      <p class="quiet small">Arithmetic in the release's packing, in equivalent FP8 operations, as the report counts (figure 1).</p>
    </Panel>
  );
}

function context(tokens: number): string {
  return tokens >= 1 << 20 ? `${Math.round(tokens / (1 << 20))}M` : tokens >= 1024 ? `${Math.round(tokens / 1024)}K` : String(Math.round(tokens));
}
