// Numbers as people read them.

const UNITS: readonly [number, string][] = [[1e12, "T"], [1e9, "B"], [1e6, "M"], [1e3, "K"]];

/** A count in at most three digits and a unit: 999, 12.3K, 1.20M. */
export function short(value: number): string {
  const size = Math.abs(value);
  for (const [unit, name] of UNITS) if (size >= unit * 0.9995) return `${digits(value / unit)}${name}`;
  if (size === 0 || Number.isInteger(value)) return String(value);
  return size < 0.001 ? value.toExponential(1) : digits(value);
}

/** Three digits of a number. */
function digits(value: number): string {
  const size = Math.abs(value);
  return value.toFixed(size >= 99.95 ? 0 : size >= 9.995 ? 1 : size >= 0.0995 ? 2 : size >= 0.00995 ? 3 : 4);
}

/** A whole number with separators: 12,345. */
export function whole(value: number): string {
  return Math.round(value).toLocaleString("en-US");
}

/** Bytes in binary units: 3.50 MiB. */
export function bytes(value: number): string {
  const names = ["B", "KiB", "MiB", "GiB", "TiB"];
  let at = 0;
  let rest = value;
  while (Math.abs(rest) >= 999.5 && at < names.length - 1) {
    rest /= 1024;
    at += 1;
  }
  return `${at === 0 ? String(Math.round(rest)) : digits(rest)} ${names[at]}`;
}

/** Bytes in decimal units, for the marks of an axis: 20 GB. */
export function decimalBytes(value: number): string {
  const [unit, name] = ([[1e12, "TB"], [1e9, "GB"], [1e6, "MB"], [1e3, "kB"]] as const).find(([size]) => Math.abs(value) >= size) ?? [1, "B"];
  return `${Number((value / unit).toPrecision(3))} ${name}`;
}

/** A share of one: 12.3 %. */
export function percent(share: number): string {
  if (!Number.isFinite(share)) return "–";
  const value = share * 100;
  return `${value === 0 || value === 100 ? value : value.toFixed(Math.abs(value) < 9.95 ? 1 : 0)} %`;
}

/** US dollars; small sums with as many places as they need. */
export function dollars(value: number): string {
  if (value === 0) return "$0";
  const size = Math.abs(value);
  return `$${value.toFixed(size >= 1 ? 2 : Math.min(8, 2 - Math.floor(Math.log10(size))))}`;
}

/** Seconds: 0.42 s, 12 s, 3 min 20 s, 2 h 05 min, 3 d 4 h. */
export function duration(seconds: number): string {
  if (seconds < 10) return `${seconds.toFixed(seconds < 1 ? 2 : 1)} s`;
  const all = Math.round(seconds);
  if (all < 60) return `${all} s`;
  if (all < 3600) return `${Math.floor(all / 60)} min ${String(all % 60).padStart(2, "0")} s`;
  if (all < 86_400) return `${Math.floor(all / 3600)} h ${String(Math.floor((all % 3600) / 60)).padStart(2, "0")} min`;
  return `${Math.floor(all / 86_400)} d ${Math.floor((all % 86_400) / 3600)} h`;
}

/** How long ago a time was, both in seconds since 1970. */
export function ago(then: number, now: number): string {
  const seconds = Math.max(0, now - then);
  if (seconds < 60) return "just now";
  if (seconds < 3600) return `${Math.floor(seconds / 60)} min ago`;
  if (seconds < 86_400) return `${Math.floor(seconds / 3600)} h ago`;
  return `${Math.floor(seconds / 86_400)} d ago`;
}
