// The chat.
import { useEffect, useLayoutEffect, useState } from "preact/hooks";
import { SlidersHorizontal } from "lucide";
import { conversations, followOtherTabs, loadConversations, storageProblem } from "../store/conversations";
import { connection } from "../api/connection";
import { exchangeWithServer } from "../store/server-copy";
import { FileDrop } from "../files";
import { Button, PageHead, go, route, toast } from "../shell";
import "./chat.css";
import { ChatSettings, hasOwnSettings } from "./chat-settings";
import { Composer } from "./composer";
import { announcement, branch, conversation, openConversation, running, startNew } from "./session";
import { ShortcutList, useShortcuts } from "./shortcuts";
import { Talk } from "./talk";
import { Suggestions, Welcome } from "./welcome";

export { ConversationList as Aside } from "./conversation-list";

export default function ChatPage() {
  const [settings, setSettings] = useState(false);
  useRoute();
  useShortcuts();
  const label = hasOwnSettings(conversation.value) ? "Chat settings (changed)" : "Chat settings";
  const actions = (
    <Button kind="quiet" icon={SlidersHorizontal} label={label} onClick={() => setSettings(true)}>
      {hasOwnSettings(conversation.value) && <span class="changed-dot" aria-hidden="true" />}
    </Button>
  );
  return (
    <>
      <PageHead title={conversation.value.title} actions={actions} />
      {storageProblem.value && (
        <p class="storage-problem small" role="status">
          This browser keeps no conversations ({storageProblem.value}). They are gone when this page closes.
        </p>
      )}
      <FileDrop>
        {branch.value.length ? <Talk key={conversation.value.id} /> : <Welcome />}
        <Composer key={`composer-${conversation.value.id}`} />
        {!branch.value.length && <Suggestions />}
      </FileDrop>
      <ChatSettings open={settings} onClose={() => setSettings(false)} />
      <ShortcutList />
      <p class="unseen" role="status">{announcement.value}</p>
    </>
  );
}

/** Shows what another browser added to the open conversation. */
function showNewest(): void {
  const open = conversation.peek();
  const kept = conversations.peek().find(({ id }) => id === open.id);
  if (kept && kept.updated !== open.updated && !running.peek()) void openConversation(kept);
}

/** Conversations of a server that keeps them: at the start, and when the server is back. */
function useServerCopy(ready: boolean): void {
  const isOnline = connection.value === "online";
  useEffect(() => {
    if (!ready || !isOnline) return;
    exchangeWithServer().then(showNewest, (error: Error) => toast(`Conversations on the server: ${error.message}`, { bad: true }));
  }, [ready, isOnline]);
}

/** The address names the open conversation: `?chat=ID`; without one a new conversation is open. */
function useRoute(): void {
  const [ready, setReady] = useState(false);
  useEffect(() => {
    followOtherTabs();
    void loadConversations().then(() => setReady(true));
  }, []);
  useServerCopy(ready);
  const wanted = route.value.query.get("chat");
  // with the drawing, not after it: a question that is asked in between has changed the address
  useLayoutEffect(() => {
    if (!ready || wanted === conversation.peek().id) return;
    if (wanted === null) {
      if (branch.peek().length) startNew();
      return;
    }
    const kept = conversations.peek().find(({ id }) => id === wanted);
    if (kept) void openConversation(kept);
    else {
      toast("This browser has no such conversation.", { bad: true });
      startNew();
      go("", {}, { replace: true });
    }
  }, [ready, wanted]);
}
