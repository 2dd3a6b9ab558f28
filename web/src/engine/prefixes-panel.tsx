// The kept prefixes as trees: a prefix stands below the one that it continues.
import type { EngineState, KeptPrefix } from "../api/admin";
import { percent, short, whole } from "../charts/format";
import { Panel } from "../shell/panel";

const MOST_SHOWN = 60;

export function PrefixesPanel({ state }: { state: EngineState }) {
  const prefixes = state.report?.prefixes ?? [];
  const counter = (name: string) => state.counters[`prefix_${name}_total`] ?? 0;
  const longest = Math.max(1, ...prefixes.map(({ length }) => length));
  const owners = new Set(prefixes.map(({ owner }) => owner)).size;
  return (
    <Panel
      title="Kept prefixes"
      actions={prefixes.length > 0 && <span class="quiet small number">{prefixes.length}{owners > 1 && ` of ${owners} owners`}</span>}
    >
      {counter("lookups") > 0 && (
        <p class="quiet small">
          {whole(counter("hits"))} of {whole(counter("lookups"))} prompts found one ({percent(counter("hits") / counter("lookups"))}),
          {" "}{short(counter("hit_tokens"))} tokens were not computed again; {whole(counter("evicted"))} made room.
        </p>
      )}
      {prefixes.length === 0 ? (
        <p class="nothing">None yet. The beginning of every prompt is kept for the next one.</p>
      ) : (
        <ol class="prefixes">
          {prefixes.slice(0, MOST_SHOWN).map((prefix, i) => (
            // the list has no names: its order is all there is
            <Prefix key={`${i}-${prefix.length}`} prefix={prefix} below={depth(prefixes, prefix)} longest={longest} />
          ))}
        </ol>
      )}
      {prefixes.length > MOST_SHOWN && <p class="quiet small">and {prefixes.length - MOST_SHOWN} more</p>}
    </Panel>
  );
}

function Prefix({ prefix, below, longest }: { prefix: KeptPrefix; below: number; longest: number }) {
  return (
    <li style={{ paddingLeft: `${below * 1.1}rem` }}>
      <span class="prefix-bar" style={{ width: `${(prefix.length / longest) * 100}%` }} />
      <span class="prefix-text">
        {below > 0 && <span aria-hidden="true" class="quiet">└ </span>}
        <b class="number">{whole(prefix.length)}</b> tokens
        <span class="quiet"> · {prefix.pages} {prefix.pages === 1 ? "page" : "pages"}{!prefix.snapshot && " · no windows"}</span>
      </span>
    </li>
  );
}

function depth(all: readonly KeptPrefix[], prefix: KeptPrefix): number {
  let found = 0;
  for (let above = prefix.parent; above !== null && found < 12; above = all[above]?.parent ?? null) found += 1;
  return found;
}
