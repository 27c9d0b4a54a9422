package protocol

import (
	"cmp"
	"encoding/base64"
	"math"
	"strconv"

	"github.com/attunekv/attune"
)

const (
	// maxMetaWords bounds a meta command, its own words included.
	maxMetaWords = 20
	// maxOpaque bounds an O token, the O included.
	maxOpaque = 32
)

// metaFlags is what the flags of a meta command say, before the command makes
// an Op of it: the same letter means different things to different commands,
// and one that means nothing to a command is ignored.
type metaFlags struct {
	seen               [2]uint64 // a bit per letter
	mode               byte      // M
	ttl, vivify, renew int64     // T, N, R
	created            int64     // the later of T and N: both set a new item's time
	client             uint32    // F
	compare, cas       uint64    // C, E
	delta, initial     uint64    // D, J
	longOpaque         bool      // O
	key                []byte    // as the item has it: decoded with b
}

func (f *metaFlags) has(c byte) bool { return f.seen[c>>6]&(1<<(c&63)) != 0 }

// parse reads all flags. It tells the last of several complaints, as memcached
// does (a bad F only if there is no other), but stops at a letter that is
// unknown or comes twice.
func (f *metaFlags) parse(flags []byte, r *Request) (complaint string) {
	for {
		w, rest := cut(flags)
		if len(w) == 0 {
			return complaint
		}
		flags = rest
		c, token := w[0], w[1:]
		if c >= 128 || f.has(c) { // the former is for survey to refuse
			return duplicateFlag
		}
		f.seen[c>>6] |= 1 << (c & 63)
		valid, wrong := true, badToken
		switch c {
		case 'c', 'f', 'h', 'k', 'l', 'q', 's', 't', 'u', 'v', 'x', 'I':
		case 'P', 'L': // for routers in between
		case 'b':
			r.base64 = true
			f.key = r.decode(f.key)
			valid, wrong = len(f.key) > 0, badBase64
		case 'O':
			f.longOpaque = len(w) > maxOpaque
		case 'T':
			f.ttl, valid = seconds(token)
			f.created = f.ttl
		case 'N':
			f.vivify, valid = seconds(token)
			f.created = f.vivify
		case 'R':
			f.renew, valid = seconds(token)
		case 'F':
			var v uint64
			v, valid = number(token, math.MaxUint32)
			f.client, wrong = uint32(v), cmp.Or(complaint, badFormat)
		case 'C':
			f.compare, valid = number(token, math.MaxUint64)
		case 'E':
			f.cas, valid = number(token, math.MaxUint64)
		case 'D':
			f.delta, valid = number(token, math.MaxUint64)
			wrong = badMetaDelta
		case 'J':
			f.initial, valid = number(token, math.MaxUint64)
			wrong = badInitial
		case 'M':
			// Only the first letter counts; a bare M is no mode either.
			if f.mode = ' '; len(token) > 0 {
				f.mode = token[0]
			}
		default:
			return badFlag
		}
		if !valid {
			complaint = wrong
		}
	}
}

// meta parses m<verb> <key> [<datalen>] <flags>*. args begins after the
// command's word.
func (p *Parser) meta(verb byte, args []byte, r *Request) {
	r.dialect, r.verb = meta, verb
	key, rest := cut(args)
	body, valid := 0, len(key) > 0
	own := 2 // words before the flags
	if verb == 's' && valid {
		var size []byte
		size, rest = cut(rest)
		body, valid = length(size)
		own = 3
	}
	if !valid {
		r.answer(badFormat)
		return
	}
	r.flags = rest
	if verb == 's' {
		// Dropped unless the command turns out to be sound.
		r.Skip = int64(body) + int64(len(crlf))
	}

	f := metaFlags{key: key}
	complaint := ""
	flags, plain := survey(rest)
	switch {
	case len(key) > MaxKey:
		complaint = badFormat
	case own+flags > maxMetaWords:
		complaint = tooManyFlags
	default:
		complaint = f.parse(rest, r)
	}
	switch {
	case !plain:
		complaint = badFormat
	case complaint != "" && verb == 'a':
		complaint = badFlagOrTwice // one for all, in this command
	}
	r.quiet = f.has('q')
	op := &r.Op
	op.Key.Text = f.key
	if complaint == "" {
		switch verb {
		case 'g':
			f.get(op)
		case 's':
			complaint = f.set(op)
		case 'd':
			f.delete(op)
		case 'a':
			complaint = f.arithmetic(op)
		case 'e':
			op.Mode = attune.NoBump
		}
	}
	if complaint == "" && verb == 's' && body > p.MaxItem {
		r.answerTooLarge(f.key, true)
		return
	}
	if complaint == "" && f.longOpaque {
		complaint = badOpaque
	}
	switch {
	case complaint != "":
		r.answer(complaint)
	case verb == 's':
		r.Body, r.Trailer, r.Skip = body, len(crlf), 0
	}
}

