// Package snapshot is the file that `attune snapshot` saves, restores and inspects:
// all items of a cluster as they were at one moment, as bytes.
//
// A file is a line of text, so that whoever finds it knows what it is, and blocks,
// in little endian:
//
//	"attune snapshot 1\n"        1 is the format
//	blocks: 1 kind; 4 length; that many bytes; 4 CRC-32C of everything before
//	        but checksums, from the first byte of the file
//
//	kind 'h'  the Header, as JSON; the first block
//	kind 'r'  records: 1 key length, 1 to 250; 1 state; 4 flags; 8 expiry;
//	          4 value length; key; value
//	kind 'e'  the Summary, as JSON; the last block
//	kind 'x'  why the file ends here, as text: it is no snapshot
//
// A checksum covers all that came before it, so blocks that were lost, repeated or
// exchanged are noticed at the next one. A record is in one block: small ones share
// it, a large one has its own. Both sides need memory for a block, whatever the file
// has. A reader that gets to the end has seen exactly what was written; it is told of
// records before that, so who must not act on half a file reads it twice.
//
// Expiry is in unix milliseconds by the clock of the cluster, which need not be right:
// Header has both clocks at the moment, and [Header.Left] compares.
//
// Not in a file: versions and cas uniques, which mean something in their cluster
// only.
package snapshot
