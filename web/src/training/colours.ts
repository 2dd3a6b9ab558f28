// Curves of runs, told apart by colour.
const COLOURS = ["var(--series-1)", "var(--series-2)", "var(--series-3)", "var(--series-4)", "var(--series-5)"];

/** The colour of a curve by its place. */
export function colourAt(place: number): string {
  return COLOURS[place % COLOURS.length] ?? "";
}
