// All layers as one drawing, from the embedding to the head, and one of them in words.
import { useState } from "preact/hooks";
import type { Architecture, AttentionKind, Layer } from "../api/admin";
import { bytes, short, whole } from "../charts/format";
import { Legend } from "../charts/legend";
import { Panel } from "../shell/panel";
import { KINDS, countKinds } from "./kinds";

const WIDTH = 1000;
const HEIGHT = 150;
const END = 74;
const TOP = 26;
const ATTENTION = 54;
const MIXTURE = 40;
const GAP = 3;

export function LayersPanel({ architecture }: { architecture: Architecture }) {
  const { layers } = architecture;
  const [at, setAt] = useState(Math.max(0, layers.findIndex(({ attention }) => attention === "csa")));
  const layer = layers[at];
  return (
    <Panel title="Architecture" actions={<span class="quiet small">choose a layer</span>}>
      <Drawing architecture={architecture} at={at} choose={setAt} />
      <Legend
        entries={[
          ...countKinds(layers).map(({ kind, count }) => ({ name: KINDS[kind].name, colour: KINDS[kind].colour, value: count })),
          { name: "experts, chosen by a router", colour: "var(--series-3)" },
          { name: "experts, chosen by a table", colour: "var(--series-4)" },
        ]}
      />
      {layer && <LayerFacts layer={layer} architecture={architecture} />}
    </Panel>
  );
}

function Drawing({ architecture, at, choose }: { architecture: Architecture; at: number; choose: (layer: number) => void }) {
  const { layers, prediction_layers: blocks, draft_stages: stages } = architecture;
  const extra = blocks || stages;
  const right = END + (extra ? 60 : 0);
  const wide = Math.min(90, (WIDTH - END - right - 2 * GAP) / layers.length);
  // few layers do not fill the width: the drawing then stands in its middle, with no gap at the ends
  const left = (WIDTH - END - right - wide * layers.length) / 2;
  const from = left + END;
  const move = (event: KeyboardEvent) => {
    const by = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    if (!by) return;
    event.preventDefault();
    choose(Math.min(layers.length - 1, Math.max(0, at + by)));
  };
  const end = from + wide * layers.length;
  return (
    <div class="layers-scroll" tabIndex={0} role="region" aria-label="Drawing of the layers">
      <svg
        class="layers" viewBox={`0 0 ${WIDTH} ${HEIGHT}`} role="slider" tabindex={0} aria-label="Layer" aria-valuemin={0}
        aria-valuemax={layers.length - 1} aria-valuenow={at} aria-valuetext={valueText(layers[at])} onKeyDown={move}
      >
        <line class="stream" x1={left + END - 12} x2={end + (extra ? END + 2 * GAP : 2 * GAP)} y1={TOP + ATTENTION + GAP / 2} y2={TOP + ATTENTION + GAP / 2} />
        <End x={left} name="embedding" value={architecture.parameters.embedding ?? 0} />
        {layers.map((layer) => (
          <Column key={layer.index} layer={layer} x={from + layer.index * wide} wide={wide} chosen={layer.index === at} choose={choose} />
        ))}
        <End x={end + GAP} name="head" value={architecture.parameters.head ?? 0} />
        {extra > 0 && <End x={end + END + GAP} name={stages ? "drafts" : "MTP"} value={architecture.parameters.mtp ?? 0} faint />}
      </svg>
    </div>
  );
}

