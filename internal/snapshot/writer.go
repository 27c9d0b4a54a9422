package snapshot

import (
	"encoding/json"
	"fmt"
	"hash/crc32"
	"io"
)

// Writer writes a snapshot. After an error it is of no more use.
type Writer struct {
	w       io.Writer
	crc     uint32
	block   []byte // of records: head, and what was added
	records int64
}

// NewWriter begins a snapshot. Errors: w's.
func NewWriter(w io.Writer, h *Header) (*Writer, error) {
	out := &Writer{w: w, block: make([]byte, headLen, headLen+blockSize+sumLen)}
	if err := out.write([]byte(firstLine)); err != nil {
		return nil, err
	}
	return out, out.text(kindHeader, h)
}

// Add adds an item. Its slices are copied, or written. Errors: w's, and one of a
// record that no Reader would take.
func (w *Writer) Add(rec *Record) error {
	if n := len(rec.Key); n < 1 || n > MaxKey || len(rec.Value) > MaxValue {
		return fmt.Errorf("key of %d and value of %d bytes cannot be in a snapshot", n, len(rec.Value))
	}
	if len(w.block) > headLen && len(w.block)+fixedLen+len(rec.Key)+len(rec.Value) > headLen+blockSize {
		if err := w.flush(); err != nil {
			return err
		}
	}
	var state byte
	if rec.Stale {
		state |= stateStale
	}
	if rec.Leased {
		state |= stateLeased
	}
	b := append(w.block, uint8(len(rec.Key)), state)
	b = le.AppendUint32(b, rec.Flags)
	b = le.AppendUint64(b, uint64(rec.Expires))
	b = le.AppendUint32(b, uint32(len(rec.Value)))
	b = append(b, rec.Key...)
	w.records++
	if len(rec.Value) < blockSize {
		w.block = append(b, rec.Value...)
		return nil
	}
	w.block = b
	return w.flush(rec.Value...)
}

// flush writes the block of records, and a value too large to be copied to it.
func (w *Writer) flush(value ...byte) error {
	b := w.block
	if len(b) == headLen {
		return nil
	}
	b[0] = kindRecords
	le.PutUint32(b[1:], uint32(len(b)-headLen+len(value)))
	w.block = b[:headLen]
	if err := w.write(b); err != nil {
		return err
	}
	if err := w.write(value); err != nil {
		return err
	}
	return w.sum()
}

// Close ends the snapshot. Missing is as in [Summary]. Errors: w's.
func (w *Writer) Close(missing int64) error {
	if err := w.flush(); err != nil {
		return err
	}
	return w.text(kindEnd, &Summary{Records: w.records, Missing: missing})
}

// Fail ends what will be no snapshot, so that who reads it learns why. Errors: w's.
func (w *Writer) Fail(why error) error {
	text := why.Error()
	return w.put(kindFailed, []byte(text[:min(len(text), maxText)]))
}

func (w *Writer) text(kind byte, v any) error {
	text, err := json.Marshal(v)
	if err != nil {
		return err
	}
	return w.put(kind, text)
}

// put writes a whole block that is no records.
func (w *Writer) put(kind byte, body []byte) error {
	b := le.AppendUint32([]byte{kind}, uint32(len(body)))
	if err := w.write(append(b, body...)); err != nil {
		return err
	}
	return w.sum()
}

// sum writes the checksum so far. It is no part of the next one, as the checksum of
// anything with its own checksum behind it is always the same.
func (w *Writer) sum() error {
	_, err := w.w.Write(le.AppendUint32(nil, w.crc))
	return err
}

func (w *Writer) write(b []byte) error {
	w.crc = crc32.Update(w.crc, castagnoli, b)
	_, err := w.w.Write(b)
	return err
}
