// The conversations, in the side bar.
import { Download, Ellipsis, Pencil, Plus, Search, Trash2, Upload } from "lucide";
import { useEffect, useRef, useState } from "preact/hooks";
import { Button, Dialog, Icon, Menu, addressOf, closeDrawer, follow } from "../shell";
import { type Found, conversations, searchConversations } from "../store/conversations";
import type { Conversation } from "../store/types";
import { groupByDay } from "./days";
import { downloadAll, downloadMarkdown, downloadOne, forget, importFile, rename } from "./keeping";
import { runs } from "./runs";
import { conversation } from "./session";
import { startNewChat } from "./shortcuts";

const PAUSE = 150;

export function ConversationList() {
  const [text, setText] = useState("");
  const found = useSearch(text);
  return (
    <div class="conversations">
      <div class="conversations-head">
        <Button class="new-chat" icon={Plus} onClick={() => { startNewChat(); closeDrawer(); }}>New chat</Button>
        <ListMenu />
      </div>
      <label class="search">
        <Icon of={Search} size={16} />
        <span class="unseen">Search the conversations</span>
        <input
          id="search-conversations" type="search" placeholder="Search" value={text}
          onInput={(event) => setText(event.currentTarget.value)}
        />
      </label>
      <div class="conversations-scroll">{found ? <Results found={found} /> : <Groups />}</div>
    </div>
  );
}

function useSearch(text: string): Found[] | undefined {
  const [found, setFound] = useState<Found[]>();
  const list = conversations.value;
  useEffect(() => {
    if (!text.trim()) {
      setFound(undefined);
      return;
    }
    let isOld = false;
    const timer = setTimeout(async () => {
      const result = await searchConversations(text);
      if (!isOld) setFound(result);
    }, PAUSE);
    return () => {
      isOld = true;
      clearTimeout(timer);
    };
  }, [text, list]);
  return found;
}

function foundText(count: number): string {
  if (!count) return "Nothing found";
  return count === 1 ? "1 conversation" : `${count} conversations`;
}

function Results({ found }: { found: Found[] }) {
  return (
    <>
      <p class="day" role="status">{foundText(found.length)}</p>
      <ul>{found.map((entry) => <Entry key={entry.conversation.id} kept={entry.conversation} excerpt={entry.excerpt} />)}</ul>
    </>
  );
}

function Groups() {
  if (!conversations.value.length) return <p class="none">Conversations stay in this browser.</p>;
  return (
    <>
      {groupByDay(conversations.value, new Date()).map(({ name, list }) => (
        <section key={name} aria-label={name}>
          <p class="day">{name}</p>
          <ul>{list.map((kept) => <Entry key={kept.id} kept={kept} />)}</ul>
        </section>
      ))}
    </>
  );
}

function Entry({ kept, excerpt }: { kept: Conversation; excerpt?: string }) {
  const [isRenamed, setRenamed] = useState(false);
  const isOpen = conversation.value.id === kept.id;
  const items = [
    { label: "Rename", icon: Pencil, onChoose: () => setRenamed(true) },
    { label: "Export", icon: Download, onChoose: () => void downloadOne(kept) },
    { label: "Export as Markdown", icon: Download, onChoose: () => void downloadMarkdown(kept) },
    { label: "Delete", icon: Trash2, danger: true, onChoose: () => void forget(kept) },
  ];
  return (
    <li class={isOpen ? "entry open" : "entry"}>
      <a
        href={addressOf("", { chat: kept.id })} aria-current={isOpen ? "true" : undefined} title={kept.title}
        onClick={(event) => { follow(event, "", { chat: kept.id }); closeDrawer(); }}
      >
        <span class="entry-title">{kept.title}</span>
        {excerpt && <span class="entry-excerpt">{excerpt}</span>}
      </a>
      {runs.value.has(kept.id) && <span class="spinner" role="img" aria-label="is answering" />}
      <Menu compact icon={Ellipsis} label={`Actions for ${kept.title}`} items={items} />
      <RenameDialog open={isRenamed} kept={kept} onClose={() => setRenamed(false)} />
    </li>
  );
}

function RenameDialog({ open, kept, onClose }: { open: boolean; kept: Conversation; onClose: () => void }) {
  const field = useRef<HTMLInputElement>(null);
  const submit = (event: Event) => {
    event.preventDefault();
    const title = field.current?.value.trim();
    if (title) void rename(kept, title);
    onClose();
  };
  return (
    <Dialog open={open} title="Rename" onClose={onClose}>
      <form class="key-row" onSubmit={submit}>
        <input class="input" ref={field} aria-label="Title" defaultValue={kept.title} maxLength={200} autofocus />
        <Button kind="primary" type="submit">Rename</Button>
      </form>
    </Dialog>
  );
}

function ListMenu() {
  const picker = useRef<HTMLInputElement>(null);
  const items = [
    { label: "Import from a file", icon: Upload, onChoose: () => picker.current?.click() },
    { label: "Export all", icon: Download, onChoose: () => void downloadAll() },
  ];
  return (
    <>
      <Menu icon={Ellipsis} label="Import and export" items={items} />
      <input
        ref={picker} type="file" accept=".json,application/json" hidden aria-label="File with conversations"
        onChange={(event) => {
          const file = event.currentTarget.files?.[0];
          event.currentTarget.value = "";
          if (file) void importFile(file);
        }}
      />
    </>
  );
}
