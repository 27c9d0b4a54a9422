package gossip

import (
	"encoding/binary"

	"github.com/attunekv/attune"
	"github.com/attunekv/attune/consistency/gossip/sketch"
)

// Steps of an agreement on a cut: the first byte of a frame of it.
const (
	// stepWish, to the coordinator: there are dead entries here.
	stepWish byte = 1 + iota
	// stepPrepare and stepFixed: from now on nothing has a version of the cut or
	// less, and my changes were so many.
	stepPrepare
	stepFixed
	// stepCover and stepCovered: here is all of that.
	stepCover
	stepCovered
	// stepCommit: the cut holds.
	stepCommit
	// stepRefuse, to the coordinator, and stepAbort, from it: it does not.
	stepRefuse
	stepAbort
	stepsEnd
)

// refusal is why a member does not take part.
type refusal byte

const (
	refuseNothing refusal = iota
	refuseUnsynced
	refuseBehind
	refuseBusy
	refuseMembers
	refuseAlive
	refuseClock
	refusalsEnd
)

func (r refusal) String() string {
	return [refusalsEnd]string{
		"", "it is still taking over the data", "it has another cut", "it is busy with another cut",
		"it knows other members", "it sees one that was to be expelled", "its clock is too far behind",
	}[r]
}

// cutFrame is one step. All but a wish name the cut they are about.
//
//	step u8
//	wish                expelled
//	prepare  cut u64    base u64, party u64, expelled
//	fixed    cut u64    seq uvarint, unsure u8, cell 4*u64, floor u64
//	cover    cut u64    gather u8, uvarint count; each: origin u64, seq uvarint
//	covered  cut u64    rest u64
//	commit   cut u64
//	refuse   cut u64    why u8
//	abort    cut u64
//
// where expelled is uvarint count; each: id u64. Lists are in ascending order.
type cutFrame struct {
	step     byte
	cut      attune.Version
	base     attune.Version // the cut before
	party    uint64         // a hash of who takes part
	expelled []uint64       // who is listed and does not
	seq      uint64
	unsure   bool // somebody left who may have told some members only
	cell     sketch.Cell
	floor    attune.Version
	gather   bool         // take over what the coordinator has before you answer
	seqs     []dependency // of those who take part
	rest     uint64       // a hash of the vector, of the origins that do not
	why      refusal
}

func (f *cutFrame) append(b []byte) []byte {
	le := binary.LittleEndian
	b = append(b, f.step)
	if f.step == stepWish {
		return appendIDs(b, f.expelled)
	}
	b = le.AppendUint64(b, uint64(f.cut))
	switch f.step {
	case stepPrepare:
		b = le.AppendUint64(b, uint64(f.base))
		b = le.AppendUint64(b, f.party)
		b = appendIDs(b, f.expelled)
	case stepFixed:
		b = binary.AppendUvarint(b, f.seq)
		b = append(b, flag(f.unsure))
		for _, w := range []uint64{f.cell.Key, f.cell.Mark, f.cell.Sum, uint64(f.cell.Count), uint64(f.floor)} {
			b = le.AppendUint64(b, w)
		}
	case stepCover:
		b = append(b, flag(f.gather))
		b = binary.AppendUvarint(b, uint64(len(f.seqs)))
		for _, d := range f.seqs {
			b = le.AppendUint64(b, d.origin)
			b = binary.AppendUvarint(b, d.seq)
		}
	case stepCovered:
		b = le.AppendUint64(b, f.rest)
	case stepRefuse:
		b = append(b, byte(f.why))
	}
	return b
}

func parseCut(b []byte) (f cutFrame, ok bool) {
	r := reader{b: b}
	f.step = r.u8()
	if f.step == stepWish {
		f.expelled = r.ids()
		return f, r.end()
	}
	f.cut = attune.Version(r.u64())
	switch f.step {
	case stepPrepare:
		f.base, f.party = attune.Version(r.u64()), r.u64()
		f.expelled = r.ids()
	case stepFixed:
		f.seq, f.unsure = r.uvarint(), r.flag()
		f.cell = sketch.Cell{Key: r.u64(), Mark: r.u64(), Sum: r.u64(), Count: int64(r.u64())}
		f.floor = attune.Version(r.u64())
	case stepCover:
		f.gather = r.flag()
		last := uint64(0)
		for range r.count(9) {
			d := dependency{r.u64(), r.uvarint()}
			r.bad = r.bad || d.origin <= last || d.seq == 0
			last = d.origin
			f.seqs = append(f.seqs, d)
		}
	case stepCovered:
		f.rest = r.u64()
	case stepRefuse:
		f.why = refusal(r.u8())
		r.bad = r.bad || f.why == refuseNothing || f.why >= refusalsEnd
	}
	return f, r.end() && f.step > stepWish && f.step < stepsEnd && f.cut != 0
}

func flag(on bool) byte {
	if on {
		return 1
	}
	return 0
}

// flag reads a byte that is 0 or 1.
func (r *reader) flag() bool {
	b := r.u8()
	r.bad = r.bad || b > 1
	return b == 1
}

func appendIDs(b []byte, ids []uint64) []byte {
	b = binary.AppendUvarint(b, uint64(len(ids)))
	for _, id := range ids {
		b = binary.LittleEndian.AppendUint64(b, id)
	}
	return b
}

// ids reads a list of ids, each once and in ascending order.
func (r *reader) ids() (ids []uint64) {
	last := uint64(0)
	for range r.count(8) {
		id := r.u64()
		r.bad = r.bad || id <= last
		last = id
		ids = append(ids, id)
	}
	return ids
}
