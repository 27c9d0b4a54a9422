package controller

// highWater is how many reply bytes a session gathers before it must write:
// what one slow reader can hold of this process, give or take one reply.
const highWater = 64 << 10

// keepBuffer is the largest reply buffer that is used again.
const keepBuffer = 2 * highWater

// output gathers replies until they are written in one system call. Small
// values are copied into buf; large ones go by reference between two buffers.
type output struct {
	segs [][]byte // finished segments, older than buf
	buf  []byte   // the segment being appended to
	size int      // bytes in segs and buf

	flushes int // how often everything gathered was taken, for marks
}

// empty reports whether nothing is gathered, nor taken and not released.
func (o *output) empty() bool { return o.size == 0 && len(o.segs) == 0 }

// mark is a place in the output to go back to.
type mark struct{ segs, buf, size, flushes int }

func (o *output) mark() mark { return mark{len(o.segs), len(o.buf), o.size, o.flushes} }

// undo takes back what was appended since m, as far as it was not sent yet.
func (o *output) undo(m mark) {
	if m.flushes != o.flushes {
		m = mark{flushes: o.flushes}
	}
	if len(o.segs) > m.segs {
		// buf was split off since: its predecessor holds the marked prefix.
		o.buf = o.segs[m.segs][:m.buf]
		clear(o.segs[m.segs:]) // they pin values
		o.segs = o.segs[:m.segs]
	}
	o.buf = o.buf[:m.buf]
	o.size = m.size
}

// grew records that buf was appended to by its user.
func (o *output) grew(buf []byte) {
	o.size += len(buf) - len(o.buf)
	o.buf = buf
}

// refer appends value without copying it. It must never change.
func (o *output) refer(value []byte) {
	o.segs = append(o.segs, o.buf, value)
	o.buf = o.buf[len(o.buf):]
	o.size += len(value)
}

// take returns everything gathered as segments, in order, and starts anew. The
// segments are valid until release.
func (o *output) take() [][]byte {
	if len(o.buf) > 0 {
		o.segs = append(o.segs, o.buf)
	}
	o.flushes++
	o.size = 0
	return o.segs
}

// release says that the taken segments were written.
func (o *output) release() {
	split := len(o.segs) > 1 // then buf may be the short end of a large one
	clear(o.segs)
	o.segs = o.segs[:0]
	if split || cap(o.buf) > keepBuffer {
		o.buf = nil
	} else {
		o.buf = o.buf[:0]
	}
}
