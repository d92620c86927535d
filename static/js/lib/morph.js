// Brings one DOM tree to look like another while everything that a reader is in the middle of stays: focus, selection,
// open <details>, what was typed. Children with data-key (or an id) are matched by it, others by their place.

/** Make `from` look like `to`. Children of elements with data-own belong to their script and are left alone. */
export function morph(from, to) {
  if (from.nodeType !== to.nodeType || from.nodeName !== to.nodeName) {
    from.replaceWith(to.cloneNode(true));
    return;
  }
  if (from.nodeType !== 1) {
    if (from.nodeValue !== to.nodeValue) from.nodeValue = to.nodeValue;
    return;
  }
  morphAttributes(from, to);
  if (!from.hasAttribute("data-own")) morphChildren(from, to);
}

function morphAttributes(from, to) {
  for (const { name, value } of [...to.attributes]) {
    if (from.getAttribute(name) !== value && !isReaders(from, name)) from.setAttribute(name, value);
  }
  for (const { name } of [...from.attributes]) {
    if (!to.hasAttribute(name) && !isReaders(from, name)) from.removeAttribute(name);
  }
}

/** What the reader sets and the server does not know. */
function isReaders(element, name) {
  return (element.nodeName === "DETAILS" || element.nodeName === "DIALOG") && name === "open";
}

function keyOf(node) {
  return node.nodeType === 1 ? node.getAttribute("data-key") ?? (node.id || null) : null;
}

function morphChildren(from, to) {
  const keyed = new Map();
  for (const child of from.children) {
    const key = keyOf(child);
    if (key !== null) keyed.set(key, child);
  }
  const wantedKeys = new Set([...to.children].map(keyOf).filter((key) => key !== null));
  let place = from.firstChild;
  for (const wanted of [...to.childNodes]) {
    const key = keyOf(wanted);
    let match = null;
    if (key !== null) match = keyed.get(key) ?? null;
    else if (place !== null && keyOf(place) === null && place.nodeName === wanted.nodeName) match = place;
    if (match === null) {
      from.insertBefore(wanted.cloneNode(true), place);
      continue;
    }
    if (match !== place) place = dropUpTo(match, place, wantedKeys);
    if (match === place) place = place.nextSibling;
    else from.insertBefore(match, place);
    if (match.nodeName === wanted.nodeName) morph(match, wanted);
    else match.replaceWith(wanted.cloneNode(true));
  }
  while (place !== null) {
    const next = place.nextSibling;
    place.remove();
    place = next;
  }
}

/**
 * Remove what stands between `place` and `match` if none of it is wanted any more: `match` then stays where it is, and
 * whatever a moved element would lose (focus, scrolling, its script's work) stays too. @returns the new place
 */
function dropUpTo(match, place, wantedKeys) {
  const between = [];
  for (let node = place; node !== match; node = node.nextSibling) {
    if (node === null || wantedKeys.has(keyOf(node))) return place; // another order
    between.push(node);
  }
  for (const node of between) node.remove();
  return match;
}