// survey counts the flags of a meta command and reports whether all begin with
// what is, by a loose measure, a letter or a digit. Any other makes the command
// malformed, whatever else is wrong with it.
func survey(flags []byte) (n int, plain bool) {
	plain = true
	before := byte(' ')
	for _, c := range flags {
		if before == ' ' && c != ' ' {
			n++
			plain = plain && (c > '@' && c <= 'z' || c >= '0' && c <= '9')
		}
		before = c
	}
	return n, plain
}

// decode returns the bytes of a key sent in base64, in r's own memory; none if
// it is no base64.
func (r *Request) decode(key []byte) []byte {
	var err error
	r.decoded, err = base64.StdEncoding.AppendDecode(r.decoded[:0], key)
	if err != nil {
		return nil
	}
	return r.decoded
}

// get makes op of mg. Any mg takes part in the lease: one without N and R wins
// a stale item too.
func (f *metaFlags) get(op *attune.Op) {
	op.Mode = attune.Lease
	if f.has('v') {
		op.Mode |= attune.WantValue
	}
	if f.has('u') {
		op.Mode |= attune.NoBump
	}
	if f.has('C') {
		op.Mode |= attune.IfMatch
		op.Compare = f.compare
	}
	if f.has('R') {
		op.Mode |= attune.Recache
		op.RecacheTTL = f.renew
	}
	f.retime(op)
	f.create(op, f.created)
	f.choose(op)
}

// set makes op of ms.
func (f *metaFlags) set(op *attune.Op) (complaint string) {
	switch f.mode {
	case 0, 'S':
		op.Verb = attune.Set
	case 'E':
		op.Verb = attune.Add
	case 'A':
		op.Verb = attune.Append
	case 'P':
		op.Verb = attune.Prepend
	case 'R':
		op.Verb = attune.Replace
	default:
		return badSetMode
	}
	op.Flags = f.client
	op.Exptime = f.ttl
	switch op.Verb {
	case attune.Append, attune.Prepend:
		f.create(op, f.vivify)
		f.expect(op)
	case attune.Set, attune.Replace:
		// With a unique to compare, replace is set: both need an item.
		if f.has('C') {
			op.Verb = attune.Set
			op.Mode |= attune.IfCAS
			op.Compare = f.compare
			if f.has('I') {
				op.Mode |= attune.Invalidate
			}
		}
	}
	f.choose(op)
	return ""
}

// delete makes op of md.
func (f *metaFlags) delete(op *attune.Op) {
	op.Verb = attune.Delete
	if f.has('C') {
		op.Mode |= attune.IfCAS
		op.Compare = f.compare
	}
	if f.has('I') {
		op.Mode |= attune.Invalidate
	}
	if f.has('x') {
		op.Mode |= attune.Clear
		op.Flags = f.client
	}
	f.retime(op)
	f.choose(op)
}

// arithmetic makes op of ma.
func (f *metaFlags) arithmetic(op *attune.Op) (complaint string) {
	switch f.mode {
	case 0, 'I', '+':
		op.Verb = attune.Incr
	case 'D', '-':
		op.Verb = attune.Decr
	default:
		return badCountMode
	}
	if op.Delta = 1; f.has('D') {
		op.Delta = f.delta
	}
	op.Initial = f.initial
	f.expect(op)
	f.retime(op)
	f.create(op, f.created)
	f.choose(op)
	return ""
}

// expect makes op compare the unique. A unique of 0 compares nothing here, as
// in memcached.
func (f *metaFlags) expect(op *attune.Op) {
	if f.compare != 0 {
		op.Mode |= attune.IfCAS
		op.Compare = f.compare
	}
}

func (f *metaFlags) retime(op *attune.Op) {
	if f.has('T') {
		op.Mode |= attune.Retime
		op.Exptime = f.ttl
	}
}

func (f *metaFlags) create(op *attune.Op, ttl int64) {
	if f.has('N') {
		op.Mode |= attune.Vivify
		op.VivifyTTL = ttl
	}
}

func (f *metaFlags) choose(op *attune.Op) {
	if f.has('E') {
		op.Mode |= attune.ChooseCAS
		op.CAS = f.cas
	}
}

// appendMeta appends the reply to a meta command.
func (r *Request) appendMeta(dst []byte, res *attune.Result, now int64) (out, value []byte) {
	status := ""
	done := false // the command did what it was sent for
	switch r.outcome(res) {
	case attune.Hit, attune.Stored, attune.Deleted, attune.Touched, attune.Counted:
		status, done = "HD", true
	case attune.Miss:
		status = "EN"
	case attune.NotStored:
		status = "NS"
	case attune.Exists:
		status = "EX"
	case attune.NotFound:
		status = "NF"
	default:
		return appendFailure(dst, res), nil
	}
	if r.verb == 'e' {
		return r.appendDebug(dst, res, done, now), nil
	}
	// q hides the nominal answer: a miss of mg, the success of the others.
	if r.quiet && (res.Status == attune.Miss || done && r.verb != 'g') {
		return dst, nil
	}
	var memory [20]byte
	var digits []byte
	switch {
	case !done:
	case r.verb == 'a' && r.wants('v'):
		digits = strconv.AppendUint(memory[:0], res.Number, 10)
	case r.verb == 'g' && r.Op.Mode.Has(attune.WantValue) && !r.matches(res):
		if value = res.Item.Value; value == nil {
			value = empty
		}
	}
	if digits == nil && value == nil {
		dst = append(dst, status...)
	} else {
		dst = append(dst, "VA "...)
		dst = strconv.AppendInt(dst, int64(len(digits)+len(value)), 10)
	}
	dst = r.appendFlags(dst, res, done, now)
	dst = append(dst, crlf...)
	if digits != nil {
		// The number is this function's own memory: it goes out with the head.
		dst = append(dst, digits...)
		dst = append(dst, crlf...)
	}
	return dst, value
}

