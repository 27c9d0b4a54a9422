package replica

import (
	"bufio"
	"context"
	"errors"
	"io"

	"github.com/attunekv/attune"
	"github.com/attunekv/attune/kvadapter"
)

// Records on their way to another replica, in little endian:
//
//	1   recordFormat
//	    records: 1 key length, 1 to maxKey; 8 stored; 4 value length;
//	             key; value; 4 CRC-32C of everything before but checksums
//	1   0: the end
//	8   count of all records
//	4   CRC-32C of everything before but checksums
//
// Every record has a checksum because it is put before the next is read; and as it
// covers all that came before, records that are lost, repeated or exchanged are noticed
// at the next one. The hash is not sent: it follows from the text, so it cannot be wrong.
//
// States on disk may have format 1, whose checksums are of everything before: such a
// one is that of its own record alone.
const (
	recordFormat    = 2
	recordFormatOwn = 1
	recordBuffer    = 64 << 10
)

// Export writes the bytes there are, for [Replica.Import], key by key while the
// replica is used: of every item that has its bytes here, though one that is
// written or evicted meanwhile may be missing. Expired items are among them, for
// when that takes effect is not for one replica to say. Memory does not grow with
// the number of items; no lock is held while w writes. Errors: [ErrNoScan], the
// backend's, w's.
func (r *Replica) Export(ctx context.Context, w io.Writer) error {
	return r.export(ctx, w, func(each func(text []byte) bool) error { return r.Keys(ctx, each) })
}

// Keys calls fn for the keys that have their bytes here, or others that the store did
// not forget, in no order, some twice, and those that come or go meanwhile perhaps,
// until it returns false. The text is valid during the call. Errors: [ErrNoScan], the backend's.
func (r *Replica) Keys(ctx context.Context, fn func(text []byte) bool) error {
	// What leaves the stage meanwhile the backend has when it is scanned.
	if !r.eachStaged(fn) {
		return nil
	}
	if l, ok := r.backend.(kvadapter.Lister); ok {
		return l.Keys(ctx, func(text []byte) bool {
			return r.Peek(attune.Key{Hash: r.Hash(text)}, false).Version == 0 || fn(text)
		})
	}
	return r.Scan(ctx, func(text []byte, _ attune.Item) bool { return fn(text) })
}

// ExportKeys is [Replica.Export] for the keys named, and needs no list of them. Those
// whose bytes are not here are passed over.
func (r *Replica) ExportKeys(ctx context.Context, w io.Writer, texts [][]byte) error {
	return r.export(ctx, w, func(each func(text []byte) bool) error {
		for _, text := range texts {
			if !each(text) {
				break
			}
		}
		return context.Cause(ctx)
	})
}

// export writes the bytes of the keys that list tells until each returns false.
func (r *Replica) export(ctx context.Context, w io.Writer, list func(each func(text []byte) bool) error) error {
	buffer := bufio.NewWriterSize(w, recordBuffer)
	out := exporter{r: r, ctx: ctx, w: sumWriter{w: buffer}}
	if err := out.w.write([]byte{recordFormat}); err != nil {
		return err
	}
	var failed error
	err := list(func(text []byte) bool {
		failed = out.add(text)
		return failed == nil
	})
	if failed == nil {
		failed = out.flush()
	}
	if err == nil {
		err = failed
	}
	if err != nil {
		return err
	}
	if err := errors.Join(out.w.write(le.AppendUint64([]byte{0}, out.n)), out.w.sum()); err != nil {
		return err
	}
	return buffer.Flush()
}

const (
	// recordBatch is how many records are asked of a store outside this process in one
	// round trip, or brought to it together, unless they have recordBytes.
	recordBatch = 256
	recordBytes = 1 << 20
)

// exporter writes records, and asks a backend outside this process for many at a time.
type exporter struct {
	r   *Replica
	ctx context.Context
	w   sumWriter
	n   uint64 // records written

	head, value []byte // reused

	texts []byte // of keys
	keys  []attune.Key
	got   []Got
	size  int // of what got asks for
}

// add writes the bytes of a key, or takes note of it.
func (x *exporter) add(text []byte) error {
	key := attune.Key{Text: text, Hash: x.r.Hash(text)}
	if x.r.memory != nil {
		it, err := x.r.load(x.ctx, key, x.value, false)
		return x.write(text, &it, err)
	}
	x.texts = append(x.texts, text...)
	key.Text = x.texts[len(x.texts)-len(text):]
	var got Got
	x.r.Lacks(key, &got)
	x.keys, x.got, x.size = append(x.keys, key), append(x.got, got), x.size+got.Size()
	if len(x.keys) < recordBatch && x.size < recordBytes {
		return nil
	}
	return x.flush()
}

// flush writes the bytes of the keys noted.
func (x *exporter) flush() error {
	var keys []attune.Key
	var ask []*Got
	for i := range x.got {
		if got := &x.got[i]; got.stored != 0 {
			keys, ask = append(keys, x.keys[i]), append(ask, got)
		}
	}
	x.r.Bring(x.ctx, keys, ask)
	for i, key := range x.keys {
		it, ok, err := x.r.Here(key, &x.got[i], false)
		if !ok { // it was written meanwhile
			it, err = x.r.Get(x.ctx, key, nil, false)
		}
		if err := x.write(key.Text, &it, err); err != nil {
			return err
		}
	}
	clear(x.got) // or it keeps the values
	x.texts, x.keys, x.got, x.size = x.texts[:0], x.keys[:0], x.got[:0], 0
	return nil
}

// write writes what was read of a key.
func (x *exporter) write(text []byte, it *attune.Item, err error) error {
	switch {
	case errors.Is(err, ErrGone), errors.Is(err, ErrBusy), err == nil && it.Version == 0:
		return nil // evicted or overwritten since it was listed
	case err != nil:
		return err
	}
	x.head = append(x.head[:0], uint8(len(text)))
	x.head = le.AppendUint64(x.head, uint64(it.Stored))
	x.head = le.AppendUint32(x.head, uint32(len(it.Value)))
	x.head = append(x.head, text...)
	if err := x.w.write(x.head); err != nil {
		return err
	}
	if err := x.w.write(it.Value); err != nil {
		return err
	}
	if x.r.memory != nil && len(it.Value) < kvadapter.Large {
		x.value = it.Value
	}
	x.n++
	return x.w.sum()
}

// eachStaged calls fn for the keys that have bytes on their way to the backend,
// with no lock held, until it returns false, as it then does.
func (r *Replica) eachStaged(fn func(text []byte) bool) bool {
	for i := range r.segs {
		s := &r.segs[i]
		var texts [][]byte
		s.mu.Lock()
		for _, st := range s.stage {
			if !st.delete && st.key.Text != nil {
				texts = append(texts, st.key.Text) // it is never modified
			}
		}
		s.mu.Unlock()
		for _, text := range texts {
			if !fn(text) {
				return false
			}
		}
	}
	return true
}
