package protocol

import "github.com/attunekv/attune"

// reading is a text read whose keys are being handed out: get, gets, gat or
// gats. Its line may be longer than any buffer.
type reading struct {
	withCAS bool  // gets, gats
	retime  bool  // gat, gats
	exptime int64 // with retime
	begun   bool  // a key was handed out
}

// readCommand recognises a read by its first bytes, the blank included, and
// returns where its arguments begin: 0 if it is none.
func readCommand(buf []byte) (read reading, args int) {
	if len(buf) < 4 || buf[0] != 'g' {
		return reading{}, 0
	}
	switch {
	case string(buf[:4]) == "get ":
		return reading{}, 4
	case string(buf[:4]) == "gat ":
		return reading{retime: true}, 4
	case len(buf) < 5:
		return reading{}, 0
	case string(buf[:5]) == "gets ":
		return reading{withCAS: true}, 5
	case string(buf[:5]) == "gats ":
		return reading{withCAS: true, retime: true}, 5
	}
	return reading{}, 0
}

// found is what scan came upon.
type found uint8

const (
	partial found = iota // the buffer ended
	lineEnd
	word
	longWord // longer than asked for
)

// scan finds the next word of a line whose end may not have come yet, in
// buf[at:], and says buf[start:stop] is it. With partial and lineEnd, start is
// where the blanks end.
func scan(buf []byte, at, max int) (start, stop int, f found) {
	for at < len(buf) && buf[at] == ' ' {
		at++
	}
	start = at
	// One byte more than max: it may be the CR of the line's end.
	for ; at < len(buf) && at-start <= max+1; at++ {
		switch buf[at] {
		case ' ':
			stop, f = at, word
		case '\n':
			if stop, f = at, word; stop > start && buf[stop-1] == '\r' {
				stop--
			}
			if stop == start {
				return start, stop, lineEnd
			}
		default:
			continue
		}
		if stop-start > max {
			f = longWord
		}
		return start, stop, f
	}
	if at-start > max+1 {
		return start, at, longWord
	}
	return start, at, partial
}

// firstKey parses the beginning of a read up to and with its first key, so
// that what is wrong with the command itself is told before anything else.
func (p *Parser) firstKey(buf []byte, at int, read reading, r *Request) (n int, err error) {
	head := buf[:min(len(buf), MaxLine)] // all of it must be here
	if read.retime {
		start, stop, f := scan(head, at, MaxLine)
		if f != word {
			return p.noKey(buf, stop, f, r)
		}
		if _, end, f := scan(head, stop, MaxKey); f == partial || f == lineEnd {
			return p.noKey(buf, end, f, r)
		}
		valid := false
		if read.exptime, valid = seconds(buf[start:stop]); !valid {
			r.answer(badExptime)
			return p.waste(buf, stop), nil
		}
		at = stop
	} else if _, stop, f := scan(head, at, MaxKey); f == partial || f == lineEnd {
		return p.noKey(buf, stop, f, r)
	}
	p.read = read
	return p.nextKey(buf, at, r)
}

// noKey answers a read whose first key is not there: not yet, or not at all.
func (p *Parser) noKey(buf []byte, at int, f found, r *Request) (n int, err error) {
	if f != lineEnd {
		return wait(buf)
	}
	r.answer(badFormat)
	return p.waste(buf, at), nil
}

// nextKey hands out the next key of a read, as soon as it is known to be whole,
// and then the end of the line. The byte after a key is left for the next call,
// which must have something to consume.
func (p *Parser) nextKey(buf []byte, at int, r *Request) (n int, err error) {
	start, stop, f := scan(buf, at, MaxKey)
	switch f {
	case partial:
		// Blanks alone may fill any buffer: drop them.
		if start-at >= MaxKey {
			p.place = atKeys
			r.Kind = Reply
			return start, nil
		}
		return 0, nil
	case lineEnd:
		r.Kind, r.reply = End, end
		return p.waste(buf, start), nil
	case longWord:
		// One error in place of all replies to this command; those to earlier
		// commands stand.
		r.answer(badFormat)
		r.Undo = p.read.begun
		return p.waste(buf, stop), nil
	}
	op := &r.Op
	op.Mode = attune.WantValue
	op.Key.Text = buf[start:stop:stop]
	if p.read.retime {
		op.Mode |= attune.Retime
		op.Exptime = p.read.exptime
	}
	r.withCAS = p.read.withCAS
	r.First = !p.read.begun
	p.read.begun = true
	p.place = atKeys
	return stop, nil
}
