// The model: its architecture drawn from its config, what it costs, and a look into one prompt.
import { modelFacts } from "../api/admin";
import type { Architecture, ModelFacts } from "../api/admin";
import { usePolled } from "../api/polled";
import { bytes, short, whole } from "../charts/format";
import { ShareBar } from "../charts/share-bar";
import { Stat, Stats } from "../charts/stat";
import { ErrorNotice } from "../shell/notice";
import { PageHead } from "../shell/page-head";
import { Panel } from "../shell/panel";
import { CostPanel } from "./cost-panel";
import { InspectorPanel } from "./inspector-panel";
import { countKinds, KINDS } from "./kinds";
import { LayersPanel } from "./layers-panel";
import "./model.css";

const PARTS: readonly (readonly [key: string, name: string, colour: string])[] = [
  ["routed_experts", "routed experts", "var(--series-1)"],
  ["shared_experts", "shared experts", "var(--series-4)"],
  ["attention", "attention", "var(--series-2)"],
  ["indexers", "indexers", "var(--series-3)"],
  ["compressors", "compressors", "var(--warn)"],
  ["embedding", "embedding", "var(--series-5)"],
  ["head", "head", "var(--line-strong)"],
  ["hyper_connections", "hyper-connections", "var(--bad)"],
  ["routers", "routers", "var(--good)"],
];

export default function ModelPage() {
  const { value, error } = usePolled("model", 0, modelFacts);
  return (
    <>
      <PageHead title={value ? <>Model <span class="quiet">{value.model}</span></> : "Model"} />
      <div class="page-body">
        <div class="page-inner">
          {error && <ErrorNotice>{error.message}</ErrorNotice>}
          {value && (value.architecture ? <Drawn facts={value} of={value.architecture} /> : <Unknown facts={value} />)}
          {value && <InspectorPanel architecture={value.architecture} />}
        </div>
      </div>
    </>
  );
}

function Drawn({ facts, of }: { facts: ModelFacts; of: Architecture }) {
  const { parameters, config } = of;
  const kinds = countKinds(of.layers).map(({ kind, count }) => `${count} ${KINDS[kind].name}`).join(", ");
  return (
    <>
      <Stats>
        <Stat name="Parameters" value={short(parameters.total ?? 0)} note={`${short(parameters.active ?? 0)} for each token`} />
        <Stat name="Layers" value={of.layers.length} note={kinds} />
        <Stat name="Experts" value={whole(Number(config.n_routed_experts))} note={`${config.num_experts_per_tok} chosen, 1 shared`} />
        <Stat name="Context" value={short(facts.context_length)} note={`made for ${short(Number(config.max_position_embeddings))}`} />
        <Stat name="Cache per token" value={bytes(of.kv_bytes_per_token)} note={`V3.2: ${bytes(of.v32_kv_bytes_per_token)}`} />
        <Stat name="On disk" value={bytes(of.disk.bytes)} note={`${of.disk.layout} layout`} />
      </Stats>
      <LayersPanel architecture={of} />
      <Panel title="Parameters" actions={<span class="quiet small number">{short(parameters.total ?? 0)} in all{parameters.mtp ? `, ${short(parameters.mtp)} more to draft` : ""}</span>}>
        <ShareBar
          label="Parameters by part" format={short}
          parts={PARTS.map(([key, name, colour]) => ({ name, value: parameters[key] ?? 0, colour })).filter(({ value }) => value > 0)}
        />
      </Panel>
      <CostPanel name={facts.model} architecture={of} />
    </>
  );
}

function Unknown({ facts }: { facts: ModelFacts }) {
  return (
    <Panel title="Architecture">
      <p class="nothing">
        This server was not told what its model is made of. It has a context of {whole(facts.context_length)} tokens and a
        vocabulary of {whole(facts.vocabulary)}.
      </p>
    </Panel>
  );
}
