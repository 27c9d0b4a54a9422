package codec

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"math/bits"
)

// Errors of decoding.
var (
	// ErrCorrupt: not what the encoder of this package writes.
	ErrCorrupt = errors.New("damaged or foreign data")
	// ErrFormat: of another version of this software.
	ErrFormat = errors.New("data in a format that this version does not know; run the same version of attune everywhere")
)

const (
	// maxSize bounds the size of a value whose bytes are elsewhere: an int
	// everywhere.
	maxSize = math.MaxInt32
	// maxKey bounds a key's text. No protocol has longer ones than 250 bytes.
	maxKey = math.MaxUint8
)

// when is bit if has, else 0.
func when(has bool, bit uint64) uint64 {
	if has {
		return bit
	}
	return 0
}

// appendKey panics if text is too long: cut off, it would be another key, and
// all members would agree on it.
func appendKey(buf, text []byte) []byte {
	if len(text) > maxKey {
		panic(fmt.Sprintf("codec: key of %d bytes", len(text)))
	}
	return append(append(buf, byte(len(text))), text...)
}

func appendBytes[T []byte | string](buf []byte, b T) []byte {
	return append(binary.AppendUvarint(buf, uint64(len(b))), b...)
}

// appendNonzero leaves out a zero.
func appendNonzero(buf []byte, v uint64) []byte {
	if v == 0 {
		return buf
	}
	return binary.AppendUvarint(buf, v)
}

func zigzag(v int64) uint64   { return uint64(v)<<1 ^ uint64(v>>63) }
func unzigzag(u uint64) int64 { return int64(u>>1) ^ -int64(u&1) }

// decoder takes data apart. After a mistake it is bad, and everything is zero.
type decoder struct {
	data []byte
	bad  bool
}

func (d *decoder) err() error {
	if d.bad {
		return ErrCorrupt
	}
	return nil
}

// check makes d bad unless ok.
func (d *decoder) check(ok bool) {
	if !ok {
		d.bad = true
	}
}

// take returns the next n bytes, never nil. Whoever appends to them gets memory
// of their own, and not what follows.
func (d *decoder) take(n uint64) []byte {
	if d.bad || n > uint64(len(d.data)) {
		d.bad = true
		return []byte{}
	}
	b := d.data[:n:n]
	d.data = d.data[n:]
	return b
}

func (d *decoder) byte() byte {
	if d.bad || len(d.data) == 0 {
		d.bad = true
		return 0
	}
	b := d.data[0]
	d.data = d.data[1:]
	return b
}

func (d *decoder) u64() uint64 {
	if b := d.take(8); !d.bad {
		return binary.LittleEndian.Uint64(b)
	}
	return 0
}

// uvarint accepts the shortest form only.
func (d *decoder) uvarint() uint64 {
	if !d.bad && len(d.data) > 0 && d.data[0] < 0x80 {
		return uint64(d.byte())
	}
	v, n := binary.Uvarint(d.data)
	if d.bad || n <= 0 || n != (bits.Len64(v)+6)/7 {
		d.bad = true
		return 0
	}
	d.data = d.data[n:]
	return v
}

// nonzero reads what appendNonzero wrote, if it is there.
func (d *decoder) nonzero(there bool) uint64 {
	if !there {
		return 0
	}
	v := d.uvarint()
	d.check(v != 0)
	return v
}

// u32 checks a number's range.
func (d *decoder) u32(v uint64) uint32 {
	d.check(v <= math.MaxUint32)
	return uint32(v)
}

// size checks the size of a value that is elsewhere.
func (d *decoder) size(v uint64) int {
	if v > maxSize {
		d.bad = true
		return 0
	}
	return int(v)
}

// list begins to read a counted list, of which each element has at least so many
// bytes.
func list(data []byte, format byte, least int) (d decoder, n int, err error) {
	if len(data) > 0 && data[0] != format {
		return d, 0, fmt.Errorf("format %d: %w", data[0], ErrFormat)
	}
	d.data = data
	d.byte()
	count := d.uvarint()
	if d.bad || count > uint64(len(d.data)/least) {
		return d, 0, ErrCorrupt
	}
	return d, int(count), nil
}
