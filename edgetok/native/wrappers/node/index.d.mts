import type { Model, Piece } from './edgetok.mjs'
export * from './edgetok.mjs'

/** Opens what `edgetok export --format native --with node` wrote. */
export function open(folder: string): Promise<Model>

/** An answer whose tokens are computed one at a time, with other events between them. */
export function stream(answer: Iterable<Piece>): AsyncGenerator<Piece, void>
