// Counting the tokens of long texts in pieces, so that the server answers others in between and the page can say how far
// it is.

/** Characters of a piece: some tens of milliseconds of the server's time. */
const PIECE = 200_000;

type Count = (piece: string) => Promise<number>;

/** The pieces of a text. Each ends with a line where it can: tokens do not reach over the beginning of a word. */
export function piecesOf(text: string, size = PIECE): string[] {
  const pieces: string[] = [];
  for (let from = 0; from < text.length; ) {
    const end = from + size < text.length ? border(text, from, from + size) : text.length;
    pieces.push(text.slice(from, end));
    from = end;
  }
  return pieces;
}

/** Where to cut: behind the last line break of the second half, else before a space, else between characters. */
function border(text: string, from: number, to: number): number {
  const least = from + Math.floor((to - from) / 2);
  const line = text.lastIndexOf("\n", to - 1);
  if (line >= least) return line + 1;
  const space = text.lastIndexOf(" ", to - 1);
  if (space >= least) return space;
  const code = text.charCodeAt(to - 1);
  return code >= 0xd800 && code < 0xdc00 ? to - 1 : to;
}

/** The tokens of a text; `onPart` is told the sum after each piece. */
export async function countLong(text: string, count: Count, onPart: (sum: number) => void = () => {}): Promise<number> {
  let sum = 0;
  for (const piece of piecesOf(text)) {
    sum += await count(piece);
    onPart(sum);
  }
  return sum;
}
