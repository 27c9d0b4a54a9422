package raftlog

import (
	"fmt"
	"sort"

	"go.etcd.io/raft/v3"
	pb "go.etcd.io/raft/v3/raftpb"
)

// blockLen entries are kept together: 4 KiB.
const blockLen = 256

// slot is one entry.
type slot struct {
	entry *pb.Entry
	end   uint64 // bytes of all entries up to and with this one, since the last reset
}

type block [blockLen]slot

// memory is the log as Raft reads it: the entries behind base, in blocks, so that
// neither end ever moves the rest. What is handed out is copied pointers: a slot
// may be cleared or used again while somebody holds what was in it.
type memory struct {
	base     uint64 // the newest entry that is not here; 0 before the first
	baseTerm uint64
	baseEnd  uint64 // as slot.end, of the entry at base
	last     uint64 // base, if empty

	blocks []*block
	start  uint64 // index of the first slot of blocks[0]; at most base+1
}

// reset makes it empty behind an entry.
func (m *memory) reset(index, term uint64) {
	*m = memory{base: index, baseTerm: term, last: index, start: index + 1}
}

// at is the slot of entry i, which must be here.
func (m *memory) at(i uint64) *slot {
	p := i - m.start
	return &m.blocks[p/blockLen][p%blockLen]
}

// end is slot.end of entry i, which must be here, or at base.
func (m *memory) end(i uint64) uint64 {
	if i == m.base {
		return m.baseEnd
	}
	return m.at(i).end
}

func (m *memory) bytes() uint64 { return m.end(m.last) - m.baseEnd }

// term of entry i, which must be here, or at base.
func (m *memory) term(i uint64) uint64 {
	if i == m.base {
		return m.baseTerm
	}
	return m.at(i).entry.GetTerm()
}

// put appends entries, and before that drops those from the first one's index on.
// They must follow each other, and join on to what is here.
func (m *memory) put(ents []*pb.Entry) {
	if len(ents) == 0 {
		return
	}
	m.truncate(ents[0].GetIndex())
	end := m.end(m.last)
	for _, e := range ents {
		p := m.last + 1 - m.start
		if p/blockLen == uint64(len(m.blocks)) {
			m.blocks = append(m.blocks, new(block))
		}
		end += entrySize(e)
		m.blocks[p/blockLen][p%blockLen] = slot{e, end}
		m.last++
	}
}

// truncate drops the entries from index on.
func (m *memory) truncate(index uint64) {
	for ; m.last >= index; m.last-- {
		*m.at(m.last) = slot{}
	}
	used := int((m.last + 1 - m.start + blockLen - 1) / blockLen)
	for len(m.blocks) > used {
		m.blocks[len(m.blocks)-1] = nil
		m.blocks = m.blocks[:len(m.blocks)-1]
	}
}

// compact drops the entries up to and with to, which must be here.
func (m *memory) compact(to uint64) {
	m.baseTerm, m.baseEnd = m.term(to), m.end(to)
	for m.base < to {
		m.base++
		*m.at(m.base) = slot{}
		if m.base-m.start == blockLen-1 {
			m.blocks[0] = nil
			m.blocks, m.start = m.blocks[1:], m.start+blockLen
		}
	}
}

// entrySize is the length of e as Raft counts it: encoded as a protocol buffer.
// [proto.Size] is the same and an order of magnitude slower.
func entrySize(e *pb.Entry) uint64 {
	n := 0
	if e.Type != nil {
		n += 1 + uvarintLen(uint64(*e.Type))
	}
	if e.Term != nil {
		n += 1 + uvarintLen(*e.Term)
	}
	if e.Index != nil {
		n += 1 + uvarintLen(*e.Index)
	}
	if e.Data != nil {
		n += 1 + uvarintLen(uint64(len(e.Data))) + len(e.Data)
	}
	return uint64(n)
}

func uvarintLen(x uint64) int {
	n := 1
	for ; x >= 0x80; x >>= 7 {
		n++
	}
	return n
}

