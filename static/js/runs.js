// <run-list>: the server has rendered the rows; this keeps them true while the page is open.
// Everything from a run is put in as text, never as HTML: names are written by people.

const COLUMNS = [
  (run) => link(`/api/v1/runs/${run.id}`, run.name),
  (run) => run.stage,
  (run) => run.state,
  ({ progress: { step, total_steps: total } }) => (step === null ? "" : total ? `${step} / ${total}` : `${step}`),
  ({ progress: { loss } }) => (loss === null ? "" : loss.toFixed(3)),
  (run) => run.created_at.slice(0, 16).replace("T", " "),
];
const LONGEST_WAIT_MS = 30_000;

function link(href, text) {
  const a = document.createElement("a");
  a.href = href;
  a.textContent = text;
  return a;
}

class RunList extends HTMLElement {
  #socket = null;
  #failures = 0;
  #timer = 0;

  connectedCallback() {
    this.#connect();
  }

  disconnectedCallback() {
    clearTimeout(this.#timer);
    this.#socket?.close();
    this.#socket = null;
  }

  #connect() {
    const socket = new WebSocket(`${location.protocol === "https:" ? "wss" : "ws"}://${location.host}/api/v1/live`);
    this.#socket = socket;
    socket.addEventListener("open", () => socket.send(JSON.stringify({ op: "sub", topic: "runs" })));
    socket.addEventListener("message", ({ data }) => {
      const message = JSON.parse(data);
      this.#failures = 0;
      if (message.topic === "runs" && message.data?.items) this.#show(message.data.items);
    });
    socket.addEventListener("close", () => {
      if (this.#socket !== socket) return;
      const longest = Math.min(LONGEST_WAIT_MS, 500 * 2 ** this.#failures++);
      this.#timer = setTimeout(() => this.#connect(), Math.random() * longest);
    });
  }

  #show(runs) {
    if (!runs.length) return;
    const rows = runs.map((run) => {
      const row = document.createElement("tr");
      for (const column of COLUMNS) row.insertCell().append(column(run));
      return row;
    });
    this.querySelector("tbody").replaceChildren(...rows);
  }
}

customElements.define("run-list", RunList);
