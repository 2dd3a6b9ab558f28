import { toast } from "../shell";

/** Copies a text. Plain HTTP addresses other than this machine have no clipboard: that is said. */
export async function copyText(text: string): Promise<void> {
  try {
    await navigator.clipboard.writeText(text);
    toast("Copied");
  } catch {
    toast("The browser does not allow this page to copy.", { bad: true });
  }
}
