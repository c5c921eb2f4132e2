// Moved; kept until scripts/report/scaling.ts names the new place.
export * from '../wan/open.ts'
