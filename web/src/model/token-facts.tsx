// What the model did at one token: its probability and the alternatives, its draft, its experts, its entries.
import type { Architecture, Inspection } from "../api/admin";
import { percent, whole } from "../charts/format";
import { choicesAt, ratioOf, sizeOf } from "./covered";
import { visible } from "./inspected-tokens";

interface Properties {
  found: Inspection;
  at: number;
  /** Where the choices of this token were made. */
  position: number;
  /** The CSA layer whose entries are marked. */
  layer: string;
  setLayer: (layer: string) => void;
  architecture: Architecture | null;
}

export function TokenFacts({ found, at, position, layer, setLayer, architecture }: Properties) {
  const token = found.tokens[at];
  if (!token) return null;
  const { experts, entries } = choicesAt(found, position);
  return (
    <div class="token-facts">
      <div class="stack tight">
        <h3 class="sub-title">Token {at}: <code>{visible(token.text)}</code></h3>
        {token.top ? <Alternatives top={token.top} chosen={token.text} /> : <p class="quiet small">A token of the prompt: nothing was chosen here.</p>}
        {token.draft && (
          <p class="small">
            {token.draft.accepted ? "The draft was right: this token took no step of its own." : <>The draft was <code>{visible(token.draft.text)}</code>: wrong, so the step gave this token.</>}
          </p>
        )}
      </div>
      <div class="stack tight">
        <h3 class="sub-title">Entries that the indexers picked</h3>
        {entries.length === 0 && <p class="quiet small">This model has no indexer.</p>}
        {entries.map(({ layer: own, chosen }) => (
          <EntryStrip
            key={own} layer={own} chosen={chosen} visible={Math.floor((position + 1) / ratioOf(architecture, own))}
            marked={own === layer} mark={() => setLayer(own)}
          />
        ))}
      </div>
      <div class="stack tight">
        <h3 class="sub-title">Experts that answered</h3>
        <ul class="answered">
          {experts.map(({ layer: own, chosen }) => (
            <li key={own}><span class="quiet small">layer {own}</span>{chosen?.map((expert) => <b key={expert} class="expert number">{expert}</b>) ?? "–"}</li>
          ))}
        </ul>
      </div>
    </div>
  );
}

function Alternatives({ top, chosen }: { top: readonly [string, number][]; chosen: string }) {
  return (
    <ol class="alternatives">
      {top.map(([text, probability], i) => (
        <li key={i} class={text === chosen ? "chosen" : ""}>
          <code>{visible(text)}</code>
          <span class="probability"><i style={{ width: `${probability * 100}%` }} /></span>
          <span class="number small">{percent(probability)}</span>
        </li>
      ))}
    </ol>
  );
}

function EntryStrip({ layer, chosen, visible: count, marked, mark }: {
  layer: string; chosen: [number, number][] | undefined; visible: number; marked: boolean; mark: () => void;
}) {
  const picked = sizeOf(chosen ?? []);
  const say = count === 0 ? "no entry is finished yet" : picked === count ? `all ${whole(count)}` : `${whole(picked)} of ${whole(count)}`;
  return (
    <button type="button" class={marked ? "entry-strip marked" : "entry-strip"} aria-pressed={marked} onClick={mark}>
      <span class="small">layer {layer} <span class="quiet number">{say}</span></span>
      <span class="entry-track" aria-hidden="true">
        {count > 0 && chosen?.map(([from, to]) => (
          <i key={from} style={{ left: `${(from / count) * 100}%`, width: `${((to - from) / count) * 100}%` }} />
        ))}
      </span>
    </button>
  );
}
