// The dialog in which the user chooses the tools of a conversation.
import { Plug, Trash2, Wrench } from "lucide";
import type { ComponentChildren } from "preact";
import { useEffect, useState } from "preact/hooks";
import { errorText } from "../api/errors";
import { Button, Dialog, Icon } from "../shell";
import type { ToolChoice } from "../store/types";
import { BUILT_IN, BUILT_IN_TOOLS } from "./built-in";
import { readableName } from "./readable";
import { type Server, addServer, allowedOrigins, connect, disconnect, loadServers, removeServer, servers } from "./servers";
import type { Tool } from "./types";
import "./tools.css";

export const NO_TOOLS: ToolChoice = { on: [], servers: [], allowed: [] };

interface Properties {
  choice: ToolChoice;
  onChange: (choice: ToolChoice) => void;
}

/** The button that opens the dialog; it says how many tools are on. */
export function ToolsButton({ choice, onChange }: Properties) {
  const [open, setOpen] = useState(false);
  const count = choice.on.length;
  const label = count ? `Tools: ${count} on` : "Tools";
  return (
    <>
      <Button kind="quiet" compact icon={Wrench} label={label} onClick={() => setOpen(true)}>
        {count ? count : undefined}
      </Button>
      <Dialog open={open} title="Tools" onClose={() => setOpen(false)}>
        <Choosing choice={choice} onChange={onChange} />
      </Dialog>
    </>
  );
}

function Choosing({ choice, onChange }: Properties) {
  const [problem, setProblem] = useState("");
  useEffect(() => {
    loadServers().catch((error: Error) => setProblem(error.message));
  }, []);
  return (
    <>
      <p class="small quiet">
        The model may use what is on in this chat. Except for the calculator, every call waits until you allow it.
      </p>
      <Group title={BUILT_IN} icon={Wrench}>
        <ToolList tools={BUILT_IN_TOOLS} choice={choice} onChange={onChange} />
      </Group>
      {servers.value.map((server) => <ServerGroup key={server.name} server={server} choice={choice} onChange={onChange} />)}
      {problem && <p class="notice bad">{problem}</p>}
      {allowedOrigins.value.length > 0 && <AddServer />}
      {servers.value.length === 0 && !problem && (
        <p class="small quiet">
          <code>dsv4 serve --mcp FILE</code> adds MCP servers: programs on the server's machine, and addresses.
        </p>
      )}
    </>
  );
}

function Group({ title, icon, actions, children }: { title: string; icon: typeof Wrench; actions?: ComponentChildren; children: ComponentChildren }) {
  return (
    <section class="tool-group" aria-label={title}>
      <header>
        <Icon of={icon} size={16} />
        <h3>{title}</h3>
        <span class="space" />
        {actions}
      </header>
      {children}
    </section>
  );
}

function ServerGroup({ server, choice, onChange }: { server: Server } & Properties) {
  const { name, kind, state, tools, problem } = server;
  const leave = () => {
    disconnect(name);
    const own = new Set(tools.map((tool) => tool.name));
    onChange({ ...choice, on: choice.on.filter((on) => !own.has(on)), servers: choice.servers.filter((one) => one !== name) });
  };
  const actions = (
    <>
      {state === "on" ? (
        <Button compact onClick={leave}>Disconnect</Button>
      ) : (
        <Button compact disabled={state === "connecting"} onClick={() => void connect(name)}>
          {state === "connecting" && <span class="spinner" />}
          {state === "connecting" ? "Connecting" : "Connect"}
        </Button>
      )}
      {kind === "added" && <Button kind="quiet" compact icon={Trash2} label={`Remove ${name}`} onClick={() => removeServer(name)} />}
    </>
  );
  return (
    <Group title={name} icon={Plug} actions={actions}>
      <p class="small quiet">{kind === "program" ? "A program on the server's machine" : server.address.url}</p>
      {problem && <p class="small bad-text tool-problem" role="alert">{problem}</p>}
      {state === "on" && tools.length === 0 && <p class="small quiet">It has no tools.</p>}
      <ToolList tools={tools} choice={choice} onChange={onChange} server={name} />
    </Group>
  );
}

function ToolList({ tools, choice, onChange, server }: { tools: readonly Tool[]; server?: string } & Properties) {
  const toggle = (tool: Tool) => {
    const on = choice.on.includes(tool.name) ? choice.on.filter((name) => name !== tool.name) : [...choice.on, tool.name];
    const needed = server !== undefined && tools.some(({ name }) => on.includes(name));
    const others = choice.servers.filter((name) => name !== server);
    onChange({ ...choice, on, servers: needed && server ? [...others, server] : others });
  };
  return (
    <ul class="tool-list">
      {tools.map((tool) => (
        <li key={tool.name}>
          <label>
            <input type="checkbox" checked={choice.on.includes(tool.name)} onChange={() => toggle(tool)} />
            <span>{readableName(tool.title)}</span>
            <span class="about small quiet">{tool.description}</span>
          </label>
        </li>
      ))}
    </ul>
  );
}

function AddServer() {
  const [url, setUrl] = useState("");
  const [token, setToken] = useState("");
  const [problem, setProblem] = useState("");
  const add = (event: Event) => {
    event.preventDefault();
    try {
      void connect(addServer(url.trim(), token.trim()));
      setUrl("");
      setToken("");
      setProblem("");
    } catch (error) {
      setProblem(errorText(error));
    }
  };
  return (
    <form class="tool-group" onSubmit={add}>
      <div class="tool-add">
        <label class="field">
          <span>Add an MCP server</span>
          <input class="input" type="url" required value={url} placeholder={`${allowedOrigins.value[0]}/mcp`} onInput={(event) => setUrl(event.currentTarget.value)} />
        </label>
        <label class="field">
          <span>Token, if it needs one</span>
          <input class="input" type="password" autocomplete="off" value={token} onInput={(event) => setToken(event.currentTarget.value)} />
        </label>
        <Button type="submit">Add</Button>
      </div>
      <p class="small quiet">Allowed: {allowedOrigins.value.join(", ")}</p>
      {problem && <p class="small bad-text" role="alert">{problem}</p>}
    </form>
  );
}
