/** The map of a guest's memory: blocks of the report out of a PageMap. */

import { type MethodMap, PAGE_CLASSES, type PageClass, type PageMap, pageClasses } from '../measure/page-map-file.ts'
import { escapeText } from './charts.ts'
import type { Block, Text } from './document.ts'
import { indexedPng } from './png.ts'
import { formatCount, formatSize, percent } from './quantities.ts'

const PAGE_SIZE = 4096
/** Pages in a row of the image: 2 MB of memory, what one entry of a page directory maps. */
const ROW_PAGES = 512

/** Colours that are told apart on light and dark alike; style.css has the same for the other plots (`s-CLASS`). */
const COLOURS: Readonly<Record<PageClass, string>> = {
  'not sent': '#4a4f57',
  zero: '#aab2bd',
  fill: '#d6b83c',
  same: '#56b4e9',
  template: '#009e73',
  earlier: '#0072b2',
  parts: '#e69f00',
  whole: '#d55e00',
  incompressible: '#8e3a9d',
}

const MEANINGS: Readonly<Record<PageClass, string>> = {
  'not sent': 'not sent',
  zero: 'zero',
  fill: 'one byte repeated',
  same: 'as last sent',
  template: 'in the templates',
  earlier: 'passed earlier',
  parts: 'partly known',
  whole: 'new, compressed',
  incompressible: 'new, incompressible',
}

const METHODS: Readonly<Record<MethodMap['method'], string>> = {
  paper: "The paper's method: whole pages of the templates",
  pair: 'The pair in full',
}

function image(map: MethodMap, { stream, pages, block }: PageMap): string {
  const classes = pageClasses(map)
  const colours = PAGE_CLASSES.map(name => COLOURS[name])
  const png = indexedPng(classes, ROW_PAGES, colours).toString('base64')
  const counts = PAGE_CLASSES.map((name, i) => [MEANINGS[name], classes.filter(value => value === i).length] as const)
  const told = counts.filter(([, count]) => count > 0).map(([name, count]) => `${percent(count / pages)} ${name}`)
  const alt = `${METHODS[map.method]}: ${block} of ${stream}, a pixel a page, a row 2 MB, from the first page at the top left: ${told.join(', ')}.`
  return (
    `<figure class="map" data-pages="${pages}" data-colours="${colours.join(' ')}" data-names="${escapeText(PAGE_CLASSES.map(name => MEANINGS[name]).join('|'))}">` +
    `<div><img width="${ROW_PAGES}" height="${Math.ceil(pages / ROW_PAGES)}" alt="${escapeText(alt)}" src="data:image/png;base64,${png}"><canvas aria-hidden="true"></canvas></div>` +
    `<figcaption>${METHODS[map.method]}</figcaption></figure>`
  )
}

export function memoryMapBlocks(map: PageMap | undefined, remark: Text | undefined): Block[] {
  const heading: Block = { kind: 'heading', level: 2, id: 'map', text: "A guest's memory, page by page" }
  if (map === undefined) {
    return [heading, { kind: 'text', text: 'Not made: `make bench-scaling` makes it out of the lab (`make lab`).' }]
  }
  const used = PAGE_CLASSES.filter(name => map.maps.some(({ sent }) => sent[name] > 0))
  const blocks: Block[] = [
    heading,
    {
      kind: 'figure',
      figure: {
        title: `How each page of ${map.stream} travels`,
        note:
          `${formatSize(map.pages * PAGE_SIZE)} of ${map.block}: a pixel a page, a row 2 MB, coloured by how the page went when it was first sent. ` +
          `Encoded against ${formatCount(map.templates.pages)} templates, the pages that ${map.templates.minVms} or more of ${map.templates.from.join(', ')} have; ` +
          `made by \`${map.command}\` from the encoder's own operations.`,
        legend: used.map(name => ({
          series: `page-${name.replace(' ', '-')}`,
          label: MEANINGS[name],
          mark: 'area' as const,
        })),
        plot: `<div class="maps">${map.maps.map(one => image(one, map)).join('')}</div>`,
        table: {
          caption: 'Pages sent by class, those sent again counted again',
          columns: [
            { name: 'Class' },
            ...map.maps.flatMap(({ method }) => [
              { name: METHODS[method], numeric: true },
              { name: 'part', numeric: true },
            ]),
          ],
          rows: used.map(name => [
            MEANINGS[name],
            ...map.maps.flatMap(({ sent }) => {
              const whole = Object.values(sent).reduce((sum, count) => sum + count, 0)
              return [formatCount(sent[name]), percent(sent[name] / whole)]
            }),
          ]),
        },
      },
    },
  ]
  if (remark) blocks.push({ kind: 'text', text: remark })
  return blocks
}

/** CSS for the legend's colours. */
export function mapColours(): string {
  return PAGE_CLASSES.map(name => `.s-page-${name.replace(' ', '-')}{--c:${COLOURS[name]}}`).join('')
}
