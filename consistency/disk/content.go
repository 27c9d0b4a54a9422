package disk

import (
	"fmt"
	"io"
)

// WriteContent writes what a state of either engine has: a head of the engine's own,
// the index, and what rest adds to them. size is how much that was.
func WriteContent(w io.Writer, head []byte, index io.WriterTo, rest func(io.Writer) error) (size int64, err error) {
	counted := &countingWriter{w: w}
	if _, err = counted.Write(append(le.AppendUint32(nil, uint32(len(head))), head...)); err == nil {
		_, err = index.WriteTo(counted)
	}
	if err == nil {
		err = rest(counted)
	}
	return counted.n, err
}

// ReadHead reads the head of such a state, of at most so many bytes; the index follows.
func ReadHead(r io.Reader, most uint32) ([]byte, error) {
	var n [4]byte
	if _, err := io.ReadFull(r, n[:]); err != nil {
		return nil, err
	}
	size := le.Uint32(n[:])
	if size > most {
		return nil, fmt.Errorf("a state whose head has %d bytes was not written by this version of attune", size)
	}
	head := make([]byte, size)
	_, err := io.ReadFull(r, head)
	return head, err
}

// countingWriter counts what passes.
type countingWriter struct {
	w io.Writer
	n int64
}

func (w *countingWriter) Write(b []byte) (int, error) {
	n, err := w.w.Write(b)
	w.n += int64(n)
	return n, err
}
