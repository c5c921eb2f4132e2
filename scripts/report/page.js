// What the report's page does beyond showing itself: tips where one points or arrow keys go, series picked out, the
// results saved. All
// of it is in the tables too, so the page is whole without this.

{
  const tip = document.getElementById('tip')

  function show(text, event) {
    if (tip.textContent !== text) tip.textContent = text
    tip.hidden = false
    const { offsetWidth: width, offsetHeight: height } = tip
    const left = Math.min(event.clientX + 14, innerWidth - width - 8)
    const top = event.clientY + height + 24 > innerHeight ? event.clientY - height - 12 : event.clientY + 16
    tip.style.left = `${Math.max(8, left)}px`
    tip.style.top = `${Math.max(8, top)}px`
  }

  // --- lines: all values where one points

  function nearest(points, part) {
    let best = points[0]
    for (const point of points) if (Math.abs(point[0] - part) < Math.abs(best[0] - part)) best = point
    return best
  }

  function pointAtLines(plot, event) {
    const box = plot.getBoundingClientRect()
    return textOfLines(plot, (event.clientX - box.left) / box.width)
  }

  function textOfLines(plot, part) {
    plot.parsed ??= JSON.parse(plot.dataset.lines)
    const found = plot.parsed
      .filter(({ points }) => part <= points.at(-1)[0] + 0.02 && part >= points[0][0] - 0.02)
      .map(line => [line.name, nearest(line.points, part)])
    if (found.length === 0) return undefined
    const cross = plot.querySelector('.cross')
    cross.setAttribute('x1', `${part * 100}%`)
    cross.setAttribute('x2', `${part * 100}%`)
    cross.setAttribute('visibility', 'visible')
    return found.map(([name, [, x, y]]) => `${name}: ${y} at ${x}`).join('\n')
  }

  /** Arrow keys go from point to point, and what is there is told as where one points. */
  function makeKeys(plot) {
    plot.parsed ??= JSON.parse(plot.dataset.lines)
    const parts = [...new Set(plot.parsed.flatMap(({ points }) => points.map(([part]) => part)))].sort((a, b) => a - b)
    const last = parts.length - 1
    const set = attributes => {
      for (const [name, value] of Object.entries(attributes)) plot.setAttribute(name, value)
    }
    set({ tabindex: 0, role: 'slider', 'aria-valuemin': 0, 'aria-valuemax': last })
    let now = 0
    const go = to => {
      now = Math.min(last, Math.max(0, to))
      const text = textOfLines(plot, parts[now])
      set({ 'aria-valuenow': now, 'aria-valuetext': text.replaceAll('\n', ', ') })
      return text
    }
    go(0)
    plot.querySelector('.cross').setAttribute('visibility', 'hidden')
    const steps = { ArrowLeft: -1, ArrowDown: -1, ArrowRight: 1, ArrowUp: 1, PageDown: -10, PageUp: 10 }
    plot.addEventListener('keydown', event => {
      const to = { Home: 0, End: last }[event.key] ?? (event.key in steps ? now + steps[event.key] : undefined)
      if (to === undefined) return
      event.preventDefault()
      const text = go(to)
      const { left, top, width, height } = plot.getBoundingClientRect()
      show(text, { clientX: left + parts[now] * width, clientY: top + height / 2 })
    })
    plot.addEventListener('blur', () => {
      tip.hidden = true
      plot.querySelector('.cross').setAttribute('visibility', 'hidden')
    })
  }

  // --- maps: which page, and how it travelled

  /** Class of each pixel, read once from the picture itself. */
  function classesOf(map) {
    if (map.classes) return map.classes
    const image = map.querySelector('img')
    const canvas = document.createElement('canvas')
    canvas.width = image.naturalWidth
    canvas.height = image.naturalHeight
    const context = canvas.getContext('2d', { willReadFrequently: true })
    context.drawImage(image, 0, 0)
    const { data } = context.getImageData(0, 0, canvas.width, canvas.height)
    const numbers = new Map(
      map.dataset.colours.split(' ').map((colour, i) => [Number.parseInt(colour.slice(1), 16), i]),
    )
    map.classes = new Int8Array(data.length / 4)
    for (let i = 0; i < map.classes.length; i++) {
      map.classes[i] = numbers.get((data[i * 4] << 16) | (data[i * 4 + 1] << 8) | data[i * 4 + 2]) ?? -1
    }
    return map.classes
  }

  function pointAtMap(map, event) {
    const image = map.querySelector('img')
    const box = image.getBoundingClientRect()
    const x = Math.floor(((event.clientX - box.left) / box.width) * image.naturalWidth)
    const y = Math.floor(((event.clientY - box.top) / box.height) * image.naturalHeight)
    const page = y * image.naturalWidth + x
    if (x < 0 || x >= image.naturalWidth || y < 0 || page < 0 || page >= Number(map.dataset.pages)) return undefined
    const name = map.dataset.names.split('|')[classesOf(map)[page]]
    return `page at 0x${(page * 4096).toString(16)}: ${name}`
  }

  /** Covers all pages but those of one class. */
  function pickOnMap(map, wanted) {
    const cover = map.querySelector('canvas')
    const image = map.querySelector('img')
    cover.width = image.naturalWidth
    cover.height = image.naturalHeight
    if (wanted === undefined) return
    const number = map.dataset.names.split('|').indexOf(wanted)
    const classes = classesOf(map)
    const context = cover.getContext('2d')
    const pixels = context.createImageData(cover.width, cover.height)
    const [r, g, b] = getComputedStyle(document.body).backgroundColor.match(/\d+/g).map(Number)
    for (let i = 0; i < classes.length; i++) {
      if (classes[i] !== number) pixels.data.set([r, g, b, 225], i * 4)
    }
    context.putImageData(pixels, 0, 0)
  }

  // --- events

  function textAt(event) {
    const target = event.target instanceof Element ? event.target : document.body
    const marked = target.closest('[data-tip]')
    if (marked) return marked.dataset.tip
    const plot = target.closest('[data-lines]')
    if (plot) return pointAtLines(plot, event)
    const map = target.closest('.map')
    return map && target.closest('div') ? pointAtMap(map, event) : undefined
  }

  function point(event) {
    for (const cross of document.querySelectorAll('.cross[visibility=visible]'))
      cross.setAttribute('visibility', 'hidden')
    const text = textAt(event)
    if (text) show(text, event)
    else tip.hidden = true
  }
  for (const plot of document.querySelectorAll('[data-lines]')) makeKeys(plot)
  document.addEventListener('pointermove', point)
  document.addEventListener('pointerdown', point)
  addEventListener(
    'scroll',
    () => {
      tip.hidden = true
    },
    { passive: true },
  )

  for (const key of document.querySelectorAll('.key')) {
    key.addEventListener('click', () => {
      const figure = key.closest('.figure')
      const picked = key.getAttribute('aria-pressed') !== 'true'
      for (const other of figure.querySelectorAll('.key'))
        other.setAttribute('aria-pressed', String(other === key && picked))
      for (const plot of figure.querySelectorAll('.plot')) plot.classList.toggle('picked', picked)
      for (const one of figure.querySelectorAll('.series'))
        one.classList.toggle('pick', one.dataset.series === key.dataset.series)
      for (const map of figure.querySelectorAll('.map')) pickOnMap(map, picked ? key.textContent : undefined)
    })
  }

  document.getElementById('save').addEventListener('click', () => {
    const link = document.createElement('a')
    link.href = URL.createObjectURL(
      new Blob([document.getElementById('data').textContent], { type: 'application/json' }),
    )
    link.download = 'pageferry-results.json'
    link.click()
  })
}
