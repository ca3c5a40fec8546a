/** In which units a file's st_blocks counts, whatever the filesystem's own blocks are (stat(2), inode(7)). */
const BLOCK_BYTES = 512;

/** What a file occupies on its disk, in bytes: less than its size where it has holes, more where its last block is not full. */
export function diskBytesOf({ blocks }: { readonly blocks: number }): number {
  return blocks * BLOCK_BYTES;
}
