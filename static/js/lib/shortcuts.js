// The keys of the chat page. Alt with a letter is free in browsers on Linux and Windows; on a Mac it writes characters, so
// there it is Control and Shift, which neither the system nor a browser uses with these letters.

export const SHORTCUTS = { N: "new", K: "search", M: "write", R: "again", U: "edit", C: "copy", J: "back", L: "forth" };

export const isMac = (view = globalThis) => /^(Mac|iP)/.test(view.navigator?.platform ?? "");

/**
 * What a key asks for: one of SHORTCUTS' names, "keys" (the list of them), or null. `isTyping`: in a field, where "?" is a
 * character. A letter counts by what is written on the key; where that is none of ours (Cyrillic, Greek) by its place.
 */
export function shortcutOf(event, { onMac, isTyping }) {
  const { key, code, altKey, ctrlKey, metaKey, shiftKey } = event;
  if (event.isComposing || event.keyCode === 229 || event.repeat || event.getModifierState?.("AltGraph")) return null;
  if (key === "?" && !isTyping && !altKey && !ctrlKey && !metaKey) return "keys";
  if (key === "/" && !altKey && (onMac ? metaKey && !ctrlKey : ctrlKey && !metaKey)) return "keys";
  const isOurs = onMac ? ctrlKey && shiftKey && !altKey && !metaKey : altKey && !ctrlKey && !metaKey && !shiftKey;
  if (!isOurs) return null;
  const letter = /^[a-z]$/i.test(key) ? key.toUpperCase() : /^Key([A-Z])$/.exec(code)?.[1];
  return SHORTCUTS[letter] ?? null;
}

/** How the key is written on this system. */
export const keyLabel = (letter, onMac) => (onMac ? `⌃⇧${letter}` : `Alt+${letter}`);