// matches reports whether mg's C holds, so that the client has the value.
func (r *Request) matches(res *attune.Result) bool {
	return r.Op.Mode.Has(attune.IfMatch) && res.Item.CAS == r.Op.Compare
}

// wants reports whether flag c was sent.
func (r *Request) wants(c byte) bool {
	for rest := r.flags; ; {
		var w []byte
		if w, rest = cut(rest); len(w) == 0 {
			return false
		}
		if w[0] == c {
			return true
		}
	}
}

// appendFlags appends the flags that are answered, in the order they were sent
// in, and then those the server adds.
func (r *Request) appendFlags(dst []byte, res *attune.Result, done bool, now int64) []byte {
	it := &res.Item
	// t tells the time at its place among the flags: T and N set it at theirs.
	expires := res.Before
	for rest := r.flags; ; {
		var w []byte
		if w, rest = cut(rest); len(w) == 0 {
			break
		}
		c := w[0]
		switch c {
		case 'T':
			expires = attune.Deadline(r.Op.Exptime, now)
			continue
		case 'N':
			if res.Absent {
				ttl, _ := seconds(w[1:])
				expires = attune.Deadline(ttl, now)
			}
			continue
		case 'O':
			dst = append(append(dst, ' '), w...)
			continue
		case 'k':
			dst = append(dst, " k"...)
			if dst = r.appendKey(dst); r.base64 {
				dst = append(dst, " b"...)
			}
			continue
		}
		v := uint64(0)
		switch {
		case r.verb == 's' && !done: // ms tells of a failure what it can
			if c == 's' {
				v = uint64(len(r.Op.Value))
			} else if c != 'c' {
				continue
			}
		case !done:
			continue
		case c == 'c' && r.verb != 'd':
			v = it.CAS
		case c == 't' && (r.verb == 'g' || r.verb == 'a'):
			dst = append(dst, " t"...)
			dst = appendTTL(dst, expires, now)
			continue
		case c == 's' && (r.verb == 'g' || r.verb == 's'):
			v = uint64(it.Size)
		case r.verb != 'g':
			continue
		case c == 'f':
			v = uint64(it.Flags)
		case c == 'h':
			if it.Fetched {
				v = 1
			}
		case c == 'l':
			v = idle(it, now)
		default:
			continue
		}
		dst = append(dst, ' ', c)
		dst = strconv.AppendUint(dst, v, 10)
	}
	if r.verb != 'g' || !done {
		return dst
	}
	if res.Taken {
		dst = append(dst, " Z"...)
	}
	if res.Stale {
		dst = append(dst, " X"...)
	}
	if res.Won {
		dst = append(dst, " W"...)
	}
	return dst
}

// appendDebug appends the reply to me. The slab class is always 1, and the size
// is that of key and value.
func (r *Request) appendDebug(dst []byte, res *attune.Result, hit bool, now int64) []byte {
	if !hit {
		return appendLine(dst, "EN")
	}
	it := &res.Item
	dst = append(dst, "ME "...)
	dst = r.appendKey(dst)
	dst = append(dst, " exp="...)
	dst = appendTTL(dst, it.Expires, now)
	dst = append(dst, " la="...)
	dst = strconv.AppendUint(dst, idle(it, now), 10)
	dst = append(dst, " cas="...)
	dst = strconv.AppendUint(dst, it.CAS, 10)
	dst = append(dst, " fetch="...)
	if it.Fetched {
		dst = append(dst, "yes"...)
	} else {
		dst = append(dst, "no"...)
	}
	dst = append(dst, " cls=1 size="...)
	dst = strconv.AppendInt(dst, int64(len(r.Op.Key.Text)+it.Size), 10)
	return append(dst, crlf...)
}

// appendKey appends the key the way it was sent.
func (r *Request) appendKey(dst []byte) []byte {
	if r.base64 {
		return base64.StdEncoding.AppendEncode(dst, r.Op.Key.Text)
	}
	return append(dst, r.Op.Key.Text...)
}

// appendTTL appends the seconds an item has left, rounded up so that a TTL just
// set reads back the same; -1 if it does not expire.
func appendTTL(dst []byte, expires, now int64) []byte {
	if expires == 0 {
		return append(dst, "-1"...)
	}
	return strconv.AppendInt(dst, max(expires-now+999, 0)/1000, 10)
}

// idle is the seconds since an item was last used.
func idle(it *attune.Item, now int64) uint64 { return uint64(max(now/1000-it.Accessed, 0)) }
