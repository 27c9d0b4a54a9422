package kvadapter

import (
	"encoding/binary"
	"encoding/hex"

	"github.com/attunekv/attune"
)

// A record in memcached is a stamp and then the value, all numbers little
// endian. If the key's text cannot be had from the stored key, it is in between:
//
//	magic 2 | format 2 | generation 4 | version 8 | value
//	magic 2 | format 2 | generation 4 | version 8 | text length 4 | text | value
//
// There is no checksum: TCP and memcached keep bytes whole, and a foreign write
// is told by the magic.
const memcachedStampSize = 16

const (
	// memcachedMagic opens every record. It is no text, and no opening of what
	// clients commonly store (gzip, zstd, pickle, Java and PHP objects).
	memcachedMagic = 0x54a7
	// memcachedPlain and memcachedTexted are the layouts above. A record of any
	// other is foreign, so that a release may change the layout and read the older
	// one's as misses.
	memcachedPlain  = 1
	memcachedTexted = 2
)

// memcachedOverhead is what a record costs more than its value.
func memcachedOverhead(text []byte) int {
	if verbatim(text) {
		return memcachedStampSize
	}
	return memcachedStampSize + 4 + len(text)
}

func appendMemcachedRecord(dst, text []byte, rec Record) []byte {
	format := uint16(memcachedPlain)
	if !verbatim(text) {
		format = memcachedTexted
	}
	dst = binary.LittleEndian.AppendUint16(dst, memcachedMagic)
	dst = binary.LittleEndian.AppendUint16(dst, format)
	dst = binary.LittleEndian.AppendUint32(dst, rec.Stamp.Gen)
	dst = binary.LittleEndian.AppendUint64(dst, uint64(rec.Stamp.Version))
	if format == memcachedTexted {
		dst = binary.LittleEndian.AppendUint32(dst, uint32(len(text)))
		dst = append(dst, text...)
	}
	return append(dst, rec.Value...)
}

// parseMemcachedRecord returns the record in raw, whose memory it shares, and
// whether there is one. The Value of a record is never nil; text is, where the
// stored key is the text.
func parseMemcachedRecord(raw []byte) (text []byte, rec Record, ok bool) {
	if len(raw) < memcachedStampSize || binary.LittleEndian.Uint16(raw) != memcachedMagic {
		return nil, Record{}, false
	}
	rec = Record{
		Stamp: Stamp{
			Gen:     binary.LittleEndian.Uint32(raw[4:]),
			Version: attune.Version(binary.LittleEndian.Uint64(raw[8:])),
		},
		Value: raw[memcachedStampSize:],
	}
	switch binary.LittleEndian.Uint16(raw[2:]) {
	case memcachedPlain:
		return nil, rec, true
	case memcachedTexted:
		if len(rec.Value) < 4 {
			return nil, Record{}, false
		}
		n, rest := binary.LittleEndian.Uint32(rec.Value), rec.Value[4:]
		if uint64(n) > uint64(len(rest)) || verbatim(rest[:n]) {
			return nil, Record{}, false
		}
		text, rec.Value = rest[:n:n], rest[n:]
		return text, rec, true
	}
	return nil, Record{}, false
}

// memcachedHashed opens the stored key of a text that cannot be one itself.
const memcachedHashed = 0xff

// memcachedKey returns the key that a record is stored under: the text itself
// where the text protocol carries it, else memcachedHashed and the hash in hex.
// A text that starts with memcachedHashed is hashed too, so the two never meet.
func memcachedKey(key attune.Key) string {
	if verbatim(key.Text) {
		return string(key.Text)
	}
	var hash [16]byte
	binary.BigEndian.PutUint64(hash[:8], key.Hash[0])
	binary.BigEndian.PutUint64(hash[8:], key.Hash[1])
	return string(hex.AppendEncode([]byte{memcachedHashed}, hash[:]))
}

func verbatim(text []byte) bool {
	if len(text) == 0 || len(text) > 250 || text[0] == memcachedHashed {
		return false
	}
	for _, b := range text {
		if b <= ' ' || b == 0x7f {
			return false
		}
	}
	return true
}
