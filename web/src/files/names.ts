// Names of files come from other people: they may hold characters that are invisible, turn the direction of the text
// around ("exe.txt" for "txt.exe"), or go on for pages.

const LONGEST = 120;
// control characters, marks of direction, joiners and other characters of no width
const HIDDEN = /[\p{Cc}\p{Cf}\p{Zl}\p{Zp}\p{Cs}\p{Co}]/gu;

/** A name as it is shown and told to the model: one line of visible characters, long ones cut in the middle. */
export function safeName(name: string): string {
  const last = name.replaceAll("\\", "/").split("/").at(-1) ?? "";
  const visible = last.replace(HIDDEN, "").replace(/\s+/gu, " ").trim();
  if (visible === "" || /^\.+$/.test(visible)) return "file without a name";
  const characters = [...visible];
  if (characters.length <= LONGEST) return visible;
  const end = 20;
  return `${characters.slice(0, LONGEST - end - 1).join("")}…${characters.slice(-end).join("")}`;
}

/** A name that none of the others has: "a.txt", "a (2).txt". */
export function otherName(name: string, taken: ReadonlySet<string>): string {
  const dot = name.lastIndexOf(".");
  const [stem, ending] = dot > 0 ? [name.slice(0, dot), name.slice(dot)] : [name, ""];
  let found = name;
  for (let number = 2; taken.has(found); number++) found = `${stem} (${number})${ending}`;
  return found;
}

/** A size for people. */
export function sizeText(bytes: number): string {
  if (bytes < 1000) return `${bytes} B`;
  if (bytes < 1e6) return `${Math.round(bytes / 1000)} kB`;
  return `${(bytes / 1e6).toFixed(1)} MB`;
}
