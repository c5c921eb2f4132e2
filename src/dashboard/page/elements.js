/**
 * Elements, made once and changed where something has changed: focus, selection and the place where a screen reader reads
 * stay where they are. Text is text: nothing here takes markup.
 */

/**
 * @template {keyof HTMLElementTagNameMap} K
 * @param {K} name
 * @param {Record<string, string>} [attributes]
 * @param {(Node | string)[]} children
 * @returns {HTMLElementTagNameMap[K]}
 */
export function element(name, attributes = {}, ...children) {
  const made = document.createElement(name)
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value)
  made.append(...children)
  return made
}

/**
 * @template {keyof SVGElementTagNameMap} K
 * @param {K} name
 * @param {Record<string, string | number>} [attributes]
 * @param {Node[]} children
 * @returns {SVGElementTagNameMap[K]}
 */
export function drawing(name, attributes = {}, ...children) {
  const made = document.createElementNS('http://www.w3.org/2000/svg', name)
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, String(value))
  made.append(...children)
  return made
}

/** @param {string} id @returns {HTMLElement} */
export function byId(id) {
  const found = document.getElementById(id)
  if (!found) throw new Error(`no #${id}`)
  return found
}

/** @param {Node} node @param {string} text */
export function setText(node, text) {
  if (node.textContent !== text) node.textContent = text
}

/**
 * A list of facts, each under what it is called.
 *
 * @param {readonly (readonly [name: string, called: string])[]} facts
 */
export function factList(facts) {
  /** @type {Map<string, HTMLElement>} */
  const said = new Map()
  const rows = facts.map(([name, called]) => {
    const place = element('dd')
    said.set(name, place)
    return element('div', {}, element('dt', {}, called), place)
  })
  const node = element('dl', { class: 'facts' }, ...rows)
  /** Says one of them, where the list has it. @param {string} name @param {string} text */
  const tell = (name, text) => {
    const place = said.get(name)
    if (place) setText(place, text)
  }
  return { node, tell }
}

/** @type {WeakMap<Element, Map<string, { node: Element }>>} */
const kept = new WeakMap()

/**
 * Makes the children of an element those of a list, in its order.
 *
 * @template T
 * @template {{ node: Element }} P
 * @param {Element} parent
 * @param {readonly T[]} list
 * @param {(one: T) => string} keyOf the same for the same thing
 * @param {(one: T) => P} make
 * @param {(parts: P, one: T) => void} update
 */
export function keep(parent, list, keyOf, make, update) {
  const before = /** @type {Map<string, P>} */ (kept.get(parent) ?? new Map())
  /** @type {Map<string, P>} */
  const after = new Map()
  /** @type {Element | null} */
  let place = parent.firstElementChild
  for (const one of list) {
    const key = keyOf(one)
    if (after.has(key)) continue
    const parts = before.get(key) ?? make(one)
    before.delete(key)
    after.set(key, parts)
    update(parts, one)
    if (place === parts.node) place = place.nextElementSibling
    else parent.insertBefore(parts.node, place)
  }
  for (const { node } of before.values()) node.remove()
  kept.set(parent, after)
}
