// Messages in every state, for the pattern page: [message, view].

const view = (more = {}) => ({ plain: false, model: "Tuned, step 20", isLast: false, isLive: false, waiting: "Writing…", canGoOn: false,
                               isReadOnly: false, later: 0, ...more });

const other = (token, chance) => ({ token, logprob: Math.log(chance), bytes: [...new TextEncoder().encode(token)] });
const token = (text, chance, others = {}) => ({
  ...other(text, chance),
  top_logprobs: [[text, chance], ...Object.entries(others)].sort(([, a], [, b]) => b - a).map(([name, value]) => other(name, value)) });
const piece = (chance, ...bytes) => ({ token: "\ufffd", logprob: Math.log(chance), bytes, top_logprobs: [] });

const TOKENS = [
  token("The", 0.97, { A: 0.02 }), token(" cat", 0.7, { " dog": 0.2, " bird": 0.05 }), token(" sat", 0.45, { " was": 0.4, " ran": 0.1 }),
  token(" on", 0.99), token(" the", 0.86, { " a": 0.1 }), token(" piano", 0.004, { " mat": 0.9, " chair": 0.05, " floor": 0.02 }),
  token(",", 0.3, { ".": 0.6 }), token("\n", 0.05, { " and": 0.7 }), token("<think>", 0.1, { " and": 0.5 }), piece(0.25, 0xf0, 0x9f), piece(0.9, 0xa6, 0x8a),
  token("小", 0.6, { "大": 0.3 }), token(".", 0.15, { "!": 0.5 }), { token: " unknown", logprob: null, bytes: null, top_logprobs: [] },
];

const CODE = ["Here is **Python**:", "```python", "def area(r: float) -> float:", "    \"\"\"In m².\"\"\"  # a comment", "    return 3.14159 * r ** 2", "```",
              "and SQL without an end:", "```sql", "SELECT name FROM runs WHERE loss < 2.5 AND id = 'x'"].join("\n");
const MATH = ["Inline $e^{i\\pi} + 1 = 0$, for $5 or $10, and \\(a_1 \\le b_2\\). Displayed:", "",
              "$$\\mathrm{softmax}(z)_i = \\frac{e^{z_i}}{\\sum_{j=1}^{V} e^{z_j}}$$", "",
              "\\[\\begin{pmatrix} a & b \\\\ c & d \\end{pmatrix} \\cdot \\sqrt{x^2 + y^2}\\]", "", "What fails stays text: $\\frac{1}$."].join("\n");

const TEXTS = ["A heading-free answer with a [link](https://example.org/), `code`, and a list:", "", "1. first", "2. second", "   - nested", "", "> quoted", "",
               "| a | b |", "|---|---|", "| 1 | 2 |"].join("\n");

export const MESSAGES = [
  [{ role: "user", content: "What is 57 - 44?\nAnd the time in Tokyo?" }, view()],
  [{ role: "assistant", content: "", reasoning: "I need help to calculate.", thought_s: 2.14, finish_reason: "tool_calls", usage: { completion_tokens: 31 },
     tool_calls: [{ id: "a", name: "calc", arguments: '{"term": "57 - 44"}' }, { id: "b", name: "clock", arguments: '{"city": "Atlantis"}' },
                  { id: "c", name: "text_length", arguments: JSON.stringify({ text: "word ".repeat(60) }) }, { id: "d", name: "weather", arguments: '{"city": ' }] },
   view({ results: [{ role: "tool", tool_call_id: "a", name: "calc", content: "13" },
                    { role: "tool", tool_call_id: "b", name: "clock", content: '{"error": "The time in \'Atlantis\' is not known."}', is_error: true },
                    { role: "tool", tool_call_id: "c", name: "text_length", content: '{"length": 300, "words": 60, "lines": 1}' }] })],
  [{ role: "tool", tool_call_id: "x", name: "get_current_time", content: '{"datetime": "2026-01-31 23:05:09", "weekday": "Saturday", "timezone": "UTC"}' }, view()],
  [{ role: "assistant", content: TEXTS, finish_reason: "length", usage: { completion_tokens: 512 }, speed: { tokens_per_s: 143.2, first_token_s: 0.214 } },
   view({ isLast: true, canGoOn: true, canAsk: true })],
  [{ role: "assistant", content: CODE, finish_reason: "stop", usage: { completion_tokens: 80 }, speed: { tokens_per_s: 4.26 } }, view()],
  [{ role: "assistant", content: MATH, finish_reason: "cancelled" }, view()],
  [{ role: "assistant", content: "<think>as older answers have it</think>Done.", finish_reason: "error" }, view()],
  [{ role: "assistant", content: "", reasoning: "Let me see", finish_reason: null }, view({ isLive: true })],
  [{ role: "assistant", content: TOKENS.map((one) => one.token).join(""), tokens: TOKENS, finish_reason: "stop", usage: { completion_tokens: TOKENS.length } }, view()],
  [{ role: "assistant", content: "", finish_reason: "stop" }, view()],
];
