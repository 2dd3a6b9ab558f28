// Sending a question from anywhere on the page.
import { go, route } from "../shell";
import type { Attachment } from "../store/types";
import { ask, conversation } from "./session";

/** Asks in the open conversation, and puts that into the address, so that reloading shows it again. */
export function send(text: string, files: readonly Attachment[] = []): void {
  void ask(text, files);
  const chat = conversation.value.id;
  if (route.value.query.get("chat") !== chat) go("", { chat });
}
