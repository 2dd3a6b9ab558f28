// The requests that run or wait, each with a button that cancels it.
import { X } from "lucide";
import { useState } from "preact/hooks";
import { type ActiveRequest, type EngineState, cancelRequest } from "../api/admin";
import { errorText } from "../api/errors";
import { duration, short, whole } from "../charts/format";
import { TableScroll } from "../charts/table-scroll";
import { Button } from "../shell/button";
import { Panel } from "../shell/panel";
import { toast } from "../shell/toast";

const STATES = { waiting: "waiting", prompt: "reading the prompt", answer: "answering" };

export function RequestsPanel({ state, again }: { state: EngineState; again: () => void }) {
  const { requests, others } = state;
  return (
    <Panel title="Requests">
      {requests.length === 0 ? (
        <p class="nothing">{others ? "None of yours is running." : "Nothing is running. Ask something in the chat, and it appears here."}</p>
      ) : (
        <TableScroll label="Requests">
          <table class="data-table requests">
            <thead>
              <tr>
                <th scope="col">Request</th>
                <th scope="col">State</th>
                <th scope="col">Prompt</th>
                <th scope="col" class="right">Answer</th>
                <th scope="col" class="right">Speed</th>
                <th scope="col" class="right">Pages</th>
                <th scope="col" class="right">Since</th>
                <th scope="col"><span class="unseen">Actions</span></th>
              </tr>
            </thead>
            <tbody>{requests.map((request) => <Row key={request.id} request={request} again={again} />)}</tbody>
          </table>
        </TableScroll>
      )}
      {others > 0 && <p class="quiet small">{others} {others === 1 ? "request" : "requests"} of other keys</p>}
    </Panel>
  );
}

function Row({ request, again }: { request: ActiveRequest; again: () => void }) {
  const { id, key, model, state, prompt, done, reused, generated, limit, seconds, pages } = request;
  return (
    <tr>
      <td>
        <code title={id}>{id.slice(0, 8)}</code>
        <div class="quiet small">{key ? `${key} · ${model}` : model}</div>
      </td>
      <td><span class={state === "waiting" ? "badge" : state === "answer" ? "badge live" : "badge busy"}>{state ? STATES[state] : "running"}</span></td>
      <td>
        <PromptBar prompt={prompt} done={state === "answer" ? prompt : done} reused={reused} />
      </td>
      <td class="right">{whole(generated)}<span class="quiet"> / {short(limit)}</span></td>
      <td class="right">{speed(request)}</td>
      <td class="right">{pages ?? "–"}</td>
      <td class="right">{duration(seconds)}</td>
      <td class="right"><Cancel id={id} again={again} /></td>
    </tr>
  );
}

function PromptBar({ prompt, done, reused }: { prompt: number; done: number; reused: number }) {
  const share = (value: number) => ({ width: `${(Math.min(value, prompt) / prompt) * 100}%` });
  return (
    <div class="prompt-bar">
      <div class="prompt-track" role="img" aria-label={`${done} of ${prompt} prompt tokens, ${reused} of them reused`}>
        <i class="reused" style={share(reused)} />
        <i class="read" style={share(Math.max(0, done - reused))} />
      </div>
      <span class="quiet small number">{whole(done)} / {whole(prompt)}{reused > 0 && `, ${whole(reused)} reused`}</span>
    </div>
  );
}

function Cancel({ id, again }: { id: string; again: () => void }) {
  const [asked, setAsked] = useState(false);
  const cancel = async () => {
    setAsked(true);
    try {
      await cancelRequest(id);
      toast(`Request ${id.slice(0, 8)} was cancelled`);
    } catch (error) {
      toast(errorText(error), { bad: true });
    }
    again();
  };
  return <Button kind="danger" compact icon={X} label={`Cancel request ${id.slice(0, 8)}`} disabled={asked} onClick={cancel} />;
}

function speed({ generated, seconds, first_token_seconds: first }: ActiveRequest): string {
  if (first === null || generated < 2 || seconds <= first) return "–";
  return `${short((generated - 1) / (seconds - first))} tok/s`;
}
