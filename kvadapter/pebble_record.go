package kvadapter

import (
	"encoding/binary"

	"github.com/attunekv/attune"
)

// A record in Pebble's files, in little endian, under the 16 bytes of its hash:
//
//	1  pebbleFormat
//	4  generation
//	8  version
//	1  length of the text
//	   text
//	   value
//
// Pebble has a checksum on each block of records.
const (
	pebbleFormat = 1
	pebbleHead   = 14
)

// pebbleKey is the key of a hash, big endian so that Scan goes by the index's order.
func pebbleKey(h attune.KeyHash) (b [16]byte) {
	binary.BigEndian.PutUint64(b[:], h[0])
	binary.BigEndian.PutUint64(b[8:], h[1])
	return b
}

// encodePebble fills b, of pebbleHead bytes and the lengths of text and value.
func encodePebble(b []byte, rec Record, text []byte) {
	b[0] = pebbleFormat
	binary.LittleEndian.PutUint32(b[1:], rec.Stamp.Gen)
	binary.LittleEndian.PutUint64(b[5:], uint64(rec.Stamp.Version))
	b[13] = byte(len(text))
	copy(b[pebbleHead:], text)
	copy(b[pebbleHead+len(text):], rec.Value)
}

// decodePebble is the reverse, without copying. ok is false for what is no record
// of this format.
func decodePebble(b []byte) (stamp Stamp, text, value []byte, ok bool) {
	if len(b) < pebbleHead || b[0] != pebbleFormat || b[13] == 0 || b[13] > maxKey || len(b) < pebbleHead+int(b[13]) {
		return Stamp{}, nil, nil, false
	}
	stamp = Stamp{binary.LittleEndian.Uint32(b[1:]), attune.Version(binary.LittleEndian.Uint64(b[5:]))}
	text = b[pebbleHead : pebbleHead+int(b[13])]
	return stamp, text, b[pebbleHead+len(text):], true
}
