// Tokens and cost from the ledger: by day, by model, by key.
import { RefreshCw } from "lucide";
import { useState } from "preact/hooks";
import { type Usage, type UsageRow, usageSince } from "../api/admin";
import { usePolled } from "../api/polled";
import { SERIES_COLOURS } from "../charts/colours";
import { Columns } from "../charts/columns";
import { dollars, percent, short, whole } from "../charts/format";
import { Legend } from "../charts/legend";
import { Stat, Stats } from "../charts/stat";
import { TableScroll } from "../charts/table-scroll";
import { Button } from "../shell/button";
import { ErrorNotice } from "../shell/notice";
import { PageHead } from "../shell/page-head";
import { Panel } from "../shell/panel";
import { Segments } from "../shell/segments";
import { type Group, byDay, daysBetween, grouped, named, sumOf } from "./sums";
import "./usage.css";

type Since = "7d" | "30d" | "90d" | "";
type Measure = "tokens" | "cost";
const SINCE: readonly { value: Since; label: string }[] = [
  { value: "7d", label: "7 days" },
  { value: "30d", label: "30 days" },
  { value: "90d", label: "90 days" },
  { value: "", label: "All" },
];
const PAUSE = 15_000;
const MOST_DAYS = 120;

export default function UsagePage() {
  const [since, setSince] = useState<Since>("30d");
  const { value, error, again } = usePolled(`usage ${since}`, PAUSE, (signal) => usageSince(since, signal));
  return (
    <>
      <PageHead title="Usage" actions={<Button kind="quiet" icon={RefreshCw} label="Read the ledger again" onClick={again} />} />
      <div class="page-body">
        <div class="page-inner">
          <div><Segments label="Time" value={since} options={SINCE} onChange={setSince} /></div>
          {error && <ErrorNotice>{error.message}</ErrorNotice>}
          {value && <Shown usage={value} />}
        </div>
      </div>
    </>
  );
}

function Shown({ usage }: { usage: Usage }) {
  if (!usage.ledger) return <Panel title="No ledger"><p class="nothing">This server records no usage (<code>--ledger none</code>).</p></Panel>;
  if (usage.rows.length === 0) return <Panel title="Usage"><p class="nothing">Nothing was used in this time.</p></Panel>;
  return (
    <>
      <Figures rows={usage.rows} />
      <DaysPanel rows={usage.rows} />
      <div class="split">
        <GroupPanel title="By model" rows={usage.rows} group="model" />
        <GroupPanel title={usage.operator ? "By key" : "Your key"} rows={usage.rows} group="key" />
      </div>
      <RowsPanel rows={usage.rows} />
    </>
  );
}

function daysOf(rows: readonly UsageRow[]): string {
  const days = new Set(rows.map(({ day }) => day)).size;
  return days === 1 ? "1 day" : `${days} days`;
}

function Figures({ rows }: { rows: readonly UsageRow[] }) {
  const sums = sumOf(rows);
  return (
    <Stats>
      <Stat name="Cost" value={dollars(sums.cost)} note={sums.cost ? `${dollars(sums.cost / sums.requests)} a request` : "this model is free"} />
      <Stat name="Requests" value={short(sums.requests)} note={daysOf(rows)} />
      <Stat name="Prompt tokens" value={short(sums.prompt)} note={`${percent(sums.cached / Math.max(1, sums.prompt))} from the cache`} />
      <Stat name="Answer tokens" value={short(sums.completion)} note={`${percent(sums.reasoning / Math.max(1, sums.completion))} of it thinking`} />
    </Stats>
  );
}

