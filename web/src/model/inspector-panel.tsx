// One prompt looked into: its tokens, and for the chosen one what the model did inside.
import { Search } from "lucide";
import { useState } from "preact/hooks";
import { type Architecture, type Inspection, inspect } from "../api/admin";
import { errorText } from "../api/errors";
import { percent, whole } from "../charts/format";
import { HeatMap, equalShares, shareStrength } from "../charts/heat-map";
import { Button } from "../shell/button";
import { ErrorNotice } from "../shell/notice";
import { Panel } from "../shell/panel";
import { coveredTokens, expertCounts, expertsSeen, ratioOf } from "./covered";
import { InspectedTokens } from "./inspected-tokens";
import { TokenFacts } from "./token-facts";

const EXAMPLE = "What is 17 + 25?";

export function InspectorPanel({ architecture }: { architecture: Architecture | null }) {
  const [text, setText] = useState(EXAMPLE);
  const [limit, setLimit] = useState(32);
  const [state, setState] = useState<{ busy?: boolean; found?: Inspection; turn?: number; error?: string }>({});
  const run = async (event: Event) => {
    event.preventDefault();
    setState((old) => ({ ...old, busy: true }));
    try {
      const found = await inspect(text, limit);
      setState((old) => ({ found, turn: (old.turn ?? 0) + 1 }));
    } catch (error) {
      setState({ error: errorText(error) });
    }
  };
  return (
    <Panel title="Inspector">
      <p class="quiet small">
        Answers one prompt greedily and shows what happened inside: which experts each token met, which entries the indexers
        picked for it, and what its draft was worth.
      </p>
      <form class="inspect-form" onSubmit={run}>
        <label class="field inspect-text">
          <span>Prompt</span>
          <textarea class="textarea" rows={2} value={text} onInput={(event) => setText(event.currentTarget.value)} />
        </label>
        <label class="field inspect-limit">
          <span>Tokens</span>
          <input class="input" type="number" min={1} max={128} value={limit} onInput={(event) => setLimit(event.currentTarget.valueAsNumber || 1)} />
        </label>
        <Button kind="primary" icon={Search} type="submit" disabled={state.busy || !text.trim()}>{state.busy ? "Looking…" : "Inspect"}</Button>
      </form>
      {state.error && <ErrorNotice>{state.error}</ErrorNotice>}
      {state.found && <Found key={state.turn} found={state.found} architecture={architecture} />}
    </Panel>
  );
}

function Found({ found, architecture }: { found: Inspection; architecture: Architecture | null }) {
  const [at, setAt] = useState(found.prompt_tokens);
  const csa = Object.keys(found.entries).sort((a, b) => Number(a) - Number(b));
  const [layer, setLayer] = useState(csa[0] ?? "");
  // a token of the answer was chosen by the position before it
  const position = at >= found.prompt_tokens ? at - 1 : at;
  const read = found.entries[layer]?.[position - found.first] ?? [];
  return (
    <div class="stack inspected">
      {found.drafts && <Worth drafts={found.drafts} />}
      <InspectedTokens found={found} at={at} choose={setAt} covered={coveredTokens(read, ratioOf(architecture, layer))} />
      <TokenFacts found={found} at={at} position={position} layer={layer} setLayer={setLayer} architecture={architecture} />
      <ExpertMap found={found} architecture={architecture} />
    </div>
  );
}

function Worth({ drafts }: { drafts: NonNullable<Inspection["drafts"]> }) {
  const { drafted, accepted, tokens, steps } = drafts;
  if (drafted === 0) return <p class="quiet small">The engine may draft, but for this answer it did not: drafting would not have paid.</p>;
  return (
    <p class="draft-sum">
      <b class="number">{whole(accepted)} of {whole(drafted)}</b> drafts were right ({percent(accepted / drafted)}): {whole(tokens)} tokens
      in {whole(steps)} steps, {(tokens / Math.max(1, steps)).toFixed(2)} a step.
    </p>
  );
}

function ExpertMap({ found, architecture }: { found: Inspection; architecture: Architecture | null }) {
  const experts = Number(architecture?.config.n_routed_experts ?? expertsSeen(found));
  const counts = expertCounts(found, experts);
  const rows = counts.map(({ layer, counts: own }) => ({ name: `layer ${layer}`, values: equalShares(own) }));
  if (rows.length === 0) return null;
  return (
    <div class="stack tight">
      <h3 class="sub-title">Experts of the whole text</h3>
      <HeatMap
        label={`Use of ${experts} experts in ${rows.length} layers by this text`} rows={rows} strength={shareStrength}
        describe={(row, column) => `${rows[row]?.name}, expert ${column}: ${whole(counts[row]?.counts[column] ?? 0)} tokens`}
      />
    </div>
  );
}
