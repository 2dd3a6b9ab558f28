// Theme and key.
import { signal } from "@preact/signals";
import { useEffect, useState } from "preact/hooks";
import { connection } from "../api/connection";
import { apiKey, isKeyKept, setKey, tryKey } from "../api/key";
import { loadModels } from "../api/models";
import { giveUnowned } from "../store/database";
import { owner, ownerOf } from "../store/owner";
import { Button } from "./button";
import { Dialog } from "./dialog";
import { Segments } from "./segments";
import { THEMES, type Theme, chooseTheme, chosenTheme } from "./theme";

const isOpen = signal(false);

export function openSettings(): void {
  isOpen.value = true;
}

const NAMES: Record<Theme, string> = { system: "System", light: "Light", dark: "Dark" };
const OPTIONS = THEMES.map((value) => ({ value, label: NAMES[value] }));

/** Opens by itself when the server asks for a key. */
export function SettingsDialog() {
  const [theme, setTheme] = useState(chosenTheme);
  const locked = connection.value === "locked";
  useEffect(() => {
    if (locked) isOpen.value = true;
  }, [locked]);
  const close = () => {
    isOpen.value = false;
  };
  return (
    <Dialog open={isOpen.value} title={locked ? "This server needs a key" : "Settings"} onClose={close}>
      <KeyForm onDone={close} />
      <div class="field">
        <span>Theme</span>
        <div>
          <Segments
            label="Theme" value={theme} options={OPTIONS}
            onChange={(chosen) => { chooseTheme(chosen); setTheme(chosen); }}
          />
        </div>
      </div>
    </Dialog>
  );
}

/** Loads the page again, so that nothing of another key's conversations stays in it. */
async function beginAs(other: string): Promise<void> {
  if (!owner) await giveUnowned(other).catch(() => undefined); // where storage is forbidden there are none
  location.reload();
}

function KeyForm({ onDone }: { onDone: () => void }) {
  const [key, setText] = useState(apiKey.value);
  const [keep, setKeep] = useState(isKeyKept);
  const [problem, setProblem] = useState("");
  const submit = async (event: Event) => {
    event.preventDefault();
    const before = apiKey.peek();
    tryKey(key.trim());
    try {
      await loadModels();
    } catch (error) {
      tryKey(before);
      setProblem((error as Error).message);
      return;
    }
    setKey(key.trim(), keep);
    if (ownerOf(key.trim()) === owner) onDone();
    else await beginAs(ownerOf(key.trim()));
  };
  return (
    <form class="field" onSubmit={submit}>
      <label for="api-key">API key</label>
      <div class="key-row">
        <input
          id="api-key" class="input" type="password" autocomplete="off" value={key} spellcheck={false}
          aria-describedby="api-key-note" onInput={(event) => setText(event.currentTarget.value)}
        />
        <Button type="submit" kind="primary">Use key</Button>
      </div>
      <label class="check">
        <input type="checkbox" checked={keep} onChange={(event) => setKeep(event.currentTarget.checked)} />
        Keep it in this browser
      </label>
      <p id="api-key-note" class={problem ? "small bad-text" : "small quiet"} role={problem ? "alert" : undefined}>
        {problem || "Only servers that were started with keys need one. It is sent to this server alone."}
      </p>
    </form>
  );
}