function DaysPanel({ rows }: { rows: readonly UsageRow[] }) {
  const [measure, setMeasure] = useState<Measure>("tokens");
  const [group, setGroup] = useState<Group>("model");
  const count = (row: UsageRow) => (measure === "cost" ? row.cost : row.prompt + row.completion);
  const names = named(rows, group, measure === "cost" ? "cost" : "prompt", SERIES_COLOURS.length);
  const first = rows[0]?.day ?? "";
  const days = daysBetween(first, new Date().toISOString().slice(0, 10), MOST_DAYS);
  const table = byDay(rows, days, group, names, count);
  const columns = days.map((day, i) => ({ name: dayName(day), values: table[i] ?? [] }));
  return (
    <Panel
      title="By day"
      actions={
        <>
          <Segments label="Measure" value={measure} onChange={setMeasure} options={[{ value: "tokens", label: "Tokens" }, { value: "cost", label: "Cost" }]} />
          <Segments label="Colours" value={group} onChange={setGroup} options={[{ value: "model", label: "Model" }, { value: "key", label: "Key" }]} />
        </>
      }
    >
      <Columns
        label={`${measure === "cost" ? "Cost" : "Tokens"} by day and ${group}`} columns={columns} names={names.map(shown)}
        colours={SERIES_COLOURS} format={measure === "cost" ? dollars : short}
      />
      <Legend entries={names.map((name, i) => ({ name: shown(name), colour: SERIES_COLOURS[i] ?? "" }))} />
    </Panel>
  );
}

function GroupPanel({ title, rows, group }: { title: string; rows: readonly UsageRow[]; group: Group }) {
  const parts = grouped(rows, group, "cost");
  const most = Math.max(...parts.map(({ sums }) => sums.prompt + sums.completion));
  return (
    <Panel title={title}>
      <TableScroll label={title}>
        <table class="data-table">
          <thead>
            <tr>
              <th scope="col">{group === "key" ? "Key" : "Model"}</th>
              <th scope="col" class="right">Requests</th>
              <th scope="col" class="right">Tokens</th>
              <th scope="col" class="right">Cached</th>
              <th scope="col" class="right">Cost</th>
            </tr>
          </thead>
          <tbody>
            {parts.map(({ name, sums }) => (
              <tr key={name}>
                <td>
                  {shown(name)}
                  <div class="usage-bar"><i style={{ width: `${((sums.prompt + sums.completion) / most) * 100}%` }} /></div>
                </td>
                <td class="right">{whole(sums.requests)}</td>
                <td class="right">{short(sums.prompt + sums.completion)}</td>
                <td class="right">{percent(sums.cached / Math.max(1, sums.prompt))}</td>
                <td class="right">{dollars(sums.cost)}</td>
              </tr>
            ))}
          </tbody>
        </table>
      </TableScroll>
    </Panel>
  );
}

function RowsPanel({ rows }: { rows: readonly UsageRow[] }) {
  const newest = [...rows].reverse().slice(0, 100);
  return (
    <Panel title="Rows of the ledger" actions={<span class="quiet small number">{newest.length} of {rows.length}</span>}>
      <TableScroll class="usage-rows" label="Rows of the ledger">
        <table class="data-table">
          <thead>
            <tr>
              <th scope="col">Day</th>
              <th scope="col">Key</th>
              <th scope="col">Model</th>
              {["Requests", "Prompt", "Cached", "Answer", "Thinking", "Cost"].map((name) => <th key={name} scope="col" class="right">{name}</th>)}
            </tr>
          </thead>
          <tbody>
            {newest.map((row) => (
              <tr key={`${row.day} ${row.key} ${row.model}`}>
                <td>{row.day}</td>
                <td>{shown(row.key)}</td>
                <td>{row.model}</td>
                {[row.requests, row.prompt, row.cached, row.completion, row.reasoning].map((value, i) => (
                  <td key={i} class="right">{whole(value)}</td>
                ))}
                <td class="right">{dollars(row.cost)}</td>
              </tr>
            ))}
          </tbody>
        </table>
      </TableScroll>
    </Panel>
  );
}

/** Without keys the ledger has an empty name. */
function shown(name: string): string {
  return name || "no key";
}

function dayName(day: string): string {
  const date = new Date(`${day}T00:00:00Z`);
  return date.toLocaleDateString("en-GB", { day: "numeric", month: "short", timeZone: "UTC" });
}
