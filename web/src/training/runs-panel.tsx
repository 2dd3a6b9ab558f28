// The runs of the folder, the newest first; several can be chosen and are then compared.
import type { RunSummary } from "../api/admin";
import { colourAt } from "../charts/colours";
import { ago, short, whole } from "../charts/format";
import { Panel } from "../shell/panel";
import { mainKey } from "./metrics";

interface Properties {
  runs: readonly RunSummary[];
  chosen: readonly string[];
  choose: (names: readonly string[]) => void;
}

export function RunsPanel({ runs, chosen, choose }: Properties) {
  const toggle = (name: string) => choose(chosen.includes(name) ? chosen.filter((other) => other !== name) : [...chosen, name]);
  const running = runs.filter((run) => run.running).length;
  return (
    <Panel title="Runs" actions={<span class={running ? "badge live" : "badge"}>{running ? `${running} running` : "none running"}</span>}>
      {runs.length === 0 ? (
        <p class="nothing">There is no run in the folder yet.</p>
      ) : (
        <ul class="runs">
          {runs.map((run) => (
            <li key={run.name}>
              <label class={chosen.includes(run.name) ? "run chosen" : "run"}>
                <input type="checkbox" checked={chosen.includes(run.name)} onChange={() => toggle(run.name)} />
                <i class="run-colour" style={chosen.includes(run.name) ? { background: colourAt(chosen.indexOf(run.name)) } : {}} />
                <span class="run-name">{run.name === "." ? "(the folder itself)" : run.name}</span>
                <span class="quiet small number run-facts">{facts(run)}</span>
                {run.running && <span class="badge live">running</span>}
              </label>
            </li>
          ))}
        </ul>
      )}
    </Panel>
  );
}

function facts({ last, changed }: RunSummary): string {
  const when = ago(changed, Date.now() / 1000);
  if (!last) return `no step yet · ${when}`;
  const main = mainKey(last);
  const result = main ? [`${main === "next" ? "loss" : main} ${short(last[main] as number)}`] : [];
  const tokens = last.tokens === undefined ? [] : [`${short(last.tokens)} tokens`];
  return [`step ${whole(last.step)}`, ...tokens, ...result, when].join(" · ");
}