function Column({ layer, x, wide, chosen, choose }: {
  layer: Layer; x: number; wide: number; chosen: boolean; choose: (layer: number) => void;
}) {
  const { index, attention, routing } = layer;
  const inner = Math.max(2, wide - GAP);
  return (
    <g class={chosen ? "layer chosen" : "layer"} onClick={() => choose(index)}>
      <title>{valueText(layer)}</title>
      <rect x={x} y={0} width={wide} height={HEIGHT} fill="transparent" />
      <rect x={x} y={TOP} width={inner} height={ATTENTION} rx={Math.min(7, inner / 4)} fill={KINDS[attention].colour} />
      <rect
        x={x} y={TOP + ATTENTION + GAP} width={inner} height={MIXTURE} rx={Math.min(7, inner / 4)}
        fill={routing === "hash" ? "var(--series-4)" : "var(--series-3)"}
      />
      {wide > 34 && <text class="on-block" x={x + inner / 2} y={TOP + ATTENTION / 2 + 4}>{KINDS[attention].name}</text>}
      {(wide > 20 || index % 5 === 0) && <text x={x + inner / 2} y={HEIGHT - 12}>{index}</text>}
      {chosen && <rect class="ring" x={x - 2} y={TOP - 5} width={inner + 4} height={ATTENTION + MIXTURE + GAP + 10} rx={8} />}
    </g>
  );
}

function End({ x, name, value, faint }: { x: number; name: string; value: number; faint?: boolean }) {
  const wide = faint ? 56 : END - 10;
  return (
    <g class={faint ? "end faint" : "end"}>
      <rect x={x} y={TOP + 24} width={wide} height={50} rx={8} />
      <text x={x + wide / 2} y={TOP + 46}>{name}</text>
      <text class="second" x={x + wide / 2} y={TOP + 62}>{short(value)}</text>
    </g>
  );
}

function valueText(layer: Layer | undefined): string {
  if (!layer) return "";
  const routed = layer.routing === "hash" ? "experts by a table" : "experts by a router";
  return `layer ${layer.index}: ${KINDS[layer.attention].name}, ${routed}, ${short(layer.total)} parameters`;
}

function LayerFacts({ layer, architecture: { config } }: { layer: Layer; architecture: Architecture }) {
  const parts = Object.entries(layer.parameters).sort(([, a], [, b]) => b - a);
  return (
    <div class="layer-facts">
      <div>
        <h3>Layer {layer.index} · {KINDS[layer.attention].name}</h3>
        <p class="quiet small">{KINDS[layer.attention].about}</p>
        <ul class="flow">
          <li><b>{config.hc_mult} streams</b> of {whole(Number(config.hidden_size))}; a hyper-connection reads and mixes them</li>
          <li>
            <b>{config.num_attention_heads} heads</b> of {config.head_dim}, queries through {config.q_lora_rank}, one key-value head
            for all; output in {config.o_groups} groups through {config.o_lora_rank}
          </li>
          {rowsRead(layer.attention, layer.ratio, config).map((row) => <li key={row}>{row}</li>)}
          <li>
            <b>{config.num_experts_per_tok} of {config.n_routed_experts} experts</b> of {config.moe_intermediate_size}, chosen by{" "}
            {layer.routing === "hash" ? "a table over token ids" : "learned affinities"}, and a shared one
          </li>
        </ul>
      </div>
      <table class="data-table">
        <tbody>
          {parts.map(([name, count]) => (
            <tr key={name}><td>{name}</td><td class="right">{short(count)}</td></tr>
          ))}
          <tr class="total"><td>in all</td><td class="right">{short(layer.total)}</td></tr>
          <tr><td>for each token</td><td class="right">{short(layer.active)}</td></tr>
          <tr><td>cache for each token</td><td class="right">{bytes(layer.kv_bytes_per_token)}</td></tr>
        </tbody>
      </table>
    </div>
  );
}

function rowsRead(kind: AttentionKind, ratio: number, config: Architecture["config"]): string[] {
  const window = `it reads the last ${config.sliding_window} tokens`;
  if (kind === "swa") return [`${window}, and nothing else`];
  const entries = `one entry for ${ratio} tokens`;
  if (kind === "hca") return [`${window}, and ${entries}: all of them`];
  return [`${window}, and of ${entries} the ${config.index_topk} best`, `the indexer scores entries with ${config.index_n_heads} heads of ${config.index_head_dim}`];
}