// InitialState is the hard state that was saved, and the members given to
// [Log.SetConfState] or [Log.Install], or those of the state file that was found.
func (l *Log) InitialState() (*pb.HardState, *pb.ConfState, error) {
	return l.hard.state(), pb.EnsureConfState(l.conf), nil
}

// Entries are those in [lo, hi), but after the first only as many as take maxSize
// bytes. Errors: [raft.ErrCompacted] and [raft.ErrUnavailable], if some are gone
// or were never here.
func (l *Log) Entries(lo, hi, maxSize uint64) ([]*pb.Entry, error) {
	m := &l.memory
	if lo <= m.base {
		return nil, raft.ErrCompacted
	}
	if hi > m.last+1 || lo >= hi {
		return nil, raft.ErrUnavailable
	}
	before := m.end(lo - 1)
	n := 1 + sort.Search(int(hi-lo-1), func(i int) bool { return m.end(lo+1+uint64(i))-before > maxSize })
	ents := make([]*pb.Entry, n)
	for i := range ents {
		ents[i] = m.at(lo + uint64(i)).entry
	}
	return ents, nil
}

// Term of entry i, which may also be the one before [Log.FirstIndex]. Errors are
// those of Entries.
func (l *Log) Term(i uint64) (uint64, error) {
	switch m := &l.memory; {
	case i < m.base:
		return 0, raft.ErrCompacted
	case i > m.last:
		return 0, raft.ErrUnavailable
	default:
		return m.term(i), nil
	}
}

// FirstIndex is the index of the oldest entry in memory, or of the next if there
// is none. It never fails.
func (l *Log) FirstIndex() (uint64, error) { return l.memory.base + 1, nil }

// LastIndex is the index of the newest entry. It never fails.
func (l *Log) LastIndex() (uint64, error) { return l.memory.last, nil }

// Snapshot is what the function given to [Log.OnSnapshot] returns, and before
// that [raft.ErrSnapshotTemporarilyUnavailable].
func (l *Log) Snapshot() (*pb.Snapshot, error) {
	if l.snapshot == nil {
		return nil, raft.ErrSnapshotTemporarilyUnavailable
	}
	return l.snapshot()
}

// OnSnapshot sets what [Log.Snapshot] returns. Raft calls it, on its goroutine,
// when a follower needs what is not in the log any more.
func (l *Log) OnSnapshot(snapshot func() (*pb.Snapshot, error)) { l.snapshot = snapshot }

// SetConfState sets the members that [Log.InitialState] returns, and keeps cs. It
// is not written to disk: there they are part of a state, and a restart goes on
// from that.
func (l *Log) SetConfState(cs *pb.ConfState) { l.conf = cs }

// Bytes is the length of the entries in memory, encoded. What Go needs around
// them, some 150 bytes each, is not counted.
func (l *Log) Bytes() int64 { return int64(l.memory.bytes()) }

// IndexFor is the oldest entry that [Log.Compact] can forget up to so that the rest
// takes at most budget bytes, as Bytes counts: the smallest i, from the one before
// FirstIndex on, such that the entries behind i take that.
func (l *Log) IndexFor(budget int64) uint64 {
	m := &l.memory
	all := m.end(m.last)
	return m.base + uint64(sort.Search(int(m.last-m.base), func(i int) bool {
		return all-m.end(m.base+uint64(i)) <= uint64(max(budget, 0))
	}))
}

// Compact forgets the entries up to and with to, in memory. [Log.Term] of to stays
// known. What was forgotten before is passed over; forgetting more than there is
// would make a gap, so that panics. It takes time for what it forgets, not for
// what it keeps.
func (l *Log) Compact(to uint64) {
	if to > l.memory.last {
		panic(fmt.Sprintf("raftlog: compact to %d, behind the last entry %d", to, l.memory.last))
	}
	if to > l.memory.base {
		l.memory.compact(to)
	}
}
