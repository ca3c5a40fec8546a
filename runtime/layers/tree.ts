/** The tree of a layer: every name with its metadata and where its bytes lie. */
export interface LayerTree {
  readonly entryCount: number;
}
