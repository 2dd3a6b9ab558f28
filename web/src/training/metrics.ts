// Which curves there are for the numbers of a log, in groups.
import type { LogLine } from "../api/admin";
import type { Point } from "../charts/scale";

export interface ChartPlan {
  title: string;
  /** The numbers that it draws, each with the name of its curve; one without a name is named by its run. */
  keys: readonly { key: string; name?: string }[];
}

export interface GroupPlan {
  title: string;
  charts: readonly ChartPlan[];
}

const GROUPS: readonly (readonly [string, readonly (readonly [string, string])[]])[] = [
  ["Rewards", [
    ["reward", "reward"], ["held_out_reward", "reward of held-out prompts"], ["finished", "finished answers"],
    ["length", "tokens of an answer"],
  ]],
  ["Loss", [
    ["next", "next token"], ["loss", "loss"], ["accuracy", "accuracy"], ["mtp", "token after next"],
    ["kl", "KL to the teachers or the reference"], ["entropy", "entropy"], ["mismatch", "KL of rollouts and learner"],
  ]],
  ["Indexer", [["indexer", "indexer KL"], ["recall_mass", "recalled attention"], ["recall_entries", "recalled entries"]]],
  ["Expert load", [["max_violation", "busiest expert over its share"], ["balance", "balance loss"]]],
  ["Steps", [["lr", "learning rate"], ["grad_norm", "gradient norm"], ["connection_error", "hyper-connection error"]]],
  ["Speed", [
    ["tokens_per_second", "tokens per second"], ["mfu", "share of the matmul rate"],
    ["rollout_tokens_per_second", "rollout tokens per second"], ["seconds", "seconds of a step"],
  ]],
];
/** Numbers that are no curves. */
const NEVER = new Set(["step", "tokens", "back_to", "skipped", "learned", "samples_learned"]);
const FAMILIES: readonly (readonly [prefix: string, group: string, title: string])[] = [
  ["reward.", "Rewards", "reward"], ["kl.", "Loss", "KL"], ["accept_", "Loss", "accepted drafts"], ["env.", "Environment", ""],
];

/** The number of a line that says most of how the run goes. */
export function mainKey(line: LogLine): "reward" | "next" | "loss" | undefined {
  return (["reward", "next", "loss"] as const).find((key) => typeof line[key] === "number");
}

/** The keys of the numbers in these lines, in the order in which they come. */
export function numberKeys(lines: readonly LogLine[]): string[] {
  const found = new Set<string>();
  for (const line of lines) for (const [key, value] of Object.entries(line)) if (typeof value === "number") found.add(key);
  return [...found].filter((key) => !NEVER.has(key));
}

/**
 * The charts for some keys. apart: the numbers of one family, say the rewards of one domain by effort, each have a
 * chart, because several runs are compared; else they share one.
 */
export function groupsOf(keys: readonly string[], apart: boolean): GroupPlan[] {
  const known = new Set(GROUPS.flatMap(([, charts]) => charts.map(([key]) => key)));
  const plans = new Map<string, ChartPlan[]>(GROUPS.map(([title, charts]) => [title, charts
    .filter(([key]) => keys.includes(key)).map(([key, name]) => ({ title: name, keys: [{ key }] }))]));
  const rest: string[] = [];
  for (const key of keys) if (!known.has(key) && !FAMILIES.some(([prefix]) => key.startsWith(prefix))) rest.push(key);
  for (const [prefix, group, title] of FAMILIES) {
    const own = keys.filter((key) => key.startsWith(prefix) && !known.has(key)).sort();
    plans.set(group, [...(plans.get(group) ?? []), ...familyCharts(own, prefix, title, apart)]);
  }
  plans.set("More", rest.sort().map((key) => ({ title: key.replaceAll("_", " "), keys: [{ key }] })));
  return [...plans].filter(([, charts]) => charts.length > 0).map(([title, charts]) => ({ title, charts }));
}

function familyCharts(keys: readonly string[], prefix: string, title: string, apart: boolean): ChartPlan[] {
  const named = (rest: string) => [title, rest.replaceAll("_", " ").replaceAll(".", ", ")].filter(Boolean).join(": ");
  if (apart || prefix === "env.") return keys.map((key) => ({ title: named(key.slice(prefix.length)), keys: [{ key }] }));
  const heads = new Map<string, { key: string; name: string }[]>();
  for (const key of keys) {
    const [head = "", tail] = key.slice(prefix.length).split(/\.(.*)/);
    const [place, name] = tail === undefined ? ["", head] : [head, tail];
    heads.set(place, [...(heads.get(place) ?? []), { key, name }]);
  }
  return [...heads].map(([head, own]) => ({ title: head ? named(head) : `${title} by part`, keys: own }));
}

/** The curve of one number over steps or tokens. Steps that a spike took back are left out. */
export function pointsOf(lines: readonly LogLine[], key: string, over: "step" | "tokens"): Point[] {
  const points: Point[] = [];
  for (const line of lines) {
    const value = line[key];
    const x = line[over];
    if (typeof value === "number" && typeof x === "number" && !line.spike) points.push([x, value]);
  }
  return points;
}
