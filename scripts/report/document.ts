/** The report as a list of blocks, from which the page and the Markdown are made alike. */

/** Plain text with `code`, **bold** and [links](URL), as Markdown writes them. */
export type Text = string

export type State = 'met' | 'missed' | 'not measured' | 'failed'

/** A cell: text, or text that says how something went. */
export type TableCell = Text | { readonly text: Text; readonly state: State }

export interface Table {
  readonly caption: Text
  readonly columns: readonly { readonly name: Text; readonly numeric?: boolean }[]
  readonly rows: readonly (readonly TableCell[])[]
}

/** A plot; the page shows it, the Markdown has its table only. */
export interface Figure {
  readonly title: Text
  readonly note: Text
  /** Series that can be picked out, in order. */
  readonly legend: readonly { readonly series: string; readonly label: string; readonly mark: 'area' | 'line' }[]
  /** HTML with inline SVG. */
  readonly plot: string
  /** The same figures as text. */
  readonly table: Table
}

export type Block =
  | { readonly kind: 'heading'; readonly text: Text; readonly id: string; readonly level: 2 | 3 }
  | { readonly kind: 'text'; readonly text: Text }
  | { readonly kind: 'list'; readonly items: readonly Text[] }
  | { readonly kind: 'code'; readonly text: string }
  | { readonly kind: 'tiles'; readonly tiles: readonly { readonly value: string; readonly text: Text }[] }
  /** A warning that stands out. */
  | { readonly kind: 'warning'; readonly text: Text }
  | { readonly kind: 'table'; readonly table: Table }
  /** A long table: closed at first on the page unless `open`. */
  | { readonly kind: 'details'; readonly title: Text; readonly open: boolean; readonly blocks: readonly Block[] }
  | { readonly kind: 'figure'; readonly figure: Figure }
  /** Side by side where there is room. */
  | { readonly kind: 'grid'; readonly blocks: readonly Block[] }

export interface Report {
  readonly title: string
  readonly subtitle: Text
  readonly blocks: readonly Block[]
}
