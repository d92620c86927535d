// <chat-import>: a button that takes a file of a conversation. Event: "chat-import" {file}.

class ChatImport extends HTMLElement {
  connectedCallback() {
    const field = this.querySelector("input");
    this.querySelector("button").addEventListener("click", () => field.click());
    field.addEventListener("change", () => {
      const [file] = field.files;
      field.value = ""; // the same file again is a change too
      if (file) this.dispatchEvent(new CustomEvent("chat-import", { bubbles: true, detail: { file } }));
    });
  }
}

customElements.define("chat-import", ChatImport);
